"""
How quick the demo is: `python -m tests.benchmarks.demo [--live-s 60]`. It needs Chromium, as the browser tests do.

It prints: how long after the server listens the page can be used; how long a warm server takes for a clip of 4 s, picture
included; and how far the live answer is behind the voice at the end of `--live-s` seconds.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from playwright.sync_api import Browser, sync_playwright

from demo import hearing, pictures
from ser_model.scoring import load_quietly
from tests.conftest import ROOT, make_voice
from tests.test_browser import CHROMIUM, microphone

NUM_ANSWERS = 30


def measure_answer(folder: Path) -> None:
    classifier = load_quietly("ser-base")
    labels = list(classifier.model.config.id2label.values())
    soundfile.write(folder / "clip.wav", make_voice(4.0, rate=48000), 48000)
    took_ms = []
    for _ in range(NUM_ANSWERS):
        start = time.perf_counter()
        heard = hearing.hear(classifier, str(folder / "clip.wav"))
        pictures.headline(heard.answer)
        pictures.bars(labels, heard.answer["scores"])
        pictures.recording(heard, labels)
        pictures.windows_table(heard.answer["windows"])
        took_ms.append(1000 * (time.perf_counter() - start))
    print(
        f"answer for a clip of 4 s, with its picture: first {took_ms[0]:.0f} ms; then median "
        f"{np.median(took_ms[1:]):.0f} ms, slowest of {NUM_ANSWERS - 1} {max(took_ms[1:]):.0f} ms"
    )


def measure_page(browser: Browser, live_s: float) -> None:
    server = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = next(line for line in server.stdout if "http://" in line).split()[-1]
        start = time.perf_counter()
        page = browser.new_context(permissions=["microphone"]).new_page()
        page.goto(url)
        page.locator("#recording .record-button").wait_for()
        print(f"page ready {time.perf_counter() - start:.1f} s after the server listens")
        page.get_by_role("tab", name="Live").click()
        page.locator("#microphone .record-button").click()
        start = time.perf_counter()
        behind_s, answers = [], set()
        while time.perf_counter() - start < live_s:
            time.sleep(0.1)
            if end := page.locator(".picture:visible").get_attribute("data-end"):
                answers.add(end)
                behind_s.append(time.perf_counter() - start - float(end))
        print(
            f"live: {len(answers)} answers in {live_s:.0f} s; in the last ten seconds at most {max(behind_s[-100:]):.1f} s behind"
        )
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live-s", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure_answer(Path(folder))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=microphone(Path(folder)))
            measure_page(browser, options.live_s)
            browser.close()


if __name__ == "__main__":
    main()
