"""
`python -m tests.benchmarks.load`: many visitors at once on the demo, each answer compared with the offline one.

Starts the demo. Every visitor has a recording of its own, asks as a new session each time, again as soon as there is an
answer, and once in ten times with a file that is no recording; they run on the same cores as the demo. Prints, and writes to
`load.json` beside this file: how many answers were right, refused as they should be, wrong, lost, or told that the demo is
busy; the latencies, upload included; the demo's memory after so many calls; and how long after the last visitor the last
upload was deleted (about eleven minutes: `--no-wait` leaves that out). The exit status is 1 if an answer was wrong or lost, or
an upload or its folder was left.
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

import httpx
import numpy as np
import psutil
import soundfile

from app import CLEAN_EVERY_S, KEEP_S
from ser_model.scoring import load_quietly, score_file
from tests.conftest import ROOT, make_voice

NO_RECORDING = b"no sound" * 99
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


class Calls:
    """The calls of all visitors: how many there are still to be, and what came of the others."""

    def __init__(self, number: int):
        self.left, self.outcomes, self._lock = number, [], threading.Lock()

    def take(self) -> int | None:
        with self._lock:
            self.left -= 1
            return self.left if self.left >= 0 else None


def ask(client: httpx.Client, content: bytes) -> tuple[int, dict | list]:
    """The status and the answer, as README's commands for the shell get it."""
    uploaded = client.post("/upload", files={"files": ("clip.wav", content)})
    file = {"path": uploaded.raise_for_status().json()[0], "meta": {"_type": "gradio.FileData"}}
    asked = client.post("/call/predict", json={"data": [file]})
    if asked.status_code != 200:
        return asked.status_code, asked.json()
    answer = client.get(f"/call/predict/{asked.json()['event_id']}").text
    return 200, json.loads(answer.rpartition("data: ")[2])


def judge(status: int, answer, expected: dict | None) -> str:
    if status == 503:
        return "busy"
    if expected is None:
        return "refused" if "not a recording" in answer["error"] else "wrong"
    (heard,) = answer
    scores, expected_scores = (list(a["scores"].values()) for a in (heard, expected))
    return (
        "right" if heard["label"] == expected["label"] and np.allclose(scores, expected_scores, atol=1e-4) else "wrong"
    )


def visit(url: str, content: bytes, expected: dict, calls: Calls) -> None:
    """One visitor: appends (outcome, seconds) for each call until there are no more to do."""
    with httpx.Client(base_url=f"{url}/gradio_api", timeout=300) as client:
        while (number := calls.take()) is not None:
            is_recording = number % 10 > 0
            started = time.monotonic()
            try:
                status, answer = ask(client, content if is_recording else NO_RECORDING)
                outcome = judge(status, answer, expected if is_recording else None)
            except Exception as error:  # whatever goes wrong is an outcome
                outcome = f"lost: {type(error).__name__}: {error}"
            calls.outcomes.append((outcome, time.monotonic() - started))
            if outcome not in ("right", "refused"):
                time.sleep(1)


def visit_all(
    url: str, server: psutil.Process, folder: str, options: argparse.Namespace
) -> tuple[list, dict[int, int]]:
    """The outcomes of all visits, and the demo's memory in MB after so many calls."""
    classifier, calls = load_quietly("ser-base"), Calls(options.calls)
    visitors = []
    for number in range(options.clients):
        path = Path(folder, f"visitor{number}.wav")
        soundfile.write(path, make_voice(3.0, seed=number, pitch_hz=90 + 5 * number), 16000)
        visitors.append((path.read_bytes(), score_file(classifier, str(path))))
    memory_mb = {}
    threads = [threading.Thread(target=visit, args=(url, *visitor, calls)) for visitor in visitors]
    for thread in threads:
        thread.start()
    for num_calls in np.linspace(0, options.calls, 21).astype(int).tolist():
        while len(calls.outcomes) < num_calls and any(thread.is_alive() for thread in threads):
            time.sleep(0.1)
        memory_mb[num_calls] = round(server.memory_info().rss / 1e6)
    for thread in threads:
        thread.join()
    return calls.outcomes, memory_mb


def wait_for_deletion(uploads: Path) -> float | None:
    """How many seconds until no upload and no folder is left; `None` if some are after a minute more than promised."""
    started = time.monotonic()
    while any(uploads.iterdir()):
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
    parser.add_argument("--calls", type=int, default=10_000, help="of all clients (default: %(default)s)")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the uploads to be deleted")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as uploads,
        running_demo(Path(uploads)) as (server, url),
    ):
        outcomes, memory_mb = visit_all(url, server, folder, options)
        deleted_s = None if options.no_wait else wait_for_deletion(Path(uploads))
        left = sorted(str(path.relative_to(uploads)) for path in Path(uploads).rglob("*"))
    counts = Counter(outcome for outcome, _ in outcomes)
    latencies = [seconds for outcome, seconds in outcomes if outcome == "right"]
    percentiles = {str(p): round(float(np.percentile(latencies, p)), 2) for p in (50, 90, 99, 100)} if latencies else {}
    result = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_before": round(load_before, 1),
        },
        "clients": options.clients,
        "calls": options.calls,
        "outcomes": dict(counts.most_common()),
        "latency_s": percentiles,
        "memory_mb": memory_mb,
        "uploads_deleted_after_s": deleted_s and round(deleted_s),
    }
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if left and not options.no_wait:
        print(f"left behind: {', '.join(left)}", file=sys.stderr)
    fine = counts["right"] and set(counts) <= {"right", "refused", "busy"} and (options.no_wait or not left)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
