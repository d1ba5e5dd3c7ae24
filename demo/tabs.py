"""The page's tabs, each with its handlers."""

import functools
import itertools
import time
from contextlib import contextmanager
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from ser_model import SerPipeline
from ser_model.audio import AudioError, read_blocks
from ser_model.pipeline_ser import WINDOW_S
from ser_model.pretrained import available
from ser_model.scoring import load_quietly
from ser_model.voice import NoVoiceError

from . import pictures
from .hearing import MAX_DURATION_S, OnHeard, hear, read
from .lanes import BusyError, Lanes
from .results import figures_lines, page
from .server import unexpected
from .uploads import MAX_REQUEST_MB, MAX_UPLOAD_MB

EXAMPLES = Path(__file__).parents[1] / "examples"
gr.set_static_paths(EXAMPLES)  # served from where they are: copies would be deleted as uploads are
MAX_FILES = 50
# What computes shares two places, whatever tab it is of, and a third one if it has proved long. More calls than that are let
# in at a time, so that those who wait for the third hold up nobody else; calls with many files have their own entrance.
LANES = Lanes(short=2, long=1, max_waiting=6)
COMPUTE = {"concurrency_id": "compute", "concurrency_limit": 12}
COMPUTE_MANY = {"concurrency_id": "many", "concurrency_limit": 3}
# A live microphone holds its place while it is on.
LIVE = {"concurrency_id": "live", "concurrency_limit": 4, "time_limit": 300, "stream_every": 0.5}
MIN_LIVE_S, ANSWER_EVERY_S, HISTORY_S = 1.0, 0.5, 60.0
MAX_LIVE_BLOCKS = 10

PROGRESS = gr.Progress()
LIMITS_OF_A_RECORDING = f"Any format, up to {MAX_DURATION_S // 60} minutes and {MAX_UPLOAD_MB} MB."


def analyse_tab(classifier: SerPipeline) -> None:
    """One recording: the answer, the probabilities, where it listened, and emotions over time."""
    labels = list(classifier.model.config.id2label.values())

    def predict(audio: str | None) -> dict:
        """
        The emotions heard in one recording of speech, of any audio format, at most 30 minutes long.

        Args:
            audio: The recording.

        Returns:
            label and score (the likeliest emotion and its probability), scores (the probability of each emotion),
            duration_s, and windows: start_s, end_s, label, score and scores of every few seconds.
        """
        with _one_sentence(audio), LANES.turn() as go_on:
            return _answer(classifier, audio, go_on)

    def analyse(audio: str | None, progress=PROGRESS) -> tuple[str, str, str, str]:
        with _one_sentence(audio), LANES.turn() as go_on:
            hearing = hear(classifier, audio, progress=progress.tqdm, on_heard=go_on)
            answer = hearing.answer
            return (
                pictures.headline(answer, no_answer=hearing.no_answer),
                pictures.bars(labels, answer and answer["scores"]),
                pictures.recording(hearing, labels),
                pictures.windows_table(answer["windows"] if answer else []),
            )

    def empty() -> tuple[str, str, str, str]:
        waiting = "Record some speech, upload a recording, or try an example."
        return (
            pictures.headline(None, waiting=waiting),
            pictures.bars(labels, None),
            pictures.recording(None, labels),
            pictures.windows_table([]),
        )

    with gr.Row(elem_id="analyse"):
        with gr.Column(scale=2, min_width=300, elem_id="beside"):
            audio = _microphone_or_file(elem_id="recording")
            gr.Markdown(LIMITS_OF_A_RECORDING)
            button = gr.Button("What emotion is it?", variant="primary")
            clips = sorted(EXAMPLES.glob("*.flac"))
            examples = gr.Examples(
                [[str(clip)] for clip in clips],
                audio,
                label="Or try a synthetic voice",
                example_labels=[clip.stem.replace("-", " ") for clip in clips],
                cache_examples=False,
                elem_id="examples",
            )
        with gr.Column(scale=3, min_width=300, elem_classes="shown"):
            shown = [gr.HTML(value, padding=False) for value in empty()]
    listening = {"fn": analyse, "inputs": audio, "outputs": shown, "show_progress_on": shown[0]}
    for heard in (
        gr.on([button.click, audio.upload, audio.stop_recording], **listening, api_visibility="private", **COMPUTE),
        examples.load_input_event.then(**listening, api_visibility="private", **COMPUTE),
    ):
        heard.failure(empty, None, shown, show_progress="hidden", api_visibility="private")
    audio.clear(empty, None, shown, show_progress="hidden", api_visibility="private")
    gr.on([], predict, audio, gr.JSON(visible=False), api_name="predict", **COMPUTE)


def live_tab(classifier: SerPipeline) -> None:
    """The running answer on what the microphone hears."""
    labels = list(classifier.model.config.id2label.values())
    waiting = f"Switch the microphone on and speak: the answer follows you, and is about the last {WINDOW_S:.0f} s."

    def follow(chunk: str | None, heard: dict | None) -> tuple:
        heard = heard or {
            "waveform": np.zeros(0, np.float32),
            "since": time.monotonic(),
            "answered_s": 0.0,
            "windows": [],
        }
        rate = classifier.feature_extractor.sampling_rate
        heard["waveform"] = np.concatenate([heard["waveform"], _read_piece(chunk, rate)])[-round(WINDOW_S * rate) :]
        # Time goes by the clock: a server that is kept busy is not sent the pieces that it had no time for.
        now_s = time.monotonic() - heard["since"]
        if len(heard["waveform"]) < MIN_LIVE_S * rate or now_s < heard["answered_s"] + ANSWER_EVERY_S:
            return gr.skip(), gr.skip(), gr.skip(), heard
        answer, no_answer = None, ""
        try:
            answer = classifier(heard["waveform"], timeline=True)
        except NoVoiceError as error:
            no_answer = str(error)
        _remember(heard, answer, now_s)
        return (
            pictures.headline(answer, no_answer=no_answer),
            pictures.bars(labels, answer and answer["scores"]),
            pictures.over_time(heard["windows"], labels),
            heard,
        )

    def empty() -> tuple:
        return (
            pictures.headline(None, waiting=waiting),
            pictures.bars(labels, None),
            pictures.over_time([], labels),
            None,
        )

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            audio = gr.Audio(
                label="Microphone", sources=["microphone"], streaming=True, type="filepath", elem_id="microphone"
            )
            gr.Markdown(f"At most {LIVE['time_limit'] // 60} minutes at a time. Stopping clears the page.")
        with gr.Column(scale=3, min_width=300, elem_classes="shown"):
            shown = [gr.HTML(value, padding=False) for value in empty()[:3]]
    heard = gr.State(None)
    following = audio.stream(
        follow,
        [audio, heard],
        [*shown, heard],
        show_progress="hidden",
        api_visibility="private",
        **LIVE,
    )
    gr.on(
        [audio.stop_recording, audio.clear],
        empty,
        None,
        [*shown, heard],
        show_progress="hidden",
        api_visibility="private",
        cancels=[following],
    )


def _read_piece(chunk: str | None, rate: int) -> np.ndarray:
    """What the microphone heard since the last piece, (num_samples,)."""
    if not chunk:
        return np.zeros(0, np.float32)
    try:
        # A browser sends half a second; of a long recording that is sent all the same only the beginning is read.
        return np.concatenate(list(itertools.islice(read_blocks(chunk, rate), MAX_LIVE_BLOCKS)))
    except AudioError:  # the few milliseconds that are left when the microphone is switched off
        return np.zeros(0, np.float32)


def _remember(heard: dict, answer: dict | None, now_s: float) -> None:
    """The answer as one more window of the history, which reaches `HISTORY_S` back."""
    fields = {field: answer[field] if answer else None for field in ("label", "score", "scores")}
    windows = [*heard["windows"], {"start_s": heard["answered_s"], "end_s": now_s, **fields}]
    heard["windows"] = [window for window in windows if window["end_s"] > now_s - HISTORY_S]
    heard["answered_s"] = now_s


def compare_tab(results: dict) -> None:
    """The same recording through every recipe that ships."""

    def compare(audio: str | None) -> dict:
        """
        One recording of speech through every network that ships here.

        Args:
            audio: The recording, at most 30 minutes long.

        Returns:
            For each network: label, score, scores, duration_s, and measured (its figures under each protocol).
        """
        waveforms, answers = {}, {}
        for recipe in available():
            classifier = _load(recipe)
            rate = classifier.feature_extractor.sampling_rate
            with _one_sentence(audio), LANES.turn() as go_on:
                if rate not in waveforms:
                    waveforms[rate] = read(audio, rate, on_heard=go_on)
                answers[recipe] = _whole(classifier(waveforms[rate], timeline=True, on_window=go_on))
            answers[recipe]["measured"] = {protocol: r["mean"] for protocol, r in results.get(recipe, {}).items()}
        return answers

    def show(audio: str | None) -> str:
        cards = "".join(
            f'<section class="card"><h3>{escape(recipe)}</h3>{pictures.headline(answer)}'
            f"{pictures.bars(list(answer['scores']), answer['scores'])}"
            f"{figures_lines(results.get(recipe, {}))}</section>"
            for recipe, answer in compare(audio).items()
        )
        return f'<div class="cards">{cards}</div>'

    def empty() -> str:
        cards = "".join(
            f'<section class="card"><h3>{escape(recipe)}</h3>{pictures.headline(None, waiting="Give it a recording.")}'
            f"{pictures.bars(list(_load(recipe).model.config.id2label.values()), None)}"
            f"{figures_lines(results.get(recipe, {}))}</section>"
            for recipe in available()
        )
        return f'<div class="cards">{cards}</div>'

    audio = _microphone_or_file(elem_id="compared")
    gr.Markdown(LIMITS_OF_A_RECORDING)
    button = gr.Button("Compare", variant="primary")
    shown = gr.HTML(empty(), padding=False)
    compared = gr.on(
        [button.click, audio.upload, audio.stop_recording], show, audio, shown, api_visibility="private", **COMPUTE
    )
    compared.failure(empty, None, shown, show_progress="hidden", api_visibility="private")
    audio.clear(empty, None, shown, show_progress="hidden", api_visibility="private")
    gr.on([], compare, audio, gr.JSON(visible=False), api_name="compare", **COMPUTE)


_load = functools.cache(load_quietly)


def many_tab(classifier: SerPipeline) -> None:
    """Several files: a table and a CSV. A bad one is listed and does not stop the rest."""

    def predict_many(files: list[str] | None, progress=PROGRESS) -> list[dict]:
        """
        The emotion of each of several recordings of speech.

        Args:
            files: The recordings, at most 50, each at most 30 minutes long.

        Returns:
            For each recording: file (its name), label, score, scores and duration_s; or file and error.
        """
        if not files:
            raise _error("There is no file yet: choose some recordings.")
        if len(files) > MAX_FILES:
            raise _error(f"These are {len(files)} files: at most {MAX_FILES} at a time.")
        answers = []
        for path in progress.tqdm(files, desc="Listening", unit="files"):
            try:
                with _one_sentence(path), LANES.turn() as go_on:
                    answer = _whole(_answer(classifier, path, go_on))
            except gr.Error as error:
                answer = {"error": error.message}
            except Exception as error:
                answer = {"error": unexpected(error)}
            answers.append({"file": Path(path).name, **answer})
        return answers

    def show(files: list[str] | None, progress=PROGRESS) -> str:
        return _files_table(predict_many(files, progress))

    gr.Markdown(
        f"Up to {MAX_FILES} recordings, {MAX_REQUEST_MB} MB in one go. Each: {LIMITS_OF_A_RECORDING} What cannot be read is "
        "listed with the reason."
    )
    files = gr.File(label="Recordings", file_count="multiple", type="filepath", elem_id="files", height=180)
    button = gr.Button("Listen to all", variant="primary")
    shown = gr.HTML(_files_table([]), padding=False)
    button.click(show, files, shown, api_visibility="private", **COMPUTE_MANY)
    files.clear(lambda: _files_table([]), None, shown, show_progress="hidden", api_visibility="private")
    gr.on([], predict_many, files, gr.JSON(visible=False), api_name="predict_many", **COMPUTE_MANY)


def _answer(classifier: SerPipeline, path: str, go_on: OnHeard) -> dict:
    waveform = read(path, classifier.feature_extractor.sampling_rate, on_heard=go_on)
    return classifier(waveform, timeline=True, on_window=go_on)


def _whole(answer: dict) -> dict:
    """The answer without its windows."""
    return {field: answer[field] for field in ("label", "score", "scores", "duration_s")}


def _files_table(answers: list[dict]) -> str:
    if not answers:
        return '<div class="picture empty"><p>Here you will see a line for each file.</p></div>'
    rows = "".join(
        f'<tr><th scope="row">{escape(a["file"])}</th>'
        + (
            f'<td colspan="3">⚠ {escape(a["error"])}</td></tr>'
            if "error" in a
            else f'<td>{pictures.name(a["label"])}</td><td class="number">{100 * a["score"]:.0f} %</td>'
            f'<td class="number">{pictures.clock(a["duration_s"])}</td></tr>'
        )
        for a in answers
    )
    num_failed = sum("error" in a for a in answers)
    summary = f"<p>{len(answers) - num_failed} of {len(answers)} recordings heard.</p>" if num_failed else ""
    records = [{k: v for k, v in {**a, **a.get("scores", {})}.items() if k != "scores"} for a in answers]
    return (
        f'{summary}{pictures.downloads("emotions", pictures.as_csv(records))}<div class="scroll"><table class="grid files"><thead><tr>'
        '<th scope="col">file</th><th scope="col">emotion</th><th scope="col" class="number">confidence</th>'
        f'<th scope="col" class="number">length</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def results_tab(results: dict, recipe: str | None) -> None:
    """The figures that were measured."""
    if len(results) > 1:
        choice = gr.Dropdown(sorted(results), value=recipe if recipe in results else None, label="Network")
        shown = gr.HTML(page(results, recipe), padding=False)
        choice.change(lambda chosen: page(results, chosen), choice, shown, api_visibility="private")
    else:
        gr.HTML(page(results, recipe), padding=False)
    gr.Markdown(LIMITS)


LIMITS = """
### What it cannot do

It was trained on 24 North American actors who say two sentences with an emotion they were told to act. Other languages it
has not learnt, and errs more often; real conversations and children are outside of what was measured; noise, rooms and
telephones were only simulated. It hears
how a voice sounds, not what a person feels: do not use it to judge people, in hiring, policing, medicine, insurance, at
work or at school.

### Licence and citation

Code: Apache-2.0. Weights: CC BY-NC-SA 4.0, as is RAVDESS, on which they were trained: Livingstone SR, Russo FA (2018). The
Ryerson Audio-Visual Database of Emotional Speech and Song (RAVDESS). PLoS ONE 13(5): e0196391.
<https://doi.org/10.1371/journal.pone.0196391>
"""


def _microphone_or_file(*, elem_id: str) -> gr.Audio:
    return gr.Audio(
        label="Your recording",
        sources=["microphone", "upload"],
        type="filepath",
        # The browser's own player: small, reachable by keyboard, and the picture's cursor can follow it.
        waveform_options=gr.WaveformOptions(show_recording_waveform=False),
        buttons=[],
        elem_id=elem_id,
    )


@contextmanager
def _one_sentence(path: str | None):
    """What is wrong with a recording reaches the visitor as one sentence."""
    if path is None:
        raise _error("There is no recording yet: record one, or upload a file.")
    try:
        yield
    except AudioError as error:
        # Where the server keeps it is nobody's business.
        raise _error(str(error).replace(path, Path(path).name)) from error
    except BusyError as error:
        raise _error(
            "Several long recordings are being heard already: try again in a few minutes, or give a shorter one."
        ) from error


def _error(message: str) -> gr.Error:
    return gr.Error(message, print_exception=False)
