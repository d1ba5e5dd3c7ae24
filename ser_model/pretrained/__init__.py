"""The checkpoints that ship with the code, one folder a recipe, and how to load these or any other."""

import re
from pathlib import Path

from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from ..checkpoint import check_checkpoint
from ..pipeline_ser import SerPipeline

FOLDER = Path(__file__).parent
DEFAULT = "ser-base"


def available() -> list[str]:
    """Names of the checkpoints that ship."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def load_pipeline(model: str = DEFAULT, *, device: str = "cpu") -> SerPipeline:
    """
    The classifier for a checkpoint.

    Args:
        model: Name of a checkpoint that ships (`available()`), a folder, or `USER/NAME` on the Hub. Only the last reads
            the network, and only if it is not in the cache.
        device: `"cpu"` or `"cuda"`.

    Raises:
        `OSError`: there is no such checkpoint, or a file of it cannot be read.
        `ValueError`: a file of it is damaged, or its weights are not those of this network.
    """
    folder = FOLDER / model if model in available() else Path(model)
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise OSError(
            f"There is no checkpoint {model!r}: give one of {', '.join(available())}, a folder, or USER/NAME on the Hub."
        )
    location = folder if folder.is_dir() else model
    if folder.is_dir():
        check_checkpoint(folder)
    try:
        network, info = AutoModelForAudioClassification.from_pretrained(
            location, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
        extractor = AutoFeatureExtractor.from_pretrained(location, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # of many kinds: shapes, types, names of classes
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{location}/config.json does not fit this network and its weights: {reason}") from error
    # transformers only warns, and fills the gap with random numbers: every emotion would then be about as likely.
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        raise ValueError(f"The weights in {location} are not those of this network: {', '.join(wrong)} do not match.")
    return SerPipeline(
        model=network.eval(),
        feature_extractor=extractor,
        task="audio-classification",
        device=device,
    )
