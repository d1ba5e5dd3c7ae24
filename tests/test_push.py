"""What `python -m train.push` refuses, and what it says; what arrives on the Hub is in `test_hub.py`."""

import pytest
import safetensors.torch
import torch

from ser_model import SerConfig, SerFeatureExtractor, SerForAudioClassification
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


@pytest.fixture(scope="module")
def hub():
    with serve() as hub:
        yield hub


@pytest.fixture
def logged_in(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
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


def test_says_that_the_token_is_wrong(checkpoint, capsys, logged_in, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    assert "does not let you in: your token" in (said := refusal(checkpoint, capsys)) and "hf_of_nobody" not in said


def test_says_that_the_token_may_not_write_there(checkpoint, capsys, hub, logged_in, monkeypatch):
    monkeypatch.setattr(push, "_check_reload", lambda *_: None)  # tried above, and slow
    said = refusal(checkpoint, capsys, "somebody-else/ser-base")
    assert "did not take somebody-else/ser-base: your token may not write there" in said
    assert not hub.repos


def test_says_when_the_hub_cannot_be_reached(checkpoint, capsys, logged_in, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "does not let you in" in refusal(checkpoint, capsys)
