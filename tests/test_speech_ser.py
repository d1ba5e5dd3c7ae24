"""Only speech is listened to: what is around a voice, between its words and below it changes little."""

import numpy as np
import pytest
import torch

from ser_model import SerFeatureExtractor
from ser_model.speech_ser import remove_rumble
from tests.conftest import make_voice
from train.outside import click, pause, rumble

RATE = 16000
PITCHED = {"feature_type": "log_mel_pitch", "feature_size": 112, "n_fft": 768}


@pytest.fixture(scope="module")
def voice():
    return make_voice(2.0)


def times_s(waveform):
    return SerFeatureExtractor(**PITCHED).frame_times_s(waveform)


def test_a_pause_is_left_out(voice):
    clean, paused = times_s(voice), times_s(pause(voice, RATE, duration_s=2.048, place=RATE))
    assert len(paused) == pytest.approx(len(clean), abs=4)
    assert not ((paused > 1.1) & (paused < 2.9)).any()


def test_room_tone_in_a_pause_is_left_out(voice):
    paused = pause(voice, RATE, duration_s=2.0, place=RATE)
    tone = np.random.default_rng(0).standard_normal(len(paused)).astype(np.float32)
    heard = times_s(paused + 0.01 * np.abs(voice).std() * tone)
    assert not ((heard > 1.1) & (heard < 2.9)).any()


@pytest.mark.parametrize("loudness", [0.3, 1.0, 3.0])
def test_clicks_are_no_voice(voice, loudness):
    generator = np.random.default_rng(0)
    clicked = click(voice, RATE, generator, distance_s=0.4, after=True)
    start = round(0.505 * RATE)
    clicked = np.concatenate([loudness * clicked[:start], clicked[start:]])
    clean, heard = times_s(voice), times_s(clicked) - 0.505
    assert heard.min() > -0.1 and heard.max() < 2.1
    assert len(heard) == pytest.approx(len(clean), rel=0.1)


def test_a_knock_is_no_voice(voice):
    """A fifth of a second of noise that fades: long enough for a word, but there is no voice in it."""
    t = np.arange(RATE // 5) / RATE
    knock = np.random.default_rng(0).standard_normal(len(t)) * np.exp(-t / 0.05) * np.abs(voice).max()
    heard = times_s(np.concatenate([knock, np.zeros(RATE), voice]).astype(np.float32)) - 1.2
    assert heard.min() > -0.1


@pytest.mark.parametrize("part", [0.02, 0.1, 0.5])
def test_an_offset_changes_nothing(voice, part):
    extractor = SerFeatureExtractor(**PITCHED)
    clean, moved = (extractor(v, sampling_rate=RATE)["input_features"] for v in (voice, voice + np.float32(part)))
    np.testing.assert_allclose(moved, clean, atol=0.02)


def test_rumble_changes_little(voice):
    extractor = SerFeatureExtractor(**PITCHED)
    loud = rumble(voice, RATE, np.random.default_rng(0), part=1.0)
    clean, rumbling = (extractor(v, sampling_rate=RATE)["input_features"][0] for v in (voice, loud))
    assert clean.shape == rumbling.shape
    assert np.abs(rumbling - clean).mean() < 0.15


@pytest.mark.parametrize(("hz", "gain_db"), [(0, -60), (20, -50), (40, -30), (100, 0), (1000, 0)])
def test_rumble_filter(hz, gain_db):
    wave = np.cos(2 * np.pi * hz * np.arange(2 * RATE) / RATE)
    filtered = remove_rumble(torch.tensor(wave, dtype=torch.float32)[None], torch.tensor([2 * RATE]), RATE)[0].numpy()
    inner = slice(RATE // 2, -RATE // 2)
    found = 20 * np.log10(filtered[inner].std() / np.sqrt((wave[inner] ** 2).mean()) + 1e-9)
    assert found == pytest.approx(0, abs=0.1) if gain_db == 0 else found < gain_db


def test_quiet_voice_beside_a_loud_knock(voice):
    """Decibels are counted from the loudest speech, not from the loudest sound."""
    extractor = SerFeatureExtractor(**PITCHED, normalize=None)
    knocked = np.concatenate([click(0.05 * voice, RATE, np.random.default_rng(0), distance_s=0.5)])
    knocked[: RATE // 2] *= 20
    clean, beside = (extractor(v, sampling_rate=RATE)["input_features"][0, :, :64] for v in (voice, knocked))
    assert beside.max() == pytest.approx(clean.max(), abs=0.5)


@pytest.mark.parametrize("duration_s", [0.02, 0.05, 0.08, 0.2])
def test_of_the_shortest_clip_something_is_left(duration_s):
    assert len(times_s(make_voice(duration_s, seed=1))) >= 1


@pytest.mark.parametrize(
    "sound", [np.zeros(8000), np.full(8000, 0.5), 0.1 * np.random.default_rng(0).standard_normal(8000)]
)
def test_of_no_voice_something_is_left(sound):
    features = SerFeatureExtractor(**PITCHED)(sound.astype(np.float32), sampling_rate=RATE)["input_features"]
    assert features.shape[1] >= 1 and np.isfinite(features).all()
