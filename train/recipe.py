"""A recipe: everything that decides what a training run computes, read from YAML that holds overrides only."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import yaml

from ser_model import SerConfig

from .corpus import check_name

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Variant:
    """One way in which a training clip's waveform is heard. The defaults change nothing."""

    speed: float = 1.0  # pitch included
    pitch_semitones: float = 0.0  # duration kept
    noise_snr_db: float | None = None  # white noise, so far below the clip's power
    shift_s: float = 0.0  # silence before it
    outside: int = 0  # 1, 2, ...: recorded outside the studio (`outside.record_outside`), each number by other chances


@dataclass(frozen=True)
class Augmentation:
    """What training clips, and no others, go through. The defaults change nothing."""

    variants: tuple[Variant, ...] = (Variant(),)
    every_variant: bool = False  # each epoch hears a clip in every variant, instead of one drawn anew
    max_frames: int | None = None  # of a longer clip this long a stretch is heard, drawn anew each time
    frequency_masks: int = 0  # SpecAugment: how many, and of how many bands at most
    frequency_mask_bands: int = 0
    narrow_band_probability: float = 0.0  # part of the clips that lose their highest bands, as by telephone,
    narrow_band_ends: tuple[int, int] = (0, 0)  # from a band on that is drawn between these two
    time_masks: int = 0  # how many, and of what part of the clip at most
    time_mask_fraction: float = 0.0
    noise_or_mask_std: float = 0.0  # half of the clips get Gaussian noise of this deviation on their features,
    noise_or_mask_fraction: float = 0.0  # the others lose one stretch of this part of their frames
    mixup_probability: float = 0.0  # part of the batches that are mixed
    mixup_alpha: float = 0.4  # of the Beta distribution of the mixing weight
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Training:
    """How the network is fitted, by AdamW (Adam, where `weight_decay` is 0)."""

    num_epochs: int = 100  # how often each member hears each clip
    batch_size: int = 32  # clips that each member hears at a time
    learning_rate: float = 2e-3
    # cosine: one half; cosine-restarts: `num_cosines` of them; plateau: halved when the validation accuracy has not
    # risen for `plateau_epochs`; constant.
    schedule: str = "cosine"
    warmup: float = 0.2  # part of the steps in which the rate rises from 0
    num_cosines: int = 1
    plateau_epochs: int = 5
    weight_decay: float = 0.05
    l1_penalty: float = 0.0  # on the weights whose names contain one of `penalised`
    l2_penalty: float = 0.0
    penalised: tuple[str, ...] = ()
    balanced_classes: bool = (
        False  # weigh a clip by num_clips / (num_labels x clips of its label), as scikit-learn does,
    )
    class_factors: dict = field(default_factory=dict)  # times this
    balanced_corpora: bool = False  # instead: each corpus counts alike on the whole, and in it each emotion that it has
    max_grad_norm: float = 5.0
    keep_best: bool = False  # the epoch with the best accuracy on validation clips, instead of the last
    early_stopping_epochs: int | None = None  # stop after so many epochs without a better one


@dataclass(frozen=True)
class Group:
    """Members of the model, by number, that learn by themselves and otherwise than the others."""

    members: tuple[int, ...] = ()
    augmentation: Augmentation = field(default_factory=Augmentation)
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class Recipe:
    """
    name: Also the name of its file, its results and its checkpoint.
    claimed: What the published system says of itself.
    corpora: What it learns from: names of `corpus.CORPORA`, or CSV files. It is judged on RAVDESS alone.
    vocal_channels: Of RAVDESS: speech, song or both. On a random split it is judged on the same, on people it has never
        heard always on speech.
    num_validation_actors: Drawn from the training actors to make choices on.
    refit: After the choices are made, learn from training and validation clips together for the scores on test clips.
    features, model: Overrides of `SerFeatureExtractor`'s and `SerConfig`'s defaults.
    forget_priors: After training, take from the classifiers how common each label was (see `train.forget_priors`).
    augmentation, training: Of all members that are not in a group of `apart`.
    """

    name: str
    claimed: str | None = None
    corpora: tuple[str, ...] = ("ravdess",)
    vocal_channels: tuple[str, ...] = ("speech",)
    num_validation_actors: int = 4
    refit: bool = False
    features: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)
    forget_priors: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    training: Training = field(default_factory=Training)
    apart: tuple[Group, ...] = ()

    def to_dict(self) -> dict:
        """Plain lists, dicts and numbers, every default written out, but for what came after the first results."""
        later = ("apart", "forget_priors")
        return {name: value for name, value in _plain(asdict(self)).items() if value or name not in later}

    @classmethod
    def from_dict(cls, values: dict) -> "Recipe":
        """
        The recipe that a run was written with; what did not exist then has its default.

        Raises:
            `ValueError`: it sets something that does not exist any more.
        """
        return _build(cls, values, Path("run.json"))

    def num_members(self) -> int:
        return len(self.model.get("num_cepstra", SerConfig.num_cepstra))

    def groups(self) -> list[tuple[tuple[int, ...], "Recipe"]]:
        """
        Which members learn together, and a recipe for no more than these; first those that no group of `apart` names.

        Raises:
            `ValueError`: a group names members that there are not, or two groups the same.
        """
        apart = [member for group in self.apart for member in group.members]
        together = tuple(member for member in range(self.num_members()) if member not in apart)
        if sorted([*together, *apart]) != list(range(self.num_members())) or not together:
            raise ValueError(
                f"The recipe {self.name} must name each member apart once, from 0 to {self.num_members() - 1}, and not all."
            )
        groups = [Group(together, self.augmentation, self.training), *self.apart]
        return [(group.members, self._of(group)) for group in groups]

    def _of(self, group: Group) -> "Recipe":
        chosen = {
            name: self.model[name] for name in ("encoder", "num_cepstra") if isinstance(self.model.get(name), list)
        }
        model = self.model | {name: [values[member] for member in group.members] for name, values in chosen.items()}
        return replace(self, model=model, augmentation=group.augmentation, training=group.training, apart=())

    def variants(self) -> tuple[Variant, ...]:
        """All in which some member hears the training clips."""
        return tuple(dict.fromkeys(v for _, part in self.groups() for v in part.augmentation.variants))


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
    recipe = _build(Recipe, {"name": path.stem, **overrides}, path)
    recipe.groups()  # says what is wrong with them
    if isinstance(recipe.corpora, str):
        raise ValueError(f"{path} sets corpora to {recipe.corpora}: give a list, [{recipe.corpora}].")
    for corpus in recipe.corpora:
        check_name(corpus)
    if recipe.refit and recipe.training.keep_best:
        raise ValueError(
            f"{path} sets refit and keep_best: there are no validation clips left to keep the best epoch by."
        )
    return recipe


def _build(kind: type, values: dict, path: Path):
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{path} sets {', '.join(unknown)}, which {kind.__name__} does not have: {', '.join(known)}.")
    values = dict(values)
    if kind in (Recipe, Group):
        values |= {name: _build(part, values[name], path) for name, part in _sections() if name in values}
    if kind is Recipe and "apart" in values:
        values["apart"] = [_build(Group, group, path) for group in values["apart"]]
    if kind is Augmentation and "variants" in values:
        values["variants"] = [_build(Variant, variant, path) for variant in values["variants"]]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _sections() -> list[tuple[str, type]]:
    return [("augmentation", Augmentation), ("training", Training)]


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
