"""
Which frames of a clip hold speech. A frame counts if it is loud, stays loud for longer than a click does, and lies near a voice;
pauses, clicks, knocks and rumble do not. Voice is told by the autocorrelation that the features hold anyway, so the rule costs next
to nothing, needs no other network, and is the same in training, in a window, in a stream and in an exported graph.

Spectra are (batch, num_frames, n_fft // 2 + 1), masks (batch, num_frames) bool, false on padding, which changes nothing.
"""

import math

import torch
import torch.nn.functional as F

CUTOFF_HZ = 65.0  # below any voice, above rumble
CUTOFF_WIDTH_S = 0.04  # half the length of the filter, by which it rises from nothing to all within some 50 Hz
BLOCK_SIZE = 64  # samples; what lies below the cutoff is known from one value a block
SPEECH_HZ = (200.0, 4000.0)  # where speech stands out of noise most
RANGE_DB = 30.0  # quieter than the loudest by more is no speech
NOISE_QUANTILE, NOISE_MARGIN_DB, MAX_NOISE_DB = 0.1, 6.0, -20.0  # neither is what exceeds the quietest frames by less
SUSTAINED_S = 0.08  # what is loud for less is a click
NEAR_S = 0.32  # what is further from a voice is a knock
GAP_S = 0.112  # a shorter gap belongs to a word
EDGE_S = 0.016  # smoothed by so much to either side, and kept around
VOICED = 0.3  # autocorrelation from which on there is a voice


def remove_rumble(waveforms: torch.Tensor, num_samples: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """
    Each of (batch, num_samples) without its mean and without what lies below the voice, zeros after its own `num_samples`
    (batch,). It is a linear-phase high-pass: a windowed sinc finds what is low once a block, and again fills in between.
    """
    inside = torch.arange(waveforms.shape[1]) < num_samples[:, None]
    waveforms = (waveforms - waveforms.sum(1, keepdim=True) / num_samples[:, None]) * inside
    around = round(CUTOFF_WIDTH_S * sampling_rate / BLOCK_SIZE)  # blocks
    time = torch.arange(BLOCK_SIZE)[:, None] - (BLOCK_SIZE - 1) / 2 + BLOCK_SIZE * torch.arange(-around, around + 1)
    width = BLOCK_SIZE * (2 * around + 1)
    low_pass = torch.sinc(2 * CUTOFF_HZ / sampling_rate * time) * torch.cos(math.pi / width * time).square()
    low_pass = low_pass / low_pass.sum()  # (BLOCK_SIZE, num_blocks)
    blocks = F.pad(waveforms, (0, -waveforms.shape[1] % BLOCK_SIZE)).unflatten(1, (-1, BLOCK_SIZE)).transpose(1, 2)
    low = F.conv1d(
        blocks, low_pass[None], padding=2 * around
    )  # (batch, 1, num_blocks + 2 x around), the middle of each
    low = F.conv1d(low, BLOCK_SIZE * low_pass.flip(1)[:, None])  # (batch, BLOCK_SIZE, num_blocks)
    return (waveforms - low.transpose(1, 2).flatten(1)[:, : waveforms.shape[1]]) * inside


def speech_frames(
    power: torch.Tensor, autocorrelations: torch.Tensor, mask: torch.Tensor, *, sampling_rate: int, hop_length: int
) -> torch.Tensor:
    """
    Args:
        power: Spectra without rumble. autocorrelations: (batch, num_frames, num_lags) in [-1, 1], as of `autocorrelation`.

    Returns:
        (batch, num_frames) bool, true on at least one frame of each clip: of a clip without a voice on the loud ones, of one
        too short to tell on all.
    """

    def frames(duration_s: float) -> int:
        return round(duration_s * sampling_rate / hop_length)

    num_bins = power.shape[2]
    low, high = (math.ceil(hz * 2 * (num_bins - 1) / sampling_rate) for hz in SPEECH_HZ)
    edge = frames(EDGE_S)
    energy = _smooth(power[..., low : high + 1].sum(2) * mask, edge)
    energy = 10 * torch.log10(energy.clamp(min=1e-12)).masked_fill(~mask, -math.inf)
    sustained = frames(SUSTAINED_S)
    loudest = _least(energy, sustained // 2, sustained // 2, outside=-math.inf).amax(1, keepdim=True)
    rank = ((mask.sum(1, keepdim=True) - 1) * NOISE_QUANTILE).long()
    noise = energy.masked_fill(~mask, math.inf).sort(1).values.gather(1, rank) + NOISE_MARGIN_DB
    loud = energy >= noise.minimum(loudest + MAX_NOISE_DB).maximum(loudest - RANGE_DB)
    loud = _dilate(_erode(loud & mask, 0, sustained - 1), sustained - 1, 0)  # nothing shorter than `SUSTAINED_S`
    voicing = _smooth(autocorrelations.amax(2) * mask, edge)
    speech = loud & _dilate((voicing > VOICED) & loud, frames(NEAR_S), frames(NEAR_S))
    speech = _close(speech, frames(GAP_S))
    speech = _dilate(speech, edge, edge) & mask
    speech = speech | (loud & ~speech.any(1, keepdim=True))
    return speech | (mask & ~speech.any(1, keepdim=True))


def _smooth(values, around: int):
    """The mean of each frame and of `around` frames on either side; there is nothing before the first and after the last."""
    return F.avg_pool1d(values[:, None], 2 * around + 1, 1, around)[:, 0]


def _greatest(values, before: int, after: int, *, outside: float):
    """Of each frame, the `before` frames before and the `after` frames after it; beyond the clip all are `outside`."""
    return F.max_pool1d(F.pad(values[:, None], (before, after), value=outside), before + after + 1, 1)[:, 0]


def _least(values, before: int, after: int, *, outside: float):
    return -_greatest(-values, before, after, outside=-outside)


def _dilate(chosen, before: int, after: int):
    """Frames with a chosen one among the `before` frames before them, themselves and the `after` frames after them."""
    return _greatest(chosen.float(), before, after, outside=0.0) > 0


def _erode(chosen, before: int, after: int):
    """Frames with none but chosen ones there."""
    return _least(chosen.float(), before, after, outside=0.0) > 0


def _close(chosen, longest: int):
    """Gaps of at most `longest` frames between chosen ones are chosen, too."""
    around = F.pad(chosen, (longest, longest))
    return _erode(_dilate(around, 0, longest), longest, 0)[:, longest:-longest]
