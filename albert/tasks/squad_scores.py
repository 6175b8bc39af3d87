"""SQuAD's official scores.

Sources: the scripts `evaluate-v1.1.py` and `evaluate-v2.0.py` (Rajpurkar et al. 2016, arXiv
1606.05250; 2018, arXiv 1806.03822).
"""

import collections
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from albert.data.labelled.squad import Question, questions_of, read


def normalised(answer: str) -> str:
    """As the official scripts compare answers: lower case, without punctuation and articles."""
    text = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(gold: str, answer: str) -> float:
    return float(normalised(gold) == normalised(answer))


def f1(gold: str, answer: str, both_empty: float) -> float:
    """F1 of the words of two answers; `both_empty`: what two without words are worth."""
    ours, theirs = normalised(answer).split(), normalised(gold).split()
    if not ours or not theirs:
        return both_empty if ours == theirs else 0.0
    same = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if not same:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def score(
    dataset: str | Path | Mapping | Sequence[Question],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
    threshold: float | None = None,
) -> dict[str, float]:
    """What the official script of the data set's version prints, in percent.

    Args:
      dataset: a file, its JSON, or what `read` gives.
      predictions: question -> answer; "" for none.
      null_odds: version 2.0: how much speaks for no answer, logits or probabilities.
      threshold: of null odds: what is over it counts as "". None: nothing does.

    Returns:
      Of version 1.1 `exact_match` and `f1`, in which a question that is not answered scores 0. Of
      2.0 `exact`, `f1` and `total` over the questions that are answered, the same with the prefixes
      HasAns_ and NoAns_; with null odds also `best_exact`, `best_f1` and their thresholds.
    """
    if isinstance(dataset, (str, Path)):
        questions = read(dataset)
    elif isinstance(dataset, Mapping):
        questions = questions_of(dataset, "the data set")
    else:
        questions = list(dataset)
    if all(question.is_impossible is None for question in questions):
        return _score_v1(questions, predictions)
    return _score_v2(questions, predictions, null_odds, threshold)


def _score_v1(questions: Sequence[Question], predictions: Mapping[str, str]) -> dict[str, float]:
    matches = total = 0.0
    for question in questions:
        if question.id in predictions:
            answer, golds = predictions[question.id], [text for text, _ in question.answers]
            matches += max(exact(gold, answer) for gold in golds)
            total += max(f1(gold, answer, both_empty=0.0) for gold in golds)
    count = len(questions)
    return {"exact_match": 100 * matches / count, "f1": 100 * total / count}


def _raw_v2(questions, predictions) -> tuple[dict[str, dict[str, float]], dict[str, bool]]:
    """(score -> question -> value, question -> whether it has an answer) without a threshold, of
    the questions that are answered."""
    raw: dict[str, dict[str, float]] = {"exact": {}, "f1": {}}
    for question in questions:
        if question.id in predictions:
            golds = [text for text, _ in question.answers if normalised(text)] or [""]
            answer = predictions[question.id]
            raw["exact"][question.id] = max(exact(gold, answer) for gold in golds)
            raw["f1"][question.id] = max(f1(gold, answer, both_empty=1.0) for gold in golds)
    return raw, {question.id: bool(question.answers) for question in questions}


def _score_v2(questions, predictions, null_odds, threshold) -> dict[str, float]:
    answered = [question for question in questions if question.id in predictions]
    raw, has_answer = _raw_v2(questions, predictions)

    def judged(scores: dict[str, float]) -> dict[str, float]:
        if null_odds is None or threshold is None:
            return scores
        return {
            key: float(not has_answer[key]) if null_odds[key] > threshold else value
            for key, value in scores.items()
        }

    scores = {name: judged(values) for name, values in raw.items()}
    result: dict[str, float] = {}
    groups = {"": True, "HasAns_": True, "NoAns_": False}
    for prefix, wanted in groups.items():
        keys = [q.id for q in answered if not prefix or has_answer[q.id] is wanted]
        if keys:
            for name, values in scores.items():
                result[f"{prefix}{name}"] = 100 * sum(values[key] for key in keys) / len(keys)
            result[f"{prefix}total"] = len(keys)
    if null_odds is not None:
        for name, values in raw.items():
            best, at = _best_threshold(predictions, values, null_odds, has_answer)
            result |= {f"best_{name}": best, f"best_{name}_thresh": at}
    return result


def _best_threshold(predictions, scores, null_odds, has_answer) -> tuple[float, float]:
    """The highest score that a threshold of the null odds reaches, and the lowest that does."""
    best, at = -1.0, 0.0
    for threshold, now in _by_threshold(predictions, scores, null_odds, has_answer):
        if now > best:
            best, at = now, threshold
    return 100 * best / len(scores), at


def _by_threshold(predictions, scores, null_odds, has_answer) -> Iterator[tuple[float, float]]:
    """(threshold of the null odds, sum of scores) by rising odds.

    Everything is unanswered at first, at a threshold of 0.0 as the official script says; then one
    answer after the other is added.
    """
    now = float(sum(not value for value in has_answer.values()))
    yield 0.0, now
    for key in sorted(null_odds, key=lambda k: null_odds[k]):
        if key not in scores:
            continue
        if has_answer[key]:
            now += scores[key]
        elif predictions[key]:
            now -= 1
        yield null_odds[key], now


def threshold_curve(
    questions: Sequence[Question], predictions: Mapping[str, str], null_odds: Mapping[str, float]
) -> dict[str, list[float]]:
    """What every threshold gives, of version 2.0: `threshold`, rising, with `exact` and `f1` in
    percent, where answers whose null odds are over it count as none."""
    raw, has_answer = _raw_v2(questions, predictions)
    found: dict[str, list[float]] = {}
    for name, values in raw.items():
        steps = list(_by_threshold(predictions, values, null_odds, has_answer))[1:]
        found["threshold"] = [threshold for threshold, _ in steps]
        found[name] = [100 * now / len(values) for _, now in steps]
    return found
