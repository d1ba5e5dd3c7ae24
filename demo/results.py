"""How good it is: the page's last tab, drawn from the committed result files, and nothing typed in."""

import json
from html import escape
from pathlib import Path

from .pictures import glyph, name

FOLDER = Path(__file__).parents[1] / "train" / "results"
PROTOCOLS = {
    "speaker-independent": "People it has never heard",
    "random-split": "New clips of people it has heard",
}
MEASURES = {"uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro F1", "ece": "calibration error"}


def load_results(folder: Path = FOLDER) -> dict[str, dict[str, dict]]:
    """{recipe: {protocol: what its result file holds}}; empty while nothing has been measured."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result.get("protocol") in PROTOCOLS:
            results.setdefault(result["recipe"], {})[result["protocol"]] = result
    return results


def figures_lines(by_protocol: dict[str, dict]) -> str:
    """A recipe's two main figures under each protocol."""
    lines = [
        f"{words}: UAR {percent(by_protocol[protocol]['mean']['uar'])}, "
        f"accuracy {percent(by_protocol[protocol]['mean']['accuracy'])}."
        for protocol, words in PROTOCOLS.items()
        if protocol in by_protocol
    ]
    return "".join(f"<p>{line}</p>" for line in lines or ["Not measured yet."])


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def page(results: dict[str, dict[str, dict]], recipe: str | None) -> str:
    """Everything known of one recipe."""
    by_protocol = results.get(recipe, {})
    if not by_protocol:
        return (
            '<div class="results"><p class="notice">This network has no figures here, so do not trust its answers: '
            "<code>python -m train.evaluate</code> measures a recipe and writes its result file.</p></div>"
        )
    parts = [_summary(by_protocol)]
    parts += [_protocol(by_protocol[protocol]) for protocol in PROTOCOLS if protocol in by_protocol]
    return f'<div class="results">{"".join(parts)}</div>'


def _summary(by_protocol: dict[str, dict]) -> str:
    head = "".join(f'<th scope="col" class="number">{words}</th>' for words in PROTOCOLS.values())
    rows = ""
    for measure, title in MEASURES.items():
        cells = "".join(
            f'<td class="number">{percent(by_protocol[p]["mean"][measure]) if p in by_protocol else "not yet"}</td>'
            for p in PROTOCOLS
        )
        rows += f'<tr><th scope="row">{title}</th>{cells}</tr>'
    result = next(iter(by_protocol.values()))
    chance = percent(1 / len(result["per_class"]))
    return (
        f'<div class="scroll"><table class="grid"><thead><tr><th scope="col">measured on</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div><p>UAR is the mean over the emotions of the share of clips that are "
        f"recognised; by chance it is {chance}. The first column is what to expect of a new voice. The second is how such "
        "systems are usually reported: the network has heard other clips of the same people, and looks better for it. "
        f"The network has {result['model']['num_parameters']:,} parameters and takes "
        f"{result['model']['num_bytes'] / 1e6:.1f} MB.</p>"
    )


def _protocol(result: dict) -> str:
    clips = sum(fold["num_clips"] for fold in result["folds"])
    folds = ", ".join(percent(fold["uar"]) for fold in result["folds"])
    spread = f"UAR of each of {len(result['folds'])} folds: {folds}. " if len(result["folds"]) > 1 else ""
    groups = "".join(
        _by_group(field, result[f"by_{field}"]) for field in ("gender", "intensity") if f"by_{field}" in result
    )
    command = f"<p>Measured by <code>{escape(result['command'])}</code></p>" if "command" in result else ""
    return (
        f"<section><h3>{PROTOCOLS[result['protocol']]}</h3><p>{clips} clips. {spread}</p>{_confusion(result)}"
        f"{_per_class(result)}{groups}{_calibration(result)}{_conditions(result)}{command}</section>"
    )


def _by_group(field: str, groups: dict[str, dict]) -> str:
    figures = ", ".join(f"{group} {percent(group_figures['uar'])}" for group, group_figures in groups.items())
    return f"<p>UAR by {field}: {figures}.</p>"


def _confusion(result: dict) -> str:
    labels = list(result["per_class"])
    head = "".join(
        f'<th scope="col" title="{escape(label)}"><span class="glyph" aria-hidden="true">{glyph(label)}</span>'
        f"<small>{escape(label)}</small></th>"
        for label in labels
    )
    rows = ""
    for label, counts in zip(labels, result["confusion_matrix"], strict=True):
        shares = [100 * count / max(sum(counts), 1) for count in counts]
        cells = "".join(f'<td style="--share:{share:.0f}%">{share:.0f}</td>' for share in shares)
        rows += f'<tr><th scope="row">{name(label)}</th>{cells}</tr>'
    return (
        "<h4>What each emotion is heard as</h4><p>A row is the acted emotion; its numbers are per cent of its clips.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="confusion"><thead>'
        f'<tr><th scope="col"><small>acted ↓ heard →</small></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _per_class(result: dict) -> str:
    rows = "".join(
        f'<tr><th scope="row">{name(label)}</th>'
        + "".join(f'<td class="number">{100 * f[measure]:.0f} %</td>' for measure in ("precision", "recall", "f1"))
        + f'<td class="number">{f["support"]}</td></tr>'
        for label, f in result["per_class"].items()
    )
    columns = "".join(
        f'<th scope="col" class="number">{title}</th>' for title in ("precision", "recall", "F1", "clips")
    )
    return (
        '<h4>Emotion by emotion</h4><div class="scroll"><table class="grid"><thead><tr><th scope="col">emotion</th>'
        f"{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _calibration(result: dict) -> str:
    rows = "".join(
        f'<tr><td class="number">{percent(b["confidence"])}</td><td class="number">{percent(b["accuracy"])}</td>'
        f'<td class="number">{b["num_clips"]}</td></tr>'
        for b in result.get("reliability", [])
    )
    table = (
        '<div class="scroll"><table class="grid"><thead><tr><th scope="col" class="number">its confidence</th>'
        '<th scope="col" class="number">how often it is right</th><th scope="col" class="number">clips</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    return (
        f"<h4>Can its confidence be believed?</h4><p>On average its confidence is {percent(result['mean']['ece'])} "
        f"away from how often it is right (expected calibration error).</p>{table if rows else ''}"
    )


def _conditions(result: dict) -> str:
    """How it does on the same clips as they sound outside the studio, if that was measured."""
    if "conditions" not in result:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(condition)}</th><td class="number">{percent(figures["uar"])}</td></tr>'
        for condition, figures in result["conditions"].items()
    )
    return (
        '<h4>Outside the studio</h4><table class="grid"><thead><tr><th scope="col">the same clips, altered</th>'
        f'<th scope="col" class="number">UAR</th></tr></thead><tbody>{rows}</tbody></table>'
    )
