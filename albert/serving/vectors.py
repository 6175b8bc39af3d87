"""Vectors of texts by a backend, for an index of sentences."""

from collections.abc import Callable
from typing import Any

import numpy as np

from albert.data.tokenizer import Tokenizer
from albert.runtime.digests import text_digest
from albert.search import SearchError
from albert.search.index import Vectors
from albert.serving.backend import Backend, Card, rows_of_texts


def vectors_of(backend: Backend, model: str) -> Vectors:
    """Whose vectors a backend gives, those of the pooling that it was trained with."""
    pooling = backend.card.pooling
    row, _ = rows_of_texts(tokenizer_of(backend.card), ["."], backend.card.positions)
    shape = backend.shapes.batch_for(1), backend.shapes.length_for(row[0].length)
    width = len(backend.compute("encode", row, shape)[0][pooling])
    digest = text_digest(f"{backend.digest()} {pooling}")
    return Vectors(digest, pooling, width, model, backend.precision)


def encoder(
    backend: Backend, on_cut: Callable[[int], Any] = lambda count: None
) -> Callable[[list[str]], np.ndarray]:
    """A function of n texts that gives float32 [n, H]; texts of alike lengths are computed
    together.

    `on_cut`: called with how many texts were longer than the model has positions.
    """
    card, shapes = backend.card, backend.shapes
    tokenizer = tokenizer_of(card)

    def encode(texts: list[str]) -> np.ndarray:
        rows, cut = rows_of_texts(tokenizer, texts, card.positions)
        if cut:
            on_cut(len(cut))
        order = sorted(range(len(rows)), key=lambda number: rows[number].length)
        found: list[Any] = [None] * len(rows)
        for begin in range(0, len(order), shapes.full):
            chosen = order[begin : begin + shapes.full]
            some = [rows[number] for number in chosen]
            shape = shapes.batch_for(len(some)), shapes.length_for(some[-1].length)
            for number, vector in zip(chosen, backend.compute("encode", some, shape), strict=True):
                found[number] = vector[card.pooling]
        return np.stack(found)

    return encode


def tokenizer_of(card: Card) -> Tokenizer:
    """Raises SearchError where there is none."""
    if card.tokenizer is None:
        raise SearchError(
            f"{card.name} has no vocabulary, so that no text can be searched or indexed with it."
        )
    return card.tokenizer
