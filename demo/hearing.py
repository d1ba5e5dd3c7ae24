"""What the page knows of a recording: emotions over time, and where the network listened. Numbers only, no page."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ser_model import SerPipeline
from ser_model.audio import AudioError, read_blocks
from ser_model.pipeline_ser import window_sizes
from ser_model.voice import NoVoiceError

MAX_DURATION_S = 30 * 60  # a recording is held in memory while its picture is drawn
MAX_DECODED_VALUES = 200_000_000  # half an hour at 48 kHz in two channels has 173 million
# Below this probability the page says "unsure" and names the best guess.
UNSURE_BELOW = 0.4


@dataclass(frozen=True)
class Hearing:
    """
    waveform: (num_samples,) float32, mono.
    rate: Its samples a second.
    answer: As `SerPipeline` gives it with `timeline=True`; `None` if there is no voice.
    attention: (num_points,) over the whole recording, how many times more than evenly the network listened there (0
        where it did not look: silence at a window's ends); `None` if it has no attention over time.
    no_answer: The sentence that says why there is none.
    """

    waveform: np.ndarray
    rate: int
    answer: dict | None
    attention: np.ndarray | None
    no_answer: str = ""

    @property
    def duration_s(self) -> float:
        return len(self.waveform) / self.rate


# As `tqdm(iterable, total=..., desc=...)`: what tells a visitor how far a long recording is.
Progress = Callable[..., Iterable]
OnHeard = Callable[[float], None]


def _no_progress(iterable: Iterable, **_) -> Iterable:
    return iterable


def _nothing(_heard_s: float) -> None:
    pass


def hear(
    classifier: SerPipeline, path: str, *, progress: Progress = _no_progress, on_heard: OnHeard = _nothing
) -> Hearing:
    """
    Everything about one recording.

    Args:
        on_heard: Called now and then, while it is read and while it is listened to, with the seconds that are done.

    Raises:
        `AudioError`: it cannot be read, or is longer than `MAX_DURATION_S`.
    """
    waveform = read(path, classifier.feature_extractor.sampling_rate, on_heard=on_heard)
    return listen(classifier, waveform, progress=progress, on_heard=on_heard)


def listen(
    classifier: SerPipeline, waveform: np.ndarray, *, progress: Progress = _no_progress, on_heard: OnHeard = _nothing
) -> Hearing:
    """`hear`, of (num_samples,) at the model's rate."""
    rate = classifier.feature_extractor.sampling_rate
    windows = classifier.preprocess({"raw": waveform, "sampling_rate": rate}, on_window=on_heard)
    size, min_rest = window_sizes(classifier.feature_extractor)
    num_windows = max(1, 1 + (len(waveform) - min_rest) // size)
    try:
        # What the pipeline itself does, window by window, so that one sees how far it is.
        outputs = [
            classifier.forward(window, output_attentions=True)
            for window in progress(windows, total=num_windows, desc="Listening", unit="windows")
        ]
    except NoVoiceError as error:
        return Hearing(waveform, rate, None, None, str(error))
    answer = classifier.postprocess(outputs, timeline=True)
    return Hearing(waveform, rate, answer, _attention_over_time(classifier, waveform, outputs))


def read(path: str, rate: int, *, on_heard: OnHeard = _nothing) -> np.ndarray:
    """A whole recording, (num_samples,) float32; refused as soon as it proves longer than `MAX_DURATION_S`."""
    blocks, num_samples = [], 0
    for block in read_blocks(path, rate, max_decoded_values=MAX_DECODED_VALUES):
        num_samples += len(block)
        on_heard(num_samples / rate)
        if num_samples > MAX_DURATION_S * rate:
            raise AudioError(
                f"{Path(path).name} is longer than {MAX_DURATION_S // 60} minutes, the most this page takes: cut it, "
                "or use the shell command."
            )
        blocks.append(block)
    return np.concatenate(blocks)


def _attention_over_time(classifier: SerPipeline, waveform: np.ndarray, outputs: list[dict]) -> np.ndarray | None:
    """The mean over members and heads, on the recording's own time axis (see `Hearing.attention`)."""
    extractor = classifier.feature_extractor
    rate, hop_length, step = (
        extractor.sampling_rate,
        extractor.hop_length,
        math.prod(classifier.model.config.conv_strides),
    )
    curve = np.zeros(math.ceil(len(waveform) / hop_length))
    for output in outputs:
        if not output["counts"]:
            continue
        if output["attentions"] is None:
            return None
        weights = torch.cat(output["attentions"], 1).float().mean(1)[0].cpu().numpy()  # (time,)
        start, end = (round(output[name] * rate) for name in ("start_s", "end_s"))
        times_s = output["start_s"] + extractor.frame_times_s(
            waveform[start:end]
        )  # of the frames that the network hears
        points = np.minimum((times_s * rate / hop_length).astype(int), len(curve) - 1)
        curve[points] = np.interp(np.arange(len(points)), step * np.arange(len(weights)), weights * len(weights))
    return curve


def is_unsure(answer: dict) -> bool:
    return answer["score"] < UNSURE_BELOW
