"""The page in a real browser, at desktop and phone width: a fake microphone, uploads, every tab, no console error."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect, sync_playwright

import app
from ser_model.pretrained import load_pipeline
from tests.conftest import make_no_voice, make_result, make_voice

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

TABS = ("Analyse", "Live", "Compare", "Many files", "How good is it?")
WAIT_MS = 20_000
expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    demo = app.build_demo(load_pipeline(), results_folder=make_result(tmp_path_factory.mktemp("results")).parent)
    _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True, server_port=None)
    yield url
    demo.close()


def microphone(folder: Path, sound: np.ndarray) -> list[str]:
    """What makes Chromium hear a sound of 48 kHz, again and again, without asking."""
    soundfile.write(folder / "voice.wav", sound, 48000)
    return [
        "--no-sandbox",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={folder / 'voice.wav'}",
        "--autoplay-policy=no-user-gesture-required",
    ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with sync_playwright() as playwright:
        args = microphone(tmp_path_factory.mktemp("microphone"), make_voice(20.0, rate=48000))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["desktop", "phone"])
def page(request, browser, url):
    """The page, opened; afterwards it must have caused no error, asked no other server, and fit its width."""
    width, colors = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 850}, color_scheme=colors, permissions=["microphone"]
    )
    page = context.new_page()
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else wrong.append(r.url))
    page.goto(url)
    expect(page.get_by_role("tab", name="Analyse")).to_be_visible()
    yield page
    assert not wrong
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def show(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def headline(page: Page):
    return page.locator(".headline:visible strong").first


def upload(page: Page, elem_id: str, path) -> None:
    page.locator(f"{elem_id} button[aria-label='Upload file']").click()
    page.locator(f"{elem_id} input[type=file]").set_input_files(path)


def expect_an_answer(page: Page) -> None:
    expect(headline(page)).to_have_text(re.compile("Unsure|Neutral|Calm|Happy|Sad|Angry|Fearful|Disgust|Surprised"))


def test_records_and_sees_where_it_listened(page):
    expect(headline(page)).to_have_text("Nothing heard yet")
    page.locator("#recording .record-button").click()
    page.wait_for_timeout(2500)
    page.locator("#recording .stop-button").click()
    expect_an_answer(page)
    expect(page.locator(".seekable .attention")).to_have_count(2)
    assert 1.5 < float(page.locator(".seekable").get_attribute("data-duration")) < 5
    page.locator("#recording button[aria-label='Clear']").click()
    expect(headline(page)).to_have_text("Nothing heard yet")


def test_examples_play_and_predict_from_the_keyboard(page):
    place = page.locator(".bars").first.bounding_box()
    page.get_by_role("button", name="great news").focus()
    page.keyboard.press("Enter")
    expect_an_answer(page)
    expect(page.locator(".seekable")).to_be_visible()
    assert page.locator(".bars").first.bounding_box() == place  # nothing above it has changed its size
    page.wait_for_function("document.querySelector('#recording audio').currentTime > 0.3")
    played = "getComputedStyle(document.querySelector('.seekable')).getPropertyValue('--played')"
    page.wait_for_function(f"Number({played}) > 0")
    plot = page.locator(".seekable .mel")
    plot.click(position={"x": 0.9 * plot.bounding_box()["width"], "y": 10})
    page.wait_for_function(f"Number({played}) > 0.88")


def test_follows_a_long_file(page, tmp_path):
    soundfile.write(tmp_path / "call.flac", np.tile(make_voice(60.0, rate=8000), 24), 8000)
    upload(page, "#recording", tmp_path / "call.flac")
    expect(page.get_by_text("Listening").first).to_be_visible()  # how far it is
    expect(page.locator(".seekable .emotion")).to_have_count(8)
    rows = page.locator("[aria-label='Emotion of each window'] tbody tr")
    expect(rows).to_have_count(360)
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").first.click()
    assert download.value.suggested_filename == "emotions.csv"
    assert len(download.value.path().read_text().splitlines()) == 361


def test_a_bad_file_gets_one_sentence(page, tmp_path):
    page.get_by_role("button", name="great news").click()
    expect_an_answer(page)
    page.locator("#recording button[aria-label='Clear']").click()
    (tmp_path / "notes.wav").write_text("no sound")
    upload(page, "#recording", tmp_path / "notes.wav")
    expect(page.get_by_text("notes.wav is not a recording")).to_be_visible()
    expect(headline(page)).to_have_text("Nothing heard yet")


@pytest.mark.parametrize("sound", [np.zeros(16000), make_no_voice("mains hum", 3.0)], ids=["silence", "hum"])
def test_what_is_no_voice_is_no_speech(page, tmp_path, sound):
    soundfile.write(tmp_path / "sound.wav", sound, 16000)
    upload(page, "#recording", tmp_path / "sound.wav")
    expect(headline(page)).to_have_text("No speech heard")


def test_live_answers_follow_and_stopping_clears_them(page):
    show(page, "Live")
    # Gradio loads the microphone's encoder, two modules and a worker, after the page: too early a press fails.
    page.wait_for_function(
        "performance.getEntriesByType('resource').filter((entry) => entry.name.includes('/module-')).length >= 2"
    )
    page.wait_for_timeout(500)
    page.locator("#microphone .record-button").click()
    expect_an_answer(page)
    history = page.locator(".picture:visible")
    seen = set()
    for _ in range(10):
        page.wait_for_timeout(300)
        seen.add(history.get_attribute("data-end"))
    assert len(seen) >= 3  # new answers, at least one a second
    expect(history.locator(".emotion")).to_have_count(8)
    page.locator("#microphone .stop-button").click()
    expect(headline(page)).to_have_text("Nothing heard yet")
    page.wait_for_timeout(700)  # a last piece that is still on its way must not bring an answer back
    expect(headline(page)).to_have_text("Nothing heard yet")


def test_compares_recipes(page, tmp_path):
    soundfile.write(tmp_path / "clip.wav", make_voice(3.0), 16000)
    show(page, "Compare")
    expect(page.locator(".card:visible", has_text="ser-base")).to_contain_text("UAR 50.0 %")
    upload(page, "#compared", tmp_path / "clip.wav")
    expect_an_answer(page)


def test_lists_many_files(page, tmp_path):
    soundfile.write(tmp_path / "clip.wav", make_voice(3.0), 16000)
    (tmp_path / "notes.txt").write_text("no sound")
    show(page, "Many files")
    page.locator("#files input[type=file]").set_input_files([tmp_path / "clip.wav", tmp_path / "notes.txt"])
    expect(page.locator("#files").get_by_text("notes")).to_be_visible()
    page.get_by_role("button", name="Listen to all").click()
    expect(page.locator(".files tbody tr")).to_have_count(2)
    expect(page.locator(".files")).to_contain_text("notes.txt is not a recording")
    expect(page.get_by_text("1 of 2 recordings heard.")).to_be_visible()
    with page.expect_download() as download:
        page.locator(".downloads:visible a").click()
    assert "notes.txt" in download.value.path().read_text()


def test_shows_the_measured_figures(page):
    for tab in TABS:
        show(page, tab)
    expect(page.locator(".results:visible")).to_contain_text("50.0 %")
    expect(page.locator(".confusion tbody td")).to_have_count(64)
    expect(page.get_by_text("What it cannot do")).to_be_visible()
