import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from ser_model import SerConfig, SerFeatureExtractor, SerForAudioClassification
from ser_model.__main__ import main
from ser_model.checkpoint import CONFIG, EXTRACTOR, WEIGHTS, read_checkpoint
from ser_model.pretrained import load_pipeline
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "good"
    SerForAudioClassification(SerConfig(num_cepstra=20, conv_channels=16, lstm_hidden_size=8)).save_pretrained(folder)
    SerFeatureExtractor().save_pretrained(folder)
    read_checkpoint(folder)
    return folder


@pytest.fixture
def checkpoint(good, tmp_path):
    return shutil.copytree(good, tmp_path / "it")


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
    return change_in(CONFIG, **settings)


def change_in(name, **settings):
    def damage(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **settings}))

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def enlarge(name, num_bytes):
    return lambda folder: os.truncate(folder / name, num_bytes)


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


def fill(value, kind=""):
    """Puts one number in the place of all weights whose names end so."""

    def damage(folder):
        weights = load_file(folder / WEIGHTS)
        for name, weight in weights.items():
            if weight.is_floating_point() and name.endswith(kind):
                weights[name] = torch.full_like(weight, value)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def store_as(dtype):
    def damage(folder):
        weights = {name: weight.to(dtype) for name, weight in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


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
        (fill(torch.nan), "model.safetensors is damaged: .* holds NaN"),
        (fill(torch.inf, "bias"), "model.safetensors is damaged: .* holds NaN or numbers above"),
        (fill(0.0), "model.safetensors is damaged: .* holds nothing but zeros"),
        (
            fill(0.0, "pooling.hidden.weight"),
            "model.safetensors is damaged: .*pooling.hidden.weight holds nothing but zeros",
        ),
        (fill(-1.0, "running_var"), "model.safetensors is damaged: the network answers with NaN"),
        (
            store_as(torch.int8),
            "model.safetensors does not fit this network: .* must be BF16 or F16 or F32 or F64, not I8",
        ),
        (enlarge(WEIGHTS, 10**12), "model.safetensors is larger than any of this network"),
        (write(WEIGHTS, (10**9).to_bytes(8, "little") + b"{}"), "model.safetensors is damaged"),
        (forget, "do not match"),
        (remove(WEIGHTS), "model.safetensors is missing"),
        (pickle("pytorch_model.bin"), "pytorch_model.bin is a pickle"),
        (pickle("best.pt"), "best.pt is a pickle"),
        (pickle(WEIGHTS), "model.safetensors is damaged or not in the safetensors format"),
        (remove(CONFIG), "config.json is missing"),
        (cut(CONFIG, 50), "config.json is damaged"),
        (cut(CONFIG, 0), "config.json is damaged"),
        (change(conv_channels=32), "config.json does not fit"),
        (change(conv_channels="many"), "config.json does not fit this network: conv_channels must be .*, not 'many'"),
        (
            change(conv_channels=-3),
            "config.json does not fit this network: conv_channels must be from 1 to 4096, not -3",
        ),
        (change(conv_channels=[16, 16]), "conv_channels must have as many entries as conv_strides .3., not 2"),
        (change(conv_strides=[1] * 100_000), "conv_strides must have at most 32 entries, not 100000"),
        (
            change(lstm_hidden_size=4096, hidden_size=4096, conv_channels=4096),
            "config.json does not fit model.safetensors",
        ),
        (change(conv_strides=[]), "conv_strides must have an entry for each convolution"),
        (change(num_cepstra=[20, 0]), "num_cepstra must be int, not"),
        (change(conv_kernel_size=4), "conv_kernel_size must be odd"),
        (change(num_cepstra=65), "num_cepstra must be at most"),
        (change(num_lags=64), "num_lags must be below feature_size"),
        (change(num_lags=True), "num_lags must be int, not True"),
        (change(temperature=0), "config.json does not fit this network: temperature must be from 0.01 to 100, not 0"),
        (change(temperature=-1.5), "temperature must be from 0.01 to 100, not -1.5"),
        (change(temperature=10**400), "temperature must be from 0.01 to 100, not 10000"),
        (change(temperature="1"), "temperature must be .*, not '1'"),
        (change(temperature=True), "temperature must be .*, not True"),
        (change(temperature=float("nan")), "config.json is damaged: it has NaN"),
        (change(temperature=float("inf")), "config.json is damaged: it has Infinity"),
        (
            write(CONFIG, b'{"model_type": "ser", "temperature": 1e999}'),
            "temperature must be from 0.01 to 100, not inf",
        ),
        (change(dtype="nonsense"), "dtype must be one of float16, bfloat16, float32, float64, not 'nonsense'"),
        (change(temprature=1.0), "no setting 'temprature', which is 1.0 there. Correct its name, or remove it"),
        (change(_attn_implementation="someone/kernel"), "no setting '_attn_implementation', which is 'someone/kernel'"),
        (change(quantization_config={"quant_method": "gptq"}), "no setting 'quantization_config'"),
        (
            change(model_type="wav2vec2"),
            "config.json does not fit this network: model_type must be 'ser', not 'wav2vec2'",
        ),
        (change(model_type=None), "model_type must be 'ser', not None"),
        (write(CONFIG, b"[" * 100_000), "config.json is damaged: it is nested too deeply"),
        (write(CONFIG, b'{"model_type": "ser", "hidden_size": 64, "hidden_size": 8}'), "it has 'hidden_size' twice"),
        (write(CONFIG, b"[]"), "config.json is damaged: it holds no settings"),
        (write(CONFIG, b"\xff\xfe\xff"), "config.json is damaged: it is not JSON"),
        (enlarge(CONFIG, 10**12), "config.json is larger than any of this network"),
        (change(id2label={"0": "calm"}, label2id={"calm": 0}), "config.json does not fit"),
        (change(id2label={**LABELS, "7": "0"}), "id2label must number different labels from 0"),
        (change(id2label=LABELS, label2id={"0": 1}), "label2id must say the same as id2label"),
        (change(id2label={str(2 * i): str(i) for i in range(8)}), "id2label must number different labels from 0"),
        (change(id2label={**LABELS, "7": "\x1b[2J"}), "id2label must number different labels from 0"),
        (change(id2label={}), "id2label must number different labels from 0"),
        (change(id2label=[0, 1]), "id2label must number different labels from 0"),
        (remove(EXTRACTOR), "preprocessor_config.json is missing"),
        (cut(EXTRACTOR, 50), "preprocessor_config.json is damaged"),
        (change_in(EXTRACTOR, feature_extractor_type="Wav2Vec2FeatureExtractor"), "must be 'SerFeatureExtractor', not"),
        (change_in(EXTRACTOR, hop_length=0), "preprocessor_config.json does not fit this network: hop_length must be"),
        (change_in(EXTRACTOR, hop_length=1), "hop_length must be at least 32 at 16000 Hz, not 1"),
        (change_in(EXTRACTOR, hop_length=256.5), "hop_length must be a whole number"),
        (change_in(EXTRACTOR, n_fft=10**9), "n_fft must be a whole number from 16 to 16384"),
        (change_in(EXTRACTOR, n_fft=511), "n_fft must be even"),
        (change_in(EXTRACTOR, sampling_rate="16000"), "sampling_rate must be a whole number .*, not '16000'"),
        (change_in(EXTRACTOR, top_db=float("nan")), "preprocessor_config.json is damaged: it has NaN"),
        (change_in(EXTRACTOR, top_db=-3), "top_db must be a number from 1 to 1000, not -3"),
        (change_in(EXTRACTOR, max_frames=0), "max_frames must be a whole number from 1"),
        (change_in(EXTRACTOR, feature_type=["log_mel"]), "feature_type must be one of .*, not \\['log_mel'\\]"),
        (change_in(EXTRACTOR, feature_size=80, num_mel_bins=80), "feature_size must be 64, as in config.json, not 80"),
        (change_in(EXTRACTOR, normalize="dataset"), "mean and std are missing"),
        (change_in(EXTRACTOR, normalize="dataset", mean=[0] * 64, std=[0] * 64), "std must be 64 numbers from 1e-09"),
        (change_in(EXTRACTOR, hop_lenght=128), "no setting 'hop_lenght'"),
    ],
)
def test_bad_checkpoints_are_refused_by_name(checkpoint, capsys, damage, says):
    damage(checkpoint)
    with pytest.raises((OSError, ValueError), match=says) as caught:
        load_pipeline(str(checkpoint))
    assert "\n" not in str(caught.value) and str(checkpoint) in str(caught.value)
    assert main([__file__, "--model", str(checkpoint)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_what_transformers_writes_beside_the_settings_changes_nothing(checkpoint, voice):
    expected = load_pipeline(str(checkpoint))(voice)
    program = {"AutoConfig": "someone/elsewhere--configuration.Config"}
    change(auto_map=program, custom_pipelines={"audio-classification": {"impl": "someone/elsewhere--x.Y"}})(checkpoint)
    change(problem_type="single_label_classification", return_dict=False, output_attentions=True)(checkpoint)
    change_in(EXTRACTOR, auto_map=program, processor_class="Wav2Vec2Processor", padding_side="left")(checkpoint)
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/elsewhere"}')
    assert load_pipeline(str(checkpoint))(voice) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": float("nan")},
        {"conv_strides": [1] * 100_000},
        {"conv_channels": [8]},
        {"num_labels": 10**9},
        {"id2label": {"0": "calm", "1": "calm"}},
        {"dtype": "nonsense"},
        {"_attn_implementation": "someone/kernel"},
    ],
    ids=str,
)
def test_the_stock_classes_refuse_as_well(checkpoint, settings):
    change(**settings)(checkpoint)
    if "num_labels" in settings:  # which transformers asks only where there are no labels
        content = json.loads((checkpoint / CONFIG).read_text())
        (checkpoint / CONFIG).write_text(json.dumps({**content, "id2label": None, "label2id": None}))
    with pytest.raises((ValueError, StrictDataclassError), match=f"{next(iter(settings))}|conv_strides"):
        SerForAudioClassification.from_pretrained(checkpoint)


def test_the_stock_extractor_refuses_as_well(checkpoint):
    change_in(EXTRACTOR, hop_length=0)(checkpoint)
    with pytest.raises(ValueError, match="hop_length must be"):
        SerFeatureExtractor.from_pretrained(checkpoint)


def test_a_configuration_refuses_a_bad_number_whenever_it_is_set():
    config = SerConfig()
    with pytest.raises(StrictDataclassError, match="temperature"):
        config.temperature = 0.0
    assert config.temperature == 1.0


def test_large_sizes_are_compared_before_they_take_memory(checkpoint):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    change(lstm_hidden_size=4096, hidden_size=4096, conv_channels=4096, conv_kernel_size=63)(checkpoint)
    with pytest.raises(ValueError, match="do(es)? not (match|fit)"):
        read_checkpoint(checkpoint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; the weights would be 100 GB


def test_bad_settings_end_in_an_answer_or_a_sentence():
    command = [sys.executable, "-m", "tests.fuzz_checkpoints", "--count", "150"]
    done = subprocess.run(
        [*command, "--encoders", "residual_bilstm_attention", "conv2d_bilstm"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_other_errors_say_what_they_are(checkpoint, monkeypatch):
    """What is no fault of the checkpoint: a device that is not there, and a lack of memory, simulated."""
    with pytest.raises(OSError, match="cannot be loaded on 'abacus': Expected one of cpu, cuda"):
        load_pipeline(str(checkpoint), device="abacus")

    def forward(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 2 GB.")

    monkeypatch.setattr(SerForAudioClassification, "forward", forward)
    with pytest.raises(
        OSError, match="cannot be loaded on 'cpu': DefaultCPUAllocator: can't allocate memory: you tried"
    ):
        load_pipeline(str(checkpoint))
