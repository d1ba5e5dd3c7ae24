"""The demo: which emotions a voice has, where, and how far to trust the answer. `python app.py [--model ID_OR_DIR]`."""

import argparse
import os
import sys
from pathlib import Path

# Gradio keeps a line about each of the last requests and sums all of them up after every one: of 10,000, left to itself.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")

import gradio as gr

from demo import tabs
from demo.results import FOLDER, load_results
from demo.server import Demo
from demo.uploads import MAX_UPLOAD_MB
from ser_model import SerPipeline
from ser_model.pretrained import DEFAULT, available, default_model
from ser_model.scoring import load_quietly

# Every minute, what visitors sent more than ten minutes ago is deleted.
CLEAN_EVERY_S, KEEP_S = 60, 600
MAX_WAITING = 50
PAGE = Path(__file__).parent / "demo"

LAUNCH = {
    "max_file_size": f"{MAX_UPLOAD_MB}mb",
    "show_error": False,  # what nobody thought of names files and code; sentences for the visitor are shown all the same
    "mcp_server": True,
    "state_session_capacity": 200,  # each session is a copy of the page's settings, 90 kB, and left to itself 10,000 are kept
    "footer_links": ["api", "gradio", "settings"],
    "css_paths": PAGE / "page.css",
    "head": f"<script>{(PAGE / 'page.js').read_text(encoding='utf-8')}</script>",
    # Fonts of the visitor's own machine: the page asks no other server for anything.
    "theme": gr.themes.Soft(
        primary_hue="indigo",
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ),
}

ABOUT = """
# How does it sound?

A small network says which of eight acted emotions it hears in a voice, and where. It judges the sound, not what a person
feels. What you record is deleted within eleven minutes.
"""


def build_demo(classifier: SerPipeline, *, recipe: str | None = DEFAULT, results_folder: Path = FOLDER) -> gr.Blocks:
    """
    The page around one classifier; start it with `launch(**LAUNCH)`.

    Args:
        recipe: The classifier's recipe, for its measured figures; `None` for someone else's checkpoint.
        results_folder: Where the result files are.
    """
    results = load_results(results_folder)
    with Demo(title="How does it sound?", analytics_enabled=False, clean_every_s=CLEAN_EVERY_S, keep_s=KEEP_S) as demo:
        gr.Markdown(ABOUT)
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Analyse"):
                tabs.analyse_tab(classifier)
            with gr.Tab("Live", render_children=True):  # its encoder is then loaded before anyone presses Record
                tabs.live_tab(classifier)
            with gr.Tab("Compare", render_children=True):
                tabs.compare_tab(results)
            with gr.Tab("Many files"):
                tabs.many_tab(classifier)
            with gr.Tab("How good is it?"):
                tabs.results_tab(results, recipe)
    return demo.queue(max_size=MAX_WAITING, default_concurrency_limit=2)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python app.py", description=__doc__)
    parser.add_argument(
        "--model",
        help=f"name of a recipe that ships, a folder, or USER/NAME on the Hub (default: $SER_MODEL, or else {DEFAULT})",
    )
    options = parser.parse_args(arguments)
    try:
        model = options.model or default_model()
        classifier = load_quietly(model)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    build_demo(classifier, recipe=model if model in available() else None).launch(**LAUNCH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
