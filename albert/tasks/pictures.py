"""Pictures of what a model gets right, for people to look at: functions that draw into matplotlib's
axes. They are made when they are asked for, so that nothing here imports it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Draw = Callable[[Any], None]  # draws into one matplotlib.axes.Axes

_MOST_LABELS = 30  # of a confusion matrix
_BINS = 10


def confusion(labels: Sequence[str], targets, predictions) -> Draw:
    """Rows are labels, columns predictions, as shares of the row; with counts where there is room.

    Args:
      labels: names by id; of more than 30 those that are most frequent in `targets`.
      targets, predictions: ids, int [n].
    """
    targets, predictions = np.asarray(targets, int), np.asarray(predictions, int)
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, (targets, predictions), 1)
    chosen = np.sort(np.argsort(-counts.sum(1), kind="stable")[:_MOST_LABELS])
    shown, names = counts[np.ix_(chosen, chosen)], [labels[i] for i in chosen]
    sizes = counts.sum(1)[chosen][:, None]

    def draw(axes) -> None:
        axes.imshow(shown / np.maximum(sizes, 1), cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        left_out = len(labels) - len(chosen)
        axes.set_title("what is taken for what" + (f", {left_out} more" if left_out else ""))
        if len(names) <= 12:
            for row, column in np.ndindex(*shown.shape):
                dark = shown[row, column] > 0.5 * max(sizes[row, 0], 1)
                axes.text(
                    column,
                    row,
                    f"{shown[row, column]:,}",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                )

    return draw


def reliability(confidence, hits) -> Draw:
    """How often predictions of some confidence are right, in tenths; on the diagonal where it is
    calibrated.

    Source: Guo et al. 2017, arXiv 1706.04599. confidence: probabilities, float [n]; hits: bool [n].
    """
    confidence, hits = np.asarray(confidence, np.float64), np.asarray(hits, np.float64)
    place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    sizes = np.bincount(place, minlength=_BINS)
    right = np.bincount(place, weights=hits, minlength=_BINS) / np.maximum(sizes, 1)
    middle = (np.arange(_BINS) + 0.5) / _BINS
    there = sizes > 0

    def draw(axes) -> None:
        axes.bar(middle, sizes / max(len(hits), 1), 1 / _BINS, color="0.85", label="predictions")
        axes.plot([0, 1], [0, 1], color="0.5", linewidth=1)
        axes.plot(middle[there], right[there], marker="o", label="of them right")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("probability of what is predicted")
        axes.set_ylabel("share")
        axes.set_title("reliability")
        axes.legend()

    return draw


def scatter(targets, predictions) -> Draw:
    """Numbers that were learned against those that are predicted, [n] each."""
    targets, predictions = np.asarray(targets), np.asarray(predictions)

    def draw(axes) -> None:
        ends = [float(f(targets)) for f in (np.min, np.max)]
        axes.plot(ends, ends, color="0.5", linewidth=1)
        axes.scatter(targets, predictions, s=6, alpha=0.4)
        axes.set_xlabel("label")
        axes.set_ylabel("predicted")
        axes.set_title("labels and predictions")

    return draw


def histogram(groups: Mapping[str, Any], of: str, title: str, mark: float | None = None) -> Draw:
    """Values of several groups, [n] each, over common bins; with a line at `mark`."""
    values = {name: np.asarray(each, np.float64) for name, each in groups.items() if len(each)}
    everything = np.concatenate([*values.values(), np.zeros(0)])

    def draw(axes) -> None:
        bins = np.histogram_bin_edges(everything, 40)
        for name, each in values.items():
            axes.hist(each, bins, alpha=0.5, label=name)
        if mark is not None:
            axes.axvline(mark, color="black", linewidth=1, label="threshold")
        axes.set_xlabel(of)
        axes.set_ylabel("examples")
        axes.set_title(title)
        if values:
            axes.legend()

    return draw


def tradeoff(
    lines: Mapping[str, Sequence[tuple[float, float]]], of: str, worth: str, title: str
) -> Draw:
    """What is paid along x against what it is worth along y: a line of marked points for each name,
    from the cheapest on."""

    def draw(axes) -> None:
        for name, found in lines.items():
            if found:
                x, y = zip(*sorted(found), strict=True)
                axes.plot(x, y, marker="o", markersize=4, label=name)
        axes.set_xlabel(of)
        axes.set_ylabel(worth)
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()

    return draw


def curves(over: Sequence[float], lines: Mapping[str, Sequence[float]], of: str, mark=None) -> Draw:
    """Lines over the same values, with an upright one at `mark`."""

    def draw(axes) -> None:
        for name, values in lines.items():
            axes.plot(over, values, label=name)
        if mark is not None:
            axes.axvline(mark, color="black", linewidth=1, label="chosen")
        axes.set_xlabel(of)
        axes.grid(alpha=0.3)
        axes.legend()

    return draw
