import csv
import json

import numpy as np
import pytest
import soundfile
import torch

from ser_model import SerConfig, SerForAudioClassification
from ser_model.pretrained import load_pipeline
from tests.conftest import make_voice
from tests.test_push import make_checkpoint
from train import finetune
from train.finetune import DataError, read_clips, split_clips, with_labels

PITCHES_HZ = {"happy": 120, "bored": 230, "curious": 400}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("base") / "base")


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
    assert "bored, curious, happy; on 6 recordings kept out (at random): UAR 100.0 %" in said
    classifier = load_pipeline(str(output))
    assert classifier.model.config.id2label == {0: "bored", 1: "curious", 2: "happy"}
    for label, pitch in PITCHES_HZ.items():
        voice = make_voice(0.5, pitch_hz=pitch + 4, seed=77)
        assert classifier(voice, top_k=1, voice_only=False)[0]["label"] == label
    run = json.loads((output / "run.json").read_text())
    assert run["fine_tuning"]["num_train_clips"] == 24
    card = (output / "README.md").read_text()
    assert "bored, curious, happy" in card and "model-index" in card
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
