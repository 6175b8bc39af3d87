"""Sentences of words as rows: [CLS] pieces [SEP], the first piece of every word for the word.

Never imports jax.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from albert.data.labelled.sequences import Sequences
from albert.data.tokenizer import CLS, SEP, UNK, Tokenizer


@dataclasses.dataclass(frozen=True)
class WordRows:
    """Rows of sentences, each sentence as many as it needs.

    Attributes:
      rows: the tokens.
      words: int32, over tokens: the number of the word in its sentence at its first piece, else -1.
      sentences: int32 [rows], which sentence each is of.
      empty: words without a piece, which are <unk>.
      cut: words that lost pieces, since they were longer than a row may be.
    """

    rows: Sequences
    words: np.ndarray
    sentences: np.ndarray
    empty: int
    cut: int

    def first_pieces(self, row: int) -> np.ndarray:
        """The positions of the first pieces of a row's words, in their order."""
        begin, end = self.rows.starts[row : row + 2]
        return np.flatnonzero(self.words[begin:end] >= 0)


def word_sequences(
    sentences: Sequence[Sequence[str]], tokenizer: Tokenizer, seq_length: int
) -> WordRows:
    """The rows of sentences. One that is longer than a row goes on in another, from the next word
    on; of a word that is longer than a row the first pieces stay.

    Args:
      sentences: words of each.
      tokenizer: the vocabulary.
      seq_length: tokens of a row at most, with [CLS] and [SEP].
    """
    distinct = list(dict.fromkeys(word for words in sentences for word in words))
    pieces = dict(zip(distinct, tokenizer.encode_batch(distinct), strict=True))
    ids: list[list[int]] = []
    numbers: list[list[int]] = []
    of: list[int] = []
    empty = cut = 0
    for sentence, words in enumerate(sentences):
        row: list[int] = []
        first: list[int] = []
        for number, word in enumerate(words):
            found = pieces[word][: seq_length - 2]
            cut += len(found) < len(pieces[word])
            empty += not found
            found = found or [UNK]
            if len(row) + len(found) > seq_length - 2:
                ids.append(row)
                numbers.append(first)
                of.append(sentence)
                row, first = [], []
            row = row + found
            first = first + [number] + [-1] * (len(found) - 1)
        ids.append(row)
        numbers.append(first)
        of.append(sentence)
    lengths = np.asarray([len(row) + 2 for row in ids], np.int64)
    flat = np.fromiter((i for row in ids for i in (CLS, *row, SEP)), np.int32, int(lengths.sum()))
    words_at = np.fromiter((n for row in numbers for n in (-1, *row, -1)), np.int32, len(flat))
    starts = np.append(0, np.cumsum(lengths))
    rows = Sequences(flat, starts, lengths.astype(np.int32), 0)
    return WordRows(rows, words_at, np.asarray(of, np.int32), empty, cut)
