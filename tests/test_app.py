"""The demo over real HTTP, as a visitor's script meets it, and its parts directly."""

import ast
import asyncio
import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

import app
from demo import hearing, lanes, pictures, results, tabs
from demo.lanes import BusyError, Lanes, Places
from ser_model.audio import AudioError, read_blocks
from ser_model.configuration_ser import EMOTIONS
from ser_model.pretrained import available, load_pipeline
from tests.conftest import ROOT, make_no_voice, make_result, make_voice
from tests.test_audio import BROKEN, broken_files

LABELS = list(EMOTIONS)


@pytest.fixture(scope="module")
def classifier():
    return load_pipeline()


@pytest.fixture(scope="module")
def client(classifier, tmp_path_factory):
    demo = app.build_demo(classifier, results_folder=make_result(tmp_path_factory.mktemp("results")).parent)
    _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True, server_port=None)
    yield Client(url, verbose=False)
    demo.close()


def write(path, waveform, rate=16000) -> str:
    soundfile.write(path, waveform, rate)
    return str(path)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def clip(tmp_path):
    return write(tmp_path / "clip.ogg", make_voice(9.0, rate=44100), 44100)


def test_predicts_what_the_pipeline_says(client, classifier, clip):
    answer = client.predict(handle_file(clip), api_name="/predict")
    expected = classifier(clip, timeline=True)
    assert answer["label"] == expected["label"]
    assert answer["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    assert [w["end_s"] for w in answer["windows"]] == [w["end_s"] for w in expected["windows"]]
    assert "path" not in answer


@pytest.mark.parametrize(("content", "says"), [(b"", "is empty"), (b"no sound" * 99, "not a recording")])
@pytest.mark.parametrize("api_name", ["/predict", "/compare"])
def test_bad_uploads_get_one_sentence(client, tmp_path, content, says, api_name):
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(AppError, match=says) as caught:
        client.predict(handle_file(str(tmp_path / "bad.wav")), api_name=api_name)
    assert "/" not in str(caught.value)


@pytest.mark.parametrize(
    ("api_name", "says"),
    [("/predict", "no recording yet"), ("/compare", "no recording yet"), ("/predict_many", "no file")],
)
def test_nothing_given(client, api_name, says):
    with pytest.raises(AppError, match=says):
        client.predict(None, api_name=api_name)


def test_silence_over_the_api_is_refused(client, tmp_path):
    with pytest.raises(AppError, match="silent"):
        client.predict(handle_file(write(tmp_path / "silence.wav", np.zeros(16000))), api_name="/predict")


def test_what_is_no_voice_is_refused_over_the_api(client, clip, tmp_path):
    fan = handle_file(write(tmp_path / "fan.wav", make_no_voice("brown noise", 3.0)))
    for api_name in ("/predict", "/compare"):
        with pytest.raises(AppError, match="has no voice in it: there is no emotion to hear"):
            client.predict(fan, api_name=api_name)
    nothing, heard = client.predict([fan, handle_file(clip)], api_name="/predict_many")
    assert nothing == {"file": "fan.wav", "error": "The recording has no voice in it: there is no emotion to hear."}
    assert heard["label"] in LABELS


def test_too_long_is_refused_before_it_is_read_whole(client, tmp_path, monkeypatch):
    monkeypatch.setattr(hearing, "MAX_DURATION_S", 60)
    with pytest.raises(AppError, match=r"long\.flac is longer than 1 minutes, the most this page takes"):
        client.predict(handle_file(write(tmp_path / "long.flac", np.zeros(61 * 8000), 8000)), api_name="/predict")


def test_one_bad_file_does_not_stop_the_others(client, classifier, clip, tmp_path):
    (tmp_path / "notes.wav").write_text("no sound")
    files = [handle_file(clip), handle_file(str(tmp_path / "notes.wav")), handle_file(clip)]
    first, bad, last = client.predict(files, api_name="/predict_many")
    assert first == last
    assert first["file"] == "clip.ogg"
    assert first["scores"] == pytest.approx(classifier(clip, timeline=True)["scores"], abs=1e-5)
    assert bad["file"] == "notes.wav"
    assert "not a recording" in bad["error"]


def test_each_kind_of_broken_file_gets_its_sentence(client, tmp_path):
    broken_files(tmp_path)
    # Of those too long for anyone this page says that they are longer than 30 minutes; odd names are changed on upload.
    usual = [case for case in BROKEN if case[0].isascii() and case[0].isprintable() and case[0] != "days.wav"]
    cases = [(name, says) for name, says in usual if len(name) < 100 and (tmp_path / name).is_file()]
    assert len(cases) > 20
    answers = client.predict([handle_file(str(tmp_path / name)) for name, _ in cases], api_name="/predict_many")
    for (name, says), answer in zip(cases, answers, strict=True):
        assert answer["file"] == name and re.search(says, answer["error"]), answer
        assert str(tmp_path) not in answer["error"] and answer["error"].endswith(".")


def test_too_many_files_are_refused(client, clip, monkeypatch):
    monkeypatch.setattr(tabs, "MAX_FILES", 1)
    with pytest.raises(AppError, match="at most 1"):
        client.predict([handle_file(clip)] * 2, api_name="/predict_many")


def test_compares_all_recipes_with_their_figures(client, clip):
    answers = client.predict(handle_file(clip), api_name="/compare")
    assert sorted(answers) == available()
    for answer in answers.values():
        assert answer["label"] == max(answer["scores"], key=answer["scores"].get)
    assert answers["ser-base"]["measured"]["speaker-independent"]["uar"] == pytest.approx(0.5)


def test_nothing_but_the_documented_calls_is_public(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(named) == ["/compare", "/predict", "/predict_many"]
    assert not client.view_api(return_format="dict", print_info=False)["unnamed_endpoints"]


def ask_as_assistant(client, *calls: tuple[str, dict]) -> tuple[dict, list]:
    """The tools by name, and the answer to each call, as an assistant gets them."""

    async def ask():
        async with (
            streamable_http_client(f"{client.src}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            return tools, [await session.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(ask())


def as_data(path) -> str:
    return f"data:audio/ogg;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def test_an_assistant_can_call_every_tool(client, classifier, clip):
    tools, answers = ask_as_assistant(
        client,
        ("predict", {"audio": as_data(clip)}),
        ("predict_many", {"files": [as_data(clip), "data:audio/wav;base64,bm8gc291bmQ=", as_data(clip)]}),
        ("compare", {"audio": as_data(clip)}),
    )
    assert sorted(tools) == ["compare", "predict", "predict_many"]
    assert not any(answer.isError for answer in answers)
    one, many, compared = (ast.literal_eval(answer.content[0].text) for answer in answers)
    label = classifier(clip, top_k=1)[0]["label"]
    assert one["label"] == many[0]["label"] == many[2]["label"] == compared["ser-base"]["label"] == label
    assert "not a recording" in many[1]["error"]
    assert sorted(compared) == available()
    for tool in tools.values():
        (given,) = tool.inputSchema["properties"].values()
        assert given.get("items", given)["type"] == "string" and "$ref" not in json.dumps(tool.inputSchema)


def test_an_assistant_is_told_what_is_wrong(client):
    calls = [
        ("predict", {"audio": "data:audio/wav;base64,bm8gc291bmQ="}),
        ("predict", {}),
        ("predict", {"audio": 3}),
        ("predict", {"audio": "/etc/passwd"}),
        ("predict_many", {"files": []}),
        ("predict_many", {"files": "clip.wav"}),
        ("predict_many", {"files": ["/etc/passwd"]}),
        ("compare", {"audio": "http://127.0.0.1:9/clip.wav"}),
        ("no_such_tool", {}),
    ]
    for answer in ask_as_assistant(client, *calls)[1]:
        assert answer.isError
        (said,) = (part.text for part in answer.content)
        assert said and "Traceback" not in said and "root:" not in said and "None" not in said, said


def test_what_assistants_send_is_kept_where_it_is_deleted(client, clip):
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    before = {path for path in folder.rglob("*") if path.is_file()}
    ask_as_assistant(client, ("predict", {"audio": as_data(clip)}))
    new = {path for path in folder.rglob("*") if path.is_file()} - before
    assert [path.read_bytes() == Path(clip).read_bytes() for path in new] == [True] * len(new) and new


@pytest.fixture
def a_file_nobody_thought_of(monkeypatch):
    """A decoder fails in a new way on what is called new.wav."""

    def read(path, rate, **options):
        if Path(path).name == "new.wav":
            raise IndexError("tuple index out of range")
        return read_blocks(path, rate, **options)

    monkeypatch.setattr(hearing, "read_blocks", read)
    return "new.wav"


def number_in(sentence: str, log) -> str:
    """The number that a sentence names, under which a traceback stands in the log."""
    (number,) = re.findall(r"with the number (\w+),", sentence)
    (record,) = (record for record in log.records if number in record.getMessage())
    assert record.exc_info[0] is IndexError
    return number


@pytest.mark.parametrize("api_name", ["/predict", "/compare"])
def test_what_nobody_thought_of_is_a_sentence_too(client, tmp_path, clip, a_file_nobody_thought_of, api_name, caplog):
    new = shutil.copy(clip, tmp_path / a_file_nobody_thought_of)
    with pytest.raises(AppError, match="nobody had thought of") as caught:
        client.predict(handle_file(str(new)), api_name=api_name)
    assert number_in(str(caught.value), caplog)


def test_what_nobody_thought_of_does_not_stop_the_others(client, tmp_path, clip, a_file_nobody_thought_of, caplog):
    new = str(shutil.copy(clip, tmp_path / a_file_nobody_thought_of))
    files = [handle_file(path) for path in (clip, new, clip, new)]
    first, bad, last, as_bad = client.predict(files, api_name="/predict_many")
    assert first == last and first["label"] in LABELS
    assert bad["file"] == "new.wav"
    assert number_in(bad["error"], caplog) != number_in(as_bad["error"], caplog)


@pytest.fixture
def long(tmp_path, monkeypatch):
    """What counts as a long recording, while another one is being heard."""
    monkeypatch.setattr(lanes, "SHORT_SOUND_S", 10.0)
    tabs.LANES.long.take()
    yield write(tmp_path / "long.wav", make_voice(20.0))
    tabs.LANES.long.leave()


def test_short_recordings_do_not_wait_behind_long_ones(client, long, clip):
    jobs = [client.submit(handle_file(long), api_name="/predict") for _ in range(5)]
    many = client.submit([handle_file(clip), handle_file(long)], api_name="/predict_many")
    wait_until(lambda: len(tabs.LANES.long._waiting) == 6)
    for api_name in ("/predict", "/compare"):
        assert client.predict(handle_file(clip), api_name=api_name)
    assert not any(job.done() for job in [*jobs, many])
    tabs.LANES.long.leave()
    assert {job.result()["duration_s"] for job in jobs} == {20.0}
    assert [answer["duration_s"] for answer in many.result()] == [pytest.approx(9.0), 20.0]
    tabs.LANES.long.take()


def test_too_many_long_recordings_are_told_to_come_back(client, long, clip, monkeypatch):
    monkeypatch.setattr(tabs.LANES, "max_waiting", 1)
    job = client.submit(handle_file(long), api_name="/predict")
    wait_until(lambda: tabs.LANES.long._waiting)
    for api_name in ("/predict", "/compare"):
        with pytest.raises(AppError, match="Several long recordings are being heard already: try again"):
            client.predict(handle_file(long), api_name=api_name)
    busy, short = client.predict([handle_file(long), handle_file(clip)], api_name="/predict_many")
    assert "try again" in busy["error"] and short["label"] in LABELS
    tabs.LANES.long.leave()
    assert job.result()["duration_s"] == 20.0
    tabs.LANES.long.take()


def test_places_are_first_come_first_served():
    places, served = Places(1), []
    places.take()

    def come(number: int) -> None:
        places.take()
        served.append(number)
        places.leave()

    threads = [threading.Thread(target=come, args=(number,)) for number in range(5)]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda: len(places._waiting) == number + 1)  # noqa: B023
    with pytest.raises(BusyError):
        places.take(max_waiting=5)
    places.leave()
    places.take()  # who comes again does not overtake
    assert served == [0, 1, 2, 3, 4]
    places.leave()
    for thread in threads:
        thread.join()


def test_who_has_computed_for_a_while_lets_others_go_first(monkeypatch):
    monkeypatch.setattr(lanes, "SLICE_CPU_S", 0.0)
    both, served = Lanes(short=1, long=1, max_waiting=0), []

    def come() -> None:
        with both.turn():
            served.append("who waited")

    with both.turn() as go_on:
        go_on(1.0)  # nobody waits
        other = threading.Thread(target=come)
        other.start()
        wait_until(lambda: both.short._waiting)
        served.append("who was first")
        go_on(2.0)
        served.append("who was first")
    other.join()
    assert served == ["who was first", "who waited", "who was first"]


def test_what_proves_long_leaves_the_short_lane_and_both_are_free_afterwards(monkeypatch):
    monkeypatch.setattr(lanes, "SHORT_CPU_S", 0.01)
    both = Lanes(short=1, long=1, max_waiting=0)
    for _ in range(2):
        with both.turn() as go_on_one:
            while both.short._free == 0:
                go_on_one(0.0)
            with both.turn() as go_on_other:
                go_on_other(1.0)  # is short so far
                with pytest.raises(BusyError):
                    go_on_other(lanes.SHORT_SOUND_S + 1)
        with pytest.raises(ZeroDivisionError), both.turn() as go_on:
            go_on(1000.0)
            raise ZeroDivisionError
    assert both.short._free == both.long._free == 1


def test_uploads_are_deleted_and_examples_stay(classifier, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(app, "CLEAN_EVERY_S", 1)
    monkeypatch.setattr(app, "KEEP_S", 1)
    demo = app.build_demo(classifier)
    _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True, server_port=None)
    try:
        Client(url, verbose=False).predict(handle_file(clip), api_name="/predict")
        wait_until(lambda: not list((tmp_path / "uploads").iterdir()))
        example = next((ROOT / "examples").glob("*.flac"))
        with urllib.request.urlopen(f"{url}gradio_api/file={example}", timeout=10) as response:
            assert response.read() == example.read_bytes()
    finally:
        demo.close()


@pytest.mark.parametrize(("steps_before", "samples_after"), [(0, 0), (150, 8000), (20, 30001)])
def test_attention_lies_where_the_voice_is(classifier, steps_before, samples_after):
    """Silence at the ends, which the extractor cuts off, shifts the attention with the voice."""
    voice = make_voice(2.0)
    alone = hearing.listen(classifier, voice).attention
    before = np.zeros(steps_before * classifier.feature_extractor.hop_length, np.float32)
    padded = np.concatenate([before, voice, np.zeros(samples_after, np.float32)])
    moved = hearing.listen(classifier, padded).attention
    end = steps_before + len(alone)
    assert np.abs(moved[steps_before:end] - alone).mean() < 0.05  # silence changes a little where speech ends
    assert not moved[: max(0, steps_before - 3)].any()
    assert not moved[end + 3 :].any()
    assert alone[alone > 0].mean() == pytest.approx(1, abs=0.05)


def test_attention_skips_silent_windows(classifier):
    waveform = np.concatenate([make_voice(4.0), np.zeros(4 * 16000, np.float32)])
    attention = hearing.listen(classifier, waveform).attention
    first, second = np.array_split(attention, 2)
    assert first.any()
    assert not second[1:].any()


def test_a_network_without_attention_has_a_picture_too(classifier):
    waveform = make_voice(2.0)
    heard = hearing.Hearing(waveform, 16000, classifier(waveform, timeline=True), None)
    assert "no attention over time" in pictures.recording(heard, LABELS)


def test_hears_what_the_pipeline_hears(classifier, clip):
    steps = []

    def progress(iterable, *, total, **_):
        for item in iterable:
            steps.append(total)
            yield item

    heard = hearing.hear(classifier, clip, progress=progress)
    assert heard.answer["scores"] == pytest.approx(classifier(clip, timeline=True)["scores"], abs=1e-5)
    assert steps == [2, 2]  # a step a window
    assert heard.duration_s == pytest.approx(9.0, abs=0.01)


@pytest.mark.parametrize(
    ("sound", "says"),
    [(np.zeros(16000), "is silent"), (make_no_voice("chord", 3.0), "has no voice in it")],
    ids=["silence", "chord"],
)
def test_what_is_no_voice_has_no_answer_but_a_picture(classifier, tmp_path, sound, says):
    heard = hearing.hear(classifier, write(tmp_path / "sound.wav", sound))
    assert heard.answer is heard.attention is None
    headline = pictures.headline(None, no_answer=heard.no_answer)
    assert "No speech heard" in headline and says in headline
    assert says in pictures.recording(heard, LABELS)


def test_too_long_names_the_file(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(hearing, "MAX_DURATION_S", 60)
    with pytest.raises(AudioError, match="^long.flac is longer"):
        hearing.hear(classifier, write(tmp_path / "long.flac", np.zeros(61 * 8000), 8000))


@pytest.mark.parametrize(
    ("probability", "says"), [(0.39, "Unsure"), (0.41, "Sad"), (hearing.UNSURE_BELOW, "Sad"), (0.995, "Sad")]
)
def test_says_when_it_is_unsure(probability, says):
    html = pictures.headline({"label": "sad", "score": probability})
    assert f"<strong>{says}</strong>" in html
    assert "😢" in html


def test_every_emotion_has_its_own_glyph_and_color():
    assert set(pictures.EMOTIONS) == set(EMOTIONS)
    for i in (0, 1):
        assert len({look[i] for look in pictures.EMOTIONS.values()}) == len(EMOTIONS)


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (3.6, "0:04"), (59.7, "1:00"), (1799.9, "30:00")])
def test_clock(seconds, shown):
    assert pictures.clock(seconds) == shown


def test_labels_and_file_names_cannot_bring_markup():
    evil = "<img src=x onerror=alert(1)>"
    answer = {"label": evil, "score": 0.9, "scores": {evil: 0.9}, "duration_s": 1.0}
    for html in (
        pictures.headline(answer),
        pictures.bars([evil], answer["scores"]),
        pictures.over_time([{"start_s": 0, "end_s": 1, **answer}], [evil]),
        tabs._files_table([{"file": evil, **answer}, {"file": evil, "error": evil}]),
    ):
        assert "<img src=x" not in html
        assert "<IMG" not in html


def test_downloads_hold_every_window(classifier):
    answer = classifier(np.concatenate([make_voice(8.0), np.zeros(4 * 16000, np.float32)]), timeline=True)
    html = pictures.windows_table(answer["windows"])
    as_csv, as_json = (base64.b64decode(text).decode() for text in re.findall(r"base64,([^\"]+)", html))
    assert json.loads(as_json) == answer["windows"]
    rows = list(csv.DictReader(io.StringIO(as_csv)))
    assert list(rows[0]) == ["start_s", "end_s", "label", "score", *LABELS]
    assert float(rows[0]["sad"]) == answer["windows"][0]["scores"]["sad"]
    assert rows[2]["label"] == rows[2]["sad"] == ""


def test_a_spreadsheet_takes_no_cell_for_a_formula():
    table = tabs._files_table(
        [{"file": "=cmd.wav", "label": "-calm", "score": 0.5, "scores": {"-calm": 0.5}, "duration_s": -1.0}]
    )
    text = base64.b64decode(re.search(r"base64,([^\"]+)", table)[1]).decode()
    assert text == "file,label,score,duration_s,'-calm\n'=cmd.wav,'-calm,0.5,-1.0,0.5\n"


def test_figures_come_from_the_result_files(tmp_path):
    path = make_result(tmp_path)
    html = results.page(results.load_results(tmp_path), "ser-base")
    assert "50.0 %" in html
    assert "not yet" in html  # the other protocol has no file
    changed = json.loads(path.read_text())
    changed["mean"]["uar"] = 0.4321
    path.write_text(json.dumps(changed))
    html = results.page(results.load_results(tmp_path), "ser-base")
    assert "43.2 %" in html
    assert changed["command"] in html


@pytest.mark.parametrize("recipe", ["ser-base", None])
def test_says_when_nothing_was_measured(tmp_path, recipe):
    assert "has no figures" in results.page(results.load_results(tmp_path), recipe)
    assert "Not measured yet" in results.figures_lines({})


def test_examples_are_short_and_can_be_heard(classifier):
    clips = sorted((ROOT / "examples").glob("*.flac"))
    assert len(clips) >= 5
    for clip in clips:
        assert clip.stat().st_size < 150_000
        assert classifier(str(clip), timeline=True)["duration_s"] < 12


def test_app_does_not_import_training():
    program = "import sys, app; sys.exit(any(name.split('.')[0] == 'train' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=100).returncode == 0


def test_says_when_there_is_no_such_model(capsys):
    assert app.main(["--model", "no-such"]) == 1
    assert capsys.readouterr().err.startswith("error: There is no checkpoint")
