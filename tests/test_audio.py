import io
import os

import av
import numpy as np
import pytest
import soundfile

from ser_model.audio import AudioError, read_audio, read_blocks, resample
from tests.conftest import make_voice

RATE = 48000


def encode(path, waveform, *, codec: str, layout: str = "mono", rate: int = RATE):
    """Writes (num_samples,) or (num_samples, channels) with FFmpeg, by PyAV."""
    samples = np.atleast_2d(np.asarray(waveform, np.float32).T)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def voice48():
    return make_voice(1.5, rate=RATE)


@pytest.fixture(scope="module")
def heard(voice48):
    return resample(voice48, RATE, 16000)


SOUNDFILE = [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "PCM_U8"), ("wav", "FLOAT"), ("wav", "ULAW"), ("flac", "PCM_16"),
             ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III"), ("aiff", "PCM_16")]  # fmt: skip


@pytest.mark.parametrize(("suffix", "subtype"), SOUNDFILE)
def test_reads_what_soundfile_reads(tmp_path, voice48, heard, suffix, subtype):
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, voice48, RATE, subtype=subtype)
    assert np.corrcoef(read_audio(path, 16000)[: len(heard)], heard)[0, 1] > 0.98


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus"), ("mp4", "aac")])
def test_reads_what_ffmpeg_reads(tmp_path, voice48, heard, suffix, codec):
    path = encode(tmp_path / f"clip.{suffix}", voice48, codec=codec)
    decoded = read_audio(path, 16000)
    # Codecs may delay the sound by some milliseconds.
    correlation = np.correlate(decoded[:16000], heard[:15000], "valid") if len(decoded) >= 16000 else np.zeros(1)
    assert correlation.max() > 0.9 * (heard[:15000] ** 2).sum()
    assert len(decoded) == pytest.approx(len(heard), abs=1600)


def test_wrong_extension_does_not_matter(tmp_path, voice48):
    path = encode(tmp_path / "clip.m4a", voice48, codec="aac")
    expected = read_audio(path, 16000)
    np.testing.assert_array_equal(read_audio(path.rename(tmp_path / "clip.wav"), 16000), expected)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 96000, 192000])
def test_any_rate(tmp_path, rate):
    waveform = make_voice(1.0, rate=rate)
    soundfile.write(tmp_path / "clip.wav", waveform, rate, subtype="FLOAT")
    decoded = read_audio(tmp_path / "clip.wav", 16000)
    assert len(decoded) == pytest.approx(16000, abs=2)
    np.testing.assert_allclose(decoded, resample(waveform, rate, 16000), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 6])
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


def test_integers_are_full_scale(voice48):
    as_int16 = (voice48 * 32767).astype(np.int16)
    np.testing.assert_allclose(resample(as_int16, RATE, 16000), resample(voice48, RATE, 16000), atol=1e-3)


def broken_files(folder):
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("not a sound at all\n" * 100)
    (folder / "header.wav").write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt ")
    soundfile.write(folder / "zero.wav", np.zeros(0), 16000)
    soundfile.write(folder / "short.wav", np.full(10, 0.1), 16000)
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan] * 8000), 16000, subtype="FLOAT")
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/never.ts\n")
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "fifo.wav")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    with av.open(str(folder / "mute.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5, width=16, height=16)
        for packet in [*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.wav", "does not exist"),
        ("empty.wav", "not a recording"),
        ("text.wav", "not a recording"),
        ("header.wav", "not a recording"),
        ("zero.wav", "no samples"),
        ("short.wav", "too short"),
        ("nan.wav", "NaN or infinite"),
        ("list.m3u8", "not a recording"),
        ("folder.wav", "is a folder"),
        ("fifo.wav", "not a regular file"),
        ("loop.wav", "cannot be opened"),
        ("mute.mp4", "no sound track"),
        ("nul\0byte.wav", "cannot be opened"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path, name, says):
    broken_files(tmp_path)
    with pytest.raises(AudioError, match=says) as caught:
        read_audio(str(tmp_path / name), 16000)
    assert "\n" not in str(caught.value)


def test_addresses_are_refused():
    with pytest.raises(AudioError, match="nothing is fetched"):
        read_audio("https://example.org/clip.wav", 16000)


@pytest.mark.parametrize(
    ("waveform", "rate", "says"),
    [
        (np.zeros((2, 2, 2)), 16000, "shape"),
        (np.array(["a"]), 16000, "numbers"),
        (np.full(16000, np.inf), 16000, "infinite"),
        (np.zeros(3), 16000, "too short"),
        (np.zeros(16000), 0, "sampling rate"),
        (np.zeros(16000), "16000", "sampling rate"),
    ],
)
def test_bad_arrays_get_one_sentence(waveform, rate, says):
    with pytest.raises(AudioError, match=says):
        resample(waveform, rate, 16000)
