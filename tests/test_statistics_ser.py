import numpy as np
import pytest
import scipy.stats
import torch

from ser_model import SerFeatureExtractor
from ser_model.statistics_ser import QUANTILES, _course, _distribution, clip_statistics, num_statistics
from tests.conftest import make_voice

SETTINGS = {"feature_type": "statistics", "feature_size": 4743, "num_mel_bins": 64, "n_fft": 768, "normalize": None}


def statistics(waveform):
    return SerFeatureExtractor(**SETTINGS)(waveform, sampling_rate=16000)["input_features"]


def test_one_vector_a_clip_of_any_length():
    assert num_statistics(num_bands=64, num_lags=48) == 4743
    for duration_s in (0.05, 0.3, 2.0):
        features = statistics(make_voice(duration_s))
        assert features.shape == (1, 1, 4743) and np.isfinite(features).all()
    assert np.isfinite(statistics(np.zeros(16000, np.float32))).all()


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


@pytest.fixture
def values():
    generator = np.random.default_rng(0)
    return generator.gamma(2.0, size=(3, 50)) + np.linspace(0, 3, 50)


def test_distribution_agrees_with_numpy_and_scipy(values):
    mask = torch.arange(60) < 50
    padded = torch.nn.functional.pad(torch.tensor(values), (0, 10), value=9.0)[None]
    mean, deviation, log_deviation, skewness, log_kurtosis, quantiles, ranges = (
        part[0].numpy().squeeze(-1) if part.shape[2] == 1 else part[0].numpy()
        for part in _distribution(padded, mask[None, None])
    )
    np.testing.assert_allclose(mean, values.mean(1), rtol=1e-5)
    np.testing.assert_allclose(deviation, values.std(1), rtol=1e-5)
    np.testing.assert_allclose(log_deviation, np.log(values.std(1)), atol=1e-5)
    np.testing.assert_allclose(skewness, scipy.stats.skew(values, 1), atol=1e-4)
    np.testing.assert_allclose(log_kurtosis, np.log(scipy.stats.kurtosis(values, 1, fisher=False)), atol=1e-4)
    np.testing.assert_allclose(quantiles, np.quantile(values, QUANTILES, axis=1).T, rtol=1e-5)
    np.testing.assert_allclose(ranges[:, 0], scipy.stats.iqr(values, 1), rtol=1e-5)


def test_course_agrees_with_a_fitted_line(values):
    mask = torch.ones(1, 1, 50, dtype=torch.bool)
    slope, _, error = _course(torch.tensor(values)[None], mask)[:3]
    time = np.linspace(-1, 1, 50)
    for row, found, rest in zip(values, slope[0, :, 0], error[0, :, 0]):
        line = np.polyfit(time, row, 1)
        np.testing.assert_allclose(found, line[0], rtol=1e-4)
        np.testing.assert_allclose(rest, np.std(row - np.polyval(line, time)), rtol=1e-4)


def test_rising_and_falling_pitch_differ():
    """By the pitch's slope, which turns its sign round, and not by how the pitch is distributed."""
    time = np.arange(32000) / 16000
    rising = np.concatenate([120 + 60 * time[:16000], 180 + 60 * time[:16000]])
    slopes, medians = [], []
    for pitch in (rising, rising[::-1]):
        phase = 2 * np.pi * np.cumsum(pitch) / 16000
        voice = sum(np.sin(k * phase) / k for k in range(1, 15)).astype(np.float32)
        extractor = SerFeatureExtractor(feature_type="log_mel_pitch", feature_size=112, n_fft=768, normalize=None)
        lags = torch.from_numpy(extractor(voice, sampling_rate=16000)["input_features"][..., 64:])
        heard = lags.argmax(2)[:, None].float()
        mask = torch.ones_like(heard, dtype=torch.bool)
        slopes.append(_course(heard, mask)[0].item())
        medians.append(_distribution(heard, mask)[5][0, 0, 3].item())
    assert slopes[0] > 3 and slopes[1] < -3
    assert medians[0] == pytest.approx(medians[1], abs=1.5)
