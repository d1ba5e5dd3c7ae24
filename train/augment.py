"""What training clips go through: variants of the waveform, then noise, masks and mixtures of the features by the batch."""

import numpy as np
import soxr
import torch
import torchaudio.functional as F

from .outside import add_noise, record_outside
from .recipe import Augmentation, Variant


def change(waveform: np.ndarray, rate: int, variant: Variant, *, seed: int) -> np.ndarray:
    """
    A waveform, (num_samples,) at `rate` hertz, as `variant` tells.

    Args:
        seed: Of noise and chance, another one for each clip.
    """
    generator = np.random.default_rng([seed, variant.outside])
    waveform = change_speed(waveform, variant.speed)
    if variant.pitch_semitones:
        from librosa.effects import pitch_shift  # takes seconds to import

        waveform = pitch_shift(waveform, sr=rate, n_steps=variant.pitch_semitones)
    if variant.noise_snr_db is not None:
        waveform = add_noise(waveform, generator, snr_db=variant.noise_snr_db, slope=0.0)
    if variant.outside:
        waveform = record_outside(waveform, rate, generator)
    return np.pad(waveform, (round(variant.shift_s * rate), 0))


def change_speed(waveform: np.ndarray, speed: float) -> np.ndarray:
    """(num_samples,) played `speed` times as fast: shorter and higher above 1, longer and lower below."""
    # Resampling wants whole rates; a thousandth of a step in speed is finer than anyone asks for.
    return waveform if speed == 1.0 else soxr.resample(waveform, round(speed * 1000), 1000)


class BatchAugmentation:
    """
    Noise on or masks over each clip, smooth labels, clips mixed in pairs, and labels scaled by the weight of their class.

    Masks are zeros: the mean of features that are normalised (SpecAugment, Park et al. 2019). Mixing is mixup (Zhang et
    al. 2018) on features and labels. All of it is vectorised and on the batch's device.
    """

    def __init__(self, augmentation: Augmentation, class_weights: list[float], *, num_lags: int = 0):
        """
        Args:
            class_weights: What the loss of a clip of each label counts.
            num_lags: How many of the features, the last, are no bands of frequency.
        """
        self.augmentation = augmentation
        self.num_lags = num_lags
        self.class_weights = torch.tensor(class_weights)

    def __call__(
        self, input_features, attention_mask, labels, statistics=None, weights=None
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            input_features: (batch, num_frames, feature_size). attention_mask: (batch, num_frames).
            labels: (batch,) int64.
            statistics: (batch, num_rows, num_columns), of the whole clip; they are mixed, but neither noise nor masks concern them.
            weights: (batch,) float, what each clip counts in the loss beside the weight of its class; 1 if left out.

        Returns:
            All of it again but `weights`, `labels` now (batch, num_labels), a distribution for each clip times its weight.
        """
        settings = self.augmentation
        class_weights, num_labels = self.class_weights.to(input_features), len(self.class_weights)
        targets = torch.nn.functional.one_hot(labels, num_labels).to(input_features.dtype)
        targets = targets * (1 - settings.label_smoothing) + settings.label_smoothing / num_labels
        targets = targets * class_weights[labels][:, None]
        if weights is not None:
            targets = targets * weights[:, None]
        input_features = self._mask(self._noise_or_mask(input_features, attention_mask))
        batch = {"input_features": input_features, "attention_mask": attention_mask, "labels": targets}
        if statistics is not None:
            batch["statistics"] = statistics
        return self._mix(batch) if torch.rand(()) < settings.mixup_probability else batch

    def _noise_or_mask(self, features: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        settings = self.augmentation
        if not (settings.noise_or_mask_std or settings.noise_or_mask_fraction):
            return features
        batch, num_frames, _ = features.shape
        draw = torch.rand(2, batch, 1, device=features.device)
        width = attention_mask.sum(1, keepdim=True) * settings.noise_or_mask_fraction  # (batch, 1)
        start = draw[0] * (attention_mask.sum(1, keepdim=True) - width)
        frame = torch.arange(num_frames, device=features.device)
        masked = (frame >= start) & (frame < start + width)  # (batch, num_frames)
        noisy = features + settings.noise_or_mask_std * torch.randn_like(features)
        return torch.where((draw[1] < 0.5)[..., None], noisy, features.masked_fill(masked[..., None], 0.0))

    def _mask(self, features: torch.Tensor) -> torch.Tensor:
        settings = self.augmentation
        batch, num_frames, size = features.shape
        # torchaudio masks each clip by itself in four dimensions only; a mask needs but one of features and frames.
        bands = features.new_ones(batch, 1, 1, size)
        for _ in range(settings.frequency_masks):
            bands = F.mask_along_axis_iid(bands, settings.frequency_mask_bands, 0.0, 3)
        if settings.narrow_band_probability:
            bands = bands * self._narrow_band(features)
        frames = features.new_ones(batch, 1, num_frames, 1)
        longest = int(settings.time_mask_fraction * num_frames)
        for _ in range(settings.time_masks):
            frames = F.mask_along_axis_iid(frames, longest, 0.0, 2)
        return features * (bands * frames)[:, 0]

    def _narrow_band(self, features: torch.Tensor) -> torch.Tensor:
        """0 where a clip has lost its highest bands and 1 elsewhere, (batch, 1, 1, feature_size)."""
        settings = self.augmentation
        batch, _, size = features.shape
        draw = torch.rand(2, batch, 1, 1, 1, device=features.device)
        lowest, highest = settings.narrow_band_ends
        end = lowest + (draw[0] * (highest - lowest + 1)).floor()
        feature = torch.arange(size, device=features.device)
        lost = (draw[1] < settings.narrow_band_probability) & (feature >= end) & (feature < size - self.num_lags)
        return (~lost).to(features.dtype)

    def _mix(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        alpha = torch.tensor(self.augmentation.mixup_alpha)
        weight = torch.distributions.Beta(alpha, alpha).sample().item()
        weight = max(weight, 1 - weight)  # the first of a pair leads, so that its length and labels weigh more
        other = torch.randperm(len(batch["labels"]), device=batch["labels"].device)
        mask = batch["attention_mask"]
        mixed = {name: torch.lerp(x[other], x, weight) for name, x in batch.items() if x is not mask}
        return {**mixed, "attention_mask": torch.maximum(mask, mask[other])}
