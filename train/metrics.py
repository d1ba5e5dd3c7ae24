"""Figures: UAR, WA, F1, calibration, confusion matrix, and the report that is committed as a result."""

import datasets
import evaluate
import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support, recall_score


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
            "uar": float(recall_score(references, predictions, labels=np.unique(references), average="macro")),
            "accuracy": float((predictions == references).mean()),
            "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
            "weighted_f1": float(f1_score(references, predictions, average="weighted", zero_division=0)),
        }


def scores(probabilities: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """`EmotionMetric`'s figures and `ece` for (num_clips, num_labels) probabilities and (num_clips,) class numbers."""
    metric = EmotionMetric(keep_in_memory=True)
    figures = metric.compute(predictions=probabilities.argmax(1), references=references)
    return {**figures, "ece": expected_calibration_error(probabilities, references)}


def intervals(probabilities: np.ndarray, references: np.ndarray) -> dict[str, list[float]]:
    """
    95 % confidence intervals of `accuracy` and `uar`, each [low, high] in [0, 1]: Wilson's (1927), and for the mean of the
    recalls that of Zou and Donner (2008, doi:10.1002/sim.3095) from Wilson's of each.
    """
    correct = probabilities.argmax(1) == references
    recalls = np.array([_wilson(correct[references == label]) for label in np.unique(references)])
    recall, low, high = recalls.T
    below, above = (np.linalg.norm(recall - limit) / len(recall) for limit in (low, high))
    return {
        "accuracy": list(_wilson(correct)[1:]),
        "uar": [float(recall.mean() - below), float(recall.mean() + above)],
    }


def _wilson(correct: np.ndarray) -> tuple[float, float, float]:
    """The share of what is true, and its interval."""
    interval = scipy.stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
    return float(correct.mean()), float(interval.low), float(interval.high)


def expected_calibration_error(probabilities: np.ndarray, references: np.ndarray) -> float:
    """
    Mean distance between confidence and accuracy over the bins of `reliability`, weighted by their clips (Guo et al.
    2017, equation 3). In [0, 1]; 0 means that a confidence of 0.8 is right four times in five.
    """
    gaps = [abs(b["accuracy"] - b["confidence"]) * b["num_clips"] for b in reliability(probabilities, references)]
    return float(sum(gaps) / len(references))


def fit_temperature(probabilities: np.ndarray, references: np.ndarray) -> float:
    """What to divide the logarithms of probabilities by, so that their cross-entropy is least (Guo et al. 2017)."""
    log_probabilities = np.log(np.maximum(probabilities, 1e-6))

    def cross_entropy(temperature: float) -> float:
        return -scipy.special.log_softmax(log_probabilities / temperature, 1)[range(len(references)), references].mean()

    return float(scipy.optimize.minimize_scalar(cross_entropy, bounds=(0.1, 10), method="bounded").x)


def reliability(probabilities: np.ndarray, references: np.ndarray, *, num_bins: int = 15) -> list[dict]:
    """Mean confidence and accuracy of the clips in each of `num_bins` equally wide bins of confidence that holds any."""
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == references
    # Bins are open on the left: a confidence of exactly 1 belongs to the last.
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    return [
        {
            "confidence": float(confidence[bins == i].mean()),
            "accuracy": float(correct[bins == i].mean()),
            "num_clips": int((bins == i).sum()),
        }
        for i in np.unique(bins)
    ]


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
