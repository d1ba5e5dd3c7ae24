"""Many recordings, one result each: files are scored side by side, and a bad one does not stop the others."""

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .audio import AudioError, describe

if TYPE_CHECKING:
    from .pipeline_ser import SerPipeline

# What a folder is searched for; a file that is named is opened whatever its name.
EXTENSIONS = {
    *(".3g2", ".3ga", ".3gp", ".aac", ".ac3", ".adts", ".aif", ".aifc", ".aiff", ".amr", ".asf", ".au", ".avi", ".awb"),
    *(
        ".bwf",
        ".caf",
        ".eac3",
        ".ec3",
        ".f4a",
        ".f4v",
        ".flac",
        ".flv",
        ".m2a",
        ".m2t",
        ".m2ts",
        ".m4a",
        ".m4b",
        ".m4r",
    ),
    *(
        ".m4v",
        ".mka",
        ".mkv",
        ".mov",
        ".mp1",
        ".mp2",
        ".mp3",
        ".mp4",
        ".mpa",
        ".mpeg",
        ".mpg",
        ".mpga",
        ".mts",
        ".nist",
    ),
    *(".oga", ".ogg", ".ogv", ".ogx", ".opus", ".qt", ".qta", ".rf64", ".snd", ".sph", ".spx", ".ts", ".tta", ".vob"),
    *(".w64", ".wav", ".wave", ".weba", ".webm", ".wma", ".wmv", ".wv"),
}
MAX_ENDINGS_NAMED = 5


def find_recordings(path: str) -> list[str]:
    """A folder's recordings at any depth in the order of their names, or the path itself if it is no folder."""
    return find_files([path])[0]


def find_files(given: Iterable[str]) -> tuple[list[str], list[str]]:
    """
    Each recording once that is named or lies in a folder that is named, linked folders within it included; and what the
    folders hold besides. A name with a dot in front is hidden, or another system's note about the file that has the rest as
    its name: it counts for neither.
    """
    recordings, others = [], []
    for path in given:
        if not os.path.isdir(path):
            recordings.append(path)
            continue
        for file in sorted(_walk(path)):
            (recordings if _is_named_as_recording(file) else others).append(file)
    return list(dict.fromkeys(recordings)), list(dict.fromkeys(others))


def _walk(folder: str) -> Iterator[str]:
    starts, entered = [folder], set()
    for start in starts:  # linked folders last, so that a file is found where it lies
        for place, folders, names in os.walk(start):
            if (real := os.path.realpath(place)) in entered:  # a link to where it has been
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
            starts += [link for name in folders if os.path.islink(link := os.path.join(place, name))]
            yield from (str(Path(place, name)) for name in names if not name.startswith("."))


def _is_named_as_recording(file: str) -> bool:
    ending = os.path.splitext(file)[1].lower()
    if ending != ".ts":
        return ending in EXTENSIONS
    try:
        with open(file, "rb") as opened:
            start = opened.read(1024)
    except OSError:
        return True  # why not is for its result to say
    return not start or b"\0" in start  # or else it is TypeScript


def describe_others(files: list[str]) -> str:
    """What is said of the files in folders that `find_files` did not take for recordings."""
    endings = Counter(os.path.splitext(file)[1].lower() or "no ending" for file in files)
    named = [ending if ending.isprintable() else repr(ending) for ending, _ in endings.most_common(MAX_ENDINGS_NAMED)]
    rest = ", …" if len(endings) > MAX_ENDINGS_NAMED else ""
    number = "1 file was" if len(files) == 1 else f"{len(files)} files were"
    return (
        f"{number} passed over, not named as recordings are ({', '.join(named)}{rest}): name a file to have it heard."
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
