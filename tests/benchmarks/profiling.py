"""
Where our time goes for one clip of 4 s, and how far that is from what the machine could do:
`python -m tests.benchmarks.profiling`, on one thread, in CPU time.

The floor is the network's operations at the rate of a large matrix product, and its bytes at the rate of a large copy, both
measured here.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

from ser_model.audio import read_audio
from ser_model.descriptors_ser import autocorrelation, harmonic_bins
from ser_model.feature_extraction_ser import LAG_SCALE
from ser_model.scoring import load_quietly
from ser_model.speech_ser import speech_frames
from ser_model.statistics_ser import clip_statistics
from tests.conftest import make_voice

RATE, CLIP_S, BATCH_SIZE = 16000, 4.0, 32
NUM_CALLS = 100


def cpu_ms(call: Callable[[], object], *, num_calls: int = NUM_CALLS) -> float:
    """Median CPU time of a call, in milliseconds: other processes on the machine hardly count."""
    took = []
    for _ in range(num_calls):
        start = time.process_time()
        call()
        took.append(time.process_time() - start)
    return 1000 * statistics.median(took)


@torch.inference_mode()
def module_ms(model: torch.nn.Module, inputs: dict[str, torch.Tensor], *, num_calls: int = NUM_CALLS) -> Counter:
    """CPU time by type of layer in one call, and under "between layers" the rest, in milliseconds."""
    seconds, started, handles = Counter(), {}, []

    def begin(layer, _):
        started[layer] = time.process_time()

    def end(layer, *_):
        seconds[type(layer).__name__] += time.process_time() - started[layer]

    for layer in model.modules():
        if next(layer.children(), None) is None:
            handles += [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]
    start = time.process_time()
    for _ in range(num_calls):
        model(**inputs)
    seconds["between layers"] = time.process_time() - start - sum(seconds.values())
    for handle in handles:
        handle.remove()
    return Counter({name: 1000 * value / num_calls for name, value in seconds.items()})


@torch.inference_mode()
def operations(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """Floating-point operations of convolutions and matrix products in one call, recurrent ones included."""
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


@torch.inference_mode()
def num_bytes(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """Weights read once, and what each layer puts out written and read once."""
    outputs = []

    def count(_, __, output):
        output = output[0] if isinstance(output, tuple) else output
        outputs.append(output.data if isinstance(output, torch.nn.utils.rnn.PackedSequence) else output)

    leaves = [layer for layer in model.modules() if next(layer.children(), None) is None]
    handles = [layer.register_forward_hook(count) for layer in leaves]
    model(**inputs)
    for handle in handles:
        handle.remove()
    tensors = [*model.parameters(), *model.buffers(), *inputs.values(), *outputs, *outputs]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def matrix_rate() -> float:
    """Operations a second of a large matrix product."""
    matrix = torch.randn(1024, 1024)
    return 2 * 1024**3 / (cpu_ms(lambda: matrix @ matrix, num_calls=10) / 1000)


def copy_rate() -> float:
    """Bytes a second, read and written, of a copy too large for the caches."""
    source = torch.zeros(64 * 2**20)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / (cpu_ms(lambda: target.copy_(source), num_calls=10) / 1000)


def print_parts(title: str, whole_ms: float, parts: dict[str, float]) -> None:
    print(f"\n{title}: {whole_ms:.2f} ms")
    for name, ms in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"  {name:<40}{ms:>8.3f} ms{ms / whole_ms:>8.0%}")


def profile_pipeline(classifier, folder: Path) -> None:
    extractor, model = classifier.feature_extractor, classifier.model
    path = str(folder / "clip.wav")
    clip = make_voice(CLIP_S, rate=48000)
    soundfile.write(path, np.stack([clip, clip], 1), 48000)
    soundfile.write(folder / "clip-16k.wav", make_voice(CLIP_S), RATE)
    waveform = read_audio(path, RATE)
    inputs = extractor(waveform, sampling_rate=RATE, return_tensors="pt")
    del inputs["attention_mask"]  # one clip has no padding
    whole_ms = cpu_ms(lambda: classifier(path))
    decode_ms = cpu_ms(lambda: soundfile.read(path, dtype="float32"))
    read_ms = cpu_ms(lambda: read_audio(path, RATE))
    features_ms = cpu_ms(lambda: extractor(waveform, sampling_rate=RATE, return_tensors="pt"))
    with torch.inference_mode():
        network_ms = cpu_ms(lambda: model(**inputs))
    parts = {
        "decoding": decode_ms,
        "downmix, checks and resampling": read_ms - decode_ms,
        "features": features_ms,
        "network": network_ms,
    }
    parts["pipeline around them"] = whole_ms - sum(parts.values())
    print_parts("path -> label", whole_ms, parts)


@torch.inference_mode()
def profile_extractor(extractor) -> None:
    waveform = torch.from_numpy(make_voice(CLIP_S))

    def spectrum():
        settings = {"window": extractor.window, "pad_mode": "constant", "return_complex": True}
        return torch.stft(waveform, extractor.n_fft, extractor.hop_length, **settings)

    bins = spectrum()
    power = bins.real.square() + bins.imag.square()
    mel_power = (power.T @ extractor.mel_filters)[None]
    mask = torch.ones(mel_power.shape[:2], dtype=torch.bool)
    lags = autocorrelation(power.T[None][..., harmonic_bins(extractor.n_fft, RATE)], extractor.lag_filters)
    frames = extractor._frame_features(power.T[None], mel_power, lags, None, None, mask)
    bands, lags = frames.split([extractor.num_mel_bins, extractor.num_lags], -1)
    parts = {
        "Fourier transforms": cpu_ms(spectrum),
        "power": cpu_ms(lambda: bins.real.square() + bins.imag.square()),
        "mel bands": cpu_ms(lambda: power.T @ extractor.mel_filters),
        "speech": cpu_ms(
            lambda: speech_frames(power.T[None], lags, mask, sampling_rate=RATE, hop_length=extractor.hop_length)
        ),
        "statistics": cpu_ms(lambda: clip_statistics(bands, lags / LAG_SCALE, mask)),
    }
    whole_ms = cpu_ms(lambda: extractor(waveform, sampling_rate=RATE))
    parts["checks, decibels, pitch, normalisation"] = whole_ms - sum(parts.values())
    print_parts("features", whole_ms, parts)


def profile_network(model, inputs: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        whole_ms = cpu_ms(lambda: model(**inputs))
    num_clips, num_frames = inputs["input_features"].shape[:2]
    clips = f"{num_clips} clip{'s' if num_clips > 1 else ''} of {num_frames} frames"
    print_parts(f"network, {clips}", whole_ms, module_ms(model, inputs))
    flops, moved = operations(model, inputs), num_bytes(model, inputs)
    floor_ms = max(1000 * flops / matrix_rate(), 1000 * moved / copy_rate())
    print(
        f"  {flops / 1e6:.0f} million operations take {1000 * flops / matrix_rate():.2f} ms at "
        f"{matrix_rate() / 1e9:.0f} thousand million a second; {moved / 1e6:.1f} MB take {1000 * moved / copy_rate():.2f} ms at "
        f"{copy_rate() / 1e9:.0f} GB a second: {whole_ms / floor_ms:.1f} times the floor"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.profiling", description=__doc__)
    parser.parse_args()
    classifier = load_quietly("ser-base")
    with tempfile.TemporaryDirectory() as folder:
        profile_pipeline(classifier, Path(folder))
    extractor = classifier.feature_extractor
    profile_extractor(extractor)
    for num_clips in (1, BATCH_SIZE):
        inputs = extractor([make_voice(CLIP_S)] * num_clips, sampling_rate=RATE, return_tensors="pt")
        del inputs["attention_mask"]  # clips of one length have no padding
        profile_network(classifier.model, dict(inputs))


if __name__ == "__main__":
    main()
