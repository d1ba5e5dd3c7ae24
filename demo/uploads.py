"""What visitors send: limited as it comes in, and deleted after a while."""

import asyncio
import contextlib
import getpass
import os
import shutil
import tempfile
import time
from contextvars import ContextVar
from pathlib import Path

import gradio as gr
import httpx
import safehttpx
from gradio import processing_utils, route_utils
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, PlainTextResponse

MAX_UPLOAD_MB = 100  # a file
MAX_REQUEST_MB = 200  # all files of a request
MAX_JSON_KB = 256
MAX_MCP_MB = 16  # an assistant may send a recording inside its request
MIN_FREE_MB = 1000  # left on the disk
MAX_FETCH_S = 60.0
LINGER_S = 30.0

# Of its own, so that no other program's files are deleted; always the same, so that those of a demo that was killed are.
_user = getattr(os, "getuid", getpass.getuser)()  # in a container the number may have no name
os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir()) / f"speech-emotion-{_user}"))


def folder() -> Path:
    return Path(os.environ["GRADIO_TEMP_DIR"])


def delete(path: Path) -> None:
    """Deletes an upload, and its folders as far as nothing else is in them."""
    with contextlib.suppress(OSError):
        path.unlink()
        for parent in path.parents[: len(path.relative_to(folder()).parts) - 1]:
            parent.rmdir()


def delete_forgotten(*, keep_s: float) -> None:
    """Deletes what has not changed for `keep_s`, uploads broken off halfway and all of a demo that was killed as well."""

    def is_old(path: Path) -> bool:
        try:
            return time.time() - path.lstat().st_mtime > keep_s
        except FileNotFoundError:
            return False

    for place, _, names in os.walk(folder(), topdown=False):
        for name in names:
            if is_old(path := Path(place, name)):
                delete(path)
        if Path(place) != folder() and is_old(Path(place)):  # a new one that is empty waits for its file
            with contextlib.suppress(OSError):
                os.rmdir(place)


class LimitBodies:
    """
    ASGI middleware that refuses a request's body as soon as it proves too large, in one sentence: an upload while it is
    written, anything else before anyone reads it.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
        elif scope["path"].rstrip("/").endswith("/upload"):
            await self._upload(scope, receive, send)
        else:
            await self._other(scope, receive, send)

    async def _upload(self, scope, receive, send):
        max_bytes, claimed = MAX_REQUEST_MB * 10**6, _claimed_bytes(scope)
        # Gradio answers 413 and deletes what it has written if it reads "maximum allowed size".
        too_large = f"These files have more than {MAX_REQUEST_MB} MB together, the maximum allowed size of all at a time: send fewer."
        if claimed > max_bytes:
            return await _refuse(scope, receive, send, PlainTextResponse(too_large, 413))
        folder().mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder()).free < MIN_FREE_MB * 10**6 + claimed:
            sentence = "There is no room for uploads at the moment: try again in a quarter of an hour."
            return await _refuse(scope, receive, send, PlainTextResponse(sentence, 507))
        num_bytes = 0

        async def counted():
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                raise MultiPartException(too_large)
            return message

        await self.app(scope, counted, send)

    async def _other(self, scope, receive, send):
        is_mcp = "/gradio_api/mcp" in scope["path"]
        max_bytes = MAX_MCP_MB * 10**6 if is_mcp else MAX_JSON_KB * 1000
        body, more = bytearray(), True
        while more and max(len(body), _claimed_bytes(scope)) <= max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if max(len(body), _claimed_bytes(scope)) > max_bytes:
            limit = f"{MAX_MCP_MB} MB" if is_mcp else f"{MAX_JSON_KB} kB"
            sentence = f"The request has more than {limit}: upload the recording before, or give its public address."
            return await _refuse(scope, receive, send, JSONResponse({"detail": sentence}, 413), more=more)
        messages = [{"type": "http.request", "body": bytes(body)}]

        async def replay():
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)


def _claimed_bytes(scope) -> int:
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() else 0


async def _refuse(scope, receive, send, answer, *, more: bool = True) -> None:
    """Answers when all has come in, and is thrown away: a browser that is cut short would show no answer at all."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while more:
                more = (await receive()).get("more_body", False)
    await answer(scope, receive, send)


class _FormParser(route_utils.GradioMultiPartParser):
    """Gradio's own keeps a field that is no file in memory, however large it is."""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if part.file is None and len(part.data) + end - start > MAX_JSON_KB * 1000:
            raise MultiPartException(
                f"A field has more than {MAX_JSON_KB} kB, its maximum allowed size: send it as a file."
            )
        super().on_part_data(data, start, end)


route_utils.GradioMultiPartParser = _FormParser

# What one call may still fetch from addresses, in a list of one number.
_bytes_left: ContextVar[list[int]] = ContextVar("_bytes_left")


@contextlib.asynccontextmanager
async def limited_fetching():
    """
    Around Gradio's fetching of the addresses in one call.

    Raises:
        `gr.Error`: they hold more than `MAX_REQUEST_MB`, or one more than `MAX_UPLOAD_MB`, or they take too long.
    """
    _bytes_left.set([MAX_REQUEST_MB * 10**6])
    try:
        async with asyncio.timeout(MAX_FETCH_S):
            yield
    except TimeoutError as error:
        raise gr.Error(
            f"The address did not give the recording within {MAX_FETCH_S:.0f} s: download it and upload it here.",
            print_exception=False,
        ) from error


class _Counted(httpx.AsyncByteStream):
    """A response's body, as long as it may be."""

    def __init__(self, stream: httpx.AsyncByteStream):
        self._stream, self._num_bytes = stream, 0

    async def __aiter__(self):
        left = _bytes_left.get([MAX_REQUEST_MB * 10**6])
        async for piece in self._stream:
            self._num_bytes += len(piece)
            left[0] -= len(piece)
            if self._num_bytes > MAX_UPLOAD_MB * 10**6 or left[0] < 0:
                raise gr.Error(
                    f"What is at the address has more than {MAX_UPLOAD_MB} MB, or all addresses together have more than "
                    f"{MAX_REQUEST_MB} MB: cut it into parts.",
                    print_exception=False,
                )
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


class _LimitedTransport(safehttpx.AsyncSecureTransport):
    """Gradio keeps the whole of a response in memory, however long it is, and unpacks it, however much that is."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["Accept-Encoding"] = "identity"
        response = await super().handle_async_request(request)
        response.headers.pop("Content-Encoding", None)
        response.stream = _Counted(response.stream)
        return response


safehttpx.AsyncSecureTransport = _LimitedTransport
processing_utils.PUBLIC_HOSTNAME_WHITELIST = []  # the Hub, whose files would be fetched without it, is a public address too
