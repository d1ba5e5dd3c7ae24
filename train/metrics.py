"""Figures: UAR, WA, F1, calibration, confusion matrix, and the report that is committed as a result."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support


class EmotionMetric(evaluate.Metric):
    """
    Class numbers against class numbers -> `uar`, `accuracy`, `macro_f1`, `weighted_f1`, each in [0, 1].

    UAR (unweighted average recall) is the mean recall over the classes that occur; `accuracy` is what the field also
    calls WA. It needs no network, unlike `evaluate.load`.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references):
        predictions, references = np.asarray(predictions), np.asarray(references)
        return {
            "uar": float(balanced_accuracy_score(references, predictions)),
            "accuracy": float((predictions == references).mean()),
            "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
            "weighted_f1": float(f1_score(references, predictions, average="weighted", zero_division=0)),
        }


def scores(probabilities: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """`EmotionMetric`'s figures and `ece` for (num_clips, num_labels) probabilities and (num_clips,) class numbers."""
    metric = EmotionMetric(keep_in_memory=True)
    figures = metric.compute(predictions=probabilities.argmax(1), references=references)
    return {**figures, "ece": expected_calibration_error(probabilities, references)}


def expected_calibration_error(probabilities: np.ndarray, references: np.ndarray, *, num_bins: int = 15) -> float:
    """
    Mean distance between confidence and accuracy over `num_bins` equally wide bins of confidence, weighted by their
    clips (Guo et al. 2017, equation 3). In [0, 1]; 0 means that a confidence of 0.8 is right four times in five.
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == references
    # Bins are open on the left: a confidence of exactly 1 belongs to the last.
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(references))


def per_class(probabilities: np.ndarray, references: np.ndarray, labels: list[str]) -> dict[str, dict]:
    """Precision, recall, F1 and number of clips of each label."""
    columns = precision_recall_fscore_support(
        references, probabilities.argmax(1), labels=range(len(labels)), zero_division=0
    )
    names = ("precision", "recall", "f1", "support")
    return {label: {name: column[i].item() for name, column in zip(names, columns)} for i, label in enumerate(labels)}


def confusion(probabilities: np.ndarray, references: np.ndarray, num_labels: int) -> list[list[int]]:
    """Clips of label i heard as label j, at [i][j]."""
    return confusion_matrix(references, probabilities.argmax(1), labels=range(num_labels)).tolist()
