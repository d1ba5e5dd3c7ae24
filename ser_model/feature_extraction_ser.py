"""From waveform to features: all signal processing and all normalisation, and nothing of the network."""

import math
import numbers
import reprlib

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import chroma_filter_bank, mel_filter_bank
from transformers.utils import PaddingStrategy

from .descriptors_ser import (
    autocorrelation,
    chroma,
    cosines,
    decibels,
    deltas,
    harmonic_bins,
    lag_filters,
    mean_over_time,
    power_spectrum,
    rms_energy,
    spectral_centroid_and_bandwidth,
    zero_crossing_rate,
)
from .speech_ser import remove_rumble, speech_frames
from .statistics_ser import BANDS_A_GROUP, clip_statistics, statistics_shape

# Bands that hardly move (above a telephone's 4 kHz, say) must not be blown up to unit deviation: they are
# divided by this at least.
MIN_DEVIATION_DB = 1.0
# Trimming at the ends: frames are cut off that are quieter than the loudest by more; in noise, that exceed the quietest tenth
# of the others by less.
TRIM_DB = 30.0
NOISE_QUANTILE, NOISE_MARGIN_DB, MAX_NOISE_DB = 0.1, 6.0, -12.0
NUM_LAGS = 48  # to tell speech by where the features hold none: 14 to the octave
# Of each number, the least and the most. With all of them at their limits a window of sound takes less than a gigabyte.
WHOLE = {
    "feature_size": (1, 2048),
    "num_mel_bins": (1, 512),
    "sampling_rate": (1000, 192_000),
    "n_fft": (16, 16_384),
    "hop_length": (1, 10**7),
    "max_frames": (1, 10**7),
}
LIMITS = {
    **WHOLE,
    "f_min_hz": (0, 96_000),
    "f_max_hz": (0, 96_000),
    "top_db": (1, 1000),
    "padding_value": (-1000, 1000),
}
MAX_FRAMES_A_SECOND, MAX_SCALE = 500, 1e9
LAG_SCALE = 2.0  # autocorrelations then vary about as much as normalised bands do


class SerFeatureExtractor(SequenceFeatureExtractor):
    r"""
    What the network hears of mono waveforms: each clip is freed of rumble, turned into frames of features, of which those
    without speech are dropped, cut at `max_frames`, and normalised.

    The features, by `feature_type`, but for the second each equal to librosa's of the same name (see `descriptors_ser.py`):

    - `"log_mel"`: `feature_size` mel bands in decibels, a band normalised by its Slaney area, zeros around the clip.
    - `"log_mel_pitch"`: `num_mel_bins` such bands, and the autocorrelation at `feature_size` - `num_mel_bins` lags, whose
      peak is the pitch of the voice. It is not normalised, but doubled, which makes it vary about as much as bands do that
      are.
    - `"mfcc"`: the first `feature_size` coefficients of the cosine transform of `num_mel_bins` such bands.
    - `"zcr_rms_mfcc"`: zero-crossing rate, RMS energy, and `feature_size` - 2 MFCC.
    - `"descriptors"`: one frame for the whole clip, the means over time of MFCC, their first and second derivative (the
      same number of each), chroma (12), mel bands in decibels, spectral centroid, spectral bandwidth, zero-crossing rate
      and RMS energy.

    Args:
        feature_type (`str`, defaults to `"log_mel"`): One of the above.
        feature_size (`int`, defaults to 64): Numbers in a frame.
        statistics (`bool`, defaults to `False`): With `"log_mel_pitch"`, also give statistics of the whole clip: how mel bands
            and pitch are distributed over it, move, and go together (see `statistics_ser.py`). Nothing normalises them.
        num_mel_bins (`int`, *optional*): Mel bands; if left out `feature_size` for `"log_mel"`, 64 for `"log_mel_pitch"`,
            otherwise 128.
        sampling_rate (`int`, defaults to 16000): Rate of the waveforms, in hertz.
        n_fft (`int`, defaults to 512): Length of a frame and of its Fourier transform, in samples.
        hop_length (`int`, defaults to 256): Distance between frames, in samples.
        f_min_hz, f_max_hz (`float`): Edges of the mel bands; `f_max_hz` is at most half the sampling rate.
        top_db (`float`, defaults to 80.0): Values further below the clip's loudest are raised to that floor.
        relative_level (`bool`, defaults to `True`): Scale each clip to peak 1 and count decibels from its loudest value,
            so that the recording's level changes nothing. Otherwise the level of the waveform is kept.
        trim (`str`, *optional*, defaults to `"speech"`): Which frames are dropped. `"speech"`: all without speech, wherever
            they are, after the mean and rumble are removed from the waveform (see `speech_ser.py`). `"ends"`: those before the
            first and after the last whose energy comes within 30 dB of the loudest. `None`: none.
        max_frames (`int`, *optional*): What is heard of a longer clip: its first frames. `None` hears all.
        normalize (`str`, *optional*, defaults to `"utterance"`): `"utterance"` gives each feature of each clip mean 0
            and deviation 1; `"dataset"` subtracts `mean` and divides by `std`; `None` leaves features as they are.
        mean, std (`list[float]`, *optional*): For `"dataset"`, of each feature over the training clips' frames.
        padding_value (`float`, defaults to 0.0): What fills a shorter clip of a batch.
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        *,
        feature_type="log_mel",
        feature_size=64,
        statistics=False,
        num_mel_bins=None,
        sampling_rate=16000,
        n_fft=512,
        hop_length=256,
        f_min_hz=50.0,
        f_max_hz=8000.0,
        top_db=80.0,
        relative_level=True,
        trim="speech",
        max_frames=None,
        normalize="utterance",
        mean=None,
        std=None,
        padding_value=0.0,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.feature_type = feature_type
        self.statistics = statistics
        if num_mel_bins is None:
            num_mel_bins = {"log_mel": feature_size, "log_mel_pitch": 64}.get(str(feature_type), 128)
        self.num_mel_bins = num_mel_bins
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.f_min_hz = f_min_hz
        self.f_max_hz = f_max_hz
        self.top_db = top_db
        self.relative_level = relative_level
        self.trim = trim
        self.max_frames = max_frames
        self.normalize = normalize
        self.mean = mean
        self.std = std
        num_rest = self._check_settings()
        self.num_lags, self.num_mfcc = (num_rest, 0) if feature_type == "log_mel_pitch" else (0, num_rest)
        self.num_statistics = statistics_shape(self.num_mel_bins, self.num_lags) if statistics else (0, 0, 0)
        mel_filters = mel_filter_bank(
            num_frequency_bins=n_fft // 2 + 1,
            num_mel_filters=self.num_mel_bins,
            min_frequency=f_min_hz,
            max_frequency=f_max_hz,
            sampling_rate=sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.mel_filters = torch.from_numpy(mel_filters).float()  # (n_fft // 2 + 1, num_mel_bins)
        self.window = torch.hann_window(n_fft)
        # Speech is told by its pitch, whether the features hold it or not.
        num_lags = self.num_lags or (NUM_LAGS if trim == "speech" else 0)
        self.lag_filters = lag_filters(num_lags, n_fft=n_fft, sampling_rate=sampling_rate)

    def _check_settings(self) -> int:
        """How many lags or MFCC the features hold."""
        for name, (least, most) in LIMITS.items():
            value, kind = getattr(self, name), int if name in WHOLE else (int, float)
            if value is None and name == "max_frames":
                continue
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
                number = "a whole number" if kind is int else "a number"
                raise ValueError(f"{name} must be {number} from {least} to {most}, not {reprlib.repr(value)}.")
        for name in ("relative_level", "statistics"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {reprlib.repr(getattr(self, name))}.")
        if self.n_fft % 2:
            raise ValueError(f"n_fft must be even, not {self.n_fft}.")
        if self.hop_length * MAX_FRAMES_A_SECOND < self.sampling_rate:
            raise ValueError(
                f"hop_length must be at least {math.ceil(self.sampling_rate / MAX_FRAMES_A_SECOND)} at "
                f"{self.sampling_rate} Hz, not {self.hop_length}."
            )
        if self.normalize not in ("utterance", "dataset", None):
            raise ValueError(f"normalize must be 'utterance', 'dataset' or None, not {reprlib.repr(self.normalize)}.")
        if self.trim not in ("speech", "ends", None):
            raise ValueError(f"trim must be 'speech', 'ends' or None, not {reprlib.repr(self.trim)}.")
        for name, least in (("mean", -MAX_SCALE), ("std", 1 / MAX_SCALE)):
            values = getattr(self, name)
            if values is not None and not (
                isinstance(values, (list, tuple))
                and len(values) == self.feature_size
                and all(type(value) in (int, float) and least <= value <= MAX_SCALE for value in values)
            ):
                raise ValueError(
                    f"{name} must be {self.feature_size} numbers from {least:g} to {MAX_SCALE:g}, as feature_size says, not "
                    f"{reprlib.repr(values)}."
                )
        if not 0 <= self.f_min_hz < self.f_max_hz <= self.sampling_rate / 2:
            raise ValueError(
                f"Mel bands must lie between 0 and {self.sampling_rate / 2:g} Hz (half the sampling rate), "
                f"not from {self.f_min_hz:g} to {self.f_max_hz:g} Hz."
            )
        mel = self.num_mel_bins
        num_others = {"log_mel": mel, "log_mel_pitch": mel, "mfcc": 0, "zcr_rms_mfcc": 2, "descriptors": 16 + mel}
        if not isinstance(self.feature_type, str) or self.feature_type not in num_others:
            raise ValueError(
                f"feature_type must be one of {', '.join(num_others)}, not {reprlib.repr(self.feature_type)}."
            )
        kinds = 3 if self.feature_type == "descriptors" else 1  # with first and second derivatives
        num_rest, odd = divmod(self.feature_size - num_others[self.feature_type], kinds)
        limits = {"log_mel": (0, 0), "log_mel_pitch": (1, math.inf)}
        least, most = limits.get(self.feature_type, (1, mel))
        if odd or not least <= num_rest <= most:
            raise ValueError(
                f"{self.feature_type} features of {mel} mel bands must not have the size {self.feature_size}."
            )
        harmonics = harmonic_bins(self.n_fft, self.sampling_rate)
        if self.feature_type == "log_mel_pitch" and harmonics.start >= harmonics.stop:
            raise ValueError(f"n_fft must be longer to hear the pitch at {self.sampling_rate} Hz, not {self.n_fft}.")
        if self.statistics and (self.feature_type != "log_mel_pitch" or mel % BANDS_A_GROUP):
            raise ValueError(
                f"statistics must be of log_mel_pitch features with a multiple of {BANDS_A_GROUP} mel bands, not of "
                f"{self.feature_type} features of {mel} mel bands."
            )
        return num_rest

    def to_dict(self):
        """The parameters, without what follows from them."""
        derived = ("mel_filters", "window", "lag_filters", "num_lags", "num_mfcc", "num_statistics")
        return {k: v for k, v in super().to_dict().items() if k not in derived}

    @property
    def max_duration_s(self) -> float:
        """What can be heard of a clip at once, in seconds; infinity without `max_frames`."""
        return math.inf if self.max_frames is None else self.max_frames * self.hop_length / self.sampling_rate

    def __call__(
        self,
        raw_speech,
        *,
        sampling_rate=None,
        padding=True,
        max_length=None,
        truncation=False,
        return_tensors=None,
        **kwargs,
    ) -> BatchFeature:
        """
        Features of one waveform or of a batch.

        Args:
            raw_speech: One mono waveform (`np.ndarray`, `torch.Tensor` or list of float) or a list of them, of shape
                (num_samples,) each, in [-1, 1] by custom.
            sampling_rate (`int`): Rate of `raw_speech` in hertz. Give it: a wrong one is refused.
            padding (`bool` or `str`, defaults to `True`): `True` or `"longest"`: frames up to the longest clip of the batch;
                `"max_length"`: up to as many as `max_length` samples have; `False` or `"do_not_pad"`: none, for lists of
                arrays.
            max_length (`int`, *optional*): Samples of a waveform, for `truncation` and for `padding="max_length"`.
            truncation (`bool`, defaults to `False`): Hear only the first `max_length` samples of each waveform.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; NumPy arrays if left out.

        Returns:
            `BatchFeature` with `input_features` (batch, num_frames, feature_size), float32, and `attention_mask`
            (batch, num_frames), int64, 1 on frames of the clip and 0 on padding. A clip of n samples has
            1 + n // `hop_length` frames before trimming, `max_frames` at most; one for `"descriptors"`. With `statistics`
            also `statistics` (batch, num_rows, num_columns), float32 (see `statistics_ser.clip_statistics`).

        Raises:
            `ValueError`: another sampling rate; more than one channel; an empty, NaN or infinite waveform; `mean` and
                `std` are missing; `truncation` or `padding="max_length"` without a `max_length`.
            `TypeError`: an argument that is not among these.
        """
        if kwargs:
            raise TypeError(
                f"SerFeatureExtractor does not know {', '.join(sorted(kwargs))}: it takes sampling_rate, padding, max_length, "
                "truncation and return_tensors."
            )
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"This model hears audio at {self.sampling_rate} Hz, but this waveform is at {sampling_rate} Hz: "
                f"resample it first, e.g. with librosa.resample(waveform, orig_sr={sampling_rate}, "
                f"target_sr={self.sampling_rate})."
            )
        self._check_scale()
        if max_length is None and (truncation or padding == "max_length"):
            raise ValueError(
                "There is no max_length: give it too, in samples, with truncation=True or padding='max_length'."
            )
        if max_length is not None and (not isinstance(max_length, numbers.Integral) or max_length < 1):
            raise ValueError(f"max_length is {max_length!r}: give a number of samples, 1 or more.")
        strategy = self._get_padding_strategies(padding, max_length)
        waveforms = [torch.as_tensor(waveform) for waveform in _as_list(raw_speech)]
        if truncation:
            waveforms = [waveform[:max_length] if waveform.ndim else waveform for waveform in waveforms]
        data = self._features(waveforms)
        if strategy is PaddingStrategy.DO_NOT_PAD:
            frames = data["attention_mask"] == 1
            for name in self.model_input_names:
                data[name] = [of_clip[mask] for of_clip, mask in zip(data[name], frames)]
        elif strategy is PaddingStrategy.MAX_LENGTH and self.feature_type != "descriptors":
            num_frames = min(1 + max_length // self.hop_length, self.max_frames or math.inf)
            missing = max(0, num_frames - data["attention_mask"].shape[1])
            for name, value in zip(self.model_input_names, (self.padding_value, 0)):
                widths = [(0, 0), (0, missing), (0, 0)][: data[name].ndim]
                data[name] = np.pad(data[name], widths, constant_values=value)
        return BatchFeature(data, tensor_type=return_tensors)

    def _check_scale(self) -> None:
        if self.normalize == "dataset" and (self.mean is None or self.std is None):
            raise ValueError("normalize is 'dataset', but mean and std are missing: training sets them.")

    @torch.inference_mode()  # so many small steps take a tenth less time in it; arrays leave it
    def _features(self, raw_speech: list) -> dict[str, np.ndarray]:
        data = self.describe(*self._spectra([self._prepare(waveform) for waveform in raw_speech]))
        return {name: value.numpy() for name, value in data.items()}

    def _spectra(self, waveforms: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What `describe` takes, of prepared waveforms."""
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)  # (batch, num_samples)
        if self.trim == "speech":
            padded = remove_rumble(padded, num_samples, self.sampling_rate)
        num_frames = 1 + num_samples // self.hop_length
        mask = torch.arange(int(num_frames.max())) < num_frames[:, None]  # (batch, num_frames)
        power = power_spectrum(padded, self.window, self.hop_length)  # (batch, num_frames, n_fft // 2 + 1)
        return power, padded, num_samples, mask

    def _prepare(self, waveform) -> torch.Tensor:
        """One waveform of any accepted kind, checked, scaled to peak 1 if wanted: (num_samples,)."""
        waveform = torch.as_tensor(waveform).detach().to(torch.float32)
        if waveform.ndim != 1:
            raise ValueError(
                f"Expected one mono waveform of shape (num_samples,), got shape {tuple(waveform.shape)}: "
                "average the channels of a stereo recording first; a batch is a list of waveforms."
            )
        if len(waveform) == 0:
            raise ValueError("The waveform is empty: it needs at least one sample.")
        loudness = np.abs(waveform.numpy())  # NumPy takes a third of the time for these
        peak = loudness.max()
        if not np.isfinite(peak):
            raise ValueError("The waveform contains NaN or infinite samples: check how it was decoded.")
        if peak == 0:
            return waveform
        waveform = waveform[self._sounding_span(loudness)]
        return waveform / peak if self.relative_level else waveform

    def _sounding_span(self, loudness: np.ndarray) -> slice:
        """For `trim="ends"`, from the first sample within `top_db` of the peak to the last: silence around it moves no frame."""
        if self.trim != "ends":
            return slice(None)
        is_sound = loudness >= loudness.max() * 10 ** (-self.top_db / 20)
        return slice(int(is_sound.argmax()), len(is_sound) - int(is_sound[::-1].argmax()))

    @torch.inference_mode()
    def frame_times_s(self, waveform) -> np.ndarray:
        """The middle of each frame that `__call__` gives of a waveform, (num_samples,), in seconds since its start: (num_frames,)."""
        loudness = torch.as_tensor(waveform).detach().abs().numpy()
        first = self._sounding_span(loudness).start or 0
        power, *_, mask = self._spectra([self._prepare(waveform)])
        kept = self._bands_and_lags(power, mask)[-1][0].nonzero()[: self.max_frames, 0]
        return ((first + kept * self.hop_length) / self.sampling_rate).numpy()

    def describe(self, power, waveforms, num_samples, mask) -> dict[str, torch.Tensor]:
        """
        What `__call__` returns, from power spectra (batch, num_frames, n_fft // 2 + 1), and their mask, of prepared waveforms
        (batch, num_samples) of `num_samples` (batch,) each.
        """
        mel_power, lags, kept = self._bands_and_lags(power, mask)
        features = self._frame_features(power, mel_power, lags, waveforms, num_samples, kept)
        if self.trim is not None:
            features, mask = _take(features, kept)
        if self.feature_type == "descriptors":
            features, mask = mean_over_time(features, mask)[:, None], mask[:, :1]
        features, mask = features[:, : self.max_frames], mask[:, : self.max_frames]
        of_clip = {}
        if self.statistics:
            bands, lags = features.split([self.num_mel_bins, self.num_lags], -1)
            of_clip["statistics"] = clip_statistics(bands, lags / LAG_SCALE, mask)
        if self.normalize == "utterance":
            num_normalized = features.shape[2] - self.num_lags
            normalized = _normalize_utterances(features[..., :num_normalized], mask)
            features = torch.cat([normalized, features[..., num_normalized:]], -1)
        elif self.normalize == "dataset":
            features = (features - torch.tensor(self.mean)) / torch.tensor(self.std)
        features = features.masked_fill(~mask[..., None], self.padding_value)
        return {"input_features": features, "attention_mask": mask.long(), **of_clip}

    def _bands_and_lags(self, power, mask) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Of spectra: mel bands, autocorrelations (`None` if nothing wants them), and which frames are kept, (batch, num_frames)."""
        mel_power, lags = power @ self.mel_filters, None
        if self.lag_filters.shape[1]:
            lags = autocorrelation(power[..., harmonic_bins(self.n_fft, self.sampling_rate)], self.lag_filters)
        if self.trim == "speech":
            frames = {"sampling_rate": self.sampling_rate, "hop_length": self.hop_length}
            return mel_power, lags, speech_frames(power, lags, mask, **frames)
        return mel_power, lags, self._without_ends(mel_power, mask) if self.trim == "ends" else mask

    def _without_ends(self, mel_power, mask) -> torch.Tensor:
        """
        From the first to the last frame whose energy comes within `TRIM_DB` of the loudest; of these again, from the first to
        the last that stand out of the noise, which is what the quietest tenth of them holds.
        """
        energy = 10 * torch.log10(mel_power.sum(-1).clamp(min=1e-10)).masked_fill(~mask, -math.inf)
        loudest = energy.amax(1, keepdim=True)
        loud = _between(energy >= loudest - TRIM_DB)
        rank = ((loud.sum(1, keepdim=True) - 1) * NOISE_QUANTILE).long()
        noise = energy.masked_fill(~loud, math.inf).sort(1).values.gather(1, rank) + NOISE_MARGIN_DB
        return loud & _between(energy >= noise.minimum(loudest + MAX_NOISE_DB).maximum(loudest - TRIM_DB))

    def _frame_features(self, power, mel_power, lags, waveforms, num_samples, mask) -> torch.Tensor:
        # The window of a last frame reaches past a shorter clip's end into padding, not the other way round, so the
        # frames under the mask are those of the clip alone.
        mel = decibels(mel_power, mask, top_db=self.top_db, relative=self.relative_level)
        if self.feature_type == "log_mel":
            return mel
        if self.feature_type == "log_mel_pitch":
            return torch.cat([mel, LAG_SCALE * lags], -1)
        mfcc = mel @ cosines(self.num_mfcc, self.num_mel_bins).T
        if self.feature_type == "mfcc":
            return mfcc
        frames = {"n_fft": self.n_fft, "hop_length": self.hop_length}
        crossings, energy = zero_crossing_rate(waveforms, num_samples, **frames), rms_energy(waveforms, **frames)
        if self.feature_type == "zcr_rms_mfcc":
            return torch.cat([crossings, energy, mfcc], -1)
        descriptors = [
            mfcc,
            deltas(mfcc, mask, order=1),
            deltas(mfcc, mask, order=2),
            chroma(power, self._chroma_filters()),
            mel,
            *spectral_centroid_and_bandwidth(power, self.sampling_rate),
            crossings,
            energy,
        ]
        return torch.cat(descriptors, -1)

    def _chroma_filters(self) -> torch.Tensor:
        """(n_fft // 2 + 1, 12)"""
        filters = chroma_filter_bank(num_frequency_bins=self.n_fft, num_chroma=12, sampling_rate=self.sampling_rate)
        return torch.from_numpy(filters.T).float()


def _as_list(raw_speech) -> list:
    """One waveform, or a list or tuple of waveforms, as a list of waveforms."""
    if isinstance(raw_speech, (list, tuple)):
        if len(raw_speech) == 0:
            raise ValueError("Got an empty list: give at least one waveform.")
        if not np.isscalar(raw_speech[0]):
            return list(raw_speech)
    return [raw_speech]


def _between(chosen: torch.Tensor) -> torch.Tensor:
    """(batch, num_frames) bool: from the first to the last that is chosen."""
    count = chosen.long().cumsum(1)
    return (count > 0) & (count - chosen.long() < count[:, -1:])


def _take(features: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The frames of each clip that are kept, from frame 0 on, and their mask."""
    num_frames = kept.sum(1, keepdim=True)  # (batch, 1)
    step = torch.arange(kept.shape[1])
    first = torch.where(kept, step, kept.shape[1] - 1).sort(1).values[:, : num_frames.max()]
    clip = torch.arange(features.shape[0])[:, None]
    return features[clip, first], step[: num_frames.max()] < num_frames  # `gather` takes three times as long


def _normalize_utterances(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean 0 and deviation 1 for each band of each clip, over the frames under `mask`."""
    weights = mask[..., None].to(features.dtype)  # (batch, num_frames, 1)
    count = weights.sum(1, keepdim=True)
    mean = (features * weights).sum(1, keepdim=True) / count
    variance = ((features - mean).square() * weights).sum(1, keepdim=True) / count
    return (features - mean) / variance.sqrt().clamp(min=MIN_DEVIATION_DB)
