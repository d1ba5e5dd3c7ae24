import array
import io
import math
import os
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import torch

from ser_model.audio import MAX_BLOCK_VALUES, AudioError, checked_rate, read_audio, read_blocks, resample, to_mono
from tests.conftest import make_voice
from tests.fuzz import AV_KINDS, KINDS, decode, make_case, make_recording

RATE = 48000


@pytest.fixture(scope="module")
def voice48():
    return make_voice(1.5, rate=RATE)


@pytest.fixture(scope="module")
def heard(voice48):
    return resample(voice48, RATE, 16000)


LOSSLESS = [("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"),
            ("WAV", "ALAW"), ("WAV", "ULAW"), ("WAVEX", "PCM_24"), ("WAVEX", "ULAW"), ("RF64", "PCM_16"), ("W64", "PCM_24"),
            ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("CAF", "PCM_16"),
            ("NIST", "PCM_16"), ("NIST", "PCM_24"), ("NIST", "ULAW"), ("NIST", "ALAW"), ("VOC", "PCM_16"), ("IRCAM", "FLOAT"),
            ("PAF", "PCM_16"), ("PVF", "PCM_16"), ("AVR", "PCM_16"), ("SDS", "PCM_16"), ("SVX", "PCM_S8")]  # fmt: skip


@pytest.mark.parametrize(("container", "subtype"), LOSSLESS)
def test_uncompressed_formats(tmp_path, voice48, heard, container, subtype):
    path = tmp_path / "clip.any"
    soundfile.write(path, voice48, RATE, format=container, subtype=subtype)
    decoded = read_audio(path, 16000)
    assert len(decoded) == len(heard)
    relative_error = np.linalg.norm(decoded - heard) / np.linalg.norm(heard)
    assert relative_error < (0.1 if subtype in ("PCM_U8", "PCM_S8", "ALAW", "ULAW") else 0.001)


@pytest.mark.parametrize("kind", sorted({*AV_KINDS, "wav-adpcm", "ogg", "opus", "mp3", "ogg-chain"}))
def test_compressed_formats(voice48, heard, kind):
    decoded = read_audio(make_recording(kind, voice48), 16000)
    # Codecs may delay the sound by some milliseconds.
    padded = np.pad(decoded, 3000)
    correlation = np.correlate(padded, heard[:15000], "valid")
    # A telephone's leaves out all above 4 kHz.
    assert correlation.max() > (0.5 if kind in ("amr", "3gp") else 0.9) * (heard[:15000] ** 2).sum()
    assert len(decoded) == pytest.approx(len(heard), abs=1600)


TIMIT = b"""NIST_1A
   1024
database_id -s5 TIMIT
database_version -s3 1.0
utterance_id -s8 cjf0_sa1
channel_count -i 1
sample_count -i 24000
sample_rate -i 16000
sample_min -i -2191
sample_max -i 2790
sample_n_bytes -i 2
sample_byte_format -s2 01
sample_sig_bits -i 16
end_head
"""


def test_wav_files_of_timit(heard):
    """NIST SPHERE under the name of another format."""
    decoded = read_audio(TIMIT.ljust(1024) + (heard * 32767).astype("<i2").tobytes(), 16000)
    np.testing.assert_allclose(decoded, heard, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_extension_does_not_matter(tmp_path, voice48, kind):
    content = make_recording(kind, voice48)
    path = tmp_path / f"clip.{'mp3' if kind == 'wav' else 'wav'}"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_audio(path, 16000), read_audio(content, 16000))


@pytest.mark.parametrize("length", [0, 0x7FFFFFFF, 0xFFFFFFFF, 10**7])
@pytest.mark.parametrize("field", [b"RIFF", b"data"])
def test_wrong_lengths_in_a_header_are_not_believed(voice48, heard, field, length):
    content = bytearray(make_recording("wav", voice48))
    at = content.index(field) + 4
    content[at : at + 4] = length.to_bytes(4, "little")
    np.testing.assert_allclose(read_audio(bytes(content), 16000), heard, atol=1e-3)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000])
def test_any_rate(tmp_path, rate):
    waveform = make_voice(1.0, rate=rate)
    soundfile.write(tmp_path / "clip.wav", waveform, rate, subtype="FLOAT")
    decoded = read_audio(tmp_path / "clip.wav", 16000)
    assert len(decoded) == pytest.approx(16000, abs=2)
    np.testing.assert_allclose(decoded, resample(waveform, rate, 16000), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_channels_are_averaged(tmp_path, voice48, channels):
    gains = np.linspace(0.5, 1.5, channels) if channels > 1 else np.ones(1)
    soundfile.write(tmp_path / "clip.wav", voice48[:, None] * gains, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "clip.wav", 16000), resample(voice48, RATE, 16000), atol=1e-4)


def test_path_bytes_file_and_array_agree(tmp_path, voice48):
    path = tmp_path / "clip.wav"
    soundfile.write(path, voice48, RATE, subtype="FLOAT")
    expected = read_audio(path, 16000)
    for source in (str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        np.testing.assert_array_equal(read_audio(source, 16000), expected)
    np.testing.assert_allclose(resample(voice48, RATE, 16000), expected, atol=1e-4)


def test_long_files_come_in_blocks(tmp_path):
    waveform = make_voice(35.0)
    soundfile.write(tmp_path / "clip.wav", waveform, 16000, subtype="FLOAT")
    blocks = list(read_blocks(tmp_path / "clip.wav", 16000))
    assert max(map(len, blocks)) <= 10 * 16000
    np.testing.assert_allclose(np.concatenate(blocks), waveform, atol=1e-4)


def test_peaks_above_full_scale_are_kept(tmp_path, voice48, heard):
    soundfile.write(tmp_path / "loud.wav", 5 * voice48, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "loud.wav", 16000), 5 * heard, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32])
def test_integers_are_full_scale(voice48, dtype):
    limits = np.iinfo(dtype)
    as_integers = np.round((voice48 + 1) / 2 * (limits.max - limits.min) + limits.min).astype(dtype)
    tolerance = 0.02 if limits.bits == 8 else 1e-3
    np.testing.assert_allclose(resample(as_integers, RATE, 16000), resample(voice48, RATE, 16000), atol=tolerance)


@pytest.mark.parametrize(("container", "channels"), [("WAV", 1000), ("AU", 64), ("CAF", 64)])
def test_a_header_with_many_channels_takes_little_memory(tmp_path, container, channels):
    path = tmp_path / "crowd.any"
    soundfile.write(path, np.zeros((16_000_000 // channels, channels), np.int16), 192000, format=container)
    assert max(map(len, read_blocks(path, 192000))) <= 1.2 * MAX_BLOCK_VALUES / channels


def test_more_channels_than_eight(voice48, heard):
    crowd = make_recording("au", np.repeat(voice48[:, None], 62, 1))
    np.testing.assert_allclose(read_audio(crowd, 16000), heard, atol=1e-3)


def test_damaged_packets_are_skipped(voice48, heard):
    content = bytearray(make_recording("mp3", voice48))
    middle = len(content) // 2
    content[middle : middle + 500] = bytes(500)
    decoded = read_audio(bytes(content), 16000)
    assert 0.8 * len(heard) < len(decoded) <= 1.1 * len(heard)


@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_short(voice48, heard, kind):
    """What is left of a file is heard as far as its format allows, or refused in a sentence."""
    content = make_recording(kind, voice48)
    for tenths in range(10):
        try:
            decoded = read_audio(content[: len(content) * tenths // 10], 16000)
        except AudioError as error:
            assert "\n" not in str(error)
        else:
            assert len(decoded) <= len(heard) + 1600


def broken_files(folder):
    """One file of each kind of broken, and some that only look so."""
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("not a sound at all\n" * 100)
    (folder / "random.mp3").write_bytes(np.random.default_rng(0).bytes(50_000))
    (folder / "zeros.wav").write_bytes(bytes(50_000))
    (folder / "header.wav").write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt ")
    (folder / "magic.flac").write_bytes(b"fLaC")
    (folder / "page.ogg").write_bytes(b"OggS" + bytes(100))
    (folder / "web.html").write_text("<html><audio src='http://127.0.0.1:9/never.wav'></audio></html>")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    (folder / "archive.zip").write_bytes(b"PK\x03\x04" + bytes(200))
    (folder / "pickle.wav").write_bytes(pickle.dumps({"not": "sound"}))
    soundfile.write(folder / "zero.wav", np.zeros(0), 16000)
    soundfile.write(folder / "one.wav", np.full(1, 0.1), 16000)
    soundfile.write(folder / "short.wav", np.full(790, 0.1), 16000)
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan] * 8000), 16000, subtype="FLOAT")
    soundfile.write(folder / "infinite.wav", np.array([0.1, np.inf] * 8000), 16000, subtype="FLOAT")
    soundfile.write(folder / "double.wav", np.full(16000, 1e300), 16000, subtype="DOUBLE")
    soundfile.write(folder / "slow.wav", np.full(16000, 0.1), 100)
    soundfile.write(folder / "fast.wav", np.full(1600000, 0.1), 2_000_000)
    soundfile.write(folder / "days.wav", np.zeros(1000 * 36001, np.int16), 1000, subtype="PCM_U8")
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/never.ts\n")
    (folder / "list.wav").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    content = make_recording("m4a", make_voice(1.0, rate=RATE))
    (folder / "cut.m4a").write_bytes(content[: len(content) // 2])
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "fifo.wav")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    (folder / "dangling.wav").symlink_to(folder / "gone.wav")
    (folder / "new\nline.wav").write_bytes(b"")
    (folder / "träne😢.wav").write_bytes(b"")
    (folder / "turned\u202e.wav").write_bytes(b"")
    with av.open(str(folder / "mute.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5, width=16, height=16)
        for packet in [*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode(None)]:
            container.mux(packet)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    broken_files(folder)
    return folder


BROKEN = [
    ("missing.wav", "does not exist"),
    ("empty.wav", "is empty"),
    ("text.wav", "not a recording"),
    ("random.mp3", "not a recording|damaged|no sound"),
    ("zeros.wav", "not a recording"),
    ("header.wav", "not a recording"),
    ("magic.flac", "not a recording"),
    ("page.ogg", "not a recording"),
    ("web.html", "not a recording"),
    ("picture.png", "not a recording|no sound track"),
    ("archive.zip", "not a recording"),
    ("pickle.wav", "not a recording"),
    ("zero.wav", "no samples"),
    ("one.wav", "too short"),
    ("short.wav", "too short"),
    ("nan.wav", "NaN or infinite"),
    ("infinite.wav", "NaN or infinite"),
    ("double.wav", "NaN or infinite"),
    ("slow.wav", "sampling rate 100:"),
    ("fast.wav", "sampling rate 2000000:"),
    ("days.wav", "longer than 10 hours"),
    ("list.m3u8", "not a recording"),
    ("list.wav", "not a recording"),
    ("cut.m4a", "not a recording|damaged"),
    ("folder.wav", "is a folder"),
    ("fifo.wav", "not a regular file"),
    ("/dev/zero", "not a regular file"),
    ("loop.wav", "cannot be opened"),
    ("dangling.wav", "does not exist"),
    ("empty.wav/inside.wav", "cannot be opened"),
    ("x" * 300 + ".wav", "cannot be opened"),
    ("nul\0byte.wav", "cannot be opened"),
    ("new\nline.wav", r"new\\nline.wav' is empty"),
    ("träne😢.wav", "träne😢.wav is empty"),
    ("turned\u202e.wav", "u202e.wav' is empty"),
    ("gone\udcff.wav", "udcff.wav' does not exist"),
    ("mute.mp4", "no sound track"),
]


@pytest.mark.parametrize(("name", "says"), BROKEN)
def test_bad_files_get_one_sentence(broken, name, says):
    with pytest.raises(AudioError, match=says) as caught:
        read_audio(str(broken / name), 16000)
    message = str(caught.value)
    assert message.isprintable() and message.endswith(".")


def test_unreadable_files_get_one_sentence(tmp_path):
    (tmp_path / "secret.wav").write_bytes(b"RIFF")
    (tmp_path / "secret.wav").chmod(0)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)  # root may read everything
        with pytest.raises(AudioError, match="cannot be opened: Permission denied"):
            read_audio(tmp_path / "secret.wav", 16000)
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    "source", [None, 3, ["a.wav"], io.StringIO("text"), object()], ids=["none", "number", "list", "text file", "object"]
)
def test_what_is_no_source_gets_one_sentence(source):
    with pytest.raises(AudioError, match="is a path, bytes or a binary file"):
        read_audio(source, 16000)


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_is_decoded_or_refused(kind):
    for number in range(25):
        assert decode(make_case(kind, 0, number)) in ("decoded", "refused")


def test_addresses_are_refused():
    with pytest.raises(AudioError, match="nothing is fetched"):
        read_audio("https://example.org/clip.wav", 16000)


@pytest.mark.parametrize(
    ("waveform", "rate", "says"),
    [
        (np.zeros((2, 2, 2)), 16000, "shape"),
        (np.array(0.5), 16000, "shape"),
        (np.zeros((0,)), 16000, "too short"),
        (np.zeros((0, 2)), 16000, "too short"),
        (np.zeros((2, 2)), 16000, "too short"),
        (np.array(["a"]), 16000, "numbers"),
        ([[0.1], [0.1, 0.2]], 16000, "numbers"),
        (None, 16000, "numbers"),
        (np.zeros(16000, complex), 16000, "numbers"),
        (np.zeros(16000, bool), 16000, "numbers"),
        (np.zeros(16000, np.int64), 16000, "8 to 32-bit"),
        (b"abc", 16000, "odd number of bytes"),
        (np.full(16000, np.nan), 16000, "NaN"),
        (np.full(16000, 1e300), 16000, "infinite"),
        (np.full(16000, np.inf), 16000, "infinite"),
        (np.zeros(3), 16000, "too short"),
        (np.broadcast_to(np.float32(0), 36_001_000), 1000, "longer than 10 hours"),
        (np.zeros(16000), 0, "sampling rate"),
        (np.zeros(16000), "16000", "sampling rate"),
        (np.zeros(16000), 16000.5, "sampling rate"),
        (np.zeros(16000), None, "sampling rate"),
        (np.zeros(16000), True, "sampling rate"),
        (np.zeros(16000), -16000, "sampling rate"),
        (np.zeros(16000), 10**9, "sampling rate"),
        (np.zeros(16000), 44.1, "sampling rate 44.1: give hertz, .*, such as 44100"),
        (np.zeros(16000), np.float32(48), "such as 48000"),
        (np.zeros(16000), math.nan, "sampling rate nan"),
        (np.zeros(16000), np.zeros(16000), "sampling rate ndarray"),
    ],
)
def test_bad_arrays_get_one_sentence(waveform, rate, says):
    with pytest.raises(AudioError, match=says) as caught:
        resample(waveform, rate, 16000)
    assert "\n" not in str(caught.value)


INTEGERS = np.round(2**15 * make_voice(0.5)).astype(np.int16)
STEREO = np.stack([INTEGERS, INTEGERS], 1)
BLOCKS = {
    "list": INTEGERS.astype(float) / 2**15,
    "column": INTEGERS[:, None],
    "row": INTEGERS[None],
    "samples first": STEREO,
    "channels first": STEREO.T,
    "32 bits": INTEGERS.astype(np.int32) * 2**16,
    "float64": STEREO / 2**15,
    "bytes": INTEGERS.tobytes(),
    "buffer": memoryview(bytearray(INTEGERS.tobytes())),
    "array": array.array("h", INTEGERS),
    "tensor": torch.tensor(STEREO.T),
    "float tensor": torch.tensor(INTEGERS / 2**15, requires_grad=True),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_sound_as_libraries_give_it(kind):
    """sounddevice's columns, PyAudio's bytes, torchaudio's rows, soundfile's columns, pydub's arrays of Python."""
    mono = to_mono(BLOCKS[kind], "The block")
    assert mono.dtype == np.float32
    np.testing.assert_allclose(mono, INTEGERS / 2**15, atol=1e-6)


def test_there_are_never_more_channels_than_samples():
    np.testing.assert_array_equal(to_mono([[0.0, 1.0], [0.5, 0.5]], "The block"), [0.5, 0.5])
    np.testing.assert_array_equal(to_mono([[0.0, 1.0]], "The block"), [0.0, 1.0])
    for empty in ([], np.zeros((0, 2)), np.zeros((1, 0)), b""):
        assert to_mono(empty, "The block").shape == (0,)


@pytest.mark.parametrize(
    "rate", [48000, 48000.0, np.float64(48000), np.int32(48000), torch.tensor(48000), Fraction(48000)]
)
def test_a_rate_is_a_whole_number_of_any_type(rate):
    found = checked_rate(rate, "The block")
    assert (found, type(found)) == (48000, int)
