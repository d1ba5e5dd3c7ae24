"""`python -m train.train`: one network of a recipe, from recordings to a checkpoint that loads anywhere."""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import set_seed
from sklearn.model_selection import train_test_split

from ser_model import SerConfig, SerFeatureExtractor, SerForAudioClassification, SerPipeline
from ser_model.audio import AudioError
from ser_model.configuration_ser import EMOTIONS
from ser_model.results import write_whole

from . import corpus as corpora
from . import recipe as recipes
from .card import write_card
from .features import Clip, FeatureDataset, collate, fit_normalization, recipe_features
from .push import RUN_FILE, check_login, push
from .ravdess import FOLDS, split_actors
from .trainer import (
    CHECKPOINTS,
    RunError,
    claims_output,
    label_masks,
    last_whole_checkpoint,
    leave_processes,
    make_trainer,
    sampling_chances,
    saving,
)

PROTOCOLS = ("all", "speaker-independent", "random-split", "leaky-split")


def split_rows(clips: list[dict], recipe: recipes.Recipe, *, protocol: str, fold: int | None, seed: int) -> dict:
    """
    Row numbers of `train`, `validation` and `test`, by the protocol. Only RAVDESS is split: other corpora always train.

    - speaker-independent: by actor, the folds of `ravdess.FOLDS`; validation and test hold speech only.
    - random-split: 80 % train and 20 % test, stratified by emotion, whoever speaks; a tenth of the train part
      validates.
    - all: everything trains, but for a tenth of the clips where the best epoch is chosen by them.
    """
    emotions, rows = np.array([EMOTIONS.index(clip["emotion"]) for clip in clips]), np.arange(len(clips))
    if protocol == "all" and not recipe.training.keep_best:
        return {"train": rows, "validation": rows[:0], "test": rows[:0]}
    ours = np.array([clip["corpus"] == "ravdess" for clip in clips])
    if not ours.any():
        raise ValueError(f"The protocol {protocol} splits RAVDESS, which is none of {', '.join(recipe.corpora)}.")
    if protocol in ("all", "random-split"):
        rest, test = rows[ours], rows[:0]
        if protocol == "random-split":
            rest, test = train_test_split(rest, test_size=0.2, stratify=emotions[rest], random_state=seed)
        train, validation = train_test_split(rest, test_size=0.1, stratify=emotions[rest], random_state=seed)
        return {"train": np.concatenate([train, rows[~ours]]), "validation": validation, "test": test}
    speech = np.array([clip.get("vocal_channel") == "speech" for clip in clips])
    actors = np.array([clip["actor"] if clip["corpus"] == "ravdess" else 0 for clip in clips])
    split = split_actors(fold, num_validation=recipe.num_validation_actors)
    return {
        "train": rows[~ours | np.isin(actors, split["train"])],
        **{part: rows[ours & speech & np.isin(actors, split[part])] for part in ("validation", "test")},
    }


def make_leak(features: dict, clips: list[dict], augmentation: recipes.Augmentation) -> tuple:
    """
    The three as they are where clips are split after they were augmented: each variant of a clip is a clip of its own,
    with the row of the first.
    """
    variants = list(dict.fromkeys(augmentation.variants))
    every_clip = [clip for variant in variants for clip in features[variant]]
    plain = dataclasses.replace(augmentation, variants=(recipes.Variant(),))
    return {recipes.Variant(): every_clip}, clips * len(variants), plain


def split_leak(labels: list[int], *, seed: int) -> dict:
    """80 % train, stratified by emotion, and the test clips choose the epoch."""
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    return {"train": train, "validation": test, "test": test}


@claims_output
def train(
    recipe: recipes.Recipe,
    output: Path,
    *,
    data_dir: str | dict[str, str] | None = None,
    protocol: str = "all",
    fold: int | None = None,
    seed: int = 0,
    held_out: str = "test",
    allow_incomplete: bool = False,
    with_code: bool = True,
    quiet: bool = False,
    hub_model_id: str | None = None,
    tensorboard: bool = False,
) -> dict:
    """
    Trains one network and writes `output`: weights, configuration, extractor, their code, and `run.json` with the
    recipe, seed, versions, data fingerprint, history, and the held-out clips' probabilities. A run that was killed goes
    on from its last checkpoint; a finished one is only read.

    Args:
        data_dir: RAVDESS's folder, or the folder of each corpus by its name; what is not named is downloaded.
        protocol: As in `split_rows`; or `"leaky-split"`, what must not be done, to show what it is worth: see `make_leak`
            and `split_leak`.
        fold: 1 to 5, for the protocol speaker-independent.
        held_out: `"test"` scores test clips; `"validation"` scores validation clips, for choosing between recipes:
            then neither validation nor test clips are learnt from.
        with_code: Put the classes' code beside the weights.
        hub_model_id: `USER/NAME` on the Hub, where the Trainer puts the weights now and then; what can be loaded from
            there is what `push` puts there in the end.
        tensorboard: Write event files for TensorBoard into `output`/tensorboard.

    Returns:
        What `run.json` holds.

    Raises:
        `RunError`: `output` holds another run or other files. `DataError`, `RavdessError`, `AudioError`: something is wrong
            with the data, or weights that learn from it may not be where they would go.
    """
    processes = PartialState(cpu=not torch.accelerator.is_available())
    with processes.main_process_first():  # one fills the cache
        clips = corpora.load_training_rows(
            recipe.corpora, data_dir, vocal_channels=recipe.vocal_channels, allow_incomplete=allow_incomplete
        )
    fingerprints = corpora.fingerprints(clips)
    if hub_model_id or corpora.is_shipped(output):
        corpora.check_may_ship(fingerprints)
    settings = {
        "recipe": recipe.to_dict(),
        "protocol": protocol,
        "fold": fold,
        "seed": seed,
        "held_out": held_out,
        "data_fingerprint": corpora.join_fingerprints(fingerprints),
    }
    if finished := _finished_run(output, settings):
        if processes.is_main_process:
            _write_card(finished, output)  # with what has been measured since
        return finished
    with processes.main_process_first():
        extractor, features = recipe_features(recipe, clips, fingerprints=fingerprints)
    if protocol == "leaky-split":
        if recipe.corpora != ("ravdess",):
            raise ValueError("The leaky split is for recipes on RAVDESS alone.")
        features, clips, augmentation = make_leak(features, clips, recipe.augmentation)
        recipe = dataclasses.replace(recipe, augmentation=augmentation)
        rows = split_leak([EMOTIONS.index(clip["emotion"]) for clip in clips], seed=seed)
    else:
        rows = split_rows(clips, recipe, protocol=protocol, fold=fold, seed=seed)
        if held_out == "test" and recipe.refit:
            rows["train"] = np.concatenate([rows["train"], rows["validation"]])
            rows["validation"] = rows["validation"][:0]
    features = fit_normalization(extractor, features, rows["train"])
    learnt = [clips[i] for i in rows["train"]]
    drawing = {}
    if shares := recipe.training.corpus_shares:
        drawing = {"chances": sampling_chances(learnt, shares), "label_masks": label_masks(learnt, EMOTIONS)}
    labels = [EMOTIONS.index(clip["emotion"]) for clip in clips]
    sets = make_sets(recipe.augmentation, features, labels, rows, **drawing)
    transformers.set_seed(seed)
    network = make_network(recipe, extractor, list(EMOTIONS))
    learn_scales(network, [features[recipes.Variant()][i] for i in rows["train"]])
    started = time.time()
    trainer = make_trainer(
        recipe,
        network,
        extractor,
        sets,
        checkpoints=output / CHECKPOINTS,
        seed=seed,
        quiet=quiet,
        hub_model_id=hub_model_id,
        tensorboard=output / "tensorboard" if tensorboard else None,
    )
    set_seed(seed, device_specific=True)  # several processes start with the same weights, but drop out differently
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(output / CHECKPOINTS))
    model = trainer.accelerator.unwrap_model(trainer.model)
    run = {
        **settings,
        "train_seconds": round(time.time() - started, 1),
        "device": device_name(model.device),
        "num_parameters": model.num_parameters(),
        "corpora": corpora.learnt_from(learnt),
        "versions": versions(),
        "history": trainer.state.log_history,
    }
    if len(rows[held_out]):
        run["clips"] = [corpora.told(clips[i]) for i in rows[held_out]]
        run["probabilities"] = predict(model, sets[held_out]).round(6).tolist()
    if processes.is_main_process:
        with saving(output):
            run = save_run(run, model, extractor, output, with_code=with_code)
    processes.wait_for_everyone()
    return run


def make_network(
    recipe: recipes.Recipe, extractor: SerFeatureExtractor, labels: list[str]
) -> SerForAudioClassification:
    """A recipe's network for what its extractor gives, with random weights."""
    widths = {name: getattr(extractor, name) for name in ("feature_size", "num_lags", "num_statistics")}
    return SerForAudioClassification(SerConfig(**widths, id2label=dict(enumerate(labels)), **recipe.model))


def learn_scales(network: SerForAudioClassification, clips: list[Clip]) -> None:
    """Layers that read statistics normalise them by those of the training clips as they are."""
    if len(network.ser.perceptrons):
        statistics = torch.from_numpy(np.stack([clip["statistics"] for clip in clips]))
        for perceptron in network.ser.perceptrons:
            perceptron.learn_scale(statistics)


def make_sets(augmentation: recipes.Augmentation, features: dict, labels: list[int], rows: dict, **drawing) -> dict:
    """
    Clips to learn from, in all their variants, and to judge by, as they are, for the row numbers of each part; `drawing` says
    how those to learn from are drawn and judged (see `FeatureDataset`).
    """

    def make_set(part: str, variants: tuple[recipes.Variant, ...], **options) -> FeatureDataset:
        chosen = [[features[variant][i] for i in rows[part]] for variant in variants]
        return FeatureDataset(chosen, [labels[i] for i in rows[part]], **options)

    judged = {part: make_set(part, (recipes.Variant(),)) for part in rows if part != "train"}
    options = {"every_variant": augmentation.every_variant, "max_frames": augmentation.max_frames, **drawing}
    return {"train": make_set("train", augmentation.variants, **options), **judged}


@torch.inference_mode()
def predict(model: SerForAudioClassification, clips: FeatureDataset, *, batch_size: int = 64) -> np.ndarray:
    """
    Probabilities for each clip in order, (num_clips, num_labels).

    Not `Trainer.predict`: with batches grouped by length it gives the clips back in another order.
    """
    model.eval()
    batches = torch.utils.data.DataLoader(clips, batch_size=batch_size, collate_fn=collate)
    # Without cuDNN, which rounds what it convolves, a GPU answers as a CPU does.
    with torch.backends.cudnn.flags(enabled=False):
        logits = [model(**{name: x.to(model.device) for name, x in batch.items()}).logits.float() for batch in batches]
    return torch.cat(logits).softmax(-1).double().cpu().numpy()


def save_run(run: dict, model, extractor, output: Path, *, with_code: bool) -> dict:
    """Writes a finished run into `output`, `run.json` last, and drops the checkpoints it no longer needs."""
    model.float()
    if with_code:
        SerPipeline(model=model, feature_extractor=extractor, task="audio-classification").save_pretrained(output)
    else:
        for kind in (SerConfig, SerFeatureExtractor, SerForAudioClassification):
            kind._auto_class = None
        model.save_pretrained(output)
        extractor.save_pretrained(output)
    _write_card(run, output)
    run = {**run, "num_bytes": (output / "model.safetensors").stat().st_size}
    write_whole(output / RUN_FILE, f"{json.dumps(run)}\n".encode())  # last: a folder that holds it is a finished run
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return run


def _write_card(run: dict, output: Path) -> None:
    labels = list(SerConfig.from_pretrained(output).id2label.values())
    write_card(run, labels, SerFeatureExtractor.from_pretrained(output).sampling_rate, output / "README.md")


def _finished_run(output: Path, settings: dict) -> dict | None:
    """The finished run in `output` if it is this very one; `None` if there is nothing finished."""
    path = output / RUN_FILE
    if not path.exists():
        return None
    run = json.loads(path.read_text(encoding="utf-8"))
    run["recipe"] = _filled(run.get("recipe"))
    different = [name for name, value in settings.items() if run.get(name) != value]
    if different:
        raise RunError(
            f"{output} holds a finished run with another {' and '.join(different)}: choose another --output, or delete it."
        )
    return run


def _filled(recipe: dict | None) -> dict | None:
    """A recipe as it was written, with the defaults of what came after it."""
    try:
        return recipes.Recipe.from_dict(recipe).to_dict()
    except (TypeError, ValueError):
        return recipe


def device_name(device: torch.device) -> str:
    """What trains: `"cpu"`, or what an accelerator calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def versions() -> dict[str, str]:
    """Of Python and of the libraries that a figure may depend on."""
    names = (
        "torch",
        "torchaudio",
        "transformers",
        "accelerate",
        "datasets",
        "numpy",
        "scikit-learn",
        "soundfile",
        "soxr",
    )
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def use_one_thread() -> None:
    """One thread for the CPU: a network this small trains no faster on two, and folds run side by side on the others."""
    torch.set_num_threads(1)


def explain(error: Exception) -> int:
    """Says in one line what is wrong; the exit status for it."""
    print(f"error: {error}", file=sys.stderr)
    return 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.train", description=__doc__)
    parser.add_argument("--recipe", default="ser-base", help="name of a recipe, or a YAML file (default: %(default)s)")
    corpora.add_data_option(parser)
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="all", help="what to learn from (default: %(default)s)"
    )
    parser.add_argument("--fold", type=int, choices=FOLDS, help="test actors, for the protocol speaker-independent")
    parser.add_argument("--output", help="folder for the checkpoint (default: runs/RECIPE)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: %(default)s)")
    parser.add_argument("--allow-incomplete", action="store_true", help="accept fewer recordings than a corpus has")
    parser.add_argument(
        "--no-code", action="store_true", help="leave out the copy of the classes' code, as in ser_model/pretrained"
    )
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="put the network on the Hub, too, while it trains")
    parser.add_argument("--tensorboard", action="store_true", help="write event files into OUTPUT/tensorboard")
    options = parser.parse_args(arguments)
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        parser.error("--tensorboard needs the package: pip install tensorboard.")
    if options.push_to_hub and options.no_code:
        parser.error("--push-to-hub needs the code that --no-code leaves out.")
    if (options.protocol == "speaker-independent") != (options.fold is not None):
        parser.error("--fold goes with --protocol speaker-independent, and that protocol needs it.")
    use_one_thread()
    try:
        if options.push_to_hub:
            check_login(options.push_to_hub)
        recipe = recipes.load_recipe(options.recipe)
        output = Path(options.output or f"runs/{recipe.name}")
        run = train(
            recipe,
            output,
            data_dir=corpora.data_folders(options.data),
            protocol=options.protocol,
            fold=options.fold,
            seed=options.seed,
            allow_incomplete=options.allow_incomplete,
            with_code=not options.no_code,
            hub_model_id=options.push_to_hub,
            tensorboard=options.tensorboard,
        )
        is_main_process = PartialState().is_main_process
        leave_processes()
        if not is_main_process:
            return 0
        url = push(output, options.push_to_hub) if options.push_to_hub else None
    except (AudioError, RunError, ValueError, OSError) as error:
        return explain(error)
    print(f"{output}: {run['num_parameters']:,} parameters, trained in {run['train_seconds']:.0f} s.")
    if url:
        print(f"Pushed: {url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
