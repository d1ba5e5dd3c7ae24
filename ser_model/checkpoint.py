"""A checkpoint's files, each checked before anything is made of it."""

import contextlib
import inspect
import json
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from .configuration_ser import SerConfig
from .feature_extraction_ser import SerFeatureExtractor
from .modeling_ser import SerForAudioClassification

CONFIG, EXTRACTOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
MAX_JSON_BYTES, MAX_HEADER_BYTES, MAX_WEIGHTS_BYTES = 10**6, 10**7, 5 * 10**8
MAX_WEIGHT = 1e8  # what is learnt stays below 1000
WHOLE, FRACTIONS = ("I64",), ("BF16", "F16", "F32", "F64")  # types of weights

# Of the settings in a file, what is passed on, and what may stand there beside it without any effect: of transformers' own
# settings many change what is loaded, some from where, and some which program runs.
CONFIG_SETTINGS = {*SerConfig.__annotations__, "id2label", "label2id", "dtype"}
CONFIG_IGNORED = {field.name for field in fields(PreTrainedConfig)} | {
    "auto_map",
    "custom_pipelines",
    "output_attentions",
    "use_cache",
}
EXTRACTOR_SETTINGS = set(inspect.signature(SerFeatureExtractor).parameters) - {"kwargs"}
EXTRACTOR_IGNORED = {"auto_map", "padding_side", "processor_class", "return_attention_mask"}


def read_checkpoint(folder: Path) -> tuple[SerForAudioClassification, SerFeatureExtractor]:
    """
    The network, ready to answer, and the extractor. No other file of the folder is opened.

    Raises:
        `OSError`: a file is missing or cannot be read.
        `ValueError`: a file is damaged or too large, or does not fit this network or the other files; the message names it.
    """
    settings = _read_settings(folder / CONFIG, "model_type", "ser", CONFIG_SETTINGS, CONFIG_IGNORED)
    with _naming(folder / CONFIG, settings), torch.device("meta"):  # there a network has shapes, but takes no memory
        network = SerForAudioClassification(SerConfig(**settings, name_or_path=str(folder)))
    settings = _read_settings(
        folder / EXTRACTOR, "feature_extractor_type", "SerFeatureExtractor", EXTRACTOR_SETTINGS, EXTRACTOR_IGNORED
    )
    with _naming(folder / EXTRACTOR, settings):
        extractor = SerFeatureExtractor(**settings)
        _check_widths(extractor, network.config)
    _load_weights(network, folder)
    _check_answer(network, extractor, folder)
    return network, extractor


@contextlib.contextmanager
def _naming(path: Path, settings: dict) -> Iterator[None]:
    """Makes one sentence of whatever the settings in a file lead to."""
    try:
        yield
    except Exception as error:  # of many kinds: types, values, and those of `strict`
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # not the file's fault
            raise
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else error
        if isinstance(error, StrictDataclassFieldValidationError):
            name = str(error).split("'")[1]
            kind = SerConfig.__dataclass_fields__[name].type
            if isinstance(cause, TypeError):
                cause = f"must be {getattr(kind, '__name__', kind)}, not {reprlib.repr(settings[name])}."
            cause = f"{name} {cause}"
        reason = " ".join(str(cause).split())[:300]
        raise ValueError(f"{path} does not fit this network: {reason}") from error


def _read_settings(path: Path, kind: str, expected: str, passed_on: set[str], ignored: set[str]) -> dict:
    """What of a file is passed on. By its entry `kind` transformers tells whose settings these are."""
    content = _read_json(path)
    if content.get(kind) != expected:
        found = reprlib.repr(content.get(kind))
        raise ValueError(f"{path} does not fit this network: {kind} must be {expected!r}, not {found}.")
    for unknown in sorted(set(content) - passed_on - ignored - {kind}):
        raise ValueError(
            f"{path} does not fit this network: there is no setting {reprlib.repr(unknown)}, which is "
            f"{reprlib.repr(content[unknown])} there. Correct its name, or remove it."
        )
    return {name: value for name, value in content.items() if name in passed_on}


def _read_json(path: Path) -> dict:
    _check_file(path, MAX_JSON_BYTES)
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(f"{path} is damaged: it is nested too deeply. Copy the checkpoint again.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON. Copy the checkpoint again.") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Correct it, or copy the checkpoint again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no settings. Copy the checkpoint again.")
    return content


def _without_doubles(pairs: list[tuple]) -> dict:
    """As an object of JSON has each key once; Python would take the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has {reprlib.repr(name)} twice")
    return found


def _refuse_constant(name: str):
    raise ValueError(f"it has {name}, which is not a number in JSON")


def _check_file(path: Path, max_bytes: int) -> None:
    if not path.is_file():
        raise OSError(f"{path} is missing: a checkpoint needs {CONFIG}, {EXTRACTOR} and {WEIGHTS}.")
    if path.stat().st_size > max_bytes:
        raise ValueError(
            f"{path} is larger than any of this network, {max_bytes / 1e6:,.0f} MB: give a checkpoint of its own."
        )


def _check_widths(extractor: SerFeatureExtractor, config: SerConfig) -> None:
    if extractor.feature_size != config.feature_size:
        raise ValueError(f"feature_size must be {config.feature_size}, as in {CONFIG}, not {extractor.feature_size}.")
    wanted = tuple(config.num_statistics)
    if any(wanted) and extractor.num_statistics != wanted:
        raise ValueError(
            f"it must give statistics of the sizes {wanted}, as in {CONFIG}, not {extractor.num_statistics}."
        )


def _load_weights(network: SerForAudioClassification, folder: Path) -> None:
    """Gives a network without memory what the file holds, once names, shapes and types have been compared."""
    path, expected = folder / WEIGHTS, network.state_dict()
    if not path.exists():
        pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in PICKLES]
        if pickles:
            raise ValueError(
                f"{folder / pickles[0]} is a pickle, which may run any program when it is opened: only weights in "
                f"{WEIGHTS} are read."
            )
    _check_file(path, MAX_WEIGHTS_BYTES)
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    damaged = f"{path} is damaged or not in the safetensors format. Copy the checkpoint again."
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueError(damaged)
    try:
        with safe_open(path, "pt") as file:
            if wrong := sorted(set(expected) ^ set(file.keys())):
                raise ValueError(f"The weights in {path} are not those of this network: {_few(wrong)} do not match.")
            for name, weight in expected.items():
                _check_weight(path, name, weight, file.get_slice(name))
            weights = {name: file.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise ValueError(damaged) from error
    stored = next(weight.dtype for weight in weights.values() if weight.is_floating_point())
    network.to(network.config.dtype or stored).to_empty(device="cpu")
    network.load_state_dict(weights)
    network.eval()
    for name, weight in network.state_dict().items():
        if not (weight.abs() <= MAX_WEIGHT).all():
            raise ValueError(
                f"{path} is damaged: {name} holds NaN or numbers above {MAX_WEIGHT:g}. Copy the checkpoint again."
            )
        # Whatever was learnt, and whatever was drawn at random, is not all zeros: a hole in a file is.
        if weight.ndim > 1 and not name.endswith(".mean") and not weight.any():
            raise ValueError(f"{path} is damaged: {name} holds nothing but zeros. Copy the checkpoint again.")


def _check_weight(path: Path, name: str, expected: torch.Tensor, found) -> None:
    shape, kind = tuple(found.get_shape()), found.get_dtype()
    if shape != tuple(expected.shape):
        raise ValueError(
            f"The weights in {path.parent} are not those of this network: {CONFIG} does not fit {WEIGHTS}, where {name} has "
            f"the shape {reprlib.repr(shape)}, not {tuple(expected.shape)}. Copy both from one checkpoint."
        )
    if kind not in (kinds := FRACTIONS if expected.is_floating_point() else WHOLE):
        raise ValueError(f"{path} does not fit this network: {name} must be {' or '.join(kinds)}, not {kind}.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


@torch.inference_mode()
def _check_answer(network: SerForAudioClassification, extractor: SerFeatureExtractor, folder: Path) -> None:
    """Finite weights are not enough: a deviation of 0 is divided by, and sums of large numbers overflow."""
    noise = np.random.default_rng(0).standard_normal(extractor.sampling_rate)
    with _naming(folder / EXTRACTOR, {}):
        inputs = extractor(noise, sampling_rate=extractor.sampling_rate, return_tensors="pt").to(network.dtype)
    with _naming(folder / CONFIG, {}):
        probabilities = network(**inputs).logits.softmax(-1)
    if not probabilities.isfinite().all():
        raise ValueError(f"{folder / WEIGHTS} is damaged: the network answers with NaN. Copy the checkpoint again.")
