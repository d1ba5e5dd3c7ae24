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

import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import set_seed
from sklearn.model_selection import train_test_split

from ser_model import SerConfig, SerFeatureExtractor, SerForAudioClassification, SerPipeline
from ser_model.audio import AudioError
from ser_model.encoders_ser import SerPerceptronEncoder
from ser_model.results import write_whole

from . import recipe as recipes
from .card import write_card
from .features import Clip, FeatureDataset, collate, fit_normalization, recipe_features
from .push import RUN_FILE, check_login, push
from .ravdess import FOLDS, RavdessError, data_fingerprint, load_ravdess, split_actors
from .trainer import CHECKPOINTS, RunError, claims_output, last_whole_checkpoint, leave_processes, make_trainer, saving

PROTOCOLS = ("all", "speaker-independent", "random-split", "leaky-split")


def split_rows(data: datasets.Dataset, recipe: recipes.Recipe, *, protocol: str, fold: int | None, seed: int) -> dict:
    """
    Row numbers of `train`, `validation` and `test`, by the protocol.

    - speaker-independent: by actor, the folds of `ravdess.FOLDS`; validation and test hold speech only.
    - random-split: 80 % train and 20 % test, stratified by emotion, whoever speaks; a tenth of the train part
      validates.
    - all: everything trains, but for a tenth of the clips where the best epoch is chosen by them.
    """
    emotions, actors = np.array(data["emotion"]), np.array(data["actor"])
    rows = np.arange(len(data))
    if protocol == "all" and not recipe.training.keep_best:
        return {"train": rows, "validation": rows[:0], "test": rows[:0]}
    if protocol in ("all", "random-split"):
        rest, test = rows, rows[:0]
        if protocol == "random-split":
            rest, test = train_test_split(rows, test_size=0.2, stratify=emotions, random_state=seed)
        train, validation = train_test_split(rest, test_size=0.1, stratify=emotions[rest], random_state=seed)
        return {"train": train, "validation": validation, "test": test}
    speech = np.array(data["vocal_channel"]) == data.features["vocal_channel"].str2int("speech")
    split = split_actors(fold, num_validation=recipe.num_validation_actors)
    return {
        part: rows[np.isin(actors, split[part]) & (speech | (part == "train"))]
        for part in ("train", "validation", "test")
    }


def make_leak(features: dict, labels: list, clips: list, augmentation: recipes.Augmentation) -> tuple:
    """
    The four as they are where clips are split after they were augmented: each variant of a clip is a clip of its own, with
    the label and the name of the first.
    """
    variants = list(dict.fromkeys(augmentation.variants))
    every_clip = [clip for variant in variants for clip in features[variant]]
    plain = dataclasses.replace(augmentation, variants=(recipes.Variant(),))
    return {recipes.Variant(): every_clip}, labels * len(variants), clips * len(variants), plain


def split_leak(labels: list[int], *, seed: int) -> dict:
    """80 % train, stratified by emotion, and the test clips choose the epoch."""
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    return {"train": train, "validation": test, "test": test}


@claims_output
def train(
    recipe: recipes.Recipe,
    output: Path,
    *,
    data_dir: str | None = None,
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
        `RunError`: `output` holds another run or other files. `RavdessError`, `AudioError`: something is wrong with the data.
    """
    processes = PartialState(cpu=not torch.accelerator.is_available())
    with processes.main_process_first():  # one fills the cache
        data = load_ravdess(data_dir, vocal_channels=recipe.vocal_channels, allow_incomplete=allow_incomplete)
    settings = {
        "recipe": recipe.to_dict(),
        "protocol": protocol,
        "fold": fold,
        "seed": seed,
        "held_out": held_out,
        "data_fingerprint": data_fingerprint(data),
    }
    if finished := _finished_run(output, settings):
        if processes.is_main_process:
            _write_card(finished, output)  # with what has been measured since
        return finished
    with processes.main_process_first():
        extractor, features = recipe_features(recipe, data, fingerprint=settings["data_fingerprint"])
    labels = list(data["emotion"])
    clips = [Path(audio["path"]).stem for audio in data["audio"]]
    if protocol == "leaky-split":
        if recipe.apart:
            raise ValueError("The leaky split is for recipes whose members all learn together.")
        features, labels, clips, augmentation = make_leak(features, labels, clips, recipe.augmentation)
        recipe = dataclasses.replace(recipe, augmentation=augmentation)
        rows = split_leak(labels, seed=seed)
    else:
        rows = split_rows(data, recipe, protocol=protocol, fold=fold, seed=seed)
        if held_out == "test" and recipe.refit:
            rows["train"] = np.concatenate([rows["train"], rows["validation"]])
            rows["validation"] = rows["validation"][:0]
    features = fit_normalization(extractor, features, rows["train"])
    names = data.features["emotion"].names
    started, trainers = time.time(), []
    for number, (_, part) in enumerate(recipe.groups()):
        transformers.set_seed(seed)  # so that no group depends on what another has drawn
        sets = make_sets(part.augmentation, features, labels, rows)
        network = make_network(part, extractor, names)
        learn_scales(network, [features[recipes.Variant()][i] for i in rows["train"]])
        folder = f"apart-{number}" if number else ""
        trainer = make_trainer(
            part,
            network,
            extractor,
            sets,
            checkpoints=output / CHECKPOINTS / folder,
            seed=seed,
            quiet=quiet,
            hub_model_id=None if number else hub_model_id,
            tensorboard=output / "tensorboard" / folder if tensorboard else None,
        )
        set_seed(seed, device_specific=True)  # several processes start with the same weights, but drop out differently
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(output / CHECKPOINTS / folder))
        trainers.append(trainer)
    networks = [trainer.accelerator.unwrap_model(trainer.model) for trainer in trainers]
    model = networks[0] if len(networks) == 1 else join(recipe, extractor, names, networks)
    if recipe.forget_priors:
        forget_priors(model, [labels[i] for i in rows["train"]])
    run = {
        **settings,
        "train_seconds": round(time.time() - started, 1),
        "device": device_name(model.device),
        "num_parameters": model.num_parameters(),
        "versions": versions(),
        "history": trainers[0].state.log_history,
    }
    if len(rows[held_out]):
        run["clips"] = [clips[i] for i in rows[held_out]]
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


def join(
    recipe: recipes.Recipe, extractor: SerFeatureExtractor, labels: list[str], networks: list[SerForAudioClassification]
) -> SerForAudioClassification:
    """The whole network of a recipe from those of its groups."""
    whole = make_network(recipe, extractor, labels)
    for (members, _), network in zip(recipe.groups(), networks, strict=True):
        for i, member in enumerate(members):
            whole.ser.members[member] = network.ser.members[i]
            whole.classifiers[member] = network.classifiers[i]
    return whole.to(networks[0].device)


def learn_scales(network: SerForAudioClassification, clips: list[Clip]) -> None:
    """Members that read statistics normalise them by those of the training clips as they are."""
    readers = [member for member in network.ser.members if isinstance(member, SerPerceptronEncoder)]
    if readers:
        statistics = torch.from_numpy(np.stack([clip["statistics"] for clip in clips]))
        for member in readers:
            member.learn_scale(statistics)


@torch.no_grad()
def forget_priors(network: SerForAudioClassification, labels: list[int]) -> None:
    """
    Takes the logarithm of how common each label is among `labels`, those of the training clips, from what the classifiers
    add to it (post-hoc logit adjustment, Menon et al. 2021, arXiv:2007.07314): how many clips a corpus has of an emotion says
    nothing of a user's voice.
    """
    counts = torch.bincount(torch.tensor(labels), minlength=network.config.num_labels).clamp(min=1).float()
    for classifier in network.classifiers:
        classifier.bias -= (counts / counts.mean()).log().to(classifier.bias)


def make_sets(augmentation: recipes.Augmentation, features: dict, labels: list[int], rows: dict) -> dict:
    """Clips to learn from, in all their variants, and to judge by, as they are, for the row numbers of each part."""

    def clips(part: str, variants: tuple[recipes.Variant, ...], **options) -> FeatureDataset:
        chosen = [[features[variant][i] for i in rows[part]] for variant in variants]
        return FeatureDataset(chosen, [labels[i] for i in rows[part]], **options)

    judged = {part: clips(part, (recipes.Variant(),)) for part in rows if part != "train"}
    options = {"every_variant": augmentation.every_variant, "max_frames": augmentation.max_frames}
    return {"train": clips("train", augmentation.variants, **options), **judged}


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
    different = [name for name, value in settings.items() if run.get(name) != value]
    if different:
        raise RunError(
            f"{output} holds a finished run with another {' and '.join(different)}: choose another --output, or delete it."
        )
    return run


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
    parser.add_argument("--data", help="folder that holds RAVDESS; left out, it is downloaded from Zenodo and cached")
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="all", help="what to learn from (default: %(default)s)"
    )
    parser.add_argument("--fold", type=int, choices=FOLDS, help="test actors, for the protocol speaker-independent")
    parser.add_argument("--output", help="folder for the checkpoint (default: runs/RECIPE)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: %(default)s)")
    parser.add_argument("--allow-incomplete", action="store_true", help="accept fewer recordings than RAVDESS has")
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
            data_dir=options.data,
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
    except (AudioError, RavdessError, RunError, ValueError, OSError) as error:
        return explain(error)
    print(f"{output}: {run['num_parameters']:,} parameters, trained in {run['train_seconds']:.0f} s.")
    if url:
        print(f"Pushed: {url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
