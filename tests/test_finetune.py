import csv
import json
import os
import re
import resource
import shutil
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from tqdm import tqdm
from transformers import TrainerCallback

from ser_model import SerConfig, SerFeatureExtractor, SerForAudioClassification
from ser_model.__main__ import main as ser_model_main
from ser_model.pretrained import load_pipeline
from ser_model.voice import NoVoiceError
from tests.conftest import NO_VOICES, make_no_voice, make_voice
from tests.test_push import make_checkpoint
from train import features, finetune
from train.finetune import DataError, plain_augmentation, read_clips, split_clips, split_rows, with_labels

PITCHES_HZ = {"happy": 120, "bored": 230, "curious": 400}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small network, whose recipe changes little, to save time."""
    folder = make_checkpoint(tmp_path_factory.mktemp("base") / "base")
    run = json.loads((folder / "run.json").read_text())
    run["recipe"]["augmentation"] = {"variants": [{}, {"speed": 0.95}]}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three labels of ten clips, in several formats; the pitch tells the label."""
    folder = tmp_path_factory.mktemp("own") / "recordings"
    for label, pitch in PITCHES_HZ.items():
        (folder / label).mkdir(parents=True)
        for i in range(10):
            path = folder / label / f"{i}.{('wav', 'flac', 'ogg')[i % 3]}"
            soundfile.write(path, make_voice(0.5, pitch_hz=pitch + i, seed=i, rate=22050), 22050)
    (folder / "notes.txt").write_text("no folder, no label")
    return folder


def write_csv(file, rows, columns=("path", "label")):
    with open(file, "w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([columns, *rows])
    return file


def test_learns_other_labels_from_a_folder(base, folder, tmp_path, capsys):
    output = tmp_path / "mine"
    command = ["--data", folder, "--output", output, "--model", base, "--epochs", 60, "--learning-rate", 0.005]
    assert finetune.main(list(map(str, command))) == 0
    said = capsys.readouterr().out
    told = r"on 6 recordings kept out \(at random\): UAR (83.3|100.0) % \(95 % confidence: \d+ to \d+ %\), accuracy"
    assert re.search(f"bored, curious, happy; {told}", said), said
    classifier = load_pipeline(str(output))
    assert classifier.model.config.id2label == {0: "bored", 1: "curious", 2: "happy"}
    for label, pitch in PITCHES_HZ.items():
        voice = make_voice(0.5, pitch_hz=pitch + 4, seed=77)
        assert classifier(voice, top_k=1, voice_only=False)[0]["label"] == label
    run = json.loads((output / "run.json").read_text())
    assert run["fine_tuning"]["num_train_clips"] == 24
    assert run["history"][-1]["epoch"] == 60
    card = (output / "README.md").read_text()
    assert "bored, curious, happy" in card and "60 epochs" in card
    assert (
        re.search(r"UAR \d+\.\d % \(95 % confidence: \d+ to \d+ %\)", card) and "model-index" not in card
    )  # six clips say too little
    assert {"pipeline_ser.py", "modeling_ser.py", "audio.py"} <= {path.name for path in output.iterdir()}
    assert finetune.main(list(map(str, command))) == 1
    assert "holds a finished run" in capsys.readouterr().err


def test_speakers_in_a_csv_are_kept_apart(folder, tmp_path):
    rows = [(path.relative_to(folder.parent), path.parent.name, f"speaker {path.stem}") for path in folder.glob("*/*")]
    clips = read_clips(write_csv(folder.parent / "own.csv", rows, ("path", "label", "speaker")))
    references = np.array([sorted(PITCHES_HZ).index(clip["label"]) for clip in clips])
    train, validation = split_clips(clips, references, seed=0)
    heard, kept_out = ({clips[i]["speaker"] for i in rows} for rows in (train, validation))
    assert not heard & kept_out and len(train) + len(validation) == 30
    assert set(references[validation]) == {0, 1, 2}


def test_every_label_is_measured_however_few_the_clips():
    clips = [{"path": str(i), "label": "ab"[i % 2]} for i in range(8)]
    train, validation = split_clips(clips, np.arange(8) % 2, seed=0)
    assert sorted(i % 2 for i in validation) == [0, 1] and len(train) == 6


@torch.inference_mode()
def test_known_labels_begin_with_what_is_known(extractor, voice):
    torch.manual_seed(0)
    base = SerForAudioClassification(SerConfig(conv_channels=16, lstm_hidden_size=8, temperature=2.0)).eval()
    tuned = with_labels(base, ["sad", "curious", "happy"]).eval()
    inputs = extractor(voice, sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(tuned.ser(**inputs).pooler_output, base.ser(**inputs).pooler_output)
    for old, new in zip(base.classifiers, tuned.classifiers):
        torch.testing.assert_close(new.weight[[0, 2]], old.weight[[3, 2]])
    assert tuned.config.temperature == 1.0 and base.config.temperature == 2.0
    assert base.config.id2label[0] == "neutral"


@pytest.mark.parametrize(
    ("rows", "columns", "says"),
    [
        ([("a.wav", "x")], ("file", "label"), "no column path"),
        ([("a.wav", "x")], ("path", "label"), "row 2: .* does not exist"),
        ([("own.csv", "")], ("path", "label"), "row 2: label is empty"),
        ([("own.csv",)], ("path", "label"), "row 2: label is empty"),
        ([("own.csv", "x")] * 9, ("path", "label"), "only the label 'x'"),
        ([("own.csv", "x")] * 9 + [("own.csv", "y")], ("path", "label"), r"fewer of y \(1\)"),
        ([], ("path", "label"), "no recordings"),
    ],
)
def test_bad_tables_get_one_sentence(tmp_path, rows, columns, says):
    file = write_csv(tmp_path / "own.csv", rows, columns)
    with pytest.raises(DataError, match=says) as caught:
        read_clips(file)
    assert "\n" not in str(caught.value)


def test_speakers_that_cannot_be_split_are_named():
    clips = [{"path": str(i), "label": "ab"[i % 2], "speaker": "ab"[i % 2]} for i in range(8)]
    with pytest.raises(DataError, match="cannot be split"):
        split_clips(clips, np.arange(8) % 2, seed=0)


@pytest.mark.parametrize(
    ("data", "says"),
    [("nowhere", "does not exist"), (".", "has no recordings"), ("binary.csv", "neither a folder nor")],
)
def test_says_what_is_wrong_with_the_data(tmp_path, capsys, data, says):
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81" * 50)
    assert finetune.main(["--data", str(tmp_path / data), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_broken_recordings_are_named_and_nothing_is_written(base, folder, tmp_path, capsys):
    rows = [(str(path), path.parent.name) for path in folder.glob("*/*")]
    (tmp_path / "broken.wav").write_text("not a sound")
    file = write_csv(tmp_path / "own.csv", [*rows, ("broken.wav", "happy")])
    assert finetune.main(["--data", str(file), "--output", str(tmp_path / "out"), "--model", str(base)]) == 1
    assert "broken.wav is not a recording" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    rows += [(f"broken-{i}.wav", "happy") for i in range(7)]
    for i in range(7):
        (tmp_path / f"broken-{i}.wav").write_text("not a sound")
    write_csv(file, rows)
    assert finetune.main(["--data", str(file), "--output", str(tmp_path / "out"), "--model", str(base)]) == 1
    error = capsys.readouterr().err
    assert "7 of 37 recordings cannot be read" in error and "broken-0.wav" in error and "And 2 others." in error
    assert error.count("\n") == 1


def put(folder, *places, num_clips=4):
    """Empty files: where a recording lies, not how it sounds, is what these tests are about."""
    for place in places:
        (folder / place).mkdir(parents=True, exist_ok=True)
        for i in range(num_clips):
            (folder / place / f"{i}.wav").touch()
    return folder


def found(folder):
    return Counter((clip.get("split"), clip["label"]) for clip in read_clips(folder))


@pytest.mark.parametrize("above", ["", "data"])
@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "test"), ("train", "test")),
        (("Training", "dev"), ("train", "validation")),
        (("train", "val", "eval"), ("train", "validation", "test")),
        (("train",), (None,)),
    ],
)
def test_splits_are_no_labels(tmp_path, above, names, splits):
    (tmp_path / "README.md").touch()
    put(tmp_path / above, *(f"{name}/{label}" for name in names for label in ("no", "yes")))
    assert found(tmp_path) == {(split, label): 4 for split in splits for label in ("no", "yes")}


def test_what_splits_name_may_be_labels(tmp_path):
    assert found(put(tmp_path / "vehicles", "car", "train")) == {(None, "car"): 4, (None, "train"): 4}
    assert found(put(tmp_path / "study", "control", "test/monday")) == {(None, "control"): 4, (None, "test"): 4}


@pytest.mark.parametrize(
    ("places", "says"),
    [
        (("train/no", "train/yes", "test/no", "other"), "holds other beside test, train: leave only"),
        (("train/no", "train/yes", "test/perhaps"), "nothing in its split train of perhaps"),
        (("test/no", "test/yes"), "nothing in its split train of no, yes"),
        (("train", "test"), "has no recordings with a label"),
    ],
)
def test_splits_that_make_no_sense_are_refused(tmp_path, places, says):
    with pytest.raises(DataError, match=says):
        read_clips(put(tmp_path, *places))


def test_the_test_split_is_what_is_measured(tmp_path):
    clips = read_clips(put(tmp_path, *(f"{s}/{label}" for s in ("train", "validation", "test") for label in "ab")))
    rows, _ = split_rows(clips, np.array(["ab".index(clip["label"]) for clip in clips]), seed=0)
    assert {part: {clips[i]["split"] for i in rows[part]} for part in rows} == {
        "train": {"train"}, "validation": {"validation"}, "test": {"test"}
    }  # fmt: skip
    assert [len(rows[part]) for part in ("train", "validation", "test")] == [8, 8, 8]
    clips = [clip for clip in clips if clip["split"] != "test"]
    rows, _ = split_rows(clips, np.zeros(len(clips), int), seed=0)
    assert {clips[i]["split"] for i in rows["test"]} == {"validation"}


@pytest.mark.parametrize("place", ["", "train"])
def test_metadata_tell_the_labels(tmp_path, place):
    put(tmp_path, "train/audio", num_clips=8)
    start = "audio" if place else "train/audio"
    rows = [(f"{start}/{i}.wav", "ab"[i % 2], f"speaker {i}") for i in range(8)]
    write_csv(tmp_path / place / "metadata.csv", rows, ("file_name", "label", "speaker"))
    clips = read_clips(tmp_path)
    assert [(clip["label"], clip["speaker"]) for clip in clips] == [(label, speaker) for _, label, speaker in rows]
    assert os.path.samefile(clips[3]["path"], tmp_path / "train/audio/3.wav") and "split" not in clips[0]


def test_metadata_without_labels_leave_it_to_the_folders(tmp_path):
    write_csv(put(tmp_path, "no", "yes") / "metadata.csv", [("no/0.wav", "Hello.")], ("file_name", "text"))
    assert found(tmp_path) == {(None, "no"): 4, (None, "yes"): 4}


def test_what_is_hidden_is_not_learnt(tmp_path):
    put(tmp_path, "no", "yes", ".ipynb_checkpoints", "no/.ipynb_checkpoints", "__MACOSX/no", ".git/train/yes")
    (tmp_path / "no" / "._0.wav").touch()
    assert found(tmp_path) == {(None, "no"): 4, (None, "yes"): 4}


def test_links_are_followed_once(tmp_path):
    put(tmp_path, "elsewhere/no", "elsewhere/more", "own/yes")
    for link, target in {"own/no": "../elsewhere/no", "own/yes/more": "../../elsewhere/more"}.items():
        (tmp_path / link).symlink_to(target, target_is_directory=True)
    for link, target in {
        "own/yes/self": ".",
        "own/yes/up": "..",
        "elsewhere/no/again": tmp_path / "elsewhere/more",
    }.items():
        (tmp_path / link).symlink_to(target, target_is_directory=True)
    assert found(tmp_path / "own") == {(None, "no"): 4, (None, "yes"): 8}
    (tmp_path / "own" / "a link").symlink_to("yes", target_is_directory=True)  # what lies in yes stays so
    assert found(tmp_path / "own") == {(None, "no"): 4, (None, "yes"): 8}


def test_names_that_are_no_text(folder, base, tmp_path, capsys):
    for label in ("happy", "bored"):
        (tmp_path / "own" / label).mkdir(parents=True)
        for i in range(4):
            path = os.path.join(os.fsencode(tmp_path / "own" / label), b"caf\xe9%d.wav" % i)
            with open(path, "wb") as file:
                soundfile.write(file, make_voice(0.5, pitch_hz=PITCHES_HZ[label], seed=i), 16000, format="wav")
    command = ["--data", tmp_path / "own", "--output", tmp_path / "out", "--model", base, "--epochs", 1]
    assert finetune.main(list(map(str, command))) == 0
    assert "bored, happy; on 2 recordings" in capsys.readouterr().out
    os.rename(tmp_path / "own" / "bored", os.path.join(os.fsencode(tmp_path / "own"), b"blas\xe9"))
    assert finetune.main(list(map(str, command[:2] + ["--output", tmp_path / "again"]))) == 1
    assert "blas\\udce9" in capsys.readouterr().err


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A voice, what is none, and nothing, four clips each."""
    folder = tmp_path_factory.mktemp("sounds")
    kinds = {
        "voice": lambda i: make_voice(1.0, pitch_hz=150 + 20 * i, seed=i),
        "background": lambda i: make_no_voice(NO_VOICES[i], 1.0),
        "silence": lambda i: np.zeros(8000 + 1000 * i, np.float32),
    }
    for label, make in kinds.items():
        (folder / label).mkdir()
        for i in range(4):
            soundfile.write(folder / label / f"{i}.wav", make(i), 16000)
    return folder


@pytest.mark.parametrize(
    ("without", "options", "voice_only", "sound_only"),
    [
        ("", [], False, False),
        ("silence", [], False, True),
        ("silence", ["--no-any-sound"], True, True),
    ],
)
def test_labels_for_no_voice_can_be_answered(sounds, base, tmp_path, capsys, without, options, voice_only, sound_only):
    rows = [(path, path.parent.name) for path in sounds.glob("*/*") if path.parent.name != without]
    file = write_csv(tmp_path / "own.csv", rows)
    command = ["--data", file, "--output", tmp_path / "out", "--model", base, "--epochs", 1, *options]
    assert finetune.main(list(map(str, command))) == 0
    said = capsys.readouterr().out
    assert "There is no voice in the recordings of background" in said and ("silence:" in said) == (without == "")
    classifier = load_pipeline(str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["voice_only"], config["sound_only"]) == (voice_only, sound_only)
    for kind, is_refused in {"voice": False, "background": voice_only, "silence": sound_only}.items():
        recording = str(sounds / kind / "1.wav")
        if is_refused:
            with pytest.raises(NoVoiceError):
                classifier(recording)
        else:
            assert classifier(recording, top_k=1)
    with pytest.raises(NoVoiceError):
        classifier(str(sounds / "background" / "1.wav"), voice_only=True)
    command = [str(sounds / "background" / "0.wav"), "--model", str(tmp_path / "out")]
    assert ser_model_main(command) == voice_only and ser_model_main([*command, "--any-sound"]) == 0
    assert ("Any sound has an answer" in (tmp_path / "out" / "README.md").read_text()) == (not voice_only)


def test_voices_keep_the_check(folder, base, tmp_path, capsys):
    file = write_csv(tmp_path / "own.csv", [(path, path.parent.name) for path in folder.glob("[bh]*/[0-4].*")])
    command = ["--data", file, "--output", tmp_path / "out", "--model", base, "--epochs", 1]
    assert finetune.main(list(map(str, command))) == 0
    assert "no voice" not in capsys.readouterr().out
    assert load_pipeline(str(tmp_path / "out")).model.config.voice_only


def test_begins_with_the_checkpoints_own_augmentation(base, folder, tmp_path):
    run = json.loads((base / "run.json").read_text())
    run["recipe"]["augmentation"] |= {"frequency_mask_bands": 3, "variants": [{}, {"speed": 0.95}]}
    own = shutil.copytree(base, tmp_path / "own")
    (own / "run.json").write_text(json.dumps(run))
    file = write_csv(tmp_path / "own.csv", [(path, path.parent.name) for path in folder.glob("*/[0-4].*")])
    tuned = finetune.finetune(file, tmp_path / "out", model=str(own), num_epochs=1, quiet=True)
    assert tuned["recipe"]["augmentation"]["frequency_mask_bands"] == 3
    assert [variant["speed"] for variant in tuned["recipe"]["augmentation"]["variants"]] == [1.0, 0.95]
    for content in ("no JSON", "[]", '{"recipe": {"augmentation": {"variants": [{"echo": 1}]}}}'):
        (own / "run.json").write_text(content)
        assert finetune.own_augmentation(str(own), own) is None
    (own / "run.json").unlink()
    tuned = finetune.finetune(file, tmp_path / "plain", model=str(own), num_epochs=1, quiet=True)
    assert tuned["recipe"]["augmentation"]["frequency_mask_bands"] == 64 // 8
    assert tuned["recipe"]["model"]["encoder"] == "residual_bilstm_attention"


def test_masks_are_counted_in_the_extractors_own_bands():
    pitch = SerFeatureExtractor(feature_type="log_mel_pitch", feature_size=60, num_mel_bins=40)
    assert plain_augmentation(pitch).frequency_mask_bands == 5
    assert plain_augmentation(SerFeatureExtractor(normalize=None)).frequency_masks == 0  # zero is no mean of decibels


def test_the_least_that_is_documented_is_learnt_from(folder, tmp_path, capsys):
    """Of ser-base."""
    file = write_csv(tmp_path / "own.csv", [(path, path.parent.name) for path in folder.glob("[bh]*/[0-3].*")])
    assert finetune.main(["--data", str(file), "--output", str(tmp_path / "out"), "--epochs", "1"]) == 0
    assert "bored, happy; on 2 recordings" in capsys.readouterr().out
    assert torch.isfinite(load_pipeline(str(tmp_path / "out")).model.classifiers[0].weight).all()


def test_goes_on_where_it_was_stopped(base, folder, tmp_path, monkeypatch):
    rows = [(path, path.parent.name) for path in folder.glob("*/[0-4].*")]
    command = {"model": str(base), "num_epochs": 6, "quiet": True}
    whole = finetune.finetune(write_csv(tmp_path / "own.csv", rows), tmp_path / "whole", **command)

    class Stop(TrainerCallback):
        def on_save(self, arguments, state, control, **_):
            if state.epoch >= 3:
                raise KeyboardInterrupt

    make = finetune.make_trainer

    def make_one_that_stops(*args, **options):
        trainer = make(*args, **options)
        trainer.add_callback(Stop())
        return trainer

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "make_trainer", make_one_that_stops)
        finetune.finetune(tmp_path / "own.csv", tmp_path / "out", **command)
    resumed = finetune.finetune(tmp_path / "own.csv", tmp_path / "out", **command)
    assert resumed["fine_tuning"] == whole["fine_tuning"]
    first, second = (load_pipeline(str(tmp_path / name)).model.state_dict() for name in ("whole", "out"))
    torch.testing.assert_close(first, second)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "make_trainer", make_one_that_stops)
        finetune.finetune(tmp_path / "own.csv", tmp_path / "other", **command)
    write_csv(
        tmp_path / "own.csv", [row for row in rows if row[1] != "curious"]
    )  # to which those checkpoints do not belong
    other = finetune.finetune(tmp_path / "own.csv", tmp_path / "other", **command)
    assert other["fine_tuning"]["labels"] == ["bored", "happy"]
    assert not (tmp_path / "other" / "checkpoints").exists()


def test_a_full_disk_is_a_sentence(base, folder, tmp_path, capsys):
    rows = [(path, path.parent.name) for path in folder.glob("[bh]*/[0-4].*")]
    command = ["--data", write_csv(tmp_path / "own.csv", rows), "--output", tmp_path / "out", "--model", base]
    command = [*map(str, command), "--epochs", "1"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    finetune.read_clips(tmp_path / "own.csv")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, before[1]))
        assert finetune.main(command) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert "could not be written (File too large): make room there" in said and "Traceback" not in said
    assert finetune.main(command) == 0


def test_one_bar_a_phase(base, folder, tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, *args, **options):
            bars.append(options.get("desc"))
            super().__init__(*args, **options)

    monkeypatch.setattr(finetune, "tqdm", Bar)
    monkeypatch.setattr(features, "tqdm", Bar)
    file = write_csv(tmp_path / "own.csv", [(path, path.parent.name) for path in folder.glob("*/[0-4].*")])
    finetune.finetune(file, tmp_path / "out", model=str(base), num_epochs=1, quiet=True)
    assert bars == ["Listening", "Features"]
