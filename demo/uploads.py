"""The folder that holds what visitors send. Gradio deletes the uploads that it knows of; here goes what it forgot."""

import asyncio
import contextlib
import getpass
import os
import tempfile
import time
from pathlib import Path

# Of its own, so that no other program's files are deleted; always the same, so that those of a demo that was killed are.
_user = getattr(os, "getuid", getpass.getuser)()  # in a container the number may have no name
os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir()) / f"speech-emotion-{_user}"))


def delete_forgotten(*, keep_s: float) -> None:
    """Deletes what has not changed for `keep_s`: uploads broken off halfway, and all of a demo that was killed."""
    for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # Gradio has been faster
            if path.is_file() and time.time() - path.stat().st_mtime > keep_s:
                path.unlink()


def keep_deleting(*, every_s: float, keep_s: float):
    """What `launch(app_kwargs={"lifespan": ...})` wants: `delete_forgotten` again and again while the demo runs."""

    async def delete() -> None:
        while True:
            await asyncio.to_thread(delete_forgotten, keep_s=keep_s)
            await asyncio.sleep(every_s)

    @contextlib.asynccontextmanager
    async def lifespan(_app):
        task = asyncio.create_task(delete())
        try:
            yield
        finally:
            task.cancel()

    return lifespan
