import copy
import functools
import http.server
import io
import json
import pickle
import re
import shutil
import subprocess
import threading

import datasets
import numpy as np
import pytest
import soundfile
import torch
from datasets.fingerprint import Hasher
from transformers import AudioClassificationPipeline

from ser_model import SerFeatureExtractor, SerPipeline
from ser_model.audio import AudioError
from ser_model.configuration_ser import EMOTIONS
from ser_model.pipeline_ser import MIN_REST_S, WINDOW_S, cut_windows, window_sizes
from ser_model.pretrained import load_pipeline
from ser_model.voice import NoVoiceError
from tests.conftest import NO_VOICES, ROOT, make_no_voice, make_voice
from tests.test_audio import BROKEN, broken_files
from train.export import window_settings

WINDOWS = json.loads((ROOT / "tests" / "windows.json").read_text(encoding="utf-8"))


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
        assert all(MIN_REST_S <= w["end_s"] - w["start_s"] < WINDOW_S + MIN_REST_S for w in windows)
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
        np.stack([voice, voice]),
        {"raw": voice[None], "sampling_rate": 16000.0},
        {"raw": torch.tensor(voice), "sampling_rate": 16000},
        io.BytesIO(path.read_bytes()),
    ):
        assert classifier(same, timeline=True)["scores"] == pytest.approx(expected, abs=1e-4)
    integers = np.round(2**15 * voice).astype(np.int16)
    recorded = {"array": integers.tobytes(), "sampling_rate": torch.tensor(16000)}
    assert classifier(recorded) == classifier(integers)
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


@pytest.mark.parametrize("group", WINDOWS, ids=lambda group: group["about"])
@pytest.mark.parametrize("block_size", [777, 16000, 1_000_000])
def test_windows_do_not_depend_on_the_blocks(group, block_size):
    sizes = window_sizes(SerFeatureExtractor(**group["extractor"]))
    for case in group["cases"]:
        samples = np.arange(case["num_samples"], dtype=np.float32)
        blocks = iter(np.split(samples, range(block_size, len(samples), block_size)))
        windows = list(cut_windows(blocks, *sizes))
        assert [len(window) for window in windows] == case["windows"]
        np.testing.assert_array_equal(np.concatenate(windows), samples)


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js is installed")
@pytest.mark.parametrize("group", WINDOWS, ids=lambda group: group["about"])
def test_the_page_cuts_alike(group):
    settings = {name: json.loads(v) for name, v in window_settings(SerFeatureExtractor(**group["extractor"])).items()}
    script = f"""
import {{ cutWindows }} from {json.dumps((ROOT / "web" / "windows.mjs").as_uri())};
const cut = ({{ num_samples }}) =>
  Array.from(cutWindows(new Float32Array(num_samples), {json.dumps(settings)}), (window) => window.length);
console.log(JSON.stringify({json.dumps(group["cases"])}.map(cut)));
"""
    found = subprocess.check_output(["node", "--input-type=module", "--eval", script], timeout=100)
    assert json.loads(found) == [case["windows"] for case in group["cases"]]


def test_windows_are_no_longer_than_what_is_heard_at_once(tiny_model, voice):
    extractor = SerFeatureExtractor(max_frames=50)  # 0.8 s
    classifier = SerPipeline(model=tiny_model, feature_extractor=extractor, task="audio-classification")
    windows = classifier(voice, timeline=True)["windows"]
    assert [w["start_s"] for w in windows] == pytest.approx([0, 0.8, 1.6, 2.4])
    assert windows[-1]["end_s"] == 3.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_runs_in_half_precision(classifier, dtype):
    sounds = [make_voice(3.0), make_voice(5.0, seed=1)]
    expected = [answer["scores"] for answer in classifier(sounds, timeline=True)]
    classifier.model.to(dtype)
    for batch_size in (1, 2):
        for answer, scores in zip(classifier(sounds, timeline=True, batch_size=batch_size), expected):
            assert answer["scores"] == pytest.approx(scores, abs=0.02)


class LowRank(torch.nn.Module):
    """A layer with an adapter beside it, as fine-tuning libraries put in its place."""

    def __init__(self, base_layer: torch.nn.Linear):
        super().__init__()
        self.base_layer = base_layer
        self.dropout = torch.nn.Dropout(0.5)
        self.down = torch.nn.Linear(base_layer.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, base_layer.out_features, bias=False)

    @property
    def in_features(self):
        return self.base_layer.in_features

    def forward(self, hidden_states):
        return self.base_layer(hidden_states) + self.up(self.down(self.dropout(hidden_states)))


def zero(classifier):
    for parameter in classifier.model.parameters():
        parameter.data.zero_()


def load_others(classifier):
    torch.manual_seed(1)
    classifier.model.load_state_dict(type(classifier.model)(classifier.model.config).state_dict())


def replace(classifier):
    torch.manual_seed(1)
    classifier.model = type(classifier.model)(classifier.model.config)


def adapt(classifier):
    torch.manual_seed(1)
    for owner in list(classifier.model.modules()):
        for name, layer in list(owner.named_children()):
            if type(layer) is torch.nn.Linear:
                setattr(owner, name, LowRank(layer))


def quantise(classifier):
    torch.ao.quantization.quantize_dynamic(classifier.model, {torch.nn.Linear, torch.nn.LSTM}, inplace=True)


def heat(classifier):
    classifier.model.config.temperature = 5.0


def hear_as_it_is(classifier):
    classifier.feature_extractor.normalize = None


CHANGES = [zero, load_others, replace, adapt, quantise, heat, hear_as_it_is]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
def test_what_is_there_answers(classifier, voice, change):
    before = classifier(voice, timeline=True)["scores"]
    change(classifier)
    after = classifier(voice, timeline=True)["scores"]
    assert after != before
    inputs = classifier.feature_extractor(voice, sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        scores = classifier.model.eval()(**inputs).logits.softmax(-1)[0].tolist()
    assert list(after.values()) == pytest.approx(scores, abs=1e-5)
    assert sum(after.values()) == pytest.approx(1, abs=1e-5)
    assert classifier(voice, timeline=True)["scores"] == after


def through_pickle(classifier, package=pickle):
    return pickle.loads(package.dumps(classifier))  # noqa: S301  just written


def through_cloudpickle(classifier):
    return through_pickle(classifier, pytest.importorskip("cloudpickle"))


def through_joblib(classifier):
    joblib, file = pytest.importorskip("joblib"), io.BytesIO()
    joblib.dump(classifier, file)
    file.seek(0)
    return joblib.load(file)


COPIES = [through_pickle, copy.deepcopy, through_cloudpickle, through_joblib]


@pytest.mark.parametrize("copied", COPIES, ids=lambda copied: copied.__name__)
def test_can_be_copied(classifier, voice, copied):
    expected = classifier(voice, timeline=True)["scores"]
    other = copied(classifier)
    assert other(voice, timeline=True)["scores"] == pytest.approx(expected, abs=1e-6)
    zero(other)
    assert classifier(voice, timeline=True)["scores"] == pytest.approx(expected, abs=1e-6)


def test_datasets_knows_it_again_by_its_weights():
    """What `map` did is found in the cache, but not what other weights did."""
    first, same, other = load_pipeline("cnn-bilstm"), load_pipeline("cnn-bilstm"), load_pipeline("cnn-bilstm")
    zero(other)
    assert Hasher.hash(first) == Hasher.hash(same) != Hasher.hash(other)
    sounds = datasets.Dataset.from_dict({"array": [make_voice(1.0)] * 2})
    heard = sounds.map(lambda row: {"label": first(np.float32(row["array"]))[0]["label"]})
    assert heard["label"][0] in EMOTIONS
