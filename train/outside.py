"""
What happens to a voice outside the studio: noise, echo, a narrow band, peaks too loud for the recorder.

Waveforms are (num_samples,) float32; chance comes from a `numpy.random.Generator`.
"""

import numpy as np
import scipy.signal
import soxr

TELEPHONE_RATE = 8000


def add_noise(waveform: np.ndarray, generator, *, snr_db: float, slope: float = 1.0) -> np.ndarray:
    """
    Noise at `snr_db` below the clip's own power (its pauses included), whose power falls as frequency to the `slope`: 0
    is white, 1 pink, 2 brown.
    """
    spectrum = np.fft.rfft(generator.standard_normal(len(waveform)))
    noise = np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 1) ** (slope / 2), len(waveform))
    gain = np.sqrt((waveform**2).mean() / (noise**2).mean() * 10 ** (-snr_db / 10))
    return (waveform + gain * noise).astype(np.float32)


def reverberate(waveform: np.ndarray, rate: int, generator, *, fade_s: float, direct: float = 1.0) -> np.ndarray:
    """Noise that fades by 60 dB in `fade_s` for an echo; the direct sound is `direct` times as strong as all of it."""
    t = np.arange(int(fade_s * rate)) / rate
    echo = generator.standard_normal(len(t)) * 10 ** (-3 * t / fade_s)
    echo[0] = direct * np.sqrt((echo[1:] ** 2).sum())
    return scipy.signal.fftconvolve(waveform, echo).astype(np.float32)


def limit_band(waveform: np.ndarray, rate: int, *, low_hz: float, high_hz: float) -> np.ndarray:
    band = scipy.signal.butter(4, [low_hz, high_hz], "bandpass", fs=rate, output="sos")
    return scipy.signal.sosfilt(band, waveform).astype(np.float32)


def telephone(waveform: np.ndarray, rate: int, *, low_hz: float = 300, high_hz: float = 3400) -> np.ndarray:
    """Through 8 kHz and back: the narrow band of ITU-T G.712, and nothing at all above."""
    narrow = soxr.resample(waveform, rate, TELEPHONE_RATE)
    return soxr.resample(limit_band(narrow, TELEPHONE_RATE, low_hz=low_hz, high_hz=high_hz), TELEPHONE_RATE, rate)


def clip_peaks(waveform: np.ndarray, *, part: float) -> np.ndarray:
    """Whatever is louder than this part of the peak is cut off there."""
    limit = np.abs(waveform).max() * part
    return waveform.clip(-limit, limit)


def record_outside(waveform: np.ndarray, rate: int, generator) -> np.ndarray:
    """
    A clip in some room, amid some noise, by telephone or through a cheap microphone, overdriven: each of them or not, as
    chance has it. The noises are those between a quiet and a loud street.
    """
    if generator.random() < 0.3:
        fade_s, direct = generator.uniform(0.1, 0.6), generator.uniform(0.7, 2.0)
        waveform = reverberate(waveform, rate, generator, fade_s=fade_s, direct=direct)
    if generator.random() < 0.7:
        snr_db, slope = generator.uniform(3, 30), generator.uniform(0, 1.5)
        waveform = add_noise(waveform, generator, snr_db=snr_db, slope=slope)
    band = generator.random()
    if band < 0.3:
        low_hz, high_hz = generator.uniform(200, 400), generator.uniform(3000, 3800)
        waveform = telephone(waveform, rate, low_hz=low_hz, high_hz=high_hz)
    elif band < 0.5:
        low_hz, high_hz = generator.uniform(50, 400), generator.uniform(0.25, 0.45) * rate
        waveform = limit_band(waveform, rate, low_hz=low_hz, high_hz=high_hz)
    if generator.random() < 0.25:
        waveform = clip_peaks(waveform, part=generator.uniform(0.15, 0.7))
    return waveform
