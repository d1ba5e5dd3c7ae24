"""
`python -m tests.benchmarks.load URL`: many visitors at once on a running demo, each answer compared with the offline one.

Start the demo first (`python app.py`). Every client has recordings of its own and asks again as soon as it has an answer.
Prints how many answers were right, wrong or refused as busy, and the latencies; the exit status is 1 if any was wrong or
lost.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections import Counter

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import soundfile
from gradio_client import Client, handle_file

from ser_model.scoring import load_quietly, score_file
from tests.conftest import make_voice

BUSY = ("busy", "queue is full", "too many")


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.load", description=__doc__)
    parser.add_argument("url", help="of the demo, such as http://127.0.0.1:7860")
    parser.add_argument("--clients", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="(default: %(default)s)")
    options = parser.parse_args()
    classifier, outcomes, threads = load_quietly("ser-base"), [], []
    with tempfile.TemporaryDirectory() as folder:
        until = time.monotonic() + options.seconds
        for number in range(options.clients):
            path = f"{folder}/visitor{number}.wav"
            soundfile.write(path, make_voice(3.0, seed=number, pitch_hz=90 + 5 * number), 16000)
            visitor = (options.url, path, score_file(classifier, path), until, outcomes)
            threads.append(threading.Thread(target=visit, args=visitor))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counts = Counter(outcome for outcome, _ in outcomes)
    for outcome, count in counts.most_common():
        print(f"{count:>7} {outcome}")
    if latencies := [seconds for outcome, seconds in outcomes if outcome == "right"]:
        p50, p90, p99 = np.percentile(latencies, [50, 90, 99])
        print(f"answered in {p50:.2f} s (half), {p90:.2f} s (90 %), {p99:.2f} s (99 %), {max(latencies):.2f} s (all)")
    return 0 if counts["right"] and set(counts) <= {"right", "busy"} else 1


if __name__ == "__main__":
    sys.exit(main())
