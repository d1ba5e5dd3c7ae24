"""
Statistics of a whole clip, for a network that looks at how a voice moves rather than at the moves themselves: contours of each
frame (how loud, how bright, how high), and how each of them is distributed over the clip and changes in it.

It is the approach of openSMILE's ComParE set (Weninger et al. 2013, doi:10.3389/fpsyg.2013.00292), with contours that follow
from our features. Contours are (batch, num_contours, num_frames), masks (batch, 1, num_frames) bool.
"""

import math

import torch

from .descriptors_ser import PITCH_HZ, cosines

NUM_CEPSTRA, BANDS_A_GROUP = 14, 4
VOICED = 0.3  # autocorrelation from which on a frame counts as voiced
MIN_VOICED_FRAMES = 5  # with fewer, the whole clip counts
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
ROLL_OFFS = (0.25, 0.5, 0.75, 0.9)
HEIGHTS = (0.25, 0.5, 0.75, 0.9)
DISTANCES = (1, 2, 4, 8)  # frames
EPSILON = 1e-6


def clip_statistics(bands_db: torch.Tensor, autocorrelations: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Args:
        bands_db: (batch, num_frames, num_bands), mel bands in decibels; the clip's level changes nothing.
        autocorrelations: (batch, num_frames, num_lags) in [-1, 1].
        mask: (batch, num_frames) bool; false on padding, which changes nothing.

    Returns:
        (batch, `num_statistics`), float32.
    """
    mask = mask[:, None]
    bands_db = bands_db.mT - _mean(bands_db.mT.mean(1, keepdim=True), mask)
    contours, pitch, voicing = _contours(bands_db, autocorrelations.mT, mask)
    contours = _smooth(contours, mask)
    voiced = (voicing > VOICED) & mask
    described = torch.where(voiced.sum(2, keepdim=True) < MIN_VOICED_FRAMES, mask, voiced)
    moves = torch.zeros_like(contours)
    moves[..., 1:-1] = (contours[..., 2:] - contours[..., :-2]) * (mask[..., 2:] & mask[..., :-2])
    everything = torch.cat([contours, moves], 1)
    parts = [
        *_distribution(everything, mask),
        *_course(everything, mask),
        *_distribution(contours, described),
        *_distribution(pitch, described),
        *_course(pitch, described),
        _voicing(voiced, mask),
    ]
    return torch.cat([part.flatten(1) for part in parts], 1)


def num_statistics(*, num_bands: int, num_lags: int) -> int:
    """How many `clip_statistics` gives."""
    bands, lags = torch.zeros(1, 4, num_bands), torch.zeros(1, 4, num_lags)
    return clip_statistics(bands, lags, torch.ones(1, 4, dtype=torch.bool)).shape[1]


def _contours(bands_db, autocorrelations, mask):
    num_bands = bands_db.shape[1]
    power = torch.pow(10.0, bands_db / 10)
    total = power.sum(1, keepdim=True)
    share = power / total  # (batch, num_bands, num_frames): a distribution over bands
    position = torch.linspace(-1, 1, num_bands, device=power.device)[:, None]
    centre = (share * position).sum(1, keepdim=True)
    away = position - centre
    spread = ((share * away.square()).sum(1, keepdim=True) + EPSILON).sqrt()
    share_below = share.cumsum(1)
    level = 10 * total.log10()
    change = torch.zeros_like(bands_db)
    change[..., 1:] = (bands_db[..., 1:] - bands_db[..., :-1]) * (mask[..., 1:] & mask[..., :-1])
    low, high = (10 * power[:, part].sum(1, keepdim=True).log10() for part in _low_and_high(num_bands))
    voicing, pitch = autocorrelations.max(1, keepdim=True)
    octaves = math.log2(PITCH_HZ[1] / PITCH_HZ[0]) / autocorrelations.shape[1]  # from one lag to the next
    certain = voicing.clamp(0.01, 0.99)
    contours = [
        bands_db.unflatten(1, (-1, BANDS_A_GROUP)).mean(2),
        cosines(NUM_CEPSTRA, num_bands).to(bands_db) @ bands_db,
        centre,
        spread,
        (share * away**3).sum(1, keepdim=True) / spread**3,
        ((share * away**4).sum(1, keepdim=True) / spread**4).log(),
        -(share * (share + 1e-10).log()).sum(1, keepdim=True),  # entropy
        *((share_below < part).float().mean(1, keepdim=True) for part in ROLL_OFFS),
        bands_db.mean(1, keepdim=True) - level,  # flatness
        (bands_db * position).mean(1, keepdim=True),  # slope
        change.abs().mean(1, keepdim=True),  # flux
        level,
        low,
        high,
        high - low,
        voicing,
        (certain / (1 - certain)).log(),  # harmonics to noise
        autocorrelations.mean(1, keepdim=True),
        autocorrelations.std(1, keepdim=True),
    ]
    return torch.cat(contours, 1), pitch * octaves, voicing


def _low_and_high(num_bands: int) -> tuple[slice, slice]:
    """Of 64 bands, those of about 250 to 650 Hz, and of 1 to 4 kHz."""
    return slice(num_bands * 6 // 64, num_bands * 18 // 64), slice(num_bands * 26 // 64, num_bands * 48 // 64)


def _mean(values, mask):
    """Over the frames under the mask, 0 if there are none: (batch, contours, 1)."""
    return (values * mask).sum(2, keepdim=True) / mask.sum(2, keepdim=True).clamp(min=1)


def _smooth(contours, mask):
    """The mean of three frames."""
    pool = torch.nn.functional.avg_pool1d
    return pool(contours * mask, 3, 1, 1) / pool(mask.to(contours), 3, 1, 1).clamp(min=EPSILON) * mask


def _distribution(values, mask) -> list[torch.Tensor]:
    """Moments and quantiles."""
    mean = _mean(values, mask)
    deviation = (_mean((values - mean).square(), mask) + EPSILON).sqrt()
    standard = (values - mean) / deviation
    rank = torch.tensor(QUANTILES, device=values.device) * (mask.sum(2, keepdim=True) - 1)  # (batch, 1, quantiles)
    ordered = values.masked_fill(~mask, math.inf).sort(2).values
    below, above = (
        ordered.gather(2, r.long().clamp(min=0).expand(-1, values.shape[1], -1)) for r in (rank.floor(), rank.ceil())
    )
    quantiles = torch.lerp(below, above, (rank - rank.floor()).to(values))
    ranges = quantiles[..., [4, 6, 3, 4]] - quantiles[..., [2, 0, 2, 3]]
    shape = [_mean(standard**3, mask), (_mean(standard**4, mask) + EPSILON).log()]
    return [mean, deviation, deviation.log(), *shape, quantiles, ranges]


def _course(values, mask) -> list[torch.Tensor]:
    """How values go up and down in time."""
    num_frames = mask.sum(2, keepdim=True).clamp(min=1)
    frame = torch.arange(values.shape[2], device=values.device)
    first, last = mask.long().argmax(2, keepdim=True), (mask * frame).amax(2, keepdim=True)
    time = (2 * (frame - first) / (last - first).clamp(min=1) - 1) * mask  # from -1 to 1
    mean = _mean(values, mask)
    away = (values - mean) * mask
    deviation = (_mean(away.square(), mask) + EPSILON).sqrt()
    time = (time - _mean(time, mask)) * mask
    slope = _mean(away * time, mask) / (_mean(time.square(), mask) + EPSILON)
    bend = (time.square() - _mean(time.square(), mask)) * mask
    curvature = _mean(away * bend, mask) / (_mean(bend.square(), mask) + EPSILON)
    straight = away - slope * time
    errors = [(_mean(rest.square(), mask) + EPSILON).sqrt() for rest in (straight, straight - curvature * bend)]
    lowest, first_lowest = values.masked_fill(~mask, math.inf).min(2, keepdim=True)
    highest, first_highest = values.masked_fill(~mask, -math.inf).max(2, keepdim=True)
    heights = [_mean((values > lowest + part * (highest - lowest)).to(values), mask) for part in HEIGHTS]
    positions = [((extreme - first) / num_frames).to(values) for extreme in (first_highest, first_lowest)]
    both = mask[..., 1:] & mask[..., :-1]
    step = values[..., 1:] - values[..., :-1]
    steps = [
        _mean((step > 0).to(values), both),
        _mean(step.clamp(min=0), both),
        _mean(-step.clamp(max=0), both),
        (_mean(step.square(), both) + EPSILON).sqrt(),
        _mean(step.abs(), both) / deviation,
        _mean(((away[..., 1:] > 0) != (away[..., :-1] > 0)).to(values), both),
    ]
    alike = [
        _mean(away[..., d:] * away[..., :-d], mask[..., d:] & mask[..., :-d]) / deviation.square() for d in DISTANCES
    ]
    weight = (values - lowest) * mask
    centre = (weight * time).sum(2, keepdim=True) / (weight.sum(2, keepdim=True) + EPSILON)
    inner = mask[..., 1:-1] & both[..., 1:] & both[..., :-1]
    peak = (values[..., 1:-1] > values[..., 2:]) & (values[..., 1:-1] >= values[..., :-2]) & inner
    num_peaks = peak.sum(2, keepdim=True)
    height = (away[..., 1:-1] * peak).sum(2, keepdim=True) / num_peaks.clamp(min=1)
    return [slope, curvature, *errors, *heights, *positions, *steps, *alike, centre, num_peaks / num_frames, height]


def _voicing(voiced, mask):
    """Part of the frames, stretches a frame, frames a stretch, and the logarithm of the frames, (batch, 4)."""
    num_frames, num_voiced = mask.sum(2), voiced.sum(2)
    starts = voiced.clone()
    starts[..., 1:] &= ~voiced[..., :-1]
    num_starts = starts.sum(2)
    parts = [num_voiced / num_frames, num_starts / num_frames, num_voiced / num_starts.clamp(min=1)]
    return torch.cat([*parts, num_frames.float().log()], 1)
