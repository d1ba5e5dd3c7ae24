"""The page that listens in the browser, in a real one: its answers are those of `SerPipeline`."""

import base64
import functools
import http.server
import re
import shutil
import threading

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect, sync_playwright

from ser_model.pretrained import DEFAULT, load_pipeline
from tests.conftest import ROOT, make_no_voice, make_voice
from tests.test_browser import CHROMIUM, WAIT_MS, microphone
from train.export import STATISTICS_TOLERANCE
from web.assets import FOLDER, RUNTIME_FILES, write_model

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
    pytest.mark.skipif(
        not all((FOLDER / name).exists() for name in RUNTIME_FILES),
        reason="onnxruntime-web is not here: python -m web.assets",
    ),
]
expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="module")
def url(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "web", folder, dirs_exist_ok=True)
    write_model(folder / "assets", getattr(request, "param", DEFAULT))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with sync_playwright() as playwright:
        args = microphone(tmp_path_factory.mktemp("microphone"), make_voice(20.0, rate=48000))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture
def page(request, browser, url):
    """The page, loaded and then cut off from every network; it must cause no error, and fit its width."""
    width, colors = getattr(request, "param", (1280, "light"))
    context = browser.new_context(
        viewport={"width": width, "height": 850}, color_scheme=colors, permissions=["microphone"]
    )
    page = context.new_page()
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else wrong.append(r.url))
    page.goto(url)
    expect(page.locator("#answer")).to_have_text("Nothing heard yet")
    context.set_offline(True)
    yield page
    assert not wrong
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def choose(page: Page, path) -> None:
    page.locator("#file").set_input_files(path)


def shown(page: Page) -> dict[str, float]:
    """The probabilities that the bars stand for, after an answer."""
    expect(page.locator("#answer")).to_have_text(
        re.compile("Unsure|Neutral|Calm|Happy|Sad|Angry|Fearful|Disgust|Surprised")
    )
    rows = page.locator("#bars tr").all()
    assert len(rows) == 8
    return {row.locator("th").inner_text(): float(row.get_attribute("data-probability")) for row in rows}


def assert_same(found: dict[str, float], expected: list[dict], *, atol: float) -> None:
    assert found == pytest.approx({row["label"]: row["score"] for row in expected}, abs=atol)


@pytest.mark.parametrize("page", [(1280, "light"), (390, "dark")], ids=["desktop", "phone"], indirect=True)
def test_chosen_file(page, tmp_path):
    # Windows of 4, 4, 4 and 5 s, of which the second is silent and the third has no voice; two channels.
    without = np.concatenate([np.zeros(64000), make_no_voice("engine", 4.0)])
    left = np.concatenate([make_voice(4.0), without, make_voice(5.0, pitch_hz=140, seed=1)])
    soundfile.write(tmp_path / "call.wav", np.stack([left, 0.5 * left], 1), 16000)
    choose(page, tmp_path / "call.wav")
    assert_same(shown(page), load_pipeline()(str(tmp_path / "call.wav")), atol=1e-4)
    expect(page.locator("#player")).to_be_visible()


@pytest.mark.parametrize(
    ("url", "rate", "duration_s"),
    [("ser-base", 16000, 10.0), ("bilstm", 22050, 5.5)],
    indirect=["url"],
)
def test_hears_all_of_it_in_the_same_windows(page, url, rate, duration_s, request, tmp_path):
    """Of a rest as short as a window may be, and with a network that has a longest clip."""
    sound = np.concatenate([make_voice(4.0, rate=rate), make_voice(duration_s - 4, rate=rate, pitch_hz=330, seed=1)])
    soundfile.write(tmp_path / "clip.wav", sound, rate)
    choose(page, tmp_path / "clip.wav")
    classifier = load_pipeline(request.node.callspec.params["url"])
    assert_same(shown(page), classifier(str(tmp_path / "clip.wav")), atol=1e-3)


def test_dropped_file_of_another_rate(page, tmp_path):
    soundfile.write(tmp_path / "clip.flac", make_voice(3.0, rate=44100), 44100)
    content = base64.b64encode((tmp_path / "clip.flac").read_bytes()).decode()
    dropped = page.evaluate_handle(
        """async (content) => {
            const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
            const dropped = new DataTransfer();
            dropped.items.add(new File([bytes], "clip.flac"));
            return dropped;
        }""",
        content,
    )
    page.locator("main").dispatch_event("drop", {"dataTransfer": dropped})
    # The browser resamples otherwise than soxr does.
    found, expected = shown(page), load_pipeline()(str(tmp_path / "clip.flac"))
    assert_same(found, expected, atol=0.1)


def test_microphone(page):
    page.evaluate(
        """() => {
            const original = URL.createObjectURL;
            URL.createObjectURL = (blob) => original((window.recording = blob));
        }"""
    )
    page.get_by_role("button", name="Record").click()
    page.wait_for_timeout(2500)
    page.get_by_role("button", name="Stop").click()
    found = shown(page)
    # As this browser decodes and resamples what it has recorded, which is lossy.
    waveform = page.evaluate(
        """async () => {
            const content = await window.recording.arrayBuffer();
            const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(content);
            return Array.from(sound.getChannelData(0));
        }"""
    )
    assert 1.5 < len(waveform) / 16000 < 5
    # Never the same recording twice: any that is exported as it should be must pass.
    assert_same(found, load_pipeline()(np.array(waveform)), atol=STATISTICS_TOLERANCE)


def test_scream(page, tmp_path):
    scream = make_voice(1.5, pitch_hz=130)[::2]  # so high that the detector knows it at half its speed only
    soundfile.write(tmp_path / "scream.wav", scream, 16000)
    choose(page, tmp_path / "scream.wav")
    assert_same(shown(page), load_pipeline()(str(tmp_path / "scream.wav")), atol=1e-4)


def test_silence_and_bad_files(page, tmp_path):
    choose(page, ROOT / "examples" / "great-news.flac")
    shown(page)
    soundfile.write(tmp_path / "silence.wav", np.full(16000, 5e-5), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "noise.wav", make_no_voice("brown noise", 5.0), 16000)
    soundfile.write(tmp_path / "chord.wav", make_no_voice("chord", 5.0, rate=44100), 44100)
    soundfile.write(tmp_path / "short.wav", make_voice(0.01), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no sound")
    for name, answer, says in (
        ("silence.wav", "No speech heard", "It is silent."),
        ("noise.wav", "No speech heard", "There is no voice in it."),
        ("chord.wav", "No speech heard", "There is no voice in it."),
        ("short.wav", "Nothing heard", "short.wav is too short: it needs at least 50 ms of sound."),
        ("nan.wav", "Nothing heard", "nan.wav contains NaN or infinite samples: export it again."),
        ("text.wav", "Nothing heard", "text.wav is not a recording that this browser can read."),
    ):
        choose(page, tmp_path / name)
        expect(page.locator("#below")).to_have_text(says)
        expect(page.locator("#answer")).to_have_text(answer)
        expect(page.locator("#bars tr[data-probability]")).to_have_count(0)
