"""Recordings as they are outside the studio: what a test clip goes through before it is judged."""

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import scipy.signal
import soxr
import tqdm

from ser_model import SerFeatureExtractor, SerForAudioClassification
from ser_model.audio import read_audio

from .features import FeatureDataset
from .metrics import scores
from .ravdess import parse_name
from .train import predict

# The seconds in which a small furnished room's echo fades by 60 dB.
REVERBERATION_S = 0.3


def _change_gain(waveform: np.ndarray, rate: int, generator, *, gain_db: float) -> np.ndarray:
    return waveform * np.float32(10 ** (gain_db / 20))


def _add_noise(waveform: np.ndarray, rate: int, generator, *, snr_db: float) -> np.ndarray:
    """Pink noise, at `snr_db` below the clip's own power (its pauses included)."""
    spectrum = np.fft.rfft(generator.standard_normal(len(waveform)))
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(waveform))
    gain = np.sqrt((waveform**2).mean() / (pink**2).mean() * 10 ** (-snr_db / 10))
    return (waveform + gain * pink).astype(np.float32)


def _telephone(waveform: np.ndarray, rate: int, generator) -> np.ndarray:
    """300 to 3400 Hz at 8 kHz, the narrow band of ITU-T G.712."""
    narrow = soxr.resample(waveform, rate, 8000)
    band = scipy.signal.butter(4, [300, 3400], "bandpass", fs=8000, output="sos")
    return soxr.resample(scipy.signal.sosfilt(band, narrow).astype(np.float32), 8000, rate)


def _encode(waveform: np.ndarray, rate: int, generator, *, codec: str, container: str) -> np.ndarray:
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


def _reverberate(waveform: np.ndarray, rate: int, generator) -> np.ndarray:
    """Noise that fades by 60 dB in `REVERBERATION_S` for an echo, as loud in all as the direct sound."""
    t = np.arange(int(REVERBERATION_S * rate)) / rate
    echo = generator.standard_normal(len(t)) * 10 ** (-3 * t / REVERBERATION_S)
    echo[0] = np.sqrt((echo[1:] ** 2).sum())
    return scipy.signal.fftconvolve(waveform, echo).astype(np.float32)


def _clip_peaks(waveform: np.ndarray, rate: int, generator) -> np.ndarray:
    """Overdriven: whatever is louder than a quarter of the peak is cut off there."""
    limit = np.abs(waveform).max() / 4
    return waveform.clip(-limit, limit)


def _pad_silence(waveform: np.ndarray, rate: int, generator) -> np.ndarray:
    """Up to two seconds of digital silence before and after."""
    before, after = generator.integers(2 * rate, size=2)
    return np.pad(waveform, (before, after))


def _partial(function: Callable, **settings) -> Callable:
    return lambda waveform, rate, generator: function(waveform, rate, generator, **settings)


# name -> (waveform (num_samples,), rate in hertz, seeded generator) -> waveform
CONDITIONS: dict[str, Callable] = {
    "gain -20 dB": _partial(_change_gain, gain_db=-20),
    "gain +20 dB": _partial(_change_gain, gain_db=20),
    "silence around": _pad_silence,
    "noise 20 dB": _partial(_add_noise, snr_db=20),
    "noise 10 dB": _partial(_add_noise, snr_db=10),
    "telephone 8 kHz": _telephone,
    "MP3 32 kbit/s": _partial(_encode, codec="libmp3lame", container="mp3"),
    "Opus 32 kbit/s": _partial(_encode, codec="libopus", container="ogg"),
    "small room": _reverberate,
    "clipped peaks": _clip_peaks,
}


def score_conditions(runs: dict[Path, dict], paths: dict[str, str], names: list[str]) -> dict[str, dict[str, float]]:
    """
    Figures of finished runs on their held-out clips under each condition.

    Args:
        runs: Folder of each fold's checkpoint -> its run (see `train.train`).
        paths: Clip -> file.
        names: Of `CONDITIONS`.

    Returns:
        For each condition the mean over folds of the figures of `metrics.scores`.
    """
    by_fold = [_score_fold(folder, run, paths, names) for folder, run in runs.items()]
    return {
        name: {measure: float(np.mean([fold[name][measure] for fold in by_fold])) for measure in by_fold[0][name]}
        for name in names
    }


def _score_fold(folder: Path, run: dict, paths: dict[str, str], names: list[str]) -> dict[str, dict[str, float]]:
    model = SerForAudioClassification.from_pretrained(folder)
    extractor = SerFeatureExtractor.from_pretrained(folder)
    rate = extractor.sampling_rate
    labels = [model.config.label2id[parse_name(clip)["emotion"]] for clip in run["clips"]]
    waveforms = [read_audio(paths[clip], rate) for clip in run["clips"]]
    figures = {}
    for name in tqdm.tqdm(names, desc=folder.name, unit="condition", leave=False):
        changed = (CONDITIONS[name](w, rate, np.random.default_rng(i)) for i, w in enumerate(waveforms))
        features = [extractor(waveform, sampling_rate=rate)["input_features"][0] for waveform in changed]
        figures[name] = scores(predict(model, FeatureDataset([features], labels)), np.array(labels))
    return figures
