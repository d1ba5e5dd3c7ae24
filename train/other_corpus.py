"""A finished network on a corpus that it has never heard: what to expect of it for a stranger's recording."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import tqdm
from httpx2 import HTTPError  # what huggingface_hub raises when there is no connection
from huggingface_hub import hf_hub_download

from ser_model.pretrained import FOLDER, HUB_NAME, available
from ser_model.scoring import score_files

from . import corpus as corpora
from .corpus import DataError
from .metrics import confusion, per_class, reliability, scores
from .push import RUN_FILE
from .report import by_field
from .train import versions

PROTOCOL = "other-corpus"


def evaluate(
    checkpoint: str,
    corpus: str,
    *,
    folder: str | None = None,
    half: str | None = None,
    allow_incomplete: bool = False,
    jobs: int = 1,
    quiet: bool = False,
) -> dict:
    """
    Scores a corpus with a finished network as a user would: through the pipeline, windows and voice check included.

    What counts are the emotions that network and corpus share. Of the others the network's probabilities are left out, and
    those that remain are divided by their sum, before the likeliest is taken and calibration is measured; but where a corpus
    knows no calm, what the network gives to calm counts as neutral.

    Args:
        checkpoint: As in `ser_model.pretrained.load_pipeline`.
        corpus, folder, allow_incomplete: As in `corpus.load_rows`.
        half: `"a"` for the first, third, fifth … of the speakers in order, `"b"` for the others: to make choices on one and
            to read the other once.
        jobs: Processes that score side by side.

    Returns:
        The result as it is written to JSON, and `is_whole`: whether it is about the whole corpus and a recipe's whole network.
        A recording that cannot be read or has no voice in it does not count; it is listed in `refused`, with the reason.

    Raises:
        `DataError`: the corpus cannot be had, the network has learnt from these speakers, or they share no two emotions.
        `OSError`, `ValueError`: the checkpoint cannot be loaded.
    """
    run = read_run(checkpoint)
    rows = corpora.load_rows(corpus, folder, allow_incomplete=allow_incomplete)
    rows = _half_of(rows, half, corpus) if half else rows
    check_unheard(run, rows, checkpoint)
    scored = score_files([row["path"] for row in rows], model=checkpoint, workers=jobs)
    answers = {a["path"]: a for a in tqdm.tqdm(scored, total=len(rows), unit="clip", disable=quiet)}
    about = {
        "recipe": run["recipe"]["name"] if run else Path(checkpoint).name,
        "protocol": PROTOCOL,
        "corpus": corpus if corpus in corpora.CORPORA else Path(corpus).stem,
        "about": _about(corpus, rows),
        "held_out": "test",
        "half": half,
        "is_whole": half is None and not allow_incomplete and run.get("protocol") == "all" and _is_new(run, rows),
        "learnt_from": sorted(corpora.learnt_corpora(run)) if run else None,
    }
    if run:
        about["model"] = {name: run[name] for name in ("num_parameters", "num_bytes") if name in run}
    told = {"versions": versions(), "data_fingerprint": corpora.join_fingerprints(corpora.fingerprints(rows))}
    return {**about, **_figures(rows, answers), **told}


def read_run(checkpoint: str) -> dict:
    """What `run.json` of a checkpoint says; empty if it has none, as somebody else's has not."""
    folder = FOLDER / checkpoint if checkpoint in available() else Path(checkpoint)
    try:
        if not folder.is_dir() and (on_hub := HUB_NAME.fullmatch(checkpoint)):
            folder = Path(hf_hub_download(**on_hub.groupdict(), filename=RUN_FILE)).parent
        return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (HTTPError, OSError, ValueError):
        return {}


def check_unheard(run: dict, rows: list[dict], checkpoint: str) -> None:
    """Raises `DataError` where the network has learnt from a speaker of `rows`."""
    heard = set()
    for corpus, about in corpora.learnt_corpora(run).items() if run else ():
        speakers = {row["speaker"] or "" for row in rows if row["corpus"] == corpus}
        if speakers & set(about.get("speakers", speakers)):  # the first runs do not tell them: they learnt from all
            heard.add(corpus)
    if heard:
        raise DataError(
            f"{checkpoint} has learnt from {' and '.join(sorted(heard))}: what it makes of these clips says nothing of strangers, "
            "give a corpus that it has never heard."
        )


def _is_new(run: dict, rows: list[dict]) -> bool:
    """Whether the network has heard nobody of the corpus, not even others than the speakers of `rows`."""
    return not {row["corpus"] for row in rows} & set(corpora.learnt_corpora(run))


def _half_of(rows: list[dict], half: str, corpus: str) -> list[dict]:
    speakers = sorted({row["speaker"] for row in rows if row["speaker"]})
    if len(speakers) < 2:
        raise DataError(f"{corpus} tells fewer than two speakers: leave out --half, or name them in a column speaker.")
    chosen = speakers[half == "b" :: 2]
    return [row for row in rows if row["speaker"] in chosen]


def _about(corpus: str, rows: list[dict]) -> dict:
    if corpus not in corpora.CORPORA:
        return {"title": Path(corpus).stem, "speakers": f"{len({row['speaker'] for row in rows})} speakers"}
    known = corpora.CORPORA[corpus]
    return {name: getattr(known, name) for name in ("title", "speakers", "language", "license", "citation")}


def _figures(rows: list[dict], answers: dict[str, dict]) -> dict:
    """All that is measured, of `answers` {path: what `score_file` gives}."""
    refused = [
        {
            "clip": Path(row["path"]).stem,
            "error": answers[row["path"]]["error"].replace(row["path"], Path(row["path"]).name),
        }
        for row in rows
        if "error" in answers[row["path"]]
    ]
    rows = [row for row in rows if "error" not in answers[row["path"]]]
    if not rows:
        raise DataError(
            f"None of these recordings can be scored: {refused[0]['error'] if refused else 'there are none.'}"
        )
    network = list(answers[rows[0]["path"]]["scores"])
    shared = [label for label in network if label in {row["emotion"] for row in rows}]
    if len(shared) < 2:
        raise DataError(
            f"The network knows {', '.join(network)}, the corpus {', '.join(sorted({row['emotion'] for row in rows}))}: "
            "they must share two emotions at least."
        )
    left_out = Counter(row["emotion"] for row in rows if row["emotion"] not in shared)
    rows = [row for row in rows if row["emotion"] in shared]
    probabilities = np.array([shared_probabilities(answers[row["path"]]["scores"], shared) for row in rows])
    references = np.array([shared.index(row["emotion"]) for row in rows])
    fields = [name for name in ("speaker", "gender", "intensity") if all(row.get(name) for row in rows)]
    return {
        "num_clips": len(rows),
        "num_speakers": len({row["speaker"] for row in rows} - {None}),
        "refused": refused,
        "left_out": dict(left_out),
        "labels": shared,
        "mean": scores(probabilities, references),
        "per_class": per_class(probabilities, references, shared),
        **{f"by_{name}": by_field(probabilities, references, [row[name] for row in rows]) for name in fields},
        "reliability": reliability(probabilities, references),
        "confusion_matrix": confusion(probabilities, references, len(shared)),
        "clips": [
            {**corpora.told(row), "answers": [shared[p.argmax()]], "confidence": round(float(p.max()), 4)}
            for row, p in zip(rows, probabilities)
        ],
    }


def shared_probabilities(probabilities: dict[str, float], shared: list[str]) -> np.ndarray:
    """(num_shared,) of the emotions in `shared` alone, summing to 1; calm is part of neutral where only the latter is there."""
    probabilities = dict(probabilities)
    if "neutral" in shared and "calm" not in shared:
        probabilities["neutral"] += probabilities.get("calm", 0.0)
    kept = np.array([probabilities[label] for label in shared])
    return kept / max(kept.sum(), np.finfo(float).tiny)


def print_result(result: dict) -> None:
    """The figures as a table."""
    mean = {name: 100 * value for name, value in result["mean"].items()}
    print(
        f"{result['recipe']} on {result['about']['title']}, {result['num_clips']} clips of {result['num_speakers']} speakers:\n"
        f"UAR {mean['uar']:.1f} % (by chance {100 / len(result['labels']):.1f} %), WA {mean['accuracy']:.1f} %, macro F1 "
        f"{mean['macro_f1']:.1f} %, calibration error {mean['ece']:.1f} %"
    )
    print(f"\n{'emotion':>10} {'precision':>10} {'recall':>7} {'F1':>5} {'clips':>6}")
    for label, figures in result["per_class"].items():
        print(
            f"{label:>10} {100 * figures['precision']:10.0f} {100 * figures['recall']:7.0f} {100 * figures['f1']:5.0f} "
            f"{figures['support']:6}"
        )
    if by_speaker := result.get("by_speaker"):
        uars = sorted((100 * figures["uar"], speaker) for speaker, figures in by_speaker.items())
        told = ", ".join(f"{speaker} {uar:.0f}" for uar, speaker in uars)
        print(f"\nUAR by speaker, from the lowest: {told} %")
    if result["learnt_from"] is None:
        print(f"\nThe checkpoint has no {RUN_FILE} that tells what it has learnt from: it may have heard this corpus.")
    if result["left_out"]:
        print(f"\nNot shared: {', '.join(f'{count} clips {label}' for label, count in result['left_out'].items())}.")
    if result["refused"]:
        print(
            f"\n{len(result['refused'])} recordings have no answer and do not count, the first: {result['refused'][0]['error']}"
        )
