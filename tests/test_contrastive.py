"""Sentence vectors by contrast: loss, gradient and figures by brute force, the same on any devices,
runs from their data to `encode`, and everything that data gets wrong."""

import csv
import dataclasses
import itertools
import json
import math
import re
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict

import albert
from albert.checkpoints import CheckpointError
from albert.data.labelled.sentences import corpus_sentences
from albert.data.labelled.sequences import first_alike, make_sequences
from albert.data.sources.base import SourceError
from albert.data.tokenizer import CLS, SEP
from albert.interop import formats
from albert.models.layers import row_keys
from albert.runtime import RunError
from albert.runtime.fields import ConfigError
from albert.tasks import contrastive
from albert.tasks.contrastive import Contrastive, contrasts, figures, read_scored
from albert.train.config import check
from albert.train.evaluate import Options, evaluate_model, evaluate_run
from albert.train.loop import train
from albert.train.sharding import batch_sharding, make_mesh, mesh_over, put_batch, replicated
from albert.train.step import make_gradient
from configs.finetune import contrastive as contrastive_config
from faults import killed_at
from models import TINY
from rows import read_sentences
from runs import assert_bit_equal, final_params, records, run_together
from texts import _WORDS

SMALL = dataclasses.replace(TINY, num_hidden_layers=1)
TEXTS = ["the river", "a letter", "the bridge moves", "the river", "a garden"]


def write_table(path, columns, count=64, seed=0):
    """Made-up texts of few words, and scores."""
    rng = np.random.default_rng(seed)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for _ in range(count):
            cells = [" ".join(rng.choice(_WORDS, rng.integers(2, 9))) for _ in columns]
            if columns[-1] == "score":
                words = [set(cell.split()) for cell in cells[:2]]
                cells[-1] = round(5 * len(words[0] & words[1]) / len(words[0] | words[1]), 3)
            writer.writerow(cells)
    return path


@pytest.fixture
def own(run, text, prepared, tmp_path):
    """A config that learns from the sentences of the small text; change it, then `check` it."""
    config = contrastive_config.get_config("tiny")
    config.init_from = str(run)
    config.data.train = (str(text),)
    config.data.dev = str(write_table(tmp_path / "dev.csv", ("text_a", "text_b", "score"), 40, 1))
    config.data.folder = str(prepared)
    config.data.workers = 0
    config.data.max_sentences = 1000
    config.data.seq_length = 16  # the shortest: one shape to compile
    config.optimizer.name, config.optimizer.learning_rate = "optax.adamw", 3e-3
    config.train.num_steps = 8
    config.train.log_every, config.optimizer.warmup_steps = 2, 1
    config.train.eval_every = config.train.checkpoint_every = 4
    return config


@pytest.fixture
def pairs(own, tmp_path):
    """The same of pairs with a negative each."""
    columns = ("text_a", "text_b", "negative")
    own.data.train = (str(write_table(tmp_path / "pairs.csv", columns)),)
    own.data.text_a, own.data.text_b, own.data.negative = columns
    own.data.pooling, own.data.projection = "mean", False
    return own


def brute_force(vectors, numbers, temperature):
    """The loss of every anchor, candidate by candidate, in float64."""
    vectors = np.asarray(vectors, np.float64)
    rows, texts, _ = vectors.shape
    losses = []
    for i in range(rows):
        right, total = None, 0.0
        for j, s in itertools.product(range(rows), range(1, texts)):
            a, b = vectors[i, 0], vectors[j, s]
            score = a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) / temperature
            if (j, s) == (i, 1):
                right = score
            is_text = numbers[j, s] in (numbers[i, 0], numbers[i, 1])
            is_partner_too = s == 1 and numbers[j, 0] == numbers[i, 0]
            if (j, s) == (i, 1) or not (is_text or is_partner_too):
                total += math.exp(score)
        losses.append(math.log(total) - right)
    return np.array(losses)


@pytest.mark.parametrize("texts", [2, 3])
@pytest.mark.parametrize("repeated", [False, True])
def test_loss_and_gradient_by_brute_force(texts, repeated):
    rng = np.random.default_rng(texts)
    vectors = rng.normal(size=(6, texts, 5)).astype(np.float32)
    vectors[:3, 1] += 2 * vectors[:3, 0]  # so that some are found
    numbers = np.arange(6 * texts).reshape(6, texts)
    if repeated:
        numbers[3, 0] = numbers[1, 0]  # an anchor twice, with another partner
        numbers[4, 1] = numbers[2, 1]  # a partner twice
        numbers[5, -1] = numbers[0, 0]  # an anchor as what is no partner of another
        numbers[2, -1] = numbers[2, 1]
    losses, hits = jax.jit(contrasts)(vectors, numbers, 0.5)
    expected = brute_force(vectors, numbers, 0.5)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert 0 < hits.sum() < 6
    gradient = jax.jit(jax.grad(lambda v: contrasts(v, numbers, 0.5)[0].sum()))(vectors)
    for place in itertools.product(range(6), range(texts), range(5)):  # the second route
        moved = [np.array(vectors, np.float64) for _ in range(2)]
        moved[0][place] += 1e-5
        moved[1][place] -= 1e-5
        up, down = (brute_force(each, numbers, 0.5).sum() for each in moved)
        assert gradient[place] == pytest.approx((up - down) / 2e-5, abs=2e-5), place


def test_negatives_repeated_and_rows_moved():
    terms = jax.jit(contrasts)
    rng = np.random.default_rng(0)
    vectors, numbers = rng.normal(size=(6, 3, 5)).astype(np.float32), np.arange(18).reshape(6, 3)
    losses, hits = terms(vectors, numbers, 0.1)
    order = rng.permutation(6)
    moved, moved_hits = terms(vectors[order], numbers[order], 0.1)
    np.testing.assert_allclose(moved, losses[order], rtol=1e-5)
    assert moved_hits.tolist() == hits[order].tolist()
    # A row that is there twice is as if it were once: the end of an epoch and the next one's start.
    twice = np.append(np.arange(6), 0)
    found, _ = terms(vectors[twice], numbers[twice], 0.1)
    np.testing.assert_allclose(found[0], found[6], rtol=1e-6)
    assert found[0] == pytest.approx(brute_force(vectors[twice], numbers[twice], 0.1)[0], rel=1e-5)
    alone, hit = terms(vectors[:1, :2], numbers[:1, :2], 0.1)
    assert (alone.tolist(), hit.tolist()) == ([0.0], [1.0])
    gradient = jax.jit(jax.grad(lambda v: contrasts(v, numbers, 0.1)[0].sum()))(0 * vectors)
    assert np.isfinite(gradient).all()


def test_figures_by_brute_force():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 2, 4))
    scores = [0.0, 5.0, 2.0, 4.5, 4.0]
    numbers = np.arange(10).reshape(5, 2)
    numbers[3, 0] = 1
    vectors[3, 0] = vectors[0, 1]
    found = figures(scores, numbers, 3 * vectors)
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    cosines = [a @ b for a, b in unit]
    ranks = [np.argsort(np.argsort(each)) for each in (scores, cosines)]
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found["pearson"] == pytest.approx(np.corrcoef(scores, cosines)[0, 1])
    assert found["alignment"] == pytest.approx(
        np.mean([((a - b) ** 2).sum() for a, b in unit[[1, 3]]])
    )
    texts = {
        number: vector for number, vector in zip(numbers.ravel(), unit.reshape(10, 4), strict=True)
    }
    between = [
        math.exp(-2 * ((texts[a] - texts[b]) ** 2).sum())
        for a, b in itertools.combinations(texts, 2)
    ]
    assert len(between) == 9 * 8 / 2
    assert found["uniformity"] == pytest.approx(math.log(np.mean(between)))
    same = figures([1.0, 1.0], numbers[:2], np.ones((2, 2, 4)))
    assert (same["spearman"], same["alignment"]) == (0.0, 0.0)


def test_rows_with_the_same_ids_have_the_same_number(tokenizer):
    found = first_alike(make_sequences([(text, None) for text in TEXTS], tokenizer, 32))
    assert found.tolist() == [0, 1, 2, 0, 4]


def test_sentences_of_a_corpus_are_those_of_the_text(corpus):
    whole = corpus_sentences([corpus, corpus], 0, 0, 512)
    expected = read_sentences(corpus, 0, corpus.num_sentences)
    assert len(whole) == 2 * len(expected)
    for row, ids in enumerate(expected + expected):
        found = whole.ids[whole.starts[row] : whole.starts[row + 1]].tolist()
        assert found == [CLS, *ids, SEP]
    assert whole.seconds.tolist() == whole.lengths.tolist()
    assert whole.cut == 0
    some = corpus_sentences([corpus, corpus], 300, 3, 12)
    texts = [tuple(ids[:10]) for ids in expected]
    rows = np.split(some.ids, some.starts[1:-1])
    assert len(rows) == len(some) == 300
    assert all(tuple(row[1:-1].tolist()) in texts for row in rows)
    assert some.lengths.max() == 12
    assert 0 < some.cut < 300
    again = corpus_sentences([corpus, corpus], 300, 3, 12)
    np.testing.assert_array_equal(again.ids, some.ids)
    other = corpus_sentences([corpus, corpus], 300, 4, 12)
    assert other.ids.tolist() != some.ids.tolist()


def made_up_batch(rows, texts, length=10, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, TINY.vocab_size, (rows, texts, length)).astype(np.int32)
    mask = (np.arange(length) < rng.integers(3, length + 1, (rows, texts, 1))).astype(np.int32)
    numbers = np.arange(rows * texts, dtype=np.int32).reshape(rows, texts)
    numbers[rows - 1] = numbers[0]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": 0 * ids,
        "numbers": numbers,
    }


def gradient_on(config, batch, devices):
    """Loss, share of partners found and gradient of a step with dropout on, of whole arrays."""
    task = Contrastive(config)
    mesh = make_mesh(config.sharding)
    if devices == 1:
        mesh = mesh_over(jax.devices()[:1], (1, 1, 1, 1))
    params = meta.unbox(jax.jit(partial(task.init, task.model))(jax.random.key(0)))
    params = jax.device_put(jax.device_get(params), replicated(mesh))
    keys = row_keys(jax.random.key(1), len(batch["numbers"]))
    gradient = make_gradient(task, 1, mesh)

    def step(params, batch, keys):
        denominators = task.denominators(batch)
        (loss, sums), grads = gradient(params, batch, keys, denominators)
        return loss, task.metrics(sums, denominators)["accuracy"], grads

    with jax.set_mesh(mesh), nn.logical_axis_rules(config.sharding.rules):
        sharding = batch_sharding(mesh, config.sharding)
        return jax.device_get(jax.jit(step)(params, put_batch(batch, sharding), keys))


@pytest.mark.parametrize("texts", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_eight_devices_have_the_negatives_of_one(own, texts):
    own.data.text_a, own.data.text_b, own.data.negative = (
        name if number < texts else "" for number, name in enumerate("abc")
    )
    config = dataclasses.replace(check(own, needs_text=False), model=SMALL)
    batch = made_up_batch(16, texts)
    loss, found, gradient = gradient_on(config, batch, 8)
    expected, expected_found, expected_gradient = gradient_on(config, batch, 1)
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    assert found == expected_found
    assert loss > math.log(2)  # more than chance among the two rows of a device
    others = flatten_dict(expected_gradient, sep="/")
    for path, value in flatten_dict(gradient, sep="/").items():
        # Values reach 139 here, of which float32 keeps 1e-5: an absolute bound alone is none.
        np.testing.assert_allclose(value, others[path], rtol=2e-6, atol=2e-5, err_msg=path)
    assert np.abs(others["embeddings/word_embeddings"]).max() > 1e-3


def test_views_differ_by_dropout_alone_and_padding_changes_nothing(own):
    config = dataclasses.replace(check(own, needs_text=False), model=SMALL)
    task = Contrastive(config)
    params = meta.unbox(jax.jit(partial(task.init, task.model))(jax.random.key(0)))
    batch = made_up_batch(4, 1)
    keys = jax.random.split(jax.random.key(1), 4)

    @jax.jit
    def loss_of(batch, keys=None):
        return task.loss(task.sums(params, batch, keys), task.denominators(batch))

    same = batch | {"input_ids": batch["input_ids"][:1].repeat(4, 0)}
    same |= {"attention_mask": batch["attention_mask"][:1].repeat(4, 0)}
    same |= {"numbers": np.arange(4, dtype=np.int32)[:, None]}
    assert loss_of(same) == pytest.approx(math.log(4), abs=1e-4)  # all vectors are one
    assert abs(loss_of(same, keys) - math.log(4)) > 1e-3
    longer = {
        name: np.pad(value, [(0, 0), (0, 0), (0, 2)]) if value.ndim == 3 else value
        for name, value in batch.items()
    }
    np.testing.assert_allclose(loss_of(longer), loss_of(batch), rtol=1e-4)


def test_only_the_vector_is_of_use_afterwards(own):
    """The projection has a gradient, and the pooler none where vectors are not of it."""
    own.data.pooling = "mean"
    config = dataclasses.replace(check(own, needs_text=False), model=SMALL)
    task = Contrastive(config)
    params = meta.unbox(jax.jit(partial(task.init, task.model))(jax.random.key(0)))
    batch = made_up_batch(4, 1)
    keys = jax.random.split(jax.random.key(1), 4)
    gradient = jax.jit(jax.grad(lambda p: task.sums(p, batch, keys)["loss"]))(params)
    assert np.abs(gradient["sentence_head"]["projection"]["kernel"]).max() > 0
    assert not np.any(gradient["pooler"]["kernel"])
    assert task.unused(config) == ("pooler",)
    projection = jax.tree.map(jnp.zeros_like, params["sentence_head"])
    pair = {name: value.repeat(2, 1) for name, value in batch.items()}
    vectors = jax.jit(task._vectors)
    np.testing.assert_array_equal(
        vectors(params, pair), vectors(params | {"sentence_head": projection}, pair)
    )


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("contrastive")


@pytest.fixture
def trained(own, trained_folder, capsys):
    """A run that has learned from the sentences of the small text; made once, to be read only."""
    folder = trained_folder / "run"
    if not folder.exists():
        train(check(own), folder)
        (trained_folder / "printed.txt").write_text(capsys.readouterr().out)
    return folder


def test_a_run_learns_and_its_vectors_are_those_of_encode(own, trained, run):
    printed = (trained.parent / "printed.txt").read_text()
    assert re.search(r"\n1,000 of 1,\d+ sentences to learn from, drawn at random", printed)
    assert "Initialised anew, 2 tensors: sentence_head." in printed
    assert "Of no use here and left out: mlm_head, sop_head." in printed
    assert "partner found" in printed
    before, after = (records(trained)[at] for at in (0, -1))
    assert after["loss"] < before["loss"]

    model = albert.load(trained / "checkpoints" / "8")
    assert model.pooling == "cls"
    assert model.missing == ["mlm_head", "sop_head"]
    dev = read_scored(own.data.dev, own.data.dev_columns)
    vectors = model.encode([text for pair in dev for text in pair[:2]])
    np.testing.assert_array_equal(
        vectors, model.encode([text for pair in dev for text in pair[:2]], pooling="cls")
    )
    numbers = np.arange(len(vectors)).reshape(-1, 2)
    again = figures([pair.score for pair in dev], numbers, vectors.reshape(len(dev), 2, -1))
    kept = records(trained, "dev")[-1]
    assert again["spearman"] == pytest.approx(kept["spearman"], abs=1e-6)
    assert again["alignment"] == pytest.approx(kept["alignment"], rel=1e-4)
    assert albert.load(run).pooling == "mean"  # as ever, of a model without such training


@pytest.mark.slow
def test_other_formats_keep_the_pooling(trained, tmp_path):
    model = albert.load(trained)
    model.save(tmp_path / "albert")
    model.save(tmp_path / "hf", "huggingface")
    for name in ("albert", "hf"):
        other = albert.load(tmp_path / name)
        assert other.pooling == "cls"
        np.testing.assert_allclose(other.encode(TEXTS), model.encode(TEXTS), atol=1e-6)
    projection = "sentence_head/projection/kernel"
    assert projection in formats.read(tmp_path / "albert").params
    assert projection not in formats.read(tmp_path / "hf").params  # of use in training alone
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["architectures"] == ["AlbertModel"]
    written["sentence_pooling"] = "max"
    (tmp_path / "hf" / "config.json").write_text(json.dumps(written))
    with pytest.raises(CheckpointError, match="sentence_pooling is 'max'; it must be one of mean"):
        albert.load(tmp_path / "hf")


@pytest.mark.slow
def test_a_run_and_any_model_are_evaluated(own, trained, run, capsys):
    evaluate_run(trained, "latest", Options())
    printed = capsys.readouterr().out
    assert "cosine and score, vectors: cls" in printed
    assert "dev_cosines" in printed
    evaluate_model(run, check(own, needs_text=False), Options())
    assert f"dev by {run}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_not_resumed_with_other_vectors(own, trained):
    own.data.pooling, own.data.projection, own.train.num_steps = "mean", False, 12
    with pytest.raises(RunError, match=r"data\.pooling: cls -> mean\n.*data\.projection"):
        train(check(own), trained)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "pairs"])
def test_a_run_that_was_killed_ends_bit_equal(request, kind, tmp_path):
    config = check(request.getfixturevalue(kind))
    whole = train(config, tmp_path / "whole")
    with pytest.raises(MemoryError):
        train(config, tmp_path / "parts", watch=killed_at("log", 6))
    parts = train(config, tmp_path / "parts")
    assert_bit_equal(final_params(tmp_path / "parts", 8), final_params(tmp_path / "whole", 8))
    assert parts.figures == whole.figures
    assert records(tmp_path / "parts", "dev") == records(tmp_path / "whole", "dev")


@pytest.mark.slow
def test_two_processes_have_the_negatives_of_one(own, trained, tmp_path):
    fields = {
        "data.train": own.data.train,
        "data.dev": own.data.dev,
        "data.folder": own.data.folder,
        "data.seq_length": 16,
        "data.workers": 0,
        "data.max_sentences": 1000,
        "optimizer.name": "optax.adamw",
        "optimizer.learning_rate": 3e-3,
        "optimizer.warmup_steps": 1,
        "train.num_steps": 8,
        "train.log_every": 2,
        "init_from": own.init_from,
    }
    arguments = [sys.executable, "train.py", "--config=configs/finetune/contrastive.py:tiny"]
    arguments += [f"--config.{name}={value}" for name, value in fields.items()]
    run_together([*arguments, f"--workdir={tmp_path / 'two'}"], 2)
    two, one = (
        [line["loss"] for line in records(folder)] for folder in (tmp_path / "two", trained)
    )
    np.testing.assert_allclose(two, one, rtol=1e-4)
    figure = [records(folder, "dev")[-1]["spearman"] for folder in (tmp_path / "two", trained)]
    assert figure[0] == pytest.approx(figure[1], abs=1e-3)


@pytest.mark.slow
def test_a_model_goes_on_from_sentences_to_pairs(own, tmp_path, capsys):
    train(check(own), tmp_path / "sentences")
    columns = ("text_a", "text_b", "negative")
    own.data.train = (str(write_table(tmp_path / "pairs.csv", columns)),)
    own.data.text_a, own.data.text_b, own.data.negative = columns
    own.init_from, own.model.hidden_dropout_prob = str(tmp_path / "sentences"), 0.0
    own.model.attention_probs_dropout_prob = 0.0
    capsys.readouterr()
    train(check(own), tmp_path / "pairs")
    printed = capsys.readouterr().out
    assert "64 pairs to learn from with a negative each." in printed
    assert "Initialised anew" not in printed  # the projection too goes on


def test_pairs_are_rows_in_the_order_of_the_table(pairs, run):
    config = check(pairs)
    config = dataclasses.replace(config, model=albert.load(run).config)
    texts = contrastive.read_texts(config.data)
    with open(config.data.train[0], encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert texts == [cell for row in rows for cell in row]
    tokenizer = albert.load(run).tokenizer
    sequences = make_sequences([(text, None) for text in texts], tokenizer, 16)
    task = Contrastive(config, tokenizer, sequences)
    assert task.rows.rows_per_epoch == 64
    batch = task.rows.batch(range(4))
    assert batch["input_ids"].shape[:2] == batch["numbers"].shape == (4, 3)
    for row, example in enumerate(task.rows.examples(range(4))):
        for number, text in enumerate(rows[example]):
            ids = batch["input_ids"][row, number][batch["attention_mask"][row, number] > 0]
            assert ids.tolist() == [CLS, *tokenizer.encode(text)[:14], SEP]
    assert Contrastive.sequences_per_row(config) == 3


def test_the_dev_set_of_stsb_is_read(shared):
    found = read_scored(str(shared / "data" / "glue" / "STS-B"), ("", "", ""))
    assert len(found) == 1500
    assert found[0].score == 5.0
    assert found[0].text_a == "A man with a hard hat is dancing."


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"model.hidden_dropout_prob": 0.0, "model.attention_probs_dropout_prob": 0.0},
            "both views of a text would be the same",
        ),
        ({"train.batch_size": 1}, "it must be at least 2"),
        ({"sharding.slices": 2}, "slices send each other gradients alone"),
        ({"train.accumulation": 2}, "those of the whole batch, which is not computed in parts"),
        (
            {"train.microbatch": 8},
            "microbatch is 8; the negatives of a text are those of the whole",
        ),
        ({"train.reduce_dtype": "bfloat16"}, "negatives are on all devices"),
        ({"data.train": ()}, "data.train is empty; name text to take sentences from"),
        ({"data.train": ("nowhere.txt",)}, "data.train: There is no file nowhere.txt"),
        ({"data.text_a": "a", "data.train": ("a.xml",)}, "data.train: a.xml must end in .tsv"),
        ({"data.text_b": "b"}, "a pair needs the columns of both"),
        ({"data.negative": "c"}, "a negative is beside a pair"),
        ({"data.dev": ""}, "data.dev is empty; name the folder of STS-B"),
        ({"data.dev": "nowhere"}, "data.dev: nowhere is no folder of STS-B, and as a table it"),
        ({"data.dev_columns": ("a", "b", "")}, "it names the columns of two texts and a score"),
        ({"data.pooling": "max"}, "data.pooling is 'max'; it must be one of mean, pooled, cls"),
        ({"data.temperature": 0.0}, "data.temperature is 0.0; it must be positive"),
        ({"data.max_sentences": -1}, "data.max_sentences is -1; it must not be negative"),
        ({"data.language": "english"}, "data.language: 'english' is no language"),
        ({"data.max_bad_share": 2.0}, "data.max_bad_share is 2.0; it must be in [0, 1]"),
    ],
)
def test_fields_that_cannot_be_used_are_told(own, fields, words):
    own.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError) as told:
        check(own)
    assert words in str(told.value)


def test_a_table_without_a_column_is_told(pairs):
    pairs.data.text_a = pairs.data.text_b = pairs.data.negative = ""
    with pytest.raises(ConfigError, match=r"If it is a table, name its column with data\.text_a"):
        check(pairs)


def test_dropout_on_the_vector_is_enough_and_pairs_need_none(own, pairs):
    own.model.hidden_dropout_prob = own.model.attention_probs_dropout_prob = 0.0
    assert check(pairs).data.texts == 3
    own.data.text_b = own.data.negative = ""
    own.data.dropout = 0.1
    assert check(own).data.texts == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("only one", "line 66: 1 cells, and line 1 names 3 columns"),
        ('a,"",c', "line 66, column text_b: the text is empty"),
    ],
)
def test_pairs_that_are_wrong_are_named(pairs, line, words):
    with open(pairs.data.train[0], "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(SourceError) as told:
        contrastive.read_texts(check(pairs).data)
    assert words in str(told.value)


def test_columns_and_scores_that_are_wrong_are_named(pairs, tmp_path):
    pairs.data.negative = "hard"
    with pytest.raises(SourceError, match="line 2: there is no column 'hard' for the negative"):
        contrastive.read_texts(check(pairs).data)
    columns = ("text_a", "text_b", "score")
    with pytest.raises(SourceError, match=r"no column 'grade' for the score; .*dev_columns"):
        read_scored(pairs.data.dev, ("text_a", "text_b", "grade"))
    path = tmp_path / "wrong.csv"
    for line, words in (
        ("a,b,many", "column score: the score is 'many', not a finite number"),
        ("a,b,nan", "the score is 'nan', not a finite number"),
        ("a,,1", "column text_b: the text is empty"),
    ):
        path.write_text(f"text_a,text_b,score\n{line}\n")
        with pytest.raises(SourceError, match=words):
            read_scored(str(path), columns)
    path.write_text("text_a,text_b,score\n")
    with pytest.raises(SourceError, match="holds no records"):
        read_scored(str(path), columns)


def test_too_few_examples_for_a_batch_are_told(pairs, tmp_path):
    pairs.train.batch_size = 128
    with pytest.raises(SourceError, match="give 64 rows, fewer than one batch of 128"):
        train(check(pairs), tmp_path / "run")


def test_every_recipe_is_whole(own):
    for arg in ("", "unsupervised", "pairs", "tiny", "pairs,tiny"):
        config = contrastive_config.get_config(arg)
        config.init_from, config.data.train = own.init_from, own.data.train
        config.data.dev = own.data.dev
        if "pairs" in arg:
            config.data.train = (own.data.dev,)
        assert check(config).data.texts == (2 if "pairs" in arg else 1)
    for wrong in ("pair", "pairs,unsupervised"):
        with pytest.raises(ValueError, match="it is unsupervised or pairs"):
            contrastive_config.get_config(wrong)
