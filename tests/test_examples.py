"""Sentence order, truncation and whole rows against brute force and the released program."""

import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert.data.pretraining.examples import Examples, mixture, show_row, truncate
from albert.data.pretraining.plan import CorpusPlan, plan_chunks
from albert.data.tokenizer import CLS, MASK, SEP, Tokenizer
from rows import OPTIONS, make_examples, read_corpus, released_chunks, restored, run_lengths
from texts import write_text


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


@pytest.mark.parametrize("mode", ["split", "drop", "random"])
def test_an_example_is_well_formed(corpus, tokenizer, mode):
    options = dataclasses.replace(OPTIONS, single_segment=mode)
    examples = make_examples(corpus, tokenizer, options)
    text = corpus.read(0, corpus.num_sentences)
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
    corpus = read_corpus(path, tokenizer, tmp_path)
    options = dataclasses.replace(OPTIONS, masking_rate=0.0, short_seq_prob=0.0)
    first = tokenizer.encode("water")
    for row in range(100):
        example = make_examples(corpus, tokenizer, options)[row]
        position, label = example["mlm_positions"][0], example["mlm_labels"][0]
        example["input_ids"][position] = label
        in_order = example["input_ids"][1 : 1 + len(first)].tolist() == first
        assert example["sop_labels"] == (0 if in_order else 1)


def test_a_chunk_of_one_sentence_is_split_at_any_word(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("river water mountain stone garden letter")
    corpus = read_corpus(tmp_path / "a.txt", tokenizer, tmp_path)
    options = dataclasses.replace(OPTIONS, short_seq_prob=0.0, seq_length=64)
    examples = make_examples(corpus, tokenizer, options)
    whole = corpus.read(0, 1).tolist()
    starts = np.flatnonzero(tokenizer.starts_word[whole])[1:]
    rows, counts, swapped = 4000, {}, 0
    for row in range(rows):
        ids = restored(examples[row]).tolist()
        middle = ids.index(SEP)
        first, second = ids[1:middle], ids[middle + 1 : ids.index(SEP, middle + 1)]
        if examples[row]["sop_labels"]:
            first, second = second, first
            swapped += 1
        assert first + second == whole
        counts[len(first)] = counts.get(len(first), 0) + 1
    assert set(counts) == set(starts.tolist())
    share = 1 / len(starts)
    for count in counts.values():
        assert abs(count / rows - share) < 5 * np.sqrt(share / rows)
    assert abs(swapped / rows - 0.5) < 5 * 0.5 / np.sqrt(rows)


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
    corpus = read_corpus(tmp_path / "a.txt", tokenizer, tmp_path)
    ids = [tokenizer.encode(sentence) for sentence in sentences]
    # One chunk, of whole sentences, that is a few tokens too long.
    limit = sum(map(len, ids)) - min(3, len(ids[-1]) - 1)
    options = dataclasses.replace(
        OPTIONS, seq_length=limit + 3, short_seq_prob=0.0, masking_rate=0.0
    )
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


def test_the_same_chunk_is_masked_anew_in_every_epoch(corpus, tokenizer):
    options = dataclasses.replace(OPTIONS, short_seq_prob=0.0)
    examples = make_examples(corpus, tokenizer, options)
    plan, size = examples.plans[0], examples.rows_per_epoch
    first = plan.row(0)[0].tolist()
    again = next(r for r in range(size, 2 * size) if plan.row(r)[0].tolist() == first)
    assert examples[0]["mlm_positions"].tolist() != examples[again]["mlm_positions"].tolist()


def test_static_copies_have_the_same_masks(corpus, tokenizer):
    options = dataclasses.replace(OPTIONS, static_copies=2)
    examples = make_examples(corpus, tokenizer, options)
    size = examples.rows_per_epoch

    def rows_of(epoch):
        epoch_rows = [examples[epoch * size + r] for r in range(size)]
        return sorted(row["input_ids"].tolist() for row in epoch_rows)

    assert rows_of(0) == rows_of(2)
    assert rows_of(0) != rows_of(1)


def test_a_mixture_keeps_its_weights(tmp_path, corpus, text, tokenizer):
    path = write_text(tmp_path / "b.txt", 30, seed=9)
    small = read_corpus(path, tokenizer, tmp_path)
    plans = [
        CorpusPlan(c, np.arange(c.num_documents), OPTIONS, (0, i))
        for i, c in enumerate((corpus, small))
    ]
    by_size = Examples(plans, (), 1.0, tokenizer, OPTIONS, 0)
    assert by_size.rows_per_epoch == sum(plan.rows_per_epoch for plan in plans)
    located = [by_size._locate(row) for row in range(by_size.rows_per_epoch)]
    assert len(set(located)) == by_size.rows_per_epoch  # every row of both, once

    half = Examples(plans, (1.0, 1.0), 1.0, tokenizer, OPTIONS, 0)
    located = [half._locate(row) for row in range(3 * half.rows_per_epoch)]
    assert abs(np.mean([plan is plans[1] for plan, _ in located]) - 0.5) < 0.01
    # The rows of each corpus come once each, in the course of its own epochs.
    for plan in plans:
        rows = sorted(row for p, row in located if p is plan)
        assert rows == list(range(len(rows)))


def test_a_small_source_that_comes_often_is_planned_once_an_epoch(
    tmp_path, corpus, tokenizer, monkeypatch
):
    path = write_text(tmp_path / "b.txt", 30, seed=9)
    small = read_corpus(path, tokenizer, tmp_path)
    plans = [
        CorpusPlan(c, np.arange(c.num_documents), OPTIONS, (0, i))
        for i, c in enumerate((corpus, small))
    ]
    planned = []
    original = CorpusPlan._plan_epoch
    monkeypatch.setattr(
        CorpusPlan,
        "_plan_epoch",
        lambda self, number: planned.append(number) or original(self, number),
    )
    mixed = Examples(plans, (1.0, 1.0), 1.0, tokenizer, OPTIONS, 0)
    mixed.batch(range(mixed.rows_per_epoch))
    assert max(planned) > 3
    assert len(planned) <= max(planned) + 4


def test_temperature_brings_shares_together():
    assert mixture([900, 100], (), 1.0) == [900, 100]
    assert mixture([900, 100], (), 2.0) == [750, 250]
    assert mixture([900, 100], (1.0, 16.0), 4.0) == [333, 667]
    assert mixture([900, 100], (), 1e9) == [500, 500]


def unpacked(batch):
    """Every example of packed rows as (ids, types, positions and labels of masks, label)."""
    found = []
    for row in range(len(batch["input_ids"])):
        segments = batch["segment_ids"][row]
        for number in range(int(segments.max())):
            span = np.flatnonzero(segments == number + 1)
            assert span.tolist() == list(range(span[0], span[-1] + 1))
            assert batch["cls_positions"][row, number] == span[0]
            assert batch["position_ids"][row, span].tolist() == list(range(len(span)))
            masks = batch["mlm_positions"][row]
            own = (batch["mlm_weights"][row] > 0) & (masks >= span[0]) & (masks <= span[-1])
            found.append(
                (
                    batch["input_ids"][row, span].tolist(),
                    batch["token_type_ids"][row, span].tolist(),
                    (masks[own] - span[0]).tolist(),
                    batch["mlm_labels"][row, own].tolist(),
                    int(batch["sop_labels"][row, number]),
                )
            )
    return found


@pytest.mark.parametrize("objective", ["sop", "nsp", "none"])
@pytest.mark.parametrize("single", ["split", "random"])
def test_packed_rows_hold_the_very_examples_of_unpacked_ones(corpus, tokenizer, objective, single):
    options = dataclasses.replace(OPTIONS, sentence_objective=objective, single_segment=single)
    plain = make_examples(corpus, tokenizer, options)
    packed = make_examples(corpus, tokenizer, dataclasses.replace(options, packing=4))
    assert packed.rows_per_epoch < plain.rows_per_epoch
    expected = []
    for row in range(plain.rows_per_epoch):
        example = plain[row]
        length = int(example["attention_mask"].sum())
        masked = int(example["mlm_weights"].sum())
        expected.append(
            (
                example["input_ids"][:length].tolist(),
                example["token_type_ids"][:length].tolist(),
                example["mlm_positions"][:masked].tolist(),
                example["mlm_labels"][:masked].tolist(),
                int(example["sop_labels"]),
            )
        )
    batch = packed.batch(range(packed.rows_per_epoch))
    assert sorted(unpacked(batch)) == sorted(expected)
    np.testing.assert_array_equal(batch["attention_mask"], batch["segment_ids"] > 0)
    used = batch["attention_mask"].mean()
    assert packed.padding() == pytest.approx(1 - used)
    row = int(np.argmax(batch["segment_ids"].max(axis=1)))
    assert show_row(packed[row], tokenizer).count("[CLS]") == batch["segment_ids"][row].max() > 1


def test_one_segment_without_an_objective(corpus, tokenizer):
    options = dataclasses.replace(OPTIONS, sentence_objective="none")
    examples = make_examples(corpus, tokenizer, options)
    for row in range(examples.rows_per_epoch):
        example = examples[row]
        length = int(example["attention_mask"].sum())
        ids = restored(example)[:length]
        assert (ids[0], ids[-1], (ids == SEP).sum()) == (CLS, SEP, 1)
        assert not example["token_type_ids"].any()
        assert example["sop_labels"] == -1


def test_next_sentence_labels_are_what_they_say(tmp_path, tokenizer):
    """Every document says one word only, so that a second segment from elsewhere shows."""
    words = ["water", "river", "music", "letter", "garden", "market"]
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join("\n".join([word] * 40) for word in words))
    corpus = read_corpus(path, tokenizer, tmp_path)
    options = dataclasses.replace(OPTIONS, sentence_objective="nsp")
    examples = make_examples(corpus, tokenizer, options)
    labels = []
    for row in range(300):
        example = examples[row]
        ids = restored(example)[: int(example["attention_mask"].sum())]
        middle = int(np.flatnonzero(ids == SEP)[0])
        spoken = [
            set(tokenizer.decode(part.tolist()).split())
            for part in (ids[1:middle], ids[middle + 1 : -1])
        ]
        label = int(example["sop_labels"])
        if label == 0:
            assert spoken[0] & spoken[1] or not (spoken[0] & set(words) and spoken[1] & set(words))
        else:
            assert not spoken[0] & spoken[1] & set(words)
        labels.append(label)
    assert abs(np.mean(labels) - 0.5) < 0.15


@pytest.mark.parametrize(("rate", "most"), [(0.15, 77), (0.3, 154), (0.4, 205)])
@pytest.mark.parametrize("unit", ["word", "piece"])
def test_the_masking_rate_is_what_was_asked_for(shared, prepared, rate, most, unit):
    tokenizer = Tokenizer(shared / "data/vocab/30k-clean.model")
    corpus = read_corpus(shared / "data/corpus/valid_2mb.txt", tokenizer, prepared)
    options = dataclasses.replace(
        OPTIONS, seq_length=512, max_predictions=most, masking_rate=rate, masking_unit=unit
    )
    examples = make_examples(corpus, tokenizer, options)
    batch = examples.batch(range(200))
    share = batch["mlm_weights"].sum() / batch["attention_mask"].sum()
    assert abs(share - rate) < 0.004
    runs = np.concatenate(
        [
            run_lengths(p[w > 0])
            for p, w in zip(batch["mlm_positions"], batch["mlm_weights"], strict=True)
        ]
    )
    words = tokenizer.starts_word
    begins = [
        words[labels[0]]
        for row in range(200)
        for labels in np.split(
            batch["mlm_labels"][row][batch["mlm_weights"][row] > 0],
            np.flatnonzero(np.diff(batch["mlm_positions"][row][batch["mlm_weights"][row] > 0]) != 1)
            + 1,
        )
    ]
    # A masked run begins inside a word only where single pieces are masked (or text was cut).
    assert (np.mean(begins) > 0.995) == (unit == "word")
    assert runs.max() > 3


@pytest.mark.parametrize("packing", [0, 8])
def test_statistics_are_the_released_programs(shared, prepared, packing):
    """Section 5 of the semantics, measured with the original program on the same text.

    The chunk figures hang on which few documents draw a short target: the standard deviation
    over seeds is 288 examples, 24 tokens and 5 points. So they are compared as means over those
    of many seeds that give the original's number of examples; the others for a single seed.
    """
    options = dataclasses.replace(
        OPTIONS, seq_length=512, max_predictions=77, single_segment="random", packing=packing
    )
    tokenizer = Tokenizer(shared / "data/vocab/30k-clean.model")
    corpus = read_corpus(shared / "data/corpus/train_8mb.txt", tokenizer, prepared)
    alike = []
    for seed in range(400):
        rng = np.random.default_rng((1, seed, 0, 0))
        chunks, lengths = plan_chunks(corpus, np.arange(corpus.num_documents), options, rng)
        if abs(len(chunks) - 4317) < 43:
            # A chunk of one sentence is always labelled 1, the others in half of the cases.
            ones = (1 + np.mean(chunks[:, 3] > 0)) / 2
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
    batch = examples.batch(range(examples.rows_per_epoch))
    labels = batch["sop_labels"][batch["sop_labels"] >= 0]
    assert abs(labels.mean() - ones) < 4 * 0.5 / np.sqrt(len(labels))
    weights = batch["mlm_weights"] > 0
    assert abs(weights.sum() / batch["attention_mask"].sum() - 0.1503) < 0.01
    shown = np.take_along_axis(batch["input_ids"], batch["mlm_positions"], axis=1)[weights]
    labels = batch["mlm_labels"][weights]
    assert abs(np.mean(shown == MASK) - 0.799) < 0.01
    assert abs(np.mean((shown == labels) & (shown != MASK)) - 0.100) < 0.01
    assert abs(np.mean((shown != labels) & (shown != MASK)) - 0.101) < 0.01
    masked = [p[w] for p, w in zip(batch["mlm_positions"], weights, strict=True)]
    runs = np.bincount([min(n, 5) for m in masked for n in run_lengths(m)], minlength=6)[1:]
    expected = np.array([47.3, 25.7, 17.4, 5.6, 4.0]) / 100
    assert np.abs(runs / runs.sum() - expected).max() < 0.01
    assert batch["attention_mask"].mean() > (0.97 if packing else 0.75)
