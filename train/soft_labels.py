"""
Soft labels: what networks that have heard neither a clip's actor nor those of a test fold make of the clip.

What an actor was told to act and what is heard are not always the same. The networks of `teachers` are trained once for each
pair of folds, on the actors of the other three. For a test fold, a clip of another fold has the answer of the one that has
heard neither: no answer depends on anything of the test actors. With no test fold, it has the mean answer of the four that
have not heard its own fold.
"""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np

from ser_model.configuration_ser import EMOTIONS
from ser_model.results import write_whole

from . import report
from .ravdess import FOLDS, test_actors
from .trainer import RunError

PAIRS = [list(pair) for pair in itertools.combinations(FOLDS, 2)]


def soft_labels_path(recipe_name: str) -> Path:
    """Where the soft labels of a recipe are committed."""
    return report.RESULTS / f"{recipe_name}.soft-labels.json"


def write_soft_labels(runs: list[dict], path: Path, *, command: str) -> None:
    """Out of finished runs, one a pair of folds."""
    content = {
        "command": command,
        **{name: runs[0][name] for name in ("recipe", "seed", "versions", "data_fingerprint")},
        "labels": list(EMOTIONS),
        "pairs": [
            {
                "folds": run["fold"],
                "clips": dict(zip(run["clips"], np.round(run["probabilities"], 4).tolist())),
            }
            for run in runs
        ],
    }
    write_whole(path, f"{json.dumps(content)}\n".encode())


def read_soft_labels(recipe_name: str, clips: list[str], *, test_fold: int | list[int] | None) -> tuple:
    """
    Args:
        clips: Names, as in RAVDESS without the suffix.
        test_fold: Whose actors must have no part in any answer; `None` for none.

    Returns:
        Distributions (num_clips, num_labels), the uniform one for clips of test actors, and the file's SHA-256.

    Raises:
        `RunError`: the file is missing, or does not have the clips.
    """
    path = soft_labels_path(recipe_name)
    command = f"python -m train.teachers --recipe {recipe_name}"
    if not path.exists():
        raise RunError(f"{path} is missing: make it first, with '{command}'.")
    content = path.read_bytes()
    pairs = json.loads(content)["pairs"]
    unheard = set(test_actors(test_fold or []))
    soft = np.full((len(clips), len(EMOTIONS)), 1 / len(EMOTIONS))
    for i, clip in enumerate(clips):
        if int(clip[-2:]) in unheard:
            continue
        answers = [
            pair["clips"][clip]
            for pair in pairs
            if clip in pair["clips"] and (test_fold is None or test_fold in pair["folds"])
        ]
        if not answers:
            raise RunError(f"{path} does not have the clip {clip}: make it anew, with '{command}'.")
        soft[i] = np.mean(answers, 0)
    return soft / soft.sum(1, keepdims=True), hashlib.sha256(content).hexdigest()
