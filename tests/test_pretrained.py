"""What a stranger does with a checkpoint: another process, another folder, no `ser_model`, no network."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ser_model.configuration_ser import EMOTIONS
from ser_model.pretrained import FOLDER, available, load_pipeline
from tests.conftest import ROOT, make_voice

STRANGER = """
import json, sys
import numpy as np
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

try:
    import ser_model
    sys.exit("ser_model must not be importable here")
except ImportError:
    pass

for checkpoint in sys.argv[1:]:
    waveform = np.load(checkpoint + ".npy")
    model, info = AutoModelForAudioClassification.from_pretrained(
        checkpoint, trust_remote_code=True, output_loading_info=True
    )
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint, trust_remote_code=True)
    logits = model.eval()(**extractor(waveform, return_tensors="pt")).logits
    classifier = pipeline("audio-classification", model=checkpoint, trust_remote_code=True)
    print(json.dumps({
        "missing": sorted(info["missing_keys"]), "unexpected": sorted(info["unexpected_keys"]),
        "mismatched": sorted(info["mismatched_keys"]), "logits": logits[0].tolist(), "answer": classifier(waveform),
    }))
"""


def test_all_load_in_a_fresh_process(tmp_path):
    expected = {}
    for name in available():
        pipeline = load_pipeline(name)
        pipeline.model.save_pretrained(tmp_path / name)
        pipeline.feature_extractor.save_pretrained(tmp_path / name)
        rate = pipeline.feature_extractor.sampling_rate
        waveform = make_voice(2.5, rate=rate)
        np.save(tmp_path / f"{name}.npy", waveform)
        with torch.inference_mode():
            inputs = pipeline.feature_extractor(waveform, sampling_rate=rate, return_tensors="pt")
            expected[name] = pipeline.model(**inputs).logits[0]

    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *(str(tmp_path / name) for name in expected)],
        cwd=tmp_path,
        env={**elsewhere, "HF_HOME": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for logits, line in zip(expected.values(), done.stdout.splitlines()[-len(expected) :], strict=True):
        found = json.loads(line)
        assert found["missing"] == found["unexpected"] == found["mismatched"] == []
        np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
        scores = {answer["label"]: answer["score"] for answer in found["answer"]}
        probabilities = dict(zip(EMOTIONS, logits.softmax(-1).tolist()))
        assert scores == pytest.approx(probabilities, abs=1e-5)


class Changed(torch.nn.Module):
    """Something in the place of a layer, which does what the layer does and a little more."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args, **kwargs):
        output = self.layer(*args, **kwargs)
        return (1.5 * output[0] + 0.1, output[1]) if isinstance(output, tuple) else 1.5 * output + 0.1


# torch's own attention reads these weights by itself.
READ_BY_OTHERS = torch.nn.modules.linear.NonDynamicallyQuantizableLinear


@pytest.mark.parametrize("name", available())
def test_whatever_takes_the_place_of_a_layer_counts(name):
    pipeline = load_pipeline(name, voice_only=False)
    waveform = make_voice(2.5, rate=pipeline.feature_extractor.sampling_rate)
    expected = pipeline(waveform)
    for owner in list(pipeline.model.modules()):
        for place, layer in list(owner.named_children()):
            if next(layer.children(), None) or isinstance(
                layer, (torch.nn.Dropout, torch.nn.Dropout1d, READ_BY_OTHERS)
            ):
                continue
            setattr(owner, place, Changed(layer))
            assert pipeline(waveform) != expected, f"{type(owner).__name__}.{place}"
            setattr(owner, place, layer)
    assert pipeline(waveform) == expected


@pytest.mark.parametrize("name", available())
def test_ships_safe_and_small(name):
    files = {path.name for path in (FOLDER / name).iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "run.json"}
    assert (FOLDER / name / "model.safetensors").stat().st_size < 10e6
    card = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert "cc-by-nc-sa-4.0" in card


@pytest.mark.parametrize("name", ["no-such-recipe", "a/b/c", "/nowhere"])
def test_unknown_checkpoints_are_named(name):
    with pytest.raises(OSError, match="There is no checkpoint"):
        load_pipeline(name)


def test_importing_the_package_is_enough_for_the_auto_classes():
    code = "import ser_model; from transformers import AutoConfig; print(AutoConfig.for_model('ser').num_labels)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, timeout=100) == b"8\n"
