"""The running answer on what a microphone hears, for live use."""

import numbers
from collections.abc import Iterator

import numpy as np
import soxr

from .audio import checked_rate, to_mono
from .pipeline_ser import WINDOW_S, SerPipeline
from .voice import NoVoiceError


class SerStream:
    """
    Answers about the last `WINDOW_S` seconds, every `every_s`, while samples come in.

    Each answer is `SerPipeline`'s on those same seconds, to within 1e-4 of a probability. Sound is resampled once, as it
    comes. Features and convolutions are computed anew, since reusing them would save a tenth of the time and change one
    label in 28, as `python -m tests.benchmarks.streaming` measures.

    Args:
        classifier: As `load_pipeline` gives it.
        sampling_rate: Of what is fed, in hertz, as in `audio.checked_rate`.
        every_s: From one answer to the next, in seconds.

    Raises:
        `ValueError`: an impossible rate; a step that is not above 0 or is longer than a window.

    Example:

    ```python
    >>> stream = SerStream(load_pipeline("ser-base"), sampling_rate=48000)
    >>> stream.feed(samples)
    [{'start_s': 0.0, 'end_s': 4.0, 'label': 'calm', 'score': 0.95, 'scores': {'neutral': 0.02, 'calm': 0.95, ...}}]
    ```
    """

    def __init__(self, classifier: SerPipeline, *, sampling_rate: int, every_s: float = 0.5):
        sampling_rate = checked_rate(sampling_rate, "The stream")
        if isinstance(every_s, bool) or not isinstance(every_s, numbers.Real) or not 0 < every_s <= WINDOW_S:
            raise ValueError(f"every_s is {every_s!r}: give more than 0 and at most {WINDOW_S:g} seconds.")
        self.classifier = classifier
        self.rate = classifier.feature_extractor.sampling_rate
        self._resampler = soxr.ResampleStream(sampling_rate, self.rate, 1)
        self._window_size = round(WINDOW_S * self.rate)
        self._step = max(1, round(every_s * self.rate))
        self._waveform = np.zeros(0, np.float32)  # what later windows still need
        self._start = 0  # of it, in samples since the first

    def feed(self, samples) -> list[dict]:
        """
        Args:
            samples: What came since the last call: an array, tensor or bytes of any length, shape and type that
                `audio.to_mono` takes.

        Returns:
            The answers that are due now, the earlier first, none before `WINDOW_S` seconds were heard: `start_s`,
            `end_s`, `label`, `score` and `scores` as in a window of `SerPipeline`; without a voice the last three are
            `None`.

        Raises:
            `AudioError`: another shape or type, or NaN or infinite samples; the stream goes on without them.
        """
        samples = to_mono(samples, "What is fed")
        self._waveform = np.concatenate([self._waveform, self._resampler.resample_chunk(samples)])
        return [self._answer(start_s, window) for start_s, window in self._due()]

    def _due(self) -> Iterator[tuple[float, np.ndarray]]:
        while len(self._waveform) >= self._window_size:
            yield self._start / self.rate, self._waveform[: self._window_size]
            self._waveform = self._waveform[self._step :]
            self._start += self._step

    def _answer(self, start_s: float, window: np.ndarray) -> dict:
        times = {"start_s": start_s, "end_s": start_s + WINDOW_S}
        try:
            answer = self.classifier(window, timeline=True)
        except NoVoiceError:
            return {**times, "label": None, "score": None, "scores": None}
        return {**times, **{name: answer[name] for name in ("label", "score", "scores")}}
