"""The demo: record or upload a voice, see the eight probabilities. `python app.py [--model ID_OR_DIR]`."""

import argparse
import os
import sys

import gradio as gr

from ser_model import SerPipeline
from ser_model.scoring import load_quietly, score_file

MAX_UPLOAD = "100mb"
# Uploads are deleted within this many seconds of being looked for, and once they are as old.
CLEAN_EVERY_S = 60
MAX_WAITING, MAX_AT_ONCE = 50, 2

ABOUT = """
# How does it sound?

Record a few seconds of speech, or upload a recording of any format and length. A small network, trained on 24 North
American actors saying two sentences, says which of eight acted emotions it hears. It judges the sound of a voice, not
what a person feels, and what you record is not kept.
"""
LICENCE = (
    "Code: Apache-2.0. Weights: CC BY-NC-SA 4.0, as the data they were trained on "
    "([RAVDESS](https://doi.org/10.1371/journal.pone.0196391), Livingstone & Russo 2018)."
)


def build_demo(classifier: SerPipeline) -> gr.Blocks:
    """The page around one classifier."""

    def predict(audio: str | None) -> dict:
        """The emotions in one recording: label, score, scores, duration_s, and windows over time."""
        if audio is None:
            raise gr.Error("There is no recording yet: record one, or upload a file.", print_exception=False)
        result = score_file(classifier, audio)
        if "error" in result:
            raise gr.Error(_public(result["error"], audio), print_exception=False)
        # gradio_client takes any object with a "path" for a file to download.
        return {name: value for name, value in result.items() if name != "path"}

    def show(result: dict) -> dict[str, float]:
        return result["scores"]

    with gr.Blocks(
        title="Speech emotion", analytics_enabled=False, delete_cache=(CLEAN_EVERY_S, CLEAN_EVERY_S)
    ) as demo:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column():
                audio = gr.Audio(label="Your recording", sources=["microphone", "upload"], type="filepath")
                button = gr.Button("What emotion is it?", variant="primary")
            with gr.Column():
                emotions = gr.Label(label="Emotion", num_top_classes=len(classifier.model.config.id2label))
        with gr.Accordion("The answer as JSON", open=False):
            answer = gr.JSON(show_label=False)
        gr.Markdown(LICENCE)
        button.click(predict, audio, answer, api_name="predict").success(
            show, answer, emotions, api_visibility="private"
        )
    return demo.queue(max_size=MAX_WAITING, default_concurrency_limit=MAX_AT_ONCE)


def _public(message: str, path: str) -> str:
    """A message for the visitor, who does not know where the server keeps the upload."""
    return message.replace(path, os.path.basename(path))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python app.py", description=__doc__)
    parser.add_argument(
        "--model",
        default="ser-base",
        help="name of a recipe that ships, a folder, or USER/NAME on the Hub (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        classifier = load_quietly(options.model)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    build_demo(classifier).launch(max_file_size=MAX_UPLOAD, show_error=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
