import json

import librosa
import numpy as np
import pytest
import torch

from ser_model import SerFeatureExtractor
from ser_model.descriptors_ser import PITCH_HZ
from tests.conftest import make_voice


@pytest.mark.parametrize("duration_s", [0.05, 0.517, 3.0])
def test_agrees_with_librosa(duration_s):
    extractor = SerFeatureExtractor(trim=None, normalize=None)
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


LIBROSA = {"n_fft": 1024, "hop_length": 256}


def make_extractor(**settings):
    kept = {"trim": None, "normalize": None, "relative_level": False, "f_min_hz": 0.0, "f_max_hz": 8000.0}
    return SerFeatureExtractor(**{**kept, **LIBROSA, "num_mel_bins": 128, **settings})


@pytest.mark.parametrize("duration_s", [0.05, 0.5, 3.0])
def test_mfcc_agree_with_librosa(duration_s):
    waveform = make_voice(duration_s)
    expected = librosa.feature.mfcc(y=waveform, sr=16000, n_mfcc=40, n_mels=128, **LIBROSA).T
    features = make_extractor(feature_type="mfcc", feature_size=40)(waveform, sampling_rate=16000)["input_features"][0]
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("duration_s", [0.05, 0.5, 3.0])
def test_zero_crossings_and_energy_agree_with_librosa(duration_s):
    waveform = make_voice(duration_s)
    features = make_extractor(feature_type="zcr_rms_mfcc", feature_size=32)(waveform, sampling_rate=16000)
    found = features["input_features"][0]
    frames = {"frame_length": 1024, "hop_length": 256}
    np.testing.assert_allclose(found[:, 0], librosa.feature.zero_crossing_rate(waveform, **frames)[0], atol=1e-6)
    np.testing.assert_allclose(found[:, 1], librosa.feature.rms(y=waveform, **frames)[0], rtol=1e-4, atol=1e-6)
    expected = librosa.feature.mfcc(y=waveform, sr=16000, n_mfcc=30, n_mels=128, **LIBROSA).T
    np.testing.assert_allclose(found[:, 2:], expected, rtol=1e-3, atol=2e-3)


PITCHED = {"feature_type": "log_mel_pitch", "feature_size": 64 + 48, "n_fft": 768}


def hum(pitch_hz, harmonics=range(1, 20)):
    """One second of a steady voice."""
    t = np.arange(16000) / 16000
    return sum(np.sin(2 * np.pi * pitch_hz * k * t + k) / k for k in harmonics).astype(np.float32)


@pytest.mark.parametrize("pitch_hz", [90, 130, 180, 250])
def test_tells_the_pitch(pitch_hz):
    """Of a low voice, a quiet one, by telephone without its fundamental, and amid noise: one period is as good as two."""
    voice, noise = hum(pitch_hz), np.random.default_rng(0).standard_normal(16000)
    pitches = np.geomspace(*PITCH_HZ, 48)
    place = np.abs(np.log(pitches / pitch_hz)).argmin()
    for heard in (voice, 0.01 * voice, hum(pitch_hz, range(3, 7)), voice + noise * voice.std() / 2):
        features = SerFeatureExtractor(**PITCHED, trim=None)(heard, sampling_rate=16000)["input_features"]
        lags = features[0, :, 64:].mean(0)
        assert lags[place] > 0.85 * lags.max()
        assert lags[place] > 0.25 + np.median(lags)


def test_pitch_follows_the_bands():
    voice = make_voice(1.0)
    bands = SerFeatureExtractor(n_fft=768)(voice, sampling_rate=16000)["input_features"]
    found = SerFeatureExtractor(**PITCHED)(voice, sampling_rate=16000)["input_features"]
    np.testing.assert_array_equal(found[..., :64], bands)
    assert np.abs(found[..., 64:]).max() <= 2


@pytest.fixture(scope="module")
def described():
    """A voice's descriptors, and librosa's, by name."""
    waveform = make_voice(2.0, seed=3)
    features = make_extractor(feature_type="descriptors", feature_size=264)(waveform, sampling_rate=16000)
    assert features["input_features"].shape == (1, 1, 264)
    sizes = [40, 40, 40, 12, 128, 1, 1, 1, 1]
    found = np.split(features["input_features"][0, 0], np.cumsum(sizes)[:-1])
    mfcc = librosa.feature.mfcc(y=waveform, sr=16000, n_mfcc=40, n_mels=128, **LIBROSA)
    frames = {"frame_length": 1024, "hop_length": 256}
    expected = {
        "mfcc": mfcc,
        "first derivative": librosa.feature.delta(mfcc),
        "second derivative": librosa.feature.delta(mfcc, order=2),
        "chroma": librosa.feature.chroma_stft(y=waveform, sr=16000, tuning=0.0, **LIBROSA),
        "mel": librosa.power_to_db(librosa.feature.melspectrogram(y=waveform, sr=16000, **LIBROSA)),
        "centroid": librosa.feature.spectral_centroid(y=waveform, sr=16000, **LIBROSA),
        "bandwidth": librosa.feature.spectral_bandwidth(y=waveform, sr=16000, **LIBROSA),
        "zero crossings": librosa.feature.zero_crossing_rate(waveform, **frames),
        "energy": librosa.feature.rms(y=waveform, **frames),
    }
    return {name: (values, expected[name].mean(1)) for name, values in zip(expected, found)}


@pytest.mark.parametrize(
    "name",
    [
        "mfcc",
        "first derivative",
        "second derivative",
        "chroma",
        "mel",
        "centroid",
        "bandwidth",
        "zero crossings",
        "energy",
    ],
)
def test_descriptors_agree_with_librosa(described, name):
    found, expected = described[name]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "size"), [("mfcc", 40), ("log_mel_pitch", 160), ("zcr_rms_mfcc", 32), ("descriptors", 264)]
)
def test_batch_equals_singles_for_every_kind(kind, size):
    extractor = make_extractor(feature_type=kind, feature_size=size)
    waveforms = [make_voice(d, seed=i) for i, d in enumerate((0.05, 2.0, 1.111))]
    waveforms[2][-1] = -0.5  # a clip that ends below zero: no crossing into the padding
    batch = extractor(waveforms, sampling_rate=16000)
    for i, waveform in enumerate(waveforms):
        single = extractor(waveform, sampling_rate=16000)["input_features"][0]
        assert batch["attention_mask"][i].sum() == len(single)
        np.testing.assert_allclose(batch["input_features"][i, : len(single)], single, rtol=1e-4, atol=1e-3)


def test_hears_the_first_frames_of_a_long_clip(voice):
    whole = SerFeatureExtractor(normalize=None)(voice, sampling_rate=16000)["input_features"]
    extractor = SerFeatureExtractor(normalize=None, max_frames=50)
    np.testing.assert_array_equal(extractor(voice, sampling_rate=16000)["input_features"], whole[:, :50])
    assert extractor.max_duration_s == 0.8


def test_normalises_by_the_training_set(voice, tmp_path):
    raw = SerFeatureExtractor(normalize=None)(voice, sampling_rate=16000)["input_features"]
    extractor = SerFeatureExtractor(normalize="dataset")
    with pytest.raises(ValueError, match="mean and std are missing"):
        extractor(voice, sampling_rate=16000)
    extractor.mean, extractor.std = [-40.0] * 64, [20.0] * 64
    extractor.save_pretrained(tmp_path)
    features = SerFeatureExtractor.from_pretrained(tmp_path)(voice, sampling_rate=16000)["input_features"]
    np.testing.assert_allclose(features, (raw + 40) / 20, atol=1e-5)


def test_keeps_the_level_on_request(voice):
    loud, quiet = (
        make_extractor(feature_size=64, num_mel_bins=64)(voice * gain, sampling_rate=16000)["input_features"]
        for gain in (1.0, 0.1)
    )
    np.testing.assert_allclose((loud - quiet)[0, loud[0].argmax(0), range(64)], 20, atol=0.1)


ENDS = {"trim": "ends"}


def test_trims_silent_ends(voice):
    """Silence around a voice, and its level, change nothing."""
    quiet = np.concatenate([np.zeros(12345), voice * 0.03, np.zeros(777)]).astype(np.float32)
    extractor = SerFeatureExtractor(**ENDS)
    loud = extractor(voice, sampling_rate=16000)["input_features"]
    np.testing.assert_allclose(extractor(quiet, sampling_rate=16000)["input_features"], loud, atol=1e-3)


def test_trims_quiet_ends(voice):
    hiss = 0.001 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    surrounded = np.concatenate([hiss, voice, hiss])
    extractor = SerFeatureExtractor(**ENDS)
    times_s = extractor.frame_times_s(surrounded)
    spoken = np.flatnonzero(np.abs(voice) > 0.05)
    np.testing.assert_allclose(times_s[[0, -1]], 1 + spoken[[0, -1]] / 16000, atol=extractor.n_fft / 16000)
    assert extractor(surrounded, sampling_rate=16000)["input_features"].shape[1] == len(times_s)
    assert len(SerFeatureExtractor(trim=None).frame_times_s(surrounded)) == 1 + len(surrounded) // extractor.hop_length


@pytest.mark.parametrize("snr_db", [20, 10])
def test_trims_noisy_ends(voice, snr_db):
    """As it trims the same recording without the noise, but for a few hundredths of a second."""
    padded = np.pad(voice, 16000)
    noise = np.random.default_rng(0).standard_normal(len(padded)) * np.sqrt((padded**2).mean() / 10 ** (snr_db / 10))
    extractor = SerFeatureExtractor(**ENDS)
    clean = extractor.frame_times_s(padded)
    noisy = extractor.frame_times_s((padded + noise).astype(np.float32))
    np.testing.assert_allclose(noisy[[0, -1]], clean[[0, -1]], atol=4 * extractor.n_fft / 16000)


@pytest.mark.parametrize("trim", ["speech", "ends"])
def test_keeps_a_steady_sound_whole(trim):
    tone = np.sin(np.arange(16000) * 0.1).astype(np.float32)
    assert len(SerFeatureExtractor(trim=trim).frame_times_s(tone)) > 15000 / 256


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
    extractor = SerFeatureExtractor(feature_size=40, trim="ends")
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"normalize": "speaker"},
        {"f_max_hz": 9000.0},
        {"feature_type": "wavelet"},
        {"feature_type": "mfcc", "feature_size": 200},
        {"feature_type": "descriptors", "feature_size": 263},
        {"feature_type": "log_mel_pitch", "feature_size": 64},
        {"num_mel_bins": 40},
        {"statistics": True},
        {"feature_type": "log_mel_pitch", "feature_size": 30, "num_mel_bins": 22, "statistics": True},
    ],
)
def test_refuses_impossible_settings(wrong):
    with pytest.raises(ValueError, match="must"):
        SerFeatureExtractor(**wrong)


BATCH = [make_voice(2.0), make_voice(1.0, seed=1)]
SETTINGS = [
    {},
    {"max_frames": 50},
    {"feature_type": "log_mel_pitch", "feature_size": 112, "n_fft": 768, "statistics": True},
    {"feature_type": "descriptors", "feature_size": 264},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_truncation_hears_the_first_samples(settings):
    extractor = SerFeatureExtractor(**settings)
    found = extractor(BATCH, sampling_rate=16000, max_length=8000, truncation=True, return_tensors="np")
    expected = extractor([waveform[:8000] for waveform in BATCH], sampling_rate=16000, return_tensors="np")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    as_lists = extractor(BATCH[1].tolist(), sampling_rate=16000, max_length=8000, truncation=True)
    inside = expected["attention_mask"][1] == 1
    np.testing.assert_allclose(as_lists["input_features"][0], expected["input_features"][1][inside], atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS)
def test_padding_up_to_a_length_or_not_at_all(settings):
    extractor = SerFeatureExtractor(**settings, padding_value=-1.0)
    expected = extractor(BATCH, sampling_rate=16000)
    padded = extractor(BATCH, sampling_rate=16000, padding="max_length", max_length=48000, return_tensors="pt")
    num_frames = 1 if extractor.feature_type == "descriptors" else min(1 + 48000 // 256, extractor.max_frames or 999)
    assert padded["input_features"].shape[:2] == padded["attention_mask"].shape == (2, num_frames)
    longest = expected["attention_mask"].shape[1]
    np.testing.assert_array_equal(padded["input_features"][:, :longest], expected["input_features"])
    np.testing.assert_array_equal(padded["attention_mask"][:, :longest], expected["attention_mask"])
    assert (padded["input_features"][:, longest:] == -1).all() and not padded["attention_mask"][:, longest:].any()
    shorter = extractor(BATCH, sampling_rate=16000, padding="max_length", max_length=100)
    np.testing.assert_array_equal(shorter["input_features"], expected["input_features"])
    for alone, features, mask in zip(
        BATCH, *(extractor(BATCH, padding=False)[name] for name in extractor.model_input_names)
    ):
        single = extractor(alone, padding="longest")
        np.testing.assert_allclose(features, single["input_features"][0], atol=1e-4)
        assert len(features) == len(mask) == mask.sum()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"truncation": True}, "no max_length"),
        ({"padding": "max_length"}, "no max_length"),
        ({"max_length": 0, "truncation": True}, "max_length is 0"),
        ({"max_length": 1.5}, "max_length is 1.5"),
        ({"padding": "shortest"}, "shortest"),
        ({"pad_to_multiple_of": 8}, "does not know pad_to_multiple_of"),
    ],
)
def test_impossible_lengths_are_refused(extractor, voice, options, says):
    with pytest.raises((TypeError, ValueError), match=says):
        extractor(voice, sampling_rate=16000, **options)
