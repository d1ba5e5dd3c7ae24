"""Recordings as they are outside the studio: what a test clip goes through before it is judged."""

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import tqdm

from ser_model import SerFeatureExtractor, SerForAudioClassification
from ser_model.audio import read_audio

from .corpus import told_clips
from .features import FeatureDataset, clip_features
from .metrics import scores
from .outside import add_noise, clip_peaks, reverberate, telephone
from .train import predict


def _encode(waveform: np.ndarray, rate: int, *, codec: str, container: str) -> np.ndarray:
    """Through a lossy codec at 32 kbit/s and back."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 32_000
        frame = av.AudioFrame.from_ndarray(waveform[None], format="flt", layout="mono")
        frame.sample_rate = rate
        for converted in av.AudioResampler(format=stream.format.name, rate=stream.rate).resample(frame):
            output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return read_audio(file.getvalue(), rate)


def _pad_silence(waveform: np.ndarray, rate: int, generator) -> np.ndarray:
    """Up to two seconds of digital silence before and after."""
    before, after = generator.integers(2 * rate, size=2)
    return np.pad(waveform, (before, after))


# name -> (waveform (num_samples,), rate in hertz, seeded generator) -> waveform
CONDITIONS: dict[str, Callable] = {
    "gain -20 dB": lambda waveform, rate, generator: waveform / np.float32(10),
    "gain +20 dB": lambda waveform, rate, generator: waveform * np.float32(10),
    "silence around": _pad_silence,
    "noise 20 dB": lambda waveform, rate, generator: add_noise(waveform, generator, snr_db=20),
    "noise 10 dB": lambda waveform, rate, generator: add_noise(waveform, generator, snr_db=10),
    "telephone 8 kHz": lambda waveform, rate, generator: telephone(waveform, rate),
    "MP3 32 kbit/s": lambda waveform, rate, generator: _encode(waveform, rate, codec="libmp3lame", container="mp3"),
    "Opus 32 kbit/s": lambda waveform, rate, generator: _encode(waveform, rate, codec="libopus", container="ogg"),
    # A furnished room's echo fades by 60 dB in 0.3 s.
    "small room": lambda waveform, rate, generator: reverberate(waveform, rate, generator, fade_s=0.3),
    "clipped peaks": lambda waveform, rate, generator: clip_peaks(waveform, part=0.25),
}


def score_conditions(
    folder: Path, run: dict, paths: dict[str, str], names: list[str], *, quiet: bool = False
) -> dict[str, dict[str, float]]:
    """
    Figures of a finished run on its held-out clips under each condition.

    Args:
        folder: Its checkpoint.
        run: What `train.train` says of it.
        paths: Clip's name -> file.
        names: Of `CONDITIONS`.

    Returns:
        For each condition the figures of `metrics.scores`.
    """
    model = SerForAudioClassification.from_pretrained(folder)
    extractor = SerFeatureExtractor.from_pretrained(folder)
    rate = extractor.sampling_rate
    labels = [model.config.label2id[clip["label"]] for clip in told_clips(run)]
    waveforms = [read_audio(paths[clip["clip"]], rate) for clip in told_clips(run)]
    figures = {}
    for name in tqdm.tqdm(names, desc=folder.name, unit="condition", leave=False, disable=quiet):
        changed = (CONDITIONS[name](w, rate, np.random.default_rng(i)) for i, w in enumerate(waveforms))
        features = [clip_features(extractor, waveform) for waveform in changed]
        figures[name] = scores(predict(model, FeatureDataset([features], labels)), np.array(labels))
    return figures


def mean_over_runs(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean of what `score_conditions` says of several runs."""
    return {
        name: {measure: float(np.mean([run[name][measure] for run in runs])) for measure in figures}
        for name, figures in runs[0].items()
    }
