"""The demo over real HTTP, as a visitor's browser or a script meets it."""

import pytest
import soundfile
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import app
from ser_model.pretrained import load_pipeline
from tests.conftest import make_voice


@pytest.fixture(scope="module")
def client():
    demo = app.build_demo(load_pipeline())
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_port=None)
    yield Client(url, verbose=False)
    demo.close()


@pytest.fixture
def clip(tmp_path):
    soundfile.write(tmp_path / "clip.ogg", make_voice(9.0, rate=44100), 44100)
    return str(tmp_path / "clip.ogg")


def test_predicts_what_the_pipeline_says(client, clip):
    answer = client.predict(handle_file(clip), api_name="/predict")
    expected = load_pipeline()(clip, timeline=True)
    assert answer["label"] == expected["label"]
    assert answer["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    assert [w["end_s"] for w in answer["windows"]] == [w["end_s"] for w in expected["windows"]]
    assert "path" not in answer


@pytest.mark.parametrize(("content", "says"), [(b"", "not a recording"), (b"no sound" * 99, "not a recording")])
def test_bad_uploads_get_one_sentence(client, tmp_path, content, says):
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(AppError, match=says) as caught:
        client.predict(handle_file(str(tmp_path / "bad.wav")), api_name="/predict")
    assert "/" not in str(caught.value)


def test_nothing_recorded(client):
    with pytest.raises(AppError, match="no recording yet"):
        client.predict(None, api_name="/predict")


def test_says_when_there_is_no_such_model(capsys):
    assert app.main(["--model", "no-such"]) == 1
    assert capsys.readouterr().err.startswith("error: There is no checkpoint")
