"""Many recordings, one result each: files are scored side by side, and a bad one does not stop the others."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers.utils import logging

from .audio import AudioError
from .pipeline_ser import SerPipeline
from .pretrained import load_pipeline

# What a folder is searched for; a file that is named is opened whatever its name.
EXTENSIONS = {
    *(".aac", ".aif", ".aiff", ".flac", ".m4a", ".mka", ".mkv", ".mov"),
    *(".mp3", ".mp4", ".oga", ".ogg", ".opus", ".wav", ".webm"),
}


def find_recordings(path: str) -> list[str]:
    """A folder's recordings at any depth in the order of their names, or the path itself if it is no folder."""
    if not os.path.isdir(path):
        return [path]
    return sorted(str(file) for file in Path(path).rglob("*") if file.suffix.lower() in EXTENSIONS)


def score_file(pipeline: SerPipeline, path: str) -> dict:
    """`{"path", "label", "score", "scores", "duration_s", "windows"}` (see `SerPipeline`), or `{"path", "error"}`."""
    try:
        return {"path": path, **pipeline(path, timeline=True)}
    except AudioError as error:
        return {"path": path, "error": str(error)}


def score_files(paths: list[str], *, model: str, device: str = "cpu", workers: int = 1) -> Iterator[dict]:
    """
    `score_file` of each path, in order, as they are done.

    Raises:
        `OSError`: the checkpoint cannot be loaded.
    """
    pipeline = load_quietly(model, device)  # for workers too: what is wrong with a checkpoint is then said once
    if workers <= 1 or len(paths) <= 1:
        yield from (score_file(pipeline, path) for path in paths)
        return
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(paths)),
        mp_context=multiprocessing.get_context("spawn"),  # forking after PyTorch has started threads can hang
        initializer=_start_worker,
        initargs=(model, device),
    ) as pool:
        yield from pool.map(_score_in_worker, paths, chunksize=4)


def load_quietly(model: str, device: str = "cpu") -> SerPipeline:
    """The pipeline without transformers' own progress bars, and on one thread: so small a network is slower on two."""
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    return load_pipeline(model, device=device)


_pipeline = None  # a worker's own


def _start_worker(model: str, device: str) -> None:
    global _pipeline
    _pipeline = load_quietly(model, device)


def _score_in_worker(path: str) -> dict:
    return score_file(_pipeline, path)
