"""SQuAD 1.1 and 2.0: questions, windows, answers and official scores.

Sources: `squad_utils.py` of google-research/albert for windows and answers, and SQuAD's own scripts
(Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822) for scores. What that program does
otherwise, and is not copied: it leaves questions out whose paragraph it cannot align, answers only
below a threshold that was chosen with "up to it", and compares logits with a threshold that is for
probabilities.
"""

import collections
import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from albert.data.labelled.alignment import Aligned, align
from albert.data.sources.base import SourceError
from albert.data.tokenizer import CLS, PAD, SEP, Tokenizer
from albert.runtime.console import warn

NO_ANSWER = "empty"  # what version 1.1 answers where no span may be chosen
_FIRST_ID = 1_000_000_000  # of windows, as there
_NEVER = -1e6  # score of the answer "" where no span may be chosen


class Question(NamedTuple):
    """One entry of a data set: a question on a paragraph."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]  # text, and the character that it begins at
    is_impossible: bool | None  # None: of version 1.1, where every question has an answer


def read(path: str | Path) -> list[Question]:
    """The questions of an official JSON file, in their order.

    Raises SourceError where it is no such file, an answer lies outside of its paragraph or does not
    occur in it; names file, question and field.
    """
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of UTF-8 and of JSON
        raise SourceError(f"{path} is not JSON in UTF-8: {error}") from error
    return _questions(content, str(path))


def _questions(content: Any, where: str) -> list[Question]:
    found = []
    try:
        for number, article in enumerate(content["data"]):
            for place, paragraph in enumerate(article["paragraphs"]):
                at = f"{where}, article {number}, paragraph {place}"
                context = paragraph["context"]
                for entry in paragraph["qas"]:
                    at = f"{where}, question {entry['id']}"
                    answers = tuple(
                        (each["text"], each["answer_start"]) for each in entry.get("answers", ())
                    )
                    found.append(
                        Question(
                            entry["id"],
                            entry["question"],
                            context,
                            answers,
                            entry.get("is_impossible"),
                        )
                    )
                    _check(found[-1], at)
    except (KeyError, TypeError, IndexError) as error:
        raise SourceError(
            f"{where} is not of SQuAD's form: there is no {error}. It has data, paragraphs, "
            "context and qas with id, question and answers."
        ) from error
    if not found:
        raise SourceError(f"{where} holds no questions")
    return found


def _check(question: Question, where: str) -> None:
    for name in ("id", "question", "context"):
        if not isinstance(getattr(question, name), str):
            raise SourceError(f"{where}: {name} is {getattr(question, name)!r}, not a text")
    for text, start in question.answers:
        if not isinstance(text, str) or type(start) is not int:
            raise SourceError(f"{where}: an answer is {text!r} at {start!r}")
        if not 0 <= start <= len(question.context) - len(text):
            raise SourceError(
                f"{where}: answer_start is {start} of {text!r}, and the paragraph has "
                f"{len(question.context)} characters"
            )
        if text not in question.context:
            raise SourceError(f"{where}: the answer {text!r} does not occur in its paragraph")


def features(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    seq_length: int = 384,
    doc_stride: int = 128,
    max_question: int = 64,
    training: bool = False,
) -> dict[str, np.ndarray]:
    """Every question as windows of its paragraph: [CLS] question [SEP] window [SEP].

    Returns:
      Arrays with a row for each window. [W, L]: int32 `input_ids`, `input_mask`, `segment_ids`,
      `p_mask` (1: may not be chosen), `tok_start_to_orig_index` and `tok_end_to_orig_index` (the
      characters of the window's tokens in the paragraph, -1 behind the last), bool
      `token_is_max_context` by position. [W]: `example_index`, `unique_id`, `doc_span_index`,
      `paragraph_len`. With `training`, [W]: `start_position`, `end_position` and `is_impossible`
      of the first answer; 0, 0 and 1 where the window does not hold all of it.

    Raises:
      SourceError: a paragraph has no text; with `training`, an answerable question no answer.
      ValueError: a row has no room for a window.
    """
    if seq_length < max_question + 4:
        raise ValueError(
            f"seq_length {seq_length} leaves no room behind a question of {max_question} pieces"
        )
    paragraphs: dict[str, Aligned] = {}
    rows: list[dict[str, Any]] = []
    ways: collections.Counter = collections.Counter()
    for number, question in enumerate(questions):
        if question.context not in paragraphs:
            paragraphs[question.context] = align(question.context, tokenizer)
            ways[paragraphs[question.context].way] += 1
        paragraph = paragraphs[question.context]
        target = _target(question, paragraph) if training else None
        if not len(paragraph.ids):
            raise SourceError(f"question {question.id}: its paragraph has no text")
        asked = tokenizer.encode(question.question)[:max_question]
        spans = _spans(len(paragraph.ids), seq_length - len(asked) - 3, doc_stride)
        best = _best_spans(spans, len(paragraph.ids))
        for place, (start, length) in enumerate(spans):
            rows.append(
                {
                    "example_index": number,
                    "doc_span_index": place,
                    **_window(asked, paragraph, start, length, best == place, target),
                }
            )
    if ways["surfaces"]:
        warn(
            f"{ways['surfaces']} of {len(paragraphs)} paragraphs cannot be aligned as the released "
            "program does, which leaves their questions out; their pieces are placed by what "
            "SentencePiece says of them."
        )
    return _as_arrays(rows, seq_length, training)


def _target(question: Question, paragraph: Aligned) -> tuple[int, int] | None:
    """The pieces of the first answer; None for an unanswerable question."""
    if question.is_impossible:
        return None
    if not question.answers:
        raise SourceError(f"question {question.id}: there is no answer to learn")
    text, start = question.answers[0]
    if not text:
        raise SourceError(f"question {question.id}: the answer is empty")
    return paragraph.pieces_of(start, start + len(text) - 1)


def _spans(count: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(first token, tokens) of every window of a paragraph; none of one without tokens."""
    spans = []
    start = 0
    while start < count:
        length = min(count - start, room)
        spans.append((start, length))
        if start + length == count:
            break
        start += min(length, stride)
    return spans


def _best_spans(spans: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """int [tokens]: the window in which each has the most context, the first of equals."""
    scores = np.full((len(spans), count), -np.inf)
    for place, (start, length) in enumerate(spans):
        left = np.arange(length)
        scores[place, start : start + length] = np.minimum(left, left[::-1]) + 0.01 * length
    return np.argmax(scores, axis=0) if len(spans) else np.zeros(0, np.int64)


def _window(asked, paragraph: Aligned, start: int, length: int, is_best, target) -> dict[str, Any]:
    inside = slice(start, start + length)
    offset = len(asked) + 2
    row = {
        "input_ids": [CLS, *asked, SEP, *paragraph.ids[inside].tolist(), SEP],
        "segment_ids": [0] * offset + [1] * (length + 1),
        "p_mask": [0] + [1] * (offset - 1) + [0] * length + [1],
        "tok_start_to_orig_index": paragraph.starts[inside],
        "tok_end_to_orig_index": paragraph.ends[inside],
        "token_is_max_context": [False] * offset + is_best[inside].tolist(),
        "start_position": 0,
        "end_position": 0,
        "is_impossible": 1,
    }
    if target and start <= target[0] and target[1] < start + length:
        row["start_position"] = target[0] - start + offset
        row["end_position"] = target[1] - start + offset
        row["is_impossible"] = 0
    return row


# Fields of windows with a number for every position, and what stands behind their last.
_FILLING = {
    "input_ids": PAD,
    "segment_ids": 0,
    "p_mask": 1,
    "tok_start_to_orig_index": -1,
    "tok_end_to_orig_index": -1,
    "token_is_max_context": 0,
}


def _as_arrays(rows: list[dict], seq_length: int, training: bool) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, filling in _FILLING.items():
        array = np.full((len(rows), seq_length), filling, np.int32)
        for place, row in enumerate(rows):
            array[place, : len(row[name])] = row[name]
        arrays[name] = array
    arrays["token_is_max_context"] = arrays["token_is_max_context"].astype(bool)
    lengths = np.asarray([len(row["input_ids"]) for row in rows], np.int32)
    arrays["input_mask"] = (np.arange(seq_length) < lengths[:, None]).astype(np.int32)
    arrays["paragraph_len"] = lengths
    arrays["unique_id"] = _FIRST_ID + np.arange(len(rows), dtype=np.int64)
    single = ["example_index", "doc_span_index"]
    single += ["start_position", "end_position", "is_impossible"] if training else []
    for name in single:
        arrays[name] = np.asarray([row[name] for row in rows], np.int32)
    return arrays


# Answers.


def _candidates(windows, row: int, starts, ends, max_answer: int) -> np.ndarray:
    """Which pairs of positions may be an answer: bool [pairs]."""
    first = int(np.argmax(windows["segment_ids"][row]))  # of the paragraph's tokens
    count = int((windows["tok_start_to_orig_index"][row] >= 0).sum())
    is_best = windows["token_is_max_context"][row].astype(bool)
    return (
        (starts >= first)
        & (starts < first + count)
        & (ends < first + count)
        & is_best[starts]
        & (ends >= starts)
        & (ends - starts < max_answer)
    )


def _ranked(
    questions: Sequence[Question],
    windows: Mapping[str, np.ndarray],
    pairs: Sequence[Sequence[tuple]],
    n_best: int,
    max_answer: int,
    nothing: str,
    score_of_nothing: float,
) -> dict[str, list[dict]]:
    """Question -> its best answers, the best first.

    pairs: of every checkpoint, for every window: (starts, ends, scores of starts, of ends). A span
    that several checkpoints have found has the mean of their scores.
    """
    by_question = collections.defaultdict(list)
    for row, number in enumerate(windows["example_index"].tolist()):
        by_question[number].append(row)
    found = {}
    for number, question in enumerate(questions):
        spans: dict[tuple[int, int, int], list] = {}
        for of_checkpoint in pairs:
            for row in by_question[number]:
                starts, ends, start_scores, end_scores = of_checkpoint[row]
                allowed = _candidates(windows, row, starts, ends, max_answer)
                for at in np.flatnonzero(allowed).tolist():
                    key = row, int(starts[at]), int(ends[at])
                    scores = float(start_scores[at]), float(end_scores[at])
                    spans.setdefault(key, []).append(scores)
        means = [
            (key, sum(s for s, _ in scores) / len(scores), sum(e for _, e in scores) / len(scores))
            for key, scores in spans.items()
        ]
        means.sort(key=lambda each: each[1] + each[2], reverse=True)
        answers: list[dict] = []
        seen = set()
        for (row, start, end), start_score, end_score in means:
            if len(answers) == n_best:
                break
            first = int(np.argmax(windows["segment_ids"][row]))
            begin = int(windows["tok_start_to_orig_index"][row, start - first])
            last = int(windows["tok_end_to_orig_index"][row, end - first])
            text = question.context[begin : last + 1].strip()
            if text in seen:
                continue
            seen.add(text)
            answers.append(
                {"text": text, "start_log_prob": start_score, "end_log_prob": end_score}
                | {"start": begin, "end": last + 1}
            )
        if not answers:
            answers = [
                {"text": nothing, "start": 0, "end": 0}
                | dict.fromkeys(("start_log_prob", "end_log_prob"), score_of_nothing)
            ]
        totals = np.asarray([a["start_log_prob"] + a["end_log_prob"] for a in answers])
        shares = np.exp(totals - totals.max())
        for answer, share in zip(answers, shares / shares.sum(), strict=True):
            answer["probability"] = float(share)
        found[question.id] = answers
    return found


def answers_v1(
    questions: Sequence[Question],
    windows: Mapping[str, np.ndarray],
    logits: Sequence[tuple[np.ndarray, np.ndarray]],
    n_best: int = 20,
    max_answer: int = 30,
) -> dict[str, list[dict]]:
    """The best answers of version 1.1 to every question, the best first.

    Args:
      questions, windows: as `features` has made them.
      logits: of every checkpoint of an ensemble, or of one: of starts and of ends, [W, L].
      n_best: answers of a question, and positions of a window, at most.
      max_answer: pieces of an answer at most.

    Returns:
      Question's id -> dicts with "text", "probability", "start_log_prob", "end_log_prob" (these are
      logits), and "start" and "end", characters of the paragraph. "empty" where no span may be
      chosen.
    """

    def best(row: np.ndarray) -> np.ndarray:
        return np.argsort(-row, kind="stable")[:n_best]

    pairs = []
    for start_logits, end_logits in logits:
        of_checkpoint = []
        for starts_of, ends_of in zip(start_logits, end_logits, strict=True):
            starts, ends = (
                grid.ravel() for grid in np.meshgrid(best(starts_of), best(ends_of), indexing="ij")
            )
            of_checkpoint.append((starts, ends, starts_of[starts], ends_of[ends]))
        pairs.append(of_checkpoint)
    return _ranked(questions, windows, pairs, n_best, max_answer, NO_ANSWER, 0.0)


def answers_v2(
    questions: Sequence[Question],
    windows: Mapping[str, np.ndarray],
    beams: Sequence[Mapping[str, np.ndarray]],
    n_best: int = 20,
    max_answer: int = 30,
) -> tuple[dict[str, list[dict]], dict[str, float]]:
    """The best answers of version 2.0 to every question, whether it has one or not, and how much
    speaks for none.

    Args:
      questions, windows, n_best, max_answer: as in `answers_v1`.
      beams: of every checkpoint: `start_top_index` and `start_top_log_probs` [W, S],
        `end_top_index` and `end_top_log_probs` [W, S * E], start by start, `cls_logits` [W].

    Returns:
      (answers, null odds by question: the lowest logit of its windows, the mean over checkpoints).
      "" where no span may be chosen.
    """
    pairs = []
    odds: dict[str, list[float]] = {question.id: [] for question in questions}
    for beam in beams:
        many = beam["end_top_index"].shape[1] // beam["start_top_index"].shape[1]
        starts = np.repeat(beam["start_top_index"], many, axis=1)
        scores = np.repeat(beam["start_top_log_probs"], many, axis=1)
        pairs.append(
            list(zip(starts, beam["end_top_index"], scores, beam["end_top_log_probs"], strict=True))
        )
        lowest: dict[int, float] = {}
        for number, logit in zip(
            windows["example_index"].tolist(), beam["cls_logits"].tolist(), strict=True
        ):
            lowest[number] = min(logit, lowest.get(number, np.inf))
        for number, question in enumerate(questions):
            odds[question.id].append(lowest.get(number, -_NEVER))
    found = _ranked(questions, windows, pairs, n_best, max_answer, "", _NEVER)
    return found, {key: float(np.mean(values)) for key, values in odds.items()}


def texts(answers: Mapping[str, Sequence[Mapping]]) -> dict[str, str]:
    """Question -> its best answer, as the official scripts take it."""
    return {key: best[0]["text"] for key, best in answers.items()}


def with_threshold(
    predictions: Mapping[str, str], null_odds: Mapping[str, float], threshold: float
) -> dict[str, str]:
    """Version 2.0: an answer where the null odds are up to the threshold, else ""."""
    return {key: text if null_odds[key] <= threshold else "" for key, text in predictions.items()}


# Scores.


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
        questions = _questions(dataset, "the data set")
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


def _score_v2(questions, predictions, null_odds, threshold) -> dict[str, float]:
    answered = [question for question in questions if question.id in predictions]
    has_answer = {question.id: bool(question.answers) for question in questions}
    raw: dict[str, dict[str, float]] = {"exact": {}, "f1": {}}
    for question in answered:
        golds = [text for text, _ in question.answers if normalised(text)] or [""]
        answer = predictions[question.id]
        raw["exact"][question.id] = max(exact(gold, answer) for gold in golds)
        raw["f1"][question.id] = max(f1(gold, answer, both_empty=1.0) for gold in golds)

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
    """The highest score that a threshold of the null odds reaches, and the lowest such threshold.

    Everything is unanswered at first, at a threshold of 0.0 as the official script says; by rising
    odds one answer after the other is added.
    """
    now = best = float(sum(not value for value in has_answer.values()))
    at = 0.0
    for key in sorted(null_odds, key=lambda k: null_odds[k]):
        if key not in scores:
            continue
        if has_answer[key]:
            now += scores[key]
        elif predictions[key]:
            now -= 1
        if now > best:
            best, at = now, null_odds[key]
    return 100 * best / len(scores), at
