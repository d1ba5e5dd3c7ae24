"""Sounds and folders that tests make for themselves: no test needs RAVDESS or the network."""

import json
import os
from pathlib import Path

# Whatever reaches for the Hub meets a closed port. Not HF_HUB_OFFLINE, which closes the tests' own servers too.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import numpy as np
import pytest
import soundfile
import torch

from ser_model import SerConfig, SerFeatureExtractor, SerForAudioClassification
from train.ravdess import ACTORS
from train.recipe import load_recipe
from train.report import summarise

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]


def make_voice(duration_s: float, *, rate: int = 16000, pitch_hz: float = 150.0, seed: int = 0) -> np.ndarray:
    """Something like a voice: a gliding pulse train with a moving formant, in syllables, over a little noise."""
    generator = np.random.default_rng(seed)
    t = np.arange(int(duration_s * rate)) / rate
    pitch = pitch_hz * (1 + 0.2 * np.sin(2 * np.pi * 0.7 * t + seed))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 12) if k * pitch_hz * 1.2 < rate / 2)
    syllables = np.clip(np.sin(2 * np.pi * 3 * t + seed), 0, 1)
    return (0.2 * harmonics * syllables + 0.001 * generator.standard_normal(len(t))).astype(np.float32)


NO_VOICES = ("white noise", "brown noise", "tone", "mains hum", "sweep", "chord", "clicks", "engine")


def make_no_voice(kind: str, duration_s: float, *, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """One of `NO_VOICES`, with peak 0.5."""
    generator = np.random.default_rng(seed)
    t = np.arange(int(duration_s * rate)) / rate
    noise = generator.standard_normal(len(t))
    firing = 2 * np.pi * 30 * (t + 0.02 * np.sin(t))  # phase of an engine whose speed wavers
    sound = {
        "white noise": lambda: noise,
        "brown noise": lambda: np.cumsum(noise - noise.mean()),
        "tone": lambda: np.sin(2 * np.pi * 440 * t),
        "mains hum": lambda: sum(np.sin(2 * np.pi * 50 * k * t) / k for k in (1, 2, 3, 5, 7)),
        "sweep": lambda: np.sin(2 * np.pi * 50 * duration_s / np.log(100) * 100 ** (t / duration_s)),
        "chord": lambda: sum(np.sin(2 * np.pi * hz * t) for hz in (262, 330, 392)),
        "clicks": lambda: (generator.random(len(t)) < 5 / rate) + 1e-4 * noise,
        "engine": lambda: sum(np.sin(k * firing + k * k) / np.sqrt(k) for k in range(1, 20)) + 0.3 * noise,
    }[kind]()
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


@pytest.fixture(scope="session")
def voice() -> np.ndarray:
    return make_voice(3.0)


@pytest.fixture
def extractor() -> SerFeatureExtractor:
    return SerFeatureExtractor()


@pytest.fixture
def tiny_model() -> SerForAudioClassification:
    torch.manual_seed(0)
    config = SerConfig(num_cepstra=20, conv_channels=16, lstm_hidden_size=8, num_attention_heads=2)
    return SerForAudioClassification(config).eval()


def ravdess_names(*, vocal_channel: str = "01", actors=ACTORS) -> list[str]:
    """The names of RAVDESS's recordings, without suffix."""
    if vocal_channel == "02":
        actors = [actor for actor in actors if actor != 18]
    emotions = range(1, 9 if vocal_channel == "01" else 7)
    return [
        f"03-{vocal_channel}-{emotion:02d}-{intensity:02d}-{statement:02d}-{repetition:02d}-{actor:02d}"
        for actor in actors
        for emotion in emotions
        for intensity in ((1,) if emotion == 1 else (1, 2))
        for statement in (1, 2)
        for repetition in (1, 2)
    ]


def make_ravdess(folder: Path, *, actors=ACTORS, vocal_channel: str = "01", duration_s: float = 0.3) -> Path:
    """RAVDESS's folder tree with short sounds whose pitch tells the emotion."""
    sounds = {emotion: make_voice(duration_s, pitch_hz=100 + 40 * emotion, seed=emotion) for emotion in range(1, 9)}
    for name in ravdess_names(vocal_channel=vocal_channel, actors=actors):
        path = folder / f"Actor_{name[-2:]}" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sounds[int(name[6:8])], 16000)
    return folder


def make_result(folder: Path) -> Path:
    """A result file as training writes it, of a network that takes every second clip for the next emotion."""
    clips = ravdess_names()
    truth = np.array([int(name[6:8]) - 1 for name in clips])
    heard = (truth + np.arange(len(clips)) % 2) % 8
    run = {
        "fold": 1,
        "seed": 0,
        "clips": clips,
        "probabilities": (0.1 / 7 + (0.9 - 0.1 / 7) * np.eye(8)[heard]).tolist(),
        "train_seconds": 1.0,
        "history": [],
        "num_parameters": 762328,
        "num_bytes": 3070088,
        "versions": {},
        "data_fingerprint": "none",
    }
    result = summarise([run], load_recipe("ser-base"), protocol="speaker-independent", held_out="test")
    result["command"] = "python -m train.evaluate --recipe ser-base --protocol speaker-independent"
    path = folder / "ser-base.speaker-independent.json"
    path.write_text(json.dumps(result), encoding="utf-8")
    return path
