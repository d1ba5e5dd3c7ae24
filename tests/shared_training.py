"""
Trainings with nothing random in them but the order of the clips, for test_processes.py to start as one process and as two:
`python -m tests.shared_training FOLDER BATCH_SIZE…`. Writes the weights, and which clips each process heard.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from ser_model import SerConfig, SerFeatureExtractor, SerForAudioClassification
from tests.conftest import make_voice
from train import trainer as training
from train.features import FeatureDataset, clip_features
from train.recipe import Recipe, Training

NUM_CLIPS, NUM_EPOCHS = 32, 4
MODEL = {"num_cepstra": 0, "conv_channels": 8, "lstm_hidden_size": 8, "num_attention_heads": 1}
NO_DROPOUT = {"conv_dropout": 0.0, "lstm_dropout": 0.0, "classifier_dropout": 0.0}


class HeardClips(FeatureDataset):
    def __getitem__(self, index: int) -> dict:
        self.heard.append(index)
        return super().__getitem__(index)


def train(output: Path, batch_size: int) -> None:
    extractor = SerFeatureExtractor()
    sounds = [make_voice(0.3 + 0.02 * i, pitch_hz=100 + 40 * (i % 8), seed=i) for i in range(NUM_CLIPS)]
    features = [clip_features(extractor, sound) for sound in sounds]
    clips = HeardClips([features], [i % 8 for i in range(NUM_CLIPS)])
    clips.heard = []
    transformers.set_seed(0)
    model = SerForAudioClassification(SerConfig(**MODEL, **NO_DROPOUT))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # each process would normalise by its own clips
            module.eval().train = lambda mode=True, module=module: module
    recipe = replace(
        Recipe("shared"), training=Training(num_epochs=NUM_EPOCHS, batch_size=batch_size, learning_rate=1e-3)
    )
    trainer = training.make_trainer(
        recipe, model, extractor, {"train": clips, "validation": []}, checkpoints=output, seed=0, quiet=True
    )
    trainer.train()
    process = trainer.args.process_index
    (output / f"heard-{process}.json").write_text(
        json.dumps({"heard": clips.heard, "steps": trainer.state.global_step})
    )
    if process == 0:
        model.save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.shared_training", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("batch_sizes", type=int, nargs="+")
    options = parser.parse_args()
    for size in options.batch_sizes:
        train(options.folder / str(size), size)
    training.leave_processes()
