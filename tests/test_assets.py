"""What the page needs beside itself, out of an archive that the test makes."""

import base64
import hashlib
import io
import tarfile

import pytest

from web import assets


@pytest.fixture
def archive(tmp_path, monkeypatch):
    path = tmp_path / "onnxruntime-web.tgz"
    with tarfile.open(path, "w:gz") as files:
        for name in (*assets.RUNTIME_FILES, "left-out.js"):
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            files.addfile(entry, io.BytesIO(name.encode()))
    monkeypatch.setattr(assets, "RUNTIME", path.as_uri())
    monkeypatch.setattr(assets, "INTEGRITY", base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode())
    return path


def test_keeps_the_files_that_the_page_loads_and_fetches_them_once(archive, tmp_path):
    folder = tmp_path / "assets"
    folder.mkdir()
    assets.write_runtime(folder)
    assert {file.name for file in folder.iterdir()} == {*assets.RUNTIME_FILES, "runtime.txt"}
    assert all((folder / name).read_text() == name for name in assets.RUNTIME_FILES)
    archive.unlink()
    assets.write_runtime(folder)


def test_refuses_another_archive_or_none(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(assets, "FOLDER", tmp_path / "assets")
    archive.write_bytes(archive.read_bytes()[:-1])
    assert assets.main([]) == 1
    assert "its checksum is wrong" in capsys.readouterr().err
    archive.unlink()
    assert assets.main([]) == 1
    assert "could not be fetched" in capsys.readouterr().err
    assert list((tmp_path / "assets").iterdir()) == []
