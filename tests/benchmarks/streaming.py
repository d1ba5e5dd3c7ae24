"""
What live use costs: `python -m tests.benchmarks.streaming [--data RAVDESS]`, on one thread, in CPU time.

For clips strung together, actor by actor (a made voice where no data is given), it prints what an answer costs from the
pipeline on the last 4 s and from `SerStream`, and by how much their probabilities differ. Then, what reuse from one answer to
the next could save at best, and what it would change:

- Features: frames begin with the window, whose ends they take for silence. Held on a grid of the whole recording instead,
  they change the answer: by how much is printed.
- Convolutions: what lies within their reach of either edge changes with every step, whatever the normalisation does; printed
  is what they cost on those frames alone.

Writes the same to `streaming.json` beside this file.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from ser_model.audio import read_audio, resample
from ser_model.descriptors_ser import power_spectrum
from ser_model.pipeline_ser import WINDOW_S
from ser_model.results import write_whole
from ser_model.scoring import load_quietly
from ser_model.streaming import SerStream
from ser_model.voice import NoVoiceError
from tests.conftest import make_voice

from .profiling import cpu_ms, module_ms

RATE, FED_RATE = 16000, 48000
ACTORS, NUM_CLIPS = range(1, 25), 10
RESULTS = Path(__file__).with_suffix(".json")
CONVOLUTIONS = ("Conv2d", "BatchNorm2d", "ReLU")


def recordings(data: str | None) -> list[np.ndarray]:
    """(num_samples,) at `FED_RATE`, one an actor."""
    if data is None:
        return [
            np.concatenate([make_voice(3.5, rate=FED_RATE, seed=seed + i) * 0.5**i for i in range(6)])
            for seed in range(3)
        ]
    strung = []
    for actor in ACTORS:
        files = sorted(Path(data).glob(f"*Speech*/Actor_{actor:02d}/03-01-*"))
        if not files:
            raise SystemExit(f"{data} holds no speech of actor {actor}: give the folder of RAVDESS.")
        strung.append(np.concatenate([read_audio(file, FED_RATE) for file in files[:: len(files) // NUM_CLIPS]]))
    return strung


def compare(classifier, sound: np.ndarray, every_s: float) -> list[dict]:
    """Both ways on one recording, a dict an answer."""
    stream, rows, piece = SerStream(classifier, sampling_rate=FED_RATE, every_s=every_s), [], round(every_s * FED_RATE)
    heard = resample(sound, FED_RATE, RATE)
    power = power_spectrum(
        torch.from_numpy(heard)[None], classifier.feature_extractor.window, classifier.feature_extractor.hop_length
    )
    for end in range(piece, len(sound) + 1, piece):
        started = time.process_time()
        answers = stream.feed(sound[end - piece : end])
        stream_ms = 1000 * (time.process_time() - started)
        for answer in answers:
            start = round(answer["start_s"] * RATE)
            window = heard[start : start + round(WINDOW_S * RATE)]
            last = {"array": sound[max(0, end - round(WINDOW_S * FED_RATE)) : end], "sampling_rate": FED_RATE}
            started = time.process_time()
            try:
                classifier(last)
                pipeline_ms = 1000 * (time.process_time() - started)
                offline = classifier(window, timeline=True)
            except NoVoiceError:
                continue
            grid = on_a_grid(classifier, power, start)
            rows.append(
                {
                    "stream_ms": stream_ms,
                    "pipeline_ms": pipeline_ms,
                    "stream_differs": difference(answer["scores"], offline["scores"]),
                    "grid_differs": difference(grid, offline["scores"]),
                    "grid_other_label": max(grid, key=grid.get) != offline["label"],
                }
            )
    return rows


def difference(scores: dict, others: dict) -> float:
    return max(abs(scores[label] - others[label]) for label in scores)


@torch.inference_mode()
def on_a_grid(classifier, power: torch.Tensor, start: int) -> dict:
    """The answer for the window at sample `start` from frames of the whole recording, those next to the window's own."""
    extractor, model = classifier.feature_extractor, classifier.model
    first = round(start / extractor.hop_length)
    power = power[:, first : first + 1 + round(WINDOW_S * RATE) // extractor.hop_length]
    inputs = extractor.describe(power, None, None, torch.ones(power.shape[:2], dtype=torch.bool))
    probabilities = model(**inputs).logits.softmax(-1)[0].tolist()
    return {model.config.id2label[i]: p for i, p in enumerate(probabilities)}


def reach(config) -> int:
    """How many frames to either side a convolution's result depends on."""
    frames, distance = 0, 1
    for stride in config.conv_strides:
        frames += config.conv_kernel_size // 2 * distance
        distance *= stride
        frames += config.conv_kernel_size // 2 * distance
    return frames


def bounds(classifier) -> dict:
    """What reuse could save at best, in milliseconds."""
    extractor, model = classifier.feature_extractor, classifier.model
    waveform = torch.from_numpy(make_voice(WINDOW_S))

    num_frames = 1 + len(waveform) // extractor.hop_length
    mask = torch.ones(1, num_frames, dtype=torch.bool)

    def frames():
        """All of the features that knows nothing of other frames, or hardly anything."""
        power = power_spectrum(waveform[None], extractor.window, extractor.hop_length)
        return extractor._frame_features(power, power @ extractor.mel_filters, None, None, mask)

    return {
        "features_ms": cpu_ms(lambda: extractor(waveform, sampling_rate=RATE)),
        "frames_ms": cpu_ms(frames),
        "convolutions_ms": convolutions_ms(model, num_frames),
        # What lies within reach of an edge needs as many frames again beside it.
        "convolutions_near_edges_ms": convolutions_ms(model, min(num_frames, 4 * reach(model.config))),
    }


def convolutions_ms(model, num_frames: int) -> float:
    num_kinds, num_contours, num_columns = model.config.num_statistics
    inputs = {
        "input_features": torch.randn(1, num_frames, model.config.feature_size),
        "statistics": torch.zeros(1, num_kinds + num_contours, num_columns),
    }
    parts = module_ms(model, inputs)
    return sum(parts[name] for name in CONVOLUTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.streaming", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", help="folder of RAVDESS")
    parser.add_argument("--every-s", type=float, default=0.5, help="(default: %(default)s)")
    options = parser.parse_args()
    classifier = load_quietly("ser-base")
    rows = [row for sound in recordings(options.data) for row in compare(classifier, sound, options.every_s)]
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    measured = {
        "answers": len(rows),
        "every_s": options.every_s,
        "pipeline_ms": np.median(values["pipeline_ms"]),
        "stream_ms": np.median(values["stream_ms"]),
        "stream_differs_at_most": values["stream_differs"].max(),
        "grid_differs_at_most": values["grid_differs"].max(),
        "grid_differs_in_95_of_100_at_most": np.quantile(values["grid_differs"], 0.95),
        "grid_changes_label_in": values["grid_other_label"].mean(),
        **bounds(classifier),
    }
    measured = {name: round(float(value), 4) for name, value in measured.items()}
    for name, value in measured.items():
        print(f"{name:<36}{value:>10g}")
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": 1}
    write_whole(RESULTS, (json.dumps({"machine": machine, **measured}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
