"""
How quick the demo is: `python -m tests.benchmarks.demo [--live-s 60]`. It needs Chromium, as the browser tests do.

It prints: how long after the server listens the page can be used; how long a warm server takes for a clip of 4 s, picture
included; how many live answers come in `--live-s` seconds of silence, and how soon after them the page hears a voice.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from demo import hearing, pictures
from ser_model.scoring import load_quietly
from tests.conftest import ROOT, make_voice

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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


def measure_page(browser: "Browser", live_s: float) -> None:
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
        answers = set()
        page.get_by_text("No speech heard").wait_for()
        while page.get_by_text("No speech heard").is_visible():
            answers.add(page.locator(".picture:visible").get_attribute("data-end"))
            time.sleep(0.05)
        behind_s = time.perf_counter() - start - live_s
        print(
            f"live: {len(answers)} answers in {live_s:.0f} s; a voice after that is heard {behind_s:.1f} s late at most"
        )
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live-s", type=float, default=60.0)
    options = parser.parse_args()
    # Here, not above: how it is used can be read where there is no browser.
    from playwright.sync_api import sync_playwright

    from tests.test_browser import CHROMIUM, microphone

    with tempfile.TemporaryDirectory() as folder:
        measure_answer(Path(folder))
        with sync_playwright() as playwright:
            sound = np.concatenate([np.zeros(round(options.live_s * 48000)), make_voice(20.0, rate=48000)])
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=microphone(Path(folder), sound))
            measure_page(browser, options.live_s)
            browser.close()


if __name__ == "__main__":
    main()
