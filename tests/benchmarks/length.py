"""
`python -m tests.benchmarks.length`: time and memory for recordings of one minute, one hour and (with `--long`) ten hours.

Prints for each format and length: CPU seconds, wall seconds, windows, and by how much memory rose above idle at its peak.
Writes the same to `length.json` beside this file.
"""

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile

from ser_model.results import write_whole
from ser_model.scoring import load_quietly, score_file
from tests.conftest import make_voice

RATE = 48000
RESULTS = Path(__file__).with_suffix(".json")


def write_recording(path: Path, minutes: int, *, silent: bool = False) -> Path:
    minute = np.zeros(60 * RATE, np.float32) if silent else make_voice(60.0, rate=RATE)
    with soundfile.SoundFile(path, "w", RATE, 1) as sound:
        for _ in range(minutes):
            sound.write(minute)
    return path


class Memory:
    """By how much this process's memory rises above what it is at the start, looked at fifty times a second."""

    def __enter__(self):
        self.rose_mb, self._process, self._over = 0.0, psutil.Process(), threading.Event()
        self._idle = self._process.memory_info().rss
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._watch.join()

    def _look(self):
        while not self._over.wait(0.02):
            self.rose_mb = max(self.rose_mb, (self._process.memory_info().rss - self._idle) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.length", description=__doc__)
    parser.add_argument("--long", action="store_true", help="also ten hours of voice, and six of silence")
    options = parser.parse_args()
    cases = [("flac", 1, False), ("flac", 60, False), ("mp3", 60, False), ("wav", 60, False)]
    if options.long:
        cases += [("flac", 360, True), ("flac", 600, False)]
    classifier = load_quietly("ser-base")
    classifier(make_voice(5.0))  # what is loaded on first use belongs to the idle memory
    print(f"{'recording':<28}{'size':>9}{'CPU':>10}{'wall':>10}{'windows':>9}{'memory':>11}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix, minutes, silent in cases:
            path = write_recording(Path(folder) / f"recording.{suffix}", minutes, silent=silent)
            with Memory() as memory:
                cpu, wall = time.process_time(), time.perf_counter()
                result = score_file(classifier, str(path))
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            name = f"{minutes} min of {'silence' if silent else 'voice'}, {suffix}"
            size_mb, num_windows = path.stat().st_size / 1e6, len(result.get("windows", ()))
            print(
                f"{name:<28}{size_mb:>6.0f} MB{cpu:>8.1f} s{wall:>8.1f} s{num_windows:>9}{memory.rose_mb:>8.0f} MB",
                flush=True,
            )
            path.unlink()
            rows.append(
                {
                    "recording": name,
                    "cpu_s": round(cpu, 1),
                    "wall_s": round(wall, 1),
                    "windows": num_windows,
                    "memory_rose_mb": round(memory.rose_mb),
                }
            )
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": 1}
    write_whole(RESULTS, (json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
