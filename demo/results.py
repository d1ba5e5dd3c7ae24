"""How good it is: the page's last tab, drawn from the committed result files, and nothing typed in."""

import json
from html import escape
from pathlib import Path
from statistics import median

from .pictures import glyph, name

FOLDER = Path(__file__).parents[1] / "train" / "results"
PROTOCOLS = {
    "speaker-independent": "People it has never heard",
    "random-split": "New clips of people it has heard",
}
ANOTHER = "other-corpus"  # a protocol by itself for each corpus, as in other-corpus.nemo, before the others
MEASURES = {"uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro F1", "ece": "calibration error"}


def load_results(folder: Path = FOLDER) -> dict[str, dict[str, dict]]:
    """{recipe: {protocol: what its result file holds}}, as they are shown; empty while nothing has been measured."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if (protocol := result.get("protocol")) in (ANOTHER, *PROTOCOLS):
            name = f"{ANOTHER}.{result['corpus']}" if protocol == ANOTHER else protocol
            results.setdefault(result["recipe"], {})[name] = result
    order = [ANOTHER, *PROTOCOLS]
    return {
        recipe: dict(sorted(found.items(), key=lambda item: order.index(item[1]["protocol"])))
        for recipe, found in results.items()
    }


def _words(result: dict) -> str:
    """What was listened to."""
    about = result.get("about")
    return PROTOCOLS[result["protocol"]] if about is None else f"Another corpus: {about['title']}, {about['speakers']}"


def figures_lines(by_protocol: dict[str, dict]) -> str:
    """A recipe's two main figures on other corpora and under each protocol."""
    lines = [
        f"{_words(result)}: UAR {percent(result['mean']['uar'])}, accuracy {percent(result['mean']['accuracy'])}."
        for result in by_protocol.values()
    ]
    return "".join(f"<p>{escape(line)}</p>" for line in lines or ["Not measured yet."])


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
    parts += [_protocol(result) for result in by_protocol.values()]
    return f'<div class="results">{"".join(parts)}</div>'


def _summary(by_protocol: dict[str, dict]) -> str:
    columns = [(_words(result), result) for result in by_protocol.values() if result["protocol"] == ANOTHER]
    columns += [(words, by_protocol.get(protocol)) for protocol, words in PROTOCOLS.items()]
    head = "".join(f'<th scope="col" class="number">{escape(words)}</th>' for words, _ in columns)
    figures = {
        title: [result and percent(result["mean"][measure]) for _, result in columns]
        for measure, title in MEASURES.items()
    }
    figures["UAR by chance"] = [result and percent(1 / len(result["per_class"])) for _, result in columns]
    rows = ""
    for title, values in figures.items():
        cells = "".join(f'<td class="number">{value or "not yet"}</td>' for value in values)
        rows += f'<tr><th scope="row">{title}</th>{cells}</tr>'
    model = next((result["model"] for result in by_protocol.values() if "model" in result), None)
    size = (
        f" The network has {model['num_parameters']:,} parameters and takes {model['num_bytes'] / 1e6:.1f} MB."
        if model
        else ""
    )
    return (
        f'<div class="scroll"><table class="grid"><thead><tr><th scope="col">measured on</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div><p>UAR is the mean over the emotions of the share of clips that are "
        "recognised. On another corpus everything is new: people, rooms, words and perhaps the language. That is what to "
        "expect of a recording of your own. People it has never heard, of the corpus that it has learnt, are easier. The "
        f"last column is how such systems are usually reported, and looks better than it is.{size}</p>"
    )


def _protocol(result: dict) -> str:
    folds = result.get("folds", [])
    clips = result["num_clips"] if "num_clips" in result else sum(fold["num_clips"] for fold in folds)
    uars = ", ".join(percent(fold["uar"]) for fold in folds)
    spread = f"UAR of each of {len(folds)} folds: {uars}. " if len(folds) > 1 else ""
    if refused := result.get("refused"):
        spread += f"{len(refused)} more have no answer: no voice was found in them, or they could not be read. "
    if by_speaker := result.get("by_speaker"):
        uars = sorted(figures["uar"] for figures in by_speaker.values())
        spread += f"UAR of single speakers: {percent(uars[0])} to {percent(uars[-1])}, median {percent(median(uars))}. "
    groups = "".join(
        _by_group(field, result[f"by_{field}"]) for field in ("gender", "intensity") if f"by_{field}" in result
    )
    command = f"<p>Measured by <code>{escape(result['command'])}</code></p>" if "command" in result else ""
    return (
        f"<section><h3>{escape(_words(result))}</h3><p>{clips} clips. {spread}</p>{_confusion(result)}"
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
