"""Any recording of any length -> windows -> emotions over time, behind the interface of transformers' pipelines."""

import http.client
import itertools
import os
import tempfile
import urllib.request
from collections.abc import Iterator

import numpy as np
import torch
from transformers import AutoModelForAudioClassification
from transformers.pipelines.base import ChunkPipeline, PipelineRegistry

from .audio import AudioError, about_tracks, describe, read_blocks, resample
from .threads_ser import one_thread
from .voice import NoVoiceError, has_voice

# Trained on clips of 3 to 5 s. A recording is cut every WINDOW_S; a rest shorter than MIN_REST_S joins the last window. Of an
# extractor with a longest clip, windows last no longer than that, and a rest that does not fit is a window of its own.
WINDOW_S, MIN_REST_S = 4.0, 2.0
# Below -80 dB of full scale there is nothing to hear in a 16-bit recording but its last bits.
SILENCE_PEAK = 1e-4
EDGE_SIZE = 200  # samples at either end of a recording in which resampling may ring
MAX_DOWNLOAD_BYTES = 1_000_000_000
DOWNLOAD_TIMEOUT_S = 30.0  # without a byte


class SerPipeline(ChunkPipeline):
    """
    Emotions in recordings: paths, bytes, arrays or dicts; any format, rate, number of channels and length.

    Where the stock `AudioClassificationPipeline` hears one clip whole, this one reads in blocks and scores windows. It computes
    on one thread, whatever number PyTorch is set to, with what `model` and `feature_extractor` are at the time of the call.

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

    def __init__(self, *args, voice_only: bool | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.voice_only = self.model.config.voice_only if voice_only is None else voice_only

    def __call__(self, inputs, **kwargs):
        """
        Args:
            inputs: A path, the bytes of a file, a binary file, an array or tensor at the model's rate, of any shape and type
                that `audio.to_mono` takes, or a dict: `{"array" or "raw": sound, "sampling_rate": hertz}`, with whatever
                that takes, or `{"bytes": bytes}` or `{"path": path}` of a file as in a column of `datasets.Audio`. Or
                several of these: a list, a generator or a dataset.
            top_k (`int`, *optional*): How many labels to return, best first; all if left out.
            timeline (`bool`, defaults to `False`): Return the whole answer instead (see below).
            voice_only (`bool`, *optional*): Whether windows without a voice have no answer. As the pipeline was made if
                left out, and that is as the model's configuration says; without the package `silero-vad` only silence
                has none.
            allow_urls (`bool`, defaults to `False`): Fetch a path that starts with http:// or https:// from the network.
            batch_size (`int`, defaults to 1): Windows that the network hears at a time.
            on_window (*optional*): Called after each window with the seconds heard so far, to show progress.

        Returns:
            A list of `{"score": probability, "label": str}`; with `timeline=True` a dict of `label`, `score`,
            `scores` {label: probability}, `duration_s`, and `windows`, a list of `start_s, end_s, label, score, scores`
            that covers the recording once without gaps. A window that is silent, or has no voice in it, has `label`,
            `score` and `scores` `None`. The answer for the recording is the mean of the other windows' probabilities,
            weighted by their duration.
            For a list of inputs, a list of these; for a generator or a dataset, an iterator over them.

        Raises:
            `AudioError`: a recording that cannot be read; `NoVoiceError`, one of these: there is no voice in it.
        """
        if isinstance(inputs, (list, tuple)):
            return super().__call__(list(inputs), **kwargs) if len(inputs) else []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        """The options that were given, so that those of a call leave the others of `pipeline(...)` as they are."""
        if unknown := sorted(set(kwargs) - {"top_k", "timeline", "voice_only", "allow_urls", "on_window"}):
            raise TypeError(
                f"SerPipeline does not know {', '.join(unknown)}: it takes top_k, timeline, voice_only, allow_urls, "
                "on_window and batch_size."
            )
        top_k = kwargs.get("top_k")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k is {top_k!r}: give a number of labels, 1 or more, or None for all of them.")
        reading = {name: value for name, value in kwargs.items() if name in ("voice_only", "allow_urls", "on_window")}
        return reading, {}, {name: value for name, value in kwargs.items() if name not in reading}

    def get_inference_context(self):
        return torch.inference_mode  # a tenth faster than `torch.no_grad` on a network of so many small steps

    def get_iterator(self, inputs, num_workers, batch_size, *params):
        if isinstance(inputs, list) and batch_size == 1 and not num_workers:
            # The DataLoader around windows that come one by one would take a tenth of a clip's time.
            return (self.run_single(recording, *params) for recording in inputs)
        iterator = super().get_iterator(inputs, num_workers, batch_size, *params)
        windows = iterator.loader.loader
        windows.collate_fn = one_thread()(windows.collate_fn)
        return iterator

    def preprocess(self, inputs, voice_only=None, allow_urls=False, on_window=None) -> Iterator[dict]:
        rate = self.feature_extractor.sampling_rate
        voice_only = self.voice_only if voice_only is None else voice_only
        start, has_sound, has_answer = 0, False, False
        blocks = self._blocks(inputs, allow_urls)
        for window, is_last in _mark_last(cut_windows(blocks, *window_sizes(self.feature_extractor))):
            times = {"start_s": start / rate, "end_s": (start + len(window)) / rate}
            sound = not (self.model.config.sound_only and is_silent(window))
            with one_thread():
                counts = sound and (not voice_only or has_voice(window, rate))
                # Of what does not count one sample is enough.
                heard = window if counts else window[:1]
                features = self.feature_extractor(heard, sampling_rate=rate, return_tensors="pt")
            has_sound, has_answer = has_sound or sound, has_answer or counts
            if is_last and not has_answer:
                what = "has no voice in it" if has_sound else "is silent"
                about = f"{self._name(inputs)} {what}: there is no emotion to hear."
                raise NoVoiceError(about + about_tracks(inputs))
            if on_window is not None:
                on_window(times["end_s"])
            yield {**features, **times, "counts": counts, "is_last": is_last}
            start += len(window)

    @one_thread()
    def _forward(self, model_inputs, output_attentions=False):
        about = {name: model_inputs.pop(name) for name in ("start_s", "end_s", "counts", "is_last")}
        if not np.any(about["counts"]):  # hours of silence would else take as long as hours of speech
            size = (len(model_inputs["input_features"]), self.model.config.num_labels)
            return {**about, "probabilities": torch.zeros(size), "attentions": None}
        if any(module.training for module in self.model.modules()):  # as training, or an adapter put in, leaves them
            self.model.eval()
        if len(model_inputs["input_features"]) == 1:
            model_inputs.pop("attention_mask")  # one window has no padding
        # Where the weights are now, and in their precision; all of them may be integers of torch's own.
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(0))
        inputs = {name: x.to(like if x.is_floating_point() else like.device) for name, x in model_inputs.items()}
        outputs = self.model(**inputs, output_attentions=output_attentions)
        return {**about, "probabilities": outputs.logits.float().softmax(-1), "attentions": outputs.attentions}

    @one_thread()
    def postprocess(self, model_outputs, top_k=None, timeline=False):
        spans = np.array([output["end_s"] - output["start_s"] for output in model_outputs])
        counts = np.array([output["counts"] for output in model_outputs])
        probabilities = torch.cat([output["probabilities"] for output in model_outputs]).cpu().double().numpy()
        answer = self._answer(np.average(probabilities, 0, weights=spans * counts))
        if not timeline:
            ranked = sorted(answer["scores"].items(), key=lambda item: -item[1])
            return [{"score": score, "label": label} for label, score in ranked[:top_k]]
        nothing = {"label": None, "score": None, "scores": None}
        windows = [
            {"start_s": output["start_s"], "end_s": output["end_s"], **(self._answer(p) if c else nothing)}
            for output, p, c in zip(model_outputs, probabilities, counts)
        ]
        return {**answer, "duration_s": windows[-1]["end_s"], "windows": windows}

    def _answer(self, probabilities: np.ndarray) -> dict:
        scores = {self.model.config.id2label[i]: float(p) for i, p in enumerate(probabilities)}
        label = max(scores, key=scores.get)
        return {"label": label, "score": scores[label], "scores": scores}

    def _blocks(self, inputs, allow_urls: bool) -> Iterator[np.ndarray]:
        """Pieces of one mono waveform at the model's rate."""
        rate = self.feature_extractor.sampling_rate
        if isinstance(inputs, dict):
            inputs = _from_dict(inputs)
        elif hasattr(inputs, "get_all_samples"):  # what `datasets` decodes to where torchcodec is installed
            samples = inputs.get_all_samples()
            inputs = (samples.data, samples.sample_rate)
        elif isinstance(inputs, (np.ndarray, torch.Tensor)):
            inputs = (inputs, rate)
        if isinstance(inputs, tuple):
            yield resample(*inputs, rate)
        elif allow_urls and isinstance(inputs, str) and inputs.startswith(("http://", "https://")):
            with tempfile.TemporaryDirectory() as folder:
                path = _download(inputs, os.path.join(folder, "recording"))
                try:
                    yield from read_blocks(path, rate)
                except AudioError as error:
                    raise AudioError(str(error).replace(path, inputs)) from error
        else:
            yield from read_blocks(inputs, rate)

    @staticmethod
    def _name(inputs) -> str:
        return describe(inputs) if isinstance(inputs, (str, os.PathLike)) else "The recording"


def _from_dict(inputs: dict):
    """A dict's waveform with its rate, or, as in an undecoded column of `datasets`, its file's content or path."""
    waveform = inputs.get("raw") if inputs.get("array") is None else inputs["array"]
    if waveform is not None and "sampling_rate" in inputs:
        return waveform, inputs["sampling_rate"]
    if waveform is None and (source := inputs.get("bytes") or inputs.get("path")):
        return source
    raise AudioError(
        'A dict needs the waveform under "array" (or "raw") and its rate under "sampling_rate", or a file under "bytes" or '
        '"path".'
    )


def _download(url: str, path: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as response, open(path, "wb") as file:
            while piece := response.read(2**20):
                file.write(piece)
                if file.tell() > MAX_DOWNLOAD_BYTES:
                    raise AudioError(f"{url} has more than {MAX_DOWNLOAD_BYTES // 10**9} GB: cut it into parts.")
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{url} could not be fetched: {error}.") from error
    return path


def is_silent(waveform: np.ndarray) -> bool:
    """Whether there is nothing to hear in (num_samples,): around a constant no sample reaches `SILENCE_PEAK`."""
    inner = waveform[EDGE_SIZE:-EDGE_SIZE] if len(waveform) > 2 * EDGE_SIZE else waveform
    return float(np.ptp(inner)) < 2 * SILENCE_PEAK


def window_sizes(extractor) -> tuple[int, int]:
    """Samples in a window, and the fewest that are a window of their own when they are left over: fewer join the last one."""
    rate, limit_s = extractor.sampling_rate, extractor.max_duration_s
    size, longest = (round(min(duration_s, limit_s) * rate) for duration_s in (WINDOW_S, WINDOW_S + MIN_REST_S))
    return size, min(longest - size + 1, round(MIN_REST_S * rate))


def cut_windows(blocks: Iterator[np.ndarray], size: int, min_rest: int) -> Iterator[np.ndarray]:
    """
    Consecutive windows of `size` samples out of pieces of any size; fewer than `min_rest` samples that are left over join
    the last one. `web/windows.mjs` does the same, and `tests/windows.json` has the cases that both are tested on.
    """
    buffered = np.zeros(0, np.float32)
    for block in blocks:
        buffered = np.concatenate([buffered, block])
        while len(buffered) >= size + min_rest:
            yield buffered[:size]
            buffered = buffered[size:]
    yield buffered


def _mark_last(items: Iterator) -> Iterator[tuple]:
    """Each item with whether it is the last one."""
    items = iter(items)
    current = next(items)
    for following in items:
        yield current, False
        current = following
    yield current, True


# A registry of its own: the stock pipeline stays what other models get. `save_pretrained` then puts this file beside the
# weights and its name into their configuration.
PipelineRegistry({}, {}).register_pipeline(
    "audio-classification", SerPipeline, pt_model=AutoModelForAudioClassification, type="audio"
)
