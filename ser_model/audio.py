"""From a recording to a mono waveform: decoding, downmix, resampling, limits. The one place that opens audio files."""

import io
import math
import numbers
import os
import re
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
MAX_PACKET_BYTES = 2 * MAX_BLOCK_VALUES
MAX_CHANNELS = 64  # that FFmpeg can convert
# Values that take as long to decode as a packet by itself, broken or of one sample, and as a change of format.
PACKET_COST, FORMAT_COST = 500, 50_000
MAX_PARTS = 1_000
MAX_SAMPLE = 1e12  # full scale is 1, or 2**31 where integers were kept as floats; beyond, resampling overflows
MAX_WEAKENING = (
    10  # the mean of channels that do not cancel has a fourth of the loudest one's power, of eight an eighth
)
# libsndfile takes a third of FFmpeg's time for a clip in a WAV that is a short header and samples of these types, of so
# many bytes. All else is FFmpeg's: libsndfile believes in headers that lie about where the sound ends.
PLAIN_WAV_BYTES = {"PCM_U8": 1, "ALAW": 1, "ULAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
MAX_HEADER_BYTES = 4_096
# How a file begins that may have others of its kind appended, by recorders of streams or by `cat`. Each is decoded by
# itself: FFmpeg stops where the rate or the channels change, and does not trim the end of any but the last.
PART_STARTS = (
    re.compile(rb"OggS\0[\2\6]"),
    re.compile(rb"fLaC[\0\x80]\0\0\x22"),
    re.compile(rb"RIFF....WAVE", re.DOTALL),
)
# Containers that FFmpeg may open. Playlists are not among them: they could make it fetch other files or addresses.
CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,avr,caf,dss,dts,eac3,epaf,flac,flv,gsm,iff,ircam,loas,matroska,webm,mov,mp4,m4a,3gp,"
    "3g2,mj2,mp3,mpeg,mpegts,mxf,nistsphere,nut,ogg,pvf,qcp,rm,sds,sox,tta,voc,w64,wav,wtv,wv,wve"
)
OPTIONS = {
    **{"format_whitelist": CONTAINERS, "protocol_whitelist": ""},
    # Look far for streams that no header announces: a broadcast's sound may begin after its pictures.
    **{"probesize": "50000000", "analyzeduration": str(MAX_DURATION_S * 10**6), "scan_all_pmts": "1"},
    "max_probe_packets": "4",  # thirty of a WAV would else be tried as something else
    "max_samples": str(MAX_BLOCK_VALUES),  # in a frame, over all channels
}


class AudioError(ValueError):
    """What is wrong with a recording, in one sentence for the person who gave it."""


class _Part(io.RawIOBase):
    """
    The bytes `start` to `end` of a file as a file of their own, which raises nothing, since soundfile would print that and
    go on. A damaged header may send a decoder to before the start: it then stays where it is. Where the disk fails, the
    file ends, and `error` tells.
    """

    def __init__(self, file, start: int, end: int):
        self.file, self.start, self.size, self.at, self.error = file, start, end - start, 0, None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        to = (0, self.at, self.size)[whence] + offset
        self.at = to if to >= 0 else self.at
        return self.at

    def readinto(self, buffer) -> int:
        try:
            self.file.seek(self.start + self.at)
            content = self.file.read(max(0, min(len(buffer), self.size - self.at)))
        except OSError as error:
            self.error, content = error, b""
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)


class _Allowance:
    """How many values may still be decoded, on behalf of whoever has to share the processor."""

    def __init__(self, max_values: int | None, name: str):
        self.left, self.max_values, self.name = max_values, max_values, name

    def spend(self, values: int) -> None:
        if self.max_values is None:
            return
        self.left -= values
        if self.left < 0:
            raise AudioError(
                f"{self.name} has more than {self.max_values:,} values (seconds × rate × channels), the most that is "
                "decoded here: convert it to mono at 16 kHz, or cut it into parts."
            )


def read_audio(source, sampling_rate: int) -> np.ndarray:
    """
    A whole recording as one mono waveform.

    Args:
        source: Path (`str` or `os.PathLike`), the file's content (`bytes`), or a binary file object.
        sampling_rate: Rate of the result, in hertz.

    Returns:
        (num_samples,) float32, the mean of the channels, or the loudest where they cancel in the mean; peaks above 1 are
        kept.

    Raises:
        `AudioError`: as `read_blocks`.
    """
    return np.concatenate(list(read_blocks(source, sampling_rate)))


def read_blocks(source, sampling_rate: int, *, max_decoded_values: int | None = None) -> Iterator[np.ndarray]:
    """
    A recording as consecutive pieces of one mono waveform, in memory that does not grow with its length. Of a file cut
    short comes what its format still lets decode; of several sound tracks, the one that is marked as default.

    Args and pieces are as in `read_audio`.
        max_decoded_values: Bound on the work: seconds × rate × channels, with something added for each packet.

    Raises:
        `AudioError`: there is no such regular file, no decodable sound in it, NaN or infinite samples, or it is
            shorter than `MIN_DURATION_S`, longer than `MAX_DURATION_S`, or more work than `max_decoded_values`.
    """
    try:
        yield from _resample_blocks(source, sampling_rate, max_decoded_values)
    except AudioError as error:
        raise AudioError(f"{error}{about_tracks(source)}") from error


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
    _check_not_too_long(len(waveform) / orig_rate, name)
    return soxr.resample(waveform, orig_rate, sampling_rate)


def to_mono(sound, name: str) -> np.ndarray:
    """
    Sound as audio libraries give it, of any length, as (num_samples,) float32, mixed as in `read_audio`.

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


def about_tracks(source) -> str:
    """What to add to a refusal of a recording with several sound tracks, of which one was heard; of others, nothing."""
    try:
        with _open_binary(source, "") as file, _open_with_av(_split(file)[0]) as container:
            tracks = container.streams.audio
            if len(tracks) > 1:
                number = tracks.index(_best_track(container)) + 1
                return f" It has {len(tracks)} sound tracks, and number {number} was heard: keep only the one with the voice."
    except Exception:  # the refusal itself has said more than what is wrong here
        pass
    return ""


def _resample_blocks(source, sampling_rate: int, max_decoded_values: int | None) -> Iterator[np.ndarray]:
    name = describe(source)
    duration_s, rate, resampler = 0.0, None, None
    for block, block_rate in _decode(source, name, _Allowance(max_decoded_values, name)):
        if block_rate != rate:  # at first, and where a stream changes its mind
            if resampler is not None:
                yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            rate = checked_rate(block_rate, name)
            resampler = soxr.ResampleStream(rate, sampling_rate, 1)
        duration_s += len(block) / rate
        _check_not_too_long(duration_s, name)
        yield resampler.resample_chunk(_downmix(block, name))
    if not duration_s:
        raise AudioError(f"{name} holds no sound: it has no samples.")
    if duration_s < MIN_DURATION_S:
        raise AudioError(f"{name} is too short: it needs at least {MIN_DURATION_S * 1000:.0f} ms of sound.")
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _decode(source, name: str, allowance: _Allowance) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of (num_samples, channels) float32 with their rate."""
    try:
        with _open_binary(source, name) as file:
            parts = _split(file)
            if not parts[0].size:
                raise AudioError(f"{name} is empty.")
            if len(parts) > MAX_PARTS:
                raise AudioError(f"{name} is more than {MAX_PARTS:,} files in one: take it apart.")
            for part in parts:
                try:
                    if sound := _open_plain_wav(part):
                        yield from _decode_with_soundfile(sound, allowance)
                    else:
                        yield from _decode_with_av(part, name, allowance)
                except (av.error.InvalidDataError, av.error.EOFError):
                    if part is parts[0]:
                        raise  # what cannot be opened later on is skipped, as a damaged packet is
                if part.error:
                    raise part.error
    except AudioError:
        raise
    except Exception as error:  # there is no list of what decoders raise
        raise AudioError(
            f"{name} is not a recording that can be read: use WAV, FLAC, MP3, OGG, M4A or WebM, and check that the file "
            "is whole."
        ) from error


def _split(file) -> list[_Part]:
    """The recordings that a file is made of, one as a rule."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    pattern = next((pattern for pattern in PART_STARTS if pattern.match(head)), None)
    fills_file = head.startswith(b"RIFF") and size - int.from_bytes(head[4:8], "little") <= MAX_HEADER_BYTES
    if pattern is None or fills_file:
        return [_Part(file, 0, size)]
    found, overlap, at = {0}, head, 0
    while len(found) <= MAX_PARTS and (chunk := overlap + file.read(2**20)) != overlap:
        found |= {at + match.start() for match in pattern.finditer(chunk)}
        overlap = chunk[-len(head) :]
        at += len(chunk) - len(overlap)
    if head.startswith(b"OggS"):
        # Sound and pictures side by side begin with a page each, one right after the other.
        found -= {_end_of_page(file, start) for start in found}
    starts = sorted(found)
    return [_Part(file, start, end) for start, end in zip(starts, (*starts[1:], size))]


def _end_of_page(file, start: int) -> int:
    """Where the page of Ogg ends that begins at `start`."""
    file.seek(start + 26)
    segments = file.read(1 + 255)
    return start + 27 + segments[0] + sum(segments[1 : 1 + segments[0]]) if segments else start


def _open_plain_wav(part: _Part) -> soundfile.SoundFile | None:
    if part.read(4) not in (b"RIFF", b"RIFX", b"RF64"):
        return None
    part.seek(0)
    try:
        sound = soundfile.SoundFile(part)
    except (soundfile.LibsndfileError, OSError):
        return None
    num_bytes = sound.frames * sound.channels * PLAIN_WAV_BYTES.get(sound.subtype, 0)
    # A recorder that was stopped hard leaves the length 0: FFmpeg then reads to the end of the file.
    return sound if num_bytes and part.size - num_bytes <= MAX_HEADER_BYTES else None


def _decode_with_soundfile(sound: soundfile.SoundFile, allowance: _Allowance) -> Iterator[tuple[np.ndarray, int]]:
    # Not `SoundFile.blocks`: it believes the length in the header, and fills up a shorter file with stale memory.
    block_size = _block_size(sound.samplerate, sound.channels)
    with sound:
        while len(block := sound.read(block_size, dtype="float32", always_2d=True)):
            allowance.spend(block.size)
            yield block, sound.samplerate


def _open_with_av(part: _Part) -> av.container.InputContainer:
    part.seek(0)
    return av.open(part, options=OPTIONS, metadata_errors="ignore")  # a title may be in any encoding


def _best_track(container: av.container.InputContainer) -> av.AudioStream | None:
    """The sound track that FFmpeg would play, or the first that it can."""
    best = container.streams.best("audio")
    tracks = [track for track in container.streams.audio if track.codec_context]
    return best if best in tracks else next(iter(tracks), None)


def _decode_with_av(part: _Part, name: str, allowance: _Allowance) -> Iterator[tuple[np.ndarray, int]]:
    with _open_with_av(part) as container:
        track = _best_track(container)
        if track is None:
            raise AudioError(f"{name} has no sound track.")
        _check_channels(track.codec_context.channels, name)
        yield from _join_frames(_decode_packets(container, track, name, allowance), name, allowance)


def _decode_packets(
    container: av.container.InputContainer, track: av.AudioStream, name: str, allowance: _Allowance
) -> Iterator[av.AudioFrame]:
    """The track's frames; a damaged packet is skipped, as players do, unless most are."""
    track.codec_context.options = {"max_samples": OPTIONS["max_samples"]}
    num_good, num_bad = 0, 0
    try:
        for packet in container.demux(track):
            if packet.size > MAX_PACKET_BYTES:
                del packet  # the exception would keep it in memory
                raise AudioError(f"{name} holds its sound in pieces too large to decode: convert it to WAV or FLAC.")
            allowance.spend(PACKET_COST)
            try:
                frames = packet.decode()
            except av.FFmpegError:
                num_bad += 1
                continue
            num_good += bool(frames)
            for frame in frames:
                allowance.spend(frame.samples * frame.layout.nb_channels)
                yield frame
            if not packet.size and packet.dts is None:
                break  # the last one, or else PyAV goes on to streams that appeared meanwhile, and stumbles over them
    except av.error.InvalidDataError:  # from here on the container is damaged
        num_bad += 1
    if num_bad > num_good:
        raise AudioError(f"{name} is damaged: most of its sound cannot be decoded. Check that the file is whole.")


def _join_frames(frames: Iterator[av.AudioFrame], name: str, allowance: _Allowance) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces as `_decode` gives them, of frames that are often a few milliseconds: too short to convert one by one."""
    kind, fifo, converter = None, None, None
    for frame in frames:
        if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
            yield from _drain(fifo, converter)
            _check_channels(frame.layout.nb_channels, name)
            allowance.spend(FORMAT_COST)
            # Interleaved: PyAV gives a pointer to nowhere for the ninth plane of a planar frame.
            fifo, converter = av.AudioFifo(), av.AudioResampler(format="flt")
        frame.pts = None  # damaged files jump in time
        fifo.write(frame)
        if fifo.samples >= _block_size(frame.sample_rate, frame.layout.nb_channels):
            yield from _drain(fifo, converter)
    yield from _drain(fifo, converter)


def _drain(fifo: av.AudioFifo | None, converter: av.AudioResampler) -> Iterator[tuple[np.ndarray, int]]:
    if fifo and fifo.samples:
        for frame in converter.resample(fifo.read()):
            yield frame.to_ndarray().reshape(-1, frame.layout.nb_channels), frame.sample_rate


def _block_size(rate: int, channels: int) -> int:
    return max(1, min(int(BLOCK_S * rate), MAX_BLOCK_VALUES // channels))


def _open_binary(source, name: str):
    """A seekable binary file over any accepted source."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        content = source.read() if hasattr(source, "read") else None
        if not isinstance(content, bytes):
            raise AudioError(f"A recording is a path, bytes or a binary file, not {type(source).__name__}.")
        return io.BytesIO(content)
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


def _check_channels(channels: int, name: str) -> None:
    if channels > MAX_CHANNELS:
        raise AudioError(f"{name} has {channels} channels: keep only the one with the voice.")


def _check_not_too_long(duration_s: float, name: str) -> None:
    if duration_s > MAX_DURATION_S:
        raise AudioError(f"{name} is longer than {MAX_DURATION_S // 3600} hours: cut it into parts.")


def _downmix(block: np.ndarray, name: str) -> np.ndarray:
    """(num_samples, channels) -> (num_samples,), refusing what is not a number."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        # Few channels are quicker one by one, many row by row. A product of matrices would wait for several threads.
        channels = block.shape[1]
        mono = (sum(block.T) if channels < 8 else block.sum(1)) / np.float32(channels)
        if channels > 1 and len(block) >= 50:  # fewer may cancel by chance
            some = slice(None, None, 1 + len(block) // 10_000)  # samples, which tell as much as all of them
            powers = np.ascontiguousarray(block[some].T).var(1)
            if MAX_WEAKENING * mono[some].var() < powers.max():
                mono = block[:, powers.argmax()]
    if not (np.abs(mono) < MAX_SAMPLE).all():
        raise AudioError(f"{name} contains NaN or infinite samples, or some too large for a sound: export it again.")
    return np.ascontiguousarray(mono)
