"""
The picture on top of README: `python docs/screenshot.py` starts the demo, analyses an example and writes `docs/screenshot.png`.

It needs Chromium (`apt-get install chromium`) beside `requirements-dev.txt`.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTPUT = Path(__file__).with_suffix(".png")
SIZE, MARGIN = {"width": 1180, "height": 1400}, 8
EXAMPLE = "a parcel in three voices"  # long enough for several windows
WAIT_MS = 60_000


def take_screenshot(url: str, output: Path, chromium: str) -> None:
    """The page after it has analysed `EXAMPLE`, as a PNG file."""
    from playwright.sync_api import expect, sync_playwright  # how this is used can be asked without it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        page.get_by_role("button", name=EXAMPLE).click()
        expect(page.locator(".headline:visible strong").first).not_to_have_text(
            re.compile("Nothing heard yet|Listening"), timeout=WAIT_MS
        )
        expect(page.locator(".seekable")).to_be_visible(timeout=WAIT_MS)
        page.evaluate(
            "document.querySelectorAll('audio').forEach((audio) => { audio.pause(); audio.currentTime = 0; })"
        )
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until bars have grown to their length
        shown = page.locator(".seekable").bounding_box()
        page.screenshot(
            path=output, clip={"x": 0, "y": 0, "width": SIZE["width"], "height": shown["y"] + shown["height"] + MARGIN}
        )
        browser.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python docs/screenshot.py", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("error: no Chromium is installed: apt-get install chromium.", file=sys.stderr)
        return 1
    sys.path.insert(0, str(ROOT))
    import app
    from ser_model.pretrained import load_pipeline

    demo = app.build_demo(load_pipeline())
    _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True)
    try:
        take_screenshot(url, options.output, chromium)
    finally:
        demo.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
