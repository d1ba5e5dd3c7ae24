import numpy as np
import pytest
import scipy.stats
import torch

from ser_model import SerFeatureExtractor
from ser_model.statistics_ser import HEIGHTS, QUANTILES, RANGES, _describe, clip_statistics, statistics_shape
from tests.conftest import make_voice

SETTINGS = {"feature_type": "log_mel_pitch", "feature_size": 112, "n_fft": 768, "statistics": True}


def statistics(waveform):
    return SerFeatureExtractor(**SETTINGS)(waveform, sampling_rate=16000)["statistics"]


def test_as_many_for_a_clip_of_any_length():
    num_kinds, num_contours, num_columns = statistics_shape(64, 48)
    assert SerFeatureExtractor(**SETTINGS).num_statistics == (num_kinds, num_contours, num_columns)
    for duration_s in (0.05, 0.3, 2.0):
        found = statistics(make_voice(duration_s))
        assert (
            found.shape == (1, num_kinds + num_contours, num_columns)
            and found.dtype == np.float32
            and np.isfinite(found).all()
        )
    assert np.isfinite(statistics(np.zeros(16000, np.float32))).all()
    assert "statistics" not in SerFeatureExtractor()(make_voice(0.3), sampling_rate=16000)


def test_batch_equals_singles_and_padding_changes_nothing():
    torch.manual_seed(0)
    lengths = torch.tensor([40, 9, 1, 23])
    bands, lags = 10 * torch.randn(4, 45, 64), torch.rand(4, 45, 48)
    mask = torch.arange(45) < lengths[:, None]
    batch = clip_statistics(bands, lags, mask)
    for i, length in enumerate(lengths):
        single = clip_statistics(bands[i : i + 1, :length], lags[i : i + 1, :length], mask[i : i + 1, :length])
        torch.testing.assert_close(single[0], batch[i], rtol=1e-4, atol=1e-4)


def test_level_changes_nothing():
    voice = make_voice(1.0)
    np.testing.assert_allclose(statistics(0.01 * voice), statistics(voice), rtol=1e-3, atol=2e-3)


@pytest.fixture(scope="module")
def values():
    generator = np.random.default_rng(0)
    return generator.gamma(2.0, size=(3, 50)) + np.linspace(0, 3, 50)


@pytest.fixture(scope="module")
def described(values):
    """Of values with ten frames of padding: (3, n), and the correlations of the first of them."""
    padded = torch.nn.functional.pad(torch.tensor(values, dtype=torch.float32), (0, 10), value=9.0)[None]
    inside = torch.arange(60)[None, None] < 50
    kinds, correlations = _describe(padded, inside)
    return np.concatenate([kinds[0], correlations[0]]).T


def test_distribution_agrees_with_numpy_and_scipy(values, described):
    mean, deviation, log_deviation, skewness, log_kurtosis = described[:, :5].T
    np.testing.assert_allclose(mean, values.mean(1), rtol=1e-5)
    np.testing.assert_allclose(deviation, values.std(1), rtol=1e-5)
    np.testing.assert_allclose(log_deviation, np.log(values.std(1)), atol=1e-5)
    np.testing.assert_allclose(skewness, scipy.stats.skew(values, 1), atol=1e-4)
    np.testing.assert_allclose(log_kurtosis, np.log(scipy.stats.kurtosis(values, 1, fisher=False)), atol=1e-4)
    np.testing.assert_allclose(described[:, 5:12], np.quantile(values, QUANTILES[:-1].numpy(), axis=1).T, rtol=1e-5)
    assert QUANTILES[RANGES[:, 0] == 1] == 0.75 and QUANTILES[RANGES[:, 0] == -1] == 0.25
    np.testing.assert_allclose(described[:, 12], scipy.stats.iqr(values, 1), rtol=1e-5)


def test_course_agrees_with_a_fitted_line_and_parabola(values, described):
    time = np.linspace(-1, 1, 50)
    for row, (slope, curvature, straight, bent) in zip(values, described[:, 16:20]):
        line, parabola = np.polyfit(time, row, 1), np.polyfit(time, row, 2)
        assert (slope, curvature) == pytest.approx((line[0], parabola[0]), rel=1e-3)
        assert straight == pytest.approx(np.std(row - np.polyval(line, time)), rel=1e-4)
        assert bent == pytest.approx(np.std(row - np.polyval(parabola, time)), rel=1e-4)


def test_steps_heights_and_peaks_agree_with_numpy(values, described):
    rising, up, down, way, root_mean_square, alike, crossings = described[:, 20:27].T
    step, away = np.diff(values), values - values.mean(1, keepdims=True)
    np.testing.assert_allclose(rising, (step > 0).mean(1), rtol=1e-5)
    np.testing.assert_allclose(up - down, step.mean(1), atol=1e-5)
    np.testing.assert_allclose(way, np.abs(step).mean(1) / values.std(1), rtol=1e-4)
    np.testing.assert_allclose(root_mean_square, np.sqrt((step**2).mean(1)), rtol=1e-4)
    np.testing.assert_allclose(alike, (away[:, 1:] * away[:, :-1]).mean(1) / values.var(1), rtol=1e-4)
    np.testing.assert_allclose(crossings, (away[:, 1:] * away[:, :-1] < 0).mean(1), rtol=1e-5)
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    above = [(values > low + part * (high - low)).mean(1) for part in HEIGHTS.tolist()]
    np.testing.assert_allclose(described[:, 30:34].T, above, atol=1e-5)
    np.testing.assert_allclose(described[:, 34], values.argmax(1) / 50, rtol=1e-5)
    np.testing.assert_allclose(described[:, 35], values.argmin(1) / 50, rtol=1e-5)
    peak = (step[:, :-1] >= 0) & (step[:, 1:] < 0)
    np.testing.assert_allclose(described[:, 37], peak.mean(1) * 48 / 50, rtol=1e-5)
    np.testing.assert_allclose(described[:, 38], [a[1:-1][p].mean() for a, p in zip(away, peak)], rtol=1e-4)


def test_correlations_agree_with_numpy(values, described):
    np.testing.assert_allclose(described[:, 39:].T, np.corrcoef(values)[:1], atol=1e-5)


def test_rising_and_falling_pitch_differ():
    """By the pitch's slope, which turns its sign round, and not by how the pitch is distributed."""
    time = np.arange(32000) / 16000
    rising = np.concatenate([120 + 60 * time[:16000], 180 + 60 * time[:16000]])
    slopes, medians = [], []
    for pitch in (rising, rising[::-1]):
        phase = 2 * np.pi * np.cumsum(pitch) / 16000
        voice = sum(np.sin(k * phase) / k for k in range(1, 15)).astype(np.float32)
        found = statistics(voice)[0]
        of_pitch = found[:, found.shape[1] // 2 - 1]  # the last contour before their moves
        slopes.append(of_pitch[16])
        medians.append(of_pitch[8])
    assert slopes[0] > 0.2 and slopes[1] < -0.2
    assert medians[0] == pytest.approx(medians[1], abs=0.1)
