"""The model card, from results that `train.report` makes of made-up runs."""

import numpy as np
import pytest
from huggingface_hub import ModelCard

from ser_model.configuration_ser import EMOTIONS
from tests.conftest import ROOT, ravdess_names
from tests.hub_server import serve
from train import card, report
from train.ravdess import FOLDS, parse_name
from train.recipe import load_recipe
from train.report import summarise
from train.train import versions

RUN = {
    "recipe": load_recipe("ser-base").to_dict(),
    "protocol": "all",
    "fold": None,
    "seed": 3,
    "train_seconds": 1234.4,
    "num_parameters": 762328,
    "versions": versions(),
}


def made_up_run(actors, seed):
    generator = np.random.default_rng(seed)
    clips = ravdess_names(actors=actors)
    heard = np.eye(8)[[EMOTIONS.index(parse_name(clip)["emotion"]) for clip in clips]]
    probabilities = generator.dirichlet(np.ones(8), len(clips)) + 0.3 * heard
    return {
        "seed": 0,
        "clips": clips,
        "probabilities": (probabilities / probabilities.sum(1, keepdims=True)).tolist(),
        "train_seconds": 60.0,
        "num_parameters": 762328,
        "num_bytes": 3_000_000,
        "versions": versions(),
        "history": [],
        "data_fingerprint": "0" * 64,
    }


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    recipe = load_recipe("ser-base")
    runs = {
        "speaker-independent": [{**made_up_run(actors, fold), "fold": fold} for fold, actors in FOLDS.items()],
        "random-split": [{**made_up_run((1, 2, 3), 9), "fold": None}],
    }
    results = {}
    for protocol, of_protocol in runs.items():
        results[protocol] = summarise(of_protocol, recipe, protocol=protocol, held_out="test")
        report.write_result(results[protocol], report.result_path("ser-base", protocol))
    return results


def write(tmp_path, run=RUN, labels=EMOTIONS, **options):
    card.write_card(run, list(labels), 16000, tmp_path / "README.md", **options)
    return ModelCard.load(tmp_path / "README.md")


def test_both_protocols_are_in_the_model_index(results, tmp_path):
    data = write(tmp_path, repo_id="user/ser-base").data
    found = {(entry.dataset_config, entry.metric_name): entry.metric_value for entry in data.eval_results}
    for protocol, result in results.items():
        for measure, title in (("uar", "UAR"), ("accuracy", "accuracy"), ("macro_f1", "macro F1")):
            assert found[protocol, title] == pytest.approx(100 * result["mean"][measure], abs=0.051)
    assert len(found) == 6
    assert (data.pipeline_tag, data.license, data.library_name) == (
        "audio-classification", "cc-by-nc-sa-4.0", "transformers"
    )  # fmt: skip


def test_says_what_a_user_must_know(results, tmp_path):
    text = " ".join(write(tmp_path, repo_id="user/ser-base").text.split())
    uar = f"{100 * results['speaker-independent']['mean']['uar']:.1f} %"
    for needed in (
        *EMOTIONS, uar, 'model="user/ser-base"', "acted", "hiring", "policing", "medical decisions", "AI Act", "at work",
        "CC BY-NC-SA 4.0", "10.1371/journal.pone.0196391", "1234 s of training", f"torch {versions()['torch']}", "seed 3",
        "762,328 parameters", "16000 Hz", '"transformers>=5.23"', "version 4 cannot load it",
    ):  # fmt: skip
        assert needed in text, needed
    assert "{{" not in text and "None" not in text


def test_without_results_it_claims_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "none")
    found = write(tmp_path)
    assert found.data.eval_results is None
    assert "has not been measured" in found.text and " UAR " not in found.text


def test_fine_tuned_card_speaks_of_its_own_figures(results, tmp_path):
    fine_tuning = {
        "base": "user/ser-base",
        "labels": ["no", "yes"],
        "num_train_clips": 40,
        "num_validation_clips": 60,
        "split": "by speaker",
        "validation": {
            **{"uar": 0.75, "accuracy": 0.8, "macro_f1": 0.7},
            "intervals": {"uar": [0.6214, 0.861], "accuracy": [0.6822, 0.8817]},
        },
    }
    run = {**RUN, "recipe": {**RUN["recipe"], "name": "mine"}, "fine_tuning": fine_tuning}
    found = write(tmp_path, run, ["no", "yes"])
    assert {(e.dataset_type, e.metric_value) for e in found.data.eval_results} == {
        ("own", v) for v in (75.0, 80.0, 70.0)
    }
    assert found.data.base_model == "user/ser-base"
    text = " ".join(found.text.split())
    assert "which of 2 labels it hears: no, yes" in text and "speakers that it was not trained on: UAR 75.0 %" in text
    assert "On 60 recordings" in text and "UAR 75.0 % (95 % confidence: 62 to 86 %), accuracy 80.0 % (" in text
    assert "On people never heard" not in text  # RAVDESS's figures are not this model's
    fine_tuning["num_validation_clips"] = 4
    assert write(tmp_path, run, ["no", "yes"]).data.eval_results is None  # the Hub would show no interval
    del fine_tuning["validation"]["intervals"]  # as of older runs
    assert "UAR 75.0 %, accuracy 80.0 %." in write(tmp_path, run, ["no", "yes"]).text


def test_is_what_the_hub_library_accepts(results, tmp_path, monkeypatch):
    """`validate` has the Hub read the metadata: here a double, which only checks that the library sends them."""
    found = write(tmp_path, repo_id="user/ser-base")
    assert ModelCard(found.content).data.to_dict() == found.data.to_dict()
    with serve() as hub:
        monkeypatch.setattr("huggingface_hub.repocard.get_session", card_session(hub))
        found.validate(repo_type="model")
        assert hub.requests == ["POST /api/validate-yaml"]


def card_session(hub):
    """The library's session, with its fixed address of the Hub replaced by the double's."""
    import httpx2

    class Session(httpx2.Client):
        def post(self, url, **options):
            return super().post(hub.url + "/api/validate-yaml", **options)

    return Session


def test_the_space_has_what_spaces_need():
    data = ModelCard.load(ROOT / "README.md", ignore_metadata_errors=False).data
    requirements = (ROOT / "requirements.txt").read_text()
    assert data.sdk == "gradio" and (ROOT / data.app_file).exists()
    major_minor = ".".join(str(data.sdk_version).split(".")[:2])
    assert f"gradio>={major_minor}" in requirements.replace("[mcp]", "")
    assert str(data.sdk_version).count(".") == 2 and data.python_version == "3.11"
    assert len(data.short_description) <= 60 and data.license and data.tags
