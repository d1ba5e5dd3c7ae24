"""
One system in a process of its own, asked by `run.py` over pipes: `python -m tests.benchmarks.worker SYSTEM FOLDER THREADS`.

Requests and replies are lines of JSON. Only the standard library and NumPy are imported here, so that it also runs where
TensorFlow is and PyTorch is not, and so that memory and start-up are the system's own.
"""

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

NUM_VOICES = 32


@dataclass
class Clips:
    """
    What every system is asked about, written by `run.py`.

    path: A clip of 4 s, 48 kHz, stereo, WAV.
    folder: Also holds the same clip and others as mono waveforms at 16 and 22.05 kHz.
    """

    folder: Path

    @property
    def path(self) -> str:
        return str(self.folder / "clip.wav")

    def waveforms(self, rate: int) -> list[np.ndarray]:
        """`NUM_VOICES` voices of 4 s, (num_samples,) float32 each."""
        return list(np.load(self.folder / f"voices-{rate}.npy"))


@dataclass
class System:
    """
    calls: What it can be asked about one clip, by name.
    many: What it can be asked about a list of `num_clips` clips, by name.
    num_bytes: Of its checkpoint; `None` if it has no weights.
    """

    calls: dict[str, Callable[[], object]]
    many: dict[str, Callable[[int], object]] = field(default_factory=dict)
    num_bytes: int | None = None


def cycle(clips: list, num_clips: int) -> list:
    return [clips[i % len(clips)] for i in range(num_clips)]


def time_call(call: Callable[[], object], *, for_s: float, at_most: int = 10_000) -> float:
    """Median seconds of as many calls as fit into `for_s`, one at least."""
    took_s, until = [], time.perf_counter() + for_s
    while not took_s or (time.perf_counter() < until and len(took_s) < at_most):
        start = time.perf_counter()
        call()
        took_s.append(time.perf_counter() - start)
    return statistics.median(took_s)


def peak_mb() -> float:
    """The most memory that this process has had so far. Not `getrusage`, which counts that of its parent, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def answer(system: System, request: dict) -> dict:
    if request["ask"] == "call":
        return {"seconds": time_call(system.calls[request["name"]], for_s=request["for_s"])}
    if request["ask"] == "many":
        start = time.perf_counter()
        system.many[request["name"]](request["num_clips"])
        return {"seconds": time.perf_counter() - start}
    raise ValueError(f"No such request: {request}.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.worker", description=__doc__)
    parser.add_argument("system", help="MODULE:FUNCTION, in this folder")
    parser.add_argument("folder", type=Path, help="where run.py has written the clips")
    parser.add_argument("threads", type=int)
    options = parser.parse_args()
    # Libraries print what they like to the standard output: from here on it is the standard error.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, _, function = options.system.partition(":")
    make_system = getattr(importlib.import_module(f"tests.benchmarks.{module}"), function)
    system = make_system(Clips(options.folder), options.threads)
    for call in system.calls.values():
        call()
    about = {
        "calls": list(system.calls),
        "many": list(system.many),
        "num_bytes": system.num_bytes,
        "peak_mb": peak_mb(),
    }
    print(json.dumps(about), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(system, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
