"""`--protocol other-corpus`: a finished network on clips of a corpus that it has never heard, and where the figures are shown."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from demo import results as page
from ser_model.pretrained import load_pipeline
from tests.conftest import make_ravdess, make_result, make_voice
from tests.test_corpus import write_csv
from tests.test_push import make_checkpoint
from train import card, evaluate, finetune, other_corpus, report
from train.metrics import scores
from train.other_corpus import shared_probabilities
from train.recipe import load_recipe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "ser-base")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def committed(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Six speakers, each of whom says four clips, one of them bored; a damaged recording and one of silence."""
    folder = tmp_path_factory.mktemp("table")
    rows = []
    for speaker in range(6):
        for i, label in enumerate(("Anger", "sad", "neutral", "bored")):
            name = f"{speaker}-{i}.wav"
            soundfile.write(folder / name, make_voice(1.5, pitch_hz=120 + 40 * i, seed=speaker), 16000)
            rows.append((name, label, f"s{speaker}"))
    (folder / "broken.wav").write_text("not a sound")
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    return write_csv(folder / "calls.csv", [*rows, ("broken.wav", "sad", "s1"), ("silent.wav", "sad", "s2")])


def run(checkpoint, corpus, *more):
    options = ["--protocol", "other-corpus", "--checkpoint", checkpoint, "--corpus", corpus, "--jobs", "1", *more]
    return evaluate.main([str(option) for option in options])


def test_scores_a_corpus_by_class_and_speaker(checkpoint, table, committed, tmp_path, capsys):
    assert run(checkpoint, table) == 0
    path = committed / "ser-base.other-corpus.calls.json"
    result = json.loads(path.read_text())
    assert result["labels"] == ["neutral", "sad", "angry"] and result["left_out"] == {"bored": 6}
    assert (result["num_clips"], result["num_speakers"]) == (18, 6)
    refused = {entry["clip"]: entry["error"] for entry in result["refused"]}
    assert set(refused) == {"broken", "silent"} and "silent.wav is silent" in refused["silent"]
    assert str(tmp_path.parent) not in path.read_text()  # no path of this machine
    assert list(result["per_class"]) == result["labels"] and list(result["by_speaker"]) == [f"s{i}" for i in range(6)]
    assert np.sum(result["confusion_matrix"]) == 18 and path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not path.with_suffix(".curves.png").exists()
    assert set(result["mean"]) == {"accuracy", "uar", "macro_f1", "weighted_f1", "ece"}
    clip = result["clips"][0]
    assert (clip["label"], clip["speaker"], clip["corpus"]) == ("angry", "s0", "calls")
    right = np.mean([clip["answers"] == [clip["label"]] for clip in result["clips"]])
    assert result["mean"]["accuracy"] == pytest.approx(right)
    assert (
        result["learnt_from"] == ["ravdess"] and result["versions"]["torch"] and len(result["data_fingerprint"]) == 64
    )
    assert result["command"].startswith(
        "python -m train.evaluate --recipe ser-base --protocol other-corpus --corpus calls.csv"
    )
    printed = capsys.readouterr().out
    assert (
        "18 clips of 6 speakers" in printed and "6 clips bored" in printed and "2 recordings have no answer" in printed
    )


def test_answers_are_the_pipelines_own(checkpoint, table):
    result = other_corpus.evaluate(str(checkpoint), table, quiet=True)
    clip = result["clips"][5]
    answers = load_pipeline(str(checkpoint))(str(Path(table).with_name(f"{clip['clip']}.wav")))
    expected = shared_probabilities({answer["label"]: answer["score"] for answer in answers}, result["labels"])
    assert clip["answers"] == [result["labels"][expected.argmax()]]
    assert clip["confidence"] == pytest.approx(expected.max(), abs=1e-4)


def test_only_shared_emotions_count_and_calm_is_neutral_where_there_is_no_calm():
    given = {"neutral": 0.1, "calm": 0.3, "happy": 0.2, "angry": 0.2, "disgust": 0.2}
    np.testing.assert_allclose(shared_probabilities(given, ["neutral", "happy"]), [2 / 3, 1 / 3])
    np.testing.assert_allclose(shared_probabilities(given, ["neutral", "calm", "happy"]), [1 / 6, 3 / 6, 2 / 6])
    np.testing.assert_allclose(shared_probabilities(given, ["happy", "angry"]), [1 / 2, 1 / 2])


def test_halves_share_no_speaker_and_are_not_committed(checkpoint, table, committed):
    halves = [other_corpus.evaluate(str(checkpoint), table, half=half, quiet=True) for half in "ab"]
    speakers = [set(result["by_speaker"]) for result in halves]
    assert speakers == [{"s0", "s2", "s4"}, {"s1", "s3", "s5"}]
    assert Counter(clip["clip"] for result in halves for clip in result["clips"]).most_common(1)[0][1] == 1
    assert run(checkpoint, table, "--half", "a") == 0 and not committed.exists()


def refusal(capsys, *arguments):
    assert run(*arguments) == 1
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in "".join(said)
    return errors[0]


def test_refuses_what_the_network_has_learnt_from(checkpoint, committed, tmp_path, capsys):
    ravdess = make_ravdess(tmp_path / "ravdess", actors=[1], duration_s=0.1)
    arguments = ["--data", ravdess, "--allow-incomplete"]
    assert "has learnt from ravdess" in refusal(capsys, checkpoint, "ravdess", *arguments)
    rows = [(path, "sad", "somebody") for path in sorted(ravdess.rglob("*.wav"))[:4]]
    assert "has learnt from ravdess" in refusal(capsys, checkpoint, write_csv(tmp_path / "t.csv", rows))


@pytest.mark.parametrize("columns", [("path", "label", "speaker"), ("path", "label")])
def test_refuses_the_table_that_it_was_trained_further_on(checkpoint, committed, table, tmp_path, capsys, columns):
    rows = [(f"{i}-{j}.wav", "sad" if j else "anger", f"s{i}")[: len(columns)] for i in range(6) for j in range(2)]
    mine = write_csv(Path(table).with_name("mine.csv"), rows, columns)
    options = ["--data", mine, "--model", checkpoint, "--epochs", "1", "--output", tmp_path / "tuned"]
    assert finetune.main(list(map(str, options))) == 0
    capsys.readouterr()
    assert "has learnt from mine" in refusal(capsys, tmp_path / "tuned", mine)


def test_other_speakers_of_a_known_corpus_are_heard_but_not_committed(checkpoint, committed, tmp_path, capsys):
    """To choose by speakers that were left out of training."""
    known = shutil.copytree(checkpoint, tmp_path / "known")
    learnt = json.loads((known / "run.json").read_text())
    learnt["corpora"] = {"ravdess": {"speakers": ["01"]}, "nemo": {"speakers": ["EB0", "KS0"]}}
    (known / "run.json").write_text(json.dumps(learnt))
    for i, name in enumerate(("EB0_anger_1", "WR0_anger_1", "WR0_fear_1", "MP0_fear_2")):
        soundfile.write(tmp_path / f"{name}.wav", make_voice(1.5, pitch_hz=120 + 40 * i), 16000)
    heard = [("EB0_anger_1.wav", "anger"), ("WR0_fear_1.wav", "fear")]
    unheard = [("WR0_anger_1.wav", "anger"), ("WR0_fear_1.wav", "fear"), ("MP0_fear_2.wav", "fear")]
    tables = [write_csv(tmp_path / f"{len(rows)}.csv", rows, ("path", "label")) for rows in (heard, unheard)]
    assert "has learnt from nemo" in refusal(capsys, known, tables[0])
    assert run(known, tables[1], "--output", tmp_path / "own.json") == 0
    assert set(json.loads((tmp_path / "own.json").read_text())["by_speaker"]) == {"WR0", "MP0"}
    assert run(known, tables[1]) == 0 and not committed.exists()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("0-0.wav", "angry"), ("1-0.wav", "angry")], "they must share two emotions"),
        ([("0-3.wav", "bored"), ("1-3.wav", "curious")], "the corpus bored, curious"),
        ([("broken.wav", "angry")], "None of these recordings can be scored: broken.wav is not a recording"),
    ],
)
def test_says_why_a_table_has_no_figures(checkpoint, table, capsys, rows, says):
    folder = table.rsplit("/", 1)[0]
    assert says in refusal(capsys, checkpoint, write_csv(f"{folder}/few.csv", rows, ("path", "label")))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--protocol", "other-corpus"], "--corpus goes with --protocol other-corpus"),
        (["--protocol", "random-split", "--corpus", "nemo"], "--corpus goes with"),
        (["--protocol", "random-split", "--half", "a"], "go with --protocol other-corpus"),
        (["--protocol", "other-corpus", "--corpus", "nemo", "--folds", "1"], "are not for --protocol other-corpus"),
    ],
)
def test_options_that_do_not_go_together(arguments, says, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(arguments)
    assert says in capsys.readouterr().err


def test_a_recipe_that_does_not_ship_needs_its_checkpoint(capsys):
    assert evaluate.main(["--protocol", "other-corpus", "--corpus", "nemo", "--recipe", "ser-base-known"]) == 1
    assert "No checkpoint of ser-base-known ships: give --checkpoint" in capsys.readouterr().err


@pytest.fixture
def measured(committed):
    """A result on five made-up clips, beside one of the actor folds."""
    committed.mkdir()
    make_result(committed)
    probabilities = np.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.9, 0.1], [0.3, 0.7]])
    references = np.array([0, 1, 1, 0, 1])
    labels = ["neutral", "happy"]
    result = {
        "recipe": "ser-base",
        "protocol": "other-corpus",
        "corpus": "nemo",
        "about": {"title": "nEMO", "speakers": "nine Polish actors"},
        "num_clips": 5,
        "refused": [{"clip": "x", "error": "x.wav is silent."}],
        "labels": labels,
        "mean": scores(probabilities, references),
        "per_class": report.per_class(probabilities, references, labels),
        "by_speaker": {"EB0": {"uar": 0.5}, "KS0": {"uar": 1.0}},
        "reliability": [],
        "confusion_matrix": report.confusion(probabilities, references, 2),
        "clips": [],
        "command": "python -m train.evaluate --protocol other-corpus --corpus nemo",
    }
    report.write_result(result, report.result_path("ser-base", "other-corpus", "nemo"))
    return result


def test_is_the_first_figure_in_readme_and_card(measured, tmp_path):
    block = report.figures_of_ours().splitlines()
    assert block[2].startswith(
        "| another corpus, never heard: nEMO, nine Polish actors (2 emotions, chance 50.0 %) | 83.3 % |"
    )
    assert block[3].startswith("| people it has never heard")
    assert any("on nEMO neutral 100, happy 67" in line for line in block)
    assert "nEMO 83.3 %" in report.recipes_table()
    run = {
        "recipe": load_recipe("ser-base").to_dict(),
        "seed": 0,
        "train_seconds": 1,
        "num_parameters": 2,
        "versions": {},
    }
    card.write_card({**run, "protocol": "all"}, ["neutral", "happy"], 16000, tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    assert text.index("| another corpus, never heard: nEMO") < text.index("| RAVDESS speech: people it has never heard")
    found = card.ModelCard.load(tmp_path / "README.md").data.eval_results[0]
    assert (found.dataset_type, found.dataset_config, found.metric_value) == ("nemo", "other-corpus", 83.3)


def test_is_the_first_figure_on_the_page(measured, committed):
    found = page.load_results(committed)
    assert list(found["ser-base"]) == ["other-corpus.nemo", "speaker-independent"]
    html = page.page(found, "ser-base")
    assert html.index("Another corpus: nEMO, nine Polish actors") < html.index("People it has never heard")
    for needed in ("83.3 %", "5 clips", "1 more have no answer", "50.0 % to 100.0 %", "--corpus nemo"):
        assert needed in html, needed
    assert page.figures_lines(found["ser-base"]).startswith("<p>Another corpus: nEMO, nine Polish actors: UAR 83.3 %")
