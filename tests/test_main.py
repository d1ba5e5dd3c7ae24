import csv
import json
import subprocess
import sys

import pytest
import soundfile

from ser_model.__main__ import main
from ser_model.pretrained import available, load_pipeline
from tests.conftest import ROOT, make_voice


@pytest.fixture
def clip(tmp_path):
    soundfile.write(tmp_path / "clip.wav", make_voice(2.0, rate=48000), 48000)
    return str(tmp_path / "clip.wav")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "more").mkdir()
    for i, name in enumerate(("a.wav", "more/b.flac", "more/c.ogg")):
        soundfile.write(tmp_path / name, make_voice(1.0 + 4 * i, seed=i), 16000)
    (tmp_path / "notes.txt").write_text("not searched for")
    (tmp_path / "broken.wav").write_text("not a sound")
    return tmp_path


def test_says_one_line_for_one_file(clip, capsys):
    assert main([clip]) == 0
    answer = load_pipeline()(clip, top_k=1)[0]
    expected = f"Predicted Emotion: {answer['label']} (Confidence: {answer['score']:.2f})\n"
    assert capsys.readouterr().out == expected


def test_runs_as_a_module(clip):
    command = [sys.executable, "-m", "ser_model", clip]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Predicted Emotion: ")
    assert done.stderr == ""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_bad_file_does_not_stop_the_others(folder, capsys, workers):
    assert main([str(folder), "--format", "json", "--timeline", "--workers", workers]) == 1
    captured = capsys.readouterr()
    results = json.loads(captured.out)
    assert [r["path"].rsplit("/", 1)[1] for r in results] == ["a.wav", "broken.wav", "b.flac", "c.ogg"]
    assert set(results[1]) == {"path", "error"}
    assert "broken.wav" in captured.err and "1 of 4 files" in captured.err
    for result in (results[0], *results[2:]):
        assert set(result) == {"path", "label", "score", "scores", "duration_s", "windows"}
        assert set(result["windows"][0]) == {"start_s", "end_s", "label", "score", "scores"}
    assert len(results[3]["windows"]) == 2


def test_json_leaves_windows_out_unless_asked(clip, capsys):
    assert main([clip, "--format", "json"]) == 0
    assert "windows" not in json.loads(capsys.readouterr().out)[0]


@pytest.mark.parametrize(("options", "rows"), [([], 4), (["--timeline"], 5)])
def test_csv(folder, tmp_path, options, rows):
    output = tmp_path / "out.csv"
    assert main([str(folder), "--format", "csv", "--output", str(output), *options]) == 1
    with open(output, newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == rows
    assert table[1]["error"] and not table[1]["label"]
    assert float(table[0][table[0]["label"]]) == pytest.approx(float(table[0]["score"]))
    assert table[-1]["end_s"].startswith("9.0")


def test_text_lists_windows_on_request(folder, capsys):
    assert main([str(folder / "more"), "--timeline"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 1 + 2
    assert lines[-1].startswith("  4.0 to 9.0 s: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["nowhere.wav"], "does not exist"), (["CLIP", "--model", "no-such"], "There is no checkpoint")],
)
def test_says_what_is_wrong(clip, capsys, arguments, says):
    assert main([clip if a == "CLIP" else a for a in arguments]) == 1
    captured = capsys.readouterr()
    assert says in captured.err and captured.out == ""
    assert captured.err.count("\n") == 1


def test_empty_folder(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no recording" in capsys.readouterr().err


def test_ser_base_ships():
    assert "ser-base" in available()
