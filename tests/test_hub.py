"""The whole way over real HTTP: pushed with huggingface_hub, loaded by a stranger's process with an empty cache."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from ser_model.pretrained import default_model, load_pipeline
from tests.conftest import ROOT, make_ravdess, make_voice
from tests.fuzz import make_recording
from tests.hub_server import TOKEN, serve
from tests.test_push import make_checkpoint
from train import finetune, push, train
from train.recipe import load_recipe

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


@pytest.fixture(scope="module", autouse=True)
def own_hub(hub, tmp_path_factory):
    """This process, too, meets the test's own Hub, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield


@pytest.fixture(scope="module")
def pushed(hub, checkpoint):
    """What the command said, with user/ser-base now on the Hub."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert push.main(["--checkpoint", str(checkpoint), "--repo-id", "user/ser-base"]) == 0
    return said.getvalue()


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
    assert pushed == f"Pushed: {hub.url}/user/ser-base\n"
    first, *commits = hub.repos["models/user/ser-base"]
    assert len(commits) == 1
    files = commits[0]["files"]
    assert set(files) - set(first["files"]) == {
        "README.md", "audio.py", "config.json", "configuration_ser.py", "descriptors_ser.py", "encoders_ser.py",
        "feature_extraction_ser.py", "model.safetensors", "modeling_ser.py", "pipeline_ser.py", "preprocessor_config.json",
        "run.json", "speech_ser.py", "statistics_ser.py", "threads_ser.py", "voice.py",
    }  # fmt: skip
    assert not any(TOKEN.encode() in content for content in files.values())
    assert b'model="user/ser-base"' in files["README.md"]
    config = json.loads(files["config.json"])
    assert config["custom_pipelines"]["audio-classification"]["impl"] == "pipeline_ser.SerPipeline"


def test_stranger_hears_every_kind_of_recording(pushed, checkpoint, stranger, tmp_path):
    waveform = make_voice(3.0, rate=48000)
    stereo, m4a, hour = (str(tmp_path / name) for name in ("stereo.wav", "clip.m4a", "hour.wav"))
    soundfile.write(stereo, np.stack([waveform, waveform], 1), 48000, subtype="FLOAT")
    Path(m4a).write_bytes(make_recording("m4a", waveform))
    minute = make_voice(60.0)
    with soundfile.SoundFile(hour, "w", 16000, 1) as file:
        for _ in range(HOUR_S // 60):
            file.write(minute)
    np.save(tmp_path / "waveform.npy", waveform)
    np.save(tmp_path / "at_16_khz.npy", minute[:40000])
    found = stranger(
        f"""
import resource
import numpy as np, torch
from transformers import pipeline
torch.set_num_threads(1)
waveform, at_16_khz = np.load("../waveform.npy"), np.load("../at_16_khz.npy")
classifier = pipeline("audio-classification", model="user/ser-base", trust_remote_code=True)
answers = classifier([{stereo!r}, {m4a!r}, {{"array": waveform, "sampling_rate": 48000}}, at_16_khz], batch_size=8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
hour = classifier({hour!r}, timeline=True, batch_size=8)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([type(classifier).__name__, answers, hour["duration_s"], len(hour["windows"]), grown]))
""",
        bare=True,
    )
    name, answers, *long, grown_kib = found
    ours = load_pipeline(str(checkpoint))
    assert name == "SerPipeline"
    for answer, same in zip(answers, (stereo, m4a, stereo, minute[:40000]), strict=True):
        assert as_scores(answer) == pytest.approx(as_scores(ours(same)), abs=1e-4)
    assert long == [HOUR_S, HOUR_S // 4]
    assert grown_kib < 60_000  # the hour itself is 225,000


def as_scores(answer):
    return {entry["label"]: entry["score"] for entry in answer}


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


def test_our_own_loader_takes_a_revision_and_runs_no_code_of_the_hub(hub, pushed, checkpoint, voice, monkeypatch):
    commit = hub.repos["models/user/ser-base"][1]["oid"]
    monkeypatch.setenv("SER_MODEL", f"user/ser-base@{commit}")
    hub.requests.clear()
    classifier = load_pipeline(default_model())
    assert type(classifier.model).__module__ == "ser_model.modeling_ser"
    assert as_scores(classifier(voice)) == pytest.approx(as_scores(load_pipeline(str(checkpoint))(voice)), abs=1e-5)
    assert hub.requests and not [request for request in hub.requests if ".py" in request]
    hub.requests.clear()
    assert as_scores(load_pipeline(default_model())(voice)) == as_scores(classifier(voice))
    assert not hub.requests  # a commit that is in the cache is not asked for again
    with pytest.raises(OSError, match="could not be loaded from the Hub") as caught:
        load_pipeline("user/no-such")
    assert "\n" not in str(caught.value)


def test_fine_tuning_finds_the_augmentation_of_what_is_on_the_hub(hub, pushed, tmp_path):
    folder = Path(load_pipeline("user/ser-base").model.name_or_path)
    assert finetune.own_augmentation("user/ser-base", folder) == load_recipe("ser-base").augmentation
    bare = {**hub.repos["models/user/ser-base"][-1], "oid": "b" * 40}
    bare["files"] = {path: content for path, content in bare["files"].items() if path != "run.json"}
    hub.repos["models/user/bare"] = [bare]
    folder = Path(load_pipeline("user/bare").model.name_or_path)
    assert finetune.own_augmentation("user/bare", folder) is None


@pytest.mark.parametrize("model", ["user/ser-base", "ser-base", "user/a b@main", "@main"])
def test_a_demo_follows_no_moving_target(monkeypatch, model):
    monkeypatch.setenv("SER_MODEL", model)
    with pytest.raises(ValueError, match="give USER/NAME@REVISION"):
        default_model()


@pytest.mark.parametrize("model", [None, ""])
def test_a_demo_shows_what_ships_unless_told_otherwise(monkeypatch, model):
    monkeypatch.delenv("SER_MODEL", raising=False)
    if model is not None:
        monkeypatch.setenv("SER_MODEL", model)
    assert default_model() == "ser-base"


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
model.config.voice_only = False
model.push_to_hub("user/tuned")
extractor.push_to_hub("user/tuned")
classifier = pipeline("audio-classification", model="user/tuned", trust_remote_code=True)
scores = {answer["label"]: answer["score"] for answer in classifier(waveform)}  # noise
after = [scores[label] for _, label in sorted(model.config.id2label.items())]
print(json.dumps([before, after, type(classifier).__name__]))
""",
        HF_TOKEN=TOKEN,
    )
    assert name == "SerPipeline"
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert "pipeline_ser.py" in hub.repos["models/user/tuned"][-1]["files"]


def test_dataset_goes_to_the_hub_and_back(hub, stranger, tmp_path):
    folder = make_ravdess(tmp_path / "ravdess", actors=(1,))
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
    assert rows == [60, "neutral", 4800]


def test_trainer_pushes_while_it_trains_and_ends_with_what_loads(hub, tmp_path, voice, monkeypatch):
    """The Trainer's own pushes hold neither the extractor's code nor the pipeline; the last commit does."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = make_ravdess(tmp_path / "ravdess", actors=(1,))
    tiny = {
        "model": {"num_cepstra": 0, "conv_channels": 8, "lstm_hidden_size": 4, "num_attention_heads": 1},
        "training": {"num_epochs": 2},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    arguments = [
        "--recipe",
        tmp_path / "tiny.yaml",
        "--data",
        folder,
        "--allow-incomplete",
        "--output",
        tmp_path / "out",
    ]
    assert train.main([*map(str, arguments), "--push-to-hub", "user/tiny"]) == 0
    *earlier, last = hub.repos["models/user/tiny"]
    assert any("Training in progress" in commit["title"] for commit in earlier)
    assert not any("training_args" in path or "checkpoint" in path for path in last["files"])
    downloaded = load_pipeline("user/tiny")
    assert as_scores(downloaded(voice)) == pytest.approx(
        as_scores(load_pipeline(str(tmp_path / "out"))(voice)), abs=1e-6
    )
    assert "pipeline_ser.py" in last["files"] and b'model="user/tiny"' in last["files"]["README.md"]
