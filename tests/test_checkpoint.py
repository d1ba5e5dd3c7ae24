import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForAudioClassification

from ser_model import pretrained
from ser_model.__main__ import main
from ser_model.pretrained import load_pipeline

WEIGHTS, CONFIG, EXTRACTOR = "model.safetensors", "config.json", "preprocessor_config.json"


@pytest.fixture
def checkpoint(tmp_path, tiny_model, extractor):
    tiny_model.save_pretrained(tmp_path / "it")
    extractor.save_pretrained(tmp_path / "it")
    load_pipeline(str(tmp_path / "it"))
    return tmp_path / "it"


def cut(name, percent):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * percent // 100])

    return damage


def flip(name, at):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 0xFF
        (folder / name).write_bytes(content)

    return damage


def change(**settings):
    def damage(folder):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **settings}))

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


def pickle(name):
    def damage(folder):
        (folder / WEIGHTS).unlink()
        torch.save({"weight": torch.zeros(3)}, folder / name)

    return damage


def forget(folder):
    weights = load_file(folder / WEIGHTS)
    weights.pop(next(iter(weights)))
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def poison(folder):
    weights = load_file(folder / WEIGHTS)
    name = next(name for name, weight in weights.items() if weight.is_floating_point())
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


LABELS = {str(i): str(i) for i in range(8)}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut(WEIGHTS, 0), "model.safetensors is damaged"),
        (cut(WEIGHTS, 1), "model.safetensors is damaged"),
        (cut(WEIGHTS, 50), "model.safetensors is damaged"),
        (cut(WEIGHTS, 99), "model.safetensors is damaged"),
        (flip(WEIGHTS, 3), "model.safetensors is damaged"),
        (flip(WEIGHTS, 20), "model.safetensors is damaged"),
        (poison, "model.safetensors is damaged: .* NaN"),
        (forget, "do not match"),
        (remove(WEIGHTS), "model.safetensors is missing"),
        (pickle("pytorch_model.bin"), "pytorch_model.bin is a pickle"),
        (pickle("best.pt"), "best.pt is a pickle"),
        (pickle(WEIGHTS), "model.safetensors is damaged or not in the safetensors format"),
        (remove(CONFIG), "config.json is missing"),
        (cut(CONFIG, 50), "config.json is damaged"),
        (cut(CONFIG, 0), "config.json is damaged"),
        (
            change(conv_channels=32),
            r"config.json does not fit model.safetensors in shape, as .* instead of",
        ),
        (change(conv_channels="many"), "config.json does not fit"),
        (change(conv_channels=-3), "config.json does not fit"),
        (change(model_type="wav2vec2"), "config.json does not fit|do not match"),
        (change(model_type="nothing"), "config.json does not fit"),
        (change(id2label={"0": "calm"}, label2id={"calm": 0}), "config.json does not fit"),
        (change(id2label={**LABELS, "7": "0"}), "config.json has wrong labels"),
        (change(id2label=LABELS, label2id={"0": 1}), "config.json has wrong labels"),
        (change(id2label={str(2 * i): str(i) for i in range(8)}), "config.json has wrong labels"),
        (change(id2label=[0, 1]), "config.json has wrong labels"),
        (remove(EXTRACTOR), "preprocessor_config.json is missing"),
        (cut(EXTRACTOR, 50), "preprocessor_config.json is damaged"),
    ],
)
def test_bad_checkpoints_are_refused_by_name(checkpoint, capsys, damage, says):
    damage(checkpoint)
    with pytest.raises((OSError, ValueError), match=says) as caught:
        load_pipeline(str(checkpoint))
    assert "\n" not in str(caught.value) and str(checkpoint) in str(caught.value)
    assert main([__file__, "--model", str(checkpoint)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


class Full(AutoModelForAudioClassification):
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GB.")


def test_other_errors_say_what_they_are(checkpoint, monkeypatch):
    """What is no fault of the checkpoint: a full graphics card, simulated, and one that is not there."""
    with pytest.raises(OSError, match="cannot be loaded on 'abacus': Expected one of cpu, cuda"):
        load_pipeline(str(checkpoint), device="abacus")
    monkeypatch.setattr(pretrained, "AutoModelForAudioClassification", Full)
    with pytest.raises(OSError, match="cannot be loaded on 'cpu': CUDA out of memory. Tried to allocate 2 GB.$"):
        load_pipeline(str(checkpoint))
