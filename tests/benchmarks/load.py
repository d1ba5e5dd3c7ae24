"""
`python -m tests.benchmarks.load`: many visitors at once on the demo, each answer compared with the offline one.

Starts the demo. Every visitor has a recording of its own and asks again as soon as there is an answer; they run on the same
cores as the demo. Prints, and writes to `load.json` beside this file: how many answers were right, wrong, lost or refused as
busy; the latencies, upload included; the demo's memory from minute to minute; and how long after the last visitor the last
upload was deleted (about eleven minutes: `--no-wait` leaves that out). The exit status is 1 if an answer was wrong or lost, or
an upload was left.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import psutil
import soundfile
from gradio_client import Client, handle_file

from app import CLEAN_EVERY_S, KEEP_S
from ser_model.results import write_whole
from ser_model.scoring import load_quietly, score_file
from tests.conftest import ROOT, make_voice

BUSY = ("busy", "queue is full", "too many")
RESULTS = Path(__file__).with_suffix(".json")


@contextlib.contextmanager
def running_demo(uploads: Path):
    """The demo as a process of its own with its address."""
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(uploads), "TMPDIR": str(uploads)}
    server = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        yield psutil.Process(server.pid), next(line for line in server.stdout if "http://" in line).split()[-1]
    finally:
        server.terminate()
        server.wait()


def visit(url: str, path: str, expected: dict, until: float, outcomes: list) -> None:
    """One visitor: appends (outcome, seconds) for each request until the clock says stop."""
    try:
        client = Client(url, verbose=False)
    except Exception as error:  # whatever goes wrong is an outcome
        outcomes.append((f"lost: {type(error).__name__}", 0.0))
        return
    while time.monotonic() < until:
        started = time.monotonic()
        try:
            answer = client.predict(handle_file(path), api_name="/predict")
            right = answer["label"] == expected["label"] and np.allclose(
                list(answer["scores"].values()), list(expected["scores"].values()), atol=1e-4
            )
            outcome = "right" if right else "wrong"
        except Exception as error:
            is_busy = any(word in str(error).lower() for word in BUSY)
            outcome = "busy" if is_busy else f"lost: {type(error).__name__}: {error}"
        outcomes.append((outcome, time.monotonic() - started))
        if outcome != "right":
            time.sleep(1)


def visit_all(url: str, server: psutil.Process, folder: str, options: argparse.Namespace) -> tuple[list, list[int]]:
    """The outcomes of all visits, and the demo's memory in MB: idle, then every half a minute."""
    classifier, outcomes, threads = load_quietly("ser-base"), [], []
    visitors = []
    for number in range(options.clients):
        path = f"{folder}/visitor{number}.wav"
        soundfile.write(path, make_voice(3.0, seed=number, pitch_hz=90 + 5 * number), 16000)
        visitors.append((path, score_file(classifier, path)))
    memory_mb = [round(server.memory_info().rss / 1e6)]
    until = time.monotonic() + options.seconds
    threads = [threading.Thread(target=visit, args=(url, *visitor, until, outcomes)) for visitor in visitors]
    for thread in threads:
        thread.start()
    while (left_s := until - time.monotonic()) > 0:
        time.sleep(min(30, left_s))
        memory_mb.append(round(server.memory_info().rss / 1e6))
    for thread in threads:
        thread.join()
    return outcomes, memory_mb


def wait_for_deletion(uploads: Path) -> float | None:
    """How many seconds until no upload is left; `None` if some are after a minute more than promised."""
    started = time.monotonic()
    while any(path.is_file() for path in uploads.rglob("*")):
        if time.monotonic() - started > KEEP_S + 2 * CLEAN_EVERY_S:
            return None
        time.sleep(5)
    return time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clients", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="(default: %(default)s)")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the uploads to be deleted")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as uploads,
        running_demo(Path(uploads)) as (server, url),
    ):
        outcomes, memory_mb = visit_all(url, server, folder, options)
        deleted_s = None if options.no_wait else wait_for_deletion(Path(uploads))
        left = sorted(str(path.relative_to(uploads)) for path in Path(uploads).rglob("*") if path.is_file())
    counts = Counter(outcome for outcome, _ in outcomes)
    latencies = [seconds for outcome, seconds in outcomes if outcome == "right"]
    percentiles = {str(p): round(float(np.percentile(latencies, p)), 2) for p in (50, 90, 99, 100)} if latencies else {}
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "clients": options.clients,
        "seconds": options.seconds,
        "outcomes": dict(counts.most_common()),
        "latency_s": percentiles,
        "memory_mb": memory_mb,
        "uploads_deleted_after_s": deleted_s and round(deleted_s),
    }
    print(json.dumps(result, indent=1))
    write_whole(RESULTS, f"{json.dumps(result, indent=1)}\n".encode())
    if left and not options.no_wait:
        print(f"left behind: {', '.join(left)}", file=sys.stderr)
    fine = counts["right"] and set(counts) <= {"right", "busy"} and (options.no_wait or not left)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
