"""Any recording of any length -> windows -> emotions over time, behind the interface of transformers' pipelines."""

import os
from collections.abc import Iterator

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline

from .audio import AudioError, describe, read_blocks, resample

# Trained on clips of 3 to 5 s. A recording is cut every WINDOW_S; a rest shorter than half of it joins the last window,
# so windows last from half to one and a half times WINDOW_S (a recording shorter than that is one window).
WINDOW_S = 4.0
# Below -80 dB of full scale there is nothing to hear in a 16-bit recording but its last bits.
SILENCE_PEAK = 1e-4


class SerPipeline(ChunkPipeline):
    """
    Emotions in recordings: paths, bytes, arrays or dicts; any format, rate, number of channels and length.

    Where the stock `AudioClassificationPipeline` hears one clip whole, this one reads in blocks and scores windows.

    Example:

    ```python
    >>> from ser_model.pretrained import load_pipeline

    >>> classifier = load_pipeline("ser-base")
    >>> classifier("clip.wav", top_k=1)
    [{'score': 0.95, 'label': 'calm'}]
    >>> classifier("call.mp3", timeline=True)["windows"][0]
    {'start_s': 0.0, 'end_s': 4.0, 'label': 'calm', 'score': 0.95, 'scores': {'neutral': 0.02, 'calm': 0.95, ...}}
    ```
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def __call__(self, inputs, **kwargs):
        """
        Args:
            inputs: A path, the bytes of a file, an array of shape (num_samples,) at the model's rate, a dict
                `{"array" or "raw": array, "sampling_rate": int}`, or a list of these.
            top_k (`int`, *optional*): How many labels to return, best first; all if left out.
            timeline (`bool`, defaults to `False`): Return the whole answer instead (see below).
            on_window (*optional*): Called after each window with the seconds heard so far, to show progress.

        Returns:
            A list of `{"score": probability, "label": str}`; with `timeline=True` a dict of `label`, `score`,
            `scores` {label: probability}, `duration_s`, and `windows`, a list of `start_s, end_s, label, score, scores`
            that covers the recording once without gaps. A silent window has `label`, `score` and `scores` `None`. The
            answer for the recording is the mean of its windows' probabilities, weighted by their duration.
            For a list of inputs, a list of these.

        Raises:
            `AudioError`: a recording that cannot be read, or in which there is only silence.
        """
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, top_k=None, timeline=False, on_window=None, **kwargs):
        if kwargs:
            raise TypeError(
                f"SerPipeline does not know {', '.join(sorted(kwargs))}: it takes top_k, timeline and on_window."
            )
        return {"on_window": on_window}, {}, {"top_k": top_k, "timeline": timeline}

    def preprocess(self, inputs, on_window=None) -> Iterator[dict]:
        rate = self.feature_extractor.sampling_rate
        start, has_sound = 0, False
        for window, is_last in _mark_last(cut_windows(self._blocks(inputs), round(WINDOW_S * rate))):
            times = {"start_s": start / rate, "end_s": (start + len(window)) / rate}
            is_silent = float(np.abs(window).max()) < SILENCE_PEAK
            has_sound = has_sound or not is_silent
            if is_last and not has_sound:
                raise AudioError(f"{self._name(inputs)} is silent: there is no voice to hear an emotion in.")
            if on_window is not None:
                on_window(times["end_s"])
            # Of silence one sample is enough: its answer does not count.
            heard = window[:1] if is_silent else window
            features = self.feature_extractor(heard, sampling_rate=rate, return_tensors="pt").to(self.dtype)
            yield {**features, **times, "is_silent": is_silent, "is_last": is_last}
            start += len(window)

    def _forward(self, model_inputs):
        about = {name: model_inputs.pop(name) for name in ("start_s", "end_s", "is_silent", "is_last")}
        if np.all(about["is_silent"]):  # hours of it would else take as long as hours of speech
            size = (len(model_inputs["input_features"]), self.model.config.num_labels)
            return {**about, "probabilities": torch.zeros(size)}
        return {**about, "probabilities": self.model(**model_inputs).logits.float().softmax(-1)}

    def postprocess(self, model_outputs, top_k=None, timeline=False):
        spans = np.array([output["end_s"] - output["start_s"] for output in model_outputs])
        silent = np.array([output["is_silent"] for output in model_outputs])
        probabilities = torch.cat([output["probabilities"] for output in model_outputs]).cpu().double().numpy()
        answer = self._answer(np.average(probabilities, 0, weights=spans * ~silent))
        if not timeline:
            ranked = sorted(answer["scores"].items(), key=lambda item: -item[1])
            return [{"score": score, "label": label} for label, score in ranked[:top_k]]
        nothing = {"label": None, "score": None, "scores": None}
        windows = [
            {"start_s": output["start_s"], "end_s": output["end_s"], **(nothing if s else self._answer(p))}
            for output, p, s in zip(model_outputs, probabilities, silent)
        ]
        return {**answer, "duration_s": windows[-1]["end_s"], "windows": windows}

    def _answer(self, probabilities: np.ndarray) -> dict:
        scores = {self.model.config.id2label[i]: float(p) for i, p in enumerate(probabilities)}
        label = max(scores, key=scores.get)
        return {"label": label, "score": scores[label], "scores": scores}

    def _blocks(self, inputs) -> Iterator[np.ndarray]:
        """Pieces of one mono waveform at the model's rate."""
        rate = self.feature_extractor.sampling_rate
        if isinstance(inputs, dict):
            array = inputs.get("array", inputs.get("raw"))
            if array is None or "sampling_rate" not in inputs:
                raise AudioError(
                    'A dict needs the waveform under "array" (or "raw") and its rate under "sampling_rate".'
                )
            yield resample(array, inputs["sampling_rate"], rate)
        elif isinstance(inputs, (np.ndarray, torch.Tensor)):
            yield resample(inputs, rate, rate)
        else:
            yield from read_blocks(inputs, rate)

    @staticmethod
    def _name(inputs) -> str:
        return describe(inputs) if isinstance(inputs, (str, os.PathLike)) else "The recording"


def cut_windows(blocks: Iterator[np.ndarray], window_size: int) -> Iterator[np.ndarray]:
    """
    Consecutive windows of `window_size` samples out of pieces of any size; the last has between half and one and a
    half times `window_size`, or all there is of a shorter recording.
    """
    buffered = np.zeros(0, np.float32)
    for block in blocks:
        buffered = np.concatenate([buffered, block])
        while len(buffered) >= window_size * 3 // 2:
            yield buffered[:window_size]
            buffered = buffered[window_size:]
    yield buffered


def _mark_last(items: Iterator) -> Iterator[tuple]:
    """Each item with whether it is the last one."""
    items = iter(items)
    current = next(items)
    for following in items:
        yield current, False
        current = following
    yield current, True
