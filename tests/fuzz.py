"""
`python -m tests.fuzz`: damaged recordings of every format, thrown at the decoder until something gives way.

Each case is a small recording with random damage. It must come out as sound or as one `AudioError` of one sentence, within
10 s and 500 MB. Cases follow from the seed, so a finding comes back with the same options; `--keep` saves its file.
"""

import argparse
import io
import itertools
import multiprocessing
import resource
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

from tests.conftest import make_voice

RATE = 48000
MAX_S, MAX_MB = 10, 500
SOUNDFILE_KINDS = {
    "wav": ("WAV", "PCM_16"),
    "wav-float": ("WAV", "FLOAT"),
    "wav-ulaw": ("WAV", "ULAW"),
    "wav-adpcm": ("WAV", "MS_ADPCM"),
    "wav-extensible": ("WAVEX", "PCM_24"),
    "w64": ("W64", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "sphere": ("NIST", "PCM_16"),
    "sphere-ulaw": ("NIST", "ULAW"),
    "voc": ("VOC", "PCM_16"),
    "ircam": ("IRCAM", "PCM_16"),
    "svx": ("SVX", "PCM_S8"),
    "paf": ("PAF", "PCM_16"),
    "pvf": ("PVF", "PCM_16"),
    "avr": ("AVR", "PCM_16"),
    "sds": ("SDS", "PCM_16"),
}
AV_KINDS = {
    "m4a": ("mp4", "aac"),
    "alac": ("ipod", "alac"),
    "caf-alac": ("caf", "alac"),
    "aac": ("adts", "aac"),
    "latm": ("latm", "aac"),
    "ac3": ("ac3", "ac3"),
    "eac3": ("eac3", "eac3"),
    "webm": ("webm", "libopus"),
    "mkv": ("matroska", "flac"),
    "mkv-pcm": ("matroska", "pcm_s16le"),
    "mp4-video": ("mp4", "aac"),
    "avi": ("avi", "mp3"),
    "flv": ("flv", "aac"),
    "ts": ("mpegts", "mp2"),
    "ts-video": ("mpegts", "aac"),
    "ps": ("mpeg", "mp2"),
    "wma": ("asf", "wmav2"),
    "amr": ("amr", "libopencore_amrnb"),
    "3gp": ("3gp", "libopencore_amrnb"),
    "wv": ("wv", "wavpack"),
    "tta": ("tta", "tta"),
    "rm": ("rm", "ac3"),
    "nut": ("nut", "pcm_s16le"),
    "wtv": ("wtv", "mp2"),
}
KINDS = (*SOUNDFILE_KINDS, *AV_KINDS, "ogg-chain")
# What a length, a rate or a count in a header turns into.
EXTREMES = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x80\0\0\0", b"\1\0\0\0"]


def make_recording(kind: str, waveform: np.ndarray, rate: int = RATE) -> bytes:
    """A whole file of one of `KINDS` with (num_samples,) or (num_samples, channels) in it."""
    if kind == "ogg-chain":
        middle = len(waveform) // 2
        return make_recording("ogg", waveform[:middle], rate) + make_recording("opus", waveform[middle:], rate)
    content = io.BytesIO()
    if kind in SOUNDFILE_KINDS:
        container, subtype = SOUNDFILE_KINDS[kind]
        soundfile.write(content, waveform, rate, format=container, subtype=subtype)
        return content.getvalue()
    container, codec = AV_KINDS[kind]
    samples = np.ascontiguousarray(waveform.reshape(len(waveform), -1).T)
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[len(samples)]
    with av.open(content, "w", format=container) as output:
        if kind.endswith("video"):
            picture = output.add_stream("mpeg4", rate=5, width=16, height=16)
        coded_rate = 8000 if "amr" in codec else rate
        stream = output.add_stream(codec, rate=coded_rate, layout=layout)
        stream.bit_rate = 12_200 if "amr" in codec else 96_000 * len(samples)
        to_format = av.AudioResampler(stream.format, layout, coded_rate, stream.codec_context.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        if kind.endswith("video"):
            output.mux(picture.encode(av.VideoFrame(16, 16, "yuv420p")))
            output.mux(picture.encode(None))
        for converted in (*to_format.resample(frame), *to_format.resample(None)):
            output.mux(stream.encode(converted))
        output.mux([packet for packet in stream.encode(None) if packet.size])
    return content.getvalue()


def mutate(content: bytes, generator: np.random.Generator) -> bytes:
    """The file with one to eight random injuries, more often than not near its start, where the headers are."""
    damaged = bytearray(content)
    for _ in range(generator.integers(1, 9)):
        size = len(damaged)
        if size < 8:
            break
        reach = size if generator.random() < 0.4 else min(size, 200)
        at = int(generator.integers(reach))
        length = int(generator.integers(1, 64))
        match generator.integers(8):
            case 0:
                damaged[at] ^= 1 << int(generator.integers(8))
            case 1:
                damaged[at] = int(generator.integers(256))
            case 2 | 3:
                damaged[at : at + 4] = EXTREMES[generator.integers(len(EXTREMES))]
            case 4:
                del damaged[at : at + length]
            case 5:
                damaged[at:at] = generator.bytes(length)
            case 6:
                damaged[at : at + length] = damaged[(other := int(generator.integers(size))) : other + length]
            case 7 if generator.random() < 0.3:
                del damaged[int(generator.integers(size)) :]
    return bytes(damaged)


def make_case(kind: str, seed: int, number: int) -> bytes:
    recording = make_recording(kind, make_voice(0.6, rate=RATE))
    return mutate(recording, np.random.default_rng([seed, KINDS.index(kind), number]))


def decode(content: bytes) -> str:
    """`"decoded"` or `"refused"`; raises whatever else the decoder does."""
    from ser_model.audio import AudioError, read_blocks

    try:
        for block in read_blocks(content, 16000):
            if block.dtype != np.float32 or block.ndim != 1 or not np.isfinite(block).all():
                raise TypeError(f"a block of {block.dtype}, shape {block.shape}, or with values that are not finite")
    except AudioError as error:
        if "\n" in str(error):
            raise TypeError(f"a message of several lines: {error}") from error
        return "refused"
    return "decoded"


def _work(connection, kind: str, seed: int) -> None:
    """In a process of its own, which may die of it: the outcome of each case number that comes in."""
    recording = make_recording(kind, make_voice(0.6, rate=RATE))
    decode(recording)
    idle_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while (number := connection.recv()) is not None:
        started = time.process_time()
        try:
            outcome = decode(mutate(recording, np.random.default_rng([seed, KINDS.index(kind), number])))
        except Exception as error:  # every kind of exception is a finding
            outcome = f"{type(error).__name__}: {error}"
        peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle_kb) / 1024
        connection.send((outcome, time.process_time() - started, peak_mb))


class _Worker:
    """One process that decodes; started again when it dies or is killed."""

    def __init__(self, kind: str, seed: int):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, kind, seed), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, number: int, timeout_s: float) -> tuple[str, float, float]:
        try:
            self.connection.send(number)
            if self.connection.poll(timeout_s):
                return self.connection.recv()
            self.process.kill()
            return f"no answer in {timeout_s:.0f} s", timeout_s, 0.0
        except (EOFError, OSError):
            self.process.join()
            return f"the process died (exit status {self.process.exitcode})", 0.0, 0.0

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def fuzz(kind: str, *, count: int, seed: int, keep: Path | None) -> tuple[dict[str, int], float, float, list[str]]:
    """How often each outcome came, the slowest case's CPU seconds, the highest peak above idle in MB, and the findings."""
    worker, outcomes, slowest_s, peak_mb, findings = None, {"decoded": 0, "refused": 0}, 0.0, 0.0, []
    for number in range(count):
        if fresh := worker is None:
            worker = _Worker(kind, seed)
        outcome, cpu_s, mb = worker.run(number, 120 if fresh else MAX_S)  # a fresh one has libraries to import
        slowest_s, peak_mb = max(slowest_s, cpu_s), max(peak_mb, mb)
        if outcome in outcomes and mb > MAX_MB:
            outcome = f"took {mb:.0f} MB"
        if outcome in outcomes and cpu_s > MAX_S:
            outcome = f"took {cpu_s:.0f} s"
        if outcome in outcomes:
            outcomes[outcome] += 1
            continue
        findings.append(f"{kind} {number}: {outcome}")
        if keep:
            (keep / f"{kind}-{seed}-{number}.bin").write_bytes(make_case(kind, seed, number))
        worker.stop()
        worker = None
    if worker:
        worker.stop()
    return outcomes, slowest_s, peak_mb, findings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="cases of each format (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=" ".join(KINDS))
    parser.add_argument("--keep", type=Path, help="folder for the files that broke something")
    options = parser.parse_args()
    if options.keep:
        if options.keep.exists() and not options.keep.is_dir():
            parser.error(f"--keep {options.keep} is not a folder.")
        options.keep.mkdir(parents=True, exist_ok=True)
    everything = []
    print(f"{'format':<16}{'decoded':>8}{'refused':>8}{'findings':>9}{'slowest':>10}{'peak':>10}")
    for kind in options.kinds:
        outcomes, slowest_s, peak_mb, findings = fuzz(kind, count=options.count, seed=options.seed, keep=options.keep)
        everything += findings
        print(
            f"{kind:<16}{outcomes['decoded']:>8}{outcomes['refused']:>8}{len(findings):>9}"
            f"{slowest_s:>8.2f} s{peak_mb:>7.0f} MB",
            flush=True,
        )
    for finding in itertools.islice(everything, 100):
        print(finding)
    return 1 if everything else 0


if __name__ == "__main__":
    sys.exit(main())
