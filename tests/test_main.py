import contextlib
import csv
import errno
import itertools
import json
import os
import re
import resource
import sqlite3
import stat
import subprocess
import sys

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from ser_model.__main__ import main
from ser_model.pretrained import available, load_pipeline
from ser_model.results import Journal
from ser_model.scoring import score_files
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
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = ""
    while not re.search(r" [1-9]\d/80 ", said):
        assert (more := process.stderr.read(1)), said
        said += more
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert not (tmp_path / "out.csv").exists()
    with contextlib.closing(sqlite3.connect(journal)) as database:
        [(kept,)] = database.execute("SELECT count(*) FROM results WHERE path NOT LIKE '%40.wav'")
    assert kept >= 10
    assert main([folder, "--output", str(tmp_path / "out.csv")]) == 1
    assert f" {kept}/80 " in capsys.readouterr().err  # the progress bar starts there
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{folder}/{number:02d}.wav" for number in range(80)]
    assert [row["path"] for row in rows if row["error"]] == [f"{folder}/40.wav"]
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out.csv"}


def stop_after(count, monkeypatch):
    """The command is interrupted once it has so many results."""

    def stopped(*arguments, **options):
        yield from itertools.islice(score_files(*arguments, **options), count)
        raise KeyboardInterrupt

    monkeypatch.setattr("ser_model.__main__.score_files", stopped)


def test_what_has_changed_since_a_run_was_stopped_is_heard_again(folder, tmp_path, capsys):
    def run(output):
        main([str(folder), "--output", str(tmp_path / output)])
        return (tmp_path / output).read_text()

    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, patch)
        assert main([str(folder), "--output", str(tmp_path / "out.csv")]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    soundfile.write(tmp_path / "broken.wav", make_voice(2.0, seed=7), 16000)  # it had only been copied in part
    soundfile.write(tmp_path / "a.wav", make_voice(1.0, seed=8), 16000)  # as long as before
    resumed = run("out.csv")
    assert "2/4" in capsys.readouterr().err
    assert resumed == run("anew.csv")
    assert "could not" not in resumed and not (tmp_path / "out.csv.journal").exists()


@pytest.mark.parametrize("content", [b"", b"my diary\n", b'["valid", "JSON"]\n', b"SQLite format 3\0" + bytes(4080)])
def test_a_foreign_file_in_the_journals_place_is_left_alone(folder, tmp_path, capsys, content):
    (tmp_path / "out.csv.journal").write_bytes(content)
    assert main([str(folder), "--output", str(tmp_path / "out.csv")]) == 1
    assert f"{tmp_path / 'out.csv.journal'} is not a journal of this command" in capsys.readouterr().err
    assert (tmp_path / "out.csv.journal").read_bytes() == content and not (tmp_path / "out.csv").exists()


def test_a_run_goes_on_only_as_it_began_and_once_at_a_time(folder, tmp_path, capsys, monkeypatch):
    stop_after(2, monkeypatch)
    command = [str(folder), "--output", str(tmp_path / "out.csv")]
    assert main(command) == 130
    capsys.readouterr()
    assert main([*command, "--timeline"]) == 1
    assert "holds an unfinished run with other options" in capsys.readouterr().err
    settings = {"model": "ser-base", "timeline": False, "any_sound": False}
    with contextlib.closing(Journal(tmp_path / "out.csv.journal", settings)) as journal:
        assert main(command) == 1
        assert "Another run is writing" in capsys.readouterr().err
        assert len(journal.left([str(tmp_path / "a.wav")])) == 0
    assert main(command) == 130


@pytest.mark.parametrize("size", [300, 17_000])  # not even an empty journal fits; one with some results does not
def test_full_disk_leaves_the_previous_output(folder, tmp_path, size):
    (tmp_path / "out.csv").write_text("path,start_s,end_s,label,score,calm,error\n")
    command = [sys.executable, "-m", "ser_model", str(folder), "--output", str(tmp_path / "out.csv")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert done.returncode == 1
    assert done.stderr.endswith("error: {} cannot be opened or written: {}.\n".format(tmp_path / "out.csv", FULL))
    assert (tmp_path / "out.csv").read_text().count("\n") == 1
    assert main([str(folder), "--output", str(tmp_path / "out.csv")]) == 1
    assert (tmp_path / "out.csv").read_text().count("\n") == 5
    assert len(list(tmp_path.glob("*out.csv*"))) == 1


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


def test_output_that_cannot_be_written(folder, tmp_path, capsys):
    for output, says in ((tmp_path / "no/such/out.csv", "No such file or directory"), (tmp_path, "is a folder")):
        assert main([str(folder), "--output", str(output)]) == 1
        error = capsys.readouterr().err
        assert says in error and error.startswith("error: ") and error.count("\n") == 1


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("output", "content"),
    [
        ("a", b"RIFF, and a recording after it"),
        ("notes.txt", b"Predicted Emotion: what I wrote about it\n"),
        ("table.csv", b"path,label\nclip.wav,calm\n"),
        ("list.json", b'[\n{"name": "mine"}\n]\n'),
        ("table.parquet", b""),
    ],
)
def test_output_replaces_no_file_that_is_not_a_result(clip, tmp_path, capsys, output, content):
    (tmp_path / output).write_bytes(content)
    if output.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"mine": [1, 2]}), tmp_path / output)
    before = contents(tmp_path)
    assert main([clip, "--output", str(tmp_path / output)]) == 1
    assert "exists and is no result of this command" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["text", "json", "csv", "parquet"])
def test_output_replaces_a_result_of_any_format(clip, tmp_path, kind):
    output = tmp_path / "out"
    assert main([clip, "--format", kind, "--output", str(output)]) == 0
    assert main([clip, "--output", str(output)]) == 0
    assert output.read_text().startswith("Predicted Emotion: ")


@pytest.mark.parametrize("way", ["itself", "link", "hard link", "within a folder"])
def test_output_replaces_no_input(tmp_path, capsys, monkeypatch, way):
    """Here a result of before, which may be replaced otherwise, is named as if it were a recording."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rec").mkdir()
    given = tmp_path / "rec" / ("old.wav" if way == "within a folder" else "old.csv")
    given.write_text("path,start_s,end_s,label,score,calm,error\n")
    {"link": os.symlink, "hard link": os.link}.get(way, os.link)(given, tmp_path / "other.csv")
    output = "other.csv" if way != "itself" else "./rec/../rec/old.csv"
    assert main(["rec" if way == "within a folder" else str(given), "--output", output]) == 1
    assert f"{output} is an input, which --output would replace" in capsys.readouterr().err
    assert given.read_text().startswith("path,")


def test_output_through_a_link_stays_one(clip, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    os.symlink("elsewhere/out.csv", tmp_path / "link.csv")  # to nothing yet
    for _ in range(2):
        assert main([clip, "--output", str(tmp_path / "link.csv")]) == 0
        assert (tmp_path / "link.csv").is_symlink()
        assert (tmp_path / "elsewhere/out.csv").read_text().startswith("path,start_s")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["out.csv"]


@pytest.mark.parametrize("kind", ["text", "parquet"])
def test_a_pipe_is_written_into(folder, tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "ser_model", folder, "--format", kind, "--output", tmp_path / "pipe"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    content = (tmp_path / "pipe").read_bytes()
    assert process.wait() == 1  # one of the files is broken
    assert content.count(b"Predicted Emotion: ") == 3 if kind == "text" else content.endswith(b"PAR1")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and not (tmp_path / "pipe.journal").exists()


def test_what_standard_output_is_redirected_to_is_added_to(clip, tmp_path):
    (tmp_path / "log").write_text("before\n")
    command = f"{{ '{sys.executable}' -m ser_model '{clip}' --output /dev/stdout; echo after; }} >> '{tmp_path}/log'"
    subprocess.run(command, shell=True, cwd=ROOT, check=True)  # noqa: S602
    assert re.fullmatch(r"before\nPredicted Emotion: .*\nafter\n", (tmp_path / "log").read_text())


@pytest.mark.parametrize("output", ["out.xlsx", "out.csv.gz", "new.wav", "out.jsonl"])
def test_output_ends_as_a_format_does(clip, tmp_path, capsys, output):
    for more in ([], ["--format", "csv"]):
        with pytest.raises(SystemExit) as caught:
            main([clip, "--output", str(tmp_path / output), *more])
        assert caught.value.code == 2
        assert f"{output}' must end in .txt or .json or .csv or .parquet." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["clip.wav"]


def test_output_may_end_in_capitals(clip, tmp_path):
    assert main([clip, "--output", str(tmp_path / "OUT.CSV")]) == 0
    assert (tmp_path / "OUT.CSV").read_text().startswith("path,start_s")


def test_says_what_a_folder_holds_besides(tmp_path, capsys):
    for name in ("notes.txt", "more.TXT", "scan.pdf", "no-ending", ".hidden"):
        (tmp_path / name).write_text("no sound")
    said = "4 files were passed over, not named as recordings are (.txt, "
    assert main([str(tmp_path)]) == 1
    assert said in (error := capsys.readouterr().err) and "there is no recording in" in error
    soundfile.write(tmp_path / "clip.wav", make_voice(1.0), 16000)
    assert main([str(tmp_path), "--output", str(tmp_path / "out.csv")]) == 0
    assert said in capsys.readouterr().err
    assert main([str(tmp_path / "clip.wav")]) == 0
    assert capsys.readouterr().err == ""


def test_a_spreadsheet_takes_no_cell_for_a_formula(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.wav", "+1.wav", "-1.wav", "@SUM(A1).wav", "\tx.wav", "\rx.wav", "\nx.wav", "fine\r=1.wav"]
    for name in names:
        soundfile.write(tmp_path / name, make_voice(0.5), 16000)
    (tmp_path / "=broken.wav").write_text("no sound")
    assert main([".", "--output", "out.csv"]) == 1
    with open("out.csv", newline="", encoding="utf-8") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert set(rows) == {f"'{name}" for name in [*names[:-1], "=broken.wav"]} | {names[-1]}
    assert rows["'=broken.wav"]["error"].startswith("'=broken.wav is not a recording")
    assert float(rows["'-1.wav"]["score"]) > 0
    assert main([".", "--output", "out.json"]) == 1
    assert {row["path"] for row in json.loads((tmp_path / "out.json").read_text())} == {*names, "=broken.wav"}


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
