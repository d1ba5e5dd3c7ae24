"""
Statistics of a whole clip, for a network that looks at how a voice moves rather than at the moves themselves: contours of each
frame (how loud, how bright, how high), how each of them is distributed over the clip and changes in it, and how they go together.

It is the approach of openSMILE's ComParE set (Weninger et al. 2013, doi:10.3389/fpsyg.2013.00292), with contours that follow
from our features. Contours and their masks are (batch, num_contours, num_frames), what describes them (batch, num_contours, n).
"""

import functools
import math

import numpy as np
import torch

from .descriptors_ser import PITCH_HZ, cosines

NUM_CEPSTRA, BANDS_A_GROUP = 14, 4
STEP = 2  # frames
VOICED = 0.3  # autocorrelation from which on a frame counts as voiced
QUANTILES = torch.tensor([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0])
RANGES = torch.eye(8)[:, [4, 6, 3, 4]] - torch.eye(8)[:, [2, 0, 2, 3]]  # from one quantile to another
ROLL_OFFS = torch.tensor([0.25, 0.5, 0.75, 0.9])
HEIGHTS = torch.tensor([0.25, 0.5, 0.75, 0.9])
DISTANCES = (1, 2, 4, 8)  # steps
LOW_AND_HIGH = ((6, 18), (26, 48))  # of 64 bands, those of about 250 to 650 Hz, and of 1 to 4 kHz
MIN_SPREAD = 0.03  # of a spectrum, whose bands lie from -1 to 1: narrower ones would have any shape
EPSILON = 1e-6


def clip_statistics(bands_db: torch.Tensor, autocorrelations: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Args:
        bands_db: (batch, num_frames, num_bands), mel bands in decibels; the clip's level changes nothing.
        autocorrelations: (batch, num_frames, num_lags) in [-1, 1].
        mask: (batch, num_frames) bool; false on padding, which changes nothing.

    Returns:
        (batch, num_rows, num_columns), float32. A column stands for a contour or, in the second half, for how it moves from
        frame to frame. First come rows of one kind of statistic each; then one of how much and how long the voice is heard,
        most of which is 0; then one for each contour, which hold its correlations with all columns.
    """
    mask = mask[:, None]
    contours, voiced = _contours(bands_db, autocorrelations, mask)
    contours = _smooth(contours, mask.to(contours))
    contours, voiced, mask = (x[..., ::STEP] for x in (contours, voiced, mask))
    (before, after), (has_before, has_after) = _neighbours(contours), _neighbours(mask)
    moves = (after - before) * (has_before & has_after)
    kinds, correlations = _describe(torch.cat([contours, moves], 1), mask)
    voicing = _voicing(voiced, mask)[:, None]
    voicing = torch.nn.functional.pad(voicing, (0, kinds.shape[2] - voicing.shape[2]))
    return torch.cat([kinds, voicing, correlations], 1)


def statistics_shape(num_bands: int, num_lags: int) -> tuple[int, int, int]:
    """How many rows of kinds of statistics and of correlations `clip_statistics` gives, and how many columns."""
    bands, lags = torch.zeros(1, 4, num_bands), torch.zeros(1, 4, num_lags)
    _, num_rows, num_columns = clip_statistics(bands, lags, torch.ones(1, 4, dtype=torch.bool)).shape
    return num_rows - num_columns // 2, num_columns // 2, num_columns


def _contours(bands_db, autocorrelations, mask) -> tuple[torch.Tensor, torch.Tensor]:
    """The contours, and which frames are voiced."""
    num_bands = bands_db.shape[2]
    loudness = bands_db.mean(2, keepdim=True)  # (batch, num_frames, 1)
    level = ((loudness.transpose(1, 2) * mask).sum(2) / mask.sum(2))[..., None]
    loudness, bands_db = loudness - level, bands_db - level
    power = (bands_db * (math.log(10) / 10)).exp()
    of_power, of_bands = _weights(num_bands)
    sums = power @ of_power
    total = sums[..., :1]
    levels = 10 * sums[..., :3].log10()
    shares = sums[..., 3:] / total  # of a distribution over bands
    first, second, third, fourth = shares[..., :4].split(1, 2)  # moments about the middle
    square = first.square()
    spread = (second - square + MIN_SPREAD**2).sqrt()
    third_about_mean = third - first * (3 * second - 2 * square)
    fourth_about_mean = fourth - first * (4 * third - first * (6 * second - 3 * square))
    flux = torch.nn.functional.pad((bands_db[:, 1:] - bands_db[:, :-1]).abs().mean(2, keepdim=True), (0, 0, 1, 0))
    voicing, lag = autocorrelations.max(2, keepdim=True)
    voiced = (voicing > VOICED) & mask.transpose(1, 2)
    certain = voicing.clamp(0.01, 0.99)
    alike = autocorrelations.mean(2, keepdim=True)
    contours = [
        bands_db @ of_bands,  # bands in groups, cepstra, and the spectrum's slope
        first,
        spread,
        third_about_mean / spread**3,
        (fourth_about_mean / spread**4).clamp(min=EPSILON).log(),
        total.log() - (power * bands_db).sum(2, keepdim=True) / total * (math.log(10) / 10),  # entropy
        _roll_offs(shares[..., 4:]),
        loudness - levels[..., :1],  # flatness
        flux,
        levels,
        levels[..., 2:] - levels[..., 1:2],
        voicing,
        (certain / (1 - certain)).log(),  # harmonics to noise
        alike,
        ((autocorrelations - alike).square().mean(2, keepdim=True) + EPSILON).sqrt(),
        _held(lag, voiced) * math.log2(PITCH_HZ[1] / PITCH_HZ[0]) / autocorrelations.shape[2],  # pitch, in octaves
    ]
    return torch.cat(contours, 2).transpose(1, 2).contiguous(), voiced.transpose(1, 2)


def _held(values, voiced):
    """(batch, num_frames, 1), but where no voice is those of the last frame with one, or of the first."""
    count = voiced.transpose(1, 2).long().cumsum(2)  # (batch, 1, num_frames)
    held = _count_below(count, count.clamp(min=1)).transpose(1, 2)  # the first frame to have that count
    return values.gather(1, held * voiced.any(1, keepdim=True))


@functools.cache
def _weights(num_bands: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Of the sums over bands that contours are made of: of power (num_bands, 7 + num_bands), in all, low and high, by powers of a
    band's position, and up to each band; and of decibels (num_bands, n).
    """
    position = torch.linspace(-1, 1, num_bands)[:, None]
    parts = torch.zeros(num_bands, 3)
    parts[:, 0] = 1
    for column, (start, end) in enumerate(LOW_AND_HIGH, 1):
        parts[num_bands * start // 64 : num_bands * end // 64, column] = 1
    of_power = [parts, position ** torch.arange(1, 5), torch.ones(num_bands, num_bands).triu()]
    groups = torch.eye(num_bands // BANDS_A_GROUP).repeat_interleave(BANDS_A_GROUP, 0) / BANDS_A_GROUP
    of_bands = [groups, cosines(NUM_CEPSTRA, num_bands).T, position / num_bands]
    return torch.cat(of_power, 1), torch.cat(of_bands, 1)


def _roll_offs(shares_below: torch.Tensor) -> torch.Tensor:
    """Which part of the bands holds less than each part of the power: (batch, num_frames, num_bands) -> (…, roll-offs)."""
    return _count_below(shares_below, ROLL_OFFS.expand(*shares_below.shape[:2], -1)) / shares_below.shape[2]


def _neighbours(values):
    """Of each frame the one before and the one after, 0 where there is none."""
    around = torch.nn.functional.pad(values, (1, 1))
    return around[..., :-2], around[..., 2:]


def _smooth(contours, inside):
    """The mean of three frames, of those under the mask."""

    def three(values):
        before, after = _neighbours(values)
        return values + before + after

    return three(contours * inside) * (inside / three(inside).clamp(min=1))


def _describe(values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    How values (batch, num_columns, num_frames) are distributed and how they go up and down in time, under the mask, (batch,
    n, num_columns); and how those of the first half are correlated with all, (batch, num_columns // 2, num_columns).
    """
    inside, num_frames = mask.float(), _sum(mask)
    line, parabola = _curves(inside, num_frames)
    sums = values @ torch.cat([inside, line, parabola], 1).transpose(1, 2)  # (batch, num_contours, 3)
    total, along_line, along_parabola = sums.split(1, 2)

    # How they are distributed
    mean = total / num_frames
    away = (values - mean) * inside
    square = away.square()
    sum_of_squares = _sum(square)
    variance = sum_of_squares / num_frames + EPSILON
    deviation = variance.sqrt()
    skewness = _sum(square * away) / num_frames / (variance * deviation)
    kurtosis = _sum(square.square()) / num_frames / variance.square()
    ordered = _in_order(values.masked_fill(~mask, math.inf))
    last = num_frames - 1
    rank = QUANTILES * last
    below = rank.floor()
    below_and_above = torch.cat([below, rank.ceil()], 2).long().expand(-1, values.shape[1], -1)
    quantiles = torch.lerp(*ordered.gather(2, below_and_above).chunk(2, 2), rank - below)
    lowest, highest = ordered[..., :1], quantiles[..., -1:]
    parts = [mean, deviation, deviation.log(), skewness, (kurtosis + EPSILON).log()]
    parts += [quantiles[..., :-1], quantiles @ RANGES]

    # The line and the parabola through them, and what these leave
    lines, parabolas = _sum(line.square()), _sum(parabola.square())
    slope, curvature = along_line / (lines + EPSILON), along_parabola / (parabolas + EPSILON)
    straight = sum_of_squares - slope.square() * lines
    bent = straight - curvature.square() * parabolas
    parts += [slope, curvature]
    parts += [(rest.clamp(min=0) / num_frames + EPSILON).sqrt() for rest in (straight, bent)]

    # From one frame to the next
    both = inside[..., 1:]  # as padding comes last
    num_steps = last.clamp(min=1)
    step = (values[..., 1:] - values[..., :-1]) * both
    up, way = _sum(step.clamp(min=0)) / num_steps, _sum(step.abs()) / num_steps
    parts += [_sum(step > 0) / num_steps, up, way - up, way / deviation]
    parts += [(_sum(step.square()) / num_steps + EPSILON).sqrt()]
    products = [away[..., distance:] * away[..., :-distance] for distance in DISTANCES]
    covariances = torch.cat([_sum(product) for product in products], 2)
    alike = covariances / ((num_frames - torch.tensor(DISTANCES)).clamp(min=1) * variance)
    crossings = _sum(products[0] < 0) / num_steps
    parts += [alike[..., :1], crossings, alike[..., 1:]]

    # Where they are high, and their peaks
    thresholds = lowest + HEIGHTS * (highest - lowest)
    parts.append(1 - _count_below(ordered, thresholds, or_equal=True) / num_frames)
    padding = torch.zeros_like(inside).masked_fill(~mask, math.inf)
    places = (values - padding).argmax(2, keepdim=True), (values + padding).argmin(2, keepdim=True)
    parts += [place / num_frames for place in places]
    parts.append(along_line / ((mean - lowest) * num_frames + EPSILON))  # the middle of what is above the lowest
    peak = (step[..., 1:] < 0) & (step[..., :-1] >= 0)
    num_peaks = _sum(peak)
    parts += [num_peaks / num_frames, _sum(away[..., 1:-1] * peak) / num_peaks.clamp(min=1)]

    standardised = away / (deviation * num_frames.sqrt())
    correlations = standardised[:, : values.shape[1] // 2] @ standardised.transpose(1, 2)
    return torch.cat(parts, 2).transpose(1, 2), correlations


def _in_order(values):
    """From low to high in time. NumPy takes a tenth of torch's time, but cannot be exported."""
    if torch.onnx.is_in_onnx_export():
        return values.sort(2).values
    return torch.from_numpy(np.sort(values.numpy(), axis=2))


def _sum(values):
    return values.sum(2, keepdim=True, dtype=torch.float32)


def _count_below(ordered, thresholds, *, or_equal=False):
    """How many of (batch, n, m), in order, are below (or equal to) each of (batch, n, k): (batch, n, k)."""
    if not torch.onnx.is_in_onnx_export():
        return torch.searchsorted(ordered.contiguous(), thresholds.contiguous(), right=or_equal)
    values, limits = ordered[:, :, None], thresholds[..., None]  # ONNX cannot search
    return (values <= limits if or_equal else values < limits).sum(3)


def _curves(inside, num_frames) -> tuple[torch.Tensor, torch.Tensor]:
    """A line from -1 to 1 over the frames of each clip, and a parabola, less its mean; 0 on padding."""
    line = (2 * torch.arange(inside.shape[2]) / (num_frames - 1).clamp(min=1) - 1) * inside
    line = line - _sum(line) / num_frames * inside  # of a single frame
    parabola = line.square()
    return line, parabola - _sum(parabola) / num_frames * inside


def _voicing(voiced, mask):
    """Part of the frames, stretches a frame, frames a stretch, and the logarithm of the frames, (batch, 4)."""
    starts = voiced & ~_neighbours(voiced)[0]
    num_frames, num_voiced, num_starts = (_sum(x)[..., 0] for x in (mask, voiced, starts))
    parts = [num_voiced / num_frames, num_starts / num_frames, num_voiced / num_starts.clamp(min=1)]
    return torch.cat([*parts, num_frames.log()], 1)
