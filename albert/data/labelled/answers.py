"""Answers to questions, from the scores of positions in windows of their paragraphs.

Source: `write_predictions_v1` and `write_predictions_v2` of `squad_utils.py`,
google-research/albert. Never imports jax.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from albert.data.labelled.squad import Question

NO_ANSWER = "empty"  # what version 1.1 answers where no span may be chosen
NEVER = -1e6  # score of the answer "" where no span may be chosen
N_BEST = 20  # answers of a question, and positions of a window in version 1.1


def grid(starts, ends, start_scores, end_scores):
    """Every start with every end, start by start."""
    one, other = (
        np.repeat(np.arange(len(starts)), len(ends)),
        np.tile(np.arange(len(ends)), len(starts)),
    )
    return starts[one], ends[other], start_scores[one], end_scores[other]


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


def ranked(
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
    n_best: int = N_BEST,
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

    pairs = []
    for start_logits, end_logits in logits:
        of_checkpoint = []
        for starts, ends in zip(start_logits, end_logits, strict=True):
            s, e = (np.argsort(-scores, kind="stable")[:n_best] for scores in (starts, ends))
            of_checkpoint.append(grid(s, e, starts[s], ends[e]))
        pairs.append(of_checkpoint)
    return ranked(questions, windows, pairs, n_best, max_answer, NO_ANSWER, 0.0)


def answers_v2(
    questions: Sequence[Question],
    windows: Mapping[str, np.ndarray],
    beams: Sequence[Mapping[str, np.ndarray]],
    n_best: int = N_BEST,
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
            odds[question.id].append(lowest.get(number, -NEVER))
    found = ranked(questions, windows, pairs, n_best, max_answer, "", NEVER)
    return found, {key: float(np.mean(values)) for key, values in odds.items()}


def texts(answers: Mapping[str, Sequence[Mapping]]) -> dict[str, str]:
    """Question -> its best answer, as the official scripts take it."""
    return {key: best[0]["text"] for key, best in answers.items()}


def with_threshold(
    predictions: Mapping[str, str], null_odds: Mapping[str, float], threshold: float
) -> dict[str, str]:
    """Version 2.0: an answer where the null odds are up to the threshold, else ""."""
    return {key: text if null_odds[key] <= threshold else "" for key, text in predictions.items()}
