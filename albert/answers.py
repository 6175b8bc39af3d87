"""What a model may be asked, and its answers made of numbers, whoever has computed these. Never
imports jax."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from albert.data.labelled.answers import answers_v1, answers_v2
from albert.data.labelled.squad import Question, Windows
from albert.data.labelled.words import WordRows
from albert.data.tokenizer import Tokenizer
from albert.models.kinds import label_probabilities

# What a model may be asked, by the names of its methods; which of them it has, `abilities` says.
ABILITIES = ("fill_mask", "encode", "classify", "choose", "tag", "answer")


class Guess(NamedTuple):
    """What could stand at a [MASK]."""

    text: str
    probability: float
    id: int


class Class(NamedTuple):
    """What a classifier says of a text."""

    label: str | float | list[str]  # a name; a number; or the names of all labels that fit
    probabilities: dict[str, float]  # of every label by its name; none for a number
    depth: int | None = None  # layers that it took, where it was asked to leave early


class Tag(NamedTuple):
    """What a word of a text is."""

    word: str
    label: str
    probability: float
    start: int  # characters of the text
    end: int


class Answer(NamedTuple):
    """What a text says to a question."""

    text: str | None  # None: no answer
    probability: float  # among the best spans
    start: int  # characters of the context
    end: int
    null_odds: float | None  # of SQuAD 2.0: the more, the less there is an answer


class Chosen(NamedTuple):
    """Which option answers a question."""

    number: int  # from 0
    option: str
    probabilities: list[float]  # of every option


def guesses_of(tokenizer: Tokenizer, probabilities: np.ndarray, ids: np.ndarray) -> list[Guess]:
    """What could stand at a [MASK], of the numbers of the likeliest pieces, [top] each."""
    return [
        Guess(tokenizer.decode([i]) or tokenizer.pieces([i])[0], float(p), int(i))
        for p, i in zip(probabilities, ids, strict=True)
    ]


def class_of(kind: str, names: Sequence[str], logits: np.ndarray) -> Class:
    """What a classifier of a kind (`kinds.KINDS`) says, of its logits [labels]."""
    if kind == "number":
        return Class(float(logits[0]), {})
    shares = label_probabilities(kind, logits)
    probabilities = {n: float(p) for n, p in zip(names, shares, strict=True)}
    if kind == "classes":
        return Class(names[int(np.argmax(logits))], probabilities)
    return Class([n for n, p in probabilities.items() if p > 0.5], probabilities)


def chosen_of(options: Sequence[str], logits: np.ndarray) -> Chosen:
    """Which option it is, of the logits [options, 1]."""
    shares = label_probabilities("choice", logits[:, 0])
    best = int(np.argmax(shares))
    return Chosen(best, options[best], [float(share) for share in shares])


def words_of(text: str) -> list[tuple[str, tuple[int, int]]]:
    """The words of a text, which white space parts, with their first character and the one behind
    their last."""
    return [(match.group(), match.span()) for match in re.finditer(r"\S+", text)]


def tags_of(
    text: str, rows: WordRows, labels: Sequence[str], logits: Sequence[np.ndarray]
) -> list[Tag]:
    """What each word of a text is, of the logits [L, labels] of every row of it."""
    found: list[Tag] = []
    places = words_of(text)
    for row, scores in enumerate(logits):
        shares = label_probabilities("classes", scores)
        for position in rows.first_pieces(row):
            best = int(np.argmax(shares[position]))
            word, (begin, end) = places[len(found)]
            name = labels[best] if labels else str(best)
            found.append(Tag(word, name, float(shares[position, best]), begin, end))
    return found


def answer_of(
    question: Question, windows: Windows, found: Any, max_answer: int, threshold: float
) -> Answer:
    """What a text says to a question.

    Args:
      question: with the text; its id is "".
      windows: of this question alone.
      found: of `Pretrained.compute`, a row for each window, as long as the longest of them.
      max_answer: pieces of an answer at most.
      threshold: of SQuAD 2.0: there is no answer where the odds are over it.
    """
    fields = windows.padded(int(windows.sequences.lengths.max()))
    odds = None
    if isinstance(found, dict):
        beams = {
            "start_top_index": found["start_index"].astype(int),
            "start_top_log_probs": found["start"].astype(np.float64),
            "end_top_index": found["end_index"].astype(int),
            "end_top_log_probs": found["end"].astype(np.float64),
            "cls_logits": found["none"].astype(np.float64),
        }
        answers, all_odds = answers_v2([question], fields, [beams], max_answer=max_answer)
        best, odds = answers[""][0], all_odds[""]
        empty = not best["text"] or odds > threshold
    else:
        logits = found.astype(np.float64)
        scores = logits[..., 0], logits[..., 1]
        best = answers_v1([question], fields, [scores], max_answer=max_answer)[""][0]
        empty = best["start"] == best["end"]
    if empty:
        return Answer(None, 0.0, 0, 0, odds)
    begin = question.context.index(best["text"], best["start"])  # no white space at its ends
    return Answer(best["text"], best["probability"], begin, begin + len(best["text"]), odds)
