import multiprocessing
import os

import pytest
import soundfile

from ser_model.pretrained import load_pipeline
from ser_model.results import Journal
from ser_model.scoring import find_recordings, score_file, score_files
from tests.conftest import make_voice


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
    found = [os.path.relpath(path, tmp_path) for path in find_recordings(str(tmp_path))]
    assert found == ["a.flac", "b.WAV", "more/deep/c.opus"]
    assert find_recordings("no/such.file") == ["no/such.file"]


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


def test_journal_remembers(tmp_path):
    journal = Journal(tmp_path / "j", {"model": "m"})
    for path in ("b", "a", "weird \udcff\n"):
        journal.add(result(path))
    journal.close()
    journal = Journal(tmp_path / "j", {"model": "m"})
    assert len(journal) == 3 and "a" in journal and "c" not in journal
    assert list(journal.read(["a", "weird \udcff\n"])) == [result("a"), result("weird \udcff\n")]
    assert journal.labels == ["calm", "sad"]
    journal.delete()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_journal_drops_what_was_cut_short(tmp_path, cut):
    journal = Journal(tmp_path / "j", {"model": "m"})
    journal.add(result("a"))
    journal.add(result("b"))
    journal.close()
    os.truncate(tmp_path / "j", (tmp_path / "j").stat().st_size - cut)
    journal = Journal(tmp_path / "j", {"model": "m"})
    assert "a" in journal and "b" not in journal
    journal.add(result("b"))
    journal.close()
    assert list(Journal(tmp_path / "j", {"model": "m"}).read("ab")) == [result("a"), result("b")]


def test_journal_mixes_no_runs(tmp_path):
    journal = Journal(tmp_path / "j", {"model": "m"})
    with pytest.raises(ValueError, match="Another run is writing"):
        Journal(tmp_path / "j", {"model": "m"})
    journal.close()
    with pytest.raises(ValueError, match='unfinished run with other options \\("model": "m"\\)'):
        Journal(tmp_path / "j", {"model": "other"})
