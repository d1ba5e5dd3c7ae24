"""From a recording to a mono waveform: decoding, downmix, resampling, limits. The one place that opens audio files."""

import io
import math
import numbers
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
MAX_BLOCK_VALUES = 4_000_000  # over all channels: a header may claim a thousand of them
MAX_SAMPLE = 1e12  # full scale is 1, or 2**31 where integers were kept as floats; beyond, resampling overflows
# How files begin that libsndfile may open: WAV, FLAC and Ogg. All else is left to PyAV: MP3, about which libsndfile talks
# to the terminal, CAF, on which damaged it crashes, and the many other formats that it knows and hardly anyone has tried.
SOUNDFILE_STARTS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS")
# Containers that PyAV may open. Playlists are not among them: they could make it fetch other files or addresses.
CONTAINERS = (
    "aac,ac3,aiff,amr,asf,au,avi,caf,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,wav,w64"
)


class AudioError(ValueError):
    """What is wrong with a recording, in one sentence for the person who gave it."""


class _Reader(io.BufferedReader):
    """A damaged header may send a decoder to before the file's start: soundfile would print a traceback about that."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return self.tell()


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
    A recording as consecutive pieces of one mono waveform, in memory that does not grow with its length. Of a file cut
    short comes what its format still lets decode.

    Args and pieces are as in `read_audio`.

    Raises:
        `AudioError`: there is no such regular file, no decodable sound in it, NaN or infinite samples, or it is
            shorter than `MIN_DURATION_S` or longer than `MAX_DURATION_S`.
    """
    name = describe(source)
    resampler, num_samples = None, 0
    for block, rate in _decode(source, name):
        if resampler is None:
            resampler = soxr.ResampleStream(checked_rate(rate, name), sampling_rate, 1)
        num_samples += len(block)
        _check_not_too_long(num_samples, rate, name)
        yield resampler.resample_chunk(_downmix(block, name))
    if num_samples == 0:
        raise AudioError(f"{name} holds no sound: it has no samples.")
    if num_samples < MIN_DURATION_S * rate:
        raise AudioError(f"{name} is too short: it needs at least {MIN_DURATION_S * 1000:.0f} ms of sound.")
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def resample(sound, orig_rate: float, sampling_rate: int) -> np.ndarray:
    """
    Sound in memory, checked, downmixed and resampled as a file would be.

    Args:
        sound: As in `to_mono`.
        orig_rate, sampling_rate: Its rate, as in `checked_rate`, and the rate wanted, in hertz.

    Raises:
        `AudioError`: an impossible shape, type or rate; NaN or infinite samples; too short or too long.
    """
    name = "The waveform"
    waveform, orig_rate = to_mono(sound, name), checked_rate(orig_rate, name)
    if len(waveform) < MIN_DURATION_S * orig_rate:
        raise AudioError(f"{name} is too short: it needs at least {MIN_DURATION_S * 1000:.0f} ms of sound.")
    _check_not_too_long(len(waveform), orig_rate, name)
    return soxr.resample(waveform, orig_rate, sampling_rate)


def to_mono(sound, name: str) -> np.ndarray:
    """
    Sound as audio libraries give it, of any length, as (num_samples,) float32: the mean of the channels.

    Args:
        sound: An array, a tensor or nested lists of shape (num_samples,), (num_samples, channels) or (channels, num_samples).
            There are never more channels than samples: (2, 2) are two samples of two channels, (1, 2) two samples of one.
            Floats, in [-1, 1] by custom, or integers of 8, 16 or 32 bits at full scale. Or bytes, as of PyAudio: 16-bit
            integers of one channel.
        name: How a message names it.

    Raises:
        `AudioError`: another shape or type; NaN or infinite samples.
    """
    samples = _as_float(sound, name)
    if samples.ndim not in (1, 2):
        raise AudioError(
            f"{name} has shape {samples.shape}: give (num_samples,), (num_samples, channels) or (channels, num_samples)."
        )
    if samples.size == 0:
        return np.zeros(0, np.float32)
    if samples.ndim == 1:
        samples = samples[:, None]
    elif samples.shape[0] < samples.shape[1]:
        samples = samples.T
    return _downmix(samples, name)


def describe(source) -> str:
    """How a message names a source: on one line, whatever the name holds."""
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else getattr(source, "name", None)
    if not isinstance(name, str) or not name:
        return "The recording"
    return name if name.isprintable() else repr(name)


def _decode(source, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of (num_samples, channels) float32 with their rate: by soundfile, or by PyAV what soundfile cannot open."""
    with _open_binary(source, name) as file:
        start = file.read(4)
        if not start:
            raise AudioError(f"{name} is empty.")
        file.seek(0)
        sound = _open_with_soundfile(file) if start in SOUNDFILE_STARTS else None
        if sound is None:
            file.seek(0)
            yield from _decode_with_av(file, name)
        else:
            with sound:
                yield from _decode_with_soundfile(sound, name)


def _open_with_soundfile(file) -> soundfile.SoundFile | None:
    try:
        sound = soundfile.SoundFile(file)
    except (soundfile.LibsndfileError, OSError):
        return None
    # A recorder that was stopped hard leaves the length 0 in its header: PyAV then reads to the end of the file.
    return sound if sound.frames else None


def _decode_with_soundfile(sound: soundfile.SoundFile, name: str) -> Iterator[tuple[np.ndarray, int]]:
    # Not `SoundFile.blocks`: it believes the length in the header, and fills up a shorter file with stale memory.
    block_size = max(1, min(int(BLOCK_S * sound.samplerate), MAX_BLOCK_VALUES // sound.channels))
    while True:
        try:
            block = sound.read(block_size, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{name} is damaged or cut short: decoding stopped with “{error}” Check that the file is whole."
            ) from error
        if len(block) == 0:
            return
        yield block, sound.samplerate


def _decode_with_av(file, name: str) -> Iterator[tuple[np.ndarray, int]]:
    try:
        with av.open(file, options={"format_whitelist": CONTAINERS, "protocol_whitelist": ""}) as container:
            if not container.streams.audio:
                raise AudioError(f"{name} has no sound track.")
            yield from _join_frames(_convert_frames(_decode_packets(container, name)))
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise AudioError(
            f"{name} is not a recording that can be read: use WAV, FLAC, MP3, OGG, M4A or WebM, and check that the file "
            "is whole."
        ) from error


def _decode_packets(container: av.container.InputContainer, name: str) -> Iterator[av.AudioFrame]:
    """The sound's frames; a damaged packet is skipped, as players do, unless most are."""
    num_good, num_bad = 0, 0
    for packet in container.demux(audio=0):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            num_bad += 1
            continue
        num_good += bool(frames)
        yield from frames
    if num_bad > num_good:
        raise AudioError(f"{name} is damaged: most of its sound cannot be decoded. Check that the file is whole.")


def _convert_frames(frames: Iterator[av.AudioFrame]) -> Iterator[tuple[np.ndarray, int]]:
    """Each decoded frame as (num_samples, channels) float32, at the rate of the first one: a stream may change its mind."""
    rate, kind, converter = None, None, None
    for frame in frames:
        rate = rate or frame.sample_rate
        if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
            # Interleaved: PyAV gives a pointer to nowhere for the ninth plane of a planar frame.
            converter = av.AudioResampler(format="flt", rate=rate)
        for converted in converter.resample(frame):
            yield converted.to_ndarray().reshape(-1, converted.layout.nb_channels), rate


def _join_frames(frames: Iterator[tuple[np.ndarray, int]]) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of about a second out of frames of a few milliseconds, which would be slow to resample one by one."""
    joined, num_samples = [], 0
    for samples, rate in frames:
        if joined and (num_samples >= rate or samples.shape[1] != joined[0].shape[1]):
            yield np.concatenate(joined), rate
            joined, num_samples = [], 0
        joined.append(samples)
        num_samples += len(samples)
    if joined:
        yield np.concatenate(joined), rate


def _open_binary(source, name: str):
    """A seekable binary file over any accepted source."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _Reader(io.BytesIO(source))
    if not isinstance(source, (str, os.PathLike)):
        content = source.read() if hasattr(source, "read") else None
        if not isinstance(content, bytes):
            raise AudioError(f"A recording is a path, bytes or a binary file, not {type(source).__name__}.")
        return _Reader(io.BytesIO(content))
    if os.fspath(source).startswith(("http://", "https://")):
        raise AudioError(f"{name} is an address: download the file first, nothing is fetched from the network here.")
    try:
        mode = Path(source).stat().st_mode
        if not stat.S_ISREG(mode):
            raise AudioError(
                f"{name} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}: give an audio file."
            )
        return _Reader(open(source, "rb", buffering=0))
    except FileNotFoundError as error:
        raise AudioError(f"{name} does not exist: check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(f"{name} cannot be opened: {reason}.") from error


def _as_float(sound, name: str) -> np.ndarray:
    """The same numbers as float32, integers as parts of their full scale."""
    if hasattr(
        sound, "is_floating_point"
    ):  # a tensor, perhaps on a GPU, with a gradient, or of a type that NumPy does not have
        sound = sound.detach().cpu()
        sound = sound.float() if sound.is_floating_point() else sound
    elif _is_bytes(sound):
        content = bytes(sound)
        if len(content) % 2:
            raise AudioError(f"{name} has an odd number of bytes: give 16-bit integers, of two bytes each.")
        sound = np.frombuffer(content, np.int16)
    try:
        samples = np.asarray(sound)
    except (TypeError, ValueError, RuntimeError) as error:  # a ragged list, say
        raise AudioError(f"{name} is no array of numbers: {str(error).splitlines()[0]}") from error
    if samples.dtype.kind in "iu" and samples.dtype.itemsize <= 4:
        limits = np.iinfo(samples.dtype)
        middle = 0 if limits.min else (limits.max + 1) // 2
        return ((samples - np.float64(middle)) / ((limits.max - limits.min + 1) / 2)).astype(np.float32)
    if samples.dtype.kind != "f":
        kind = samples.dtype if samples.ndim else type(sound).__name__
        raise AudioError(f"{name} is {kind}: give an array of numbers, floats or 8 to 32-bit integers at full scale.")
    with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
        return samples.astype(np.float32)


def _is_bytes(sound) -> bool:
    """Whether it is memory without a type, such as `bytes` or the buffers of sounddevice's raw streams."""
    if hasattr(sound, "__array__"):
        return False
    try:
        return memoryview(sound).format == "B"
    except TypeError:
        return False


def checked_rate(rate, name: str) -> int:
    """
    A sampling rate in hertz: a whole number, of whatever type.

    Raises:
        `AudioError`: it is none, or not from `MIN_RATE_HZ` to `MAX_RATE_HZ`.
    """
    number = rate.item() if getattr(rate, "ndim", None) == 0 else rate  # of NumPy or PyTorch
    hertz = number if isinstance(number, numbers.Real) and not isinstance(number, bool) else math.nan
    if MIN_RATE_HZ <= hertz <= MAX_RATE_HZ and hertz == int(hertz):
        return int(hertz)
    example = round(1000 * hertz) if MIN_RATE_HZ <= 1000 * hertz <= MAX_RATE_HZ else 44_100  # it may be in kilohertz
    shown = repr(number) if len(repr(number)) < 40 else type(number).__name__
    raise AudioError(
        f"{name} has sampling rate {shown}: give hertz, a whole number from {MIN_RATE_HZ} to {MAX_RATE_HZ}, such as "
        f"{example}."
    )


def _check_not_too_long(num_samples: int, rate: int, name: str) -> None:
    if num_samples > MAX_DURATION_S * rate:
        raise AudioError(f"{name} is longer than {MAX_DURATION_S // 3600} hours: cut it into parts.")


def _downmix(block: np.ndarray, name: str) -> np.ndarray:
    """(num_samples, channels) -> (num_samples,), refusing what is not a number."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        # Few channels are quicker one by one, many row by row. A product of matrices would wait for several threads.
        channels = block.shape[1]
        mono = (sum(block.T) if channels < 8 else block.sum(1)) / np.float32(channels)
    if not (np.abs(mono) < MAX_SAMPLE).all():
        raise AudioError(f"{name} contains NaN or infinite samples, or some too large for a sound: export it again.")
    return np.ascontiguousarray(mono)
