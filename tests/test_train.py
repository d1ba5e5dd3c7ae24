import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter

import datasets
import numpy as np
import pandas
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from ser_model import SerFeatureExtractor, feature_extraction_ser
from ser_model.configuration_ser import EMOTIONS
from ser_model.pretrained import load_pipeline
from tests.conftest import ROOT, make_ravdess, make_voice
from train import evaluate, report
from train.augment import BatchAugmentation, change, change_speed
from train.corpus import load_rows
from train.features import CacheError, FeatureDataset, clip_features, collate, extract_features, fit_normalization
from train.features import main as features_main
from train.ravdess import FOLDS, load_ravdess
from train.recipe import Augmentation, Training, Variant, available, load_recipe
from train.train import main, predict, split_rows, train
from train.trainer import RunError, class_weights, last_whole_checkpoint, penalty

TINY = {
    "refit": True,
    "model": {"num_cepstra": 0, "conv_channels": 16, "lstm_hidden_size": 8, "num_attention_heads": 1},
    "augmentation": {
        "variants": [{"speed": 0.9}, {}],
        "frequency_masks": 1,
        "frequency_mask_bands": 4,
        "mixup_probability": 0.5,
    },
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
    [
        ("trainign: {}", "sets trainign"),
        ("training: {epochs: 3}", "sets epochs"),
        ("- 1", "does not hold a recipe"),
    ],
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
    data = load_rows("ravdess", ravdess, allow_incomplete=True)
    rows = split_rows(data, load_recipe("ser-base"), protocol=protocol, fold=1, seed=0)
    assert tuple(len(rows[part]) for part in ("train", "validation", "test")) == sizes
    assert Counter(np.concatenate(list(rows.values())).tolist()).most_common(1)[0][1] == 1
    if protocol == "speaker-independent":
        actors = {part: {data[int(i)]["actor"] for i in rows[part]} for part in rows}
        assert actors["test"] == set(FOLDS[1])
        assert not actors["train"] & (actors["validation"] | actors["test"])


def test_a_leaky_split_puts_variants_of_a_clip_on_both_sides(ravdess, recipe_file, tmp_path, capsys):
    variants = {"variants": [{}, {"speed": 0.9}], "every_variant": True}
    training = {"num_epochs": 3, "keep_best": True, "schedule": "constant"}
    changes = {"refit": False, "vocal_channels": ["speech"], "augmentation": variants}
    recipe_file.write_text(yaml.safe_dump({**TINY, **changes, "training": {**TINY["training"], **training}}))
    output = tmp_path / "result.json"
    leaky = ["--protocol", "leaky-split", "--runs", tmp_path / "runs", "--jobs", "1"]
    assert evaluate.main(command(recipe_file, ravdess, output, *leaky)) == 0
    run = json.loads(next(tmp_path.glob("runs/*/fold-1/run.json")).read_text())
    counts = Counter(clip["clip"] for clip in run["clips"])
    assert len(run["clips"]) == round(0.2 * 2 * len(load_ravdess(ravdess, allow_incomplete=True)))
    assert (
        list(counts.values()).count(1) > len(counts) / 2
    )  # of most clips that are tested, the other variant was learnt
    accuracies = [entry["eval_accuracy"] for entry in run["history"] if "eval_accuracy" in entry]
    assert json.loads(output.read_text())["mean"]["accuracy"] == pytest.approx(max(accuracies))
    capsys.readouterr()
    assert evaluate.main(command(recipe_file, ravdess, output, *leaky, "--condition", "all")) == 1
    assert "is not for leaky-split" in capsys.readouterr().err


def test_features_are_computed_once(ravdess, extractor, monkeypatch):
    data = load_ravdess(ravdess, allow_incomplete=True)
    calls = []
    read = extract_features.__globals__["read_audio"]
    monkeypatch.setitem(extract_features.__globals__, "read_audio", lambda *a: calls.append(a) or read(*a))
    fast = Variant(speed=0.9)
    kwargs = {"variants": (fast,), "data_fingerprint": "once"}
    first = extract_features(data, extractor, **kwargs)
    assert set(first) == {fast, Variant()} and len(calls) == 2 * len(data)
    again = extract_features(data, extractor, **kwargs)
    assert len(calls) == 2 * len(data)
    for variant in first:
        for one, other in zip(first[variant], again[variant], strict=True):
            np.testing.assert_array_equal(one["input_features"], other["input_features"])
    waveform = read(data[5]["audio"]["path"], 16000)
    expected = extractor(change_speed(waveform, 0.9), sampling_rate=16000)["input_features"][0]
    np.testing.assert_allclose(first[fast][5]["input_features"], expected, atol=1e-5)
    extract_features(data, type(extractor)(trim=None), **kwargs)
    assert len(calls) == 4 * len(data)
    change = extract_features.__globals__["change"]
    monkeypatch.setitem(
        extract_features.__globals__, "change", lambda *args, **options: np.tanh(5 * change(*args, **options))
    )
    extract_features(data, extractor, **kwargs)
    assert len(calls) == 6 * len(data)  # other code computes anew what the cache holds of the old


@pytest.fixture
def cached(ravdess, tmp_path, monkeypatch):
    """The cache's entry of some clips, how to read it, and what has been computed."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = load_ravdess(ravdess, allow_incomplete=True).select(range(4))
    extractor = SerFeatureExtractor(feature_type="log_mel_pitch", feature_size=112, n_fft=768, statistics=True)
    read = functools.partial(extract_features, data, extractor, variants=(), data_fingerprint="damaged")
    expected = read()[Variant()]
    (entry,) = (tmp_path / "cache/ser-features").rglob("*.arrow")
    calls = []
    compute = extract_features.__globals__["_extract_one"]
    monkeypatch.setitem(
        extract_features.__globals__,
        "_extract_one",
        lambda *args, **options: calls.append(1) or compute(*args, **options),
    )
    return entry, read, expected, calls


def damages(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "empty": b"",
        "other": b"no Arrow at all" * 100,
        "begins with zeros": bytes(64) + content[64:],
        "cut short": content[:middle],
        "a few bytes are others": content[:middle] + bytes(b ^ 0xFF for b in content[middle : middle + 16]) + content[middle + 16 :],
    }  # fmt: skip


def test_damaged_features_are_computed_anew(cached):
    entry, read, expected, calls = cached
    content = entry.read_bytes()
    for damage, damaged in {**damages(content), "as it was": content}.items():
        entry.unlink()  # which leaves what has been read as it is
        entry.write_bytes(damaged)
        calls.clear()
        for clip, other in zip(read()[Variant()], expected, strict=True):
            for name in other:
                np.testing.assert_array_equal(clip[name], other[name])
        assert len(calls) == (0 if damage == "as it was" else len(expected)), damage
        assert entry.read_bytes() == content
    assert not list(entry.parent.glob("tmp*"))


def test_a_full_disk_is_named(cached):
    entry, read, expected, _ = cached
    entry.unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
        with pytest.raises(CacheError, match="could not be written .*: make room there") as caught:
            read()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(entry.parent) in str(caught.value)
    assert not list(entry.parent.glob("tmp*")) and not entry.exists()
    assert len(read()[Variant()]) == len(expected)


def test_other_statistics_are_computed_anew(ravdess, monkeypatch):
    data = load_ravdess(ravdess, allow_incomplete=True).select(range(2))
    extractor = SerFeatureExtractor(feature_type="log_mel_pitch", feature_size=112, n_fft=768, statistics=True)
    kwargs = {"variants": (), "data_fingerprint": "two clips"}
    first = extract_features(data, extractor, **kwargs)[Variant()]
    describe = feature_extraction_ser.clip_statistics
    monkeypatch.setattr(feature_extraction_ser, "clip_statistics", lambda *x: describe(*x).flip(1))
    for old, new in zip(first, extract_features(data, extractor, **kwargs)[Variant()]):
        np.testing.assert_allclose(new["statistics"], old["statistics"][::-1], atol=1e-5)


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_changes_length_and_pitch(speed):
    tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)
    changed = change_speed(tone, speed)
    assert len(changed) == pytest.approx(16000 / speed, abs=2)
    peak_hz = np.abs(np.fft.rfft(changed)).argmax() * 16000 / len(changed)
    assert peak_hz == pytest.approx(440 * speed, abs=2)


def test_waveform_variants(voice):
    noisy = change(voice, 16000, Variant(noise_snr_db=20.0), seed=1)
    noise = noisy - voice
    assert 10 * np.log10((voice**2).mean() / (noise**2).mean()) == pytest.approx(20, abs=0.3)
    assert not np.array_equal(noisy, change(voice, 16000, Variant(noise_snr_db=20.0), seed=2))
    np.testing.assert_array_equal(noisy, change(voice, 16000, Variant(noise_snr_db=20.0), seed=1))

    shifted = change(voice, 16000, Variant(shift_s=0.25), seed=1)
    assert not shifted[:4000].any()
    np.testing.assert_array_equal(shifted[4000:], voice)

    tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)
    higher = change(tone, 16000, Variant(pitch_semitones=2.0), seed=1)
    assert len(higher) == len(tone)
    assert np.abs(np.fft.rfft(higher)).argmax() == pytest.approx(440 * 2 ** (2 / 12), abs=3)


def test_noise_or_mask_changes_each_clip_in_one_way():
    torch.manual_seed(0)
    settings = Augmentation(noise_or_mask_std=0.1, noise_or_mask_fraction=0.1)
    features, mask = torch.ones(64, 200, 8), torch.ones(64, 200).long()
    out = BatchAugmentation(settings, [1.0] * 8)(features, mask, torch.zeros(64).long())["input_features"]
    masked = (out == 0).all(2)
    noisy = (out != 1).all(2).all(1)
    assert (masked.sum(1)[~noisy] == 20).all() and not masked[noisy].any()
    assert 16 < noisy.sum() < 48
    assert (out[noisy] - 1).std() == pytest.approx(0.1, abs=0.01)


def test_every_variant_or_one_of_them():
    variants = [[{"input_features": np.full((2, 1), v, np.float32)} for _ in range(3)] for v in (0, 1)]
    assert len(FeatureDataset(variants, [5, 6, 7])) == 3
    longer = FeatureDataset([[{"input_features": np.arange(9)[:, None]}]], [5], max_frames=4)
    stretches = [longer[0]["input_features"][:, 0].tolist() for _ in range(50)]
    assert all(stretch == list(range(stretch[0], stretch[0] + 4)) for stretch in stretches)
    assert {stretch[0] for stretch in stretches} == set(range(6))
    every = FeatureDataset(variants, [5, 6, 7], every_variant=True)
    heard = [(int(clip["input_features"][0, 0]), clip["labels"]) for clip in (every[i] for i in range(len(every)))]
    assert heard == [(0, 5), (0, 6), (0, 7), (1, 5), (1, 6), (1, 7)]


def test_normalisation_is_learnt_from_training_clips_alone(extractor):
    generator = np.random.default_rng(0)
    frames = [generator.normal(3, 2, (50, 64)).astype(np.float32) for _ in range(4)] + [
        np.full((9, 64), 99, np.float32)
    ]
    clips = [{"input_features": clip} for clip in frames]
    assert fit_normalization(extractor, {Variant(): clips}, np.arange(4))[Variant()] is clips
    extractor.normalize = "dataset"
    normalised = fit_normalization(extractor, {Variant(): clips}, np.arange(4))[Variant()]
    normalised = [clip["input_features"] for clip in normalised]
    heard = np.concatenate(normalised[:4])
    np.testing.assert_allclose(heard.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(heard.std(0), 1, atol=1e-4)
    np.testing.assert_allclose((frames[4] - extractor.mean) / extractor.std, normalised[4], rtol=1e-4)


def test_balanced_classes_weigh_alike():
    labels = [0] * 6 + [1] * 3 + [2]
    weights = class_weights(Training(balanced_classes=True, class_factors={"c": 1.5}), labels, ["a", "b", "c"])
    assert weights == pytest.approx([10 / 18, 10 / 9, 1.5 * 10 / 3])
    assert class_weights(Training(), labels, ["a", "b", "c"]) == [1, 1, 1]
    with pytest.raises(ValueError, match="class_factors names sorprised"):
        class_weights(Training(class_factors={"sorprised": 2}), labels, ["a", "b", "c"])
    doubled = BatchAugmentation(Augmentation(), [1.0, 2.0])
    features, mask = torch.zeros(2, 3, 4), torch.ones(2, 3).long()
    assert doubled(features, mask, torch.tensor([0, 1]))["labels"].tolist() == [[1, 0], [0, 2]]


def test_penalty_counts_the_named_weights(tiny_model):
    settings = Training(l1_penalty=0.1, l2_penalty=0.01, penalised=("classifiers",))
    weights = torch.cat([classifier.weight.flatten() for classifier in tiny_model.classifiers])
    expected = 0.1 * weights.abs().sum() + 0.01 * weights.square().sum()
    torch.testing.assert_close(penalty(tiny_model, settings), expected)
    assert penalty(tiny_model, Training()) == 0


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
    out = BatchAugmentation(settings, [1.0] * 8)(features, mask, labels)
    assert out["input_features"].shape == features.shape
    assert (out["input_features"] == 0).any() and not torch.equal(out["input_features"][0], out["input_features"][1])
    torch.testing.assert_close(out["labels"].sum(1), torch.ones(8))
    assert torch.equal(out["labels"].argmax(1), labels)
    assert (out["attention_mask"] >= mask).all()
    assert (features == 1).all()


def test_statistics_are_mixed_as_their_clips_are():
    torch.manual_seed(0)
    statistics, labels = torch.eye(8), torch.arange(8)
    augment = BatchAugmentation(Augmentation(mixup_probability=1.0), [1.0] * 8)
    out = augment(torch.ones(8, 5, 3), torch.ones(8, 5).long(), labels, statistics)
    torch.testing.assert_close(out["statistics"], out["labels"])
    assert not torch.equal(out["statistics"], statistics)


def test_no_augmentation_changes_nothing():
    features, mask, labels = torch.randn(4, 9, 6), torch.ones(4, 9).long(), torch.tensor([0, 1, 2, 3])
    out = BatchAugmentation(Augmentation(), [1.0] * 4)(features, mask, labels)
    torch.testing.assert_close(out["input_features"], features)
    torch.testing.assert_close(out["labels"], torch.eye(4))


def test_predictions_keep_the_order(tiny_model, extractor):
    waveforms = [make_voice(d, seed=i) for i, d in enumerate((1.0, 0.3, 2.0, 0.7, 0.2))]
    features = [clip_features(extractor, waveform) for waveform in waveforms]
    together = predict(tiny_model, FeatureDataset([features], [0] * 5), batch_size=2)
    for probabilities, clip in zip(together, features):
        alone = predict(tiny_model, FeatureDataset([[clip]], [0]))
        np.testing.assert_allclose(probabilities, alone[0], atol=1e-5)


def test_collate_masks_padding():
    clips = [{"input_features": np.ones((n, 3), np.float32), "statistics": np.full(5, n), "labels": n} for n in (2, 4)]
    batch = collate(clips)
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["input_features"][0, 2:].eq(0).all()
    assert batch["statistics"].tolist() == [[2] * 5, [4] * 5]
    assert "statistics" not in collate([{name: clip[name] for name in ("input_features", "labels")} for clip in clips])


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
    assert classifier(make_voice(0.3, pitch_hz=140, seed=1), top_k=1, voice_only=False)[0]["label"] == "neutral"

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
    assert {clip["actor"] for clip in runs[0]["clips"]} == set(FOLDS[2])


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


def test_second_training_into_the_same_folder_is_refused_at_once(ravdess, recipe_file, tmp_path, capsys):
    output = tmp_path / "out"
    options = {"data_dir": str(ravdess), "allow_incomplete": True, "quiet": True}
    seen = []

    def train_another(*arguments, **options):
        for source in ("/nowhere", str(ravdess)):  # whatever else is wrong with it
            assert main([*command(recipe_file, source, output), "--seed", "1"]) == 1
            seen.append(capsys.readouterr().err.splitlines()[-1])  # beside the bars of the first
        return make_trainer(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[train.__module__]
        make_trainer = module.make_trainer
        patch.setattr(module, "make_trainer", train_another)
        train(load_recipe(str(recipe_file)), output, **options)
    assert seen == [f"error: Another training is writing {output}: wait for it, or choose another --output."] * 2
    assert (output / "run.json").exists() and not (output / "checkpoints").exists()


def test_training_that_cannot_begin_leaves_nothing(recipe_file, tmp_path):
    assert main(command(recipe_file, "/nowhere", tmp_path / "out")) == 1
    assert list(tmp_path.iterdir()) == [recipe_file]


def test_checkpoint_goes_into_a_folder_of_its_own(ravdess, recipe_file, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert main(command(recipe_file, ravdess, tmp_path)) == 1
    assert f"{tmp_path} holds other files" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.slow
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


@pytest.mark.parametrize("schedule", ["constant", "cosine-restarts", "plateau"])
def test_keeps_the_best_epoch_and_stops_early(ravdess, recipe_file, tmp_path, schedule):
    training = {"num_epochs": 12, "keep_best": True, "early_stopping_epochs": 2, "schedule": schedule}
    changes = {"refit": False, "features": {"normalize": "dataset"}, "vocal_channels": ["speech"]}
    recipe_file.write_text(yaml.safe_dump({**TINY, **changes, "training": {**TINY["training"], **training}}))
    options = {"data_dir": str(ravdess), "protocol": "random-split", "allow_incomplete": True}
    run = train(load_recipe(str(recipe_file)), tmp_path / "out", held_out="validation", **options)
    accuracies = [entry["eval_accuracy"] for entry in run["history"] if "eval_accuracy" in entry]
    best = accuracies.index(max(accuracies))
    assert len(accuracies) == min(best + 3, 12)
    references = np.array([EMOTIONS.index(clip["label"]) for clip in run["clips"]])
    assert (np.argmax(run["probabilities"], 1) == references).mean() == pytest.approx(max(accuracies))
    saved = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert len(saved["mean"]) == len(saved["std"]) == 64


@pytest.mark.parametrize(
    ("training", "says"),
    [({"keep_best": True}, "refit and keep_best"), ({"schedule": "steps"}, "schedule must be one")],
)
def test_refuses_recipes_that_cannot_be(ravdess, recipe_file, tmp_path, training, says, capsys):
    recipe_file.write_text(yaml.safe_dump({**TINY, "training": training}))
    assert main(command(recipe_file, ravdess, tmp_path / "out")) == 1
    assert says in capsys.readouterr().err


def test_writes_tensorboard_events(ravdess, recipe_file, tmp_path):
    pytest.importorskip("tensorboard")
    assert main(command(recipe_file, ravdess, tmp_path / "out", "--tensorboard")) == 0
    assert list((tmp_path / "out/tensorboard").glob("events.*"))


@pytest.mark.parametrize("suffix", ["CSV", "parquet"])
def test_exports_features(ravdess, recipe_file, tmp_path, suffix, extractor):
    path = tmp_path / f"features.{suffix}"
    for _ in range(2):  # an earlier result may be replaced
        assert features_main(command(recipe_file, ravdess, path)) == 0
    table = getattr(pandas, f"read_{suffix.lower()}")(path)
    clip = table[table["clip"] == "03-01-05-01-01-01-07"]
    assert clip["emotion"].unique() == ["angry"] and clip["actor"].unique() == [7]
    waveform, _ = soundfile.read(ravdess / "Actor_07/03-01-05-01-01-01-07.wav", dtype="float32")
    expected = extractor(waveform, sampling_rate=16000)["input_features"][0]
    found = clip[[f"feature_{i}" for i in range(64)]].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not list(tmp_path.glob("*partial*"))


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
    for _ in range(2):  # the second reads the runs, and replaces the result
        assert evaluate.main([*arguments, "--condition", "gain -20 dB", "--condition", "offset of 50 %"]) == 0
    assert "UAR" in capsys.readouterr().out
    result = json.loads(output.read_text())
    folds = FOLDS if protocol == "speaker-independent" else {1: range(1, 25)}
    assert [fold["fold"] for fold in result["folds"]] == list(folds)
    assert sum(map(sum, result["confusion_matrix"])) == sum(fold["num_clips"] for fold in result["folds"])
    assert result["mean"]["uar"] == pytest.approx(np.mean([fold["uar"] for fold in result["folds"]]))
    for figures in result["conditions"].values():
        assert figures["uar"] == pytest.approx(result["mean"]["uar"])
        assert figures["same_label"] == 1
    if protocol == "speaker-independent":
        assert {fold["fold"]: tuple(fold["test_actors"]) for fold in result["folds"]} == FOLDS
        assert result["mean"]["uar"] > 0.4  # chance is 0.125, and the pitch gives each emotion away
    assert set(result) >= {
        "recipe", "protocol", "seed", "mean", "per_class", "model", "train_seconds", "versions", "data_fingerprint",
        "command", "by_gender", "by_intensity",
    }  # fmt: skip
    assert set(result["mean"]) == {"accuracy", "uar", "macro_f1", "weighted_f1", "ece"}
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert output.with_suffix(".curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(result["curves"]["1"]["training loss"]) > 5
    assert not list(tmp_path.glob("*partial*"))


def test_validation_actors_choose_and_test_actors_stay_unheard(ravdess, recipe_file, tmp_path):
    result = evaluate.evaluate(
        load_recipe(str(recipe_file)),
        protocol="speaker-independent",
        folds=[3],
        runs_dir=tmp_path,
        data_dir=str(ravdess),
        seeds=[0, 1],
        held_out="validation",
        allow_incomplete=True,
    )
    assert len(result["folds"][0]["test_actors"]) == 4
    assert [figures["seed"] for figures in result["seeds"]] == [0, 1]
    assert result["mean"]["uar"] == pytest.approx(np.mean([figures["uar"] for figures in result["seeds"]]))
    assert result["folds"][0]["uar"] == pytest.approx(result["mean"]["uar"])
    assert 0.1 <= result["temperature"] <= 10
    assert not set(result["folds"][0]["test_actors"]) & set(FOLDS[3])


@pytest.mark.parametrize("folds", ["0", "1,9", "x"])
def test_refuses_folds_that_do_not_exist(folds, capsys):
    assert evaluate.main(["--protocol", "speaker-independent", "--folds", folds]) == 1
    assert "give some of 1,2,3,4,5" in capsys.readouterr().err


def test_refuses_seeds_that_are_no_numbers(capsys):
    assert evaluate.main(["--protocol", "speaker-independent", "--seed", "one"]) == 1
    assert "--seed one: give whole numbers" in capsys.readouterr().err
