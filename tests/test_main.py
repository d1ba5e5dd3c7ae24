import csv
import errno
import json
import os
import re
import resource
import subprocess
import sys
import time

import numpy as np
import psutil
import pyarrow.parquet
import pytest
import soundfile

from ser_model.__main__ import main
from ser_model.pretrained import available, load_pipeline
from tests.conftest import ROOT, make_no_voice, make_voice
from tests.fuzz import KINDS, make_recording
from tests.test_audio import BROKEN, broken_files

FULL = os.strerror(errno.ENOSPC)


@pytest.fixture(scope="module")
def broken_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    broken_files(folder)
    soundfile.write(folder / "silence.wav", np.zeros(80000), 16000)
    soundfile.write(folder / "level.wav", np.full(80000, 1e-5), 16000, subtype="FLOAT")
    soundfile.write(folder / "constant.wav", np.full(240000, 0.5), 48000)
    soundfile.write(folder / "bomb.flac", np.zeros(20 * 60 * 48000, np.int16), 48000)  # 115 MB out of less than one
    return folder


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


def imported_by(*arguments: str) -> set[str]:
    """What the command imports in a process of its own."""
    command = [sys.executable, "-X", "importtime", "-m", "ser_model", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-500:]
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def test_help_does_not_wait_for_torch():
    imported = imported_by("--help")
    assert "ser_model.results" in imported
    assert not imported & {"torch", "transformers", "huggingface_hub"}


def test_listening_imports_nothing_of_the_demo_or_of_training(clip):
    imported = imported_by(clip)
    assert "ser_model.modeling_ser" in imported
    assert not imported & {"gradio", "datasets", "librosa", "matplotlib", "torchaudio", "sklearn", "pandas", "pyarrow"}


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


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_no_voice_is_refused_unless_asked_for(tmp_path, capsys, workers):
    soundfile.write(tmp_path / "fan.wav", make_no_voice("brown noise", 3.0), 16000)
    soundfile.write(tmp_path / "hum.wav", make_no_voice("mains hum", 5.0), 16000)
    soundfile.write(tmp_path / "voice.wav", make_voice(2.0), 16000)
    command = [str(tmp_path), "--format", "csv", "--workers", workers]
    assert main(command) == 1
    captured = capsys.readouterr()
    rows = list(csv.DictReader(captured.out.splitlines()))
    assert [bool(row["label"]) for row in rows] == [False, False, True]
    assert rows[0]["error"] == f"{tmp_path / 'fan.wav'} has no voice in it: there is no emotion to hear."
    assert f"error: {rows[1]['error']}\n" in captured.err
    assert main([*command, "--any-sound"]) == 0
    assert all(row["label"] for row in csv.DictReader(capsys.readouterr().out.splitlines()))


def test_noise_between_voices_is_no_speech(tmp_path, capsys):
    sounds = [make_voice(4.0), make_no_voice("white noise", 4.0), make_voice(4.0)]
    soundfile.write(tmp_path / "call.wav", np.concatenate(sounds), 16000)
    assert main([str(tmp_path / "call.wav"), "--timeline"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "  4.0 to 8.0 s: no speech"
    assert main([str(tmp_path / "call.wav"), "--timeline", "--format", "json"]) == 0
    windows = json.loads(capsys.readouterr().out)[0]["windows"]
    assert [window["label"] is None for window in windows] == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["nowhere.wav"], "does not exist"), (["CLIP", "--model", "no-such"], "There is no checkpoint")],
)
def test_says_what_is_wrong(clip, capsys, arguments, says):
    assert main([clip if a == "CLIP" else a for a in arguments]) == 1
    captured = capsys.readouterr()
    assert says in captured.err and captured.out == ""
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("timeline", [[], ["--timeline"]])
def test_parquet_holds_what_csv_holds(folder, tmp_path, timeline):
    for ending in ("csv", "parquet"):
        assert main([str(folder), "--output", str(tmp_path / f"out.{ending}"), *timeline]) == 1
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))
    assert table.column_names == list(expected[0])
    for row, text in zip(table.to_pylist(), expected, strict=True):
        for name, value in row.items():
            assert (float(text[name]) if isinstance(value, float) else text[name]) == ("" if value is None else value)


def test_output_ends_as_the_format(folder, tmp_path):
    main([str(folder), "--output", str(tmp_path / "out.json")])
    assert len(json.loads((tmp_path / "out.json").read_text())) == 4
    main([str(folder), "--output", str(tmp_path / "out.json"), "--format", "csv"])
    assert (tmp_path / "out.json").read_text().startswith("path,start_s,")
    assert {path.name for path in tmp_path.glob("out*")} == {"out.json"}


def many_files(folder):
    folder.mkdir()
    for number in range(80):
        soundfile.write(folder / f"{number:02d}.wav", make_voice(1.0, seed=number), 16000)
    (folder / "40.wav").write_text("not a sound")
    return str(folder)


@pytest.mark.slow
def test_killed_run_goes_on(tmp_path, capsys):
    folder, journal = many_files(tmp_path / "in"), tmp_path / "out.csv.journal"
    command = [sys.executable, "-m", "ser_model", folder, "--output", str(tmp_path / "out.csv"), "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
        assert process.poll() is None
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert not (tmp_path / "out.csv").exists()
    with open(journal, "ab") as file:
        file.write(b'{"path": "cut sh')
    kept = journal.read_bytes().count(b"\n") - 1
    assert main([folder, "--output", str(tmp_path / "out.csv")]) == 1
    assert f"{kept}/80" in capsys.readouterr().err  # the progress bar starts there
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{folder}/{number:02d}.wav" for number in range(80)]
    assert [row["path"] for row in rows if row["error"]] == [f"{folder}/40.wav"]
    assert not journal.exists()


def test_full_disk_leaves_the_previous_output(folder, tmp_path):
    (tmp_path / "out.csv").write_text("the last run's\n")
    command = [sys.executable, "-m", "ser_model", str(folder), "--output", str(tmp_path / "out.csv")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)),
    )
    assert done.returncode == 1
    assert done.stderr.endswith("error: {} cannot be opened or written: {}.\n".format(tmp_path / "out.csv", FULL))
    assert (tmp_path / "out.csv").read_text() == "the last run's\n"
    assert main([str(folder), "--output", str(tmp_path / "out.csv")]) == 1
    assert (tmp_path / "out.csv").read_text().count("\n") == 5


@pytest.mark.parametrize(
    "name", ["two\nlines.wav", "träne😢.wav", b"not utf-8 \xff.wav", "-dash.wav", 'comma, "quote".wav']
)
@pytest.mark.parametrize("kind", ["text", "json", "csv", "parquet"])
def test_any_name(tmp_path, name, kind):
    path = os.path.join(tmp_path, os.fsdecode(name))
    with open(path, "wb") as file:
        soundfile.write(file, make_voice(0.5), 16000, format="WAV")
    (tmp_path / "broken.wav").write_bytes(b"")
    output = tmp_path / "out"
    assert main([str(tmp_path), "--format", kind, "--output", str(output)]) == 1
    readable = path.encode(errors="backslashreplace").decode()
    if kind == "text":
        assert output.read_text().count("\n") == 1
    elif kind == "json":
        assert path in {row["path"] for row in json.loads(output.read_text())}
    elif kind == "csv":
        with open(output, newline="", encoding="utf-8") as file:
            assert readable in {row["path"] for row in csv.DictReader(file)}
    else:
        assert readable in pyarrow.parquet.read_table(output)["path"].to_pylist()


def test_a_file_named_twice_is_scored_once(clip, tmp_path):
    assert main([clip, str(tmp_path), clip, "--output", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_text().count("\n") == 2


def test_reader_that_has_seen_enough(folder):
    command = f"'{sys.executable}' -m ser_model '{folder}/a.wav' --timeline | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)  # noqa: S602
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_interrupted_run_says_how_to_go_on(folder, tmp_path, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ser_model.__main__.score_files", interrupt)
    assert main([str(folder), "--output", str(tmp_path / "out.csv")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_output_that_cannot_be_written(folder, tmp_path, capsys):
    for output, says in ((tmp_path / "no/such/out.csv", "No such file or directory"), (tmp_path, "is a folder")):
        assert main([str(folder), "--output", str(output)]) == 1
        error = capsys.readouterr().err
        assert says in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--workers", "0"], "not a number of 1 or more"),
        (["--workers", "many"], "not a number of 1 or more"),
        (["--format", "parquet"], "give --output as well"),
        (["--format", "xml"], "invalid choice"),
    ],
)
def test_wrong_options(clip, capsys, options, says):
    with pytest.raises(SystemExit) as caught:
        main([clip, *options])
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "says"),
    [case for case in BROKEN if case[0] != "days.wav"]
    + [(name, "is silent") for name in ("silence.wav", "level.wav", "constant.wav", "bomb.flac")],
)
def test_bad_files_exit_with_one_sentence(broken_folder, capsys, name, says):
    assert main([str(broken_folder / name)]) == 1
    captured = capsys.readouterr()
    assert re.search(says if name != "folder.wav" else "no recording in", captured.err)
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_every_format_cut_at_every_tenth(tmp_path, capsys):
    voice = make_voice(1.0, rate=48000)
    for kind in KINDS:
        content = make_recording(kind, voice)
        for tenths in range(10):
            (tmp_path / f"{kind}-{tenths}.wav").write_bytes(content[: len(content) * tenths // 10])
    assert main([str(tmp_path), "--format", "json"]) == 1
    results = json.loads(capsys.readouterr().out)
    assert len(results) == 10 * len(KINDS)
    for result in results:
        assert "label" in result or (result["error"].isprintable() and result["error"].endswith("."))


def test_empty_folder(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no recording" in capsys.readouterr().err


def test_ser_base_ships():
    assert "ser-base" in available()
