"""What `python -m train.push` refuses, and what it says; what arrives on the Hub is in `test_hub.py`."""

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from ser_model import SerConfig, SerFeatureExtractor, SerForAudioClassification
from tests.conftest import ROOT
from tests.hub_server import TOKEN, serve
from train import push
from train.recipe import load_recipe
from train.train import save_run, versions


def make_checkpoint(folder):
    """An untrained network as `train.train` leaves it."""
    torch.manual_seed(0)
    model = SerForAudioClassification(SerConfig(conv_channels=16, lstm_hidden_size=8, num_attention_heads=2)).eval()
    run = {
        "recipe": load_recipe("ser-base").to_dict(),
        "protocol": "all",
        "fold": None,
        "seed": 0,
        "train_seconds": 1.0,
        "num_parameters": model.num_parameters(),
        "versions": versions(),
    }
    save_run(run, model, SerFeatureExtractor(), folder, with_code=True)
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    return make_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def logged_in(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def refusal(checkpoint, capsys, repo_id="user/ser-base"):
    assert push.main(["--checkpoint", str(checkpoint), "--repo-id", repo_id]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert TOKEN not in said.err
    return said.err


def test_asks_for_login(checkpoint, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert "hf auth login" in refusal(checkpoint, capsys)


@pytest.mark.parametrize("repo_id", ["ser-base", "a/b/c", "user/", "user/na me"])
def test_refuses_names_without_a_user(checkpoint, capsys, logged_in, repo_id):
    assert "give USER/NAME" in refusal(checkpoint, capsys, repo_id)


def test_refuses_what_is_no_finished_run(tmp_path, capsys, logged_in):
    assert "not a finished checkpoint" in refusal(tmp_path, capsys)


def edit_weights(checkpoint, edit):
    path = checkpoint / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    edit(weights)
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


def test_refuses_missing_weights(checkpoint, capsys, logged_in):
    edit_weights(checkpoint, lambda weights: weights.pop("classifiers.0.weight"))
    assert "classifiers.0.weight" in refusal(checkpoint, capsys)


def test_refuses_weights_of_another_shape(checkpoint, capsys, logged_in):
    edit_weights(checkpoint, lambda weights: weights.update({"classifiers.0.weight": torch.zeros(3, 3)}))
    assert "not those of this network" in refusal(checkpoint, capsys)


def test_refuses_damaged_weights(checkpoint, capsys, logged_in):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "damaged" in refusal(checkpoint, capsys)


def test_refuses_weights_that_answer_nothing(checkpoint, capsys, logged_in):
    edit_weights(checkpoint, lambda weights: weights["classifiers.0.weight"].fill_(torch.nan))
    assert "NaN" in refusal(checkpoint, capsys)


def test_refuses_what_gives_other_logits_when_it_is_loaded_again(checkpoint, capsys, logged_in, monkeypatch):
    """As from a network with a part that is not saved: here, one whose saved weights differ from those in memory."""

    def save_others(classifier, folder):
        original(classifier, folder)
        edit_weights(folder, lambda weights: weights["classifiers.0.bias"].add_(torch.arange(8.0)))

    original = push.SerPipeline.save_pretrained
    monkeypatch.setattr(push.SerPipeline, "save_pretrained", save_others)
    assert "other logits" in refusal(checkpoint, capsys)


@pytest.mark.parametrize(
    ("repo_id", "token", "says"),
    [
        ("somebody-else/ser-base", TOKEN, "your token may not write there"),
        ("user/ser-base", "hf_of_nobody", "your token may not write there"),
    ],
)
def test_says_what_the_hub_refuses(checkpoint, tmp_path, repo_id, token, says):
    with serve() as hub:
        done = run_push(checkpoint, repo_id, HF_ENDPOINT=hub.url, HF_TOKEN=token, HF_HOME=str(tmp_path))
        assert not hub.repos
    assert done.returncode == 1 and says in done.stderr
    assert "Traceback" not in done.stderr and token not in done.stderr + done.stdout


def test_says_when_the_hub_cannot_be_reached(checkpoint, tmp_path):
    done = run_push(checkpoint, "user/ser-base", HF_TOKEN=TOKEN, HF_HOME=str(tmp_path))
    assert done.returncode == 1 and "The Hub did not take user/ser-base" in done.stderr
    assert "Traceback" not in done.stderr and TOKEN not in done.stderr + done.stdout


def run_push(checkpoint, repo_id, **environment):
    return subprocess.run(
        [sys.executable, "-m", "train.push", "--checkpoint", str(checkpoint), "--repo-id", repo_id],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_staged_card_names_the_repository(checkpoint, tmp_path):
    folder = tmp_path / "staged"
    folder.mkdir()
    push.stage(checkpoint, "user/mine", folder)
    assert 'model="user/mine"' in (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["custom_pipelines"]["audio-classification"]["impl"] == "pipeline_ser.SerPipeline"
    assert config["auto_map"]["AutoModel"] == "modeling_ser.SerModel"
