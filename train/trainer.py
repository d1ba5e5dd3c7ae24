"""The Trainer of transformers, as a recipe wants it: augmentation, penalties, schedule, and checkpoints that are whole."""

import contextlib
import functools
import gc
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch.utils.data import WeightedRandomSampler
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from ser_model import SerFeatureExtractor

from . import recipe as recipes
from .augment import BatchAugmentation
from .features import collate
from .metrics import EmotionMetric
from .push import RUN_FILE

CHECKPOINTS = "checkpoints"


class RunError(ValueError):
    """Why a run cannot be done, in one sentence."""


def claims_output(train):
    """
    For a training whose second argument is the folder to write: it raises a `RunError`, before anything else, where another
    training is at work or other files are. A finished run is only read.
    """

    @functools.wraps(train)
    def claimed(source, output: Path, **options):
        processes = PartialState(cpu=not torch.accelerator.is_available())
        if not processes.is_main_process or (output / RUN_FILE).exists():
            return train(source, output, **options)
        with _locked(output):
            return train(source, output, **options)

    return claimed


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    checkpoints = output / CHECKPOINTS
    try:
        begun = checkpoints.exists() or not output.exists()
        if not begun and any(not name.startswith(".") for name in os.listdir(output)):
            raise RunError(f"{output} holds other files: choose another --output, a new folder.")
        made = [folder for folder in (checkpoints, output, *output.parents) if not folder.exists()]
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{output} cannot be a folder to write: {error.strerror}.") from error
    lock = FileLock(checkpoints / "_lock", timeout=0)  # with an underscore, which the Trainer does not push
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(f"Another training is writing {output}: wait for it, or choose another --output.") from error
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what was written stays
            for folder in made:
                folder.rmdir()


class SerTrainer(Trainer):
    """The Trainer, with augmentation of the training batches where they are, on the model's device, and penalties."""

    def __init__(self, *args, augmentation: BatchAugmentation, settings: recipes.Training, **kwargs):
        super().__init__(*args, **kwargs)
        self.augmentation = augmentation
        self.settings = settings
        self.drops_last = self.args.dataloader_drop_last

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        outputs = model(**self.augmentation(**inputs))
        loss = outputs.loss + penalty(model, self.settings)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset=None):
        chances = self.train_dataset.chances
        if chances is None:
            return super()._get_train_sampler(train_dataset)
        return WeightedRandomSampler(chances, len(chances))

    def get_eval_dataloader(self, *args, **kwargs):
        self.args.dataloader_drop_last = False  # which is about training: every clip held out counts
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = self.drops_last

    def _save_checkpoint(self, *args, **kwargs):
        with saving(self.args.output_dir):
            super()._save_checkpoint(*args, **kwargs)


def penalty(model, settings: recipes.Training) -> torch.Tensor | float:
    """The recipe's multiples of the sum of absolute values and of squares of the weights that it penalises."""
    chosen = [
        weight
        for name, weight in model.named_parameters()
        if name.endswith("weight") and any(part in name for part in settings.penalised)
    ]
    return sum(settings.l1_penalty * w.abs().sum() + settings.l2_penalty * w.square().sum() for w in chosen)


def class_weights(settings: recipes.Training, labels: list[int], names: list[str]) -> list[float]:
    """What a training clip of each label counts in the loss: 1 on average over the clips, but for `class_factors`."""
    if unknown := sorted(set(settings.class_factors) - set(names)):
        raise ValueError(f"class_factors names {', '.join(unknown)}, which is none of {', '.join(names)}.")
    counts = np.bincount(labels, minlength=len(names))
    balanced = len(labels) / (len(names) * np.maximum(counts, 1))
    weights = balanced if settings.balanced_classes else np.ones(len(names))
    return [float(weight * settings.class_factors.get(name, 1.0)) for weight, name in zip(weights, names)]


def sampling_chances(clips: list[dict], shares: dict[str, float]) -> list[float]:
    """
    How often each clip is drawn, (num_clips,), 1 on average: each corpus as often as its share says, and in it each emotion that
    it has as often as the others.
    """
    cells = [(clip["corpus"], clip["emotion"]) for clip in clips]
    num_clips = Counter(cells)
    num_emotions = Counter(corpus for corpus, _ in num_clips)
    if set(shares) != set(num_emotions):
        raise ValueError(
            f"corpus_shares names {', '.join(shares)}: give a share for each of {', '.join(num_emotions)}, and no other."
        )
    chances = np.array([shares[cell[0]] / num_emotions[cell[0]] / num_clips[cell] for cell in cells])
    return (chances / chances.mean()).tolist()


def label_masks(clips: list[dict], labels: tuple[str, ...]) -> list[list[bool]]:
    """Which labels each clip might have had: those that its corpus has."""
    known = {}
    for clip in clips:
        known.setdefault(clip["corpus"], set()).add(clip["emotion"])
    masks = {corpus: [label in emotions for label in labels] for corpus, emotions in known.items()}
    return [masks[clip["corpus"]] for clip in clips]


# Arguments of the Trainer for each `Training.schedule`.
SCHEDULES = {
    "constant": lambda settings: {"lr_scheduler_type": "constant_with_warmup"},
    "cosine": lambda settings: {"lr_scheduler_type": "cosine"},
    "cosine-restarts": lambda settings: {
        "lr_scheduler_type": "cosine_with_restarts",
        "lr_scheduler_kwargs": {"num_cycles": settings.num_cosines},
    },
    "plateau": lambda settings: {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"mode": "max", "factor": 0.5, "patience": settings.plateau_epochs},
    },
}


@contextlib.contextmanager
def saving(folder):
    """What goes wrong while `folder` is written, a full disk first of all, becomes a `RunError`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors each have their own
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"{folder} could not be written ({reason}): make room there and give the same command again, "
            "which goes on from the last whole checkpoint."
        ) from error


def make_trainer(
    recipe: recipes.Recipe,
    model,
    extractor: SerFeatureExtractor,
    sets: dict,
    *,
    checkpoints: Path,
    seed: int,
    drop_last: bool = True,
    quiet: bool = False,
    hub_model_id: str | None = None,
    tensorboard: Path | None = None,
) -> SerTrainer:
    """
    What trains `model` on `sets["train"]`, and looks at `sets["validation"]` if there is anything in it. Event files for
    TensorBoard go into `tensorboard`, if it is given. With `drop_last` an epoch leaves out what
    does not fill a batch.

    Raises:
        `ValueError`: a schedule, or a label in `class_factors`, that there is not.
    """
    settings = recipe.training
    if settings.corpus_shares and (settings.balanced_classes or settings.class_factors):
        raise ValueError("corpus_shares balances the classes as well: leave out balanced_classes and class_factors.")
    if settings.schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {settings.schedule!r}.")
    learning = _learning(settings, num_clips=len(sets["train"]), drop_last=drop_last)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        **learning,
        **_looking(settings, sets, learning=learning),
        save_total_limit=2,
        logging_steps=0.02,
        disable_tqdm=quiet,
        log_level="error" if quiet else "passive",
        report_to=["tensorboard"] if tensorboard else [],
        # Several processes share each of the recipe's batches, in one order that all of them draw: the steps stay the same.
        accelerator_config={"split_batches": True, "use_seedable_sampler": False},
        ddp_find_unused_parameters=False,
        use_cpu=not torch.accelerator.is_available(),  # said outright, or else several processes would not join
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        seed=seed,
        push_to_hub=hub_model_id is not None,
        hub_model_id=hub_model_id,
    )
    if tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(tensorboard)  # there is no argument for it
    patience = settings.early_stopping_epochs
    weights = class_weights(settings, sets["train"].labels, list(model.config.id2label.values()))
    metric = EmotionMetric(keep_in_memory=True)
    return SerTrainer(
        model=model.to(memory_format=torch.channels_last),  # as convolutions on a CPU want it
        processing_class=extractor,
        args=arguments,
        train_dataset=sets["train"],
        eval_dataset=sets["validation"],
        data_collator=collate,
        compute_metrics=lambda p: metric.compute(predictions=p.predictions.argmax(-1), references=p.label_ids),
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
        augmentation=BatchAugmentation(recipe.augmentation, weights, num_lags=model.config.num_lags),
        settings=settings,
    )


def leave_processes() -> None:
    """
    Ends the group of processes that train together, if there is one: a thread of it that is still at work when Python ends
    aborts its process, and the launcher then ends the others.
    """
    gc.collect()  # the Trainer that is no longer used, which holds the group as well
    PartialState().destroy_process_group()


def _learning(settings: recipes.Training, *, num_clips: int, drop_last: bool) -> dict:
    """Batches, epochs and rates."""
    batch_size = min(settings.batch_size, max(2, num_clips))
    return {
        "num_train_epochs": settings.num_epochs,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": 64,
        "dataloader_drop_last": drop_last and num_clips > batch_size,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "warmup_steps": settings.warmup,
        "max_grad_norm": settings.max_grad_norm,
        **SCHEDULES[settings.schedule](settings),
    }


def _looking(settings: recipes.Training, sets: dict, *, learning: dict) -> dict:
    """When to look at the validation clips, and to save."""
    if settings.keep_best:
        each_epoch = {"eval_strategy": "epoch", "save_strategy": "epoch"}
        return {**each_epoch, "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    # With validation clips there is a curve to look at; nothing is chosen by it while training. Checkpoints are ten, where
    # an epoch ends: there a resumed run draws the same random numbers as one that was not stopped.
    num_batches = len(sets["train"]) / learning["per_device_train_batch_size"]
    steps_per_epoch = math.floor(num_batches) if learning["dataloader_drop_last"] else math.ceil(num_batches)
    return {
        "eval_strategy": "steps" if len(sets["validation"]) else "no",
        "eval_steps": 0.1,
        "save_steps": steps_per_epoch * max(1, learning["num_train_epochs"] // 10),
    }


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: `trainer_state.json` comes last."""
    steps = sorted((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), reverse=True)
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return str(checkpoint)
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None
