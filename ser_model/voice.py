"""Whether there is a voice in a sound: Silero's voice detector, by the weights in the wheel of `silero-vad`."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .audio import AudioError, resample

WEIGHTS = "silero_vad_16k.safetensors"
RATE_HZ = 16_000
CHUNK_SIZE = 512  # samples, 32 ms: what the detector gives one probability for
CONTEXT_SIZE = 64  # samples before a chunk that it hears as well
THRESHOLD = 0.5
# So much of a window must be voice, all in all: of one shorter than 2 s, that part.
VOICE_S, VOICE_SHARE = 0.25, 0.125
# Given only the loudest 0.3 s of a clip of RAVDESS, the detector misses the voice in one of ten; given 0.5 s, in one of
# thirty, and half speed finds most of these.
MIN_DURATION_S = 0.5
# Most windows with a voice (95 % of RAVDESS) have it where they are loudest; the others are heard through.
LOUD_BEFORE_S, LOUD_S = 0.2, 0.64
# Screams are higher than the voices it knows, until they are played at half their speed.
SLOWER = 2
# It takes some hums for a voice, but no voice keeps its loudness like that from one chunk to the next.
STEADY_DB = 1.0


class NoVoiceError(AudioError):
    """A recording can be read, and there is no voice in it."""


class VoiceDetector(nn.Module):
    """
    The network of silero-vad for 16 kHz, with the weights that its wheel has as safetensors, which are older than those
    of its TorchScript. Its own package hears chunk by chunk; here the chunks of a window go through the convolutions
    together, as products of matrices, which takes a tenth of the time.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(129, 128, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, kernel_size=3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, kernel_size=3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, kernel_size=3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final_conv = nn.Conv1d(128, 1, kernel_size=1)
        self.register_buffer("window", torch.hann_window(256), persistent=False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """(num_samples,) at `RATE_HZ` -> (num_chunks,), the probability of a voice in each chunk."""
        padded = F.pad(waveform, (CONTEXT_SIZE, -len(waveform) % CHUNK_SIZE))
        chunks = padded.unfold(0, CONTEXT_SIZE + CHUNK_SIZE, CHUNK_SIZE)  # (num_chunks, num_samples)
        frames = F.pad(chunks, (0, 64), mode="reflect").unfold(1, 256, 128)  # (num_chunks, 4, 256)
        hidden = torch.fft.rfft(frames * self.window).abs()  # (num_chunks, 4, 129)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            hidden = _convolve(conv, hidden).relu()
        hidden = self.lstm(hidden.transpose(0, 1))[0].relu()  # (1, num_chunks, 128)
        return F.linear(hidden, self.final_conv.weight[..., 0], self.final_conv.bias).sigmoid()[0, :, 0]


def _convolve(conv: nn.Conv1d, hidden: torch.Tensor) -> torch.Tensor:
    """`conv` along the second of (num_chunks, num_frames, channels), of which there are too few for `conv` to be quick."""
    taps = F.pad(hidden, (0, 0, 1, 1)).unfold(1, conv.kernel_size[0], conv.stride[0])
    return F.linear(taps.flatten(2), conv.weight.flatten(1), conv.bias)


@functools.cache
@torch.inference_mode(False)  # it is kept for callers outside the mode too, who may trace it
def load_detector() -> VoiceDetector | None:
    """`None` where `silero-vad` is not installed. The package is not imported: it would set PyTorch to one thread."""
    package = importlib.util.find_spec("silero_vad")
    folders = package.submodule_search_locations if package else []
    path = next((path for folder in folders if (path := Path(folder, "data", WEIGHTS)).exists()), None)
    if path is None:
        return None
    # Its LSTM cell is the only layer of an `nn.LSTM`; its first convolution is a Fourier transform under a Hann window.
    renamed = {
        name.replace("lstm_cell.", "lstm.") + ("_l0" if "lstm" in name else ""): weight
        for name, weight in load_file(path).items()
        if name != "stft_conv.weight"
    }
    detector = VoiceDetector()
    detector.load_state_dict(renamed)
    return detector.eval()


def has_voice(waveform: np.ndarray, sampling_rate: int) -> bool:
    """
    Whether there is a voice, spoken, sung or screamed, in (num_samples,) of mono sound, of any loudness. Always so in
    less than `MIN_DURATION_S`, and where `silero-vad` is not installed.
    """
    detector = load_detector()
    if detector is None or len(waveform) < MIN_DURATION_S * sampling_rate:
        return True
    if sampling_rate != RATE_HZ:
        waveform = resample(waveform, sampling_rate, RATE_HZ)
    waveform = waveform - waveform.mean()
    energies = _energies(waveform)
    if energies.max() <= 10 ** (STEADY_DB / 10) * energies.min():
        return False
    waveform /= np.abs(waveform).max()
    enough_s = min(VOICE_S, VOICE_SHARE * len(waveform) / RATE_HZ)
    return (
        _voice_s(detector, _loudest(waveform, energies)) >= enough_s
        or _voice_s(detector, waveform) >= enough_s
        or _voice_s(detector, resample(waveform, RATE_HZ, SLOWER * RATE_HZ)) >= SLOWER * enough_s
    )


@torch.inference_mode()
def _voice_s(detector: VoiceDetector, waveform: np.ndarray) -> float:
    probabilities = detector(torch.from_numpy(waveform))
    return float((probabilities >= THRESHOLD).sum()) * CHUNK_SIZE / RATE_HZ


def _energies(waveform: np.ndarray) -> np.ndarray:
    """Of each whole chunk, (num_chunks,)."""
    num_chunks = len(waveform) // CHUNK_SIZE
    return np.square(waveform[: num_chunks * CHUNK_SIZE]).reshape(num_chunks, CHUNK_SIZE).sum(1)


def _loudest(waveform: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """`LOUD_S`, from `LOUD_BEFORE_S` before the loudest chunk if the end is far enough; a shorter waveform whole."""
    start, size = energies.argmax() * CHUNK_SIZE - round(LOUD_BEFORE_S * RATE_HZ), round(LOUD_S * RATE_HZ)
    start = max(0, min(start, len(waveform) - size))
    return waveform[start : start + size]
