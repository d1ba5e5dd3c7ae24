"""The checkpoints that ship with the code, one folder a recipe, and how to load these or any other."""

import contextlib
import os
import re
from pathlib import Path

from httpx2 import HTTPError  # what huggingface_hub raises when there is no connection
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from .. import registration  # noqa: F401  the Auto* factories must know the classes
from ..checkpoint import CONFIG, EXTRACTOR, WEIGHTS, read_checkpoint
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


def load_pipeline(model: str = DEFAULT, *, device: str = "cpu", voice_only: bool | None = None) -> SerPipeline:
    """
    The classifier for a checkpoint.

    Args:
        model: Name of a checkpoint that ships (`available()`), a folder, or `USER/NAME` or `USER/NAME@REVISION` on the
            Hub. Only the last two read the network, and only for what is not in the cache; no code is loaded from it.
        device: `"cpu"` or `"cuda"`.
        voice_only: Whether sounds without a voice have no answer (see `SerPipeline`); left out, as the checkpoint says.

    Raises:
        `OSError`: there is no such checkpoint, a file of it cannot be read, or there is no room for it or no such device.
        `ValueError`: a file of it is damaged, or its weights are not those of this network.
    """
    folder = _find(model)
    try:
        network, feature_extractor = read_checkpoint(folder)
        return SerPipeline(
            model=network,
            feature_extractor=feature_extractor,
            task="audio-classification",
            device=device,
            voice_only=voice_only,
        )
    except (AssertionError, MemoryError, RuntimeError) as error:  # no such device, no driver, no room
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(f"{folder} cannot be loaded on {device!r}: {reason}") from error


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
