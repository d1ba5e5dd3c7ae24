"""The checkpoints that ship with the code, one folder a recipe, and how to load these or any other."""

import contextlib
import os
import re
from pathlib import Path

import torch
from httpx2 import HTTPError  # what huggingface_hub raises when there is no connection
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification

from .. import registration  # noqa: F401  the Auto* factories must know the classes
from ..checkpoint import CONFIG, EXTRACTOR, WEIGHTS, check_checkpoint
from ..pipeline_ser import SerPipeline

FOLDER = Path(__file__).parent
DEFAULT = "ser-base"
FILES = [CONFIG, EXTRACTOR, WEIGHTS]
# USER/NAME, or USER/NAME@REVISION: a commit, tag or branch.
HUB_NAME = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?")


def available() -> list[str]:
    """Names of the checkpoints that ship."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def default_model() -> str:
    """
    The checkpoint that the environment variable `SER_MODEL` names, as `USER/NAME@REVISION`, or the one that ships.

    Raises:
        `ValueError`: `SER_MODEL` names no revision: what is on the Hub could then change under a running demo.
    """
    model = os.environ.get("SER_MODEL")
    if not model:
        return DEFAULT
    found = HUB_NAME.fullmatch(model)
    if found is None or found["revision"] is None:
        raise ValueError(
            f"SER_MODEL is {model!r}: give USER/NAME@REVISION, with the commit as it stands on the Hub under Files."
        )
    return model


def load_pipeline(model: str = DEFAULT, *, device: str = "cpu", voice_only: bool = True) -> SerPipeline:
    """
    The classifier for a checkpoint.

    Args:
        model: Name of a checkpoint that ships (`available()`), a folder, or `USER/NAME` or `USER/NAME@REVISION` on the
            Hub. Only the last two read the network, and only for what is not in the cache; no code is loaded from it.
        device: `"cpu"` or `"cuda"`.
        voice_only: Whether sounds without a voice have no answer (see `SerPipeline`).

    Raises:
        `OSError`: there is no such checkpoint, a file of it cannot be read, or there is no room for it or no such device.
        `ValueError`: a file of it is damaged, or its weights are not those of this network.
    """
    folder = _find(model)
    check_checkpoint(folder)
    local = {"pretrained_model_name_or_path": folder, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(**local)
        feature_extractor = AutoFeatureExtractor.from_pretrained(**local)
        with torch.device("meta"):  # which takes no memory: what goes wrong is the configuration's fault
            expected = AutoModelForAudioClassification.from_config(config).state_dict()
    except OSError:
        raise
    except Exception as error:  # of many kinds: types, names of classes, sizes
        raise ValueError(f"{folder}/config.json does not fit this network and its weights: {_reason(error)}") from error
    _check_weights(folder, expected)
    try:
        network = AutoModelForAudioClassification.from_pretrained(**local, use_safetensors=True)
        return SerPipeline(
            model=network.eval(),
            feature_extractor=feature_extractor,
            task="audio-classification",
            device=device,
            voice_only=voice_only,
        )
    except (AssertionError, MemoryError, RuntimeError) as error:  # no room, no such device, no driver
        raise OSError(f"{folder} cannot be loaded on {device!r}: {_reason(error)}") from error


def _check_weights(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """Of gaps transformers only warns, and fills them with random numbers: every emotion would then be about as likely."""
    with safe_open(folder / WEIGHTS, "pt") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    if wrong := sorted(shapes.keys() ^ expected.keys()):
        raise ValueError(f"The weights in {folder} are not those of this network: {', '.join(wrong[:5])} do not match.")
    for name, tensor in expected.items():
        if shapes[name] != tensor.shape:
            raise ValueError(
                f"The weights in {folder} are not those of this network: {CONFIG} does not fit {WEIGHTS} in shape, as "
                f"{name} is {shapes[name]} instead of {tuple(tensor.shape)}."
            )


def _reason(error: Exception) -> str:
    """An error of another library, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _find(model: str) -> Path:
    """The folder of a checkpoint, out of the Hub's cache if it is there."""
    folder = FOLDER / model if model in available() else Path(model)
    if folder.is_dir():
        return folder
    found = HUB_NAME.fullmatch(model)
    if found is None:
        raise OSError(
            f"There is no checkpoint {model!r}: give one of {', '.join(available())}, a folder, or USER/NAME on the Hub."
        )
    wanted = {**found.groupdict(), "allow_patterns": FILES}
    if re.fullmatch("[0-9a-f]{40}", found["revision"] or ""):  # a commit never changes: no need to ask
        with contextlib.suppress(LocalEntryNotFoundError):
            folder = Path(snapshot_download(**wanted, local_files_only=True))
            if all((folder / file).exists() for file in FILES):
                return folder
    try:
        return Path(snapshot_download(**wanted))
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"{model} could not be loaded from the Hub: {reason}") from error
