"""
What happens to a voice outside the studio: pauses, clicks, noise, echo, another microphone, a narrow band, peaks too loud for the
recorder.

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


def pause_place(waveform: np.ndarray, rate: int) -> int:
    """Where one would pause: the quietest 20 ms of the middle half."""
    first, end = len(waveform) // 4, 3 * len(waveform) // 4
    energy = np.convolve(np.square(waveform, dtype=np.float64), np.ones(rate // 50), "same")
    return first + int(energy[first:end].argmin())


def pause(waveform: np.ndarray, rate: int, *, duration_s: float, place: int | None = None) -> np.ndarray:
    """With digital silence at `place`, or where one would pause."""
    place = pause_place(waveform, rate) if place is None else place
    return np.insert(waveform, place, np.zeros(round(duration_s * rate), waveform.dtype))


def click(waveform: np.ndarray, rate: int, generator, *, distance_s: float, after: bool = False) -> np.ndarray:
    """With 5 ms of noise as loud as its peak, that long before it (and as long after it), in silence."""
    noise = generator.standard_normal(round(0.005 * rate))
    noise = np.pad(noise * np.abs(waveform).max() / np.abs(noise).max(), (rate // 10, 0))
    silence = np.zeros(round(distance_s * rate))
    parts = [noise, silence, waveform, *([silence, noise[::-1]] if after else [])]
    return np.concatenate(parts).astype(np.float32)


def rumble(waveform: np.ndarray, rate: int, generator, *, part: float) -> np.ndarray:
    """Over a hum of 20 to 45 Hz whose peak is `part` of its own: wind, a lorry, a hand on the microphone."""
    hum = np.sin(2 * np.pi * (generator.uniform(20, 45) * np.arange(len(waveform)) / rate + generator.random()))
    return (waveform + part * np.abs(waveform).max() * hum).astype(np.float32)


def equalise(waveform: np.ndarray, rate: int, gains_db: np.ndarray, bands_hz: np.ndarray) -> np.ndarray:
    """With these gains at these frequencies, and between them by straight lines over the logarithm of frequency."""
    spectrum = np.fft.rfft(waveform)
    place = np.log(np.fft.rfftfreq(len(waveform), 1 / rate) + 20)
    gain = 10 ** (np.interp(place, np.log(np.asarray(bands_hz) + 20), gains_db) / 20)
    return np.fft.irfft(spectrum * gain, len(waveform)).astype(np.float32)


OCTAVES_HZ = 50.0 * 2.0 ** np.arange(9)  # up to 12.8 kHz


def equalise_at_random(waveform: np.ndarray, rate: int, generator, *, range_db: float) -> np.ndarray:
    """By a smooth curve, a random walk from octave to octave that is `range_db` from its mean at most."""
    walk = generator.standard_normal(len(OCTAVES_HZ)).cumsum()
    walk -= walk.mean()
    return equalise(waveform, rate, walk / np.abs(walk).max() * range_db, OCTAVES_HZ)


def cheap_microphone(waveform: np.ndarray, rate: int, generator) -> np.ndarray:
    """One of a laptop: no bass, shrill at 4 kHz, nothing above 7 kHz, quiet and loud drawn together, and a hiss."""
    waveform = limit_band(waveform, rate, low_hz=150, high_hz=min(7000, 0.45 * rate))
    waveform = equalise(waveform, rate, [0, 0, 8, 0], [50, 1500, 4000, 8000])
    peak = np.abs(waveform).max()
    loudness = np.sqrt(np.convolve(np.square(waveform / peak), np.ones(rate // 20) / (rate // 20), "same") + 1e-4)
    return add_noise(waveform * loudness**-0.3, generator, snr_db=35)


def record_outside(waveform: np.ndarray, rate: int, generator) -> np.ndarray:
    """
    A clip with a pause or a click, through some microphone, in some room, amid some noise, by telephone, overdriven: each of
    them or not, as chance has it. The noises are those between a quiet room and a loud street.
    """
    chance, uniform = generator.random, generator.uniform
    waveform = np.pad(waveform, (int(generator.integers(rate // 64)), 0))  # frames begin anywhere
    if chance() < 0.25:
        waveform = pause(waveform, rate, duration_s=uniform(0.15, 1.5))
    if chance() < 0.6:
        waveform = equalise_at_random(waveform, rate, generator, range_db=uniform(0, 10))
    if chance() < 0.35:
        waveform = reverberate(waveform, rate, generator, fade_s=uniform(0.1, 0.6), direct=uniform(0.5, 2.0))
    if chance() < 0.1:
        waveform = clip_peaks(waveform, part=uniform(0.2, 0.7))
    if chance() < 0.5:
        waveform = add_noise(waveform, generator, snr_db=uniform(8, 35), slope=uniform(0, 2))
    band = chance()
    if band < 0.12:
        waveform = telephone(waveform, rate, low_hz=uniform(150, 350), high_hz=uniform(3000, 3800))
    elif band < 0.25:
        waveform = limit_band(waveform, rate, low_hz=uniform(30, 200), high_hz=uniform(0.22, 0.47) * rate)
    if chance() < 0.05:
        waveform = click(waveform, rate, generator, distance_s=0.25)
    return waveform
