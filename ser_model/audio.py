"""From a recording to a mono waveform: decoding, downmix, resampling, limits. The one place that opens audio files."""

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

try:
    import av
    import soundfile
    import soxr
except ImportError as error:
    raise ImportError("Reading recordings needs three packages: pip install av soundfile soxr") from error

MAX_DURATION_S = 10 * 3600
MIN_DURATION_S = 0.05
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
BLOCK_S = 10.0
# Containers that PyAV may open. Playlists are not among them: they could make it fetch other files or addresses.
CONTAINERS = (
    "aac,ac3,aiff,amr,asf,au,avi,caf,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,wav,w64"
)


class AudioError(ValueError):
    """What is wrong with a recording, in one sentence for the person who gave it."""


def read_audio(source, sampling_rate: int) -> np.ndarray:
    """
    A whole recording as one mono waveform.

    Args:
        source: Path (`str` or `os.PathLike`), the file's content (`bytes`), or a binary file object.
        sampling_rate: Rate of the result, in hertz.

    Returns:
        (num_samples,) float32, the mean of the channels; peaks above 1 are kept.

    Raises:
        `AudioError`: as `read_blocks`.
    """
    return np.concatenate(list(read_blocks(source, sampling_rate)))


def read_blocks(source, sampling_rate: int) -> Iterator[np.ndarray]:
    """
    A recording as consecutive pieces of one mono waveform, in memory that does not grow with its length.

    Args and pieces are as in `read_audio`.

    Raises:
        `AudioError`: there is no such regular file, no decodable sound in it, NaN or infinite samples, or it is
            shorter than `MIN_DURATION_S` or longer than `MAX_DURATION_S`.
    """
    name = describe(source)
    resampler, num_samples = None, 0
    for block, rate in _decode(source, name):
        if resampler is None:
            resampler = soxr.ResampleStream(_checked_rate(rate, name), sampling_rate, 1)
        num_samples += len(block)
        if num_samples > MAX_DURATION_S * rate:
            raise AudioError(f"{name} is longer than {MAX_DURATION_S // 3600} hours: cut it into parts.")
        yield resampler.resample_chunk(_downmix(block, name))
    if num_samples == 0:
        raise AudioError(f"{name} holds no sound: it has no samples.")
    if num_samples < MIN_DURATION_S * rate:
        raise AudioError(f"{name} is too short: it needs at least {MIN_DURATION_S * 1000:.0f} ms of sound.")
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def resample(waveform: np.ndarray, orig_rate: int, sampling_rate: int) -> np.ndarray:
    """
    A waveform in memory, checked, downmixed and resampled as a file would be.

    Args:
        waveform: (num_samples,) or (num_samples, channels), float in [-1, 1] by custom, or integers at full scale.
        orig_rate, sampling_rate: Its rate and the rate wanted, in hertz.

    Raises:
        `AudioError`: an impossible shape, type or rate; NaN or infinite samples; too short.
    """
    waveform = np.asarray(waveform)
    if np.issubdtype(waveform.dtype, np.integer):
        waveform = waveform / np.float32(np.iinfo(waveform.dtype).max + 1.0)
    elif not np.issubdtype(waveform.dtype, np.floating):
        raise AudioError(f"A waveform is an array of numbers, not of {waveform.dtype}.")
    if waveform.ndim not in (1, 2):
        raise AudioError(f"A waveform has shape (num_samples,) or (num_samples, channels), not {waveform.shape}.")
    name = "The waveform"
    mono = _downmix(waveform.reshape(len(waveform), -1).astype(np.float32), name)
    if len(mono) < MIN_DURATION_S * _checked_rate(orig_rate, name):
        raise AudioError(f"{name} is too short: it needs at least {MIN_DURATION_S * 1000:.0f} ms of sound.")
    return soxr.resample(mono, orig_rate, sampling_rate)


def describe(source) -> str:
    """How a message names a source."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return getattr(source, "name", None) or "The recording"


def _decode(source, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of (num_samples, channels) float32 with their rate: by soundfile, or by PyAV what soundfile cannot open."""
    with _open_binary(source, name) as file:
        start = file.tell()
        try:
            sound = soundfile.SoundFile(file)
        except (soundfile.LibsndfileError, OSError):
            file.seek(start)
            yield from _decode_with_av(file, name)
            return
        with sound:
            try:
                yield from (
                    (block, sound.samplerate)
                    for block in sound.blocks(int(BLOCK_S * sound.samplerate), dtype="float32", always_2d=True)
                )
            except soundfile.LibsndfileError as error:
                raise AudioError(f"{name} is damaged: decoding stopped with “{error}”") from error


def _decode_with_av(file, name: str) -> Iterator[tuple[np.ndarray, int]]:
    try:
        with av.open(file, options={"format_whitelist": CONTAINERS, "protocol_whitelist": ""}) as container:
            if not container.streams.audio:
                raise AudioError(f"{name} has no sound track.")
            to_float = av.AudioResampler(format="fltp")
            for frame in container.decode(audio=0):
                for converted in to_float.resample(frame):
                    yield converted.to_ndarray().T, converted.sample_rate
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise AudioError(
            f"{name} is not a recording that can be read: use WAV, FLAC, MP3, OGG, M4A or WebM, and check that the file "
            "is whole."
        ) from error


def _open_binary(source, name: str):
    """A seekable binary file over any accepted source."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        if not hasattr(source, "read"):
            raise AudioError(f"A recording is a path, bytes or a binary file, not {type(source).__name__}.")
        return io.BytesIO(source.read())
    if os.fspath(source).startswith(("http://", "https://")):
        raise AudioError(f"{name} is an address: download the file first, nothing is fetched from the network here.")
    try:
        mode = Path(source).stat().st_mode
        if not stat.S_ISREG(mode):
            raise AudioError(
                f"{name} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}: give an audio file."
            )
        return open(source, "rb")
    except FileNotFoundError as error:
        raise AudioError(f"{name} does not exist: check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(f"{name} cannot be opened: {reason}.") from error


def _checked_rate(rate, name: str) -> int:
    if not isinstance(rate, (int, np.integer)) or not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise AudioError(
            f"{name} has sampling rate {rate!r}: expected a whole number from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz."
        )
    return int(rate)


def _downmix(block: np.ndarray, name: str) -> np.ndarray:
    """(num_samples, channels) -> (num_samples,), refusing what is not a number."""
    mono = block.mean(1) if block.shape[1] > 1 else block[:, 0]
    if not np.isfinite(mono).all():
        raise AudioError(f"{name} contains NaN or infinite samples: export it again.")
    return np.ascontiguousarray(mono)
