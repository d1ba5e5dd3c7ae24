"""The whole way over real HTTP: pushed with huggingface_hub, loaded by a stranger's process with an empty cache."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from ser_model.pretrained import load_pipeline
from tests.conftest import ROOT, make_ravdess, make_voice
from tests.hub_server import TOKEN, serve
from tests.test_audio import encode
from tests.test_push import make_checkpoint

HOUR_S = 3600
# What a stranger has: neither torchaudio nor any program on the PATH, so no ffmpeg. Found before anything is imported.
BARE = """
import importlib.metadata, importlib.util, sys

class NoTorchaudio:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchaudio", "ser_model"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def without(function, missing):
    def wrapped(name, *args, **kwargs):
        if name.split(".")[0] == "torchaudio":
            return missing(name)
        return function(name, *args, **kwargs)
    return wrapped

def not_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)

sys.meta_path.insert(0, NoTorchaudio())
importlib.util.find_spec = without(importlib.util.find_spec, lambda name: None)
importlib.metadata.version = without(importlib.metadata.version, not_installed)
from transformers.utils import is_torchaudio_available
assert not is_torchaudio_available()
"""


@pytest.fixture(scope="module")
def hub():
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "ser-base")


def environment(hub, cache, **more):
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **more}


def run(command, *, cwd=ROOT, env):
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def pushed(hub, checkpoint, tmp_path_factory):
    """What the command said, with user/ser-base now on the Hub."""
    env = environment(hub, tmp_path_factory.mktemp("cache"), HF_TOKEN=TOKEN)
    return run(["-m", "train.push", "--checkpoint", str(checkpoint), "--repo-id", "user/ser-base"], env=env)


@pytest.fixture
def stranger(hub, tmp_path):
    """Runs code in a fresh process, in an empty folder and with an empty cache; what it prints last is JSON."""

    def call(code, *, bare=False, **more):
        empty = tmp_path / "no-programs"
        empty.mkdir(exist_ok=True)
        env = environment(hub, tmp_path / "cache", **({"PATH": str(empty)} if bare else {}), **more)
        done = run(["-c", (BARE if bare else "") + "import json, sys\n" + code], cwd=empty, env=env)
        return json.loads(done.stdout.splitlines()[-1])

    return call


def test_pushes_everything_in_one_commit_and_says_where(hub, pushed, checkpoint):
    assert pushed.stdout.splitlines()[-1] == f"Pushed: {hub.url}/user/ser-base"
    assert TOKEN not in pushed.stdout + pushed.stderr
    first, *commits = hub.repos["models/user/ser-base"]
    assert len(commits) == 1
    files = commits[0]["files"]
    assert set(files) - set(first["files"]) == {
        "README.md", "audio.py", "config.json", "configuration_ser.py", "feature_extraction_ser.py", "model.safetensors",
        "modeling_ser.py", "pipeline_ser.py", "preprocessor_config.json", "run.json",
    }  # fmt: skip
    assert not any(TOKEN.encode() in content for content in files.values())
    assert b'model="user/ser-base"' in files["README.md"]


def test_stranger_hears_every_kind_of_recording(hub, pushed, checkpoint, stranger, tmp_path):
    waveform = make_voice(3.0, rate=48000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([waveform, waveform], 1), 48000, subtype="FLOAT")
    encode(tmp_path / "clip.m4a", waveform, codec="aac")
    np.save(tmp_path / "waveform.npy", waveform)
    answers = stranger(
        f"""
import numpy as np
from transformers import pipeline
folder = {str(tmp_path)!r}
waveform = np.load(f"{{folder}}/waveform.npy")
classifier = pipeline("audio-classification", model="user/ser-base", trust_remote_code=True)
inputs = [f"{{folder}}/stereo.wav", f"{{folder}}/clip.m4a", {{"array": waveform, "sampling_rate": 48000}}]
array = np.asarray(classifier.feature_extractor.sampling_rate * [0.0], np.float32)
array[::100] = 0.5
print(json.dumps([type(classifier).__name__, *classifier(inputs), classifier(array)]))
""",
        bare=True,
    )
    ours = load_pipeline(str(checkpoint))
    array = np.zeros(16000, np.float32)
    array[::100] = 0.5
    expected = [
        ours(str(tmp_path / "stereo.wav")),
        ours(str(tmp_path / "clip.m4a")),
        ours(str(tmp_path / "stereo.wav")),
    ]
    assert answers[0] == "SerPipeline"
    for found, wanted in zip(answers[1:], [*expected, ours(array)], strict=True):
        assert as_scores(found) == pytest.approx(as_scores(wanted), abs=1e-4)


def as_scores(answer):
    return {entry["label"]: entry["score"] for entry in answer}


def test_stranger_hears_an_hour_in_little_memory(pushed, stranger, tmp_path):
    minute = make_voice(60.0)
    soundfile.write(tmp_path / "minute.wav", minute, 16000)
    with soundfile.SoundFile(tmp_path / "hour.wav", "w", 16000, 1) as file:
        for _ in range(HOUR_S // 60):
            file.write(minute)
    answer = stranger(
        f"""
import resource, torch
from transformers import pipeline
torch.set_num_threads(1)
classifier = pipeline("audio-classification", model="user/ser-base", trust_remote_code=True)
classifier({str(tmp_path / "minute.wav")!r}, batch_size=8)  # what any first call needs
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
answer = classifier({str(tmp_path / "hour.wav")!r}, timeline=True, batch_size=8)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([answer["duration_s"], len(answer["windows"]), grown]))
"""
    )
    assert answer[:2] == [HOUR_S, HOUR_S // 4]
    assert answer[2] < 50_000  # KiB; the hour alone is 225,000


def test_stranger_loads_the_parts_at_a_revision(hub, pushed, checkpoint, stranger, tmp_path):
    commit = hub.repos["models/user/ser-base"][1]["oid"]
    waveform = make_voice(2.0)
    np.save(tmp_path / "waveform.npy", waveform)
    found = stranger(f"""
import numpy as np
from transformers import (
    AudioClassificationPipeline, AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification
)
at = dict(revision={commit!r}, trust_remote_code=True)
model, info = AutoModelForAudioClassification.from_pretrained("user/ser-base", output_loading_info=True, **at)
extractor = AutoFeatureExtractor.from_pretrained("user/ser-base", **at)
waveform = np.load({str(tmp_path / "waveform.npy")!r})
inputs = extractor(waveform, sampling_rate=16000, return_tensors="pt")
encoder, encoder_info = AutoModel.from_pretrained("user/ser-base", output_loading_info=True, **at)
stock = AudioClassificationPipeline(model=model.eval(), feature_extractor=extractor)
print(json.dumps({{
    "wrong": [sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")],
    "encoder_missing": sorted(encoder_info["missing_keys"]), "encoder": type(encoder).__name__,
    "config": AutoConfig.from_pretrained("user/ser-base", **at).model_type,
    "logits": model(**inputs).logits[0].tolist(), "stock": stock(waveform),
}}))
""")
    ours = load_pipeline(str(checkpoint))
    with torch.inference_mode():
        expected = ours.model(**ours.feature_extractor(waveform, sampling_rate=16000, return_tensors="pt")).logits[0]
    assert found["wrong"] == [[], [], []]
    assert (found["encoder"], found["encoder_missing"], found["config"]) == ("SerModel", [], "ser")
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5)
    assert as_scores(found["stock"]) == pytest.approx(as_scores(ours(waveform)), abs=1e-5)


def test_our_own_loader_takes_a_revision_and_runs_no_code_of_the_hub(hub, pushed, checkpoint, stranger, tmp_path):
    commit = hub.repos["models/user/ser-base"][1]["oid"]
    code = f"""
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from ser_model.pretrained import default_model, load_pipeline
classifier = load_pipeline(default_model())
print(json.dumps([type(classifier.model).__module__, classifier(np.load({str(tmp_path / "w.npy")!r}))]))
"""
    waveform = make_voice(1.0)
    np.save(tmp_path / "w.npy", waveform)
    module, answer = stranger(code, SER_MODEL=f"user/ser-base@{commit}")
    assert module == "ser_model.modeling_ser"
    assert as_scores(answer) == pytest.approx(as_scores(load_pipeline(str(checkpoint))(waveform)), abs=1e-5)
    hub.requests.clear()
    again = stranger(code, SER_MODEL=f"user/ser-base@{commit}", HF_ENDPOINT="http://127.0.0.1:9")  # now from the cache
    assert as_scores(again[1]) == pytest.approx(as_scores(answer))


def test_stranger_pushes_a_fine_tuned_model(hub, pushed, stranger):
    """Whoever tunes the model further shares it by transformers' own means, and the pipeline goes along."""
    before, after, name = stranger(
        """
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline
model = AutoModelForAudioClassification.from_pretrained("user/ser-base", trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained("user/ser-base", trust_remote_code=True)
torch.manual_seed(0)
with torch.no_grad():
    for classifier in model.classifiers:
        classifier.weight += torch.randn_like(classifier.weight)
waveform = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
before = model.eval()(**extractor(waveform, sampling_rate=16000, return_tensors="pt")).logits[0].softmax(-1).tolist()
model.push_to_hub("user/tuned")
extractor.push_to_hub("user/tuned")
classifier = pipeline("audio-classification", model="user/tuned", trust_remote_code=True)
scores = {answer["label"]: answer["score"] for answer in classifier(waveform)}
after = [scores[label] for _, label in sorted(model.config.id2label.items())]
print(json.dumps([before, after, type(classifier).__name__]))
""",
        HF_TOKEN=TOKEN,
    )
    assert name == "SerPipeline"
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert "pipeline_ser.py" in hub.repos["models/user/tuned"][-1]["files"]


def test_dataset_goes_to_the_hub_and_back(hub, stranger, tmp_path):
    folder = make_ravdess(tmp_path / "ravdess", actors=(1, 2))
    rows = stranger(
        f"""
sys.path.insert(0, {str(ROOT)!r})
import datasets
from ser_model.audio import read_audio
from train.ravdess import load_ravdess
datasets.disable_progress_bars()
load_ravdess({str(folder)!r}, allow_incomplete=True).push_to_hub("user/ravdess")
data = datasets.load_dataset("user/ravdess", split="train").cast_column("audio", datasets.Audio(decode=False))
first = data[0]
names = data.features["emotion"].names
print(json.dumps([len(data), names[first["emotion"]], len(read_audio(first["audio"]["bytes"], 16000))]))
""",
        HF_TOKEN=TOKEN,
    )
    assert rows == [120, "neutral", 4800]
