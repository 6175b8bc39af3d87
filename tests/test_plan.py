"""The plan of an epoch against the released program's loop and, for packing, plain Python."""

import dataclasses
import itertools
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert.data.pretraining.plan import (
    CHUNK_BITS,
    CORPUS_BITS,
    EPOCH_BITS,
    CorpusPlan,
    example_key,
    example_stream,
    pack,
    plan_chunks,
)
from rows import OPTIONS, released_chunks


def made_up(documents):
    """A corpus of nothing but sentence lengths, a list of them for each document."""
    starts = np.cumsum([0, *map(len, documents)])
    lengths = np.array([n for document in documents for n in document], np.uint32)
    return types.SimpleNamespace(
        sentence_lengths=lengths,
        document_starts=starts,
        num_sentences=len(lengths),
        num_documents=len(documents),
    )


def planned(documents, seed=0, **changes):
    """Chunks and lengths of made-up documents, with options that differ from the default ones."""
    options = dataclasses.replace(OPTIONS, **changes)
    rng = np.random.default_rng(seed)
    corpus = made_up(documents)
    chunks, lengths = plan_chunks(corpus, np.arange(len(documents)), options, rng)
    return corpus, chunks.tolist(), lengths.tolist()


DOCUMENTS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=8)


@given(DOCUMENTS, st.sampled_from(["split", "drop", "random"]))
@settings(deadline=None)
def test_chunks_are_those_of_the_released_loop(documents, single):
    corpus, chunks, lengths = planned(documents, short_seq_prob=0.0, single_segment=single)
    expected = []
    for start, document in zip(corpus.document_starts.tolist(), documents, strict=False):
        for first, last in released_chunks(document, 29):
            if (
                last - first > 1
                or single == "random"
                or (single == "split" and document[first] >= 2)
            ):
                expected.append((start + first, start + last))
    assert [(first, last) for first, last, _, _ in chunks] == expected
    for (first, last, begin, end), length in zip(chunks, lengths, strict=True):
        size = corpus.sentence_lengths[first:last].sum()
        size += corpus.sentence_lengths[begin:end].sum()
        assert (end > begin) == (last - first == 1 and single == "random")
        assert length == min(size, 29) + 3


def test_short_targets_are_drawn_once_a_document():
    """One sentence of one token after the other shows the target of every document."""
    _, chunks, _ = planned([[1] * 100] * 4000, short_seq_prob=0.1, single_segment="drop")
    firsts = [(first, last - first) for first, last, _, _ in chunks if first % 100 == 0]
    targets = np.array([size for _, size in firsts])
    by_document = dict(firsts)
    for first, last, _, _ in chunks:
        target = by_document[first // 100 * 100]
        assert last - first == target or last % 100 == 0
    # 1 in 10, uniform in [2, 29]: those that draw 29 by chance cannot be told.
    short = targets[targets < 29]
    assert abs(len(short) / 4000 - 0.1 * 27 / 28) < 4 * np.sqrt(0.1 * 0.9 / 4000)
    counts = np.bincount(short, minlength=29)[2:29]
    assert counts.min() > 0
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 60  # chi squared, 26 degrees


def released_nsp(document, number, documents, target, rng):
    """`create_instances_from_document` for next-sentence prediction, as sentence numbers."""
    found, chunk, size, i = [], [], 0, 0
    while i < len(document):
        chunk.append(i)
        size += document[i]
        if i == len(document) - 1 or size >= target:
            a_end = 1 if len(chunk) == 1 else rng.integers(1, len(chunk))
            if len(chunk) == 1 or rng.random() < 0.5:
                for _ in range(10):
                    other = rng.integers(len(documents))
                    if other != number:
                        break
                wanted = target - sum(document[j] for j in chunk[:a_end])
                begin = rng.integers(len(documents[other]))
                taken = 0
                for end in range(begin, len(documents[other])):
                    taken += documents[other][end]
                    if taken >= wanted:
                        break
                found.append((chunk[0], chunk[0] + a_end, other, begin, end + 1))
                i -= len(chunk) - a_end
            else:
                found.append((chunk[0], chunk[-1] + 1, -1, 0, 0))
            chunk, size = [], 0
        i += 1
    return found


def test_next_sentence_chunks_are_distributed_as_in_the_released_program():
    documents = [[3, 5, 4, 6, 2, 7], [8, 8, 8], [5, 1, 9, 2]]
    starts = np.cumsum([0, 6, 3])
    ours, theirs = {}, {}
    runs = 6000
    for seed in range(runs):
        _, chunks, _ = planned(
            documents, seed, sentence_objective="nsp", seq_length=17, short_seq_prob=0.0
        )
        for first, last, begin, end in chunks:
            where = int(np.searchsorted(starts, begin, side="right")) - 1 if end else -1
            shift = starts[where] if end else 0
            key = (first, last, where, begin - shift, end - shift)
            ours[key] = ours.get(key, 0) + 1 / runs
        rng = np.random.default_rng(10**6 + seed)
        for number, document in enumerate(documents):
            for first, last, *rest in released_nsp(document, number, documents, 14, rng):
                key = (starts[number] + first, starts[number] + last, *rest)
                theirs[key] = theirs.get(key, 0) + 1 / runs
    for key in ours.keys() | theirs.keys():
        p = (ours.get(key, 0) + theirs.get(key, 0)) / 2
        assert abs(ours.get(key, 0) - theirs.get(key, 0)) < 5 * np.sqrt(2 * p / runs), key


def test_without_a_sentence_objective_every_sentence_is_used_once():
    documents = [[20], [3, 40], [1], [5, 5, 5, 30, 2]]
    corpus, chunks, lengths = planned(documents, sentence_objective="none", short_seq_prob=0.0)
    used = [s for first, last, _, _ in chunks for s in range(first, last)]
    assert used == list(range(corpus.num_sentences))
    sizes = [corpus.sentence_lengths[first:last].sum() for first, last, _, _ in chunks]
    assert lengths == [min(size, 30) + 2 for size in sizes]


def plain_pack(lengths, order, capacity, budgets, predictions, most):
    """Best fit, longest first, one example after the other; of equal rows the last touched."""
    rows, when, clock = [], {}, itertools.count()
    for example in sorted(order, key=lambda e: -lengths[e]):
        size, budget = lengths[example], budgets[lengths[example]]
        tops = {}
        for number, row in enumerate(rows):
            room = capacity - sum(lengths[e] for e in row)
            if len(row) < most and room < capacity:
                top = tops.get(room)
                if top is None or when[number] > when[top]:
                    tops[room] = number
        fits = [
            (room, number)
            for room, number in tops.items()
            if room >= size
            and sum(budgets[lengths[e]] for e in rows[number]) + budget <= predictions
        ]
        if fits:
            number = min(fits)[1]
            rows[number].append(example)
        else:
            number = len(rows)
            rows.append([example])
        when[number] = next(clock)
    return rows


@given(
    st.lists(st.integers(5, 40), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(6, 9),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_packing_is_best_fit(lengths, most, predictions, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    budgets = dataclasses.replace(OPTIONS, seq_length=40, max_predictions=6).budgets
    rows, count = pack(
        np.array(lengths, np.int32), np.array(order, np.uint32), 40, budgets, predictions, most
    )
    expected = plain_pack(lengths, order, 40, budgets, predictions, most)
    assert count == len(expected)
    found = [[] for _ in range(count)]
    for example, row in enumerate(rows.tolist()):
        found[row].append(example)
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))
    for row in found:
        assert len(row) <= most
        assert sum(lengths[e] for e in row) <= 40
        assert sum(budgets[lengths[e]] for e in row) <= predictions


@pytest.mark.parametrize("packing", [0, 4])
def test_every_epoch_visits_every_chunk_once(corpus, packing):
    options = dataclasses.replace(OPTIONS, short_seq_prob=0.0, packing=packing)
    plan = CorpusPlan(corpus, np.arange(corpus.num_documents), options, (0, 0))
    epochs = [plan.epoch(0), plan.epoch(1)]
    visited = []
    for number in range(2):
        rows = [plan.row(number * plan.rows_per_epoch + r)[0] for r in range(len(epochs[number]))]
        visited.append([tuple(chunk) for row in rows for chunk in row.tolist()])
        assert sorted(visited[number]) == sorted(map(tuple, epochs[number].chunks.tolist()))
    assert visited[0] != visited[1]


def test_epochs_with_other_chunk_counts_keep_the_first_ones_length(corpus):
    options = dataclasses.replace(OPTIONS, short_seq_prob=0.5)
    plan = CorpusPlan(corpus, np.arange(corpus.num_documents), options, (0, 0))
    counts = [len(plan.epoch(epoch)) for epoch in range(6)]
    assert len(set(counts)) > 1
    for epoch in range(6):
        rows = [plan.row(epoch * plan.rows_per_epoch + r)[1] for r in range(plan.rows_per_epoch)]
        assert len(set(map(tuple, rows))) >= min(counts[epoch], plan.rows_per_epoch)


@pytest.mark.parametrize("packing", [0, 4])
def test_static_copies_come_again_in_another_order(corpus, packing):
    options = dataclasses.replace(OPTIONS, short_seq_prob=0.5, static_copies=2, packing=packing)
    plan = CorpusPlan(corpus, np.arange(corpus.num_documents), options, (0, 0))
    keys = [
        [plan.row(epoch * plan.rows_per_epoch + r)[1] for r in range(len(plan.epoch(epoch)))]
        for epoch in range(4)
    ]
    for epoch in (0, 1):
        assert sorted(keys[epoch]) == sorted(keys[epoch + 2])
        assert keys[epoch] != keys[epoch + 2]
    assert sorted(keys[0]) != sorted(keys[1])


def test_padding_is_counted(corpus):
    documents = np.arange(corpus.num_documents)
    for packing in (0, 8):
        options = dataclasses.replace(OPTIONS, packing=packing)
        plan = CorpusPlan(corpus, documents, options, (0, 0))
        tokens = sum(
            int(plan.epoch(0).lengths[plan.epoch(0).row(r)].sum())
            for r in range(plan.rows_per_epoch)
        )
        assert plan.padding() == 1 - tokens / (plan.rows_per_epoch * 32)


CORPORA = st.integers(0, (1 << CORPUS_BITS) - 1)
# Also behind the last epoch that has bits of its own.
EPOCHS = st.integers(0, (1 << EPOCH_BITS + 2) - 1)
CHUNKS = st.integers(0, (1 << CHUNK_BITS) - 1)
SEEDS = st.integers(0, 2**31 - 1)
EXAMPLE = st.tuples(SEEDS, CORPORA, EPOCHS, CHUNKS)


def first_numbers(seed, corpus, epoch, chunk):
    return tuple(example_stream(seed, example_key(corpus, epoch, chunk)).integers(0, 2**63, 4))


@given(EXAMPLE, st.sampled_from([1, 2, 3, 1000, 2047]), st.integers(0, 3))
@settings(deadline=None)
def test_neighbouring_examples_have_streams_of_their_own(example, step, part):
    """In every part of the key, over its whole range."""
    limits = (2**31, 1 << CORPUS_BITS, 1 << EPOCH_BITS + 2, 1 << CHUNK_BITS)
    other = list(example)
    other[part] = (example[part] + step) % limits[part]
    assert first_numbers(*example) != first_numbers(*other)


def test_the_last_examples_of_all_have_streams_of_their_own():
    last = ((1 << CORPUS_BITS) - 1, (1 << EPOCH_BITS) - 1, (1 << CHUNK_BITS) - 1)
    corners = itertools.product(*[(0, 1, limit - 1, limit) for limit in last], (0, 2**31 - 1))
    streams = [first_numbers(seed, *parts) for *parts, seed in corners]
    assert len(set(streams)) == len(streams) == 128
    with pytest.raises(ValueError, match="room for 1024 corpora"):
        example_key(1 << CORPUS_BITS, 0, 0)


@given(SEEDS, st.integers(0, 511), st.integers(0, (1 << EPOCH_BITS) - 1), CHUNKS)
@settings(deadline=None)
def test_keys_that_numpy_took_for_integers_have_the_streams_they_had(seed, corpus, epoch, chunk):
    before = np.random.Philox(key=[seed * 8 + 3, corpus << 54 | epoch << 34 | chunk])
    expected = tuple(np.random.Generator(before).integers(0, 2**63, 4))
    assert first_numbers(seed, corpus, epoch, chunk) == expected
