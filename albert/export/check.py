"""Holds an exported program to the model in JAX, on real text, before anybody uses it."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from albert.checkpoints import CheckpointError
from albert.data.labelled.sequences import make_sequences
from albert.data.tokenizer import Tokenizer
from albert.export.interface import INPUTS, Model, function

Run = Callable[..., dict[str, np.ndarray]]
# What float32 may differ by, relative to the largest number of an output where that is over 1.
FLOAT32_DIFFERENCE = 1e-5
# A score that means "never".
_NEVER = -1e29
_TEXTS, _LENGTH = 24, 128
# The share of places in an order of likelihood that may be taken by another one.
_SWAPPED = 0.01


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
      texts, tokens: how much text was looked at.
      difference: the largest of any output, relative to the output's largest number where that is
        over 1.
      cosine: of outputs with JAX's, each place or row by itself: the mean, and the smallest.
      kept: share of places or rows whose highest score is the same one; None where outputs are no
        scores.
    """

    texts: int
    tokens: int
    difference: float
    cosine: float
    least_cosine: float
    kept: float | None

    def __str__(self) -> str:
        kept = "" if self.kept is None else f", {self.kept:.2%} of the highest scores the same"
        return (
            f"{self.texts} texts, {self.tokens:,} tokens: largest difference "
            f"{self.difference:.1e}, cosine {self.cosine:.6f} (least {self.least_cosine:.6f}){kept}"
        )


def sample(path: Path | None) -> list[str]:
    """Texts to check with: the paragraphs of a file, or of the language reference of the installed
    Python.

    Raises CheckpointError: the file cannot be read or has no text.
    """
    if path is None:
        from pydoc_data.topics import topics

        whole = "\n\n".join(topics[name] for name in sorted(topics))
    else:
        try:
            whole = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"The text to check with, {path}, cannot be read: {error}."
            ) from error
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", whole)]
    found = [text for text in paragraphs if len(text) > 60] or [t for t in paragraphs if t]
    if not found:
        raise CheckpointError(f"The text to check with, {path}, is empty.")
    step = max(len(found) // _TEXTS, 1)
    return found[::step][:_TEXTS]


def batches(
    model: Model,
    tokenizer: Tokenizer | None,
    texts: Sequence[str],
    lengths: Sequence[int] | None = None,
) -> list[list[np.ndarray]]:
    """The INPUTS of the calls to check with: many padded rows, pairs among them; and one row that
    is as long as the model allows.

    Args:
      lengths: of rows, where a program has fixed ones: both kinds for each of them.
    """
    limit = model.config.max_position_embeddings
    calls = []
    for most in lengths or (limit,):
        many = most if lengths else min(limit, _LENGTH)
        padded = _padded(model, tokenizer, texts[: max(2, _TEXTS * _LENGTH // many)], many)
        times = -(-most // padded[0].shape[1])
        longest = [np.tile(row[:1], (1, times))[:, :most] for row in padded]
        longest[1][:] = 1
        calls += [padded, longest]
    if model.choices:
        calls = [[row[None] for row in rows] for rows in calls]
    return [[row.astype(np.int32) for row in rows] for rows in calls]


def _padded(
    model: Model, tokenizer: Tokenizer | None, texts: Sequence[str], length: int
) -> list[np.ndarray]:
    """The INPUTS of rows of texts, at most so long; without a tokenizer, of random pieces."""
    if tokenizer is None:
        rng = np.random.default_rng(0)
        ids = rng.integers(0, model.config.vocab_size, (len(texts), length))
        ones, types = np.ones_like(ids), np.zeros_like(ids)
        for number in range(len(texts)):
            ones[number, max(1, length - 4 * number) :] = 0
            types[number, length // 2 :] = number % 2
        return [ids, ones, types]
    pairs = [(text, texts[number - 1] if number % 2 else None) for number, text in enumerate(texts)]
    rows = make_sequences(pairs, tokenizer, length)
    fields = rows.padded(range(len(rows)), int(rows.lengths.max()))
    return [np.asarray(fields[name]) for name in INPUTS]


def compare(model: Model, run: Run, calls: Sequence[Sequence[np.ndarray]]) -> Report:
    """Runs a program beside JAX; raises CheckpointError when outputs are not there or not alike in
    shape."""
    reference = jax.jit(function(model))
    params = unflatten_dict(
        {k: np.asarray(v, np.float32) for k, v in model.params.items()}, sep="/"
    )
    differences, cosines, same = [0.0], [], []
    texts = tokens = 0
    for rows in calls:
        wanted, found = reference(params, *rows), run(*rows)
        real = rows[1].astype(bool)
        texts, tokens = texts + len(rows[0]), tokens + int(real.sum())
        for name in model.outputs:
            ours, theirs = np.asarray(wanted[name]), found.get(name)
            if theirs is None or theirs.shape != ours.shape:
                shape = None if theirs is None else theirs.shape
                raise CheckpointError(
                    f"The exported program gives {name} the shape {shape}; it should be "
                    f"{ours.shape}."
                )
            if ours.shape[: real.ndim] == real.shape and not model.choices:
                ours, theirs = ours[real], theirs[real]  # what stands at padding, nobody uses
            if name.endswith("_index"):  # of scores that are compared by themselves
                kept = ours == theirs
                same.append(kept.ravel())
                # Those that are nearly as likely as each other may change places.
                differences.append(float(1 - kept.mean() > _SWAPPED))
                continue
            possible = ours > _NEVER
            if not np.array_equal(possible, theirs > _NEVER):
                raise CheckpointError(f"{name} has other pieces that are never predicted.")
            scale = max(1.0, float(np.abs(ours[possible]).max()))
            differences.append(float(np.abs(ours - theirs)[possible].max()) / scale)
            if ours.ndim < 2:  # one number at each place: compared over all of them
                ours, theirs = ours[None], theirs[None]
            a, b = (np.where(x > _NEVER, x, 0).astype(np.float64) for x in (ours, theirs))
            norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
            cosines.append(((a * b).sum(-1) / np.maximum(norms, 1e-30)).ravel())
            if "logits" in name and wanted[name].ndim > 1:
                same.append((a.argmax(-1) == b.argmax(-1)).ravel())
    cosine = np.concatenate(cosines)
    return Report(
        texts,
        tokens,
        max(differences),
        float(cosine.mean()),
        float(cosine.min()),
        float(np.concatenate(same).mean()) if same else None,
    )
