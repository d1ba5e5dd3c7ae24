"""Results on disk: kept one by one while a run goes on, then written as text, JSON, CSV or Parquet."""

import argparse
import contextlib
import csv
import errno
import itertools
import json
import os
import re
import shutil
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

from .audio import describe

ROWS_AT_ONCE = 10_000
TEXT_COLUMNS = ("path", "label", "error")  # the others are numbers
STDOUT = "/dev/stdout"
START_SIZE = 2**16  # bytes of a file by which it is recognised
# What a spreadsheet takes for the start of a formula, by OWASP's list.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class Journal:
    """
    The results so far, in an SQLite database: with a path, a run that was killed finds them again.

    An answer counts for a recording as it was, by its size and the time of its last change; an error is tried again.

    Args:
        path: Where to keep it; `None` for a temporary file that nobody finds.
        settings: What the results depend on.

    Raises:
        `ValueError`: the file is no journal, is damaged, or belongs to a run with other settings or to one that is still
            going on.
        `OSError`: it cannot be written; so does any method.
    """

    MARK = b"SERj"  # SQLite's application id, the bytes from the 68th on
    TABLES = f"""
        PRAGMA application_id = {int.from_bytes(MARK, "big")};
        CREATE TABLE settings (json TEXT);
        CREATE TABLE results (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, json TEXT);
    """

    def __init__(self, path: Path | None, settings: dict):
        self.path = path
        self._identities = {}
        if path is None:
            self._database = sqlite3.connect("", isolation_level=None)
            self._database.executescript(self.TABLES)
            return
        if not os.path.lexists(path):
            self._create(json.dumps(settings))
        if not self._is_journal():
            raise ValueError(f"{path} is not a journal of this command: move it, or choose another --output.")
        self._database = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            self._execute("PRAGMA locking_mode = EXCLUSIVE")
            self._execute("PRAGMA journal_mode = WAL")  # a result is one appended write
            [(found,)] = self._execute("SELECT json FROM settings")
            if found != json.dumps(settings):
                raise ValueError(
                    f"{path} holds an unfinished run with other options ({found[1:-1]}): finish it with those, or delete it."
                )
        except BaseException:
            self._database.close()
            raise

    @property
    def labels(self) -> list[str]:
        """Of the answers so far."""
        rows = self._execute("SELECT json FROM results WHERE size IS NOT NULL LIMIT 1")
        return list(json.loads(rows[0][0])["scores"]) if rows else []

    def left(self, recordings: list[str]) -> list[str]:
        """Those without an answer, or with one from before they changed."""
        rows = self._execute("SELECT path, size, mtime_ns FROM results")
        answered = {os.fsdecode(path): tuple(identity) for path, *identity in rows}
        self._identities = {recording: _identity(recording) for recording in recordings}
        return [
            recording
            for recording, identity in self._identities.items()
            if identity is None or answered.get(recording) != identity
        ]

    def add(self, result: dict) -> None:
        path = result["path"]
        identity = None if "error" in result else self._identities.get(path)  # from before it was heard
        row = (os.fsencode(path), *(identity or (None, None)), json.dumps(result))
        self._execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", row)

    def read(self, recordings: Iterable[str]) -> Iterator[dict]:
        """The results of these recordings, in their order."""
        for recording in recordings:
            [(result,)] = self._execute("SELECT json FROM results WHERE path = ?", (os.fsencode(recording),))
            yield json.loads(result)

    def close(self) -> None:
        """Keeps the file for a run that goes on, unless there is nothing in it."""
        if self._execute("SELECT 1 FROM results LIMIT 1"):
            self._database.close()
        else:
            self.delete()

    def delete(self) -> None:
        self._database.close()
        if self.path:
            self._delete_log()
            self.path.unlink(missing_ok=True)

    def _create(self, settings: str) -> None:
        """An empty one, whole in one write: a file without its mark is then somebody else's."""
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            database.executescript(self.TABLES)
            database.execute("INSERT INTO settings VALUES (?)", (settings,))
            database.commit()
            content = database.serialize()
        self._delete_log()
        with contextlib.suppress(FileExistsError), open(self.path, "xb", buffering=0) as file:
            try:
                if file.write(content) < len(content):
                    raise _full_disk()
            except OSError:
                self.path.unlink()
                raise

    def _delete_log(self) -> None:
        """What SQLite writes before it writes the database: it must not be taken for the log of the next one."""
        Path(f"{self.path}-wal").unlink(missing_ok=True)

    def _is_journal(self) -> bool:
        if not self.path.is_file():
            return False
        with open(self.path, "rb") as file:
            start = file.read(72)
        return start.startswith(b"SQLite format 3\0") and start.endswith(self.MARK)

    def _execute(self, *statement) -> list[tuple]:
        try:
            return self._database.execute(*statement).fetchall()
        except sqlite3.Error as error:
            kind = error.sqlite_errorname
            if kind.startswith("SQLITE_BUSY"):
                raise ValueError(
                    f"Another run is writing {self.path}: wait for it, or choose another --output."
                ) from error
            if kind.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
                raise _full_disk() from error
            if kind.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY")):
                raise OSError(f"{self.path} cannot be written: {error}.") from error
            raise ValueError(f"{self.path} is damaged ({error}): delete it, and the run begins anew.") from error


def _identity(recording: str) -> tuple[int, int] | None:
    """The size and the time of the last change, in nanoseconds; `None` if there is no such file."""
    try:
        found = os.stat(recording)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def output_file(*endings: str) -> Callable[[str], str]:
    """A type for argparse: the name of a file that ends in one of these, or of what is there and no regular file."""

    def check(name: str) -> str:
        if Path(name).suffix.lower() in endings or os.path.isdir(name) or is_stream(name):
            return name
        raise argparse.ArgumentTypeError(f"{name!r} must end in {' or '.join(filter(None, endings))}.")

    return check


def check_output(output: str, *, is_ours: Callable[[Path], bool], inputs: Iterable[str] = ()) -> None:
    """
    Whether `whole_file` may write there: asked before any work is done.

    Args:
        is_ours: Tells of a file whether it is an earlier result, which may be replaced.
        inputs: Files that are read: none of them is replaced, whatever name it is given.

    Raises:
        `ValueError`: it is a folder, an input, or a file that is no earlier result.
        `OSError`: there is no folder for it, or none that may be written to.
    """
    name = describe(output)
    if is_stream(output):
        return
    if not output:
        raise ValueError("--output is empty: give it the name of a file.")
    if os.path.isdir(output) or output.endswith(os.sep):
        raise ValueError(f"{name} is a folder: give --output the name of a file.")
    folder = os.path.dirname(os.path.realpath(output))
    if not os.path.isdir(folder):
        reason = os.strerror(errno.ENOENT)
        raise OSError(f"{name} cannot be written: {reason}. Make the folder {describe(folder)} first.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), output)
    try:
        found = os.stat(output)
    except FileNotFoundError:
        return
    if any(_is_same(path, found) for path in inputs):
        raise ValueError(f"{name} is an input, which --output would replace: choose another --output.")
    if found.st_size and not is_ours(Path(output)):
        raise ValueError(f"{name} exists and is no result of this command: choose another --output, or move it away.")


def _is_same(path: str, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), found)
    except (OSError, ValueError):
        return False


def is_stream(path: str | Path) -> bool:
    """Whether it is there to be written into, not to be replaced: a device, a pipe."""
    if str(path) == STDOUT:  # even where that is a file: it may hold more
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """
    Where to write what takes the place of `path` at the end, whole, or vanishes with an error. Of a link, what it stands for
    is replaced; a device or a pipe is written into.
    """
    target, is_written_into = Path(os.path.realpath(path)), is_stream(path)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=None if is_written_into else target.parent) as folder:
        partial = Path(folder) / path.name
        yield partial
        if not is_written_into:
            os.replace(partial, target)
            return
        with open(partial, "rb") as whole, open(os.dup(1) if str(path) == STDOUT else path, "wb") as stream:
            shutil.copyfileobj(whole, stream)


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


def is_result(path: Path) -> bool:
    """Whether a file holds what `write_results` wrote, in any format: its start tells."""
    start = read_start(path)
    return (
        start.startswith('[\n{"path": ')
        or re.match(r"(.+: )?Predicted Emotion: .+ \(Confidence: \d\.\d\d\)\n", start) is not None
        or set(columns([])) <= set(columns_of(path))
    )


def columns_of(path: Path) -> list[str]:
    """The names of a CSV's or a Parquet file's columns; of another file, something else."""
    start = read_start(path)
    if not start.startswith("PAR1"):
        return next(csv.reader(start.splitlines(keepends=True)), [])
    try:
        from pyarrow import parquet

        return parquet.read_schema(path).names
    except (ImportError, ValueError, OSError):
        return []


def read_start(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(START_SIZE).decode(errors="replace")


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
    write_table(file, columns(labels), rows(results, timeline))


def write_table(file, names: list[str], records: Iterable[dict]) -> None:
    """CSV, a row a record. A spreadsheet takes no text in it for a formula, as OWASP advises; numbers stay numbers."""
    # Lines end in \n, but the writer must think of \r\n: or else it does not quote a \r, after which a row would begin.
    writer = csv.writer(SimpleNamespace(write=lambda line: file.write(f"{line[:-2]}\n")), lineterminator="\r\n")
    writer.writerow(map(_harmless, names))
    writer.writerows([_harmless(record.get(name)) for name in names] for record in records)


def _harmless(cell):
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


def _write_parquet(results: Iterable[dict], path: Path, labels: list[str], timeline: bool) -> None:
    import pyarrow
    from pyarrow import parquet

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
