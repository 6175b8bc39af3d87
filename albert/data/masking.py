"""Masked language modelling: which words are hidden, and behind what.

Source: `create_masked_lm_predictions` in `create_pretraining_data.py` of google-research/albert,
with n-grams as in section 4.1 of the paper. Never imports jax.
"""

import numpy as np

from albert.data.tokenizer import MASK

MASK_SHARE, KEEP_SHARE = 0.8, 0.1  # of the masked tokens; the rest becomes a random piece


def choose_masked(
    word_starts: np.ndarray, budget: int, max_ngram: int, rng: np.random.Generator
) -> np.ndarray:
    """Chooses n-grams of whole words, in random order, until the budget is met.

    n is drawn with p(n) proportional to 1/n; a shorter n is tried only when the longer would go
    over the budget, and a word is skipped when even n = 1 would, or when it is covered already.

    Args:
      word_starts: bool [tokens], True where a word begins; the first must be True.
      budget: how many tokens to mask at most.
      max_ngram: largest n.
      rng: source of randomness.

    Returns:
      Sorted int64 indices of the chosen tokens.
    """
    starts = np.flatnonzero(word_starts)
    words = len(starts)
    bounds = [*starts.tolist(), len(word_starts)]
    cumulative = np.cumsum(1.0 / np.arange(1, max_ngram + 1)).tolist()
    covered = bytearray(len(word_starts))
    left = budget
    draws = rng.random(words).tolist()
    for word in rng.permutation(words).tolist():
        if left == 0:
            break
        longest = min(max_ngram, words - word)
        threshold = draws[word] * cumulative[longest - 1]
        n = 1
        while n < longest and cumulative[n - 1] <= threshold:
            n += 1
        first = bounds[word]
        while n and bounds[word + n] - first > left:
            n -= 1
        last = bounds[word + n]
        if n and not any(covered[first:last]):
            covered[first:last] = b"\x01" * (last - first)
            left -= last - first
    return np.flatnonzero(np.frombuffer(covered, np.uint8))


def corrupt(ids: np.ndarray, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    """What the model sees at masked positions: 80 % [MASK], 10 % unchanged, 10 % any piece."""
    draw = rng.random(len(ids))
    random_pieces = rng.integers(0, vocab_size, len(ids), dtype=ids.dtype)
    kept = np.where(draw < MASK_SHARE + KEEP_SHARE, ids, random_pieces)
    return np.where(draw < MASK_SHARE, ids.dtype.type(MASK), kept)
