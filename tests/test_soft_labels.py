import numpy as np
import pytest

from train import report
from train.ravdess import ACTORS, FOLDS
from train.soft_labels import PAIRS, read_soft_labels, soft_labels_path, write_soft_labels
from train.trainer import RunError

FOLD_OF = {actor: fold for fold, actors in FOLDS.items() for actor in actors}
CLIPS = [f"03-01-01-01-01-01-{actor:02d}" for actor in ACTORS]
RUN = {"recipe": {}, "seed": 0, "versions": {}, "data_fingerprint": ""}


@pytest.fixture
def labels_of_pairs(tmp_path, monkeypatch):
    """As if the networks of the nth pair had no doubt that all is the nth emotion, and that of the ninth and last both."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    runs = []
    for n, pair in enumerate(PAIRS):
        clips = [clip for actor, clip in zip(ACTORS, CLIPS) if FOLD_OF[actor] in pair]
        runs.append({**RUN, "fold": pair, "clips": clips, "probabilities": [np.eye(8)[n % 8]] * len(clips)})
    write_soft_labels(runs, soft_labels_path("any"), command="")


def test_a_clip_is_labelled_by_who_has_heard_neither_it_nor_the_test_actors(labels_of_pairs):
    for test_fold in FOLDS:
        soft, sha256 = read_soft_labels("any", CLIPS, test_fold=test_fold)
        assert len(sha256) == 64
        for actor, distribution in zip(ACTORS, soft):
            if FOLD_OF[actor] == test_fold:
                assert distribution == pytest.approx(1 / 8)
            else:
                assert distribution.argmax() == PAIRS.index(sorted([FOLD_OF[actor], test_fold])) % 8
                assert distribution.max() == 1


def test_without_test_actors_all_who_have_not_heard_a_clip_label_it(labels_of_pairs):
    soft, _ = read_soft_labels("any", CLIPS, test_fold=None)
    for actor, distribution in zip(ACTORS, soft):
        told = [n % 8 for n, pair in enumerate(PAIRS) if FOLD_OF[actor] in pair]
        assert distribution == pytest.approx(np.bincount(told, minlength=8) / 4)


def test_says_which_labels_are_missing(labels_of_pairs):
    with pytest.raises(RunError, match=r"other.soft-labels.json is missing: .* -m train.teachers --recipe other"):
        read_soft_labels("other", CLIPS, test_fold=1)
    with pytest.raises(RunError, match="does not have the clip 03-01-01-01-01-02-01"):
        read_soft_labels("any", ["03-01-01-01-01-02-01"], test_fold=1)
