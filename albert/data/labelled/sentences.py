"""Sentences of prepared corpora as rows of their own: [CLS] sentence [SEP]. Never imports jax."""

from collections.abc import Iterator, Sequence

import numpy as np

from albert.data.corpus.reader import Corpus
from albert.data.labelled.sequences import Sequences
from albert.data.tokenizer import CLS, SEP

_CHOICE_STREAM = 7  # which sentences are taken
_AT_ONCE = 256  # sentences that are read together: a few passages


def corpus_sentences(corpora: Sequence[Corpus], most: int, seed: int, seq_length: int) -> Sequences:
    """Sentences of corpora in the order of the text, each a row that is cut at its end.

    Args:
      corpora: prepared, with ids of one vocabulary.
      most: so many are drawn at random, by the seed and how many there are; 0: all.
      seed: of the draw.
      seq_length: tokens of a row at most, with [CLS] and [SEP].
    """
    counts = [corpus.num_sentences for corpus in corpora]
    chosen = np.arange(sum(counts))
    if 0 < most < len(chosen):
        rng = np.random.default_rng((_CHOICE_STREAM, seed))
        chosen = np.sort(rng.choice(len(chosen), most, replace=False, shuffle=False))
    rows: list[np.ndarray] = []
    cut = 0
    ends = np.array([CLS], np.int32), np.array([SEP], np.int32)
    bounds = np.cumsum([0, *counts])
    for corpus, first, last in zip(corpora, bounds, bounds[1:], strict=False):
        begin, end = chosen.searchsorted((first, last))
        for ids in _read(corpus, chosen[begin:end] - first):
            cut += len(ids) > seq_length - 2
            rows.append(np.concatenate([ends[0], ids[: seq_length - 2], ends[1]]))
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    starts = np.append(0, np.cumsum(lengths))
    return Sequences(np.concatenate(rows), starts, lengths.astype(np.int32), cut)


def _read(corpus: Corpus, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """The ids of sentences by their numbers, which rise: int32 [tokens] each."""
    for first in range(0, corpus.num_sentences, _AT_ONCE):
        begin, end = chosen.searchsorted((first, first + _AT_ONCE))
        if begin == end:
            continue
        last = min(first + _AT_ONCE, corpus.num_sentences)
        ids = corpus.read(first, last)
        bounds = np.append(0, np.cumsum(corpus.sentence_lengths[first:last], dtype=np.int64))
        for sentence in chosen[begin:end] - first:
            yield ids[bounds[sentence] : bounds[sentence + 1]]
