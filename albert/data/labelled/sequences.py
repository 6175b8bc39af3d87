"""Texts and pairs of texts as the rows of a classifier: [CLS] A [SEP], or [CLS] A [SEP] B [SEP].

Source: `convert_single_example` and `_truncate_seq_pair` of `classifier_utils.py`,
google-research/albert. Never imports jax.
"""

import dataclasses
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from albert.data.tokenizer import CLS, PAD, SEP, Tokenizer

_CHUNK = 2000  # texts that a process takes at once
# Fewer texts than this are done before processes have started.
_ALONE = 20_000


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Rows of ids of any length, one behind the other; without padding.

    Attributes:
      ids: int32, of all rows.
      starts: int64 [rows + 1], where each begins in `ids`.
      seconds: int32 [rows], the position of the first token of type 1; the row's length where
        there is none.
      cut: rows that lost pieces, since they were longer than a row may be.
    """

    ids: np.ndarray
    starts: np.ndarray
    seconds: np.ndarray
    cut: int

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [rows]."""
        return np.diff(self.starts)

    def padded(self, rows: Sequence[int] | np.ndarray, length: int) -> dict[str, np.ndarray]:
        """int32 `input_ids`, `attention_mask` and `token_type_ids`, [rows, length] each.

        A negative row is padding throughout: [CLS] alone.
        """
        arrays = {
            "input_ids": np.full((len(rows), length), PAD, np.int32),
            "attention_mask": np.zeros((len(rows), length), np.int32),
            "token_type_ids": np.zeros((len(rows), length), np.int32),
        }
        for place, row in enumerate(rows):
            ids = self.ids[self.starts[row] : self.starts[row + 1]] if row >= 0 else [CLS]
            arrays["input_ids"][place, : len(ids)] = ids
            arrays["attention_mask"][place, : len(ids)] = 1
            if row >= 0:
                arrays["token_type_ids"][place, self.seconds[row] : len(ids)] = 1
        return arrays


def first_alike(sequences: Sequences) -> np.ndarray:
    """The number of the first row with the same ids, for every row: int32 [rows]."""
    first: dict[bytes, int] = {}
    found = np.zeros(len(sequences), np.int32)
    for row in range(len(sequences)):
        ids = sequences.ids[sequences.starts[row] : sequences.starts[row + 1]]
        found[row] = first.setdefault(ids.tobytes(), row)
    return found


Cut = Callable[[list[int], list[int], int], tuple[list[int], list[int]]]


def make_sequences(
    pairs: Sequence[tuple[str, str | None]],
    tokenizer: Tokenizer,
    seq_length: int,
    workers: int = 0,
    cut: Cut | None = None,
) -> Sequences:
    """The rows of texts, or of pairs: a second text that is None or has no piece gives one segment.

    Args:
      pairs: (text, None) or (text, second text).
      tokenizer: the vocabulary.
      seq_length: tokens of a row at most, with [CLS] and [SEP].
      workers: processes that help where there is much to do; 0: none.
      cut: (pieces of both texts, pieces that a row has room for) -> what stays of them; by default
        `cut_the_longer`.
    """
    texts = dict.fromkeys(text for pair in pairs for text in pair if text)
    pieces = dict(zip(texts, _encode(list(texts), tokenizer, workers), strict=True))
    cut = cut or cut_the_longer
    rows, seconds, shorter = [], [], 0
    for first, second in pairs:
        a, b = pieces.get(first, []), pieces.get(second or "", [])
        before = len(a) + len(b)
        a, b = cut(a, b, seq_length - (3 if b else 2))
        shorter += len(a) + len(b) < before
        rows.append([CLS, *a, SEP, *b, SEP] if b else [CLS, *a, SEP])
        seconds.append(len(a) + 2)
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.fromiter((i for row in rows for i in row), np.int32, int(lengths.sum()))
    starts = np.append(0, np.cumsum(lengths))
    return Sequences(ids, starts, np.asarray(seconds, np.int32), shorter)


def cut_the_longer(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """Both cut to `room` pieces together: one by one at the end of the longer text, of the second
    where both are as long. A single text is cut at its end."""
    over = len(a) + len(b) - room
    if over <= 0:
        return a, b
    # The longer one alone until both are as long; then the second, the first, the second...
    from_longer = min(over, abs(len(a) - len(b)))
    over -= from_longer
    keep_a = len(a) - (from_longer if len(a) > len(b) else 0) - over // 2
    keep_b = len(b) - (0 if len(a) > len(b) else from_longer) - (over + 1) // 2
    return a[:keep_a], b[:keep_b]


def _encode(texts: list[str], tokenizer: Tokenizer, workers: int) -> list[list[int]]:
    if workers < 2 or len(texts) < _ALONE:
        return tokenizer.encode_batch(texts)
    chunks = [texts[i : i + _CHUNK] for i in range(0, len(texts), _CHUNK)]
    spawn = multiprocessing.get_context("spawn")  # this process may have threads of jax
    with ProcessPoolExecutor(workers, spawn, _take, (tokenizer,)) as pool:
        return [ids for chunk in pool.map(_encode_here, chunks) for ids in chunk]


_tokenizer: Tokenizer


def _take(tokenizer: Tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer


def _encode_here(texts: list[str]) -> list[list[int]]:
    return _tokenizer.encode_batch(texts)
