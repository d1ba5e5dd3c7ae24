"""
Results: the folds' predictions as one file of figures, two pictures and a table.

`python -m train.report` writes them into README.md and docs/results.md.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ser_model.configuration_ser import EMOTIONS
from ser_model.results import check_output, is_stream, whole_file, write_whole

from .corpus import told_clips
from .metrics import confusion, fit_temperature, per_class, reliability, scores
from .recipe import Recipe, available, load_recipe

RESULTS = Path(__file__).parent / "results"
PROTOCOLS = {
    "speaker-independent": "people it has never heard (five folds of actors)",
    "random-split": "new clips of people it has heard (random 80/20 split)",
}


def result_path(recipe_name: str, protocol: str, *corpus: str) -> Path:
    """Where the figures of a recipe under a protocol, and on another `corpus`, are committed."""
    return RESULTS / f"{'.'.join([recipe_name, protocol, *corpus])}.json"


def other_corpora(recipe_name: str) -> list[dict]:
    """What a recipe's network was measured to be worth on corpora that it has never heard, in the order of their titles."""
    results = map(_read, RESULTS.glob(f"{recipe_name}.other-corpus.*.json"))
    return sorted(results, key=lambda result: result["about"]["title"].lower())


def corpus_title(result: dict) -> str:
    """What such a result was measured on, with what chance would reach."""
    num_emotions = len(result["labels"])
    return (
        f"another corpus, never heard: {result['about']['title']}, {result['about']['speakers']} ({num_emotions} emotions, "
        f"chance {100 / num_emotions:.1f} %)"
    )


MEASURES = ("accuracy", "uar", "macro_f1", "weighted_f1", "ece")


def summarise(runs: list[dict], recipe: Recipe, *, protocol: str, held_out: str) -> dict:
    """
    The result file's content out of finished runs, one a fold and seed.

    Figures of a fold are means over the seeds, those of a seed means over the folds, but for the calibration error: it is
    taken over a seed's clips of all folds together, since one fold has too few for its bins. Figures by class, gender and
    intensity, as far as the clips tell these, and the confusion matrix count each clip once a seed.
    """
    labels = list(EMOTIONS)
    seeds, folds = (list(dict.fromkeys(run[name] for run in runs)) for name in ("seed", "fold"))
    by_seed = [_seed_figures([run for run in runs if run["seed"] == seed]) for seed in seeds]
    mean = _mean(by_seed)
    probabilities, references, clips = _predictions(runs)
    result = {
        "recipe": recipe.name,
        "protocol": protocol,
        "held_out": held_out,
        "seed": seeds[0],
        "folds": [_fold_figures([run for run in runs if run["fold"] == fold]) for fold in folds],
        "seeds": by_seed,
        "mean": mean,
        "standard_deviation_over_seeds": {name: float(np.std([s[name] for s in by_seed])) for name in MEASURES},
        "per_class": per_class(probabilities, references, labels),
        **{
            f"by_{field}": by_field(probabilities, references, [clip[field] for clip in clips])
            for field in ("gender", "intensity")
            if all(field in clip for clip in clips)
        },
        "reliability": reliability(probabilities, references),
        "curves": {run["fold"] or 1: _curves(run["history"], recipe) for run in runs if run["seed"] == seeds[0]},
        "confusion_matrix": confusion(probabilities, references, len(labels)),
        "labels": labels,
        "model": {"num_parameters": runs[0]["num_parameters"], "num_bytes": runs[0]["num_bytes"]},
        "train_seconds": round(len(runs) * _train_seconds(runs), 1),
        "settings": recipe.to_dict(),
        "versions": runs[0]["versions"],
        "data_fingerprint": runs[0]["data_fingerprint"],
        "clips": _answered(clips, probabilities),
    }
    if held_out == "validation":
        fitted = fit_temperature(probabilities, references)
        result["temperature"] = round(fitted * recipe.model.get("temperature", 1.0), 3)
    return result


def _fold_figures(runs: list[dict]) -> dict:
    """Of one fold: the mean over its seeds."""
    clips = told_clips(runs[0])
    return {
        "fold": runs[0]["fold"] or 1,
        "test_actors": sorted({clip["actor"] for clip in clips}),
        "num_clips": len(clips),
        **_mean([_scores([run]) for run in runs]),
        "train_seconds": round(_train_seconds(runs), 1),
    }


def _train_seconds(runs: list[dict]) -> float:
    """The mean of those trained on a CPU, or else of all."""
    seconds = [run["train_seconds"] for run in runs if run.get("device", "cpu") == "cpu"]
    return float(np.mean(seconds or [run["train_seconds"] for run in runs]))


def _seed_figures(runs: list[dict]) -> dict:
    """Of one seed: the mean over its folds."""
    devices = sorted({run.get("device", "cpu") for run in runs})
    scored = _mean([_scores([run]) for run in runs])
    return {"seed": runs[0]["seed"], "device": ", ".join(devices), **scored, "ece": _scores(runs)["ece"]}


def _mean(figures: list[dict]) -> dict[str, float]:
    return {name: float(np.mean([f[name] for f in figures])) for name in MEASURES}


def _scores(runs: list[dict]) -> dict[str, float]:
    probabilities, references, _ = _predictions(runs)
    return scores(probabilities, references)


def _curves(history: list[dict], recipe: Recipe) -> dict[str, list]:
    """Points (epoch, value) of the loss on training clips and the accuracy on validation clips, at most 50 each."""
    points = {
        name: [(round(entry["epoch"], 2), round(entry[key], 4)) for entry in history if key in entry]
        for name, key in (("training loss", "loss"), ("validation accuracy", "eval_accuracy"))
    }
    return {name: values[:: -(-len(values) // 50)] for name, values in points.items() if values}


def _predictions(runs: list[dict]) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """(num_clips, num_labels) probabilities, (num_clips,) class numbers, and the clips' rows, one run after the other."""
    clips = [clip for run in runs for clip in told_clips(run)]
    probabilities = np.concatenate([np.array(run["probabilities"]) for run in runs])
    return probabilities, np.array([EMOTIONS.index(clip["label"]) for clip in clips]), clips


def _answered(clips: list[dict], probabilities: np.ndarray) -> list[dict]:
    """Each clip once, by its name, label, speaker and corpus, with the answers to it, one a run that heard it."""
    answered = {}
    for clip, p in zip(clips, probabilities):
        about = {name: clip[name] for name in ("clip", "label", "speaker", "corpus")}
        answered.setdefault(clip["clip"], {**about, "answers": []})["answers"].append(EMOTIONS[p.argmax()])
    return list(answered.values())


def by_field(probabilities: np.ndarray, references: np.ndarray, values: list[str]) -> dict[str, dict]:
    values = np.array(values)
    return {
        value: {
            "num_clips": int((values == value).sum()),
            **scores(probabilities[values == value], references[values == value]),
        }
        for value in sorted(set(values.tolist()))
    }


def write_result(result: dict, path: Path) -> None:
    """
    The JSON file and, beside it, the confusion matrix and, if something was trained, the curves as pictures; each whole or
    not at all. Beside a pipe or a device there are none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {suffix: draw for suffix, draw in PICTURES.items() if draw is not draw_curves or "curves" in result}
    for suffix, draw in () if is_stream(path) else pictures.items():
        with whole_file(path.with_suffix(suffix)) as partial:
            draw(result, partial)
    write_whole(path, f"{_as_json(result)}\n".encode())


def _as_json(result: dict) -> str:
    """A figure a line, but the curves as one, and a line a clip."""
    lines = ",\n  ".join(map(json.dumps, result["clips"]))
    compact = {"curves": json.dumps(result.get("curves")), "clips": f"[\n  {lines}\n ]"}
    compact = {name: text for name, text in compact.items() if name in result}
    text = json.dumps({**result, **{name: f"<{name}>" for name in compact}}, indent=1)
    for name, content in compact.items():
        text = text.replace(f'"<{name}>"', content)
    return text


def check_result_path(path: str) -> None:
    """
    Raises:
        `ValueError`, `OSError`: as `check_output`, of the file and of the pictures beside it.
    """
    check_output(path, is_ours=_is_result)
    if not is_stream(path):
        for suffix in PICTURES:
            # Of a picture there is no telling but by the file that it belongs to.
            check_output(str(Path(path).with_suffix(suffix)), is_ours=lambda _: Path(path).exists())


def _is_result(path: Path) -> bool:
    try:
        return {"recipe", "protocol", "confusion_matrix"} <= set(_read(path))
    except (ValueError, TypeError):
        return False


def draw_confusion(result: dict, path: Path) -> None:
    """Recall of each emotion and what it is taken for, in per cent of its clips."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = np.array(result["confusion_matrix"])
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        axes.text(column, row, f"{share:.0f}", ha="center", va="center", color="white" if share > 55 else "black")
    ticks = range(len(result["labels"]))
    axes.set_xticks(ticks, result["labels"], rotation=45, ha="right")
    axes.set_yticks(ticks, result["labels"])
    axes.set_xlabel("heard as")
    axes.set_ylabel("acted")
    on = result["about"]["title"] if "about" in result else result["protocol"]
    axes.set_title(f"{result['recipe']}, {on}: UAR {100 * result['mean']['uar']:.1f} %\n(% of each row)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curves(result: dict, path: Path) -> None:
    """Loss on training clips and accuracy on validation clips over the epochs, a line a fold."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for curves in result["curves"].values() for name in curves))
    figure, axes = plt.subplots(1, max(len(names), 1), figsize=(4.8 * max(len(names), 1), 3.6), layout="constrained")
    for name, panel in zip(names, np.atleast_1d(axes)):
        for fold, curves in result["curves"].items():
            if name in curves:
                panel.plot(*zip(*curves[name]), label=f"fold {fold}")
        panel.set_xlabel("epoch")
        panel.set_title(name)
        if len(result["curves"]) > 1:
            panel.legend()
    figure.suptitle(f"{result['recipe']}, {result['protocol']}")
    figure.savefig(path, dpi=100)
    plt.close(figure)


PICTURES = {".png": draw_confusion, ".curves.png": draw_curves}


def print_result(result: dict) -> None:
    """The figures as a table."""
    print(f"{'fold':>5} {'clips':>6} {'UAR %':>7} {'WA %':>7}  actors held out")
    for fold in result["folds"]:
        actors = " ".join(map(str, fold["test_actors"]))
        print(
            f"{fold['fold']:>5} {fold['num_clips']:>6} {100 * fold['uar']:7.1f} {100 * fold['accuracy']:7.1f}  {actors}"
        )
    mean = {name: 100 * value for name, value in result["mean"].items()}
    print(f"{'mean':>5} {'':>6} {mean['uar']:7.1f} {mean['accuracy']:7.1f}")
    print(
        f"macro F1 {mean['macro_f1']:.1f} %, weighted F1 {mean['weighted_f1']:.1f} %, calibration error {mean['ece']:.1f} %"
    )
    print_classes(result)
    if len(result["seeds"]) > 1:
        each = ", ".join(f"{100 * figures['uar']:.1f}" for figures in result["seeds"])
        print(f"\nUAR of each seed: {each} %")
    if "temperature" in result:
        print(f"\nThese clips' confidence is right at the temperature {result['temperature']:.2f}.")
    if "conditions" in result:
        print(f"\n{'condition':>24} {'UAR %':>6} {'change':>7}")
        for name, figures in result["conditions"].items():
            change = figures["uar"] - result["mean"]["uar"]
            print(f"{name:>24} {100 * figures['uar']:6.1f} {100 * change:+7.1f}")


def print_classes(result: dict) -> None:
    """The figures of each emotion as a table."""
    print(f"\n{'emotion':>10} {'precision':>10} {'recall':>7} {'F1':>5} {'clips':>6}")
    for label, figures in result["per_class"].items():
        print(
            f"{label:>10} {100 * figures['precision']:10.0f} {100 * figures['recall']:7.0f} {100 * figures['f1']:5.0f} "
            f"{figures['support']:6}"
        )


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS_PAGE = ROOT / "docs" / "results.md"
SPEED = ROOT / "tests" / "benchmarks" / "results.json"
# What the benchmark calls the network of a recipe.
BENCHMARKED = {
    "ser-base": "ser-base, one network",
    "bilstm": "BiLSTM (Keras)",
    "cnn-bilstm": "CNN, BiLSTM (Keras)",
    "cnn-bilstm-attention": "CNN, BiLSTM, attention (Keras)",
    "cnn-bilstm-transformer": "CNN beside BiLSTM and transformer (Keras)",
    "cnn-descriptors": "CNN on descriptors (Keras)",
}


def networks_table() -> str:
    """Every recipe that was measured in one row, ours first, and wav2vec2-base for its speed, as Markdown."""
    lines = [
        "| network | size | strangers in another language | unknown actors | known voices | speed |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    benchmarked = _benchmarked()
    for name in sorted(available(), key=lambda name: (not name.startswith("ser-"), name)):
        unknown, known = (_read(result_path(name, protocol)) for protocol in ("speaker-independent", "random-split"))
        measured = unknown or known
        if measured is None:
            continue
        cells = [
            f"`{name}`",
            f"{measured['model']['num_bytes'] / 1e6:.1f} MB",
            ", ".join(f"{r['about']['title']} {_percents(r, 'uar')}" for r in other_corpora(name)) or "–",
            _percents(unknown, "uar") if unknown else "–",
            _percents(known, "accuracy") if known else "–",
            _speed(benchmarked, BENCHMARKED.get(name)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if scale := benchmarked.get("wav2vec2-base"):
        size = f"{scale['checkpoint_mb']:.0f} MB"
        lines.append(f"| wav2vec2-base, for its speed | {size} | – | – | – | {_speed(benchmarked, 'wav2vec2-base')} |")
    return "\n".join(lines)


def _benchmarked() -> dict[str, dict]:
    """What the benchmark found, by its name of a system."""
    return {row["system"]: row for row in (_read(SPEED) or {"systems": []})["systems"]}


def _speed(benchmarked: dict[str, dict], system: str | None) -> str:
    """From waveform to label, of a clip of 4 s on one thread."""
    if system not in benchmarked:
        return "–"
    calls = {call["call"]: call["one_thread_ms"] for call in benchmarked[system]["calls"]}
    return f"{calls['waveform to label']:.3g} ms{' (Keras)' if system.endswith('(Keras)') else ''}"


def figures_of_ours() -> str:
    """What `ser-base` reaches on other corpora and under both protocols, as Markdown."""
    results = {protocol: _read(result_path("ser-base", protocol)) for protocol in PROTOCOLS}
    unheard = results["speaker-independent"]
    measured = unheard or results["random-split"]
    elsewhere = other_corpora("ser-base")
    if measured is None:
        return "`ser-base` is not measured yet."
    model = measured["model"]
    lines = [
        f"| `ser-base`, {model['num_parameters']:,} parameters, {model['num_bytes'] / 1e6:.1f} MB | UAR | accuracy | macro F1 "
        "| calibration error |",
        "|---|---|---|---|---|",
    ]
    titled = [(corpus_title(result), result) for result in elsewhere]
    titled += [(title, results[protocol]) for protocol, title in PROTOCOLS.items() if results[protocol]]
    for title, result in titled:
        values = [_percents(result, measure) for measure in ("uar", "accuracy", "macro_f1", "ece")]
        lines.append(f"| {title} | {' | '.join(values)} |")
    told = [recalls_elsewhere(elsewhere)] if elsewhere else []
    told += details(unheard) if unheard else []
    return "\n".join(lines + ([""] if told else []) + told)


def recalls_elsewhere(results: list[dict]) -> str:
    """The recall of each emotion on other corpora."""
    told = "; ".join(f"on {result['about']['title']} {_recalls(result)}" for result in results)
    return f"On corpora never heard, in per cent of their clips, what is recognised: {told}."


def _recalls(result: dict) -> str:
    return ", ".join(f"{label} {100 * figures['recall']:.0f}" for label, figures in result["per_class"].items())


def details(result: dict) -> list[str]:
    """By seed if there are several, by fold, emotion, gender and intensity, and outside the studio."""
    seeds = ", ".join(f"{100 * seed['uar']:.1f}" for seed in result["seeds"])
    by_seed = f"by seed {seeds}; " if len(result["seeds"]) > 1 else ""
    folds = ", ".join(f"{100 * fold['uar']:.1f}" for fold in result["folds"])
    groups = [
        f"{group} {100 * figures['uar']:.1f}"
        for field in ("by_gender", "by_intensity")
        for group, figures in result.get(field, {}).items()
    ]
    lines = [
        f"On people never heard, in per cent: UAR {by_seed}by fold {folds}; recall of {_recalls(result)}; UAR of voices "
        f"and intensities: {', '.join(groups)}.",
    ]
    if conditions := result.get("conditions"):
        changed = ", ".join(f"{name} {100 * figures['uar']:.1f}" for name, figures in conditions.items())
        lines.append(f"The same clips outside the studio, by simulation: UAR of {changed}.")
    return lines


def recipes_table() -> str:
    """
    Every recipe that was measured, as Markdown: claimed, and measured here on other corpora, by both protocols, and by a
    leaky one.
    """
    lines = [
        "| recipe | claimed | other corpora: UAR | unknown actors: UAR, accuracy | known voices (random split): accuracy, macro F1 "
        "| leaky split: accuracy | parameters | size | training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in available():
        leaky = _read(result_path(name, "leaky-split"))
        results = {protocol: _read(result_path(name, protocol)) for protocol in ("random-split", "speaker-independent")}
        if not any(results.values()):
            continue
        split, unheard = results.values()
        measured = split or unheard
        seconds = [fold["train_seconds"] for result in _on_cpu(results.values()) for fold in result["folds"]]
        cells = [
            f"`{name}`",
            load_recipe(name).claimed or "",
            ", ".join(f"{r['about']['title']} {_percents(r, 'uar')}" for r in other_corpora(name)) or "not measured",
            _percents(unheard, "uar", "accuracy"),
            _percents(split, "accuracy", "macro_f1"),
            _percents(leaky, "accuracy"),
            f"{measured['model']['num_parameters']:,}",
            f"{measured['model']['num_bytes'] / 1e6:.1f} MB",
            _duration(statistics.median(seconds)) if seconds else "not measured",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _on_cpu(results: Iterable[dict | None]) -> list[dict]:
    """Those with a training time on a CPU; a GPU's is another."""
    return [r for r in results if r and any("cpu" in seed.get("device", "cpu") for seed in r["seeds"])]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _percents(result: dict | None, *measures: str) -> str:
    return ", ".join(f"{100 * result['mean'][measure]:.1f} %" for measure in measures) if result else "not measured"


# What stands between two comments, by the name in them: on which page, and what writes it.
BLOCKS = {
    "networks": (README, networks_table),
    "ser-base": (RESULTS_PAGE, figures_of_ours),
    "recipes": (RESULTS_PAGE, recipes_table),
}


def marked(name: str, content: str) -> str:
    return f"<!-- {name}: python -m train.report -->\n{content}\n<!-- end of {name} -->"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.report", description=__doc__)
    parser.parse_args(arguments)
    for name, (page, write) in BLOCKS.items():
        begins, ends = marked(name, "\0").split("\n\0\n")
        before, rest = page.read_text(encoding="utf-8").split(begins)
        write_whole(page, (before + marked(name, write()) + rest.split(ends)[1]).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
