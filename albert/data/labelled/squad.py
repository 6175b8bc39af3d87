"""SQuAD's files, and windows of their paragraphs: [CLS] question [SEP] window [SEP].

Source: `convert_examples_to_features` of `squad_utils.py`, google-research/albert. That program
leaves questions out whose paragraph it cannot align; here none is. Never imports jax.
"""

import collections
import dataclasses
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from albert.data.labelled.alignment import Aligned, align
from albert.data.labelled.sequences import Sequences
from albert.data.sources.base import SourceError
from albert.data.tokenizer import CLS, SEP, Tokenizer, unwritable
from albert.runtime.console import warn
from albert.runtime.paths import place

_FIRST_ID = 1_000_000_000  # of windows, as there
_CHUNK = 1000  # questions that a process takes at once


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
    path = place(str(path))
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of UTF-8 and of JSON
        raise SourceError(f"{path} is not JSON in UTF-8: {error}") from error
    return questions_of(content, str(path))


def questions_of(content: Any, where: str) -> list[Question]:
    """The questions of a file's JSON; `where`: for messages. Raises SourceError."""
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
        if wrong := unwritable(getattr(question, name)):
            raise SourceError(f"{where}: {name} has {wrong}")
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


class Options(NamedTuple):
    """How questions become windows."""

    seq_length: int
    doc_stride: int
    max_question: int
    training: bool


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of questions, one behind the other.

    Arrays over tokens are as long as `ids`, those over windows have a number for each. `first` and
    `last` are the characters of a token in its paragraph, -1 for what is none of the paragraph's;
    `is_best`: no other window has more context for it. Positions are of the first answer; 0 where
    the window does not hold all of it, which `is_impossible` says.
    """

    ids: np.ndarray  # int32, over tokens
    first: np.ndarray  # int32, over tokens
    last: np.ndarray  # int32, over tokens
    is_best: np.ndarray  # bool, over tokens
    starts: np.ndarray  # int64 [windows + 1], where each begins
    seconds: np.ndarray  # int32, over windows: the position of the paragraph's first token
    example: np.ndarray  # int32, over windows: the question's number
    place: np.ndarray  # int32, over windows: which of the question's
    start_position: np.ndarray  # int32, over windows
    end_position: np.ndarray  # int32, over windows
    is_impossible: np.ndarray  # int32, over windows

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def sequences(self) -> Sequences:
        """The tokens, as rows of a batch."""
        return Sequences(self.ids, self.starts, self.seconds, 0)

    def padded(self, seq_length: int) -> dict[str, np.ndarray]:
        """The fields of `features`, without those of training."""
        lengths = np.diff(self.starts)
        inside = np.arange(seq_length) < lengths[:, None]

        def spread(values: np.ndarray, filling) -> np.ndarray:
            array = np.full(inside.shape, filling, values.dtype)
            array[inside] = values
            return array

        position = np.arange(seq_length)
        rows = self.sequences.padded(range(len(self)), seq_length)
        of_paragraph = (position >= self.seconds[:, None]) & (position < lengths[:, None] - 1)
        found = {
            "input_ids": rows["input_ids"],
            "input_mask": rows["attention_mask"],
            "segment_ids": rows["token_type_ids"],
            "p_mask": (~of_paragraph & (position > 0)).astype(np.int32),
            "token_is_max_context": spread(self.is_best, False),
            "paragraph_len": lengths.astype(np.int32),
            "unique_id": _FIRST_ID + np.arange(len(self), dtype=np.int64),
            "example_index": self.example,
            "doc_span_index": self.place,
        }
        # Characters are listed from the paragraph's first token on, not by position.
        for name, values in (("start", self.first), ("end", self.last)):
            listed = np.full(inside.shape, -1, np.int32)
            count = of_paragraph.sum(1)
            listed[position < count[:, None]] = values[values >= 0]
            found[f"tok_{name}_to_orig_index"] = listed
        return found


def make_windows(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    options: Options,
    workers: int = 0,
    exactly: bool = True,
) -> Windows:
    """The windows of all questions, by several processes where there are many.

    `exactly`: as in `align`.

    Raises:
      SourceError: a paragraph has no text; for training, an answerable question no answer.
      ValueError: a row has no room for a window.
    """
    if options.seq_length < options.max_question + 4:
        raise ValueError(
            f"seq_length {options.seq_length} leaves no room behind a question of "
            f"{options.max_question} pieces"
        )
    chunks = [
        (begin, questions[begin : begin + _CHUNK]) for begin in range(0, len(questions), _CHUNK)
    ]
    if workers < 2 or len(chunks) < 4:
        made = [_make(tokenizer, options, *chunk, exactly) for chunk in chunks]
    else:
        spawn = multiprocessing.get_context("spawn")  # this process may have threads of jax
        with ProcessPoolExecutor(workers, spawn, _take, (tokenizer, options)) as pool:
            made = list(pool.map(_make_here, chunks))
    names = [field.name for field in dataclasses.fields(Windows) if field.name != "starts"]
    arrays = {name: np.concatenate([part[name] for part, _ in made]) for name in names}
    lengths = np.concatenate([part["lengths"] for part, _ in made])
    unaligned = sum(count for _, count in made)
    if exactly and unaligned:
        warn(
            "Paragraphs that cannot be aligned as the released program does, which leaves their "
            f"questions out: {unaligned}. Their pieces are placed by what SentencePiece says of "
            "them, and no question is left out."
        )
    return Windows(starts=np.append(0, np.cumsum(lengths)), **arrays)


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

    Raises: as `make_windows`.
    """
    options = Options(seq_length, doc_stride, max_question, training)
    windows = make_windows([Question(*each) for each in questions], tokenizer, options)
    found = windows.padded(seq_length)
    if training:
        for name in ("start_position", "end_position", "is_impossible"):
            found[name] = getattr(windows, name)
    return found


def _make(
    tokenizer: Tokenizer,
    options: Options,
    begin: int,
    questions: Sequence[Question],
    exactly: bool = True,
) -> tuple[dict[str, np.ndarray], int]:
    """(arrays of the windows of some questions, paragraphs aligned by surfaces)."""
    paragraphs: dict[str, Aligned] = {}
    rows: dict[str, list] = collections.defaultdict(list)
    asked = tokenizer.encode_batch([question.question for question in questions])
    for number, question in enumerate(questions, begin):
        if question.context not in paragraphs:
            paragraphs[question.context] = align(question.context, tokenizer, exactly)
        paragraph = paragraphs[question.context]
        if not len(paragraph.ids):
            raise SourceError(f"question {question.id}: its paragraph has no text")
        target = _target(question, paragraph) if options.training else None
        pieces = asked[number - begin][: options.max_question]
        offset = len(pieces) + 2
        room = options.seq_length - offset - 1
        spans = _spans(len(paragraph.ids), room, options.doc_stride)
        best = _best_spans(spans, len(paragraph.ids))
        none = np.full(offset, -1)
        for window, (start, length) in enumerate(spans):
            inside = slice(start, start + length)
            rows["ids"].append(np.concatenate([[CLS], pieces, [SEP], paragraph.ids[inside], [SEP]]))
            rows["first"].append(np.concatenate([none, paragraph.starts[inside], none[:1]]))
            rows["last"].append(np.concatenate([none, paragraph.ends[inside], none[:1]]))
            rows["is_best"].append(np.concatenate([none > 0, best[inside] == window, none[:1] > 0]))
            rows["lengths"].append(offset + length + 1)
            rows["seconds"].append(offset)
            rows["example"].append(number)
            rows["place"].append(window)
            holds = bool(target and start <= target[0] and target[1] < start + length)
            rows["start_position"].append(target[0] - start + offset if target and holds else 0)
            rows["end_position"].append(target[1] - start + offset if target and holds else 0)
            rows["is_impossible"].append(int(not holds))
    over_tokens = {
        name: np.concatenate(rows.pop(name)).astype(kind)
        for name, kind in (
            ("ids", np.int32),
            ("first", np.int32),
            ("last", np.int32),
            ("is_best", bool),
        )
    }
    over_windows = {name: np.asarray(values, np.int32) for name, values in rows.items()}
    unaligned = sum(paragraph.way == "surfaces" for paragraph in paragraphs.values())
    return over_tokens | over_windows, unaligned


_here: tuple[Tokenizer, Options]


def _take(tokenizer: Tokenizer, options: Options) -> None:
    global _here
    _here = tokenizer, options


def _make_here(chunk: tuple[int, Sequence[Question]]):
    return _make(*_here, *chunk)


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
    for window, (start, length) in enumerate(spans):
        left = np.arange(length)
        scores[window, start : start + length] = np.minimum(left, left[::-1]) + 0.01 * length
    return np.argmax(scores, axis=0) if len(spans) else np.zeros(0, np.int64)
