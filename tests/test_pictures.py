"""Pictures of what a model gets right: what stands in them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from albert.data.labelled.squad import Question
from albert.tasks.pictures import confusion, curves, histogram, reliability, scatter
from albert.tasks.squad_scores import score, threshold_curve
from albert.train.pictures import pictures_of_run, png_of


def drawn(draw):
    axes = Figure().subplots()
    draw(axes)
    return axes


def test_a_confusion_matrix_counts_and_shades_by_row():
    axes = drawn(confusion(("a", "b", "c"), [0, 0, 0, 1, 1], [0, 0, 1, 1, 0]))
    assert [text.get_text() for text in axes.texts] == list("210110000")
    shares = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shares, [[2 / 3, 1 / 3, 0], [0.5, 0.5, 0], [0, 0, 0]])


def test_of_many_labels_the_most_frequent_are_shown_and_the_rest_is_told():
    labels = [f"label{i}" for i in range(40)]
    targets = np.repeat(np.arange(40), np.arange(40) + 1)
    axes = drawn(confusion(labels, targets, targets))
    assert axes.get_title() == "what is taken for what, 10 more"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == labels[10:]
    assert np.asarray(axes.images[0].get_array()).shape == (30, 30)


def test_reliability_is_by_tenths():
    axes = drawn(reliability([0.5, 0.55, 0.92, 1.0], [True, False, True, True]))
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights, [0] * 5 + [0.5] + [0] * 3 + [0.5])
    x, y = axes.lines[1].get_data()
    np.testing.assert_allclose((x, y), ((0.55, 0.95), (0.5, 1.0)))


@pytest.mark.parametrize(
    "draw",
    [
        confusion(("a",), [], []),
        reliability([], []),
        scatter([1.0], [2.0]),
        histogram({"one": [], "two": [0.5]}, "x", "y", 0.5),
        histogram({"one": []}, "x", "y"),
        curves([], {"f1": []}, "step"),
        curves([1], {"f1": [0.5]}, "step", 1),
    ],
)
def test_what_is_nearly_empty_is_drawn(draw):
    assert png_of(draw).startswith(b"\x89PNG")


def test_figures_of_a_run_are_drawn_below_0_too(tmp_path):
    logged = [
        {"step": step, "group": "dev", "loss": 2.0, "matthews": value, "threshold": 7.0}
        for step, value in ((10, -0.25), (20, 0.5))
    ]
    text = "".join(json.dumps(record) + "\n" for record in logged)
    (tmp_path / "metrics.jsonl").write_text(text)
    pictures = pictures_of_run(tmp_path, "dev", 20)
    assert pictures.keys() == {"figures", "loss"}
    axes = drawn(pictures["figures"])
    assert [line.get_label() for line in axes.lines] == ["matthews", "chosen"]
    np.testing.assert_array_equal(axes.lines[0].get_data(), ((10, 20), (-0.25, 0.5)))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_threshold_curve_is_the_official_score_at_every_threshold(data):
    words = st.sampled_from(["", "red", "red house", "the house", "boat"])
    count = data.draw(st.integers(1, 8))
    golds = data.draw(st.lists(words, min_size=count, max_size=count))
    answers = data.draw(st.lists(words, min_size=count, max_size=count))
    odds = data.draw(st.lists(st.integers(-5, 5), min_size=count, max_size=count, unique=True))
    questions = [
        Question(str(i), "?", "red house boat", ((gold, 0),) if gold else (), not gold)
        for i, gold in enumerate(golds)
    ]
    predictions = {str(i): answer for i, answer in enumerate(answers)}
    null_odds = {str(i): float(value) for i, value in enumerate(odds)}
    found = threshold_curve(questions, predictions, null_odds)
    assert found["threshold"] == sorted(null_odds.values())
    for name in ("exact", "f1"):
        for threshold, value in zip(found["threshold"], found[name], strict=True):
            official = score(questions, predictions, null_odds, threshold)[name]
            assert value == pytest.approx(official)
