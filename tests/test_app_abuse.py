"""The running demo, given what no browser sends: each request gets a refusal, and the last visitor an answer."""

import json
import os
import socket
import time
from pathlib import Path

import httpx
import pytest
import soundfile
from gradio_client import Client, handle_file

import app
from demo import uploads
from ser_model.pretrained import load_pipeline
from tests.conftest import ROOT, make_voice

FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def classifier():
    return load_pipeline()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where uploads go."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("uploads")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def url(classifier, folder):
    demo = app.build_demo(classifier)
    _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True, server_port=None)
    yield url
    demo.close()


@pytest.fixture(scope="module")
def api(url, tmp_path_factory):
    with httpx.Client(base_url=f"{url}gradio_api", timeout=30) as client:
        yield client
    clip = tmp_path_factory.mktemp("last") / "clip.wav"
    soundfile.write(clip, make_voice(1.0), 16000)
    assert Client(url, verbose=False).predict(handle_file(str(clip)), api_name="/predict")["label"]


def nested(depth: int) -> bytes:
    return b'{"data": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"3",
        b"{}",
        b'{"data": null}',
        b'{"data": "clip.wav"}',
        b'{"data": {"0": 1}}',
        nested(100_000),
    ],
    ids=lambda body: body[:12].decode(errors="replace"),
)
def test_what_is_no_request_is_refused(api, body):
    answer = api.post("/call/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "Traceback" not in answer.text


def call(api, name: str, data: list) -> str:
    """The sentence with which a call is refused."""
    asked = api.post(
        f"/call/{name}",
        content=json.dumps({"data": data}).encode(errors="surrogatepass"),
        headers={"Content-Type": "application/json"},
    )
    assert asked.status_code == 200, asked.text
    event, data = api.get(f"/call/{name}/{asked.json()['event_id']}").text.strip().split("\n")
    assert event == "event: error"
    return json.loads(data.removeprefix("data: "))["error"]


OUTSIDE = [
    "/etc/passwd",
    "../../../../../../etc/passwd",
    str(ROOT / "app.py"),
    str(ROOT / "examples/../app.py"),
    str(ROOT / "ser_model/pretrained/ser-base/model.safetensors"),
    "/proc/self/environ",
    "/dev/zero",
    "file:///etc/passwd",
    "http://127.0.0.1:9/clip.wav",
    "http://169.254.169.254/latest/meta-data",
]


@pytest.mark.parametrize(
    "value",
    [
        3,
        True,
        float("nan"),
        "clip.wav",
        "\ud800",
        [],
        [1, 2],
        {},
        {"path": "/etc/passwd"},
        {"path": 3, "meta": FILE},
        {"path": "nul\0byte", "meta": FILE},
        {"path": "x" * 5000, "meta": FILE},
        {"url": "/etc/passwd", "meta": FILE},
        "x" * 20_000_000,
        *({"path": path, "meta": FILE} for path in OUTSIDE),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_no_upload_gets_one_sentence(api, value):
    message = call(api, "predict", [value])
    assert message.startswith(("This is no input for the call:", "There is no recording yet:"))
    assert message.isprintable() and message.endswith(".")


@pytest.mark.parametrize("data", [["clip.wav"], [[{"path": "/etc/passwd", "meta": FILE}]], [[[]]], []])
def test_several_files_are_looked_at_as_well(api, data):
    assert call(api, "predict_many", data).startswith("This is no input for the call:")


@pytest.mark.parametrize("path", [*OUTSIDE, "", "%00", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd"])
def test_only_uploads_and_examples_are_served(url, path):
    host, port = httpx.URL(url).host, httpx.URL(url).port
    with socket.create_connection((host, port), timeout=10) as connection:  # a client library would tidy the path up
        connection.sendall(
            f"GET /gradio_api/file={path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert int(answer.split()[1]) in (403, 404)
    assert b"root:" not in answer


@pytest.mark.parametrize("name", ["../../../../evil.wav", "/evil.wav", "a/../../evil.wav", "x" * 1000 + ".wav"])
def test_uploads_stay_in_their_folder(api, folder, name):
    (place,) = api.post("/upload", files={"files": (name, b"not a sound")}).json()
    assert Path(place).resolve().is_relative_to(folder) and Path(place).read_bytes() == b"not a sound"
    assert not (folder.parent / "evil.wav").exists()
    assert "not a recording" in call(api, "predict", [{"path": place, "meta": FILE}])


def test_an_upload_without_a_name_is_refused(api):
    assert api.post("/upload", files={"files": ("..", b"not a sound")}).status_code >= 400


@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "multipart/form-data", "application/json", "text/plain"]
)
def test_what_is_no_form_is_refused(api, kind):
    assert api.post("/upload", content=b"garbage", headers={"Content-Type": kind}).status_code in (400, 422)


def test_too_large_uploads_are_refused(api, folder):
    pieces = (bytes(2**20) for _ in range(130))
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="big.wav"\r\n\r\n'
    answer = api.post(
        "/upload",
        content=(piece for part in ([head], pieces, [b"\r\n--x--\r\n"]) for piece in part),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 413
    assert not [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size > 2**20]


def test_a_visitor_who_leaves_while_uploading(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(app, "CLEAN_EVERY_S", 1)
    monkeypatch.setattr(app, "KEEP_S", 1)
    demo = app.build_demo(classifier)
    _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True, server_port=None)
    try:
        with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port), timeout=10) as connection:
            connection.sendall(
                b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 90000000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
                b'--x\r\nContent-Disposition: form-data; name="files"; filename="half.wav"\r\n\r\n' + bytes(2**22)
            )
            wait_until(lambda: any(path.is_file() for path in tmp_path.rglob("*")))
        wait_until(lambda: not any(path.is_file() for path in tmp_path.rglob("*")))
    finally:
        demo.close()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_leaves_what_is_new_and_what_is_not_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    uploads.delete_forgotten(keep_s=60)  # no folder yet
    for name in ("uploads/a/old.wav", "uploads/a/new.wav", "beside/old.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
        if "old" in name:
            os.utime(tmp_path / name, (0, 0))
    uploads.delete_forgotten(keep_s=60)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.wav")}
    assert left == {"uploads/a/new.wav", "beside/old.wav"}


def test_a_visitor_who_leaves_while_waiting(api):
    for _ in range(5):
        asked = api.post("/call/predict", json={"data": [None]}).json()
        with api.stream("GET", f"/call/predict/{asked['event_id']}"):
            pass
