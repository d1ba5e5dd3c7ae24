"""`python -m train.finetune`: the weights that ship, trained further on recordings and labels of your own."""

import argparse
import copy
import dataclasses
import json
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from ser_model import SerForAudioClassification
from ser_model.audio import AudioError
from ser_model.pretrained import DEFAULT, available, load_pipeline
from ser_model.pretrained import FOLDER as SHIPPED
from ser_model.scoring import find_recordings

from . import corpus as corpora
from .corpus import DataError, read_csv
from .features import extract_features
from .metrics import scores
from .push import RUN_FILE, check_login, push
from .recipe import Recipe, Training, load_recipe
from .train import explain, make_sets, predict, save_run, use_one_thread, versions
from .trainer import CHECKPOINTS, make_trainer

MIN_CLIPS = 4  # of each label: one of them validates


def finetune(
    data: Path,
    output: Path,
    *,
    model: str = DEFAULT,
    num_epochs: int = 30,
    learning_rate: float = 5e-4,
    seed: int = 0,
    quiet: bool = False,
    hub_model_id: str | None = None,
) -> dict:
    """
    Trains a checkpoint further on one's own recordings, a fifth of which are kept out to measure it. Labels that the
    checkpoint knows begin with what it knows of them; others begin anew.

    Args:
        data: A folder with a folder of recordings for each label, or a CSV file with the columns `path` and `label`, and
            `speaker` if it is known: then nobody is both learnt from and measured on. Paths in it are relative to it.
        output: New folder for weights, configuration, extractor, their code, model card and `run.json`.
        model: What to begin with, as in `load_pipeline`.
        hub_model_id: `USER/NAME` on the Hub, where the Trainer puts the weights now and then.

    Returns:
        What `run.json` holds; `fine_tuning` has the figures on the clips kept out.

    Raises:
        `DataError`: no labels, or too few recordings. `AudioError`: a recording cannot be read. `OSError`, `ValueError`:
            the checkpoint cannot be loaded, or `output` is in use.
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
    references = np.array([names.index(clip["label"]) for clip in clips])
    train, validation = split_clips(clips, references, seed=seed)
    recipe = _recipe(output.name, len(train), num_epochs=num_epochs, learning_rate=learning_rate)
    features, fingerprint = _features(clips, base.feature_extractor, recipe)
    sets = make_sets(recipe.augmentation, features, references.tolist(), {"train": train, "validation": validation})
    network = with_labels(base.model, names)
    trainer = make_trainer(
        recipe,
        network,
        base.feature_extractor,
        sets,
        checkpoints=output / CHECKPOINTS,
        seed=seed,
        quiet=quiet,
        hub_model_id=hub_model_id,
    )
    started = time.time()
    trainer.train()
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
            "num_train_clips": len(train),
            "num_validation_clips": len(validation),
            "split": "by speaker" if "speaker" in clips[0] else "at random",
            "validation": scores(predict(network, sets["validation"]), references[validation]),
        },
    }
    return save_run(run, network, base.feature_extractor, output, with_code=True)


def read_clips(data: Path) -> list[dict]:
    """
    `{"path", "label"}` of each recording, with `"speaker"` where a CSV file has that column.

    Raises:
        `DataError`: there is no such folder or file, a column is missing or empty, a file does not exist, or there are
            fewer than two labels or than `MIN_CLIPS` recordings of one.
    """
    if data.is_dir():
        clips = [
            {"path": path, "label": folder.name}
            for folder in sorted(data.iterdir())
            if folder.is_dir() and not folder.name.startswith(".")
            for path in find_recordings(str(folder))
        ]
    elif data.is_file():
        clips = read_csv(data)
    else:
        raise DataError(f"{data} does not exist: give a folder of label/clip.wav, or a CSV file of path and label.")
    counts = Counter(clip["label"] for clip in clips)
    if len(counts) < 2:
        raise DataError(
            f"{data} has {'only the label ' + repr(next(iter(counts))) if counts else 'no recordings'}: it needs a folder "
            "of recordings for each of at least two labels, or a CSV file of path and label."
        )
    if few := [f"{label} ({count})" for label, count in sorted(counts.items()) if count < MIN_CLIPS]:
        raise DataError(f"Each label needs at least {MIN_CLIPS} recordings; there are fewer of {', '.join(few)}.")
    return clips


def _learnt_before(model: str) -> dict[str, dict]:
    """The corpora that a checkpoint on this machine has learnt from; one on the Hub may be passed on, or it were not there."""
    folder = SHIPPED / model if model in available() else Path(model)
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run = {}
    return corpora.learnt_corpora(run)


def split_clips(clips: list[dict], references: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Row numbers to learn from and to measure on: a fifth, of every label, and of other speakers where these are known.

    Raises:
        `DataError`: the speakers cannot be split so that both parts hear every label.
    """
    rows = np.arange(len(clips))
    if "speaker" not in clips[0]:
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


def _recipe(name: str, num_clips: int, *, num_epochs: int, learning_rate: float) -> Recipe:
    """The augmentation of the recipe that ships, and a gentler training, of several steps an epoch even on few clips."""
    batch_size = min(max(num_clips // 8, 4), Training.batch_size)
    training = Training(num_epochs=num_epochs, learning_rate=learning_rate, batch_size=batch_size)
    return dataclasses.replace(load_recipe(DEFAULT), name=name, training=training, apart=(), forget_priors=False)


def _features(clips: list[dict], extractor, recipe: Recipe) -> tuple[dict, str]:
    dataset = datasets.Dataset.from_dict({"audio": [{"path": clip["path"]} for clip in clips]})
    fingerprint = corpora.join_fingerprints(corpora.fingerprints([{**clip, "corpus": "own"} for clip in clips]))
    variants = recipe.augmentation.variants
    return extract_features(dataset, extractor, variants=variants, data_fingerprint=fingerprint), fingerprint


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.finetune", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of label/clip.wav, or CSV file of path,label[,speaker]")
    parser.add_argument("--output", required=True, help="new folder for the checkpoint")
    parser.add_argument("--model", default=DEFAULT, help="what to begin with (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="put the network on the Hub, too, while it trains")
    options = parser.parse_args(arguments)
    if options.epochs < 1 or options.learning_rate <= 0:
        parser.error("--epochs and --learning-rate must be above 0.")
    use_one_thread()
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
            hub_model_id=options.push_to_hub,
        )
        url = push(output, options.push_to_hub) if options.push_to_hub else None
    except (AudioError, ValueError, OSError) as error:
        return explain(error)
    result = run["fine_tuning"]
    figures = result["validation"]
    print(
        f"{output}: {', '.join(result['labels'])}; on {result['num_validation_clips']} recordings kept out "
        f"({result['split']}): UAR {100 * figures['uar']:.1f} %, accuracy {100 * figures['accuracy']:.1f} %."
    )
    if url:
        print(f"Pushed: {url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
