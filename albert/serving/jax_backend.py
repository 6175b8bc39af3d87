"""The model of `albert.load`, computed by JAX."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from albert.data.padding import bucket
from albert.inference import Pretrained, padded_length
from albert.serving.backend import MASKS, Card, Row, Shapes, padded


class JaxBackend:
    """A `Backend`.

    Args:
      model: of `albert.load`.
      name: what it is called on the pages.
      batches, lengths: what programs are compiled for; each is grown to a size of `warm_up`, and
        the model's positions are always among the lengths.
      top: guesses at a [MASK] at most.
      abilities: fewer than the model has; None: all.

    Raises:
      ValueError: a size is no whole number of at least 1, or the model has no such ability.
    """

    def __init__(
        self,
        model: Pretrained,
        name: str,
        batches: Iterable[int],
        lengths: Iterable[int],
        top: int,
        abilities: Sequence[str] | None = None,
    ):
        limit = model.config.max_position_embeddings
        sizes = list(batches)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"batches is {sizes}; it must be whole numbers of at least 1.")
        if unknown := sorted({*(abilities or ())} - {*model.abilities}):
            raise ValueError(
                f"The model cannot {', '.join(unknown)}; it can {', '.join(model.abilities)}."
            )
        self.model = model
        self.top = min(top, model.config.vocab_size)
        if model.tokenizer:
            self.top = min(top, model.tokenizer.vocab_size)
        self.shapes = Shapes(
            tuple(sorted({bucket(size) for size in sizes})),
            tuple(sorted({*(padded_length(length, limit) for length in lengths), limit})),
        )
        fields = model.heads.get("classifier", {})
        names = tuple(model.label_names) if fields else model.labels
        self.card = Card(
            name=name,
            abilities=tuple(abilities or model.abilities),
            tokenizer=model.tokenizer,
            no_vocabulary=model.vocabulary_note or "There is no vocabulary beside the model",
            positions=limit,
            vocab_size=model.config.vocab_size,
            type_vocab_size=model.config.type_vocab_size,
            kind=fields.get("kind", "classes"),
            labels=names,
            threshold=model.heads.get("conditional_span", {}).get("threshold", 0.0),
            poolings=model.poolings,
            pooling=model.pooling,
        )

    def digest(self) -> str:
        tokenizer = self.card.tokenizer
        facts = {"model": dataclasses.asdict(self.model.config)}
        if tokenizer:
            flags = [tokenizer.lower_case, tokenizer.strip_accents]
            facts["vocabulary"] = {"pieces": tokenizer.fingerprint, "flags": flags}
        found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for path, array in sorted(flatten_dict(self.model.params, sep="/").items()):
            found.update(path.encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def warm_up(self, on_program: Callable[[str], None]) -> None:
        self.model.warm_up(
            self.shapes.lengths,
            self.shapes.batches,
            self.card.abilities,
            masks=MASKS,
            top=self.top,
            on_program=lambda made: on_program(
                f"{made.ability}: {made.rows} x {made.length}, {made.seconds:.1f} s"
            ),
        )

    def compute(self, ability: str, rows: Sequence[Row], shape: tuple[int, int]) -> list[Any]:
        arrays = padded(rows, shape)
        positions = arrays.pop("positions")
        found = self.model.compute(ability, arrays, positions, self.top)
        # Copies: an answer that waits to be sent does not keep the batch in memory.
        return [jax.tree.map(functools.partial(_copied, at), found) for at in range(len(rows))]


def _copied(at: int, array: np.ndarray) -> np.ndarray:
    return np.array(array[at])
