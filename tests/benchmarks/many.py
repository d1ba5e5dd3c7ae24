"""
`python -m tests.benchmarks.many`: ten thousand short recordings through the shell command, with one worker and with two.

Prints, and writes to `many.json` beside this file: files a second with each number of workers, start included, and what the
cores would give if nothing but scoring cost anything (`score_file` alone, on one thread, times the cores). Then kills a run
halfway, gives the command again, and counts the rows. The exit status is 1 if one is lost or doubled.
"""

import argparse
import contextlib
import csv
import json
import os
import platform
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import soundfile

from ser_model.results import write_whole
from ser_model.scoring import find_recordings, load_quietly, score_file
from tests.conftest import ROOT, make_voice

RESULTS = Path(__file__).with_suffix(".json")
CLIP_S, DIFFERENT, SCORED_ALONE = 3.0, 50, 300


def write_recordings(folder: Path, count: int) -> list[str]:
    """Links to some different files: ten thousand of them take no room."""
    for number in range(DIFFERENT):
        soundfile.write(
            folder / f"voice{number}.flac", make_voice(CLIP_S, seed=number, pitch_hz=90 + 4 * number), 16000
        )
    (folder / "in").mkdir()
    for number in range(count):
        os.link(folder / f"voice{number % DIFFERENT}.flac", folder / "in" / f"{number:05d}.flac")
    return find_recordings(str(folder / "in"))


def start(folder: Path, output: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "ser_model", folder / "in", "--output", output, "--workers", str(workers)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def cpu_time_s() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def alone_per_s(paths: list[str]) -> float:
    classifier = load_quietly("ser-base")
    score_file(classifier, paths[0])  # what is loaded on first use
    started = time.perf_counter()
    for path in paths[:SCORED_ALONE]:
        score_file(classifier, path)
    return SCORED_ALONE / (time.perf_counter() - started)


def kill_and_go_on(folder: Path, paths: list[str], workers: int, *, after_s: float) -> dict[str, int]:
    """How many rows of how many files are there after a run that was killed and started again."""
    output = folder / "killed.csv"
    process = start(folder, output, workers)
    time.sleep(after_s)
    process.kill()
    process.wait()
    with contextlib.closing(sqlite3.connect(f"{output}.journal")) as journal:
        [(kept,)] = journal.execute("SELECT count(*) FROM results")
    if start(folder, output, workers).wait() != 0:
        sys.exit("The run that went on failed.")
    with open(output, newline="", encoding="utf-8") as file:
        rows = Counter(row["path"] for row in csv.DictReader(file) if not row["error"])
    doubled = sum(count > 1 for count in rows.values())
    return {"files": len(paths), "kept": kept, "lost": len(set(paths) - set(rows)), "doubled": doubled}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.many",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--files", type=int, default=10_000, help="(default: %(default)s)")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_recordings(folder, options.files)
        alone = alone_per_s(paths)
        rows = []
        for workers in (1, 2):
            started, cpu_before_s = time.perf_counter(), cpu_time_s()
            if start(folder, folder / f"{workers}.csv", workers).wait() != 0:
                sys.exit(f"The run with {workers} workers failed.")
            wall_s, cpu_s = time.perf_counter() - started, cpu_time_s() - cpu_before_s
            rows.append(
                {
                    "workers": workers,
                    "wall_s": round(wall_s, 1),
                    "cpu_s": round(cpu_s, 1),
                    "files_per_s": round(len(paths) / wall_s, 1),
                }
            )
            print(rows[-1], flush=True)
        killed = kill_and_go_on(folder, paths, 2, after_s=rows[-1]["wall_s"] / 2)
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": cores},
        "recording": f"{CLIP_S:g} s of voice, flac, 16 kHz",
        "limit_files_per_s": round(alone * cores, 1),
        "rows": rows,
        "killed_halfway": killed,
    }
    print(json.dumps(result, indent=1))
    write_whole(RESULTS, f"{json.dumps(result, indent=1)}\n".encode())
    return 1 if killed["lost"] or killed["doubled"] else 0


if __name__ == "__main__":
    sys.exit(main())
