import numpy as np
import pytest
import soundfile
import torch
from transformers import AudioClassificationPipeline

from ser_model import SerPipeline
from ser_model.audio import AudioError
from ser_model.pipeline_ser import WINDOW_S, cut_windows
from tests.conftest import make_voice


@pytest.fixture
def classifier(tiny_model, extractor):
    return SerPipeline(model=tiny_model, feature_extractor=extractor, task="audio-classification")


def test_answers_like_the_stock_pipeline(classifier, tiny_model, extractor, voice):
    stock = AudioClassificationPipeline(model=tiny_model, feature_extractor=extractor)
    for ours, theirs in zip(classifier(voice), stock(voice), strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    assert len(classifier(voice, top_k=1)) == 1
    assert len(classifier(voice)) == 8


def test_path_bytes_array_and_dict_agree(classifier, tmp_path):
    waveform = make_voice(2.0, rate=48000)
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.stack([waveform, waveform], 1), 48000, subtype="FLOAT")
    expected = classifier(str(path), timeline=True)
    for same in (
        path.read_bytes(),
        {"array": waveform, "sampling_rate": 48000},
        {"raw": waveform, "sampling_rate": 48000},
    ):
        assert classifier(same, timeline=True)["scores"] == pytest.approx(expected["scores"], abs=1e-4)


def test_lists_and_generators(classifier, voice):
    single = classifier(voice)
    for several in (classifier([voice, voice]), list(classifier(w for w in (voice, voice)))):
        assert [answer[0]["label"] for answer in several] == [single[0]["label"]] * 2


@pytest.mark.parametrize("duration_s", [0.05, 3.9, 4.1, 5.99, 6.0, 9.0, 41.7])
def test_windows_cover_the_recording_once(classifier, duration_s):
    answer = classifier(make_voice(duration_s), timeline=True)
    windows = answer["windows"]
    assert windows[0]["start_s"] == 0
    assert windows[-1]["end_s"] == answer["duration_s"] == pytest.approx(duration_s, abs=1e-3)
    for earlier, later in zip(windows, windows[1:]):
        assert later["start_s"] == earlier["end_s"]
    if duration_s >= WINDOW_S:
        assert all(WINDOW_S / 2 <= w["end_s"] - w["start_s"] <= 1.5 * WINDOW_S for w in windows)
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-4)
    assert answer["label"] == max(answer["scores"], key=answer["scores"].get)


def test_answer_is_the_mean_of_its_windows(classifier):
    answer = classifier(make_voice(11.0), timeline=True)
    spans = [w["end_s"] - w["start_s"] for w in answer["windows"]]
    mean = np.average([list(w["scores"].values()) for w in answer["windows"]], axis=0, weights=spans)
    np.testing.assert_allclose(list(answer["scores"].values()), mean, atol=1e-6)


def test_silent_windows_have_no_emotion(classifier):
    voice = make_voice(4.0)
    answer = classifier(np.concatenate([voice, np.zeros(4 * 16000, np.float32)]), timeline=True)
    assert answer["windows"][1]["label"] is None
    assert answer["scores"] == pytest.approx(classifier(voice, timeline=True)["scores"], abs=1e-5)


def test_silence_is_refused(classifier):
    with pytest.raises(AudioError, match="silent"):
        classifier(np.zeros(12 * 16000, np.float32))


def test_unknown_options_are_refused(classifier, voice):
    with pytest.raises(TypeError, match="does not know"):
        classifier(voice, timelines=True)


@pytest.mark.parametrize("block_size", [1, 7, 100])
def test_windows_do_not_depend_on_the_blocks(block_size):
    samples = np.arange(75, dtype=np.float32)
    blocks = iter(np.split(samples, range(block_size, 75, block_size)))
    windows = list(cut_windows(blocks, 20))
    assert [len(w) for w in windows] == [20, 20, 20, 15]
    np.testing.assert_array_equal(np.concatenate(windows), samples)


def test_runs_in_half_precision(tiny_model, extractor, voice):
    classifier = SerPipeline(
        model=tiny_model.to(torch.bfloat16), feature_extractor=extractor, task="audio-classification"
    )
    assert np.isfinite(classifier(voice)[0]["score"])
