"""Recordings that are whole, whatever their headers say: heard to the end, on the right track, on whichever channel."""

import errno
import io
import os
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile

from ser_model import audio
from ser_model.audio import AudioError, read_audio, read_blocks, resample
from tests.conftest import make_voice
from tests.fuzz import make_recording

RATE = 48000


@pytest.fixture(scope="module")
def voice48():
    return make_voice(1.5, rate=RATE)


@pytest.fixture(scope="module")
def heard(voice48):
    return resample(voice48, RATE, 16000)


@pytest.mark.parametrize("second", [{"rate": RATE, "channels": 1}, {"rate": 24000, "channels": 2}])
@pytest.mark.parametrize("kind", ["ogg", "opus", "flac", "wav", "wav-ulaw"])
def test_files_appended_to_one_another_are_heard_one_after_the_other(voice48, kind, second):
    other = np.repeat(make_voice(1.0, rate=second["rate"], seed=1)[:, None], second["channels"], 1)
    files = [make_recording(kind, voice48), make_recording(kind, other, second["rate"]), make_recording(kind, voice48)]
    decoded = read_audio(b"".join(files), 16000)
    assert len(decoded) == pytest.approx(4 * 16000, abs=2)
    parts = np.concatenate([read_audio(file, 16000) for file in files])
    np.testing.assert_allclose(decoded, parts, atol=0.05)  # at the seams, resampling does not start anew


def test_a_chain_that_is_cut_short_is_heard_up_to_there(voice48, heard):
    first, second = make_recording("ogg", voice48), make_recording("ogg", voice48[:RATE])
    np.testing.assert_array_equal(read_audio(first + second[:60], 16000), read_audio(first, 16000))
    assert len(read_audio(first + second[: len(second) * 2 // 3], 16000)) > len(heard)


def test_thousands_of_files_in_one_are_refused(voice48):
    with pytest.raises(AudioError, match="more than 1,000 files"):
        read_audio(make_recording("opus", voice48[:4800]) * 1100, 16000)


def test_sound_beside_pictures_in_ogg_is_one_recording(voice48, heard):
    content = io.BytesIO()
    with av.open(content, "w", format="ogg") as output:
        streams = [output.add_stream("flac", rate=RATE, layout="mono") for _ in range(2)]
        frame = av.AudioFrame.from_ndarray((voice48 * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        for part in av.AudioResampler("s16", "mono", RATE, 4096).resample(frame):
            for stream in streams:
                output.mux(stream.encode(part))
    decoded = read_audio(content.getvalue(), 16000)
    np.testing.assert_allclose(decoded[:-100], heard[: len(decoded) - 100], atol=1e-3)
    assert len(decoded) > 1.3 * 16000


@pytest.mark.parametrize("num_samples", [0, 1000, 2**36 - 1])
def test_the_length_in_a_header_of_flac_is_not_believed(voice48, heard, num_samples):
    content = bytearray(make_recording("flac", voice48))
    content[21] = content[21] & 0xF0 | num_samples >> 32
    content[22:26] = (num_samples & 0xFFFFFFFF).to_bytes(4, "big")
    np.testing.assert_allclose(read_audio(bytes(content), 16000), heard, atol=1e-3)


def test_flac_that_is_cut_short_is_heard_up_to_there(voice48, heard):
    content = make_recording("flac", voice48)
    decoded = read_audio(content[: len(content) // 2], 16000)
    assert 0.3 * len(heard) < len(decoded) < 0.7 * len(heard)
    np.testing.assert_allclose(decoded[:-100], heard[: len(decoded) - 100], atol=1e-3)


@pytest.mark.parametrize("num_frames", [0, 1, 5, 10**6])
def test_the_length_in_a_header_of_mp3_is_not_believed(voice48, heard, num_frames):
    content = bytearray(make_recording("mp3", voice48))
    at = content.index(b"Xing") + 8
    content[at : at + 4] = num_frames.to_bytes(4, "big")
    assert len(read_audio(bytes(content), 16000)) == pytest.approx(len(heard), abs=800)


def test_the_length_in_a_header_of_au_is_not_believed(voice48, heard):
    content = bytearray(make_recording("au", voice48))
    content[8:12] = b"\xff" * 4  # as AU says unknown
    np.testing.assert_allclose(read_audio(bytes(content), 16000), heard, atol=1e-3)


def test_titles_in_any_encoding_and_pictures_are_no_hindrance(voice48, heard):
    content = make_recording("wav-adpcm", voice48)
    title = b"INFOINAM\x06\0\0\0Tr\xe4ne\0"
    tagged = content[:12] + b"LIST" + len(title).to_bytes(4, "little") + title + content[12:]
    np.testing.assert_array_equal(read_audio(tagged, 16000), read_audio(content, 16000))
    picture = b"\0image/png\0\3\0\x89PNG\r\n\x1a\n" + bytes(200_000)
    frame = b"APIC" + len(picture).to_bytes(4, "big") + b"\0\0" + picture
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    content = make_recording("mp3", voice48)
    np.testing.assert_array_equal(read_audio(b"ID3\3\0\0" + size + frame + content, 16000), read_audio(content, 16000))


def make_tracks(container, codec, waveforms, default=None):
    content = io.BytesIO()
    with av.open(content, "w", format=container) as output:
        streams = [output.add_stream(codec, rate=RATE, layout="mono") for _ in waveforms]
        for number, stream in enumerate(streams):
            if default is not None:
                stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        packets = []
        for stream, waveform in zip(streams, waveforms):
            frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            for part in av.AudioResampler(
                stream.format, "mono", RATE, stream.codec_context.frame_size or 1000
            ).resample(frame):
                packets += stream.encode(part)
            packets += [packet for packet in stream.encode(None) if packet.size]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return content.getvalue()


@pytest.mark.parametrize(
    ("container", "codec"), [("matroska", "flac"), ("mp4", "aac"), ("mov", "pcm_s16le"), ("nut", "flac")]
)
def test_the_default_track_is_heard(voice48, heard, container, codec):
    silence = np.zeros_like(voice48)
    for default in range(3):
        waveforms = [voice48 if number == default else silence for number in range(3)]
        decoded = read_audio(make_tracks(container, codec, waveforms, default), 16000)
        assert np.std(decoded) == pytest.approx(np.std(heard), rel=0.1)


def test_a_refusal_names_the_number_of_tracks(tmp_path, voice48):
    nothing = np.full_like(voice48, np.nan)
    with pytest.raises(AudioError, match="NaN or infinite.* It has 2 sound tracks, and number 2 was heard"):
        read_audio(make_tracks("matroska", "pcm_f32le", [voice48, nothing], default=1), 16000)
    (tmp_path / "short.mkv").write_bytes(make_tracks("matroska", "pcm_s16le", [voice48[:2000], voice48], default=0))
    with pytest.raises(AudioError, match="short.mkv is too short.* It has 2 sound tracks, and number 1 was heard"):
        read_audio(tmp_path / "short.mkv", 16000)
    with pytest.raises(AudioError, match="ms of sound.$"):
        read_audio(make_recording("mkv", voice48[:100]), 16000)


@pytest.mark.parametrize(
    ("gains", "loudest"),
    [((1, -1), 0), ((3, -3), 0), ((-0.9, 1), 1), ((0.5, -0.4), 0), ((1, -1, 1, -1), 0), ((0, 0, 0, 1, 0, 0), 3)],
)
def test_where_channels_cancel_the_loudest_is_heard(tmp_path, voice48, heard, gains, loudest):
    crowd = voice48[:, None] * np.float32(gains)
    np.testing.assert_allclose(resample(crowd, RATE, 16000), gains[loudest] * heard, atol=1e-4)
    soundfile.write(tmp_path / "crowd.wav", crowd, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "crowd.wav", 16000), gains[loudest] * heard, atol=1e-4)


@pytest.mark.parametrize("gains", [(1, 0), (1, 0.5), (1, -0.3), (1, 0, 0), (1,) * 6])
def test_where_channels_do_not_cancel_their_mean_is_heard(voice48, heard, gains):
    np.testing.assert_allclose(
        resample(voice48[:, None] * np.float32(gains), RATE, 16000), np.mean(gains) * heard, atol=1e-4
    )


def test_voices_of_several_people_on_channels_of_their_own_are_all_heard():
    people = np.stack([make_voice(2.0, pitch_hz=100 + 20 * number, seed=number) for number in range(8)], 1)
    np.testing.assert_allclose(resample(people, 16000, 16000), people.mean(1), atol=1e-6)


def test_a_constant_voltage_is_not_the_loudest_channel(voice48, heard):
    crowd = np.zeros((len(voice48), 6), np.float32)
    crowd[:, 1], crowd[:, 4] = 0.9, voice48
    np.testing.assert_allclose(resample(crowd, RATE, 16000), heard, atol=1e-4)


def make_broadcast(container, *, sound, pictures, num_tracks=1):
    """`pictures` are of noise, 130 kB each, 25 a second."""
    content, generator = io.BytesIO(), np.random.default_rng(0)
    with av.open(content, "w", format=container) as output:
        video = output.add_stream("mpeg2video", rate=25, width=320, height=240)
        video.pix_fmt, video.bit_rate = "yuv420p", 50_000_000
        tracks = [output.add_stream("mp2", rate=RATE, layout="mono") for _ in range(num_tracks if len(sound) else 0)]
        packets = []
        for number in range(pictures):
            picture = av.VideoFrame.from_ndarray(generator.integers(0, 256, (360, 320), np.uint8), format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            packets += video.encode(picture)
        packets += video.encode(None)
        for track in tracks:
            frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            for part in av.AudioResampler(track.format, "mono", RATE, 1152).resample(frame):
                packets += track.encode(part)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return content.getvalue()


@pytest.mark.parametrize("container", ["mpegts", "mpeg"])
def test_sound_that_begins_after_the_pictures_is_heard(voice48, heard, container):
    pictures = make_broadcast(container, sound=[], pictures=60)
    assert len(pictures) > 5_000_000  # as far as FFmpeg looks by itself
    decoded = read_audio(pictures + make_broadcast(container, sound=voice48, pictures=2) + pictures, 16000)
    assert np.std(decoded) == pytest.approx(np.std(heard), rel=0.1)


@pytest.mark.parametrize("container", ["mpegts", "mpeg"])
def test_tracks_that_appear_later_do_no_harm(monkeypatch, voice48, heard, container):
    monkeypatch.setitem(audio.OPTIONS, "probesize", "5000")  # of an hour, 50 MB is little as well
    content = [make_broadcast(container, sound=voice48, pictures=2, num_tracks=number) for number in (1, 1, 1, 4, 1)]
    decoded = read_audio(b"".join(content), 16000)
    assert len(decoded) == pytest.approx(5 * len(heard), rel=0.05)


@pytest.mark.parametrize("kind", ["wav", "mp3"])
def test_a_disk_that_fails_is_no_end_of_the_sound(monkeypatch, voice48, kind):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 4_000:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    monkeypatch.setattr(audio, "_open_binary", lambda source, name: Failing(source))
    with pytest.raises(AudioError, match="not a recording that can be read"):
        read_audio(make_recording(kind, voice48), 16000)


@pytest.mark.parametrize("error", [IndexError("no such stream"), av.error.PatchWelcomeError(0, "later"), MemoryError()])
def test_whatever_a_decoder_raises_is_a_sentence(monkeypatch, voice48, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(audio, "_best_track", fail)
    with pytest.raises(AudioError, match="not a recording that can be read"):
        read_audio(make_recording("mp3", voice48), 16000)


def make_packets(num_packets, size):
    """Matroska with 16-bit sound in packets of so many samples."""
    content, generator = io.BytesIO(), np.random.default_rng(0)
    with av.open(content, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for number in range(num_packets):
            packet = av.Packet((generator.standard_normal(size) * 3000).astype("<i2").tobytes())
            packet.stream, packet.time_base = stream, Fraction(1, RATE)
            packet.pts = packet.dts = number * size
            output.mux(packet)
    return content.getvalue()


def test_packets_too_large_are_refused():
    assert len(read_audio(make_packets(2, 1_500_000), 16000)) == 1_000_000
    with pytest.raises(AudioError, match="in pieces too large"):
        read_audio(make_packets(1, 5_000_000), 16000)


@pytest.mark.parametrize("container", ["AU", "CAF"])
def test_more_channels_than_can_be_converted_are_refused(container):
    content = io.BytesIO()
    soundfile.write(content, np.zeros((8000, 100), np.int16), 8000, format=container)
    with pytest.raises(AudioError, match="has 100 channels: keep only"):
        read_audio(content.getvalue(), 16000)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "ogg-chain"])
def test_the_work_on_a_file_is_bounded(voice48, heard, kind):
    content = make_recording(kind, voice48)
    decoded = np.concatenate(list(read_blocks(content, 16000, max_decoded_values=250_000)))
    assert len(decoded) == len(heard)
    with pytest.raises(AudioError, match="has more than 70,000 values .*: convert it to mono at 16 kHz, or cut it"):
        list(read_blocks(content, 16000, max_decoded_values=70_000))


def test_work_without_sound_is_bounded():
    one_by_one = make_packets(2_000, 1)
    broken = one_by_one.replace(b"A_PCM/INT/LIT", b"A_AC3".ljust(13, b"\0"))
    for content in (one_by_one, broken):
        with pytest.raises(AudioError, match="has more than 500,000 values"):
            list(read_blocks(content, 16000, max_decoded_values=500_000))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a file that grows")
def test_a_file_that_grows_is_read_up_to_where_it_was(tmp_path, voice48):
    path = tmp_path / "growing.wav"
    path.write_bytes(make_recording("wav-ulaw", np.tile(voice48, 20)))
    blocks = read_blocks(path, 16000)
    first = next(blocks)
    with open(path, "ab") as file:
        file.write(bytes(RATE))
    assert len(first) + sum(map(len, blocks)) == 20 * 1.5 * 16000
