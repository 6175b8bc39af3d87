"""The figures of a corpus against counting by hand, and the tool that shows them."""

import collections
import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert.data.corpus.reader import Corpus
from albert.data.pretraining.plan import CorpusPlan
from albert.data.pretraining.prepare import prepare
from albert.data.pretraining.statistics import (
    QUANTILES,
    count_tokens,
    document_lengths,
    lengths_of,
    make_report,
    pieces_of,
    rows_and_padding,
)
from albert.data.tokenizer import SPECIAL, UNK
from albert.train.config import check
from rows import OPTIONS, make_examples, read_corpus
from texts import write_text

ROOT = Path(__file__).resolve().parent.parent


def plan_of(corpus, documents=None, options=OPTIONS):
    documents = np.arange(corpus.num_documents) if documents is None else documents
    return CorpusPlan(corpus, documents, options, (0, 0))


def report_of(config):
    config = check(config)
    data = prepare(config.data, config.model.vocab_size, config.seed)
    held_out_by_hash = not config.data.valid_sources
    return data, make_report(data.train.plans, data.valid.plans, data.tokenizer, held_out_by_hash)


def documents_of(path):
    return [document.splitlines() for document in path.read_text().strip().split("\n\n")]


def encoded(path, tokenizer):
    """Ids of every sentence of every document, without what the corpus adds."""
    return [[tokenizer.encode(s) for s in document] for document in documents_of(path)]


@pytest.mark.parametrize("chosen", ["all", "some", "one"])
def test_counts_are_those_of_the_text(text, tokenizer, corpus, chosen):
    documents = {
        "all": np.arange(corpus.num_documents),
        "some": np.flatnonzero(np.random.default_rng(0).random(corpus.num_documents) < 0.6),
        "one": np.array([corpus.num_documents - 1]),
    }[chosen]
    texts = encoded(text, tokenizer)
    sentences = [s for number in documents for s in texts[number]]
    pieces, lengths = count_tokens(corpus, documents, tokenizer.vocab_size)
    counted = collections.Counter(itertools.chain.from_iterable(sentences))
    assert pieces.tolist() == [counted[i] for i in range(tokenizer.vocab_size)]
    of_length = collections.Counter(map(len, sentences))
    assert lengths.tolist() == [of_length[i] for i in range(max(of_length) + 1)]
    by_document = [sum(map(len, texts[number])) for number in documents]
    assert document_lengths(corpus, documents).tolist() == by_document


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
@settings(deadline=None)
def test_quantiles_and_bins_of_any_lengths(lengths):
    found = lengths_of(*np.unique(lengths, return_counts=True))
    ordered = sorted(lengths)
    # The shortest that so many are not longer than.
    expected = [
        next(v for i, v in enumerate(ordered, 1) if 100 * i >= percent * len(ordered))
        for percent in QUANTILES
    ]
    assert list(found.quantiles.values()) == expected
    assert found.max == max(lengths)
    assert found.mean == pytest.approx(np.mean(lengths))
    assert found.edges == sorted(set(found.edges))
    assert found.edges[0] == 1
    assert len(found.edges) == len(found.counts) + 1
    for low, high, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        assert count == sum(low <= v < high for v in lengths)
        assert high <= low + 1 or high / low < 1.4
    powers = [2**i for i in range(max(lengths).bit_length())]
    assert set(powers) <= set(found.edges)


def test_pieces_come_by_frequency(tokenizer):
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    counts[[UNK, 10, 20, 30]] = [1, 5, 9, 5]
    found = pieces_of(counts, tokenizer)
    names = tokenizer.pieces([20, 10, 30, UNK])
    assert found.most_frequent == list(zip(names, [9, 5, 5, 1], strict=True))
    assert found.never == tokenizer.vocab_size - len(SPECIAL) - 3
    assert (found.ranks, found.counts) == ([1, 2, 3, 4], [9, 5, 5, 1])


def test_a_report_of_the_small_text(text, tokenizer, tiny):
    data, report = report_of(tiny)
    train, held_out = report.texts
    assert (train.split, held_out.split) == ("train", "held-out")
    texts = encoded(text, tokenizer)
    for figures, plan in ((train, data.train.plans[0]), (held_out, data.valid.plans[0])):
        sentences = [s for number in plan.documents for s in texts[number]]
        ids = np.concatenate(sentences)
        assert figures.documents == len(plan.documents)
        assert figures.sentences == len(sentences)
        assert figures.tokens == len(ids)
        assert figures.unknown == np.mean(ids == UNK)
        assert 0 < figures.dropped < 0.9
        assert figures.word_starts == pytest.approx(np.mean(tokenizer.starts_word[ids]))
        assert figures.examples == plan.rows_per_epoch
    assert train.documents + held_out.documents == len(texts)
    lines = [line for document in documents_of(text) for line in document]
    tokens = train.tokens + held_out.tokens
    assert train.characters_per_token == pytest.approx(sum(map(len, lines)) / tokens)
    assert train.bad_records == 0
    assert held_out.characters_per_token is held_out.records is None
    assert report.held_out_documents == held_out.documents
    assert report.train_pieces == train.pieces
    json.dumps(dataclasses.asdict(report), allow_nan=False)


def with_copies(path, copies):
    """The text with the documents of each of `copies` behind it."""
    parts = [path.read_text()]
    parts += ["\n".join(itertools.chain(*((*d, "") for d in group))) for group in copies]
    target = path.with_name(f"{path.stem}-with-copies.txt")
    target.write_text("\n".join(parts))
    return target


def test_repeated_documents_are_counted(tokenizer, tmp_path):
    first = write_text(tmp_path / "first.txt", 40, seed=1)
    second = write_text(tmp_path / "second.txt", 30, seed=2)
    originals = documents_of(first)
    first = with_copies(first, [originals[:3], originals[:1]])
    second = with_copies(second, [originals[5:10]])
    plans = [plan_of(read_corpus(path, tokenizer, tmp_path)) for path in (first, second)]
    held_out = write_text(tmp_path / "third.txt", 20, seed=3)
    held_out = with_copies(held_out, [originals[:2], documents_of(held_out)[:1]])
    third = plan_of(read_corpus(held_out, tokenizer, tmp_path))
    report = make_report(plans, [third], tokenizer, split_by_hash=False)
    train = report.texts[:2]
    assert [text.documents for text in train] == [44, 35]
    assert [text.repeated for text in train] == [4, 0]
    assert [text.in_other_sources for text in train] == [5, 5]
    assert [text.in_train for text in report.texts] == [None, None, 2]
    assert report.texts[2].repeated == 1
    assert report.texts[2].in_other_sources == 0
    assert (report.leaked, report.held_out_documents) == (2, 23)
    total = sum(count_tokens(p.corpus, p.documents, tokenizer.vocab_size)[0] for p in plans)
    assert report.train_pieces == pieces_of(total, tokenizer)


def test_copies_never_leak_through_the_split_by_hash(tiny, tmp_path):
    path = write_text(tmp_path / "twice.txt", 60)
    path.write_text(path.read_text() + "\n" + path.read_text())
    tiny.data.train_sources = (str(path),)
    tiny.data.valid_fraction = 0.3
    _, report = report_of(tiny)
    assert report.leaked == 0
    assert all(text.repeated * 2 == text.documents for text in report.texts)


def test_leakage_from_named_held_out_text(tiny, text, tmp_path):
    path = tmp_path / "valid.txt"
    path.write_text(with_copies(write_text(path, 10, seed=9), [documents_of(text)[:1]]).read_text())
    tiny.data.valid_sources = (str(path),)
    with pytest.warns(UserWarning, match="1 of the 11 held-out documents"):
        _, report = report_of(tiny)
    assert report.leaked == 1
    assert not report.split_by_hash
    assert report.texts[1].records is not None


@pytest.mark.parametrize("packing", [0, 4])
def test_padding_is_that_of_the_rows(corpus, tokenizer, packing):
    options = dataclasses.replace(OPTIONS, packing=packing, seq_length=64, max_predictions=10)
    examples = make_examples(corpus, tokenizer, options)
    mask = examples.batch(range(examples.rows_per_epoch))["attention_mask"]
    other = plan_of(corpus, options=dataclasses.replace(options, packing=4 - packing))
    for plan in (examples.plans[0], other):
        rows, padding = rows_and_padding(plan, packing)
        assert rows == len(mask)
        assert padding == pytest.approx(1 - mask.mean())


def test_packing_is_estimated_where_too_few_may_be_masked(corpus):
    plan = plan_of(corpus, options=dataclasses.replace(OPTIONS, max_predictions=1))
    enough = plan_of(corpus, options=dataclasses.replace(OPTIONS, max_predictions=5, packing=8))
    assert rows_and_padding(plan, 8) == (enough.rows_per_epoch, enough.padding())


def test_a_corpus_cut_off_has_no_characters_per_token(text, tokenizer, tmp_path):
    corpus = read_corpus(text, tokenizer, tmp_path, max_documents=50)
    report = make_report([plan_of(corpus)], [plan_of(corpus)], tokenizer, split_by_hash=False)
    assert report.texts[0].characters_per_token is None
    assert report.texts[0].documents == 50


def test_a_large_corpus_is_read_in_parts(monkeypatch, corpus, tokenizer):
    most = 0
    read = Corpus.read

    def watched(self, first, last):
        nonlocal most
        most = max(most, last - first)
        return read(self, first, last)

    monkeypatch.setattr("albert.data.pretraining.statistics._SENTENCES_AT_ONCE", 16)
    monkeypatch.setattr(Corpus, "read", watched)
    documents = np.arange(corpus.num_documents)
    pieces, sentences = count_tokens(corpus, documents, tokenizer.vocab_size)
    assert most == 16
    assert pieces.sum() == corpus.sentence_lengths.sum()
    assert sentences.sum() == corpus.num_sentences


def test_the_tool_end_to_end(text, vocabulary, tmp_path):
    command = [
        sys.executable,
        "tools/corpus_stats.py",
        "--config=configs/base.py:tiny",
        f"--config.data.train_sources=('{text}',)",
        f"--config.data.tokenizer={vocabulary}",
        "--config.model.vocab_size=96",
        f"--config.data.folder={tmp_path}",
        f"--output={tmp_path}/out/stats",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    report = json.loads(lines[-1])
    assert report == json.loads((tmp_path / "out" / "stats.json").read_text())
    assert sum(figures["documents"] for figures in report["texts"]) == 300
    assert (tmp_path / "out" / "stats.png").read_bytes().startswith(b"\x89PNG")
    assert any(line.startswith("Leakage: none.") for line in lines)
    table = [line for line in lines[:-1] if not line.startswith(("[", "Written:"))]
    assert max(map(len, table)) <= 120
