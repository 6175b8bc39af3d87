"""Sentences that no row has room for, and what of a text stands in no row."""

import dataclasses
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert.data.pretraining.pieces import Pieces
from albert.data.pretraining.plan import CorpusPlan, plan_chunks
from albert.data.tokenizer import CLS, SEP
from rows import OPTIONS, make_examples, read_corpus, restored


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=5), min_size=1, max_size=5),
    st.integers(2, 20),
    st.booleans(),
)
@settings(deadline=None)
def test_pieces_are_those_of_plain_cutting(documents, longest, two_segments):
    flat = [n for document in documents for n in document]
    bounds = np.cumsum([0, *flat])
    ids = np.arange(bounds[-1])
    corpus = types.SimpleNamespace(
        sentence_lengths=np.array(flat, np.uint32),
        document_starts=np.cumsum([0, *map(len, documents)]),
        num_sentences=len(flat),
        read_tokens=lambda s, skip, count: ids[bounds[s] + skip : bounds[s] + skip + count],
    )
    pieces = Pieces(corpus, longest, two_segments)
    sizes = [-(-longest // 2), longest // 2] if two_segments else [longest]
    expected, starts = [], [0]
    for document in documents:
        for length in document:
            number = 0
            while length > 0 and (length > longest or number):
                expected.append(min(sizes[number % len(sizes)], length))
                length -= expected[-1]
                number += 1
            if length:
                expected.append(length)
        starts.append(len(expected))
    assert pieces.sentence_lengths.tolist() == expected
    assert pieces.document_starts.tolist() == starts
    assert pieces.num_sentences == len(expected)
    ends = np.cumsum([0, *expected])
    for first in range(len(expected)):
        for last in {first + 1, min(first + 3, len(expected)), len(expected)}:
            assert pieces.lengths(first, last).tolist() == expected[first:last]
            assert pieces.read(first, last).tolist() == ids[ends[first] : ends[last]].tolist()


@pytest.fixture(scope="module")
def unpunctuated(tmp_path_factory, tokenizer):
    """Documents of one sentence each, of some thousand tokens."""
    folder = tmp_path_factory.mktemp("unpunctuated")
    rng = np.random.default_rng(0)
    words = ["river", "water", "mountain", "stone", "garden", "letter"]
    texts = [" ".join(rng.choice(words, 400)) for _ in range(12)]
    (folder / "a.txt").write_text("\n\n".join(texts))
    return read_corpus(folder / "a.txt", tokenizer, folder)


@pytest.mark.parametrize("objective", ["sop", "none"])
@pytest.mark.parametrize("packing", [0, 4])
def test_text_without_punctuation_is_seen_whole(unpunctuated, tokenizer, objective, packing):
    options = dataclasses.replace(
        OPTIONS, sentence_objective=objective, packing=packing, short_seq_prob=0.0
    )
    assert unpunctuated.sentence_lengths.min() > 10 * options.seq_length
    examples = make_examples(unpunctuated, tokenizer, options)
    shown = []
    for row in range(examples.rows_per_epoch):
        ids = restored(examples[row])[: examples[row]["attention_mask"].sum()]
        shown += ids[~np.isin(ids, [CLS, SEP])].tolist()
    whole = unpunctuated.read(0, unpunctuated.num_sentences)
    assert examples.dropped_share() < 0.001
    assert len(shown) >= 0.999 * len(whole)
    np.testing.assert_allclose(
        np.bincount(shown, minlength=tokenizer.vocab_size),
        np.bincount(whole, minlength=tokenizer.vocab_size),
        atol=20,
    )


def test_next_sentences_of_text_without_punctuation_are_not_all_random(unpunctuated, tokenizer):
    options = dataclasses.replace(OPTIONS, sentence_objective="nsp")
    examples = make_examples(unpunctuated, tokenizer, options)
    labels = [int(examples[row]["sop_labels"]) for row in range(examples.rows_per_epoch)]
    assert 0.3 < np.mean(labels) < 0.75
    assert examples.dropped_share() < 0.3


def test_text_without_longer_sentences_is_planned_as_ever(corpus):
    options = dataclasses.replace(OPTIONS, seq_length=128)
    plan = CorpusPlan(corpus, np.arange(corpus.num_documents), options, (0, 0))
    assert not plan.pieces.num_cut
    rng = np.random.default_rng((1, 0, 0, 0))
    chunks, lengths = plan_chunks(corpus, plan.documents, options, rng)
    np.testing.assert_array_equal(plan.epoch(0).chunks, chunks)
    np.testing.assert_array_equal(plan.epoch(0).lengths, lengths)


@pytest.mark.parametrize("single", ["split", "drop"])
def test_what_stands_in_no_row_is_counted(corpus, single):
    options = dataclasses.replace(OPTIONS, short_seq_prob=0.0, single_segment=single)
    plan = CorpusPlan(corpus, np.arange(corpus.num_documents), options, (0, 0))
    kept = int((plan.epoch(0).lengths - 3).sum())
    tokens = int(corpus.sentence_lengths.sum())
    assert plan.dropped_share() == pytest.approx(1 - kept / tokens, abs=1e-12)
    assert 0.05 < plan.dropped_share() < 0.9
