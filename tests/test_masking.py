"""Which words are masked, and by what, against plain loops and the released program."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert.data.pretraining.masking import choose_masked, corrupt
from albert.data.tokenizer import MASK
from rows import run_lengths


@st.composite
def words(draw):
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=60))
    starts = np.zeros(sum(lengths), bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    return starts


def plain_masks(starts, budget, max_ngram, draws):
    """`choose_masked`, one word after the other, from the same draws."""
    firsts = np.flatnonzero(starts).tolist()
    bounds = [*firsts, len(starts)]
    words = list(range(len(firsts)))
    covered = set()
    for turn in range(len(words)):
        other = turn + int(draws[turn] * (len(words) - turn))
        words[turn], words[other] = words[other], words[turn]
        longest = min(max_ngram, len(words) - words[turn])
        cumulative = list(itertools.accumulate(1 / n for n in range(1, longest + 1)))
        threshold = draws[len(words) + words[turn]] * cumulative[-1]
        wanted = 1 + sum(reached <= threshold for reached in cumulative[:-1])
        for n in range(wanted, 0, -1):
            span = range(bounds[words[turn]], bounds[words[turn] + n])
            if len(covered) + len(span) <= budget:
                if not covered & set(span):
                    covered |= set(span)
                break
    return sorted(covered)


@given(words(), st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_masks_are_whole_words_within_the_budget(starts, budget, max_ngram, seed):
    draws = np.random.default_rng(seed).random(2 * len(starts))
    chosen = choose_masked(starts, budget, max_ngram, draws)
    assert chosen.tolist() == plain_masks(starts, budget, max_ngram, draws)
    assert len(chosen) <= budget
    assert (np.diff(chosen) > 0).all()
    covered = np.zeros(len(starts), bool)
    covered[chosen] = True
    word = np.cumsum(starts) - 1
    for number in range(word[-1] + 1):
        assert covered[word == number].all() or not covered[word == number].any()
    # Something is masked whenever a word fits.
    assert len(chosen) or np.bincount(word).min() > budget


def released_masks(starts, budget, max_ngram, rng):
    """`create_masked_lm_predictions`, transcribed: the positions that it would mask."""
    cand_indexes = []
    for i, is_start in enumerate(starts):
        if is_start:
            cand_indexes.append([i])
        else:
            cand_indexes[-1].append(i)
    ngrams = np.arange(1, max_ngram + 1)
    pvals = 1.0 / ngrams
    ngram_indexes = [
        [cand_indexes[i : i + n] for n in ngrams if i + n <= len(cand_indexes)]
        for i in range(len(cand_indexes))
    ]
    rng.shuffle(ngram_indexes)
    covered = set()
    for cand_index_set in ngram_indexes:
        if len(covered) >= budget:
            break
        p = pvals[: len(cand_index_set)]
        n = rng.choice(ngrams[: len(cand_index_set)], p=p / p.sum())
        index_set = list(itertools.chain(*cand_index_set[n - 1]))
        n -= 1
        while len(covered) + len(index_set) > budget:
            if n == 0:
                break
            index_set = list(itertools.chain(*cand_index_set[n - 1]))
            n -= 1
        if len(covered) + len(index_set) > budget or covered & set(index_set):
            continue
        covered |= set(index_set)
    return sorted(covered)


def test_masks_are_distributed_as_in_the_released_program():
    layout = np.random.default_rng(0)
    starts = layout.random(120) < 0.7
    starts[0] = True
    ours, released = np.zeros((2, 121)), np.zeros((2, 121))
    for seed in range(3000):
        for mask, table in (
            (choose_masked(starts, 18, 3, np.random.default_rng(seed).random(240)), ours),
            (released_masks(starts, 18, 3, np.random.default_rng(10_000 + seed)), released),
        ):
            table[0, np.asarray(mask)] += 1 / 3000
            for length in run_lengths(mask):
                table[1, min(length, 8)] += 1 / 3000
    # Share of every position, and number of runs of every length: five standard errors.
    assert np.abs(ours[0] - released[0]).max() < 5 * np.sqrt(2 * 0.15 * 0.85 / 3000)
    assert np.abs(ours[1] - released[1]).max() < 0.15


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (1.0, 0.0, 0.0), (0.5, 0.0, 0.5)])
def test_the_shares_of_what_is_shown(shares):
    count = 100_000
    draws = np.random.default_rng(0).random(2 * count)
    shown = corrupt(np.full(count, 77, np.int32), 1000, *shares[:2], draws)
    mask, keep, other = shares
    for found, share in (
        (np.mean(shown == MASK), mask + other / 1000),
        (np.mean(shown == 77), keep + other / 1000),
        (np.mean((shown != MASK) & (shown != 77)), other * 998 / 1000),
    ):
        assert abs(found - share) <= 5 * np.sqrt(share * (1 - share) / count)
    if other:
        others = shown[(shown != MASK) & (shown != 77)]
        assert len(np.unique(others)) == 998
        assert (others.min(), others.max()) == (0, 999)


@pytest.mark.parametrize("max_ngram", [1, 2, 3, 5])
def test_lengths_of_ngrams_go_as_one_over_n(max_ngram):
    starts = np.ones(400, bool)
    rng = np.random.default_rng(0)
    counts = np.zeros(max_ngram + 1)
    for _ in range(4000):
        # Word 100 comes first with a random n; then single words at the far end.
        draws = np.zeros(800)
        turn = np.arange(1, 9)
        draws[0], draws[turn] = 100.5 / 400, (400.5 - 2 * turn) / (400 - turn)
        draws[500] = rng.random()
        chosen = choose_masked(starts, max_ngram, max_ngram, draws)
        assert len(chosen) == max_ngram
        counts[(chosen < 200).sum()] += 1
    share = 1 / np.arange(1, max_ngram + 1)
    share /= share.sum()
    assert np.abs(counts[1:] / 4000 - share).max() <= 5 * 0.5 / np.sqrt(4000)
