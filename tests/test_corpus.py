"""Corpora: names, layouts, counts, CSV files; training on several; what weights that learnt from them may do."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch
import yaml

from ser_model.configuration_ser import EMOTIONS
from tests.conftest import make_ravdess, make_voice
from tests.test_push import make_checkpoint
from train import corpus, finetune, push, train
from train.augment import BatchAugmentation
from train.corpus import CORPORA, DataError, data_folders, fingerprints, load_rows, load_training_rows
from train.features import main as features_main
from train.ravdess import FOLDS
from train.recipe import Augmentation, Recipe, load_recipe
from train.trainer import label_masks, sampling_chances

TINY = {
    "corpora": ["ravdess", "nemo"],
    "model": {"num_cepstra": 0, "conv_channels": 8, "lstm_hidden_size": 4, "num_attention_heads": 1},
    "training": {"num_epochs": 2, "corpus_shares": {"ravdess": 0.5, "nemo": 0.5}},
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def make_nemo(folder):
    """Three speakers, each with one clip of an emotion, and a fourth with two of anger."""
    emotions = ("anger", "fear", "happiness", "neutral", "sadness", "surprised")
    names = [f"{speaker}_{emotion}_7" for speaker in ("EB0", "KS0", "WR0") for emotion in emotions]
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate([*names, "MP0_anger_8", "MP0_anger_9"]):
        soundfile.write(folder / f"{name}.wav", make_voice(0.3, pitch_hz=120 + 10 * i, seed=i, rate=24000), 24000)
    return folder


@pytest.fixture(scope="module")
def nemo(tmp_path_factory):
    return make_nemo(tmp_path_factory.mktemp("nemo"))


@pytest.fixture(scope="module")
def ravdess(tmp_path_factory):
    """Two takes of an emotion by each actor."""
    folder = make_ravdess(tmp_path_factory.mktemp("ravdess"), duration_s=0.3)
    for path in folder.rglob("*.wav"):
        if path.stem.split("-")[3:6:2] != ["01", "01"]:
            path.unlink()
    return folder


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("nemo", "samples/EB0/EB0_anger_60.opus", {"emotion": "angry", "speaker": "EB0", "gender": "female"}),
        ("nemo", "WR0_surprised_1.wav", {"emotion": "surprised", "speaker": "WR0", "gender": "male"}),
        ("ased", "05Angry/a5-01-02-02-65.wav", {"emotion": "angry", "speaker": "65", "gender": "male"}),
        ("ased", "S4-04-02-01-29.opus", {"emotion": "sad", "speaker": "29", "gender": "female"}),
        ("crema-d", "1001_DFA_ANG_XX.wav", {"emotion": "angry", "speaker": "1001", "intensity": "unspecified"}),
        ("crema-d", "1091_IEO_NEU_HI.flac", {"emotion": "neutral", "speaker": "1091", "intensity": "high"}),
        ("crema-d", "1040_ITH_SAD_X.wav", {"emotion": "sad", "speaker": "1040", "intensity": "unspecified"}),
        ("tess", "OAF_Pleasant_surprise/OAF_back_ps.wav", {"emotion": "surprised", "speaker": "OAF", "gender": "female"}),
        ("tess", "OA_bite_neutral.wav", {"emotion": "neutral", "speaker": "OAF", "gender": "female"}),
        ("emodb", "wav/03a01Fa.wav", {"emotion": "happy", "speaker": "03", "gender": "male"}),
        ("emodb", "16b10Wb.wav", {"emotion": "angry", "speaker": "16", "gender": "female"}),
        ("emodb", "03a01La.wav", {"emotion": None, "speaker": "03", "gender": "male"}),
    ],
)  # fmt: skip
def test_reads_the_published_names(name, path, expected):
    assert CORPORA[name].parse(path) == expected


@pytest.mark.parametrize("name", CORPORA)
def test_each_corpus_says_what_one_must_know(name):
    about = CORPORA[name]
    assert about.license and about.citation and about.source.startswith("http") and about.num_clips > 500
    assert set(about.emotions.values()) - {None} <= set(EMOTIONS)


def test_no_name_is_of_two_corpora():
    names = ("EB0_anger_60", "a5-01-02-02-65", "1001_DFA_ANG_XX", "OAF_back_ps", "03a01Fa", "03-01-06-01-02-01-12")
    for name in (*names, "great news", "happy_1", "SPK1_happy_2"):
        assert sum(about.parse(name) is not None for about in CORPORA.values()) == (name in names), name


def test_finds_clips_in_any_layout_once_and_leaves_boredom_out(tmp_path):
    names = ("03a01Fa.wav", "wav/03a01La.wav", "deep/er/16b10Tb.flac", "mp3/03a01Fa.mp3", "._03a01Na.wav", "notes.wav")
    rows = load_rows("emodb", touch(tmp_path, *names), allow_incomplete=True)
    assert [(row["path"].removeprefix(f"{tmp_path}/"), row["emotion"]) for row in rows] == [
        ("03a01Fa.wav", "happy"), ("deep/er/16b10Tb.flac", "sad")
    ]  # fmt: skip
    assert {row["corpus"] for row in rows} == {"emodb"}


def test_the_recording_of_crema_d_with_nothing_in_it_is_left_out(tmp_path):
    touch(tmp_path, "1076_MTI_SAD_XX.wav", "1076_MTI_SAD_HI.wav")
    assert [row["intensity"] for row in load_rows("crema-d", tmp_path, allow_incomplete=True)] == ["high"]


def test_says_what_is_missing_and_where_it_is(tmp_path):
    touch(tmp_path, "03a01Fa.wav")
    with pytest.raises(DataError, match=r"EmoDB is incomplete in .*: found 1 .* expected 535.*emodb.bilderbar.info"):
        load_rows("emodb", tmp_path)
    with pytest.raises(DataError, match="CREMA-D is incomplete in .*: found 0 .* expected 7442"):
        load_rows("crema-d", tmp_path, allow_incomplete=True)
    with pytest.raises(DataError, match="TESS has no direct download: get it from https://doi.org/10.5683/SP2/E8H2MF"):
        load_rows("tess")
    with pytest.raises(DataError, match="nowhere is not a folder: give the one that holds nEMO"):
        load_rows("nemo", tmp_path / "nowhere")
    with pytest.raises(DataError, match="There is no corpus 'iemocap': give one of ravdess, nemo"):
        load_rows("iemocap")


def test_a_download_that_fails_is_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(DataError, match="nEMO could not be downloaded from https://huggingface.co") as caught:
        load_rows("nemo")
    assert "\n" not in str(caught.value)
    assert CORPORA["emodb"].download is not None


def test_data_names_folders(tmp_path):
    assert data_folders(None) == {}
    assert data_folders(["here", "nemo=there"]) == {"ravdess": "here", "nemo": "there"}
    assert data_folders(["ravdess=here"]) == {"ravdess": "here"}
    (tmp_path / "a=b").mkdir()
    assert data_folders([str(tmp_path / "a=b")]) == {"ravdess": str(tmp_path / "a=b")}
    with pytest.raises(DataError, match="iemocap is no corpus, give one of"):
        data_folders(["iemocap=there"])
    with pytest.raises(DataError, match="two folders for ravdess: here and there"):
        data_folders(["here", "there"])


def write_csv(file, rows, columns=("path", "label", "speaker")):
    with open(file, "w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([columns, *rows])
    return str(file)


def test_any_table_is_a_corpus(tmp_path):
    touch(tmp_path / "clips", "a.wav", "b.wav", "c.wav")
    columns = ("path", "label", "speaker", "gender", "room")
    rows = [("clips/a.wav", "Anger", "Ann", "female", ""), ("clips/b.wav", "happy", "Bob", "male", "hall")]
    file = write_csv(tmp_path / "calls.csv", [*rows, ("clips/c.wav", "bored", "Bob", "male", "hall")], columns)
    found = load_rows(file)
    assert [(row["emotion"], row["speaker"], row["corpus"], row["gender"]) for row in found] == [
        ("angry", "Ann", "calls", "female"), ("happy", "Bob", "calls", "male"), ("bored", "Bob", "calls", "male")
    ]  # fmt: skip
    assert found[0]["path"] == str(tmp_path / "clips/a.wav") and found[1]["room"] == "hall"
    without = load_rows(write_csv(tmp_path / "plain.csv", [("clips/a.wav", "sad")], ("path", "label")))
    assert without[0]["speaker"] is None
    assert corpus.told(found[0])["label"] == "angry" and "path" not in corpus.told(found[0])


def test_other_labels_of_a_table_are_not_learnt_and_that_is_said(tmp_path, caplog):
    touch(tmp_path, "a.wav", "b.wav")
    file = write_csv(tmp_path / "calls.csv", [("a.wav", "sad", "1"), ("b.wav", "bored", "1")])
    assert [row["emotion"] for row in load_training_rows([file])] == ["sad"]
    assert "left out, as none of our emotions: bored (1)" in caplog.text
    with pytest.raises(DataError, match=r"none of our emotions but bored \(1\)"):
        load_training_rows([write_csv(tmp_path / "bored.csv", [("b.wav", "bored", "1")])])


def test_a_table_of_a_known_corpus_is_that_corpus(tmp_path):
    touch(tmp_path, "a5-01-02-02-65.wav", "mine.wav")
    file = write_csv(tmp_path / "t.csv", [("a5-01-02-02-65.wav", "angry", "x"), ("mine.wav", "angry", "x")])
    assert [(row["corpus"], row["speaker"]) for row in load_rows(file)] == [("ased", "65"), ("t", "x")]


def test_fingerprints_follow_content_and_labels_wherever_they_lie(tmp_path):
    folders = [make_ravdess(tmp_path / name, actors=[1], duration_s=0.06) for name in "ab"]
    read = [fingerprints(load_rows("ravdess", folder, allow_incomplete=True)) for folder in folders]
    assert read[0] == read[1] and set(read[0]) == {"ravdess"}
    soundfile.write(folders[0] / "Actor_01/03-01-02-01-01-01-01.wav", make_voice(0.1), 16000)
    assert fingerprints(load_rows("ravdess", folders[0], allow_incomplete=True)) != read[0]
    touch(tmp_path, "a.wav")
    tables = [load_rows(write_csv(tmp_path / "t.csv", [("a.wav", label, "1")])) for label in ("sad", "happy")]
    assert fingerprints(tables[0]) != fingerprints(tables[1])


def test_corpora_and_their_emotions_are_drawn_as_their_shares_say():
    cells = {("ravdess", "happy"): 10, ("ravdess", "calm"): 30, ("nemo", "happy"): 100}
    clips = [{"corpus": corpus, "emotion": emotion} for (corpus, emotion), n in cells.items() for _ in range(n)]
    chances = np.array(sampling_chances(clips, {"ravdess": 0.7, "nemo": 0.3}))
    assert chances.mean() == pytest.approx(1)
    for cell, share in zip(cells, (0.35, 0.35, 0.3)):
        drawn = sum(c for c, clip in zip(chances, clips) if (clip["corpus"], clip["emotion"]) == cell)
        assert drawn / len(clips) == pytest.approx(share)


def test_clips_are_judged_by_labels_that_their_corpus_has():
    clips = [{"corpus": "ravdess", "emotion": emotion} for emotion in ("calm", "happy")]
    clips.append({"corpus": "nemo", "emotion": "happy"})
    masks = label_masks(clips, ("calm", "happy", "sad"))
    assert masks == [[True, True, False], [True, True, False], [False, True, False]]
    augment = BatchAugmentation(Augmentation(label_smoothing=0.2), [1.0] * 3)
    features, mask = torch.zeros(3, 4, 2), torch.ones(3, 4, dtype=torch.long)
    out = augment(features, mask, torch.tensor([0, 1, 1]), label_mask=torch.tensor(masks))
    expected = torch.tensor([[0.9, 0.1, 0], [0.1, 0.9, 0], [0, 1.0, 0]])
    torch.testing.assert_close(out["labels"], expected)


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def command(recipe_file, ravdess, nemo, output, *more):
    options = ["--recipe", recipe_file, "--data", ravdess, "--data", f"nemo={nemo}", "--output", output, *more]
    return [str(option) for option in [*options, "--allow-incomplete"]]


@pytest.mark.parametrize("protocol", ["all", "random-split", "speaker-independent"])
def test_other_corpora_train_and_ravdess_is_split(ravdess, nemo, recipe_file, protocol):
    rows = load_training_rows(["ravdess", "nemo"], {"ravdess": ravdess, "nemo": nemo}, allow_incomplete=True)
    parts = train.split_rows(rows, load_recipe(str(recipe_file)), protocol=protocol, fold=1, seed=0)
    corpora = {part: {rows[i]["corpus"] for i in numbers} for part, numbers in parts.items()}
    assert corpora["train"] == {"ravdess", "nemo"} and corpora["validation"] | corpora["test"] <= {"ravdess"}
    assert sum(rows[i]["corpus"] == "nemo" for i in parts["train"]) == 20
    alone = train.split_rows(rows[:-20], load_recipe(str(recipe_file)), protocol=protocol, fold=1, seed=0)
    np.testing.assert_array_equal(parts["test"], alone["test"])
    if protocol == "speaker-independent":
        assert {int(rows[i]["speaker"]) for i in parts["test"]} == set(FOLDS[1])


def test_learns_from_two_corpora_and_says_so(ravdess, nemo, recipe_file, tmp_path, capsys):
    output = tmp_path / "out"
    fold = ["--protocol", "speaker-independent", "--fold", "1"]
    assert train.main(command(recipe_file, ravdess, nemo, output, *fold)) == 0
    run = json.loads((output / "run.json").read_text())
    assert run["recipe"]["corpora"] == ["ravdess", "nemo"]
    assert run["corpora"]["nemo"] == {"num_clips": 20, "speakers": ["EB0", "KS0", "MP0", "WR0"]}
    assert not {f"{actor:02d}" for actor in FOLDS[1]} & set(run["corpora"]["ravdess"]["speakers"])
    clip = run["clips"][0]
    assert clip["corpus"] == "ravdess" and clip["label"] in EMOTIONS and clip["speaker"] == f"{clip['actor']:02d}"
    assert clip["gender"] and clip["clip"].startswith("03-01-")
    card = " ".join((output / "README.md").read_text().split())
    assert "nine Polish actors" in card and "nEMO (CC BY-NC-SA 4.0)" in card and "2404.06292" in card
    assert train.main(command(recipe_file, ravdess, nemo, output, *fold)) == 0  # finished: only read


def test_runs_from_before_are_still_known(ravdess, recipe_file, tmp_path):
    """Their recipes lack what came later, and their clips are names alone."""
    recipe_file.write_text(yaml.safe_dump({"model": TINY["model"], "training": {"num_epochs": 1}}))
    recipe, options = load_recipe(str(recipe_file)), {"data_dir": str(ravdess), "allow_incomplete": True}
    options |= {"protocol": "speaker-independent", "fold": 1, "quiet": True}
    run = train.train(recipe, tmp_path / "out", **options)
    old = json.loads((tmp_path / "out/run.json").read_text())
    del old["corpora"], old["recipe"]["corpora"], old["recipe"]["training"]["corpus_shares"]
    old["clips"] = [clip["clip"] for clip in old["clips"]]
    (tmp_path / "out/run.json").write_text(json.dumps(old))
    read = train.train(recipe, tmp_path / "out", **options)
    assert corpus.told_clips(read) == corpus.told_clips(run) and list(corpus.learnt_corpora(read)) == ["ravdess"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"corpora": ["nemo"]}, "splits RAVDESS, which is none of nemo"),
        ({"corpora": ["iemocap"]}, "There is no corpus 'iemocap'"),
        ({"corpora": "nemo"}, "give a list, [nemo]"),
        ({"training": {**TINY["training"], "balanced_classes": True}}, "leave out balanced_classes"),
        ({"training": {"corpus_shares": {"ravdess": 1.0}}}, "give a share for each of ravdess, nemo"),
    ],
)
def test_refuses_recipes_that_cannot_be(ravdess, nemo, recipe_file, tmp_path, capsys, changes, says):
    recipe_file.write_text(yaml.safe_dump({**TINY, **changes}))
    arguments = command(recipe_file, ravdess, nemo, tmp_path / "out", "--protocol", "random-split")
    assert train.main(arguments) == 1
    assert says in capsys.readouterr().err


def test_features_tell_the_corpus(ravdess, nemo, recipe_file, tmp_path):
    assert features_main(command(recipe_file, ravdess, nemo, tmp_path / "f.csv")) == 0
    with open(tmp_path / "f.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["corpus"] for row in rows} == {"ravdess", "nemo"}
    assert {row["actor"] for row in rows if row["corpus"] == "nemo"} == {""}


def make_ased(folder):
    folder.mkdir()
    for i in range(4):
        for j, emotion in enumerate("as"):
            sound = make_voice(0.5, pitch_hz=120 + 200 * j, seed=i)
            soundfile.write(folder / f"{emotion}5-0{i}-01-01-0{i}.wav", sound, 16000)
    return folder


def test_weights_that_learnt_what_has_no_licence_are_not_passed_on(ravdess, tmp_path, capsys, monkeypatch):
    """Neither trained on it, nor fine-tuned on a table or folder of its clips, nor fine-tuned from such weights."""
    ased = make_ased(tmp_path / "ased")
    (tmp_path / "t.yaml").write_text(
        yaml.safe_dump({**TINY, "corpora": ["ravdess", "ased"], "training": {"num_epochs": 2}})
    )
    arguments = ["--recipe", tmp_path / "t.yaml", "--data", ravdess, "--data", f"ased={ased}", "--allow-incomplete"]
    arguments = list(map(str, arguments))
    monkeypatch.setattr(corpus, "SHIPPED", tmp_path / "shipped")
    assert train.main([*arguments, "--output", str(tmp_path / "shipped/t")]) == 1
    assert "that learnt from ASED (licence: not stated) are not passed on" in capsys.readouterr().err
    assert not (tmp_path / "shipped").exists()

    assert train.main([*arguments, "--output", str(tmp_path / "experiment")]) == 0
    run = json.loads((tmp_path / "experiment/run.json").read_text())
    with pytest.raises(push.PushError, match="is not pushed. Weights that learnt from ASED"):
        push.stage(tmp_path / "experiment", "user/t", tmp_path)
    assert set(run["corpora"]) == {"ravdess", "ased"}

    base = make_checkpoint(tmp_path / "base")
    labelled = tmp_path / "labelled"
    for emotion, label in (("a", "angry"), ("s", "sad")):
        (labelled / label).mkdir(parents=True)
        for path in ased.glob(f"{emotion}5*"):
            (labelled / label / path.name).write_bytes(path.read_bytes())
    tuned = ["--data", labelled, "--model", base, "--epochs", 1, "--output"]
    assert finetune.main([*map(str, tuned), str(tmp_path / "shipped/tuned")]) == 1
    assert "ASED" in capsys.readouterr().err
    own = tmp_path / "own"
    for label in ("angry", "sad"):
        (own / label).mkdir(parents=True)
        for i in range(4):
            soundfile.write(own / label / f"{i}.wav", make_voice(0.5, seed=i), 16000)
    tuned = ["--data", own, "--model", tmp_path / "experiment", "--epochs", 1, "--output", tmp_path / "tuned"]
    assert finetune.main(list(map(str, tuned))) == 0
    assert set(json.loads((tmp_path / "tuned/run.json").read_text())["corpora"]) == {"ravdess", "ased", "own"}
    with pytest.raises(push.PushError, match="ASED"):
        push.stage(tmp_path / "tuned", "user/t", tmp_path)


def test_a_recipe_is_read_back_as_it_was_written(recipe_file):
    recipe = load_recipe(str(recipe_file))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
