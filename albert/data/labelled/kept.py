"""Rows of labelled texts that were made once, on disk. Never imports jax."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from albert.data.cache import fingerprint_of, made_once
from albert.data.labelled.sequences import Cut, Sequences, make_sequences
from albert.data.labelled.squad import Options, Question, Windows, make_windows
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


def kept_windows(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    options: Options,
    folder: Path,
    workers: int,
) -> Windows:
    """`make_windows`, made once below a folder for the same questions, vocabulary and options."""
    digest = hashlib.blake2b(digest_size=16)
    for question in questions:
        digest.update(json.dumps(question).encode())
    name = fingerprint_of(
        {
            "version": _VERSION,
            "questions": digest.hexdigest(),
            "vocabulary": tokenizer.fingerprint,
            "lower_case": tokenizer.lower_case,
            "strip_accents": tokenizer.strip_accents,
            "options": options,
        }
    )
    with made_once(folder / f"windows-{name}") as (final, unfinished):
        if unfinished is not None:
            made = make_windows(questions, tokenizer, options, workers)
            for field, value in vars(made).items():
                np.save(unfinished / field, value)
    return Windows(
        **{f.name: np.load(final / f"{f.name}.npy") for f in dataclasses.fields(Windows)}
    )


def _digest(pairs: Iterable[tuple[str, str | None]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        for text in pair:
            encoded = (text or "").encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
    return digest.hexdigest()
