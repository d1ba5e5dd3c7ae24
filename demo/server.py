"""Gradio's server as strangers may use it: each answer is one or a sentence, and it remembers nobody for long."""

import asyncio
import contextlib
import logging
import os
import secrets
from pathlib import Path

import gradio as gr
import gradio.mcp
from gradio.routes import file_upload_statuses
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from .uploads import LimitBodies, delete, delete_forgotten, folder, limited_fetching

logger = logging.getLogger(__name__)


def unexpected(error: Exception) -> str:
    """What to tell a visitor of an error that nobody thought of, whose traceback goes to the log under the same number."""
    number = secrets.token_hex(4)
    logger.error("Unexpected error %s", number, exc_info=error)
    return (
        "Something went wrong that nobody had thought of: try another file, and report this one with the number "
        f"{number}, under which the server's log tells more."
    )


class Demo(gr.Blocks):
    """
    Args:
        clean_every_s, keep_s: Every so often, what visitors sent longer than that ago is deleted.
        others: As of `gr.Blocks`.
    """

    def __init__(self, *args, clean_every_s: float, keep_s: float, **kwargs):
        super().__init__(*args, **kwargs)
        self._clean_every_s, self._keep_s, self._idle = clean_every_s, keep_s, set()

    def launch(self, *args, **kwargs):
        app_kwargs = {
            "lifespan": self._lifespan,
            "middleware": [Middleware(LimitBodies)],
            "exception_handlers": {Exception: lambda _, error: JSONResponse({"detail": unexpected(error)}, 500)},
        }
        return super().launch(*args, app_kwargs=app_kwargs, **kwargs)

    async def process_api(self, *args, **kwargs):
        """What is no sentence yet becomes one here, where all calls pass: Gradio would answer `{"error": null}`."""
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(unexpected(error), print_exception=False) from error

    async def preprocess_data(self, *args, **kwargs):
        """What no browser sends is refused in a sentence, where Gradio would show its own insides and the server's paths."""
        try:
            async with limited_fetching():
                return await super().preprocess_data(*args, **kwargs)
        except Exception as error:
            if isinstance(error, gr.Error) and not error.print_exception:  # ours
                raise
            raise gr.Error(
                "This is no input for the call: give each recording as a file that was uploaded before, or by its public "
                "address, as /gradio_api/info says.",
                print_exception=False,
            ) from error

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app):
        task = asyncio.create_task(self._clean())
        try:
            yield
        finally:
            task.cancel()
            for path in map(Path, set().union(*self.temp_file_sets)):
                if path.is_relative_to(folder()):
                    delete(path)

    async def _clean(self) -> None:
        while True:
            try:
                await asyncio.to_thread(delete_forgotten, keep_s=self._keep_s)
                self._forget()
            except Exception as error:  # or nothing would be deleted any more
                logger.error("Cleaning failed", exc_info=error)
            await asyncio.sleep(self._clean_every_s)

    def _forget(self) -> None:
        """Gradio would keep a note of each upload and each session, and the answers of the last 2,000."""
        for paths in self.temp_file_sets:
            paths -= {path for path in paths if not os.path.exists(path)}
        queue, uploading = self._queue, file_upload_statuses
        busy = {event.session_hash for event in queue.event_ids_to_events.values()}
        idle = set(queue.pending_event_ids_session) - busy
        idle |= {
            upload for upload in uploading._signals if upload not in uploading._statuses or uploading.is_done(upload)
        }
        for name in idle & self._idle:  # since a while: its visitor has fetched what there is, or never will
            queue.pending_event_ids_session.pop(name, None)
            queue.pending_messages_per_session.pop(name, None)
            uploading._signals.pop(name, None)
            uploading.stop_tracking(name)
        self._idle = idle


class MCPServer(gradio.mcp.GradioMCPServer):
    """Gradio's own refuses every list of files: its schema of one points to nowhere, and it does not look into lists."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        gradio.mcp.DEFAULT_TEMP_DIR = str(folder())  # what assistants send is deleted as well

    def simplify_filedata_schema(self, schema: dict) -> tuple[dict, list]:
        return super().simplify_filedata_schema(_without_references(schema, {}))

    def convert_strings_to_filedata(self, value: dict, filedata_positions: list[list]) -> dict:
        in_lists = [
            [name, i]
            for name, *rest in filedata_positions
            if rest == ["items"] and isinstance(value.get(name), list)
            for i in range(len(value[name]))
        ]
        return super().convert_strings_to_filedata(value, [*filedata_positions, *in_lists])


def _without_references(schema, definitions: dict):
    """The same JSON schema with each `$ref` to a definition replaced by what is defined."""
    if isinstance(schema, list):
        return [_without_references(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    definitions = {**definitions, **schema.get("$defs", {})}
    if "$ref" in schema:
        return _without_references(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _without_references(value, definitions) for name, value in schema.items() if name != "$defs"}


gradio.mcp.GradioMCPServer = MCPServer
