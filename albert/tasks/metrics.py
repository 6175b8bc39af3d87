"""Figures of labels and predictions that are no sums, by scikit-learn and SciPy.

They are imported when a figure is asked for, and agree with what GLUE's own scripts use.
"""

import math
import warnings

import numpy as np


def accuracy(labels, predictions) -> float:
    """Share of predictions that are the label."""
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def f1(labels, predictions) -> float:
    """F1 of class 1; 0 where it is neither in the labels nor predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def f1_macro(labels, predictions) -> float:
    """Mean F1 of all classes that occur in the labels or are predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def f1_micro(labels, predictions) -> float:
    """F1 over all decisions of several labels at once: 0 or 1, [n, K]."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="micro", zero_division=0.0))


def matthews(labels, predictions) -> float:
    """Matthews correlation; 0 where it is undefined: one class only on either side."""
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one class only
        return float(matthews_corrcoef(labels, predictions))


def pearson(labels, predictions) -> float:
    """Pearson correlation; nan where it is undefined: all alike on either side."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predictions)


def spearman(labels, predictions) -> float:
    """Spearman rank correlation; nan where it is undefined: all alike on either side."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predictions)


def defined(value: float) -> float:
    """A figure for a table: one that is undefined, such as a correlation with outputs that are all
    alike, counts as 0."""
    return value if math.isfinite(value) else 0.0


def _correlation(function, labels, predictions) -> float:
    labels, predictions = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if len(labels) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all alike
        return float(function(labels, predictions)[0])


def expected_calibration_error(probabilities, labels, bins: int = 10) -> float:
    """Mean distance of confidence and accuracy over equal bins of confidence, by their size.

    Source: Guo et al. 2017, arXiv 1706.04599. probabilities: float [n, K]; labels: int [n].
    """
    confidence = np.max(probabilities, axis=1)
    hit = np.argmax(probabilities, axis=1) == np.asarray(labels)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for number in range(bins):
        chosen = place == number
        if chosen.any():
            error += chosen.mean() * abs(confidence[chosen].mean() - hit[chosen].mean())
    return float(error)


# By the names that tasks and logs use: of classes, and of numbers.
METRICS = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "f1_micro": f1_micro,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
