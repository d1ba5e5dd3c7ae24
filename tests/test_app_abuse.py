"""The running demo, given what no browser sends: each request gets a refusal, and the last visitor an answer."""

import contextlib
import gzip
import json
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import safehttpx
import soundfile
from gradio.routes import file_upload_statuses
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
        "x" * 200_000,
        *({"path": path, "meta": FILE} for path in OUTSIDE),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_no_upload_gets_one_sentence(api, value):
    message = call(api, "predict", [value])
    assert message.startswith(("This is no input for the call:", "There is no recording yet:"))
    assert message.isprintable() and message.endswith(".")


@pytest.mark.parametrize(
    "data", [[None], [3], [[None]], [{"path": "/etc/passwd"}], [{"path": "/etc/passwd", "meta": FILE}], [], [None] * 9]
)
def test_every_function_of_the_page_answers_in_a_sentence(api, url, data):
    """Those that no API names as well; a live microphone's has no end."""
    functions = httpx.get(f"{url}config").json()["dependencies"]
    assert len(functions) > 10
    for function in functions:
        if function["connection"] == "stream":
            continue
        session = f"{function['id']} {data}"
        api.post(
            "/queue/join", json={"fn_index": function["id"], "data": data, "session_hash": session}
        ).raise_for_status()
        lines = api.get("/queue/data", params={"session_hash": session}).text.split("\n\n")
        messages = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        (answer,) = (message for message in messages if message["msg"] == "process_completed")
        if not answer["success"]:
            sentence = answer["output"]["error"]
            assert sentence.isprintable() and sentence.endswith(".") and "/etc" not in sentence


def test_unexpected_errors_outside_of_calls_are_sentences_too(api, caplog):
    answer = api.post("/call/no_such_call", json={"data": []})
    assert answer.status_code == 500
    (number,) = re.findall(r"with the number (\w+),", answer.json()["detail"])
    assert any(number in record.getMessage() and record.exc_info for record in caplog.records)


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


def form(*sizes: int):
    """The pieces of a form with files of so many bytes."""
    for number, size in enumerate(sizes):
        yield (f'--x\r\nContent-Disposition: form-data; name="files"; filename="{number}.wav"\r\n\r\n'.encode())
        for start in range(0, size, 2**20):
            yield bytes(min(2**20, size - start))
        yield b"\r\n"
    yield b"--x--\r\n"


@pytest.mark.parametrize("length_is_told", [True, False])
@pytest.mark.parametrize("sizes", [[130], [90, 90, 90], [1] * 220], ids=["one file", "three files", "many files"])
def test_too_large_uploads_are_refused(api, folder, sizes, length_is_told):
    """More than 100 MB in one file, or more than 200 MB in all."""
    sizes = [size * 10**6 for size in sizes]
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    if length_is_told:
        headers["Content-Length"] = str(sum(map(len, form(*sizes))))
    answer = api.post("/upload", content=form(*sizes), headers=headers)
    assert answer.status_code == 413
    assert "maximum allowed size" in answer.text
    assert not [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size > 900_000]


def test_fields_that_are_no_files_are_limited(api):
    content = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + bytes(300_000) + b"\r\n--x--\r\n"
    answer = api.post("/upload", content=content, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413 and "maximum allowed size" in answer.text


def test_uploads_that_are_small_enough_are_taken(api):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    places = api.post("/upload", content=form(90_000_000, 90_000_001), headers=headers).json()
    assert [Path(place).stat().st_size for place in places] == [90_000_000, 90_000_001]
    for place in places:
        Path(place).unlink()


def test_uploads_are_refused_while_the_disk_is_full(api, folder, monkeypatch):
    monkeypatch.setattr(uploads, "MIN_FREE_MB", 10**9)
    answer = api.post("/upload", files={"files": ("clip.wav", b"not a sound")})
    assert answer.status_code == 507 and "no room for uploads" in answer.text


@pytest.mark.parametrize("length_is_told", [True, False])
@pytest.mark.parametrize(
    ("path", "size"),
    [("/call/predict", 300_000), ("/call/v2/predict", 300_000), ("/run/predict", 300_000), ("/api/predict", 300_000)]
    + [("/queue/join", 200_000_000), ("/cancel", 300_000), ("/process_recording", 300_000), ("/mcp/", 17_000_000)],
)
def test_too_large_requests_are_refused_before_they_are_read(api, path, size, length_is_told):
    pieces = [b'{"data": ["', *[b"x" * 100_000] * (size // 100_000), b'"]}']
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    if length_is_told:
        headers["Content-Length"] = str(sum(map(len, pieces)))
    answer = api.post(path, content=iter(pieces), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["detail"].startswith("The request has more than")


@pytest.fixture
def address(monkeypatch):
    """A server on what is taken for a public address: its path says how many bytes to send, and in what encoding."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):  # noqa: N802
            _, size, encoding = self.path.split("/")
            self.send_response(200)
            if encoding != "plain":
                self.send_header("Content-Encoding", encoding)
            self.end_headers()
            piece = gzip.compress(bytes(2**24)) if encoding == "gzip" else bytes(2**20)
            with contextlib.suppress(OSError):
                for _ in range(0, int(size), len(piece)):
                    self.wfile.write(piece)
                    sent.append(len(piece))
                    time.sleep(0.05 if encoding == "slow" else 0)

    sent = []
    monkeypatch.setattr(safehttpx, "is_public_ip", lambda ip: True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", sent
        server.shutdown()


def test_addresses_are_read_as_far_as_is_allowed(api, address):
    url, sent = address
    assert "not a recording" in call(api, "predict", [{"path": f"{url}/1000000/plain", "meta": FILE}])
    assert "not a recording" in call(api, "predict", [{"path": f"{url}/30000/gzip", "meta": FILE}])  # is not unpacked
    sent.clear()
    assert "more than 100 MB" in call(api, "predict", [{"path": f"{url}/1000000000/plain", "meta": FILE}])
    assert sum(sent) < 150_000_000
    files = [{"path": f"{url}/{90_000_000 + number}/plain", "meta": FILE} for number in range(3)]
    assert "more than 200 MB" in call(api, "predict_many", [files])


def test_slow_addresses_are_given_up(api, address, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_FETCH_S", 1.0)
    url, _ = address
    message = call(api, "predict", [{"path": f"{url}/90000000/slow", "meta": FILE}])
    assert message.startswith("The address did not give the recording within 1 s")


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
        wait_until(lambda: not list(tmp_path.iterdir()))
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
    for name in ("uploads/a/old.wav", "uploads/a/new.wav", "uploads/b/c/old.wav", "uploads/old.wav", "beside/old.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("uploads/new", "uploads/old", "beside/old"):  # empty folders
        (tmp_path / name).mkdir()
    for path in tmp_path.rglob("old*"):
        os.utime(path, (0, 0))
    uploads.delete_forgotten(keep_s=60)
    left = {
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir() or not any(path.iterdir())
    }
    assert left == {"uploads/a/new.wav", "uploads/new", "beside/old.wav", "beside/old"}


def test_a_visitor_who_leaves_while_waiting(api):
    for _ in range(5):
        asked = api.post("/call/predict", json={"data": [None]}).json()
        with api.stream("GET", f"/call/predict/{asked['event_id']}"):
            pass


def test_remembers_nobody_for_long(classifier, tmp_path, monkeypatch):
    """Neither a visitor's session nor the name of an upload stays in memory."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(app, "CLEAN_EVERY_S", 0.5)
    monkeypatch.setattr(app, "KEEP_S", 2)
    demo = app.build_demo(classifier)
    _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True, server_port=None)
    try:
        with httpx.Client(base_url=f"{url}gradio_api", timeout=30) as client:
            for number in range(app.LAUNCH["state_session_capacity"] + 10):
                asked = client.post("/call/predict", json={"data": [None]}).json()
                if number % 2:  # the others leave before they are answered
                    client.get(f"/call/predict/{asked['event_id']}")
            (place,) = client.post("/upload?upload_id=x", files={"files": ("clip.wav", b"not a sound")}).json()
            assert "not a recording" in call(client, "predict", [{"path": place, "meta": FILE}])
        queue = demo._queue
        wait_until(lambda: not queue.pending_event_ids_session and not queue.pending_messages_per_session)
        wait_until(lambda: not any(demo.temp_file_sets) and "x" not in file_upload_statuses._signals)
        assert not queue.event_ids_to_events and len(demo.app.state_holder.session_data) <= 200
    finally:
        demo.close()
