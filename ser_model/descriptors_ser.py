"""
Frame by frame descriptions of batches of waveforms; those whose docstrings name a function of librosa 0.11 equal it.

Waveforms are (batch, num_samples) with zeros after the shorter ones, spectra (batch, num_frames, n_fft // 2 + 1), masks
(batch, num_frames), 1 on the frames of a clip. Frames are centred on multiples of `hop_length`.
"""

import math

import torch

DELTA_WIDTH = 9  # frames, librosa's default
PITCH_HZ = (60.0, 660.0)  # from a low man's voice to a scream
HARMONICS_HZ = (50.0, 3400.0)  # what a telephone lets through, and most of what noise leaves


def power_spectrum(waveforms: torch.Tensor, window: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Squared magnitudes, with zeros before and after the waveform (`librosa.stft`)."""
    spectrum = torch.stft(
        waveforms, len(window), hop_length, window=window, center=True, pad_mode="constant", return_complex=True
    )
    real, imaginary = torch.view_as_real(spectrum).square().unbind(-1)  # squared together, as they lie in memory
    return (real + imaginary).transpose(1, 2)


def decibels(power: torch.Tensor, mask: torch.Tensor, *, top_db: float, relative: bool) -> torch.Tensor:
    """
    `librosa.power_to_db` of each clip of (batch, num_frames, bands), with `ref=np.max` if `relative` and 1 otherwise:
    values more than `top_db` below the clip's loudest are raised to that floor.
    """
    values = 10 * torch.log10(power.clamp(min=1e-10))
    loudest = values.masked_fill(~mask[..., None], -math.inf).amax((1, 2), keepdim=True)
    values = torch.maximum(values, loudest - top_db)
    return values - loudest if relative else values


def cosines(num_cepstra: int, num_bands: int) -> torch.Tensor:
    """The cosine transform's matrix, (num_cepstra, num_bands), equal to `scipy.fft.dct(type=2, norm="ortho")`."""
    order = torch.arange(num_cepstra)[:, None]
    band = torch.arange(num_bands) + 0.5
    matrix = torch.cos(math.pi / num_bands * order * band) * math.sqrt(2 / num_bands)
    matrix[0] /= math.sqrt(2)
    return matrix


def autocorrelation(power: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """
    How alike each frame is to itself a lag later, (batch, num_frames, num_lags) in [-1, 1].

    It is the generalised autocorrelation of Tolonen and Karjalainen (2000), the cosine transform of magnitudes to the power
    of 2/3 instead of 2, in which weak harmonics count as well.

    Args:
        power: (batch, num_frames, num_bins), the spectrum at `harmonic_bins`.
        filters: (num_bins, num_lags), of `lag_filters`.
    """
    magnitudes = power.clamp(min=1e-10).log_().mul_(1 / 3).exp_()  # quicker than `pow`
    return magnitudes @ filters / magnitudes.sum(-1, keepdim=True)


def harmonic_bins(n_fft: int, sampling_rate: int) -> slice:
    """Of a spectrum of n_fft // 2 + 1 frequencies, those within `HARMONICS_HZ`."""
    low_hz, high_hz = HARMONICS_HZ
    return slice(math.ceil(low_hz * n_fft / sampling_rate), math.floor(high_hz * n_fft / sampling_rate) + 1)


def lag_filters(num_lags: int, *, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """
    The cosines for `autocorrelation`, (num_bins, num_lags): lags of one period of each pitch in `PITCH_HZ`, from the lowest
    on, evenly spaced in semitones.
    """
    lowest, highest = PITCH_HZ
    pitch = lowest * (highest / lowest) ** torch.linspace(0, 1, num_lags)
    frequency = torch.arange(n_fft // 2 + 1)[harmonic_bins(n_fft, sampling_rate)] * sampling_rate / n_fft
    return torch.cos(2 * math.pi * frequency[:, None] / pitch)


def deltas(features: torch.Tensor, mask: torch.Tensor, *, order: int) -> torch.Tensor:
    """
    The first (`order` 1) or second (2) derivative over time, by a polynomial of that order fitted to `DELTA_WIDTH` frames
    (`librosa.feature.delta`); a clip of fewer frames is continued with its first and last.
    """
    half = DELTA_WIDTH // 2
    kernel = _derivative_kernel(order).to(features)
    num_frames = mask.sum(1, keepdim=True)  # (batch, 1)
    around = torch.arange(-half, features.shape[1] + half)
    around = around.clamp(min=0).minimum(num_frames - 1)  # (batch, num_frames + 2 x half)
    continued = _take_frames(features, around)
    derivative = continued.unfold(1, DELTA_WIDTH, 1) @ kernel  # (batch, num_frames, size)
    # Near the ends librosa keeps the polynomial of the outermost whole stretch, whose derivative is constant.
    inner = torch.arange(features.shape[1]).maximum(torch.tensor(half)).minimum(num_frames - 1 - half)
    return torch.where((num_frames >= DELTA_WIDTH)[..., None], _take_frames(derivative, inner), derivative)


def _derivative_kernel(order: int) -> torch.Tensor:
    """Savitzky and Golay's weights for the derivative `order` of a polynomial of degree `order`, (DELTA_WIDTH,)."""
    t = torch.arange(DELTA_WIDTH, dtype=torch.float64) - DELTA_WIDTH // 2
    powers = t[:, None] ** torch.arange(order + 1)
    return torch.linalg.pinv(powers)[order] * math.factorial(order)


def _take_frames(features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Frame `frames[b, t]` of clip b, for (batch, num_frames, size) and (batch, t)."""
    return features.gather(1, frames.clamp(min=0)[..., None].expand(-1, -1, features.shape[2]))


def zero_crossing_rate(waveforms: torch.Tensor, num_samples: torch.Tensor, *, n_fft: int, hop_length: int):
    """Changes of sign over samples of each frame, (batch, num_frames, 1) in [0, 1] (`feature.zero_crossing_rate`)."""
    negative = waveforms < -1e-10  # librosa takes what is smaller for zero, and zero for positive
    crossings = negative[:, 1:] != negative[:, :-1]
    crossings &= torch.arange(1, waveforms.shape[1]) < num_samples[:, None]  # a clip's end is no crossing
    # Crossings are between samples: a frame of n_fft samples has n_fft - 1 places for them.
    counts = torch.nn.functional.pad(crossings.float(), (n_fft // 2, n_fft // 2))
    return counts.unfold(1, n_fft - 1, hop_length).sum(2)[..., None] / n_fft


def rms_energy(waveforms: torch.Tensor, *, n_fft: int, hop_length: int) -> torch.Tensor:
    """Root mean square of each frame's samples, (batch, num_frames, 1) (`librosa.feature.rms`)."""
    squares = torch.nn.functional.pad(waveforms.square(), (n_fft // 2, n_fft // 2))
    return torch.nn.functional.avg_pool1d(squares[:, None], n_fft, hop_length).sqrt().transpose(1, 2)


def chroma(power: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """
    Power of the twelve pitch classes over the strongest of them, (batch, num_frames, 12) in [0, 1]
    (`librosa.feature.chroma_stft` with `tuning=0`: a voice keeps to no concert pitch).
    """
    classes = power @ filters
    strongest = classes.amax(2, keepdim=True)
    return torch.where(strongest > torch.finfo(power.dtype).tiny, classes / strongest, classes)


def spectral_centroid_and_bandwidth(power: torch.Tensor, sampling_rate: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean frequency and its deviation in hertz, weighted by magnitude, (batch, num_frames, 1) each
    (`librosa.feature.spectral_centroid`, `spectral_bandwidth`); 0 for a silent frame.
    """
    magnitude = power.sqrt()
    share = magnitude / magnitude.sum(2, keepdim=True).clamp(min=torch.finfo(power.dtype).tiny)
    frequency = torch.linspace(0, sampling_rate / 2, power.shape[2])
    centroid = (share * frequency).sum(2, keepdim=True)
    bandwidth = (share * (frequency - centroid).square()).sum(2, keepdim=True).sqrt()
    return centroid, bandwidth


def mean_over_time(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(batch, num_frames, size) -> (batch, size), over each clip's own frames."""
    weights = mask[..., None].to(features.dtype)
    return (features * weights).sum(1) / weights.sum(1)
