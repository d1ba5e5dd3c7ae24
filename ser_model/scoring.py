"""Many recordings, one result each: files are scored side by side, and a bad one does not stop the others."""

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .audio import AudioError, describe

if TYPE_CHECKING:
    from .pipeline_ser import SerPipeline

# What a folder is searched for; a file that is named is opened whatever its name.
EXTENSIONS = {
    *(".3gp", ".aac", ".aif", ".aiff", ".amr", ".au", ".avi", ".caf", ".flac", ".m4a", ".mka", ".mkv", ".mov"),
    *(".mp3", ".mp4", ".oga", ".ogg", ".opus", ".w64", ".wav", ".webm", ".wma"),
}


def find_recordings(path: str) -> list[str]:
    """A folder's recordings at any depth in the order of their names, or the path itself if it is no folder."""
    if not os.path.isdir(path):
        return [path]
    return sorted(
        str(file)
        for file in Path(path).rglob("*")
        # A name with a dot in front is another system's note about the file that has the rest as its name.
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and not file.is_dir()
    )


def score_file(pipeline: "SerPipeline", path: str, *, on_window: Callable[[float], None] | None = None) -> dict:
    """
    `{"path", "label", "score", "scores", "duration_s", "windows"}` (see `SerPipeline`), or `{"path", "error"}`.
    `on_window` is told after each window how many seconds have been heard.
    """
    try:
        return {"path": path, **pipeline(path, timeline=True, on_window=on_window)}
    except AudioError as error:
        return {"path": path, "error": str(error)}
    except Exception as error:  # what nobody thought of: the files after this one still want their turn
        return {"path": path, "error": f"{describe(path)} could not be scored: {type(error).__name__}, {error}."}


def score_files(
    paths: list[str],
    *,
    model: str,
    device: str = "cpu",
    voice_only: bool | None = None,
    workers: int = 1,
    on_window=None,
) -> Iterator[dict]:
    """
    `score_file` of each path, as they are done: with several workers in any order.

    Args:
        model, device, voice_only: As of `load_pipeline`.
        on_window: As in `score_file`; several workers do not call it.

    Raises:
        `OSError`, `ValueError`: the checkpoint cannot be loaded.
    """
    options = {"model": model, "device": device, "voice_only": voice_only}
    pipeline = load_quietly(**options)  # for workers too: what is wrong with a checkpoint is then said once
    if workers <= 1 or len(paths) <= 1:
        yield from (score_file(pipeline, path, on_window=on_window) for path in paths)
    else:
        del pipeline
        yield from _score_side_by_side(paths, options, workers=workers)


def load_quietly(model: str, **options) -> "SerPipeline":
    """`load_pipeline` without transformers' own progress bars, and on one thread: so small a network is slower on two."""
    # Here, not above: nobody should wait for them who only wants to read how the command is used.
    import torch
    from transformers.utils import logging

    from .pretrained import load_pipeline

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what is wrong with a checkpoint is said by `load_pipeline`, in one sentence
    torch.set_num_threads(1)
    return load_pipeline(model, **options)


class _Worker:
    """
    A process that scores one recording after the other. Not one of `concurrent.futures`: should a process die, those do
    not tell on which recording, and give up the others.
    """

    def __init__(self, options: dict):
        context = multiprocessing.get_context("spawn")  # forking after PyTorch has started threads can hang
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, options), daemon=True)
        self.process.start()
        theirs.close()
        self.path = None

    def give(self, path: str) -> None:
        self.path = path
        with contextlib.suppress(OSError):  # if it has died, `take` will say so
            self.connection.send(path)

    def take(self) -> dict:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return {
                "path": self.path,
                "error": f"{describe(self.path)} could not be scored: the process that read it died (exit status "
                f"{self.process.exitcode}), for want of memory perhaps.",
            }


def _score_side_by_side(paths: list[str], options: dict, *, workers: int) -> Iterator[dict]:
    waiting = iter(paths)
    busy, idle = {}, [_Worker(options) for _ in range(min(workers, len(paths)))]
    try:
        for path in itertools.islice(waiting, len(idle)):
            worker = idle.pop()
            worker.give(path)
            busy[worker.connection] = worker
        while busy:
            for connection in multiprocessing.connection.wait(list(busy)):
                worker = busy.pop(connection)
                result = worker.take()
                if (path := next(waiting, None)) is None:
                    idle.append(worker)
                else:
                    worker = worker if worker.process.is_alive() else _Worker(options)
                    worker.give(path)
                    busy[worker.connection] = worker
                yield result
    finally:
        for worker in (*idle, *busy.values()):
            worker.process.kill()
            worker.process.join()


def _work(connection, options: dict) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; what to do is for the parent to say
    pipeline = load_quietly(**options)
    try:
        while True:
            connection.send(score_file(pipeline, connection.recv()))
    except (EOFError, OSError):  # nothing more to do, or the parent is gone
        return
