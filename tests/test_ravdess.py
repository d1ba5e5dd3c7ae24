import functools
import hashlib
import http.server
import shutil
import threading
import zipfile
from collections import Counter

import pytest
import soundfile

from ser_model.configuration_ser import EMOTIONS
from tests.conftest import make_ravdess, make_voice
from train import ravdess
from train.ravdess import FOLDS, RavdessError, load_ravdess, parse_name, split_actors


def test_parses_names():
    assert parse_name("Actor_12/03-01-06-01-02-01-12.wav") == {
        "emotion": "fearful",
        "intensity": "normal",
        "statement": "Dogs are sitting by the door",
        "repetition": 1,
        "actor": 12,
        "gender": "female",
        "vocal_channel": "speech",
    }
    assert parse_name("03-02-01-01-01-02-23.flac")["gender"] == "male"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hello.wav", "seven two-digit numbers"),
        ("03-01-06-01-02-01.wav", "seven two-digit numbers"),
        ("03-01-6-01-02-01-12.wav", "seven two-digit numbers"),
        ("03-01-09-01-02-01-12.wav", "emotion is 09, expected 01 to 08"),
        ("03-01-06-01-02-01-25.wav", "actor is 25"),
        ("01-01-06-01-02-01-12.wav", "modality is 01, expected 03"),
    ],
)
def test_refuses_bad_names(name, says):
    with pytest.raises(RavdessError, match=says):
        parse_name(name)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return make_ravdess(tmp_path_factory.mktemp("ravdess") / "speech", duration_s=0.06)


def test_loads_the_whole_tree(speech, tmp_path):
    data = load_ravdess(speech, cache_dir=tmp_path)
    assert len(data) == 1440
    assert data.features["emotion"].names == list(EMOTIONS)
    assert set(data.column_names) == {
        "audio", "emotion", "intensity", "statement", "repetition", "actor", "gender", "vocal_channel"
    }  # fmt: skip
    row = data[0]
    assert row["audio"]["path"].endswith("Actor_01/03-01-01-01-01-01-01.wav")
    assert (row["emotion"], row["actor"], row["gender"]) == (0, 1, 0)
    assert Counter(data["emotion"]) == {0: 96} | dict.fromkeys(range(1, 8), 192)


def test_speech_and_song(speech, tmp_path):
    both = tmp_path / "both"
    make_ravdess(both / "song", vocal_channel="02", duration_s=0.06)
    shutil.copytree(speech, both / "spoken")
    data = load_ravdess(both, vocal_channels=("speech", "song"), cache_dir=tmp_path / "cache")
    assert len(data) == 1440 + 1012
    assert len(load_ravdess(both, vocal_channels=("song",), cache_dir=tmp_path / "cache")) == 1012


def test_says_what_is_missing(tmp_path):
    make_ravdess(tmp_path / "data", actors=[1, 2, 3], duration_s=0.06)
    (tmp_path / "data/Actor_02/03-01-01-01-01-01-02.wav").unlink()
    with pytest.raises(RavdessError, match=r"found 179 recordings, expected 1440 \(too few for actors 2, 4, 5"):
        load_ravdess(tmp_path / "data", cache_dir=tmp_path / "cache")
    assert len(load_ravdess(tmp_path / "data", allow_incomplete=True, cache_dir=tmp_path / "cache")) == 179
    with pytest.raises(RavdessError, match="found 0 recordings, expected 1012"):
        load_ravdess(tmp_path / "data", vocal_channels=("song",), allow_incomplete=True, cache_dir=tmp_path / "cache")
    with pytest.raises(RavdessError, match="is not a folder"):
        load_ravdess(tmp_path / "nowhere", cache_dir=tmp_path / "cache")


def test_names_every_damaged_recording(tmp_path):
    make_ravdess(tmp_path / "data", actors=[1], duration_s=0.06)
    bad = [tmp_path / "data/Actor_01" / f"03-01-0{e}-01-01-01-01.wav" for e in (2, 3)]
    bad[0].write_bytes(b"RIFF")
    whole = make_voice(2.0)
    soundfile.write(bad[1].with_suffix(".flac"), whole, 16000)
    bad[1].unlink()
    bad[1] = bad[1].with_suffix(".flac")
    bad[1].write_bytes(bad[1].read_bytes()[:5000])
    with pytest.raises(RavdessError, match="2 of 60 recordings are damaged") as caught:
        load_ravdess(tmp_path / "data", allow_incomplete=True, cache_dir=tmp_path / "cache")
    assert all(str(path) in str(caught.value) for path in bad)


@pytest.fixture
def zenodo(speech, tmp_path, monkeypatch):
    """The archive behind real HTTP on this machine, with the MD5 it really has."""
    archive = tmp_path / "www" / "speech.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in speech.rglob("*.wav"):
            file.write(path, path.relative_to(speech))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(archive.parent))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/speech.zip"
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        monkeypatch.setitem(ravdess.ARCHIVES, "speech", ravdess.Archive(url, md5, 1440))
        yield archive
        server.shutdown()


def test_downloads_verifies_and_caches(zenodo, tmp_path):
    assert len(load_ravdess(cache_dir=tmp_path / "cache")) == 1440
    zenodo.unlink()
    assert len(load_ravdess(cache_dir=tmp_path / "cache")) == 1440


def test_damaged_download_never_becomes_data(zenodo, tmp_path):
    whole = zenodo.read_bytes()
    zenodo.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RavdessError, match="is damaged: its MD5"):
        load_ravdess(cache_dir=tmp_path / "cache")
    zenodo.write_bytes(whole)
    assert len(load_ravdess(cache_dir=tmp_path / "cache")) == 1440


def test_interrupted_download_never_becomes_data(zenodo, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            http.server.SimpleHTTPRequestHandler, "copyfile", lambda _, file, out: out.write(file.read(100_000))
        )
        with pytest.raises(RavdessError, match="could not be downloaded") as caught:
            load_ravdess(cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert len(load_ravdess(cache_dir=tmp_path / "cache")) == 1440


def test_no_network_is_said(zenodo, tmp_path):
    zenodo.unlink()
    with pytest.raises(RavdessError, match="could not be downloaded"):
        load_ravdess(cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("fold", FOLDS)
def test_splits_keep_actors_apart(fold):
    split = split_actors(fold)
    assert sorted(sum(split.values(), [])) == list(range(1, 25))
    assert split["test"] == sorted(FOLDS[fold])
    assert [actor % 2 for actor in split["validation"]].count(0) == 2
    assert split_actors(fold) == split


def test_folds_hold_every_actor_once():
    assert sorted(sum(FOLDS.values(), ())) == list(range(1, 25))


@pytest.mark.parametrize("wrong", [{"fold": 6}, {"fold": 1, "num_validation": 3}])
def test_refuses_impossible_splits(wrong):
    with pytest.raises(ValueError):
        split_actors(**wrong)
