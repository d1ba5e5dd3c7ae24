import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys

import pytest
import soundfile

from ser_model.pretrained import load_pipeline
from ser_model.results import Journal
from ser_model.scoring import describe_others, find_files, find_recordings, score_file, score_files
from tests.conftest import ROOT, make_voice


@pytest.fixture
def clips(tmp_path):
    for number in range(12):
        soundfile.write(tmp_path / f"{number:02d}.wav", make_voice(1.0, seed=number), 16000)
    return find_recordings(str(tmp_path))


def test_finds_recordings_and_nothing_else(tmp_path):
    for name in ("b.WAV", "a.flac", "._a.flac", "notes.txt", "more/deep/c.opus"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "more/round").symlink_to(tmp_path)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/d.wav").write_bytes(b"")
    found = [os.path.relpath(path, tmp_path) for path in find_recordings(str(tmp_path))]
    assert found == ["a.flac", "b.WAV", "more/deep/c.opus"]
    assert find_recordings("no/such.file") == ["no/such.file"]


def test_finds_what_telephones_recorders_and_broadcasters_write(tmp_path):
    endings = [
        ".qta",
        ".3ga",
        ".TS",
        ".mpeg",
        ".mpg",
        ".mp2",
        ".spx",
        ".m4b",
        ".wv",
        ".tta",
        ".ac3",
        ".sph",
        ".wmv",
        ".flv",
        ".vob",
        ".m2ts",
        ".oga",
        ".weba",
        ".aifc",
    ]
    for ending in endings:
        (tmp_path / f"call{ending}").write_bytes(b"G\0")
    (tmp_path / "player.ts").write_text("export const player = 1;")
    (tmp_path / "page.html").write_text("no sound")
    recordings, others = find_files([str(tmp_path)])
    assert len(recordings) == len(endings)
    assert [os.path.basename(path) for path in others] == ["page.html", "player.ts"]
    assert describe_others(others).startswith("2 files were passed over, not named as recordings are (.html, .ts)")


def test_enters_linked_folders_once(tmp_path):
    for name in ("here/sub/a.wav", "there/b.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "here/linked").symlink_to(tmp_path / "there")
    (tmp_path / "here/sub/again").symlink_to(tmp_path / "here/sub")
    found = [os.path.relpath(path, tmp_path) for path in find_recordings(str(tmp_path / "here"))]
    assert found == ["here/linked/b.wav", "here/sub/a.wav"]


def test_what_nobody_thought_of_is_an_error_like_any_other(clips):
    def surprised(path, **options):
        raise RuntimeError("out of paper")

    assert score_file(surprised, clips[0]) == {
        "path": clips[0],
        "error": f"{clips[0]} could not be scored: RuntimeError, out of paper.",
    }


def test_tells_how_much_was_heard(tmp_path):
    soundfile.write(tmp_path / "clip.wav", make_voice(13.0), 16000)
    heard = []
    result = score_file(load_pipeline(), str(tmp_path / "clip.wav"), on_window=heard.append)
    assert heard == [window["end_s"] for window in result["windows"]] == [4.0, 8.0, 13.0]


@pytest.mark.slow
def test_a_dead_worker_costs_one_file(clips):
    answers = score_files(clips, model="ser-base", workers=2)
    results = [next(answers)]
    multiprocessing.active_children()[0].kill()
    results += answers
    assert sorted(result["path"] for result in results) == clips
    failed = [result["error"] for result in results if "error" in result]
    assert len(failed) <= 1 and all("the process that read it died" in error for error in failed)
    assert not multiprocessing.active_children()


def result(path, **more):
    return {"path": path, "label": "calm", "score": 0.5, "scores": {"calm": 0.5, "sad": 0.5}, "duration_s": 1.0, **more}


@pytest.fixture
def recordings(tmp_path):
    for name in ("a", "b", "weird \udcff\n"):
        (tmp_path / name).write_bytes(b"whatever")
    return [str(tmp_path / name) for name in ("a", "b", "weird \udcff\n")]


def test_journal_remembers(tmp_path, recordings):
    journal = Journal(tmp_path / "j", {"model": "m"})
    assert journal.left(recordings) == recordings and journal.labels == []
    for path in recordings[::-1]:
        journal.add(result(path))
    journal.close()
    journal = Journal(tmp_path / "j", {"model": "m"})
    assert journal.left([*recordings, "nowhere"]) == ["nowhere"]
    assert list(journal.read(recordings)) == [result(path) for path in recordings]
    assert journal.labels == ["calm", "sad"]
    journal.delete()
    assert sorted(map(str, tmp_path.iterdir())) == recordings


def test_journal_forgets_errors_and_what_has_changed(tmp_path, recordings):
    a, b, c = recordings
    with contextlib.closing(Journal(tmp_path / "j", {})) as journal:
        journal.left(recordings)
        (tmp_path / "a").write_bytes(b"while it was heard")
        journal.add({"path": b, "error": "out of memory"})
        journal.add(result(a))
        journal.add(result(c))
    os.utime(c, ns=(0, os.stat(c).st_mtime_ns + 1))
    with contextlib.closing(Journal(tmp_path / "j", {})) as journal:
        assert journal.left(recordings) == recordings
        for path in recordings:
            journal.add(result(path, score=0.7))
        assert [answer["score"] for answer in journal.read(recordings)] == [0.7] * 3
    with contextlib.closing(Journal(tmp_path / "j", {})) as journal:
        assert journal.left(recordings) == []


def test_journal_of_a_killed_run_keeps_every_result(tmp_path, recordings):
    """And the log that SQLite then leaves beside it does not outlive it."""
    code = "import os, sys; from ser_model.results import Journal; journal = Journal(__import__('pathlib').Path('j'), {}); "
    code += "journal.left(['a']); journal.add({'path': 'a', 'scores': {}}); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / "j-wal").exists()
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("weird*"))
    with contextlib.closing(Journal(tmp_path / "j", {})) as journal:
        assert list(journal.read(["a"])) == [{"path": "a", "scores": {}}]
    (tmp_path / "copy/j").unlink()
    with contextlib.closing(Journal(tmp_path / "copy/j", {"model": "other"})) as journal:
        assert journal.left(recordings) == recordings


def test_journal_mixes_no_runs(tmp_path):
    journal = Journal(tmp_path / "j", {"model": "m"})
    journal.add(result("a"))
    with pytest.raises(ValueError, match="Another run is writing"):
        Journal(tmp_path / "j", {"model": "m"})
    journal.close()
    with pytest.raises(ValueError, match='unfinished run with other options \\("model": "m"\\)'):
        Journal(tmp_path / "j", {"model": "other"})


def test_journal_without_results_leaves_nothing_to_finish(tmp_path):
    Journal(tmp_path / "j", {"model": "mistyped"}).close()
    assert not list(tmp_path.iterdir())


def test_damaged_journal_is_named(tmp_path, recordings):
    journal = Journal(tmp_path / "j", {"model": "m"})
    journal.left(recordings)
    for number in range(100):
        journal.add(result(str(number)))
    journal.close()
    os.truncate(tmp_path / "j", (tmp_path / "j").stat().st_size // 2)
    with pytest.raises(ValueError, match="j is damaged .*: delete it"):
        Journal(tmp_path / "j", {"model": "m"}).left(recordings)
