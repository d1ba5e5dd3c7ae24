"""The exported graph under onnxruntime answers as the extractor and the network do."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from ser_model import SerConfig, SerFeatureExtractor, SerForAudioClassification
from ser_model.pipeline_ser import SILENCE_PEAK, WINDOW_S
from ser_model.pretrained import load_pipeline
from ser_model.voice import load_detector
from tests.conftest import make_voice
from train.export import STATISTICS_TOLERANCE, ExportError, export, export_voice_detector, main, open_session, run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export("ser-base", path)
    return path


@pytest.fixture
def clips(voice) -> list[np.ndarray]:
    inside_silence = np.pad(make_voice(1.7, pitch_hz=220, seed=1), (8000, 20000))
    return [
        voice,
        inside_silence,
        1e-3 * make_voice(6.0, seed=2),
        make_voice(0.05, seed=3),
        np.full(1, 0.5, np.float32),
        np.zeros(16000, np.float32),
    ]


def answers(classifier, clips: list[np.ndarray]) -> np.ndarray:
    one_by_one = [classifier.feature_extractor(clip, sampling_rate=16000, return_tensors="pt") for clip in clips]
    with torch.inference_mode():
        return np.concatenate([classifier.model(**inputs).logits.softmax(-1).numpy() for inputs in one_by_one])


def test_answers_as_the_network_does(exported, clips):
    """Statistics count ties, of which rounding makes one more or less: that moves an answer a little, of silence most."""
    session, expected = open_session(exported), answers(load_pipeline(), clips)
    one_by_one = np.concatenate([run(session, [clip]) for clip in clips])
    for found in (run(session, clips), one_by_one):
        differences = np.abs(found - expected).max(1)
        assert (
            np.median(differences) < 1e-4 and differences[:-1].max() < 5e-3 and differences[-1] < STATISTICS_TOLERANCE
        )


def test_int8_is_a_third_of_the_size_and_answers_alike(exported, tmp_path, clips):
    export("ser-base", tmp_path / "int8.onnx", int8=True)
    assert (tmp_path / "int8.onnx").stat().st_size < 0.35 * exported.stat().st_size
    np.testing.assert_allclose(
        run(open_session(tmp_path / "int8.onnx"), clips[:3]), run(open_session(exported), clips[:3]), atol=0.05
    )


def test_says_what_it_needs(exported):
    onnx.checker.check_model(exported)
    session = open_session(exported)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == list(load_pipeline().model.config.id2label.values())
    assert about["sampling_rate"] == "16000" and json.loads(about["voice_only"]) is True
    assert (float(about["window_s"]), float(about["silence_peak"])) == (WINDOW_S, SILENCE_PEAK)
    assert [i.shape for i in session.get_inputs()] == [["batch", "num_samples"], ["batch"]]


@pytest.mark.parametrize(
    "options", [{"trim": None}, {"normalize": None, "top_db": 60.0}, {"n_fft": 400, "hop_length": 160}]
)
def test_other_settings(tiny_model, tmp_path, clips, options):
    tiny_model.config.temperature = 1.7
    tiny_model.save_pretrained(tmp_path / "tiny")
    SerFeatureExtractor(**options).save_pretrained(tmp_path / "tiny")
    assert main(["--checkpoint", str(tmp_path / "tiny"), "--output", str(tmp_path / "tiny.onnx")]) == 0
    expected = answers(load_pipeline(str(tmp_path / "tiny")), clips)
    np.testing.assert_allclose(run(open_session(tmp_path / "tiny.onnx"), clips), expected, atol=1e-4)


def test_pitch(tmp_path, clips):
    torch.manual_seed(0)
    config = SerConfig(feature_size=96, num_lags=32, conv_channels=8)
    SerForAudioClassification(config).save_pretrained(tmp_path)
    SerFeatureExtractor(feature_type="log_mel_pitch", feature_size=96).save_pretrained(tmp_path)
    export(str(tmp_path), tmp_path / "tiny.onnx")
    session, expected = open_session(tmp_path / "tiny.onnx"), answers(load_pipeline(str(tmp_path)), clips)
    np.testing.assert_allclose(run(session, clips), expected, atol=1e-4)
    for clip, answer in zip(clips, expected):
        np.testing.assert_allclose(run(session, [clip])[0], answer, atol=1e-4)


def test_mfcc_cut_and_normalised_by_the_training_set(tmp_path, clips):
    torch.manual_seed(0)
    config = SerConfig(encoder="conv2d_bilstm", feature_size=40, num_cepstra=0, conv_channels=8, lstm_hidden_size=8)
    SerForAudioClassification(config).save_pretrained(tmp_path / "tiny")
    settings = {"normalize": "dataset", "mean": [-3.0] * 40, "std": [20.0] * 40, "relative_level": False}
    SerFeatureExtractor(feature_type="mfcc", feature_size=40, max_frames=100, **settings).save_pretrained(
        tmp_path / "tiny"
    )
    export(str(tmp_path / "tiny"), tmp_path / "tiny.onnx")
    session, expected = open_session(tmp_path / "tiny.onnx"), answers(load_pipeline(str(tmp_path / "tiny")), clips)
    np.testing.assert_allclose(run(session, clips), expected, atol=1e-4)
    assert float(session.get_modelmeta().custom_metadata_map["window_s"]) == 1.6


def test_refuses_features_that_a_graph_cannot_hear(tmp_path):
    config = SerConfig(encoder="conv1d", feature_size=264, num_cepstra=0, conv_channels=8)
    SerForAudioClassification(config).save_pretrained(tmp_path)
    SerFeatureExtractor(feature_type="descriptors", feature_size=264).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="hears descriptors"):
        export(str(tmp_path), tmp_path / "model.onnx")


def test_refuses_what_it_does_not_know(exported, tmp_path, capsys, monkeypatch):
    class OtherNetwork(SerForAudioClassification):
        pass

    shutil.copy(exported, tmp_path / "model.onnx")
    arguments = ["--output", str(tmp_path / "model.onnx")]
    assert main(["--checkpoint", str(tmp_path), *arguments]) == 1
    assert "config.json is missing" in capsys.readouterr().err

    classifier = load_pipeline()
    monkeypatch.setattr("train.export.load_pipeline", lambda _: classifier)
    classifier.model.__class__ = OtherNetwork
    assert main(arguments) == 1
    assert "it has OtherNetwork, not SerForAudioClassification" in capsys.readouterr().err

    # An extractor that has learnt something new, of which the graph knows nothing.
    classifier.model.__class__ = SerForAudioClassification
    prepare = SerFeatureExtractor._prepare
    monkeypatch.setattr(SerFeatureExtractor, "_prepare", lambda self, waveform: prepare(self, waveform).sign())
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "probabilities differ from the network's" in error and "does what the graph does not know" in error
    assert (tmp_path / "model.onnx").read_bytes() == exported.read_bytes()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


def test_refuses_a_graph_that_does_not_run_or_that_eight_bits_spoil(tmp_path, capsys, monkeypatch):
    arguments = ["--output", str(tmp_path / "model.onnx")]
    monkeypatch.setattr("train.export.INT8_TOLERANCE", 0.0)
    assert main([*arguments, "--int8"]) == 1
    assert "eight bits are too few for it: leave out --int8" in capsys.readouterr().err
    monkeypatch.setattr("train.export._shorten_names", lambda graph: graph.node.pop())
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "ONNX Runtime cannot run the graph" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_replaces_no_graph_but_its_own(tmp_path, capsys):
    for name, content in (("text", b"no graph"), ("other", onnx.ModelProto(producer_name="mine").SerializeToString())):
        (tmp_path / f"{name}.onnx").write_bytes(content)
        assert main(["--output", str(tmp_path / f"{name}.onnx")]) == 1
        assert "exists and is no result of this command" in capsys.readouterr().err
        assert (tmp_path / f"{name}.onnx").read_bytes() == content


def test_output_that_cannot_be_written(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "no" / "model.onnx")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "No such file or directory" in error and error.count("\n") == 1


@torch.inference_mode()
def test_voice_detector_answers_as_in_python(tmp_path):
    assert export_voice_detector(tmp_path / "voice.onnx")
    for duration_s in (0.512, 2.56):
        waveform = make_voice(duration_s)
        chunks = np.lib.stride_tricks.sliding_window_view(np.pad(waveform, (64, 0)), 576)[::512]
        found = open_session(tmp_path / "voice.onnx").run(None, {"chunks": chunks})[0]
        expected = load_detector()(torch.from_numpy(waveform)).numpy()
        assert expected.max() > 0.9
        assert np.allclose(found, expected, atol=1e-4)


def test_voice_detector_first_loaded_for_an_answer(tmp_path):
    load_detector.cache_clear()
    with torch.inference_mode():  # as a pipeline does
        load_detector()
    assert export_voice_detector(tmp_path / "voice.onnx")
