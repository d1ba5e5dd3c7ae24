"""`python -m train.finetune`: the weights that ship, trained further on recordings and labels of your own."""

import argparse
import contextlib
import copy
import hashlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from datasets.data_files import SPLIT_KEYWORDS
from httpx2 import HTTPError  # what huggingface_hub raises when there is no connection
from huggingface_hub import hf_hub_download
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from tqdm import tqdm

from ser_model import SerConfig, SerForAudioClassification
from ser_model.audio import AudioError, read_audio
from ser_model.pipeline_ser import is_silent
from ser_model.pretrained import DEFAULT, HUB_NAME, available, load_pipeline
from ser_model.pretrained import FOLDER as SHIPPED
from ser_model.scoring import find_files
from ser_model.voice import has_voice

from . import corpus as corpora
from .card import figures_with_intervals
from .corpus import DataError, csv_clips, read_csv, read_table
from .features import extract_features
from .metrics import intervals, scores
from .push import RUN_FILE, check_login, push
from .recipe import Augmentation, Recipe, Training, Variant
from .train import explain, make_sets, predict, save_run, use_one_thread, versions
from .trainer import CHECKPOINTS, claims_output, last_whole_checkpoint, make_trainer, saving

MIN_CLIPS = 4  # of each label: one of them measures
NUM_EPOCHS, LEARNING_RATE = 30, 5e-4
# Folders of these names, whatever their case, are no labels: {"train": "train", ..., "dev": "validation", "eval": "test"}.
SPLITS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
METADATA = "metadata.csv"  # of Hugging Face's AudioFolder
# Of a label's recordings. The voice check refuses hardly any with a voice, so that these are more than its mistakes.
REFUSED_SHARE = 0.25
MAX_ERRORS_SHOWN = 5


@claims_output
def finetune(
    data: Path,
    output: Path,
    *,
    model: str = DEFAULT,
    num_epochs: int = NUM_EPOCHS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    any_sound: bool | None = None,
    quiet: bool = False,
    hub_model_id: str | None = None,
) -> dict:
    """
    Trains a checkpoint further on one's own recordings, a fifth of which are kept out to measure it. Labels that the
    checkpoint knows begin with what it knows of them; others begin anew. A run that was killed goes on from its last checkpoint.

    Args:
        data: A folder with a folder of recordings for each label, or a CSV file with the columns `path` and `label`, and
            `speaker` if it is known: then nobody is both learnt from and measured on. Paths in it are relative to it. Or a
            dataset as Hugging Face's AudioFolder has it, with `metadata.csv` or folders of labels, and with folders of splits
            or without: the split test (or else validation) is then what is measured, and nothing else kept out.
        output: New folder for weights, configuration, extractor, their code, model card and `run.json`.
        model: What to begin with, as in `load_pipeline`. Its augmentation is kept, if it comes with its `run.json`.
        num_epochs: How often each training clip is heard.
        any_sound: Whether sounds without a voice have an answer, too. Left out, they have if a label's recordings are such
            sounds; silence, likewise, if a label's recordings are silent.
        hub_model_id: `USER/NAME` on the Hub, where the Trainer puts the weights now and then.

    Returns:
        What `run.json` holds; `fine_tuning` has the figures on the clips kept out.

    Raises:
        `DataError`: no labels, too few recordings, or some that cannot be read. `OSError`, `ValueError`: the checkpoint
            cannot be loaded, or `output` is in use.
    """
    if (output / RUN_FILE).exists():
        raise DataError(f"{output} holds a finished run: choose another --output, or delete it.")
    clips = read_clips(data)
    learnt = _learnt_before(model) | corpora.learnt_from(corpora.own_rows(clips, corpus=data.resolve().stem))
    if hub_model_id or corpora.is_shipped(output):
        corpora.check_may_ship(learnt)
    base = load_pipeline(model)
    transformers.set_seed(seed)
    names = sorted({clip["label"] for clip in clips})
    voiceless, silent = refused_labels(clips, base.feature_extractor.sampling_rate)
    any_sound = bool(voiceless) if any_sound is None else any_sound
    references = np.array([names.index(clip["label"]) for clip in clips])
    rows, split = split_rows(clips, references, seed=seed)
    training = Training(
        num_epochs=num_epochs, learning_rate=learning_rate, batch_size=min(max(len(rows["train"]) // 8, 4), 32)
    )  # gentle, and of several steps an epoch even on few clips
    network = with_labels(base.model, names)
    network.config.voice_only, network.config.sound_only = not any_sound, not (any_sound and silent)
    augmentation = own_augmentation(model, Path(base.model.name_or_path)) or plain_augmentation(base.feature_extractor)
    recipe = _recipe(output.name, network.config, base.feature_extractor, augmentation, training)
    features, fingerprint = _features(clips, base.feature_extractor, augmentation.variants)
    sets = make_sets(augmentation, features, references.tolist(), rows)
    settings = repr([model, names, rows["train"].tolist(), recipe.to_dict(), seed, fingerprint])
    checkpoints = (
        output / CHECKPOINTS / hashlib.sha256(settings.encode()).hexdigest()[:16]
    )  # what others left is not for it
    trainer = make_trainer(
        recipe,
        network,
        base.feature_extractor,
        sets,
        checkpoints=checkpoints,
        seed=seed,
        drop_last=False,
        quiet=quiet,
        hub_model_id=hub_model_id,
    )
    started = time.time()
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(checkpoints))
    probabilities, measured = predict(network, sets["test"]), references[rows["test"]]
    run = {
        "recipe": recipe.to_dict(),
        "seed": seed,
        "data_fingerprint": fingerprint,
        "train_seconds": round(time.time() - started, 1),
        "num_parameters": network.num_parameters(),
        "corpora": learnt,
        "versions": versions(),
        "history": trainer.state.log_history,
        "fine_tuning": {
            "base": Path(model).resolve().name if Path(model).is_dir() else model,  # no path of this machine
            "labels": names,
            "num_train_clips": len(rows["train"]),
            "num_validation_clips": len(measured),
            "split": split,
            "validation": {**scores(probabilities, measured), "intervals": intervals(probabilities, measured)},
            "voiceless_labels": voiceless,
            "any_sound": any_sound,
        },
    }
    with saving(output):
        return save_run(run, network, base.feature_extractor, output, with_code=True)


def read_clips(data: Path) -> list[dict]:
    """
    `{"path", "label"}` of each recording, with `"speaker"` where a CSV file has that column, and with `"split"`, one of
    train, validation and test, where the folders tell.

    Raises:
        `DataError`: there is no such folder or file, a column is missing or empty, a file does not exist, or there are
            fewer than two labels or too few recordings of one.
    """
    if data.is_dir():
        clips = _read_folder(data)
    elif data.is_file():
        clips = _own_columns(read_csv(data))
    else:
        raise DataError(f"{data} does not exist: give a folder of label/clip.wav, or a CSV file of path and label.")
    learnt = Counter(clip["label"] for clip in clips if clip.get("split", "train") == "train")
    if unlearnt := sorted({clip["label"] for clip in clips} - set(learnt)):
        raise DataError(
            f"{data} has nothing in its split train of {', '.join(unlearnt)}: put recordings of it there, too."
        )
    if undecoded := [label for label in learnt if any("\ud800" <= character <= "\udfff" for character in label)]:
        raise DataError(f"The label {ascii(undecoded[0])} is no UTF-8, and no text therefore: rename its folder.")
    if len(learnt) < 2:
        raise DataError(
            f"{data} has {'only the label ' + repr(next(iter(learnt))) if learnt else 'no recordings with a label'}: it needs a folder "
            "of recordings for each of at least two labels, or a CSV file of path and label."
        )
    least = MIN_CLIPS - (len(clips) > learnt.total())
    if few := [f"{label} ({count})" for label, count in sorted(learnt.items()) if count < least]:
        raise DataError(f"Each label needs at least {least} recordings; there are fewer of {', '.join(few)}.")
    return clips


def _learnt_before(model: str) -> dict[str, dict]:
    """The corpora that a checkpoint on this machine has learnt from; one on the Hub may be passed on, or it were not there."""
    folder = SHIPPED / model if model in available() else Path(model)
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run = {}
    return corpora.learnt_corpora(run)


def _read_folder(folder: Path) -> list[dict]:
    recordings, others = (list(map(Path, files)) for files in find_files([str(folder)]))
    tables = {file.parent: read_table(file) for file in others if file.name == METADATA}
    tables = {place: table for place, table in tables.items() if "label" in table[0]}
    clips = [clip for place, table in tables.items() for clip in _own_columns(csv_clips(place / METADATA, *table))]
    clips += [{"path": str(file)} for file in recordings if tables.keys().isdisjoint(file.parents)]
    found = [(clip, Path(os.path.relpath(clip["path"], folder)).parts[:-1]) for clip in clips]
    found = [(clip, place) for clip, place in found if place or "label" in clip]  # of others nothing tells the label
    if {place[:1] for _, place in found} in ({("data",)}, {("Data",)}):  # as on the Hub
        found = [(clip, place[1:]) for clip, place in found]
    tops = {place[0] if place else "." for _, place in found}
    labels = sorted(name for name in tops if name.lower() not in SPLITS)
    splits = {SPLITS[name.lower()] for name in tops.difference(labels)}
    if labels and "train" in splits and len(splits) > 1:
        raise DataError(
            f"{folder} holds {', '.join(labels)} beside {', '.join(sorted(tops.difference(labels)))}: leave only folders of "
            "splits there, or only folders of labels."
        )
    if not labels:
        found = [({**clip, "split": SPLITS[place[0].lower()]}, place[1:]) for clip, place in found]
    clips = [{"label": place[0], **clip} if place else clip for clip, place in found if place or "label" in clip]
    if splits == {"train"} and not labels:  # which is then no split
        clips = [{name: value for name, value in clip.items() if name != "split"} for clip in clips]
    return clips


def _own_columns(clips: list[dict]) -> list[dict]:
    """Of a table's columns those that tell something here: a column `split` may mean anything."""
    return [{name: clip[name] for name in ("path", "label", "speaker", "corpus") if name in clip} for clip in clips]


def refused_labels(clips: list[dict], rate: int) -> tuple[list[str], list[str]]:
    """
    The labels of which more than `REFUSED_SHARE` of the recordings have no voice, and those of which as many are silent: the
    pipeline's checks would refuse them.

    Raises:
        `DataError`: recordings that cannot be read, named all at once.
    """
    found, errors = {}, []
    for clip in tqdm(clips, desc="Listening", unit="clip", disable=None):
        try:
            waveform = read_audio(clip["path"], rate)
        except AudioError as error:
            errors.append(str(error))
            continue
        silent = is_silent(waveform)
        found.setdefault(clip["label"], []).append((silent or not has_voice(waveform, rate), silent))
    if errors:
        more = f" And {len(errors) - MAX_ERRORS_SHOWN} others." if len(errors) > MAX_ERRORS_SHOWN else ""
        raise DataError(
            f"{len(errors)} of {len(clips)} recordings cannot be read: {' '.join(errors[:MAX_ERRORS_SHOWN])}{more}"
        )
    shares = {label: np.mean(refused, 0) for label, refused in sorted(found.items())}
    return tuple([label for label, share in shares.items() if share[check] > REFUSED_SHARE] for check in (0, 1))


def split_rows(clips: list[dict], references: np.ndarray, *, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """
    Row numbers to learn from (`train`), to look at while learning (`validation`) and to measure on (`test`); and by what
    they were split. Nothing is chosen by the clips looked at, which may be those that measure.
    """
    if "split" not in clips[0]:
        train, kept_out = split_clips(clips, references, seed=seed)
        rows = {"train": train, "validation": kept_out, "test": kept_out}
        return rows, "by speaker" if _know_speakers(clips) else "at random"
    splits = np.array([clip["split"] for clip in clips])
    rows = {part: np.flatnonzero(splits == part) for part in np.unique(splits)}
    return {"validation": rows.get("test"), "test": rows.get("validation"), **rows}, "by folder"


def _know_speakers(clips: list[dict]) -> bool:
    return all("speaker" in clip for clip in clips)


def split_clips(clips: list[dict], references: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Row numbers to learn from and to measure on: a fifth, of every label, and of other speakers where these are known.

    Raises:
        `DataError`: the speakers cannot be split so that both parts hear every label.
    """
    rows = np.arange(len(clips))
    if not _know_speakers(clips):
        share = max(len(rows) // 5, len(set(references)))  # one of each label at least
        return tuple(train_test_split(rows, test_size=share, stratify=references, random_state=seed))
    speakers = [clip["speaker"] for clip in clips]
    num_parts = min(5, len(set(speakers)))
    if num_parts >= 2:
        folds = StratifiedGroupKFold(num_parts, shuffle=True, random_state=seed)
        for train, validation in folds.split(rows, references, speakers):
            if set(references[train]) == set(references[validation]) == set(references):
                return train, validation
    raise DataError(
        "The speakers cannot be split so that some are kept out to measure it and every label is still heard: add "
        "recordings of other speakers, or leave out the column speaker."
    )


def with_labels(base: SerForAudioClassification, labels: list[str]) -> SerForAudioClassification:
    """A network with other labels: all of `base` but its classifiers, of which it keeps what belongs to a common label."""
    config = copy.deepcopy(base.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.temperature = 1.0  # it was fitted for the labels of before
    network = SerForAudioClassification(config)
    network.ser.load_state_dict(base.ser.state_dict())
    with torch.no_grad():
        for old, new in zip(base.classifiers, network.classifiers):
            for i, label in enumerate(labels):
                if label in base.config.label2id:
                    new.weight[i] = old.weight[base.config.label2id[label]]
                    new.bias[i] = old.bias[base.config.label2id[label]]
    return network


def _recipe(name: str, config: SerConfig, extractor, augmentation: Augmentation, training: Training) -> Recipe:
    widths = ("feature_size", "num_lags", "num_statistics")  # which follow from the features
    model = {setting: getattr(config, setting) for setting in SerConfig.__annotations__ if setting not in widths}
    return Recipe(name=name, features=extractor.to_dict(), model=model, augmentation=augmentation, training=training)


def own_augmentation(model: str, folder: Path) -> Augmentation | None:
    """That of the recipe in a checkpoint's `run.json`, if it has one that can be read."""
    path = folder / RUN_FILE
    if not Path(model).is_dir() and (found := HUB_NAME.fullmatch(model)):
        with contextlib.suppress(HTTPError, OSError):  # of the very commit that was loaded
            path = Path(hf_hub_download(found["repo_id"], RUN_FILE, revision=folder.name))
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["recipe"]["augmentation"]
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        return Augmentation(**{**plain, "variants": tuple(Variant(**variant) for variant in settings["variants"])})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def plain_augmentation(extractor) -> Augmentation:
    """Three speeds, mixtures, and masks over up to an eighth of the extractor's bands and a tenth of a clip."""
    masks = 2 if extractor.normalize else 0  # they are zeros, the mean only of what is normalised
    return Augmentation(
        variants=(Variant(), Variant(speed=0.9), Variant(speed=1.1)),
        frequency_masks=masks,
        frequency_mask_bands=(extractor.feature_size - extractor.num_lags) // 8,
        time_masks=masks,
        time_mask_fraction=0.1,
        mixup_probability=0.5,
        label_smoothing=0.1,
    )


def _features(clips: list[dict], extractor, variants: tuple[Variant, ...]) -> tuple[dict, str]:
    # As bytes, as not every name is UTF-8.
    dataset = datasets.Dataset.from_dict({"audio": [{"path": os.fsencode(clip["path"])} for clip in clips]})
    fingerprint = corpora.join_fingerprints(corpora.fingerprints([{**clip, "corpus": "own"} for clip in clips]))
    return extract_features(dataset, extractor, variants=variants, data_fingerprint=fingerprint), fingerprint


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.finetune", description=__doc__)
    parser.add_argument(
        "--data", required=True, help="folder of [split/]label/clip.wav, or CSV file of path,label[,speaker]"
    )
    parser.add_argument("--output", required=True, help="new folder for the checkpoint")
    parser.add_argument("--model", default=DEFAULT, help="what to begin with (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=NUM_EPOCHS, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--any-sound",
        action=argparse.BooleanOptionalAction,
        help="an answer for what is no voice, too (default: if a label's recordings have none)",
    )
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="put the network on the Hub, too, while it trains")
    options = parser.parse_args(arguments)
    if options.epochs < 1 or options.learning_rate <= 0:
        parser.error("--epochs and --learning-rate must be above 0.")
    use_one_thread()
    transformers.utils.logging.disable_progress_bar()
    output = Path(options.output)
    try:
        if options.push_to_hub:
            check_login(options.push_to_hub)
        run = finetune(
            Path(options.data),
            output,
            model=options.model,
            num_epochs=options.epochs,
            learning_rate=options.learning_rate,
            seed=options.seed,
            any_sound=options.any_sound,
            hub_model_id=options.push_to_hub,
        )
        url = push(output, options.push_to_hub) if options.push_to_hub else None
    except OSError as error:
        reason = f"{error.filename} cannot be opened or written: {error.strerror}." if error.filename else error
        return explain(reason)
    except ValueError as error:
        return explain(error)
    result = run["fine_tuning"]
    print(
        f"{output}: {', '.join(result['labels'])}; on {result['num_validation_clips']} recordings kept out "
        f"({result['split']}): {', '.join(figures_with_intervals(result['validation']))}."
    )
    if result["voiceless_labels"]:
        labels = ", ".join(result["voiceless_labels"])
        print(
            f"There is no voice in the recordings of {labels}: it answers whatever it hears, voice or not."
            if result["any_sound"]
            else f"There is no voice in the recordings of {labels}, and with --no-any-sound these are refused."
        )
    if url:
        print(f"Pushed: {url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
