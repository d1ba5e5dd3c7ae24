"""The Trainer of transformers, as a recipe wants it: augmentation, penalties, schedule, and checkpoints that are whole."""

import contextlib
import gc
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from ser_model import SerFeatureExtractor

from . import recipe as recipes
from .augment import BatchAugmentation
from .features import collate
from .metrics import EmotionMetric

CHECKPOINTS = "checkpoints"


class RunError(ValueError):
    """Why a run cannot be done, in one sentence."""


class SerTrainer(Trainer):
    """The Trainer, with augmentation of the training batches where they are, on the model's device, and penalties."""

    def __init__(
        self, *args, augmentation: BatchAugmentation, settings: recipes.Training, divide_batch: bool, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.divide_batch = divide_batch
        self.augmentation = augmentation
        self.settings = settings
        self.drops_last = self.args.dataloader_drop_last

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        outputs = model(**self.augmentation(**inputs), divide_batch=self.divide_batch)
        loss = outputs.loss + penalty(model, self.settings)
        return (loss, outputs) if return_outputs else loss

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
    divide_batch: bool = True,
    quiet: bool = False,
    hub_model_id: str | None = None,
    tensorboard: Path | None = None,
) -> SerTrainer:
    """
    What trains `model` on `sets["train"]`, and looks at `sets["validation"]` if there is anything in it. Event files for
    TensorBoard go into `tensorboard`, if it is given. With `divide_batch` each member hears a part of each batch, else all
    of it.

    Raises:
        `ValueError`: a schedule, or a label in `class_factors`, that there is not.
    """
    settings = recipe.training
    if settings.schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {settings.schedule!r}.")
    num_parts = len(model.config.num_cepstra) if divide_batch else 1
    learning = _learning(settings, num_parts=num_parts, num_clips=len(sets["train"]))
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        **learning,
        **_looking(settings, sets, learning=learning),
        # Else the members' parts of a last batch would be of few clips, or none.
        dataloader_drop_last=divide_batch and len(sets["train"]) > learning["per_device_train_batch_size"],
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
        divide_batch=divide_batch,
    )


def leave_processes() -> None:
    """
    Ends the group of processes that train together, if there is one: a thread of it that is still at work when Python ends
    aborts its process, and the launcher then ends the others.
    """
    gc.collect()  # the Trainer that is no longer used, which holds the group as well
    PartialState().destroy_process_group()


def _learning(settings: recipes.Training, *, num_parts: int, num_clips: int) -> dict:
    """
    Batches, epochs and rates. Where each member hears a part of each batch, batches are larger and epochs more, for as many
    clips a member.
    """
    batch_size = min(settings.batch_size, max(2, num_clips // num_parts)) * num_parts
    return {
        "num_train_epochs": settings.num_epochs * num_parts,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": 64,
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
    steps_per_epoch = max(1, len(sets["train"]) // learning["per_device_train_batch_size"])
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
