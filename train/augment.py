"""What training clips go through: variants of the waveform, then masks and mixtures of the features, batch by batch."""

import numpy as np
import soxr
import torch
import torchaudio.functional as F

from .recipe import Augmentation


def change_speed(waveform: np.ndarray, speed: float) -> np.ndarray:
    """(num_samples,) played `speed` times as fast: shorter and higher above 1, longer and lower below."""
    # Resampling wants whole rates; a thousandth of a step in speed is finer than anyone asks for.
    return waveform if speed == 1.0 else soxr.resample(waveform, round(speed * 1000), 1000)


class BatchAugmentation:
    """
    Masks bands and frames of each clip, smooths the labels, and mixes clips in pairs.

    Masks are zeros: the mean of features that are normalised per utterance (SpecAugment, Park et al. 2019). Mixing is
    mixup (Zhang et al. 2018) on features and labels. All of it is vectorised and on the batch's device.
    """

    def __init__(self, augmentation: Augmentation, num_labels: int):
        self.augmentation = augmentation
        self.num_labels = num_labels

    def __call__(self, input_features, attention_mask, labels) -> dict[str, torch.Tensor]:
        """
        Args:
            input_features: (batch, num_frames, num_mel_bins). attention_mask: (batch, num_frames).
            labels: (batch,) int64.

        Returns:
            The three again, `labels` now (batch, num_labels), a distribution for each clip.
        """
        settings = self.augmentation
        targets = torch.nn.functional.one_hot(labels, self.num_labels).to(input_features.dtype)
        targets = targets * (1 - settings.label_smoothing) + settings.label_smoothing / self.num_labels
        input_features = self._mask(input_features)
        if torch.rand(()) < settings.mixup_probability:
            input_features, attention_mask, targets = self._mix(input_features, attention_mask, targets)
        return {"input_features": input_features, "attention_mask": attention_mask, "labels": targets}

    def _mask(self, features: torch.Tensor) -> torch.Tensor:
        settings = self.augmentation
        # torchaudio masks each clip by itself in four dimensions only.
        features = features[:, None]  # (batch, 1, num_frames, num_mel_bins)
        for _ in range(settings.frequency_masks):
            features = F.mask_along_axis_iid(features, settings.frequency_mask_bands, 0.0, 3)
        longest = int(settings.time_mask_fraction * features.shape[2])
        for _ in range(settings.time_masks):
            features = F.mask_along_axis_iid(features, longest, 0.0, 2)
        return features[:, 0]

    def _mix(self, features, attention_mask, targets):
        alpha = torch.tensor(self.augmentation.mixup_alpha)
        weight = torch.distributions.Beta(alpha, alpha).sample().item()
        weight = max(weight, 1 - weight)  # the first of a pair leads, so that its length and labels weigh more
        other = torch.randperm(len(features), device=features.device)
        return (
            torch.lerp(features[other], features, weight),
            torch.maximum(attention_mask, attention_mask[other]),
            torch.lerp(targets[other], targets, weight),
        )
