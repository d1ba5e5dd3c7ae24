"""`python -m train.export`: a checkpoint as one ONNX graph, from the waveform to the probabilities."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import logging

from ser_model import SerFeatureExtractor, SerForAudioClassification, SerPipeline
from ser_model.pipeline_ser import EDGE_SIZE, SILENCE_PEAK, window_sizes
from ser_model.pretrained import DEFAULT, load_pipeline
from ser_model.results import check_output, is_stream, output_file, write_whole
from ser_model.speech_ser import remove_rumble
from ser_model.voice import CHUNK_SIZE, CONTEXT_SIZE, VoiceDetector, load_detector

try:
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
except ImportError:
    onnx = None  # see `check_packages`

OPSET = 17  # the first that has STFT
# In probability; some statistics count rises and peaks, of which a rounding error may make one more or less.
TOLERANCE, STATISTICS_TOLERANCE, INT8_TOLERANCE = 1e-3, 0.03, 0.2
# The others take frames of the waveform apart, which ONNX has no operator for.
FEATURE_TYPES = ("log_mel", "log_mel_pitch", "mfcc")
INT8_TYPES = ["Conv", "Gemm", "LSTM", "MatMul"]
NETWORK = "network"  # how the names of the network's nodes begin: those of the extractor are never quantised


class ExportError(ValueError):
    """Why a checkpoint is not exported, in one sentence."""


def check_packages() -> None:
    """
    Raises:
        `ExportError`: those that exporting needs are not installed.
    """
    if onnx is None:
        raise ExportError("Exporting needs two more packages: pip install -r requirements-export.txt")


class WaveformClassifier(nn.Module):
    """What `SerFeatureExtractor` and `SerForAudioClassification` do one after the other, without a loop over clips."""

    def __init__(self, extractor: SerFeatureExtractor, network: SerForAudioClassification):
        super().__init__()
        self.extractor = extractor
        self.network = network
        angles = torch.arange(extractor.n_fft, dtype=torch.float64) * (2 * torch.pi / extractor.n_fft)
        self.register_buffer("period", torch.stack([angles.cos(), angles.sin()]).float())
        self.register_buffer("order", torch.arange(extractor.n_fft).float())

    def forward(self, waveform, lengths):
        """
        Args:
            waveform: (batch, num_samples) float32, finite, at the extractor's rate; the level does not matter.
            lengths: (batch,) int64, from 1 to num_samples: the samples of each row that count.

        Returns:
            (batch, num_labels) float32, probabilities.
        """
        waveform = self._prepare(waveform, lengths)
        mask = torch.arange(1 + waveform.shape[1] // self.extractor.hop_length)
        mask = mask < (1 + lengths // self.extractor.hop_length)[:, None]  # (batch, num_frames)
        inputs = self.extractor.describe(self._power(waveform), waveform, lengths, mask)
        return self.network(**inputs, return_dict=False)[0].softmax(-1)

    def _prepare(self, waveform, lengths):
        """Each clip with zeros after it, with peak 1 and without rumble if wanted."""
        inside = torch.arange(waveform.shape[1]) < lengths[:, None]
        waveform = waveform.masked_fill(~inside, 0.0)
        if self.extractor.relative_level:
            peak = waveform.abs().amax(1, keepdim=True)
            waveform = waveform / peak.where(peak > 0, torch.ones(()))
        if self.extractor.trim == "speech":
            waveform = remove_rumble(waveform, lengths, self.extractor.sampling_rate)
        return waveform

    def _power(self, waveform):
        """
        `descriptors_ser.power_spectrum` as a convolution with waves: ONNX Runtime's own transform, of frames whose length is
        no power of two, is rougher than torch's, by up to 8e-4 in the probabilities.
        """
        size = self.extractor.n_fft
        waves = self.extractor.window * self._waves()  # (n_fft + 2, n_fft)
        padded = F.pad(waveform[:, None], (size // 2, size // 2))
        parts = F.conv1d(padded, waves[:, None], stride=self.extractor.hop_length)  # (batch, n_fft + 2, num_frames)
        real, imaginary = parts.square().split(size // 2 + 1, dim=1)
        return (real + imaginary).transpose(1, 2)

    def _waves(self):
        """(n_fft + 2, n_fft): cosines, then sines. A graph makes them of one period when it is loaded, so that it stays small."""
        size = self.extractor.n_fft
        # As a product of matrices, which the exporter does not work out beforehand.
        steps = self.order[: size // 2 + 1, None] @ self.order[None]
        return self.period[:, steps.remainder(size).long()].flatten(0, 1)


class ChunkDetector(nn.Module):
    """What `VoiceDetector` does, without complex numbers."""

    def __init__(self, detector: VoiceDetector):
        super().__init__()
        self.detector = detector

    def forward(self, chunks):
        """
        Args:
            chunks: (num_chunks, `CONTEXT_SIZE` + `CHUNK_SIZE`) float32 at `RATE_HZ`, that follow one another; each begins
                with the end of the one before, the first with zeros.

        Returns:
            (num_chunks,) float32, the probability of a voice in each chunk.
        """
        padded = F.pad(chunks[:, None], (0, 64), mode="reflect")[:, 0]
        window = self.detector.window
        spectrum = torch.stft(padded, len(window), 128, window=window, center=False, return_complex=False)
        hidden = spectrum.square().sum(-1).sqrt()  # (num_chunks, 129, 4)
        for conv in (self.detector.conv1, self.detector.conv2, self.detector.conv3, self.detector.conv4):
            hidden = conv(hidden).relu()
        hidden = self.detector.lstm(hidden.permute(2, 0, 1))[0].relu()  # (1, num_chunks, 128)
        return self.detector.final_conv(hidden.transpose(1, 2)).sigmoid()[0, 0]


def export_voice_detector(output: Path) -> bool:
    """
    Writes `ChunkDetector` as a graph from `chunks` to `probabilities`, and says whether it did: without the package
    `silero-vad` there is none to write.
    """
    detector = load_detector()
    if detector is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "voice.onnx"
        chunks = torch.zeros(3, CONTEXT_SIZE + CHUNK_SIZE)
        _trace(ChunkDetector(detector), {"chunks": chunks}, path, dynamic_axes={"chunks": {0: "num_chunks"}})
        write_whole(output, path.read_bytes())
    return True


def export(checkpoint: str, output: Path, *, int8: bool = False) -> None:
    """
    Writes the graph: `waveform` (batch, num_samples) and `lengths` (batch,) to `probabilities` (batch, num_labels), as in
    `WaveformClassifier`. Its metadata hold `labels` (a JSON list), and how `SerPipeline` uses it: `window_settings`,
    `voice_only`, and `silence_peak` and `edge_size`, by which a window is silent (see `pipeline_ser.is_silent`); with a peak
    of 0 none is.

    Args:
        checkpoint: As of `load_pipeline`.
        int8: Also quantise the network's weights to eight bits; its activations are quantised while it runs.

    Raises:
        `ExportError`: an extractor or a network that this graph does not stand for.
        `OSError`, `ValueError`: the checkpoint cannot be loaded, or the output not be written.
    """
    check_packages()
    classifier = load_pipeline(checkpoint)
    extractor, network = classifier.feature_extractor, classifier.model
    for part, known in ((extractor, SerFeatureExtractor), (network, SerForAudioClassification)):
        if type(part) is not known:
            raise ExportError(f"{checkpoint} is not exported: it has {type(part).__name__}, not {known.__name__}.")
    if extractor.feature_type not in FEATURE_TYPES:
        raise ExportError(
            f"{checkpoint} is not exported: it hears {extractor.feature_type}, and a graph can hear {', '.join(FEATURE_TYPES)}."
        )
    settings = {
        "labels": json.dumps(list(network.config.id2label.values())),
        **window_settings(extractor),
        "voice_only": json.dumps(network.config.voice_only),
        "silence_peak": str(SILENCE_PEAK if network.config.sound_only else 0.0),
        "edge_size": str(EDGE_SIZE),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _trace_classifier(WaveformClassifier(extractor, network).eval(), path)
        if int8:
            _check(classifier, path, checkpoint)  # so that eight bits are blamed for nothing else
        model = _quantize(path) if int8 else onnx.load(path)
        onnx.helper.set_model_props(model, settings)
        _shorten_names(model.graph)
        onnx.save(model, path)
        _check(classifier, path, checkpoint, int8=int8)
        write_whole(output, path.read_bytes())


def window_settings(extractor: SerFeatureExtractor) -> dict[str, str]:
    """`sampling_rate` in hertz, `window_s` and `min_rest_s`, by which a recording is cut (see `pipeline_ser.cut_windows`)."""
    rate = extractor.sampling_rate
    size, min_rest = window_sizes(extractor)
    return {"sampling_rate": str(rate), "window_s": str(size / rate), "min_rest_s": str(min_rest / rate)}


def _trace_classifier(classifier: WaveformClassifier, path: Path) -> None:
    lengths = torch.tensor([classifier.extractor.sampling_rate, classifier.extractor.sampling_rate // 2])
    waveform = torch.randn(2, int(lengths.max()), generator=torch.Generator().manual_seed(0))
    axes = {
        "waveform": {0: "batch", 1: "num_samples"},
        "lengths": {0: "batch"},
        "probabilities": {0: "batch"},
    }
    _trace(classifier, {"waveform": waveform, "lengths": lengths}, path, dynamic_axes=axes)


def _trace(module: nn.Module, inputs: dict[str, torch.Tensor], path: Path, *, dynamic_axes: dict) -> None:
    with warnings.catch_warnings(), _silent_stderr():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=["probabilities"],
            dynamic_axes=dynamic_axes,
            opset_version=OPSET,
            dynamo=False,  # torch.export freezes the length of time
        )


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Both steps warn on the terminal of what might go wrong; whether it did is measured afterwards."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _check(classifier: SerPipeline, path: Path, checkpoint: str, *, int8: bool = False) -> None:
    """Refuses a graph that answers otherwise than the network: on clips of two lengths, loud within silence, and none."""
    rate = classifier.feature_extractor.sampling_rate
    t = np.arange(3 * rate) / rate
    sweep = 0.3 * np.sin(2 * np.pi * (150 + 60 * t) * t) * np.sin(2 * np.pi * 3 * t) ** 2
    # Without noise frames would be alike, and a rounding error count.
    noise = np.random.default_rng(0).standard_normal(len(t))
    sweep = (sweep + 1e-3 * noise).astype(np.float32)
    clips = [sweep, np.pad(sweep[: rate // 2], rate), np.zeros(rate, np.float32)]
    try:
        found = run(open_session(path), clips)
    except Exception as error:  # those of ONNX Runtime have nothing else in common
        reason = str(error).partition("\n")[0]
        raise ExportError(f"{checkpoint} is not exported: ONNX Runtime cannot run the graph ({reason}).") from error
    with torch.inference_mode():
        inputs = classifier.feature_extractor(clips, sampling_rate=rate, return_tensors="pt")
        expected = classifier.model(**inputs).logits.softmax(-1).numpy()
    difference = float(np.abs(found - expected).max())
    exact = STATISTICS_TOLERANCE if classifier.feature_extractor.statistics else TOLERANCE
    if not difference <= (INT8_TOLERANCE if int8 else exact):
        cause = (
            "eight bits are too few for it: leave out --int8"
            if int8
            else "its extractor or network does what the graph does not know"
        )
        raise ExportError(
            f"{checkpoint} is not exported: the graph's probabilities differ from the network's by {difference:.3f}, so "
            f"{cause}."
        )


def _quantize(path: Path) -> "onnx.ModelProto":
    names = [node.name for node in onnx.load(path).graph.node if node.name.startswith(f"/{NETWORK}/")]
    names += [f"{name}_MatMul" for name in names if name.endswith("Gemm")]  # what the quantiser makes of them first
    quantized = path.with_name("int8.onnx")
    with _silent_stderr():
        quantize_dynamic(
            path,
            quantized,
            op_types_to_quantize=INT8_TYPES,
            nodes_to_quantize=names,
            per_channel=True,
            weight_type=QuantType.QUInt8,
        )
    return onnx.load(quantized)


def _shorten_names(graph: "onnx.GraphProto") -> None:
    """Numbers for what nodes pass to each other: names that say where it was computed would be a sixth of a small graph."""
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}  # "" stands for an input left out
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    short = {name: name if name in kept else str(i) for i, name in enumerate(dict.fromkeys(names))}
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [short[name] for name in node.input]
        node.output[:] = [short[name] for name in node.output]
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    graph.ClearField("value_info")


def is_graph(path: Path) -> bool:
    """Whether `export` wrote it."""
    try:
        return {"labels", "window_s"} <= {entry.key for entry in onnx.load(path).metadata_props}
    except Exception:  # protobuf's own, of a file that is something else
        return False


def open_session(path: Path) -> "onnxruntime.InferenceSession":
    """An exported graph, ready to run on one thread: so small a network is slower on two."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session: "onnxruntime.InferenceSession", waveforms: list[np.ndarray]) -> np.ndarray:
    """Waveforms of any lengths, (num_samples,) each -> probabilities, (batch, num_labels)."""
    lengths = np.array([len(waveform) for waveform in waveforms])
    padded = np.zeros((len(waveforms), lengths.max()), np.float32)
    for row, waveform in zip(padded, waveforms):
        row[: len(waveform)] = waveform
    return session.run(["probabilities"], {"waveform": padded, "lengths": lengths})[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.export", description=__doc__)
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT,
        help="name of a recipe that ships, a folder, or USER/NAME on the Hub (default: %(default)s)",
    )
    parser.add_argument("--output", required=True, type=output_file(".onnx"), help="the .onnx file")
    parser.add_argument("--int8", action="store_true", help="weights of eight bits: a quarter of the size")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        check_packages()
        check_output(options.output, is_ours=is_graph)
        export(options.checkpoint, Path(options.output), int8=options.int8)
    except OSError as error:
        name = error.filename or options.output
        message = f"{name} cannot be opened or written: {error.strerror}." if error.strerror else error
        print(f"error: {message}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not is_stream(options.output):
        print(f"Exported: {options.output} ({Path(options.output).stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
