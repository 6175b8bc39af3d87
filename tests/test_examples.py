"""Chunks, sentence order, truncation and masking against brute force and the released program."""

import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
from conftest import write_text
from hypothesis import given, settings
from hypothesis import strategies as st

from albert.data.corpus import prepare_corpus
from albert.data.examples import (
    CorpusPlan,
    ExampleOptions,
    Examples,
    plan_chunks,
    show_row,
    truncate,
)
from albert.data.masking import choose_masked, corrupt
from albert.data.sources import parse_source
from albert.data.tokenizer import CLS, MASK, SEP, Tokenizer

OPTIONS = ExampleOptions(
    seq_length=32, max_predictions=6, masking_rate=0.15, max_ngram=3, short_seq_prob=0.1,
    single_segment="split",
)  # fmt: skip


@pytest.fixture(scope="session")
def corpus(text, tokenizer, prepared):
    return prepare_corpus(parse_source(str(text), "text"), tokenizer, "en", 0, prepared)


def make_examples(corpus, tokenizer, options=OPTIONS, seed=0):
    plan = CorpusPlan(corpus, np.arange(corpus.num_documents), options, (seed, 0))
    return Examples([plan], (), tokenizer, options, seed)


def released_chunks(lengths, target):
    """The loop of the released program over one document: [first, last) of every chunk."""
    chunks, current, size = [], [], 0
    for i, length in enumerate(lengths):
        current.append(i)
        size += length
        if i == len(lengths) - 1 or size >= target:
            chunks.append((current[0], current[-1] + 1))
            current, size = [], 0
    return chunks


@pytest.mark.parametrize("short", [0.0, 0.5, 1.0])
def test_chunks_are_those_of_the_released_loop(corpus, short):
    options = dataclasses.replace(OPTIONS, short_seq_prob=short, single_segment="random")
    documents = np.arange(0, corpus.num_documents, 2)
    chunks = plan_chunks(corpus, documents, options, np.random.default_rng(0))
    found = {int(first): (int(last), int(target)) for first, last, target in chunks}
    seen_targets = []
    for document in documents:
        start, end = corpus.document_starts[document : document + 2]
        target = found[int(start)][1]
        seen_targets.append(target)
        expected = released_chunks(corpus.sentence_lengths[start:end].tolist(), target)
        for first, last in expected:
            assert found.pop(int(start) + first) == (int(start) + last, target)
    assert not found
    # One target per document: the full length, or uniform in [2, L - 3].
    full = np.mean(np.array(seen_targets) == 29)
    assert full >= 1 - short - 0.12
    assert min(seen_targets) >= 2
    assert max(seen_targets) <= 29


def test_chunks_of_one_sentence(corpus):
    rng = np.random.default_rng
    documents = np.arange(corpus.num_documents)

    def singles(mode):
        options = dataclasses.replace(OPTIONS, single_segment=mode)
        chunks = plan_chunks(corpus, documents, options, rng(0))
        return chunks[chunks[:, 1] - chunks[:, 0] == 1]

    assert len(singles("drop")) == 0
    assert len(singles("random")) >= len(singles("split")) > 0
    assert (corpus.sentence_lengths[singles("split")[:, 0]] >= 2).all()


def released_truncate(a, b, limit, rng):
    """The released program's loop, a token at a time."""
    a, b = list(a), list(b)
    while len(a) + len(b) > limit:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()
    return a, b


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 50), st.integers(0, 10))
@settings(deadline=None)
def test_truncation_leaves_the_released_lengths(length_a, length_b, limit, seed):
    a, b = np.arange(length_a), 1000 + np.arange(length_b)
    ours = truncate(a, b, limit, np.random.default_rng(seed))
    released = released_truncate(a, b, limit, np.random.default_rng(seed))
    assert [len(s) for s in ours] == [len(s) for s in released]
    for segment, whole in zip(ours, (a, b), strict=True):
        # A run of the segment: tokens go from its ends only.
        if len(segment):
            begin = int(segment[0] - whole[0])
            np.testing.assert_array_equal(segment, whole[begin : begin + len(segment)])


def test_truncation_takes_from_both_ends_equally():
    rng = np.random.default_rng(0)
    fronts = [truncate(np.arange(30), np.arange(5), 25, rng)[0][0] for _ in range(2000)]
    assert abs(np.mean(fronts) - 5) < 0.15
    released = [released_truncate(range(30), range(5), 25, rng)[0][0] for _ in range(2000)]
    assert abs(np.var(fronts) - np.var(released)) < 0.4


@st.composite
def words(draw):
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=60))
    starts = np.zeros(sum(lengths), bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    return starts


@given(words(), st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_masks_are_whole_words_within_the_budget(starts, budget, max_ngram, seed):
    chosen = choose_masked(starts, budget, max_ngram, np.random.default_rng(seed))
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


def run_lengths(chosen):
    breaks = np.flatnonzero(np.diff(chosen) != 1) + 1
    return [len(run) for run in np.split(np.asarray(chosen), breaks)]


def test_masks_are_distributed_as_in_the_released_program():
    layout = np.random.default_rng(0)
    starts = layout.random(120) < 0.7
    starts[0] = True
    ours, released = np.zeros((2, 121)), np.zeros((2, 121))
    for seed in range(3000):
        for mask, table in (
            (choose_masked(starts, 18, 3, np.random.default_rng(seed)), ours),
            (released_masks(starts, 18, 3, np.random.default_rng(10_000 + seed)), released),
        ):
            table[0, np.asarray(mask)] += 1 / 3000
            for length in run_lengths(mask):
                table[1, min(length, 8)] += 1 / 3000
    # Share of every position, and number of runs of every length: five standard errors.
    assert np.abs(ours[0] - released[0]).max() < 5 * np.sqrt(2 * 0.15 * 0.85 / 3000)
    assert np.abs(ours[1] - released[1]).max() < 0.15


def test_eighty_ten_ten():
    rng = np.random.default_rng(0)
    ids = np.full(100_000, 77, np.int32)
    shown = corrupt(ids, 1000, rng)
    assert abs(np.mean(shown == MASK) - 0.8) < 0.006
    assert abs(np.mean(shown == 77) - 0.1) < 0.005
    others = shown[(shown != MASK) & (shown != 77)]
    assert len(np.unique(others)) == 998
    assert others.max() == 999


@pytest.mark.parametrize("mode", ["split", "drop", "random"])
def test_an_example_is_well_formed(corpus, tokenizer, mode):
    options = dataclasses.replace(OPTIONS, single_segment=mode)
    examples = make_examples(corpus, tokenizer, options)
    text = np.concatenate(corpus.read(0, len(corpus.sentence_lengths)))
    text = "," + ",".join(map(str, text)) + ","
    labels = []
    for row in range(examples.rows_per_epoch):
        example = examples[row]
        length = example["attention_mask"].sum()
        count = int(example["mlm_weights"].sum())
        restored = example["input_ids"].copy()
        positions = example["mlm_positions"][:count]
        restored[positions] = example["mlm_labels"][:count]
        assert example["attention_mask"].tolist() == [1] * length + [0] * (32 - length)
        assert not restored[length:].any()
        seps = np.flatnonzero(restored[:length] == SEP)
        assert restored[0] == CLS
        assert len(seps) == 2
        assert seps[1] == length - 1
        types = [0] * (seps[0] + 1) + [1] * (seps[1] - seps[0]) + [0] * (32 - length)
        assert example["token_type_ids"].tolist() == types
        assert 1 <= count <= min(6, max(1, round(length * 0.15)))
        assert (np.diff(positions) > 0).all()
        assert not np.isin(positions, [0, *seps]).any()
        assert not example["mlm_labels"][count:].any()
        a, b = restored[1 : seps[0]], restored[seps[0] + 1 : seps[1]]
        for segment in (a, b):
            assert "," + ",".join(map(str, segment)) + "," in text
        labels.append(int(example["sop_labels"]))
    assert 0.4 < np.mean(labels) < 0.75
    assert show_row(examples[0], tokenizer).startswith("sentence order")


def test_in_order_and_swapped_are_what_they_say(tmp_path, tokenizer):
    """Documents whose sentences count up, so that a reader of ids can tell the order."""
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(["water\nriver"] * 200))
    corpus = prepare_corpus(parse_source(str(path), "text"), tokenizer, "en", 0, tmp_path)
    options = dataclasses.replace(OPTIONS, masking_rate=0.0, short_seq_prob=0.0)
    first = tokenizer.encode("water")
    for row in range(100):
        example = make_examples(corpus, tokenizer, options)[row]
        position, label = example["mlm_positions"][0], example["mlm_labels"][0]
        example["input_ids"][position] = label
        in_order = example["input_ids"][1 : 1 + len(first)].tolist() == first
        assert example["sop_labels"] == (0 if in_order else 1)


def released_examples(sentences, limit):
    """Probability of every (first, second, label) that the released program makes of a chunk.

    Cut uniformly between sentences, swapped half the time, then shortened a token at a time from
    the longer segment, at its front or its back with equal probability.
    """
    found = {}

    def shorten(a, b, label, probability):
        if len(a) + len(b) <= limit:
            key = (a, b, label)
            found[key] = found.get(key, 0) + probability
        elif len(a) > len(b):
            shorten(a[1:], b, label, probability / 2)
            shorten(a[:-1], b, label, probability / 2)
        else:
            shorten(a, b[1:], label, probability / 2)
            shorten(a, b[:-1], label, probability / 2)

    cuts = range(1, len(sentences))
    for cut in cuts:
        a, b = (tuple(itertools.chain(*part)) for part in (sentences[:cut], sentences[cut:]))
        shorten(a, b, 0, 0.5 / len(cuts))
        shorten(b, a, 1, 0.5 / len(cuts))
    return found


@pytest.mark.parametrize(
    "sentences",
    [
        ["river", "small water", "the bright garden"],
        ["stone", "a wheel", "music", "the ancient village"],
        ["a river moves slowly under stone", "the captain never finds water"],
    ],
)
def test_a_single_document_gives_the_released_examples(tmp_path, tokenizer, sentences):
    """Every outcome of the released program, enumerated, and how often it comes."""
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    corpus = prepare_corpus(parse_source(str(tmp_path / "a.txt"), "text"), tokenizer, "en", 0,
                            tmp_path)  # fmt: skip
    ids = [tokenizer.encode(sentence) for sentence in sentences]
    # One chunk, of whole sentences, that is a few tokens too long.
    limit = sum(map(len, ids)) - min(3, len(ids[-1]) - 1)
    options = dataclasses.replace(
        OPTIONS, seq_length=limit + 3, short_seq_prob=0.0, masking_rate=0.0
    )  # fmt: skip
    assert released_chunks([len(x) for x in ids], limit)[0] == (0, len(ids))
    expected = released_examples(ids, limit)
    examples = make_examples(corpus, tokenizer, options)
    assert examples.rows_per_epoch == 1
    rows = 4000
    seen = dict.fromkeys(expected, 0)
    for row in range(rows):
        example = examples[row]
        tokens = example["input_ids"].copy()
        masked = example["mlm_weights"] > 0
        tokens[example["mlm_positions"][masked]] = example["mlm_labels"][masked]
        length = int(example["attention_mask"].sum())
        assert (tokens[0], tokens[length - 1]) == (CLS, SEP)
        body = tokens[1 : length - 1].tolist()
        middle = body.index(SEP)
        assert example["token_type_ids"][: middle + 2].sum() == 0
        assert example["token_type_ids"][middle + 2 : length].all()
        key = tuple(body[:middle]), tuple(body[middle + 1 :]), int(example["sop_labels"])
        assert key in expected
        seen[key] += 1
    for key, probability in expected.items():
        noise = math.sqrt(probability * (1 - probability) / rows)
        assert abs(seen[key] / rows - probability) < 4.5 * noise, key


def test_a_row_depends_on_nothing_but_corpus_seed_and_number(corpus, tokenizer):
    examples = make_examples(corpus, tokenizer)
    again = pickle.loads(pickle.dumps(examples))
    for row in (5, 0, 10_000, 3):
        for name, value in examples[row].items():
            np.testing.assert_array_equal(again[row][name], value)
    other = make_examples(corpus, tokenizer, seed=1)
    assert any((other[r]["input_ids"] != examples[r]["input_ids"]).any() for r in range(3))


def test_every_epoch_visits_every_chunk_with_masks_of_its_own(corpus, tokenizer):
    options = dataclasses.replace(OPTIONS, short_seq_prob=0.0)
    examples = make_examples(corpus, tokenizer, options)
    plan = examples.plans[0]
    size = examples.rows_per_epoch
    first, second = ([plan.chunk(e * size + r) for r in range(size)] for e in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second
    assert len(set(first)) == size
    where = second.index(first[0])
    one, two = examples[0], examples[size + where]
    assert one["mlm_positions"].tolist() != two["mlm_positions"].tolist()


def test_epochs_with_other_chunk_counts_keep_the_first_ones_length(corpus, tokenizer):
    options = dataclasses.replace(OPTIONS, short_seq_prob=0.5)
    plan = CorpusPlan(corpus, np.arange(corpus.num_documents), options, (0, 0))
    counts = [len(plan._plan_epoch(epoch)) for epoch in range(6)]
    assert len(set(counts)) > 1
    for epoch in range(6):
        rows = [plan.chunk(epoch * plan.rows_per_epoch + r) for r in range(plan.rows_per_epoch)]
        assert len(set(rows)) >= min(counts[epoch], plan.rows_per_epoch) * 0.99


def test_a_mixture_keeps_its_weights(tmp_path, corpus, text, tokenizer):
    path = write_text(tmp_path / "b.txt", 30, seed=9)
    small = prepare_corpus(parse_source(str(path), "text"), tokenizer, "en", 0, tmp_path)
    plans = [CorpusPlan(c, np.arange(c.num_documents), OPTIONS, (0, i))
             for i, c in enumerate((corpus, small))]  # fmt: skip
    by_size = Examples(plans, (), tokenizer, OPTIONS, 0)
    assert by_size.rows_per_epoch == sum(plan.rows_per_epoch for plan in plans)
    located = [by_size._locate(row) for row in range(by_size.rows_per_epoch)]
    assert len(set(located)) == by_size.rows_per_epoch  # every row of both, once

    half = Examples(plans, (1.0, 1.0), tokenizer, OPTIONS, 0)
    located = [half._locate(row) for row in range(3 * half.rows_per_epoch)]
    assert abs(np.mean([plan is plans[1] for plan, _ in located]) - 0.5) < 0.01
    # The rows of each corpus come once each, in the course of its own epochs.
    for plan in plans:
        rows = sorted(row for p, row in located if p is plan)
        assert rows == list(range(len(rows)))


def test_statistics_are_the_released_programs(shared, prepared):
    """Section 5 of the semantics, measured with the original program on the same text.

    The chunk figures hang on which few documents draw a short target: the standard deviation
    over seeds is 288 examples, 24 tokens and 5 points. So they are compared as means over those
    of many seeds that give the original's number of examples; the others for a single seed.
    """
    options = ExampleOptions(512, 77, 0.15, 3, 0.1, "random")
    tokenizer = Tokenizer(shared / "data/vocab/30k-clean.model")
    source = parse_source(str(shared / "data/corpus/train_8mb.txt"), "text")
    corpus = prepare_corpus(source, tokenizer, "en", 0, prepared)
    before = np.concatenate([[0], np.cumsum(corpus.sentence_lengths, dtype=np.int64)])
    alike = []
    for seed in range(400):
        chunks = CorpusPlan(corpus, np.arange(corpus.num_documents), options, (seed, 0))._epoch(0)
        if abs(len(chunks) - 4317) < 43:
            lengths = np.minimum(before[chunks[:, 1]] - before[chunks[:, 0]] + 3, 512)
            # A chunk of one sentence is always labelled 1, the others in half of the cases.
            ones = (1 + np.mean(chunks[:, 1] - chunks[:, 0] == 1)) / 2
            alike.append(
                (seed, lengths.mean(), np.mean(lengths == 512), np.mean(lengths < 128), ones)
            )
    assert len(alike) > 10
    _, mean_length, full, short, ones = np.mean(alike, axis=0)
    assert abs(mean_length / 421 - 1) < 0.01
    assert abs(full - 0.705) < 0.01
    assert abs(short - 0.119) < 0.01
    assert abs(ones - 0.511) < 0.01

    seed, *_, ones = alike[0]
    examples = make_examples(corpus, tokenizer, options, seed)
    rows = [examples[row] for row in range(examples.rows_per_epoch)]
    labels = np.mean([row["sop_labels"] for row in rows])
    assert abs(labels - ones) < 4 * 0.5 / np.sqrt(len(rows))
    tokens = sum(int(row["attention_mask"].sum()) for row in rows)
    masked = [row["mlm_positions"][row["mlm_weights"] > 0] for row in rows]
    assert abs(sum(map(len, masked)) / tokens - 0.1503) < 0.01
    shown = np.concatenate([r["input_ids"][m] for r, m in zip(rows, masked, strict=True)])
    labels = np.concatenate([r["mlm_labels"][: len(m)] for r, m in zip(rows, masked, strict=True)])
    assert abs(np.mean(shown == MASK) - 0.799) < 0.01
    assert abs(np.mean((shown == labels) & (shown != MASK)) - 0.100) < 0.01
    assert abs(np.mean((shown != labels) & (shown != MASK)) - 0.101) < 0.01
    runs = np.bincount([min(n, 5) for m in masked for n in run_lengths(m)], minlength=6)[1:]
    expected = np.array([47.3, 25.7, 17.4, 5.6, 4.0]) / 100
    assert np.abs(runs / runs.sum() - expected).max() < 0.01
