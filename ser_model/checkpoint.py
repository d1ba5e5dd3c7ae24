"""What is wrong with a checkpoint's files, said before any of them is used."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

CONFIG, EXTRACTOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def check_checkpoint(folder: Path) -> None:
    """
    Raises:
        `OSError`: a file is missing or cannot be read.
        `ValueError`: a file is damaged, or is not what it should be; the message names it.
    """
    config = _read_json(folder / CONFIG)
    _read_json(folder / EXTRACTOR)
    _check_labels(config, folder / CONFIG)
    _check_weights(folder)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OSError(f"{path} is missing: a checkpoint needs {CONFIG}, {EXTRACTOR} and {WEIGHTS}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON. Copy the checkpoint again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no settings. Copy the checkpoint again.")
    return content


def _check_labels(config: dict, path: Path) -> None:
    labels = config.get("id2label")
    if labels is None:
        return
    if (
        not isinstance(labels, dict)
        or set(labels) != {str(i) for i in range(len(labels))}
        or not all(isinstance(label, str) for label in labels.values())
        or len(set(labels.values())) != len(labels)
        or config.get("label2id", {label: int(i) for i, label in labels.items()})
        != {label: int(i) for i, label in labels.items()}
    ):
        raise ValueError(
            f"{path} has wrong labels: id2label must number different labels from 0, and label2id say the same."
        )


def _check_weights(folder: Path) -> None:
    path = folder / WEIGHTS
    if not path.exists():
        pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in PICKLES]
        if pickles:
            raise ValueError(
                f"{folder / pickles[0]} is a pickle, which may run any program when it is opened: only weights in "
                f"{WEIGHTS} are read."
            )
        raise OSError(f"{path} is missing: a checkpoint needs {CONFIG}, {EXTRACTOR} and {WEIGHTS}.")
    try:
        with safe_open(path, "pt") as weights:
            bad = [name for name in weights.keys() if not torch.isfinite(weights.get_tensor(name)).all()]  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not in the safetensors format. Copy the checkpoint again.") from error
    if bad:
        raise ValueError(f"{path} is damaged: {bad[0]} holds NaN or infinite numbers. Copy the checkpoint again.")
