"""Results on disk: kept one by one while a run goes on, then written as text, JSON, CSV or Parquet."""

import contextlib
import csv
import errno
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .audio import describe

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROWS_AT_ONCE = 10_000
TEXT_COLUMNS = ("path", "label", "error")  # the others are numbers


class Journal:
    """
    The results so far, one line of JSON each: with a path, a run that was killed finds them again.

    A line is appended in one write. One that a kill or a full disk has cut short is dropped on opening, so that its
    recording is scored again; a recording is never there twice.

    Args:
        path: Where to keep it; `None` for a temporary file that nobody finds.
        settings: What the results depend on.

    Raises:
        `ValueError`: the file belongs to a run with other settings, or to one that is still going on.
    """

    def __init__(self, path: Path | None, settings: dict):
        self.path = path
        self.labels = []
        self._places = {}  # where the line of each recording starts
        self._file = open(path, "a+b", buffering=0) if path else tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._lock()
        self._recall(settings)

    def __contains__(self, recording: str) -> bool:
        return recording in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, result: dict) -> None:
        self._place(result, self._append(result))

    def read(self, recordings: Iterable[str]) -> Iterator[dict]:
        """The results of these recordings, in their order."""
        with open(self._file.fileno(), "rb", closefd=False) as file:
            for recording in recordings:
                file.seek(self._places[recording])
                yield json.loads(file.readline())

    def close(self) -> None:
        self._file.close()

    def delete(self) -> None:
        self.close()
        if self.path:
            self.path.unlink()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise ValueError(f"Another run is writing {self.path}: wait for it, or choose another --output.") from error

    def _recall(self, settings: dict) -> None:
        end = 0
        with open(self._file.fileno(), "rb", closefd=False) as file:
            file.seek(0)
            for place, line in _lines(file):
                end = place + len(line)
                entry = json.loads(line)
                if place > 0:
                    self._place(entry, place)
                elif entry != settings:
                    raise ValueError(
                        f"{self.path} holds an unfinished run with other options ({json.dumps(entry)[1:-1]}): finish it "
                        "with those, or delete it."
                    )
        self._file.truncate(end)
        if end == 0:
            self._append(settings)

    def _append(self, entry: dict) -> int:
        """Where in the file it went."""
        line = json.dumps(entry).encode() + b"\n"
        place = self._file.seek(0, os.SEEK_END)
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return place

    def _place(self, result: dict, place: int) -> None:
        self._places[result["path"]] = place
        self.labels = self.labels or list(result.get("scores", ()))


def _lines(file) -> Iterator[tuple[int, bytes]]:
    """The whole lines from the start, each with its place, up to the first that was cut short."""
    place = 0
    for line in file:
        try:
            json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n"):
            return
        yield place, line
        place += len(line)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of `path` at the end, whole, or vanishes with an error."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_results(results: Iterable[dict], output: str | None, *, kind: str, labels: list[str], timeline: bool) -> None:
    """
    Writes results as one of `FORMATS`, to the terminal if `output` is `None`; a file is replaced only by a whole one.

    Raises:
        `OSError`: it cannot be written.
    """
    write = FORMATS[kind]
    if output is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # for names that are no text
        write(results, sys.stdout, labels, timeline)
        sys.stdout.flush()
        return
    with whole_file(Path(output)) as partial:
        if kind == "parquet":
            _write_parquet(results, partial, labels, timeline)
            return
        with open(partial, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            write(results, file, labels, timeline)


def _write_text(results: Iterable[dict], file, labels: list[str], timeline: bool) -> None:
    results = iter(results)
    first_two = list(itertools.islice(results, 2))
    for result in itertools.chain(first_two, results):
        if "error" in result:
            continue
        answer = f"Predicted Emotion: {result['label']} (Confidence: {result['score']:.2f})"
        file.write(f"{answer}\n" if len(first_two) == 1 else f"{describe(result['path'])}: {answer}\n")
        for window in result["windows"] if timeline else []:
            heard = "no speech" if window["label"] is None else f"{window['label']} ({window['score']:.2f})"
            file.write(f"  {window['start_s']:.1f} to {window['end_s']:.1f} s: {heard}\n")


def _write_json(results: Iterable[dict], file, labels: list[str], timeline: bool) -> None:
    """One object a line, in a list."""
    separator = "[\n"
    for result in results:
        file.write(separator + json.dumps(result, ensure_ascii=False))
        separator = ",\n"
    file.write("\n]\n")


def _write_csv(results: Iterable[dict], file, labels: list[str], timeline: bool) -> None:
    writer = csv.DictWriter(file, columns(labels), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(results, timeline))


def _write_parquet(results: Iterable[dict], path: Path, labels: list[str], timeline: bool) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise OSError("Writing Parquet needs one more package: pip install pyarrow") from error
    schema = pyarrow.schema([(name, "string" if name in TEXT_COLUMNS else "float64") for name in columns(labels)])
    all_rows = rows(results, timeline)
    with parquet.ParquetWriter(path, schema) as writer:
        while some := list(itertools.islice(all_rows, ROWS_AT_ONCE)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(some, schema))


FORMATS = {"text": _write_text, "json": _write_json, "csv": _write_csv, "parquet": _write_parquet}


def columns(labels: list[str]) -> list[str]:
    """Of `rows`, in the order in which they are written."""
    return ["path", "start_s", "end_s", "label", "score", *labels, "error"]


def rows(results: Iterable[dict], timeline: bool) -> Iterator[dict]:
    """One row a file, or with a timeline one a window; the last column says why a file could not be read."""
    for result in results:
        path = result["path"].encode(errors="backslashreplace").decode()
        if "error" in result:
            yield {"path": path, "error": result["error"]}
            continue
        whole = {**result, "start_s": 0.0, "end_s": result["duration_s"]}
        for span in result["windows"] if timeline else [whole]:
            yield {**span, **(span["scores"] or {}), "path": path}
