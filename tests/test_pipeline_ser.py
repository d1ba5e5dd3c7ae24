import functools
import http.server
import io
import re
import threading

import datasets
import numpy as np
import pytest
import soundfile
import torch
from transformers import AudioClassificationPipeline

from ser_model import SerFeatureExtractor, SerPipeline
from ser_model.audio import AudioError
from ser_model.pipeline_ser import WINDOW_S, cut_windows
from ser_model.pretrained import load_pipeline
from ser_model.voice import NoVoiceError
from tests.conftest import NO_VOICES, make_no_voice, make_voice
from tests.test_audio import BROKEN, broken_files


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


@pytest.mark.parametrize("kind", NO_VOICES)
def test_what_is_no_voice_is_refused_unless_asked_for(classifier, tiny_model, extractor, kind):
    sound = make_no_voice(kind, 5.0)
    with pytest.raises(NoVoiceError, match="^The recording has no voice in it: there is no emotion to hear.$"):
        classifier(sound)
    assert len(classifier(sound, voice_only=False)) == 8
    indifferent = SerPipeline(
        model=tiny_model, feature_extractor=extractor, task="audio-classification", voice_only=False
    )
    assert indifferent(sound) == classifier(sound, voice_only=False)
    with pytest.raises(NoVoiceError):
        indifferent(sound, voice_only=True)
    with pytest.raises(NoVoiceError, match="is silent"):
        indifferent(0 * sound)


@pytest.mark.parametrize("sound_only", [True, False])
def test_a_network_that_was_taught_what_is_no_voice_answers_it(tiny_model, extractor, tmp_path, sound_only):
    tiny_model.config.voice_only, tiny_model.config.sound_only = False, sound_only
    SerPipeline(model=tiny_model, feature_extractor=extractor, task="audio-classification").save_pretrained(tmp_path)
    noise, silence = make_no_voice("white noise", 4.0), np.zeros(4 * 16000, np.float32)
    taught = load_pipeline(str(tmp_path))
    windows = taught(np.concatenate([noise, silence]), timeline=True)["windows"]
    assert [window["label"] is None for window in windows] == [False, sound_only]
    with pytest.raises(NoVoiceError):
        taught(noise, voice_only=True)
    with pytest.raises(NoVoiceError):
        load_pipeline(str(tmp_path), voice_only=True)(noise)


def test_noise_between_voices_does_not_count(classifier):
    first, noise, last = make_voice(4.0), make_no_voice("white noise", 8.0), make_voice(5.0, seed=1)
    answer = classifier(np.concatenate([first, noise, last]), timeline=True)
    assert [(w["start_s"], w["end_s"], w["label"] is None) for w in answer["windows"]] == [
        (0, 4, False), (4, 8, True), (8, 12, True), (12, 17, False)
    ]  # fmt: skip
    assert answer["windows"][1]["score"] is answer["windows"][1]["scores"] is None
    alone = [list(classifier(voice, timeline=True)["scores"].values()) for voice in (first, last)]
    assert list(answer["scores"].values()) == pytest.approx(np.average(alone, axis=0, weights=[4, 5]), abs=1e-5)


def test_each_kind_of_broken_file_gets_its_sentence(classifier, tmp_path):
    broken_files(tmp_path)
    for name, says in BROKEN:
        with pytest.raises(AudioError, match=says):
            classifier(str(tmp_path / name))


def test_a_constant_is_silence(classifier):
    with pytest.raises(AudioError, match="is silent"):
        classifier(np.full(5 * 16000, 0.5, np.float32))
    assert classifier(make_voice(2.0) + np.float32(0.5))


def test_batches_answer_like_single_windows(classifier):
    recordings = [make_voice(d, seed=i) for i, d in enumerate((11.0, 0.7, 4.0, 23.0))]
    recordings[0][: 4 * 16000] = 0  # a silent window in a batch
    one_by_one = [classifier(recording, timeline=True) for recording in recordings]
    for together, alone in zip(classifier(recordings, timeline=True, batch_size=3), one_by_one, strict=True):
        assert together["scores"] == pytest.approx(alone["scores"], abs=1e-5)
        assert [w["label"] for w in together["windows"]] == [w["label"] for w in alone["windows"]]


def test_options_of_the_pipeline_hold_until_a_call_says_otherwise(tiny_model, extractor, voice):
    classifier = SerPipeline(model=tiny_model, feature_extractor=extractor, task="audio-classification", top_k=2)
    assert len(classifier(voice)) == 2
    assert len(classifier(voice, top_k=3)) == 3
    assert len(classifier(voice, top_k=None)) == 8
    assert len(classifier(voice, top_k=99)) == 8
    assert len(classifier([voice, voice])[1]) == 2


@pytest.mark.parametrize("top_k", [0, -1, 2.5, "all"])
def test_impossible_top_k_is_refused(classifier, voice, top_k):
    with pytest.raises(ValueError, match="give a number of labels"):
        classifier(voice, top_k=top_k)


def test_files_tensors_and_undecoded_columns(classifier, tmp_path, voice):
    path = tmp_path / "clip.wav"
    soundfile.write(path, voice, 16000, subtype="FLOAT")
    expected = classifier(voice, timeline=True)["scores"]
    undecoded = {"bytes": path.read_bytes(), "path": "clip.wav"}  # as `datasets.Audio(decode=False)` gives
    for same in (
        path,
        {"bytes": None, "path": str(path)},
        undecoded,
        torch.tensor(voice, requires_grad=True),
        torch.tensor(np.stack([voice, voice], 1)),
        {"raw": torch.tensor(voice), "sampling_rate": 16000},
        io.BytesIO(path.read_bytes()),
    ):
        assert classifier(same, timeline=True)["scores"] == pytest.approx(expected, abs=1e-4)
    dataset = datasets.Dataset.from_list([undecoded] * 2)
    assert [answer["scores"] for answer in classifier((row for row in dataset), timeline=True)] == [
        pytest.approx(expected, abs=1e-4)
    ] * 2
    assert [answer["scores"] for answer in classifier((voice, path), timeline=True)] == [
        pytest.approx(expected, abs=1e-4)
    ] * 2
    assert classifier([]) == []


@pytest.mark.parametrize("bad", [{}, {"array": np.ones(16000)}, {"sampling_rate": 16000}, {"bytes": None}, 3.5])
def test_what_is_no_recording_is_refused(classifier, bad):
    with pytest.raises(AudioError):
        classifier(bad)


def test_a_model_fresh_from_training_does_not_drop_out(tiny_model, extractor, voice):
    classifier = SerPipeline(model=tiny_model.train(), feature_extractor=extractor, task="audio-classification")
    assert classifier(voice) == classifier(voice)


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    """The address of a folder served on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_are_fetched_only_when_asked(classifier, tmp_path, site, voice):
    soundfile.write(tmp_path / "clip.wav", voice, 16000, subtype="FLOAT")
    (tmp_path / "page.html").write_text("<p>no sound</p>")
    with pytest.raises(AudioError, match="is an address"):
        classifier(f"{site}/clip.wav")
    with pytest.raises(AudioError, match="is an address"):
        classifier(f"{site}/clip.wav", allow_urls=False)
    found = classifier(f"{site}/clip.wav", allow_urls=True, timeline=True)["scores"]
    assert found == pytest.approx(classifier(voice, timeline=True)["scores"], abs=1e-4)
    for address in ("page.html", "missing.wav", "a%"):
        with pytest.raises(AudioError, match=re.escape(f"{site}/{address}")) as caught:
            classifier(f"{site}/{address}", allow_urls=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(AudioError, match="could not be fetched"):
        classifier("http://127.0.0.1:9/clip.wav", allow_urls=True)


def test_unknown_options_are_refused(classifier, voice):
    with pytest.raises(TypeError, match="does not know"):
        classifier(voice, timelines=True)


@pytest.mark.parametrize("block_size", [1, 7, 100])
def test_windows_do_not_depend_on_the_blocks(block_size):
    samples = np.arange(75, dtype=np.float32)
    blocks = iter(np.split(samples, range(block_size, 75, block_size)))
    windows = list(cut_windows(blocks, 20, 30))
    assert [len(w) for w in windows] == [20, 20, 20, 15]
    np.testing.assert_array_equal(np.concatenate(windows), samples)


def test_windows_are_no_longer_than_what_is_heard_at_once(tiny_model, voice):
    extractor = SerFeatureExtractor(max_frames=50)  # 0.8 s
    classifier = SerPipeline(model=tiny_model, feature_extractor=extractor, task="audio-classification")
    windows = classifier(voice, timeline=True)["windows"]
    assert [w["start_s"] for w in windows] == pytest.approx([0, 0.8, 1.6, 2.4])
    assert windows[-1]["end_s"] == 3.0


def test_runs_in_half_precision(tiny_model, extractor, voice):
    classifier = SerPipeline(
        model=tiny_model.to(torch.bfloat16), feature_extractor=extractor, task="audio-classification"
    )
    assert np.isfinite(classifier(voice)[0]["score"])
