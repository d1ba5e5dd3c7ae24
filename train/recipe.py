"""A recipe: everything that decides what a training run computes, read from YAML that holds overrides only."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Augmentation:
    """What training clips, and no others, go through. The defaults change nothing."""

    speeds: tuple[float, ...] = (1.0,)  # each epoch hears a clip at one of these, pitch included
    frequency_masks: int = 0  # SpecAugment: how many, and of how many bands at most
    frequency_mask_bands: int = 0
    time_masks: int = 0  # how many, and of what part of the clip at most
    time_mask_fraction: float = 0.0
    mixup_probability: float = 0.0  # part of the batches that are mixed
    mixup_alpha: float = 0.4  # of the Beta distribution of the mixing weight
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Training:
    """How the network is fitted: AdamW, with the learning rate rising for `warmup` of the steps, then a half cosine."""

    num_epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.2
    max_grad_norm: float = 5.0


@dataclass(frozen=True)
class Recipe:
    """
    name: Also the name of its file, its results and its checkpoint.
    vocal_channels: What it learns from: speech, song or both. It is always judged on its protocol's test clips.
    num_validation_actors: Drawn from the training actors to make choices on.
    refit: After the choices are made, learn from training and validation clips together for the scores on test clips.
    features, model: Overrides of `SerFeatureExtractor`'s and `SerConfig`'s defaults.
    """

    name: str
    vocal_channels: tuple[str, ...] = ("speech",)
    num_validation_actors: int = 4
    refit: bool = False
    features: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=Augmentation)
    training: Training = field(default_factory=Training)

    def to_dict(self) -> dict:
        """Plain lists, dicts and numbers, every default written out."""
        return _plain(asdict(self))


def available() -> list[str]:
    """Names of the recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """
    Args:
        name: One of `available()`, or the path of a YAML file.

    Raises:
        `ValueError`: there is no such recipe, or it sets something that does not exist.
    """
    path = FOLDER / f"{name}.yaml" if name in available() else Path(name)
    if not path.is_file():
        raise ValueError(f"There is no recipe {name!r}: choose one of {', '.join(available())}, or give a YAML file.")
    overrides = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(overrides, dict):
        raise ValueError(f"{path} does not hold a recipe: expected lines such as 'model:' or 'training:'.")
    return _build(Recipe, {"name": path.stem, **overrides}, path)


def _build(kind: type, values: dict, path: Path):
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{path} sets {', '.join(unknown)}, which {kind.__name__} does not have: {', '.join(known)}.")
    sections = {"augmentation": Augmentation, "training": Training}
    return kind(
        **{
            name: _build(sections[name], value, path)
            if kind is Recipe and name in sections
            else tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )  # fmt: skip


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
