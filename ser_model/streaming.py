"""The running answer on what a microphone hears, for live use."""

from collections.abc import Iterator

import numpy as np
import soxr

from .audio import AudioError
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
        sampling_rate: Of what is fed, in hertz.
        every_s: From one answer to the next, in seconds.

    Raises:
        `ValueError`: a rate that is not above 0; a step that is not above 0 or is longer than a window.

    Example:

    ```python
    >>> stream = SerStream(load_pipeline("ser-base"), sampling_rate=48000)
    >>> stream.feed(samples)
    [{'start_s': 0.0, 'end_s': 4.0, 'label': 'calm', 'score': 0.95, 'scores': {'neutral': 0.02, 'calm': 0.95, ...}}]
    ```
    """

    def __init__(self, classifier: SerPipeline, *, sampling_rate: int, every_s: float = 0.5):
        if sampling_rate <= 0:
            raise ValueError(f"sampling_rate is {sampling_rate}: give what is fed, in hertz, such as 48000.")
        if not 0 < every_s <= WINDOW_S:
            raise ValueError(f"every_s is {every_s}: give more than 0 and at most {WINDOW_S:g} seconds.")
        self.classifier = classifier
        self.rate = classifier.feature_extractor.sampling_rate
        self._resampler = soxr.ResampleStream(sampling_rate, self.rate, 1)
        self._window_size = round(WINDOW_S * self.rate)
        self._step = max(1, round(every_s * self.rate))
        self._waveform = np.zeros(0, np.float32)  # what later windows still need
        self._start = 0  # of it, in samples since the first

    def feed(self, samples: np.ndarray) -> list[dict]:
        """
        Args:
            samples: (num_samples,) float in [-1, 1] by custom, mono, what came since the last call; of any length.

        Returns:
            The answers that are due now, the earlier first, none before `WINDOW_S` seconds were heard: `start_s`,
            `end_s`, `label`, `score` and `scores` as in a window of `SerPipeline`; without a voice the last three are
            `None`.

        Raises:
            `AudioError`: not (num_samples,), or NaN or infinite samples; the stream goes on without them.
        """
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1:
            raise AudioError(f"What is fed has shape (num_samples,), mono, not {samples.shape}: average the channels.")
        if not np.isfinite(samples).all():
            raise AudioError("What is fed contains NaN or infinite samples: check the microphone's driver.")
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
