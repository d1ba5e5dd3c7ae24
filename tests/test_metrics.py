import numpy as np
import pytest

from train.metrics import (
    EmotionMetric,
    confusion,
    expected_calibration_error,
    fit_temperature,
    intervals,
    per_class,
    reliability,
    scores,
)


def test_figures_by_hand():
    figures = EmotionMetric(keep_in_memory=True).compute(predictions=[0, 0, 0, 1], references=[0, 0, 1, 1])
    assert figures["accuracy"] == 0.75
    assert figures["uar"] == 0.75
    assert figures["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_uar_weighs_classes_equally():
    figures = EmotionMetric(keep_in_memory=True).compute(predictions=[0] * 10, references=[0] * 9 + [1])
    assert figures["accuracy"] == 0.9
    assert figures["uar"] == 0.5


def test_metric_takes_batches():
    metric = EmotionMetric(keep_in_memory=True)
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add_batch(predictions=[1], references=[0])
    assert metric.compute()["accuracy"] == pytest.approx(2 / 3)


def test_calibration_error():
    references = np.array([0, 0, 0, 0, 1])
    probabilities = np.tile([0.8, 0.2], (5, 1))
    assert expected_calibration_error(probabilities, references) == pytest.approx(0)
    assert expected_calibration_error(np.tile([1.0, 0.0], (5, 1)), references) == pytest.approx(0.2)
    # two bins, of four clips and one, each by itself wrong by its own distance
    mixed = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]])
    assert expected_calibration_error(mixed, references) == pytest.approx((4 * 0.1 + 0.4) / 5)
    bins = reliability(mixed, references)
    assert [b["num_clips"] for b in bins] == [1, 4]
    assert bins[1]["confidence"] == pytest.approx(0.9) and bins[1]["accuracy"] == 1


def test_reports_of_classes():
    probabilities = np.eye(3)[[0, 0, 1, 1]]
    references = np.array([0, 1, 1, 1])
    assert confusion(probabilities, references, 3) == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    report = per_class(probabilities, references, ["a", "b", "c"])
    assert report["a"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert report["c"]["support"] == 0
    assert set(scores(probabilities, references)) == {"uar", "accuracy", "macro_f1", "weighted_f1", "ece"}


def test_temperature_makes_confidence_right():
    generator = np.random.default_rng(0)
    truth = generator.dirichlet(np.full(8, 0.3), size=4000).clip(1e-4)
    references = np.array([generator.choice(8, p=p / p.sum()) for p in truth])
    boasting = truth**2 / (truth**2).sum(1, keepdims=True)
    assert fit_temperature(boasting, references) == pytest.approx(2, rel=0.1)
    assert fit_temperature(truth / truth.sum(1, keepdims=True), references) == pytest.approx(1, rel=0.1)


def test_intervals_of_few_clips_are_wide():
    all_right = intervals(np.eye(2)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]))
    assert all_right["accuracy"] == pytest.approx([0.510, 1], abs=1e-3)  # Wilson's of 4 in 4
    assert all_right["uar"] == pytest.approx([1 - (1 - 0.342) / np.sqrt(2), 1], abs=1e-3)  # of 2 in 2, twice
    one_label = intervals(np.eye(2)[[0] * 9 + [1]], np.zeros(10, int))
    assert one_label["accuracy"] == pytest.approx([0.596, 0.982], abs=1e-3)
    assert one_label["uar"] == pytest.approx(one_label["accuracy"])
    many = intervals(np.eye(2)[[0] * 900 + [1] * 100], np.array([0, 1] * 500))
    assert many["accuracy"][1] - many["accuracy"][0] < 0.07


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of four labels with six clips each, and recalls of 0.9, 0.7, 0.5 and 0.3."""
    generator, references = np.random.default_rng(0), np.repeat(np.arange(4), 6)
    rates = np.repeat([0.9, 0.7, 0.5, 0.3], 6)
    held = 0
    for _ in range(400):
        heard = np.where(generator.random(24) < rates, references, (references + 1) % 4)
        low, high = intervals(np.eye(4)[heard], references)["uar"]
        held += low <= 0.6 <= high
    assert held / 400 > 0.93
