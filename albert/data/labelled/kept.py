"""Rows of text that were made once, on disk. Never imports jax."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from albert.data.cache import fingerprint_of, made_once
from albert.data.labelled.sequences import Cut, Sequences, make_sequences
from albert.data.tokenizer import Tokenizer

_VERSION = 1  # of what is kept on disk
_FIELDS = dataclasses.fields(Sequences)


def kept_sequences(
    pairs: Sequence[tuple[str, str | None]],
    tokenizer: Tokenizer,
    seq_length: int,
    folder: Path,
    workers: int,
    cut: Cut | None = None,
    rule: str = "",
) -> Sequences:
    """`make_sequences`, made once below a folder for the same texts, vocabulary and options.

    `rule`: tells one `cut` from every other.
    """
    name = fingerprint_of(
        {
            "version": _VERSION,
            "text": _digest(pairs),
            "vocabulary": tokenizer.fingerprint,
            "lower_case": tokenizer.lower_case,
            "strip_accents": tokenizer.strip_accents,
            "seq_length": seq_length,
            "cut": rule,
        }
    )
    with made_once(folder / f"sequences-{name}") as (final, unfinished):
        if unfinished is not None:
            made = make_sequences(pairs, tokenizer, seq_length, workers, cut)
            for field, value in dataclasses.asdict(made).items():
                np.save(unfinished / field, value)
    kept = {field.name: np.load(final / f"{field.name}.npy") for field in _FIELDS}
    return Sequences(**(kept | {"cut": int(kept["cut"])}))


def _digest(pairs: Iterable[tuple[str, str | None]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        for text in pair:
            encoded = (text or "").encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
    return digest.hexdigest()
