import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ser_model.voice import has_voice, load_detector
from tests.conftest import NO_VOICES, make_no_voice, make_voice

RATE = 16000


@pytest.mark.parametrize("kind", NO_VOICES)
def test_hears_no_voice_where_there_is_none(kind):
    for duration_s in (0.5, 1.0, 4.0, 10.0):
        for gain in (1.0, 0.001):
            assert not has_voice(gain * make_no_voice(kind, duration_s), RATE), (duration_s, gain)


@pytest.mark.parametrize("kind", NO_VOICES)
def test_faint_hiss_does_not_make_a_voice(kind):
    hiss = 0.002 * make_no_voice("white noise", 4.0, seed=1)
    assert not has_voice(make_no_voice(kind, 4.0) + hiss, RATE)
    assert not has_voice(hiss, RATE)


def test_silence_has_no_voice():
    assert not has_voice(np.zeros(RATE, np.float32), RATE)


@pytest.mark.parametrize(("duration_s", "rate"), [(0.3, 16000), (1.0, 22050), (4.0, 16000), (6.0, 48000)])
@pytest.mark.parametrize("gain", [0.001, 1.0, 100.0])
def test_hears_a_voice_of_any_length_and_loudness(duration_s, rate, gain):
    waveform = gain * make_voice(duration_s, rate=rate)
    assert has_voice(waveform, rate)
    assert has_voice(waveform + np.float32(gain), rate)  # as a microphone that does not rest at zero


@pytest.mark.parametrize("start_s", [0.0, 1.7, 3.4])
def test_finds_a_word_anywhere_in_a_window(start_s):
    waveform = 0.001 * make_no_voice("white noise", 4.0)
    start = round(start_s * RATE)
    waveform[start : start + 9600] += make_voice(0.6)
    assert has_voice(waveform, RATE)


def test_finds_a_voice_beside_something_louder():
    door = np.zeros(4 * RATE, np.float32)
    door[: RATE // 10] = 2 * make_no_voice("white noise", 0.1)
    voice = np.concatenate([np.zeros(2 * RATE, np.float32), make_voice(2.0)])
    assert has_voice(door + voice, RATE)
    assert not has_voice(door, RATE)


def test_hears_a_scream():
    scream = make_voice(1.5, pitch_hz=130)
    assert has_voice(scream, RATE)
    assert has_voice(scream[::2], RATE)  # twice as fast, and twice as high


@pytest.mark.parametrize("hz", [50, 60, 100, 120])
def test_a_hum_with_many_overtones_is_no_voice(hz):
    t = np.arange(4 * RATE) / RATE
    hum = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 12)).astype(np.float32)
    assert not has_voice(hum, RATE)


def test_refuses_nothing_too_short_to_tell():
    assert has_voice(make_no_voice("white noise", 0.49), RATE)


def chunk_by_chunk(waveform: torch.Tensor) -> list[float]:
    """As the package's `tinygrad_model.py` says: convolutions and an LSTM cell on 576 samples at a time."""
    folder = Path(importlib.util.find_spec("silero_vad").submodule_search_locations[0])
    weights = load_file(folder / "data" / "silero_vad_16k.safetensors")
    cell = torch.nn.LSTMCell(128, 128)
    cell.load_state_dict({name.partition(".")[2]: w for name, w in weights.items() if name.startswith("lstm_cell")})
    padded, state, probabilities = F.pad(waveform, (64, 0)), None, []
    for start in range(0, len(waveform), 512):
        chunk = F.pad(padded[None, None, start : start + 576], (0, 64), mode="reflect")
        real, imaginary = F.conv1d(chunk, weights["stft_conv.weight"], stride=128).chunk(2, dim=1)
        hidden = (real**2 + imaginary**2).sqrt()
        for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            hidden = F.conv1d(hidden, weight, bias, stride=stride, padding=1).relu()
        state = cell(hidden[..., 0], state)
        last = F.conv1d(state[0][..., None].relu(), weights["final_conv.weight"], weights["final_conv.bias"])
        probabilities.append(float(last.sigmoid()))
    return probabilities


@torch.inference_mode()
def test_hears_what_silero_hears_chunk_by_chunk():
    waveform = torch.from_numpy(np.concatenate([make_voice(1.28), make_no_voice("white noise", 0.64)]))
    probabilities = chunk_by_chunk(waveform)
    assert min(probabilities) < 0.1 < 0.9 < max(probabilities)
    assert np.allclose(load_detector()(waveform), probabilities, atol=1e-4)


def test_leaves_the_threads_of_pytorch_alone():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        load_detector.cache_clear()
        assert has_voice(make_voice(1.0), RATE)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert "silero_vad" not in sys.modules


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    load_detector.cache_clear()
    yield
    load_detector.cache_clear()


def test_without_the_package_everything_may_be_a_voice(not_installed):
    assert has_voice(make_no_voice("white noise", 4.0), RATE)
