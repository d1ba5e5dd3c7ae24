"""
Where an epoch of training spends its time: `python -m tests.benchmarks.training [--data RAVDESS]`, on one thread.

Trains the members of ser-base that listen for one epoch, on RAVDESS's speech or, without it, on as many made sounds, as long as
its clips are once trimmed. Prints the wall time of the epoch and the shares of it inside the network (forward and backward), the
optimiser, augmentation, collating, and the rest: the Trainer and Python. Features are computed beforehand, as in a real run. On
a GPU the shares are those of the host.
"""

import argparse
import dataclasses
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from transformers import set_seed

from ser_model import SerFeatureExtractor
from ser_model.configuration_ser import EMOTIONS
from tests.conftest import make_voice
from train import train as training
from train.corpus import fingerprints, load_training_rows
from train.features import clip_features, recipe_features
from train.recipe import Recipe, Variant, load_recipe

NUM_CLIPS, NUM_SOUNDS = 1440, 40


def read_clips(data: str | None, recipe: Recipe) -> tuple[SerFeatureExtractor, dict]:
    """The extractor, and the sets that the Trainer gets: everything to learn from, nothing to judge by."""
    if data is not None:
        rows = load_training_rows(recipe.corpora, data, vocal_channels=recipe.vocal_channels)
        extractor, features = recipe_features(recipe, rows, fingerprints=fingerprints(rows))
        labels = [EMOTIONS.index(row["emotion"]) for row in rows]
    else:
        extractor = SerFeatureExtractor(**recipe.features)
        sounds = [make_voice(1.2 + 1.7 * i / NUM_SOUNDS, seed=i) for i in range(NUM_SOUNDS)]
        heard = [clip_features(extractor, sound) for sound in sounds]
        clips = [heard[i % NUM_SOUNDS] for i in range(NUM_CLIPS)]
        features = {variant: clips for variant in (Variant(), *recipe.augmentation.variants)}
        labels = [i % 8 for i in range(NUM_CLIPS)]
    parts = {"train": range(len(labels)), "validation": [], "test": []}
    return extractor, training.make_sets(recipe.augmentation, features, labels, parts)


class Shares:
    """Seconds inside functions, without those inside others of them."""

    def __init__(self):
        self.seconds, self._inside = Counter(), []

    def of(self, name: str, function):
        def timed(*args, **kwargs):
            start = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                self.seconds[name] += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", help="folder of RAVDESS; left out, sounds are made up")
    options = parser.parse_args()
    training.use_one_thread()
    set_seed(0)
    _, recipe = load_recipe("ser-base").groups()[0]
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, num_epochs=1))
    extractor, sets = read_clips(options.data, recipe)
    clips = sets["train"]
    model = training.make_network(recipe, extractor, list(EMOTIONS))
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(recipe, model, extractor, sets, checkpoints=Path(folder), seed=0, quiet=True)
        trainer.create_optimizer()
        shares = Shares()
        model.forward = shares.of("network, forward", model.forward)
        trainer.accelerator.backward = shares.of("network, backward", trainer.accelerator.backward)
        trainer.augmentation = shares.of("augmentation", trainer.augmentation)
        trainer.data_collator = shares.of("collating", trainer.data_collator)
        trainer.optimizer.step = shares.of("optimiser", trainer.optimizer.step)
        start = time.perf_counter()
        trainer.train()
        epoch_s = time.perf_counter() - start
    frames = np.mean([len(clip) for clip in clips.variants[0]])
    print(f"One epoch of {len(clips)} clips, {frames:.0f} frames on average, on {model.device.type}: {epoch_s:.1f} s")
    shares.seconds["Trainer and the rest of Python"] = epoch_s - sum(shares.seconds.values())
    for name, seconds in shares.seconds.most_common():
        print(f"  {name:<32}{seconds:>8.2f} s{seconds / epoch_s:>8.1%}")


if __name__ == "__main__":
    main()
