import numpy as np
import pytest
import soxr
import torch

from ser_model import SerPipeline
from ser_model.audio import AudioError
from ser_model.pipeline_ser import WINDOW_S
from ser_model.streaming import SerStream
from tests.conftest import make_no_voice, make_voice


@pytest.fixture
def classifier(tiny_model, extractor):
    return SerPipeline(model=tiny_model, feature_extractor=extractor, task="audio-classification")


@pytest.mark.parametrize(("rate", "every_s"), [(16000, 0.5), (48000, 1.0), (44100, 0.1), (8000, 4.0)])
def test_answers_as_the_pipeline_does_on_the_same_seconds(classifier, rate, every_s):
    sound = make_voice(6.3, rate=rate)
    stream = SerStream(classifier, sampling_rate=rate, every_s=every_s)
    answers = [answer for first in range(0, len(sound), 1111) for answer in stream.feed(sound[first : first + 1111])]
    # A resampler keeps back the last few milliseconds until more comes.
    assert len(answers) == 1 + (6.25 - WINDOW_S) // every_s
    whole = soxr.resample(sound, rate, 16000)
    for number, answer in enumerate(answers):
        assert answer["start_s"] == pytest.approx(number * every_s)
        assert answer["end_s"] == pytest.approx(number * every_s + WINDOW_S)
        start = round(answer["start_s"] * 16000)
        expected = classifier(whole[start : start + 4 * 16000], timeline=True)
        assert answer["scores"] == pytest.approx(expected["scores"], abs=1e-4)
        assert answer["label"] == expected["label"]


def test_answers_do_not_depend_on_the_pieces(classifier):
    sound = make_voice(6.0)
    whole = SerStream(classifier, sampling_rate=16000).feed(sound)
    stream = SerStream(classifier, sampling_rate=16000)
    pieces = [answer for piece in np.array_split(sound, 17) for answer in stream.feed(piece)]
    assert pieces == whole
    assert len(whole) == 5


@pytest.mark.parametrize("sound", [np.zeros(4 * 16000), make_no_voice("white noise", 4.0)], ids=["silence", "noise"])
def test_what_is_no_voice_has_no_emotion(tiny_model, extractor, sound):
    options = {"model": tiny_model, "feature_extractor": extractor, "task": "audio-classification"}
    sounds = np.concatenate([sound, make_voice(4.0)])
    nothing, loud = SerStream(SerPipeline(**options), sampling_rate=16000, every_s=4.0).feed(sounds)
    assert nothing == {"start_s": 0.0, "end_s": 4.0, "label": None, "score": None, "scores": None}
    assert loud["label"] is not None
    asked_for = SerStream(SerPipeline(**options, voice_only=False), sampling_rate=16000, every_s=4.0).feed(sounds)
    assert (asked_for[0]["label"] is None) == (not sound.any())
    assert asked_for[1] == loud


def test_memory_does_not_grow(classifier):
    stream = SerStream(classifier, sampling_rate=16000, every_s=4.0)
    for _ in range(100):
        stream.feed(np.zeros(16000, np.float32))
    assert len(stream._waveform) <= 4 * 16000


@pytest.mark.parametrize(
    "piece",
    [
        lambda samples: samples[:, None],  # of sounddevice
        lambda samples: np.stack([samples, samples], 1),
        lambda samples: torch.stack([torch.tensor(samples)] * 2),  # of torchaudio
        lambda samples: samples.tobytes(),  # of PyAudio
    ],
)
def test_pieces_as_audio_libraries_give_them(classifier, piece):
    sound = np.round(2**15 * make_voice(4.5)).astype(np.int16)
    expected = SerStream(classifier, sampling_rate=16000).feed(sound / 2**15)
    stream = SerStream(classifier, sampling_rate=16000.0)
    answers = [answer for samples in np.array_split(sound, 50) for answer in stream.feed(piece(samples))]
    assert len(answers) == len(expected) == 2
    for answer, same in zip(answers, expected):
        assert answer["scores"] == pytest.approx(same["scores"], abs=1e-4)


@pytest.mark.parametrize(
    "samples", [np.zeros((2, 2, 2)), np.array([0.0, np.nan]), np.array([np.inf]), None, "sound", b"odd", [True]]
)
def test_what_is_no_sound_is_refused_and_the_stream_goes_on(classifier, samples):
    stream, sound = SerStream(classifier, sampling_rate=16000), make_voice(4.0)
    stream.feed(sound[:1000])
    with pytest.raises(AudioError):
        stream.feed(samples)
    assert stream.feed(sound[1000:]) == SerStream(classifier, sampling_rate=16000).feed(sound)


@pytest.mark.parametrize(
    "wrong",
    [{"every_s": 0}, {"every_s": 5.0}, {"every_s": None}, {"every_s": np.nan}]
    + [{"sampling_rate": rate} for rate in (0, 44.1, 999, True, None, "48000", 44100.5)],
)
def test_impossible_settings_are_refused(classifier, wrong):
    with pytest.raises(ValueError, match="give"):
        SerStream(classifier, **{"sampling_rate": 16000, **wrong})
