"""Masked language modelling: which words are hidden, and behind what.

Source: `create_masked_lm_predictions` in `create_pretraining_data.py` of google-research/albert,
with n-grams as in section 4.1 of the paper. Compiled by Numba; `tests/test_masking.py` holds it
equal, draw by draw, to a plain loop. Never imports jax.
"""

import numpy as np

from albert.data.compiled import compiled
from albert.data.tokenizer import MASK


@compiled
def choose_masked(
    word_starts: np.ndarray, budget: int, max_ngram: int, draws: np.ndarray
) -> np.ndarray:
    """Chooses n-grams of whole words, in random order, until the budget is met.

    n is drawn with p(n) proportional to 1/n; a shorter n is tried only when the longer would go
    over the budget, and a word is skipped when even n = 1 would, or when it is covered already.

    Args:
      word_starts: bool [tokens], True where a word begins; the first must be True.
      budget: how many tokens to mask at most.
      max_ngram: largest n.
      draws: float64 [at least 2 * words], uniform in [0, 1): order of the words, then their n.

    Returns:
      Sorted int64 indices of the chosen tokens.
    """
    tokens = len(word_starts)
    bounds = np.empty(tokens + 1, np.int64)
    words = 0
    for token in range(tokens):
        if word_starts[token]:
            bounds[words] = token
            words += 1
    bounds[words] = tokens
    order = np.arange(words)
    covered = np.zeros(tokens, np.bool_)
    left = budget
    for turn in range(words):
        if left == 0:
            break
        other = turn + int(draws[turn] * (words - turn))
        word = order[other]
        order[other] = order[turn]
        longest = min(max_ngram, words - word)
        total = 0.0
        for n in range(1, longest + 1):
            total += 1.0 / n
        threshold = draws[words + word] * total
        size, reached = 1, 1.0
        while size < longest and reached <= threshold:
            size += 1
            reached += 1.0 / size
        first = bounds[word]
        while size and bounds[word + size] - first > left:
            size -= 1
        last = bounds[word + size]
        if size and not covered[first:last].any():
            covered[first:last] = True
            left -= last - first
    return np.flatnonzero(covered)


@compiled
def corrupt(
    ids: np.ndarray, vocab_size: int, mask_share: float, keep_share: float, draws: np.ndarray
) -> np.ndarray:
    """What the model sees at masked positions: [MASK], the piece itself, or any piece.

    Args:
      ids: int32 [masked], the pieces that are there.
      vocab_size: any piece is uniform below it.
      mask_share, keep_share: of [MASK] and of the piece itself; the rest becomes any piece.
      draws: float64 [at least 2 * masked], uniform in [0, 1).
    """
    shown = np.empty_like(ids)
    for i in range(len(ids)):
        if draws[2 * i] < mask_share:
            shown[i] = MASK
        elif draws[2 * i] < mask_share + keep_share:
            shown[i] = ids[i]
        else:
            shown[i] = int(draws[2 * i + 1] * vocab_size)
    return shown
