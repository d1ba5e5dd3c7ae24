"""
Results: the folds' predictions as one file of figures, two pictures and a table.

`python -m train.report` writes the table of all recipes into README.md.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

from ser_model.configuration_ser import EMOTIONS

from .metrics import confusion, per_class, reliability, scores
from .ravdess import parse_name
from .recipe import Recipe, available, load_recipe

RESULTS = Path(__file__).parent / "results"


def result_path(recipe_name: str, protocol: str) -> Path:
    """Where the figures of a recipe under a protocol are committed."""
    return RESULTS / f"{recipe_name}.{protocol}.json"


def summarise(runs: dict[int, dict], recipe: Recipe, *, protocol: str, seed: int, held_out: str) -> dict:
    """The result file's content out of the folds' runs."""
    labels = list(EMOTIONS)
    by_fold = []
    for fold, run in runs.items():
        probabilities, references, _ = _predictions(run)
        by_fold.append(
            {
                "fold": fold,
                "test_actors": sorted({parse_name(clip)["actor"] for clip in run["clips"]}),
                "num_clips": len(references),
                **scores(probabilities, references),
                "train_seconds": run["train_seconds"],
            }
        )
    parts = [_predictions(run) for run in runs.values()]
    probabilities, references = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    fields = [field for part in parts for field in part[2]]
    any_run = next(iter(runs.values()))
    measures = ("accuracy", "uar", "macro_f1", "weighted_f1", "ece")
    return {
        "recipe": recipe.name,
        "protocol": protocol,
        "held_out": held_out,
        "seed": seed,
        "folds": by_fold,
        "mean": {name: float(np.mean([fold[name] for fold in by_fold])) for name in measures},
        "standard_deviation": {name: float(np.std([fold[name] for fold in by_fold])) for name in measures},
        "per_class": per_class(probabilities, references, labels),
        **{
            f"by_{field}": _by_field(probabilities, references, [f[field] for f in fields])
            for field in ("gender", "intensity")
        },
        "reliability": reliability(probabilities, references),
        "curves": {fold: _curves(run["history"]) for fold, run in runs.items()},
        "confusion_matrix": confusion(probabilities, references, len(labels)),
        "labels": labels,
        "model": {"num_parameters": any_run["num_parameters"], "num_bytes": any_run["num_bytes"]},
        "train_seconds": round(sum(fold["train_seconds"] for fold in by_fold), 1),
        "settings": recipe.to_dict(),
        "versions": any_run["versions"],
        "data_fingerprint": any_run["data_fingerprint"],
    }


def _curves(history: list[dict]) -> dict[str, list]:
    """Points (epoch, value) of the loss on training clips and the accuracy on validation clips, at most 50 each."""
    points = {
        name: [(round(entry["epoch"], 2), round(entry[key], 4)) for entry in history if key in entry]
        for name, key in (("training loss", "loss"), ("validation accuracy", "eval_accuracy"))
    }
    return {name: values[:: -(-len(values) // 50)] for name, values in points.items() if values}


def _predictions(run: dict) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """(num_clips, num_labels) probabilities, (num_clips,) class numbers, and the clips' fields."""
    fields = [parse_name(clip) for clip in run["clips"]]
    return np.array(run["probabilities"]), np.array([EMOTIONS.index(f["emotion"]) for f in fields]), fields


def _by_field(probabilities: np.ndarray, references: np.ndarray, values: list[str]) -> dict[str, dict]:
    values = np.array(values)
    return {
        value: {
            "num_clips": int((values == value).sum()),
            **scores(probabilities[values == value], references[values == value]),
        }
        for value in sorted(set(values.tolist()))
    }


def write_result(result: dict, path: Path) -> None:
    """The JSON file and, beside it, the confusion matrix and the training curves as pictures; each whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, draw in ((".png", draw_confusion), (".curves.png", draw_curves)):
        picture = path.with_suffix(suffix)
        draw(result, picture.with_suffix(".partial.png"))
        os.replace(picture.with_suffix(".partial.png"), picture)
    partial = path.with_suffix(".partial")
    text = json.dumps({**result, "curves": "CURVES"}, indent=1).replace('"CURVES"', json.dumps(result["curves"]))
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


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
    axes.set_title(
        f"{result['recipe']}, {result['protocol']}: UAR {100 * result['mean']['uar']:.1f} %\n(% of each row)"
    )
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
    print(f"\n{'emotion':>10} {'precision':>10} {'recall':>7} {'F1':>5} {'clips':>6}")
    for label, figures in result["per_class"].items():
        print(
            f"{label:>10} {100 * figures['precision']:10.0f} {100 * figures['recall']:7.0f} {100 * figures['f1']:5.0f} "
            f"{figures['support']:6}"
        )
    if "conditions" in result:
        print(f"\n{'condition':>16} {'UAR %':>6} {'change':>7}")
        for name, figures in result["conditions"].items():
            change = figures["uar"] - result["mean"]["uar"]
            print(f"{name:>16} {100 * figures['uar']:6.1f} {100 * change:+7.1f}")


README = Path(__file__).parents[1] / "README.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- recipes: python -m train.report -->", "<!-- end of recipes -->"


def recipes_table() -> str:
    """Every recipe that was measured, as Markdown: claimed, and measured here by both protocols."""
    lines = [
        "| recipe | claimed | random split: accuracy, macro F1 | never heard: UAR, accuracy | parameters | size | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in available():
        results = {protocol: _read(result_path(name, protocol)) for protocol in ("random-split", "speaker-independent")}
        if not any(results.values()):
            continue
        split, unheard = results.values()
        measured = split or unheard
        minutes = sum(result["train_seconds"] for result in results.values() if result) / 60
        cells = [
            f"`{name}`",
            load_recipe(name).claimed or "",
            _percents(split, "accuracy", "macro_f1"),
            _percents(unheard, "uar", "accuracy"),
            f"{measured['model']['num_parameters']:,}",
            f"{measured['model']['num_bytes'] / 1e6:.1f} MB",
            f"{minutes / sum(len(result['folds']) for result in results.values() if result):.0f} min",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _percents(result: dict | None, *measures: str) -> str:
    return ", ".join(f"{100 * result['mean'][measure]:.1f} %" for measure in measures) if result else "not measured"


def main() -> int:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(TABLE_BEGINS)
    _, after = rest.split(TABLE_ENDS)
    partial = README.with_suffix(".partial")
    partial.write_text(f"{before}{TABLE_BEGINS}\n{recipes_table()}\n{TABLE_ENDS}{after}", encoding="utf-8")
    os.replace(partial, README)
    return 0


if __name__ == "__main__":
    sys.exit(main())
