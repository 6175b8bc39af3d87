"""Labelled examples as the rows of a run: in a new order every epoch, padded as little as shapes
allow. Never imports jax.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from albert.data.labelled.sequences import Sequences
from albert.data.loader import Batch
from albert.data.padding import bucket

_ORDER_STREAM = 5  # beside those of albert/data/pretraining/plan.py
_SHORTEST = 16  # tokens: shorter batches are padded to it


class LabelledRows:
    """Rows of `Sequences` with what is known of each. Picklable.

    A batch is as long as its longest row, padded to the next of few lengths: padding changes no
    number, and programs are compiled for few shapes. The order of an epoch is drawn by its number
    and the seed alone, every example once.
    """

    def __init__(
        self,
        sequences: Sequences,
        fields: Mapping[str, np.ndarray],
        seq_length: int,
        seed: int | None = None,
        group: int = 0,
        is_fixed: bool = False,
        of_tokens: Mapping[str, np.ndarray] | None = None,
    ):
        """Args:
        sequences: the tokens.
        fields: name -> an array with the examples as its first axis. A row of padding has zeros.
        seq_length: no batch is longer.
        seed: of the order; None: as they are.
        group: so many sequences, one behind the other, are an example: arrays are [n, group, L].
          0: each is one, and arrays are [n, L].
        is_fixed: batches are all `seq_length` long, for losses that padding is part of.
        of_tokens: name -> a whole number for every token of `sequences`; -1 for padding.
        """
        self.sequences, self.fields = sequences, dict(fields)
        self._length, self._seed, self._group = seq_length, seed, group
        self._shortest = seq_length if is_fixed else _SHORTEST
        self._of_tokens = dict(of_tokens or {})
        self._lengths = sequences.lengths.reshape(-1, group or 1).max(1)
        self.rows_per_epoch = len(self._lengths)
        self._order = lru_cache(maxsize=2)(self._find_order)

    def __reduce__(self):
        is_fixed = self._shortest == self._length
        arguments = self.sequences, self.fields, self._length, self._seed, self._group, is_fixed
        return (LabelledRows, (*arguments, self._of_tokens))

    def _find_order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((_ORDER_STREAM, self._seed or 0, epoch))
        return rng.permutation(self.rows_per_epoch)

    def examples(self, rows: Sequence[int]) -> np.ndarray:
        """Which example each row is; -1 for a negative one, which is padding."""
        numbers = np.asarray(rows, np.int64)
        if self._seed is None:
            return np.where(numbers < 0, -1, numbers % max(self.rows_per_epoch, 1))
        epochs, places = np.divmod(numbers, self.rows_per_epoch)
        found = np.full(len(numbers), -1, np.int64)
        for epoch in set(epochs.tolist()):
            if epoch >= 0:
                chosen = epochs == epoch
                found[chosen] = self._order(epoch)[places[chosen]]
        return found

    def batch(self, rows: Sequence[int], whole: Sequence[int] | None = None) -> Batch:
        examples = self.examples(rows)
        others = examples if whole is None else self.examples(whole)
        longest = int(self._lengths[others[others >= 0]].max(initial=0))
        length = min(max(bucket(longest), self._shortest), self._length)
        if self._group:
            inside = examples[:, None] * self._group + np.arange(self._group)
            inside = np.where(examples[:, None] < 0, -1, inside)
            flat = self.sequences.padded(inside.ravel(), length)
            arrays = {n: v.reshape(-1, self._group, length) for n, v in flat.items()}
        else:
            arrays = self.sequences.padded(examples, length)
        for name, values in self._of_tokens.items():
            arrays[name] = np.full((len(examples), length), -1, np.int32)
            for place, example in enumerate(examples.tolist()):
                if example >= 0:
                    begin, end = self.sequences.starts[example : example + 2]
                    arrays[name][place, : end - begin] = values[begin:end]
        real = examples >= 0
        for name, values in self.fields.items():
            chosen = values[examples]
            chosen[~real] = 0
            arrays[name] = chosen
        return arrays
