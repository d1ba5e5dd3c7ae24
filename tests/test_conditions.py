import numpy as np
import pytest

from tests.conftest import make_voice
from train.augment import change
from train.conditions import CONDITIONS
from train.recipe import Variant


@pytest.fixture(scope="module")
def voice():
    return make_voice(2.0)


def apply(name, waveform):
    return CONDITIONS[name](waveform, 16000, np.random.default_rng(0))


def power_above(waveform, hz):
    spectrum = np.abs(np.fft.rfft(waveform)) ** 2
    return spectrum[np.fft.rfftfreq(len(waveform), 1 / 16000) > hz].sum() / spectrum.sum()


@pytest.mark.parametrize("name", CONDITIONS)
def test_is_repeatable_and_still_the_clip(name, voice):
    changed = apply(name, voice)
    assert changed.dtype == np.float32 and np.isfinite(changed).all()
    np.testing.assert_array_equal(apply(name, voice), changed)
    assert np.correlate(changed, voice, "full").max() > 0.3 * np.linalg.norm(changed) * np.linalg.norm(voice)


@pytest.mark.parametrize(("name", "snr_db"), [("noise 20 dB", 20), ("noise 10 dB", 10)])
def test_noise_is_as_loud_as_said(name, snr_db, voice):
    noise = apply(name, voice) - voice
    assert 10 * np.log10((voice**2).mean() / (noise**2).mean()) == pytest.approx(snr_db, abs=0.1)


def test_telephone_has_no_treble():
    noise = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    assert power_above(noise, 4000) > 0.4
    assert power_above(apply("telephone 8 kHz", noise), 4000) < 0.01


def test_clipped_peaks_are_flat(voice):
    assert np.abs(apply("clipped peaks", voice)).max() == pytest.approx(np.abs(voice).max() / 4)


def test_each_recording_outside_is_another(voice):
    """As training hears a clip: what happens to it is drawn anew for each number, and the same each time."""
    heard = [change(voice, 16000, Variant(outside=number), seed=1) for number in range(1, 17)]
    np.testing.assert_array_equal(change(voice, 16000, Variant(outside=3), seed=1), heard[2])
    assert len({waveform.tobytes() for waveform in heard}) >= 13  # one in thirteen is left as it is
    for waveform in heard:
        assert waveform.dtype == np.float32 and np.isfinite(waveform).all()
        assert np.correlate(waveform, voice, "full").max() > 0.3 * np.linalg.norm(waveform) * np.linalg.norm(voice)


def test_some_recordings_outside_are_telephone_calls():
    noise = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    heard = [change(noise, 16000, Variant(outside=number), seed=1) for number in range(1, 33)]
    assert 2 <= sum(power_above(waveform, 4100) < 1e-3 for waveform in heard) <= 16
