"""Features of a dataset's clips, computed once and kept in the cache of `datasets`."""

import functools
import hashlib
import json

import datasets
import numpy as np
import torch

from ser_model import SerFeatureExtractor
from ser_model.audio import read_audio

from .augment import change_speed

# Part of the cache's key: raise it when the code below changes what is computed from the same settings.
VERSION = 1


def extract_features(
    dataset: datasets.Dataset, extractor: SerFeatureExtractor, *, speeds: tuple[float, ...], data_fingerprint: str
) -> dict[float, list[np.ndarray]]:
    """
    Args:
        dataset: With a column `audio` of paths.
        speeds: Variants of each clip (see `change_speed`).
        data_fingerprint: Names the content of the clips; a change of it, of a parameter of the extractor or of the
            speeds computes the features anew, otherwise they are read from the cache.

    Returns:
        For each speed the features of each clip in the dataset's order, (num_frames, num_mel_bins), float32.

    Raises:
        `ser_model.audio.AudioError`: a clip cannot be read.
    """
    features = {}
    for speed in sorted({1.0, *speeds}):
        settings = json.dumps([VERSION, data_fingerprint, extractor.to_dict(), speed], sort_keys=True)
        table = dataset.map(
            functools.partial(_extract_one, extractor=extractor, speed=speed),
            remove_columns=dataset.column_names,
            features=datasets.Features({"values": datasets.Sequence(datasets.Value("float32"))}),
            new_fingerprint=hashlib.sha256(settings.encode()).hexdigest()[:32],
            desc=f"Features at speed {speed:g}",
        )
        features[speed] = [
            values.values.to_numpy().reshape(-1, extractor.feature_size)
            for chunk in table.data.column("values").chunks
            for values in chunk
        ]
    return features


def _extract_one(row: dict, *, extractor: SerFeatureExtractor, speed: float) -> dict:
    waveform = change_speed(read_audio(row["audio"]["path"], extractor.sampling_rate), speed)
    features = extractor(waveform, sampling_rate=extractor.sampling_rate)["input_features"][0]
    return {"values": features.ravel()}


class FeatureDataset(torch.utils.data.Dataset):
    """Clips for the Trainer; a clip with several variants is heard as one of them, drawn anew each time."""

    def __init__(self, variants: list[list[np.ndarray]], labels: list[int]):
        self.variants = variants
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        variant = torch.randint(len(self.variants), ()).item() if len(self.variants) > 1 else 0
        return {"input_features": self.variants[variant][index], "labels": self.labels[index]}


def collate(clips: list[dict]) -> dict[str, torch.Tensor]:
    """Clips of different lengths as one batch, zeros after the shorter ones."""
    features = [torch.tensor(clip["input_features"]) for clip in clips]
    num_frames = torch.tensor([len(clip) for clip in features])
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    return {
        "input_features": padded,
        "attention_mask": (torch.arange(padded.shape[1]) < num_frames[:, None]).long(),
        "labels": torch.tensor([clip["labels"] for clip in clips]),
    }
