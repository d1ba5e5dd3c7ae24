import json

import librosa
import numpy as np
import pytest
import torch

from ser_model import SerFeatureExtractor
from tests.conftest import make_voice


@pytest.mark.parametrize("duration_s", [0.05, 0.517, 3.0])
def test_agrees_with_librosa(duration_s):
    extractor = SerFeatureExtractor(trim_db=None, normalize=None)
    waveform = make_voice(duration_s)
    power = librosa.feature.melspectrogram(
        y=waveform / np.abs(waveform).max(),
        sr=16000,
        n_fft=extractor.n_fft,
        hop_length=extractor.hop_length,
        n_mels=extractor.feature_size,
        fmin=extractor.f_min_hz,
        fmax=extractor.f_max_hz,
        pad_mode="constant",
    )
    expected = librosa.power_to_db(power, ref=np.max, top_db=extractor.top_db).T
    features = extractor(waveform, sampling_rate=16000)["input_features"][0]
    assert features.shape == expected.shape
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-3)


def test_trims_like_a_listener(extractor, voice):
    """Silence around a voice, and its level, change nothing."""
    quiet = np.concatenate([np.zeros(12345), voice * 0.03, np.zeros(777)]).astype(np.float32)
    loud = extractor(voice, sampling_rate=16000)["input_features"]
    np.testing.assert_allclose(extractor(quiet, sampling_rate=16000)["input_features"], loud, atol=1e-3)


def test_says_what_trimming_leaves(extractor, voice):
    loud = np.flatnonzero(np.abs(voice) >= 10 ** (-extractor.trim_db / 20) * np.abs(voice).max())
    padded = np.concatenate([np.zeros(1234, np.float32), voice, np.zeros(99, np.float32)])
    first, end = extractor.trimmed_span(padded)
    assert (first, end) == (1234 + loud[0], 1234 + loud[-1] + 1)
    num_frames = extractor(padded, sampling_rate=16000)["input_features"].shape[1]
    assert num_frames == 1 + (end - first) // extractor.hop_length
    assert SerFeatureExtractor(trim_db=None).trimmed_span(padded) == (0, len(padded))


def test_normalises_each_utterance(extractor, voice):
    features = extractor(voice, sampling_rate=16000)["input_features"][0]
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(features.std(0), 1, atol=1e-3)


def test_batch_equals_singles(extractor):
    waveforms = [make_voice(d, seed=i) for i, d in enumerate((0.4, 2.0, 1.111))]
    batch = extractor(waveforms, sampling_rate=16000)
    for i, waveform in enumerate(waveforms):
        single = extractor(waveform, sampling_rate=16000)["input_features"][0]
        assert batch["attention_mask"][i].sum() == len(single)
        np.testing.assert_allclose(batch["input_features"][i, : len(single)], single, atol=1e-4)
        assert not batch["input_features"][i, len(single) :].any()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, np.ndarray.tolist, lambda w: w.astype(np.float64)])
def test_takes_any_kind_of_waveform(extractor, voice, kind):
    expected = extractor(voice, sampling_rate=16000)["input_features"]
    np.testing.assert_allclose(extractor(kind(voice), sampling_rate=16000)["input_features"], expected, atol=1e-4)


def test_returns_tensors(extractor, voice):
    inputs = extractor(voice, sampling_rate=16000, return_tensors="pt")
    assert inputs["input_features"].dtype == torch.float32
    assert inputs["attention_mask"].dtype == torch.int64
    assert inputs["input_features"].shape[:2] == inputs["attention_mask"].shape


def test_survives_saving(extractor, voice, tmp_path):
    extractor = SerFeatureExtractor(feature_size=40, trim_db=30.0)
    extractor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert "mel_filters" not in saved
    again = SerFeatureExtractor.from_pretrained(tmp_path)
    expected = extractor(voice, sampling_rate=16000)["input_features"]
    np.testing.assert_array_equal(again(voice, sampling_rate=16000)["input_features"], expected)


@pytest.mark.parametrize(
    ("waveform", "rate", "says"),
    [
        (np.ones(8000, np.float32), 44100, "resample it first"),
        (np.ones((2, 8000), np.float32), 16000, "average the channels"),
        (np.zeros(0, np.float32), 16000, "empty"),
        (np.array([0.1, np.nan], np.float32), 16000, "NaN"),
        (np.array([0.1, np.inf], np.float32), 16000, "infinite"),
        ([], 16000, "empty list"),
    ],
)
def test_refuses_what_it_cannot_hear(extractor, waveform, rate, says):
    with pytest.raises(ValueError, match=says):
        extractor(waveform, sampling_rate=rate)


def test_silence_has_finite_features(extractor):
    assert np.isfinite(extractor(np.zeros(16000, np.float32), sampling_rate=16000)["input_features"]).all()


@pytest.mark.parametrize("wrong", [{"normalize": "speaker"}, {"f_max_hz": 9000.0}])
def test_refuses_impossible_settings(wrong):
    with pytest.raises(ValueError, match="must"):
        SerFeatureExtractor(**wrong)
