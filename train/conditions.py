"""Recordings as they are outside the studio: what a test clip goes through before it is judged."""

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import tqdm

from ser_model import SerFeatureExtractor, SerForAudioClassification, SerPipeline
from ser_model.audio import read_audio

from .corpus import told_clips
from .metrics import scores
from .outside import (
    add_noise,
    cheap_microphone,
    click,
    clip_peaks,
    equalise_at_random,
    pause,
    pause_place,
    reverberate,
    rumble,
    telephone,
)

CLEAN, JOINED = "as recorded", "two clips joined"


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


def _pause_with_room_tone(waveform: np.ndarray, rate: int, generator) -> np.ndarray:
    """A pause of 1 s in which there is pink noise, 40 dB below the clip."""
    place, tone = pause_place(waveform, rate), add_noise(np.ones(rate, np.float32), generator, snr_db=0) - 1
    level = np.sqrt(np.mean(waveform**2) / np.mean(tone**2)) / 100
    return np.insert(waveform, place, level * tone)


def _offset(waveform: np.ndarray, part: float) -> np.ndarray:
    return waveform + np.float32(part * np.abs(waveform).max())


# name -> (waveform (num_samples,), rate in hertz, seeded generator) -> waveform
CONDITIONS: dict[str, Callable] = {
    "gain -20 dB": lambda waveform, rate, generator: waveform / np.float32(10),
    "gain +20 dB": lambda waveform, rate, generator: waveform * np.float32(10),
    "silence around": _pad_silence,
    "pause of 1 s": lambda waveform, rate, generator: pause(waveform, rate, duration_s=1.0),
    "room tone in the pause": _pause_with_room_tone,
    "click before": lambda waveform, rate, generator: click(waveform, rate, generator, distance_s=0.3),
    "clicks around": lambda waveform, rate, generator: click(waveform, rate, generator, distance_s=0.3, after=True),
    "offset of 10 %": lambda waveform, rate, generator: _offset(waveform, 0.1),
    "offset of 50 %": lambda waveform, rate, generator: _offset(waveform, 0.5),
    "rumble": lambda waveform, rate, generator: rumble(waveform, rate, generator, part=0.3),
    "random equaliser": lambda waveform, rate, generator: equalise_at_random(waveform, rate, generator, range_db=6),
    "another microphone": cheap_microphone,
    "noise 20 dB": lambda waveform, rate, generator: add_noise(waveform, generator, snr_db=20),
    "noise 10 dB": lambda waveform, rate, generator: add_noise(waveform, generator, snr_db=10),
    "telephone 8 kHz": lambda waveform, rate, generator: telephone(waveform, rate),
    "MP3 32 kbit/s": lambda waveform, rate, generator: _encode(waveform, rate, codec="libmp3lame", container="mp3"),
    "Opus 32 kbit/s": lambda waveform, rate, generator: _encode(waveform, rate, codec="libopus", container="ogg"),
    # A furnished room's echo fades by 60 dB in 0.3 s.
    "small room": lambda waveform, rate, generator: reverberate(waveform, rate, generator, fade_s=0.3),
    "clipped peaks": lambda waveform, rate, generator: clip_peaks(waveform, part=0.25),
    # With the next clip of the same speaker and emotion; see `join_clips`.
    JOINED: lambda waveform, rate, generator: waveform,
}


def join_clips(waveforms: list[np.ndarray], clips: list[dict], rate: int) -> list[np.ndarray]:
    """Each clip, 0.3 s of silence, and the next clip of the same speaker and label, after the last the first."""
    groups = {}
    for i, clip in enumerate(clips):
        groups.setdefault((clip["speaker"], clip["label"]), []).append(i)
    following = {i: group[(n + 1) % len(group)] for group in groups.values() for n, i in enumerate(group)}
    silence = np.zeros(round(0.3 * rate), np.float32)
    return [np.concatenate([waveforms[i], silence, waveforms[following[i]]]) for i in range(len(clips))]


def score_conditions(
    folder: Path, run: dict, paths: dict[str, str], names: list[str], *, quiet: bool = False
) -> dict[str, dict[str, float]]:
    """
    Figures of a finished run on its held-out clips under each condition, as the pipeline answers, in windows.

    Args:
        folder: Its checkpoint.
        run: What `train.train` says of it.
        paths: Clip's name -> file.
        names: Of `CONDITIONS`.

    Returns:
        For each condition the figures of `metrics.scores`, and `same_label`: on which part of the clips the answer is that
        on the clip as it was recorded.
    """
    model = SerForAudioClassification.from_pretrained(folder)
    extractor = SerFeatureExtractor.from_pretrained(folder)
    pipeline = SerPipeline(
        model=model.eval(), feature_extractor=extractor, task="audio-classification", voice_only=False
    )
    rate, clips = extractor.sampling_rate, told_clips(run)
    labels = np.array([model.config.label2id[clip["label"]] for clip in clips])
    waveforms = [read_audio(paths[clip["clip"]], rate) for clip in clips]

    def answer(waveform: np.ndarray) -> list[float]:
        return list(pipeline(waveform, timeline=True)["scores"].values())

    clean, figures = None, {}
    for name in tqdm.tqdm([CLEAN, *names], desc=folder.name, unit="condition", leave=False, disable=quiet):
        sounds = join_clips(waveforms, clips, rate) if name == JOINED else waveforms
        change = CONDITIONS.get(name, lambda waveform, *_: waveform)
        answers = np.array([answer(change(w, rate, np.random.default_rng(i))) for i, w in enumerate(sounds)])
        clean = answers if name == CLEAN else clean
        if name != CLEAN:
            same = float((answers.argmax(1) == clean.argmax(1)).mean())
            figures[name] = {**scores(answers, labels), "same_label": same}
    return figures


def mean_over_runs(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean of what `score_conditions` says of several runs."""
    return {
        name: {measure: float(np.mean([run[name][measure] for run in runs])) for measure in figures}
        for name, figures in runs[0].items()
    }
