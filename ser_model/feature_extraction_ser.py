"""From waveform to log-mel: all signal processing and all normalisation, and nothing of the network."""

import math

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank

# Bands that hardly move (above a telephone's 4 kHz, say) must not be blown up to unit deviation: they are
# divided by this at least.
MIN_DEVIATION_DB = 1.0


class SerFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Log-mel features of mono waveforms, each clip normalised by its own statistics.

    Each clip is trimmed of the silence at its ends, scaled to peak 1, turned into a power mel spectrogram
    (as `librosa.feature.melspectrogram` with zero padding and the Slaney mel scale), expressed in decibels below
    its loudest value (as `librosa.power_to_db(ref=np.max)`), and normalised. So neither the recording's level nor
    digital silence around it changes a feature.

    Args:
        feature_size (`int`, defaults to 64): Number of mel bands.
        sampling_rate (`int`, defaults to 16000): Rate of the waveforms, in hertz.
        n_fft (`int`, defaults to 512): Length of a frame and of its Fourier transform, in samples.
        hop_length (`int`, defaults to 256): Distance between frames, in samples.
        f_min_hz, f_max_hz (`float`): Edges of the mel bands; `f_max_hz` is at most half the sampling rate.
        top_db (`float`, defaults to 80.0): Values further below the clip's loudest are raised to that floor.
        trim_db (`float`, *optional*, defaults to 30.0): Samples before the first and after the last that come
            within this many decibels of the clip's peak are cut off. `None` keeps them.
        normalize (`str`, *optional*, defaults to `"utterance"`): `"utterance"` gives each band of each clip mean 0
            and deviation 1; `None` leaves decibels in [-`top_db`, 0].
        padding_value (`float`, defaults to 0.0): What fills a shorter clip of a batch.
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        *,
        feature_size=64,
        sampling_rate=16000,
        n_fft=512,
        hop_length=256,
        f_min_hz=50.0,
        f_max_hz=8000.0,
        top_db=80.0,
        trim_db=30.0,
        normalize="utterance",
        padding_value=0.0,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        if normalize not in ("utterance", None):
            raise ValueError(f"normalize must be 'utterance' or None, not {normalize!r}.")
        if not 0 <= f_min_hz < f_max_hz <= sampling_rate / 2:
            raise ValueError(
                f"Mel bands must lie between 0 and {sampling_rate / 2:g} Hz (half the sampling rate), "
                f"not from {f_min_hz:g} to {f_max_hz:g} Hz."
            )
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.f_min_hz = f_min_hz
        self.f_max_hz = f_max_hz
        self.top_db = top_db
        self.trim_db = trim_db
        self.normalize = normalize
        mel_filters = mel_filter_bank(
            num_frequency_bins=n_fft // 2 + 1,
            num_mel_filters=feature_size,
            min_frequency=f_min_hz,
            max_frequency=f_max_hz,
            sampling_rate=sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.mel_filters = torch.from_numpy(mel_filters).float()  # (n_fft // 2 + 1, num_mel_bins)
        self.window = torch.hann_window(n_fft)

    def to_dict(self):
        """The parameters; the filters and the window follow from them."""
        return {k: v for k, v in super().to_dict().items() if k not in ("mel_filters", "window")}

    def __call__(self, raw_speech, *, sampling_rate=None, return_tensors=None, **kwargs) -> BatchFeature:
        """
        Features of one waveform or of a batch, padded to the longest.

        Args:
            raw_speech: One mono waveform (`np.ndarray`, `torch.Tensor` or list of float) or a list of them, of shape
                (num_samples,) each, in [-1, 1] by custom; the level does not matter.
            sampling_rate (`int`): Rate of `raw_speech` in hertz. Give it: a wrong one is refused.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; NumPy arrays if left out.

        Returns:
            `BatchFeature` with `input_features` (batch, num_frames, num_mel_bins), float32, and `attention_mask`
            (batch, num_frames), int64, 1 on frames of the clip and 0 on padding. A clip of n samples, after trimming,
            has 1 + n // `hop_length` frames.

        Raises:
            `ValueError`: another sampling rate; more than one channel; an empty, NaN or infinite waveform.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"This model hears audio at {self.sampling_rate} Hz, but this waveform is at {sampling_rate} Hz: "
                f"resample it first, e.g. with librosa.resample(waveform, orig_sr={sampling_rate}, "
                f"target_sr={self.sampling_rate})."
            )
        waveforms = [self._prepare(waveform) for waveform in _as_list(raw_speech)]
        num_frames = torch.tensor([1 + len(waveform) // self.hop_length for waveform in waveforms])
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)  # (batch, num_samples)
        mask = torch.arange(int(num_frames.max())) < num_frames[:, None]  # (batch, num_frames)
        features = self._log_mel(padded, mask)
        if self.normalize == "utterance":
            features = _normalize_utterances(features, mask)
        features = features.masked_fill(~mask[..., None], self.padding_value)
        data = {"input_features": features, "attention_mask": mask.long()}
        if return_tensors != "pt":
            data = {name: value.numpy() for name, value in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def _prepare(self, waveform) -> torch.Tensor:
        """One waveform of any accepted kind, checked, trimmed and scaled to peak 1: (num_samples,)."""
        waveform = torch.as_tensor(waveform).to(torch.float32)
        if waveform.ndim != 1:
            raise ValueError(
                f"Expected one mono waveform of shape (num_samples,), got shape {tuple(waveform.shape)}: "
                "average the channels of a stereo recording first; a batch is a list of waveforms."
            )
        if len(waveform) == 0:
            raise ValueError("The waveform is empty: it needs at least one sample.")
        peak = waveform.abs().max()
        if not torch.isfinite(peak):
            raise ValueError("The waveform contains NaN or infinite samples: check how it was decoded.")
        if peak == 0:
            return waveform
        first, end = self.trimmed_span(waveform)
        return waveform[first:end] / peak

    def trimmed_span(self, waveform) -> tuple[int, int]:
        """What is left of a waveform, (num_samples,), after trimming: its first sample and the one after its last."""
        loudness = torch.as_tensor(waveform).abs()
        if self.trim_db is None:
            return 0, len(loudness)
        is_loud = (loudness >= loudness.max() * 10 ** (-self.trim_db / 20)).numpy()
        return int(is_loud.argmax()), len(is_loud) - int(is_loud[::-1].argmax())

    def _log_mel(self, waveforms: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, num_samples) -> decibels below each clip's loudest value, (batch, num_frames, num_mel_bins)."""
        spectrum = torch.stft(
            waveforms,
            self.n_fft,
            self.hop_length,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )  # (batch, n_fft // 2 + 1, num_frames)
        power = spectrum.real.square() + spectrum.imag.square()
        mel = power.transpose(1, 2) @ self.mel_filters  # (batch, num_frames, num_mel_bins)
        # The window of a last frame reaches past a shorter clip's end into padding, not the other way round, so the
        # frames under the mask are those of the clip alone.
        decibels = 10 * torch.log10(mel.clamp(min=1e-10))
        loudest = decibels.masked_fill(~mask[..., None], -math.inf).amax((1, 2), keepdim=True)
        return (decibels - loudest).clamp(min=-self.top_db)


def _as_list(raw_speech) -> list:
    """One waveform, or a list or tuple of waveforms, as a list of waveforms."""
    if isinstance(raw_speech, (list, tuple)):
        if len(raw_speech) == 0:
            raise ValueError("Got an empty list: give at least one waveform.")
        if not np.isscalar(raw_speech[0]):
            return list(raw_speech)
    return [raw_speech]


def _normalize_utterances(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean 0 and deviation 1 for each band of each clip, over the frames under `mask`."""
    weights = mask[..., None].to(features.dtype)  # (batch, num_frames, 1)
    count = weights.sum(1, keepdim=True)
    mean = (features * weights).sum(1, keepdim=True) / count
    variance = ((features - mean).square() * weights).sum(1, keepdim=True) / count
    return (features - mean) / variance.sqrt().clamp(min=MIN_DEVIATION_DB)
