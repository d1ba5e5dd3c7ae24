import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from ser_model.pretrained import load_pipeline
from tests.conftest import ROOT, make_ravdess, make_voice
from train import evaluate, report
from train.augment import BatchAugmentation, change_speed
from train.features import FeatureDataset, collate, extract_features
from train.ravdess import FOLDS, data_fingerprint, load_ravdess, parse_name
from train.recipe import Augmentation, available, load_recipe
from train.train import RunError, last_whole_checkpoint, main, predict, split_rows, train

TINY = {
    "refit": True,
    "model": {"num_cepstra": [0], "conv_channels": 16, "lstm_hidden_size": 8, "num_attention_heads": 1},
    "augmentation": {"speeds": [0.9, 1.0], "frequency_masks": 1, "frequency_mask_bands": 4, "mixup_probability": 0.5},
    "training": {"num_epochs": 6, "batch_size": 32, "learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def ravdess(tmp_path_factory):
    """All 24 actors, but one take of each sentence and emotion: enough for every split."""
    folder = make_ravdess(tmp_path_factory.mktemp("ravdess"), duration_s=0.3)
    for path in folder.rglob("*.wav"):
        fields = path.stem.split("-")
        if fields[3] == "02" or fields[5] == "02":
            path.unlink()
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Datasets and features are cached apart from the user's."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
        patch.setenv("HF_DATASETS_CACHE", str(cache))
        patch.setattr(report, "RESULTS", tmp_path_factory.mktemp("results"))
        yield


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def command(recipe_file, ravdess, output, *more):
    options = ["--recipe", recipe_file, "--data", ravdess, "--output", output, "--allow-incomplete", *more]
    return [str(option) for option in options]


def test_recipes_hold_what_exists():
    for name in available():
        assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("text", "says"),
    [("trainign: {}", "sets trainign"), ("training: {epochs: 3}", "sets epochs"), ("- 1", "does not hold a recipe")],
)
def test_recipes_refuse_what_does_not(tmp_path, text, says):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        load_recipe(str(tmp_path / "r.yaml"))
    with pytest.raises(ValueError, match="There is no recipe"):
        load_recipe("no-such")


@pytest.mark.parametrize(
    ("protocol", "sizes"),
    [("all", (384, 0, 0)), ("random-split", (276, 31, 77)), ("speaker-independent", (240, 64, 80))],
)
def test_splits_share_no_clip(ravdess, protocol, sizes):
    data = load_ravdess(ravdess, allow_incomplete=True)
    rows = split_rows(data, protocol=protocol, fold=1, seed=0, num_validation_actors=4)
    assert tuple(len(rows[part]) for part in ("train", "validation", "test")) == sizes
    assert Counter(np.concatenate(list(rows.values())).tolist()).most_common(1)[0][1] == 1
    if protocol == "speaker-independent":
        actors = {part: {data[int(i)]["actor"] for i in rows[part]} for part in rows}
        assert actors["test"] == set(FOLDS[1])
        assert not actors["train"] & (actors["validation"] | actors["test"])


def test_features_are_computed_once(ravdess, extractor, monkeypatch):
    data = load_ravdess(ravdess, allow_incomplete=True)
    calls = []
    read = extract_features.__globals__["read_audio"]
    monkeypatch.setitem(extract_features.__globals__, "read_audio", lambda *a: calls.append(a) or read(*a))
    kwargs = {"speeds": (0.9,), "data_fingerprint": data_fingerprint(data) + "once"}
    first = extract_features(data, extractor, **kwargs)
    assert set(first) == {0.9, 1.0} and len(calls) == 2 * len(data)
    again = extract_features(data, extractor, **kwargs)
    assert len(calls) == 2 * len(data)
    for speed in first:
        for one, other in zip(first[speed], again[speed], strict=True):
            np.testing.assert_array_equal(one, other)
    waveform = read(data[5]["audio"]["path"], 16000)
    expected = extractor(change_speed(waveform, 0.9), sampling_rate=16000)["input_features"][0]
    np.testing.assert_allclose(first[0.9][5], expected, atol=1e-5)
    type(extractor)(trim_db=20.0)
    extract_features(data, type(extractor)(trim_db=20.0), **kwargs)
    assert len(calls) == 4 * len(data)


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_changes_length_and_pitch(speed):
    tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)
    changed = change_speed(tone, speed)
    assert len(changed) == pytest.approx(16000 / speed, abs=2)
    peak_hz = np.abs(np.fft.rfft(changed)).argmax() * 16000 / len(changed)
    assert peak_hz == pytest.approx(440 * speed, abs=2)


def test_augmentation_masks_mixes_and_smooths():
    torch.manual_seed(0)
    settings = Augmentation(
        frequency_masks=1,
        frequency_mask_bands=10,
        time_masks=1,
        time_mask_fraction=0.3,
        mixup_probability=1.0,
        label_smoothing=0.1,
    )
    features, mask, labels = torch.ones(8, 50, 64), torch.ones(8, 50).long(), torch.arange(8)
    mask[0, 20:] = 0
    out = BatchAugmentation(settings, 8)(features, mask, labels)
    assert out["input_features"].shape == features.shape
    assert (out["input_features"] == 0).any() and not torch.equal(out["input_features"][0], out["input_features"][1])
    torch.testing.assert_close(out["labels"].sum(1), torch.ones(8))
    assert torch.equal(out["labels"].argmax(1), labels)
    assert (out["attention_mask"] >= mask).all()
    assert (features == 1).all()


def test_no_augmentation_changes_nothing():
    features, mask, labels = torch.randn(4, 9, 6), torch.ones(4, 9).long(), torch.tensor([0, 1, 2, 3])
    out = BatchAugmentation(Augmentation(), 4)(features, mask, labels)
    torch.testing.assert_close(out["input_features"], features)
    torch.testing.assert_close(out["labels"], torch.eye(4))


def test_predictions_keep_the_order(tiny_model, extractor):
    waveforms = [make_voice(d, seed=i) for i, d in enumerate((1.0, 0.3, 2.0, 0.7, 0.2))]
    features = [extractor(w, sampling_rate=16000)["input_features"][0] for w in waveforms]
    together = predict(tiny_model, FeatureDataset([features], [0] * 5), batch_size=2)
    for probabilities, clip in zip(together, features):
        alone = predict(tiny_model, FeatureDataset([[clip]], [0]))
        np.testing.assert_allclose(probabilities, alone[0], atol=1e-5)


def test_collate_masks_padding():
    batch = collate([{"input_features": np.ones((n, 3), np.float32), "labels": n} for n in (2, 4)])
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["input_features"][0, 2:].eq(0).all()


def test_trains_a_checkpoint_that_predicts(ravdess, recipe_file, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(command(recipe_file, ravdess, output)) == 0
    assert "parameters, trained in" in capsys.readouterr().out
    files = {path.name for path in output.iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "modeling_ser.py", "README.md"} <= files
    assert "checkpoints" not in files
    run = json.loads((output / "run.json").read_text())
    assert run["recipe"]["training"]["num_epochs"] == 6
    assert run["seed"] == 0 and run["versions"]["torch"] and len(run["data_fingerprint"]) == 64
    classifier = load_pipeline(str(output))
    assert classifier(make_voice(0.3, pitch_hz=140, seed=1), top_k=1)[0]["label"] == "neutral"

    weights = (output / "model.safetensors").stat().st_mtime_ns
    assert main(command(recipe_file, ravdess, output)) == 0
    assert (output / "model.safetensors").stat().st_mtime_ns == weights
    assert main(command(recipe_file, ravdess, output, "--seed", "1")) == 1
    assert "another seed" in capsys.readouterr().err


def test_same_seed_same_network(ravdess, recipe_file, tmp_path):
    recipe = load_recipe(str(recipe_file))
    options = {"data_dir": str(ravdess), "protocol": "speaker-independent", "fold": 2, "allow_incomplete": True}
    runs = [train(recipe, tmp_path / name, seed=seed, **options) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert runs[0]["probabilities"] == runs[1]["probabilities"] != runs[2]["probabilities"]
    assert {parse_name(clip)["actor"] for clip in runs[0]["clips"]} == set(FOLDS[2])


def start_long_training(recipe_file, ravdess, output) -> subprocess.Popen:
    """A training as a process of its own, once it has saved its first checkpoint."""
    recipe_file.write_text(yaml.safe_dump({**TINY, "training": {**TINY["training"], "num_epochs": 20}}))
    process = subprocess.Popen(
        [sys.executable, "-m", "train.train", *command(recipe_file, ravdess, output)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    deadline = time.monotonic() + 90
    while not list((output / "checkpoints").glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_killed_training_goes_on_as_if_it_had_not_been(ravdess, recipe_file, tmp_path):
    output = tmp_path / "out"
    process = start_long_training(recipe_file, ravdess, output)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (output / "run.json").exists()
    torn = output / "checkpoints/checkpoint-99999"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    resumed_at = int(last_whole_checkpoint(output / "checkpoints").rsplit("-", 1)[1])
    assert 0 < resumed_at < 99999 and not torn.exists()
    recipe, options = load_recipe(str(recipe_file)), {"data_dir": str(ravdess), "allow_incomplete": True}
    run = train(recipe, output, **options)
    steps = [entry["step"] for entry in run["history"] if "loss" in entry]
    assert steps == sorted(set(steps)) and run["history"][-1]["epoch"] == 20
    train(recipe, tmp_path / "whole", **options)
    resumed, whole = (load_file(folder / "model.safetensors") for folder in (output, tmp_path / "whole"))
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name])


def test_full_disk_leaves_the_last_checkpoint(ravdess, recipe_file, tmp_path):
    output = tmp_path / "out"
    process = start_long_training(recipe_file, ravdess, output)
    resource.prlimit(
        process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000)
    )  # the weights fit, the optimiser's state does not
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert re.search(
        "^.*error: .* could not be written .* goes on from the last whole checkpoint.$", said, re.MULTILINE
    )
    assert "Traceback" not in said
    last = int(last_whole_checkpoint(output / "checkpoints").rsplit("-", 1)[1])
    assert 0 < last < 20 * 12 and not (output / "run.json").exists()


def test_finished_runs_are_not_overwritten(tmp_path, ravdess, recipe_file):
    (tmp_path / "run.json").write_text(json.dumps({"seed": 5}))
    with pytest.raises(RunError, match="another recipe and"):
        train(load_recipe(str(recipe_file)), tmp_path, data_dir=str(ravdess), allow_incomplete=True)


def test_fold_and_protocol_go_together(capsys):
    for arguments in (["--protocol", "speaker-independent"], ["--fold", "1"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "--fold goes with" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--data", "/nowhere"], ["--recipe", "no-such"]])
def test_says_what_is_wrong(arguments, tmp_path, capsys):
    assert main([*arguments, "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("protocol", ["speaker-independent", "random-split"])
def test_evaluates_and_writes_the_result(ravdess, recipe_file, tmp_path, capsys, protocol):
    output = tmp_path / "result.json"
    arguments = command(
        recipe_file, ravdess, output, "--protocol", protocol, "--runs", tmp_path / "runs", "--jobs", "1"
    )
    assert evaluate.main([*arguments, "--condition", "gain -20 dB", "--condition", "silence around"]) == 0
    assert "UAR" in capsys.readouterr().out
    result = json.loads(output.read_text())
    folds = FOLDS if protocol == "speaker-independent" else {1: range(1, 25)}
    assert [fold["fold"] for fold in result["folds"]] == list(folds)
    assert sum(map(sum, result["confusion_matrix"])) == sum(fold["num_clips"] for fold in result["folds"])
    assert result["mean"]["uar"] == pytest.approx(np.mean([fold["uar"] for fold in result["folds"]]))
    for figures in result["conditions"].values():
        assert figures["uar"] == pytest.approx(result["mean"]["uar"])
    if protocol == "speaker-independent":
        assert {fold["fold"]: tuple(fold["test_actors"]) for fold in result["folds"]} == FOLDS
        assert result["mean"]["uar"] > 0.4  # chance is 0.125, and the pitch gives each emotion away
    assert set(result) >= {
        "recipe", "protocol", "seed", "mean", "per_class", "model", "train_seconds", "versions", "data_fingerprint",
        "command", "by_gender", "by_intensity",
    }  # fmt: skip
    assert set(result["mean"]) == {"accuracy", "uar", "macro_f1", "weighted_f1", "ece"}
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*partial*"))


def test_validation_actors_choose_and_test_actors_stay_unheard(ravdess, recipe_file, tmp_path):
    result = evaluate.evaluate(
        load_recipe(str(recipe_file)),
        protocol="speaker-independent",
        folds=[3],
        runs_dir=tmp_path,
        data_dir=str(ravdess),
        held_out="validation",
        allow_incomplete=True,
    )
    assert len(result["folds"][0]["test_actors"]) == 4
    assert not set(result["folds"][0]["test_actors"]) & set(FOLDS[3])


@pytest.mark.parametrize("folds", ["0", "1,9", "x"])
def test_refuses_folds_that_do_not_exist(folds, capsys):
    assert evaluate.main(["--protocol", "speaker-independent", "--folds", folds]) == 1
    assert "give some of 1,2,3,4,5" in capsys.readouterr().err
