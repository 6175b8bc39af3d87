"""What the service asks of a model, whoever computes it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from albert.data.tokenizer import CLS, PAD, Tokenizer

# [MASK]s of a row: a text with more of them is several rows, so that one program serves all.
MASKS = 4


@dataclasses.dataclass(frozen=True)
class Card:
    """What is to be known of a model but for its numbers.

    Attributes:
      name: what it is called on the pages.
      abilities: of `answers.ABILITIES`.
      tokenizer: its vocabulary; None: only ids can be given.
      no_vocabulary: why there is none.
      positions: tokens of a row at most.
      vocab_size: ids are below it.
      type_vocab_size: token types are below it.
      kind: of the classifier, one of `kinds.KINDS`.
      labels: what the classifier tells apart, or what words are, by names where they have some.
      threshold: of SQuAD 2.0: there is no answer where the odds are over it.
      poolings: of its sentence vectors; `pooling`: the one that they were trained with.
    """

    name: str
    abilities: tuple[str, ...]
    tokenizer: Tokenizer | None
    no_vocabulary: str
    positions: int
    vocab_size: int
    type_vocab_size: int
    kind: str
    labels: tuple[str, ...]
    threshold: float
    poolings: tuple[str, ...]
    pooling: str


class Row(NamedTuple):
    """A sequence of pieces to be computed.

    `length`: as long as it is padded at least, which is its own length but for windows of one
    question. `positions`: where to guess, at most MASKS of them.
    """

    ids: np.ndarray  # int32 [L]
    types: np.ndarray  # int32 [L], token types
    length: int
    positions: tuple[int, ...] = ()


def row_of(
    ids: Sequence[int] | np.ndarray,
    types: Sequence[int] | np.ndarray,
    length: int = 0,
    positions: Sequence[int] = (),
) -> Row:
    ids, types = np.asarray(ids, np.int32), np.asarray(types, np.int32)
    return Row(ids, types, max(length, len(ids)), tuple(positions))


class Shapes(NamedTuple):
    """What programs are compiled for: every batch has one of these sizes and lengths, ascending."""

    batches: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def full(self) -> int:
        return self.batches[-1]

    def batch_for(self, rows: int) -> int:
        """The smallest size with room for so many rows, at most `full` of them."""
        return next(size for size in self.batches if size >= rows)

    def length_for(self, length: int) -> int:
        """The smallest length for a row, which the model has positions for."""
        return next(size for size in self.lengths if size >= length)


class Backend(Protocol):
    """A model that can be computed. `compute` is called by one thread at a time."""

    card: Card
    shapes: Shapes

    def warm_up(self, on_program: Callable[[str], None]) -> None:
        """Makes ready every program of `shapes`; calls `on_program` with a line for each."""

    def compute(self, ability: str, rows: Sequence[Row], shape: tuple[int, int]) -> list[Any]:
        """For every row what `Pretrained.compute` says of one, in a batch of a shape of `shapes`.

        "fill_mask": (probabilities, ids), [MASKS, top] each. "tag" and "answer" have numbers for
        at least the positions of the row's `length`.
        """

    def digest(self) -> str:
        """Of all that its sentence vectors depend on: those of two backends may be compared where
        it is the same."""


def padded(rows: Sequence[Row], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """int32 `input_ids`, `attention_mask` and `token_type_ids` of a shape [B, L], and `positions`
    [B, MASKS]. What is added is [PAD], rows of [CLS] alone, and position 0."""
    arrays = {
        "input_ids": np.full(shape, PAD, np.int32),
        "attention_mask": np.zeros(shape, np.int32),
        "token_type_ids": np.zeros(shape, np.int32),
        "positions": np.zeros((shape[0], MASKS), np.int32),
    }
    arrays["input_ids"][len(rows) :, 0] = CLS
    arrays["attention_mask"][len(rows) :, 0] = 1
    for place, row in enumerate(rows):
        arrays["input_ids"][place, : len(row.ids)] = row.ids
        arrays["attention_mask"][place, : len(row.ids)] = 1
        arrays["token_type_ids"][place, : len(row.ids)] = row.types
        arrays["positions"][place, : len(row.positions)] = row.positions
    return arrays
