"""The front door: load, call, tokenise, fill masks, encode, save."""

import contextlib
import copy
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import albert
import reference
from albert import inference
from albert.checkpoints import CheckpointError, manifest
from albert.checkpoints.store import Checkpoints
from albert.data.tokenizer import MASK, Tokenizer, is_padding
from albert.inference import Pretrained
from albert.interop import formats, original
from albert.interop.weights import entries, parameter_shapes, predicting_pieces, unstacked
from albert.train.optimizers import make_optimizer
from models import assert_same, random_weights
from optimizers import LAMB
from runs import one_device

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"vocab_size": 96, "max_position_embeddings": 40}


@pytest.fixture(scope="module")
def model(vocabulary):
    weights = random_weights(**SIZES)
    weights.tokenizer = Tokenizer(vocabulary)
    return Pretrained(weights)


def test_a_call_fills_in_what_is_not_given(model):
    ids = [[2, 20, 21, 3], [2, 22, 23, 3]]
    more = {"output_hidden_states": True, "output_mlm_logits": True}
    output = model(ids, **more)
    given = model(ids, np.ones((2, 4), int), np.zeros((2, 4), int), **more)
    for name, value in vars(output).items():
        np.testing.assert_array_equal(value, getattr(given, name), err_msg=name)
    assert output.hidden_states.shape == (4, 2, 4, 16)
    np.testing.assert_array_equal(output.hidden_states[-1], output.last_hidden_state)
    assert output.mlm_logits.shape == (2, 4, 96)
    assert output.sop_logits.shape == (2, 2)
    assert output.pooled_output.shape == (2, 16)


def test_what_costs_much_is_given_on_request(model):
    ids = [[2, 20, 21, 3], [2, 22, 23, 3]]
    output = model(ids)
    assert output.hidden_states is None
    assert output.mlm_logits is None
    assert "hidden_states: None, ask with output_hidden_states=True" in repr(output)
    assert "mlm_logits: None, ask with output_mlm_logits=True" in repr(output)
    assert "pooled_output: float32 [2, 16]" in repr(output)
    whole = model(ids, output_mlm_logits=True).mlm_logits
    positions = np.array([[1, 3, 0], [2, 2, 1]])
    chosen = model(ids, mlm_positions=positions)
    assert chosen.hidden_states is None
    expected = np.take_along_axis(whole, positions[:, :, None], axis=1)
    np.testing.assert_allclose(chosen.mlm_logits, expected, atol=1e-5)
    # What is not asked for is not computed: nothing is as wide as the vocabulary.
    text = programs(model, ids)
    assert "f32[2,16,96]" not in text
    assert "f32[2,16,96]" in programs(model, ids, "mlm_logits")


def programs(model, ids, *wanted):
    """The compiled program of the outputs that are always given, and those named."""
    rows = inference._padded(inference._checked(model.config, ids, None, None), 40)
    wanted = (*wanted, "last_hidden_state", "pooled_output", "sop_logits")
    lowered = model._forward.lower(model.params, rows, None, wanted=wanted, pieces=96)
    return lowered.compile().as_text()


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 17), (3, 33)])
def test_padding_inside_changes_no_number(model, shape):
    rng = np.random.default_rng(shape)
    ids, types = rng.integers(0, 96, shape), rng.integers(0, 2, shape)
    mask = rng.integers(0, 2, shape)  # holes, and a row of padding only
    mask[-1] = 0
    output = model(ids, mask, types, output_hidden_states=True, output_mlm_logits=True)
    # Such a row attends to all of its positions alike, as if all were tokens.
    seen = np.where(mask.any(axis=1, keepdims=True), mask, 1)
    weights = random_weights(**SIZES)
    variables = {
        e.name: e.write(weights.params[e.path]) for e in entries(model.config, original.name_of)
    }
    for name, value in reference.forward(model.config, variables, ids, seen, types).items():
        np.testing.assert_allclose(getattr(output, name), value, atol=2e-5, err_msg=name)


def test_programs_are_compiled_for_few_shapes():
    shapes = set()
    for count in range(1, 65):
        for length in range(1, 513):
            array = np.ones((count, length), np.int32)
            rows = inference._padded({"input_ids": array, "attention_mask": array}, 512)
            shape = rows["input_ids"].shape
            assert count <= shape[0] <= 1.5 * count
            assert length <= shape[1] <= max(1.5 * length, 16)
            shapes.add(shape)
    assert len({length for _, length in shapes}) == 11
    assert len({count for count, _ in shapes}) == 12


def test_alike_shapes_share_one_program():
    model = Pretrained(random_weights(**SIZES))
    for count in (5, 6):
        for length in range(17, 25):
            output = model(np.full((count, length), 7))
            assert output.last_hidden_state.shape == (count, length, 16)
            model(np.full((count, length), 7), mlm_positions=np.zeros((count, 3 + length % 2), int))
    assert model._forward._cache_size() == 3


def test_no_rows_give_no_rows(model):
    output = model(np.zeros((0, 5), int), output_mlm_logits=True)
    assert output.last_hidden_state.shape == (0, 5, 16)
    assert output.mlm_logits.shape == (0, 5, 96)
    assert output.sop_logits.shape == (0, 2)


def test_what_is_returned_can_be_changed(model):
    output = model([[2, 20, 3]])
    output.last_hidden_state[0] = 0
    assert output.last_hidden_state.base is None  # and keeps no padding


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([[1, 2]], "input_ids has shape"),
        ([[[1.0, 2.0]]], "it must be integers"),
        ([[[1, 96]]], "input_ids holds 96; the model knows 0 to 95"),
        ([[[-1, 5]]], "input_ids holds -1"),
        ([[[1, 2]], [[1]]], "attention_mask has shape"),
        ([[[1, 2]], None, [[0, 2]]], "token_type_ids holds 2; the model knows 0 to 1"),
        ([np.zeros((1, 41), int)], "41 long and the model has 40 positions"),
        ([np.zeros((2, 0), int)], "its rows are empty"),
        ([[[1, 2], [1]]], "input_ids is no array .* pad its rows to one length"),
        ([[[1, 2]], [[1, 0.5]]], "attention_mask holds 0.5; it must be 1 for a token and 0"),
        ([[[1, 2]], [[0, -1]]], "attention_mask holds -1"),
        ([[[1, 2]], None, [[0, 0.5]]], "token_type_ids has type float64"),
    ],
)
def test_bad_arrays_are_told(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        model(*arguments)


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ([[2]], "holds 2; the rows have positions 0 to 1"),
        ([[-1]], "holds -1"),
        ([[0], [1]], r"has shape \(2, 1\) .* integers \[1, P\]"),
        ([[]], r"has shape \(1, 0\)"),
        ([0], r"has shape \(1,\)"),
    ],
)
def test_bad_positions_are_told(model, positions, words):
    with pytest.raises(ValueError, match=f"mlm_positions {words}"):
        model([[1, 2]], mlm_positions=positions)


def test_tokenise_pads_and_marks_pairs(model):
    rows = model.tokenize(["a river", "the ancient river moves"], ["a", "slowly"])
    ids, mask, types = rows.values()
    assert ids.shape == mask.shape == types.shape
    for number, (text, pair) in enumerate(
        [("a river", "a"), ("the ancient river moves", "slowly")]
    ):
        expected, expected_types = model.tokenizer.encode_pair(text, pair)
        length = len(expected)
        assert ids[number, :length].tolist() == expected
        assert types[number, :length].tolist() == expected_types
        assert mask[number].tolist() == [1] * length + [0] * (ids.shape[1] - length)
    alone = model.tokenize("a river", "a")
    padded = model(**rows).last_hidden_state[0, : alone["input_ids"].shape[1]]
    np.testing.assert_allclose(model(**alone).last_hidden_state[0], padded, atol=1e-5)


def test_texts_that_do_not_fit_are_told(model):
    with pytest.raises(ValueError, match="give max_length=40 to cut"):
        model.tokenize("river " * 50)
    assert model.tokenize("river " * 50, max_length=40)["input_ids"].shape == (1, 40)
    with pytest.raises(ValueError, match="max_length 41 is over the model's 40 positions"):
        model.tokenize("river", max_length=41)
    with pytest.raises(ValueError, match="2 texts and 1 pairs"):
        model.tokenize(["a", "b"], ["c"])


def test_fill_mask_gives_the_likeliest_pieces(model):
    text = "the [MASK] moves [MASK]."
    ids = model.tokenize(text)["input_ids"]
    logits = np.asarray(model(ids, output_mlm_logits=True).mlm_logits[0], np.float64)
    places = np.flatnonzero(ids[0] == MASK)
    filled = model.fill_mask(text, top=3)
    assert len(filled) == len(places) == 2
    for place, guesses in zip(places, filled, strict=True):
        share = np.exp(logits[place]) / np.exp(logits[place]).sum()
        best = np.argsort(-share)[:3]
        assert [g.id for g in guesses] == best.tolist()
        np.testing.assert_allclose([g.probability for g in guesses], share[best], rtol=1e-4)
        assert guesses[0].text in (
            model.tokenizer.decode([best[0]]),
            model.tokenizer.pieces([best[0]])[0],
        )
    with pytest.raises(ValueError, match=r"no \[MASK\] in 'a river'"):
        model.fill_mask("a river")


def test_fill_mask_answers_for_every_text(model):
    texts = ["the [MASK] moves [MASK].", "a [MASK]", "the quiet [MASK] of " + "river " * 12]
    expected = [model.fill_mask(text, top=4) for text in texts]
    for given_texts in (texts, iter(texts), np.array(texts)):
        filled = model.fill_mask(given_texts, top=4, batch_size=2)
        assert [[[g.id for g in place] for place in text] for text in filled] == [
            [[g.id for g in place] for place in text] for text in expected
        ]
    assert model.fill_mask([texts[1]], top=1)[0][0][0].id == expected[1][0][0].id
    assert model.fill_mask([]) == []
    everything = model.fill_mask(texts[1], top=1000)[0]
    assert sorted(g.id for g in everything) == list(range(96))
    with pytest.raises(ValueError, match=r"Text 1: There is no \[MASK\] in 'a river'"):
        model.fill_mask(["a [MASK]", "a river"])
    with pytest.raises(ValueError, match=r"Text 1 has .* pieces and the model 40 positions"):
        model.fill_mask(["a [MASK]", "[MASK] " + "river " * 50])
    for top in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=r"top is .*; it must be a whole number of at least 1"):
            model.fill_mask("a [MASK]", top=top)


def test_fill_mask_computes_logits_where_masks_are(model):
    rows = inference._padded(model.tokenize("the [MASK] moves"), 40)
    traced = jax.make_jaxpr(
        lambda rows: model._likeliest(model.params, rows, np.zeros((1, 1), int), pieces=96, top=5)
    )(rows)
    assert "f32[1,1,96]" in str(traced)
    assert "16,96]" not in str(traced)


class Series:
    """As a sorted pandas Series: iterates in its order, and is indexed by other labels."""

    def __init__(self, values):
        order = sorted(range(len(values)), key=values.__getitem__)
        self.index, self.values, self.ndim = order, values, 1

    def __iter__(self):
        return iter([self.values[label] for label in self.index])

    def __len__(self):
        return len(self.values)

    def __getitem__(self, label):
        return self.values[label]


TEXTS = ["the river", "a small bright garden under the bridge", "wheel", "the ancient village"]


def test_any_iterable_of_texts_gives_vectors_in_its_order(model):
    expected = dict(zip(TEXTS, model.encode(TEXTS), strict=True))
    series = Series(TEXTS)
    assert [series[0]] != list(series)[:1]
    for texts in (
        tuple(TEXTS),
        (text for text in TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, object),
        series,
        dict.fromkeys(TEXTS).keys(),
        map(str, TEXTS),
    ):
        order = list(series) if texts is series else TEXTS
        found = model.encode(texts, batch_size=3)
        np.testing.assert_allclose(found, [expected[text] for text in order], atol=1e-5)
    rows = model.tokenize(iter(TEXTS), iter(TEXTS))
    assert rows["input_ids"].shape[0] == 4


def test_a_sorted_pandas_series_gives_vectors_in_its_order(model):
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(TEXTS).sort_values()
    assert list(series.index) != [0, 1, 2, 3]
    np.testing.assert_allclose(model.encode(series), model.encode(list(series)), atol=1e-5)
    with pytest.raises(ValueError, match="is a DataFrame of 2 axes; give one column"):
        model.encode(series.to_frame())
    with pytest.raises(ValueError, match=r"text 1 \(the first is 0\) is nan, of type float"):
        model.encode(pandas.Series(["a", float("nan")], dtype=object))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a", None], r"text 1 \(the first is 0\) is None, of type NoneType; it must be a str"),
        ([b"a"], "text 0 .* of type bytes"),
        (b"a river", "text is a bytes, which is not a list of texts"),
        ({"a": 1}, "text is a dict, which is not a list"),
        ({"a", "b"}, "text is a set, which has no order and is not a list"),
        (5, "text is a int, which is not a list"),
        (np.array([["a", "b"]]), "text is a ndarray of 2 axes; give one column of texts"),
        (["a", ["b"]], "text 1 .* of type list"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(model, texts, words):
    for function in (model.encode, model.tokenize, model.fill_mask):
        with pytest.raises(ValueError, match=words):
            function(texts)


@pytest.mark.parametrize("batch_size", [-1, 0, 1.5, True, None, "2"])
def test_a_batch_of_no_texts_is_refused(model, batch_size):
    for function in (model.encode, model.fill_mask):
        with pytest.raises(ValueError, match=r"batch_size is .*; it must be a whole number of at"):
            function(["a [MASK]"], batch_size=batch_size)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_model_can_be_copied_after_it_was_used(copied, vocabulary, tmp_path):
    moved = tmp_path / "moved.model"
    shutil.copy(vocabulary, moved)
    weights = random_weights(lacking=["sop_head"], **SIZES)
    weights.tokenizer = Tokenizer(moved)
    model = Pretrained(weights)
    before = model.encode(["a river"]), model.fill_mask("a [MASK]"), model([[2, 5, 3]])
    moved.unlink()
    again = copied(model)
    np.testing.assert_array_equal(again.encode(["a river"]), before[0])
    assert again.fill_mask("a [MASK]") == before[1]
    np.testing.assert_array_equal(again([[2, 5, 3]]).pooled_output, before[2].pooled_output)
    assert again.missing == ["sop_head"]
    again.save(tmp_path / "saved", format="huggingface")


@pytest.fixture
def padded(vocabulary):
    """A model of 104 rows for 96 pieces, whose head prefers the rows that are no piece."""
    weights = random_weights(**SIZES | {"vocab_size": 104})
    weights.params["mlm_head/output_bias"][96:] = 50
    weights.tokenizer = Tokenizer(vocabulary)
    return weights


@pytest.mark.parametrize("kind", ["albert", "huggingface"])
def test_rows_that_are_no_piece_are_never_predicted(padded, kind, tmp_path):
    formats.write(padded, tmp_path / "m", kind)
    words = "has 96 pieces and the model in .* 104 rows for them: the last 8 are no piece"
    with pytest.warns(UserWarning, match=words):
        model = albert.load(tmp_path / "m")
    assert "never predicted" in model.vocabulary_note
    logits = model([[2, 20, 3]], output_mlm_logits=True).mlm_logits
    assert logits.shape == (1, 3, 104)
    assert np.isneginf(logits[..., 96:]).all()
    assert np.isfinite(logits[..., :96]).all()
    (guesses,) = model.fill_mask("a [MASK]", top=1000)
    assert sorted(g.id for g in guesses) == list(range(96))
    np.testing.assert_allclose(sum(g.probability for g in guesses), 1, rtol=1e-5)
    model.save(tmp_path / "again", format=kind)
    assert_same(formats.read(tmp_path / "again"), padded)


def test_parameters_by_which_only_pieces_are_predicted(padded):
    before = padded.params["mlm_head/output_bias"].copy()
    weights = dataclasses.replace(padded, params=predicting_pieces(padded), tokenizer=None)
    logits = Pretrained(weights)([[2, 20, 3]], output_mlm_logits=True).mlm_logits
    expected = Pretrained(padded)([[2, 20, 3]], output_mlm_logits=True).mlm_logits
    np.testing.assert_array_equal(jax.nn.softmax(logits), jax.nn.softmax(expected))
    np.testing.assert_array_equal(padded.params["mlm_head/output_bias"], before)


@pytest.mark.parametrize(
    ("pieces", "rows", "may_be"),
    [
        (600, 608, True),
        (30000, 30080, True),
        (30000, 32768, True),
        (30000, 30000, True),
        (600, 599, False),
        (96, 224, False),
        (96, 211, False),
        (30000, 128100, False),
    ],
)
def test_round_numbers_of_rows(pieces, rows, may_be):
    assert is_padding(pieces, rows) is may_be


def test_far_more_rows_than_pieces_are_another_model(padded, tmp_path):
    weights = random_weights(**SIZES | {"vocab_size": 300})
    weights.tokenizer = padded.tokenizer
    formats.write(weights, tmp_path / "m", "huggingface")
    with pytest.raises(CheckpointError, match=r"96 pieces and the model in .* 300: it belongs to"):
        albert.load(tmp_path / "m")


def test_sentence_vectors_do_not_depend_on_their_company(model):
    texts = ["the river", "a small bright garden under the bridge", "wheel", "the ancient village"]
    for pooling in ("mean", "cls", "pooled"):
        together = model.encode(texts, pooling=pooling, batch_size=3)
        assert together.shape == (4, 16)
        assert together.dtype == np.float32
        for text, vector in zip(texts, together, strict=True):
            output = model(**model.tokenize(text))
            expected = {
                "mean": output.last_hidden_state[0].mean(0),
                "cls": output.last_hidden_state[0, 0],
                "pooled": output.pooled_output[0],
            }[pooling]
            np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert model.encode([]).shape == (0, 16)
    with pytest.warns(UserWarning, match="1 of 2 texts are cut to the model's 40 positions"):
        model.encode(["river " * 60, "a"])
    with pytest.raises(ValueError, match="one of mean, pooled, cls"):
        model.encode(["a"], pooling="max")
    with pytest.raises(ValueError, match="takes a list"):
        model.encode("a river")


def test_missing_heads_give_none_and_are_told(vocabulary):
    weights = random_weights(lacking=["pooler", "mlm_head", "sop_head"], **SIZES)
    weights.tokenizer = Tokenizer(vocabulary)
    whole = Pretrained(random_weights(**SIZES))
    model = Pretrained(weights)
    assert model.missing == ["pooler", "mlm_head", "sop_head"]
    output = model([[2, 20, 3]], output_mlm_logits=True)
    assert output.pooled_output is output.mlm_logits is output.sop_logits is None
    assert model.params.keys() == {"embeddings", "encoder"}
    whole.params = {**whole.params, **model.params}
    np.testing.assert_array_equal(output.last_hidden_state, whole([[2, 20, 3]]).last_hidden_state)
    with pytest.raises(ValueError, match="no MLM head"):
        model.fill_mask("a [MASK]")
    with pytest.raises(ValueError, match="no pooler"):
        model.encode(["a"], pooling="pooled")


def test_a_model_without_a_vocabulary_says_so(vocabulary, tmp_path):
    Pretrained(random_weights(**SIZES)).save(tmp_path / "model")
    model = albert.load(tmp_path / "model")
    assert model.tokenizer is None
    with pytest.raises(ValueError, match="no vocabulary beside the checkpoint; load it with"):
        model.fill_mask("a [MASK]")
    assert albert.load(tmp_path / "model", tokenizer=vocabulary).fill_mask("a [MASK]")


@pytest.mark.parametrize("kind", ["albert", "huggingface"])
def test_save_and_load_again(model, kind, tmp_path):
    model.save(tmp_path / "saved", format=kind)
    again = albert.load(tmp_path / "saved")
    assert again.config == model.config
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    for ours, theirs in zip(
        jax.tree.leaves(again.params), jax.tree.leaves(model.params), strict=True
    ):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    with pytest.raises(CheckpointError, match="is there already"):
        model.save(tmp_path / "saved", format=kind)
    assert os.listdir(tmp_path) == ["saved"]


def test_a_vocabulary_that_is_named_must_be_there(model, tmp_path):
    for kind in ("albert", "huggingface"):
        model.save(tmp_path / kind, format=kind)
        with pytest.raises(CheckpointError, match=r"There is no vocabulary file .*typo\.model"):
            albert.load(tmp_path / kind, tokenizer=tmp_path / "typo.model")


def test_a_named_vocabulary_keeps_the_models_options(vocabulary, tmp_path):
    weights = random_weights(**SIZES)
    weights.tokenizer = Tokenizer(vocabulary, lower_case=False)
    for kind in ("albert", "huggingface"):
        formats.write(weights, tmp_path / kind, kind)
        assert not albert.load(tmp_path / kind, tokenizer=vocabulary).tokenizer.lower_case


def test_paths_may_be_written_in_many_ways(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model.save("~/saved")
    (tmp_path / "link").symlink_to(tmp_path / "saved" / "checkpoints" / "0")
    monkeypatch.chdir(tmp_path / "saved" / "checkpoints")
    for path in ("~/saved", "..", "0", "0/.", tmp_path / "link", f"{tmp_path}/saved/"):
        assert albert.load(path).config == model.config
    model.save("~/hf", format="huggingface")
    with pytest.raises(CheckpointError, match=r"config\.json is a file; name the folder"):
        albert.load("~/hf/config.json")


def test_parameters_that_are_not_the_models_are_not_saved(model, tmp_path):
    broken = Pretrained(random_weights(**SIZES))
    broken.params["embeddings"].pop("word_embeddings")
    with pytest.raises(ValueError, match="embeddings/word_embeddings has shape None"):
        broken.save(tmp_path / "x")
    broken = Pretrained(random_weights(**SIZES))
    broken.params["sop_head"].pop("bias")
    with pytest.raises(ValueError, match="sop_head/bias has shape None"):
        broken.save(tmp_path / "x")
    with pytest.raises(ValueError, match="format is 'onnx'; it must be one of albert"):
        model.save(tmp_path / "x", format="onnx")
    assert not os.listdir(tmp_path)


def test_nothing_half_written_is_left(model, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    for kind in ("albert", "huggingface"):
        with pytest.raises(OSError, match="No space left"):
            model.save(tmp_path / "saved", format=kind)
    assert not os.listdir(tmp_path)


def test_moments_and_step_survive_a_workdir(tmp_path):
    weights = random_weights(moments=True)
    formats.write(weights, tmp_path / "w", "albert")
    again = formats.read(tmp_path / "w", with_moments=True)
    assert_same(again, weights)
    assert again.step == 7
    for ours, theirs in ((again.mu, weights.mu), (again.nu, weights.nu)):
        assert ours.keys() == theirs.keys()
        assert all(ours[k].tobytes() == theirs[k].tobytes() for k in ours)
    without = formats.read(tmp_path / "w" / "checkpoints" / "7")
    assert without.mu is None
    assert "optimizer slots are there and were not read" in without.notes


# Those that have a first and a second moment of every number, and some that have not.
@pytest.mark.parametrize(
    ("name", "has_moments"),
    [
        ("lamb", True),
        pytest.param("optax.lamb", True, marks=pytest.mark.slow),
        # The second is one number for a tensor.
        pytest.param("optax.novograd", False, marks=pytest.mark.slow),
        ("optax.sgd", False),
    ],
)
def test_moments_are_found_whatever_the_optimizer(name, has_moments, tmp_path):
    """Two sets of weights, so that optimizers may hold their tensors one by one."""
    weights = random_weights(moments=True, sharing="groups:2")
    params = jax.tree.map(jnp.asarray, weights.tree)
    optimizer, _ = make_optimizer(dataclasses.replace(LAMB, name=name, clip_norm=1.0), 10)
    grads = jax.tree.map(lambda p: p + 1, params)

    @jax.jit
    def after_a_step(params, grads):
        return optimizer.update(grads, optimizer.init(params), params)[1]

    opt_state = after_a_step(params, grads)
    training = {"step": np.int32(1), "bad_steps": np.int32(0), "opt_state": opt_state}
    info = {
        "config": {
            "model": dataclasses.asdict(weights.config),
            "data": {"lower_case": True, "strip_accents": True},
        },
        "step": 1,
    }
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", create=True)) as checkpoints:
        checkpoints.save(1, params, training, info, None)
        checkpoints.wait()
    found = formats.read(tmp_path, with_moments=True)
    assert_same(found, weights)
    if not has_moments:
        assert found.mu is found.nu is None
        assert "the run's optimizer has no two moments of every parameter: left out" in found.notes
        return
    assert found.notes == []
    flat = flatten_dict(grads, sep="/")
    norm = np.sqrt(sum(float((g**2).sum()) for g in flat.values()))
    clipped = unstacked(weights.config, {k: np.asarray(g) / max(norm, 1) for k, g in flat.items()})
    for path, value in clipped.items():
        np.testing.assert_allclose(found.mu[path], 0.1 * value, rtol=1e-4, err_msg=path)
        np.testing.assert_allclose(found.nu[path], 0.001 * value**2, rtol=1e-3, err_msg=path)
    formats.write(found, tmp_path / "again", "albert")
    assert formats.read(tmp_path / "again", with_moments=True).mu.keys() == found.params.keys()


def test_bad_paths_are_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no .*nothing, nor a .*nothing\.index"):
        albert.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"is not a model: .* It holds nothing"):
        albert.load(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"is not a model: .* It holds notes\.txt"):
        albert.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no finished checkpoint yet"):
        albert.load(tmp_path)


def rewrite_info(metadata, info):
    """As a version with other descriptions would have written it, with a manifest that fits."""
    metadata.write_text(json.dumps(info))
    folder = metadata.parent.parent
    manifest.write(folder, json.loads((folder / manifest.NAME).read_text())["leaves"])


def test_a_description_that_cannot_be_read(tmp_path, model):
    model.save(tmp_path / "m")
    metadata = tmp_path / "m" / "checkpoints" / "0" / "info" / "metadata"
    info = json.loads(metadata.read_text())
    info["config"]["model"]["hidden_act"] = "swish"
    rewrite_info(metadata, info)
    with pytest.raises(CheckpointError, match="hidden_act is 'swish'"):
        albert.load(tmp_path / "m")
    del info["config"]["model"]
    rewrite_info(metadata, info)
    with pytest.raises(CheckpointError, match="is not one this version can read"):
        albert.load(tmp_path / "m")


def test_a_damaged_checkpoint_is_told(tmp_path, model):
    model.save(tmp_path / "m")
    for path in (tmp_path / "m" / "checkpoints" / "0" / "params").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"checkpoints/0 is not sound: params/d/\w+ has "):
        albert.load(tmp_path / "m")


def test_a_checkpoint_written_on_eight_devices_loads_on_one(tmp_path):
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("x",))
    weights = random_weights()
    sharded = {
        path: jax.device_put(value, NamedSharding(mesh, PartitionSpec("x")))
        if len(value) % 8 == 0
        else jax.device_put(value, NamedSharding(mesh, PartitionSpec()))
        for path, value in weights.params.items()
    }
    formats.write(dataclasses.replace(weights, params=sharded), tmp_path / "w", "albert")
    code = (
        "import jax, numpy, albert, sys\n"
        "assert jax.device_count() == 1\n"
        f"model = albert.load({str(tmp_path / 'w')!r})\n"
        "print(float(model([[2, 5, 3]], output_mlm_logits=True).mlm_logits[0, 1, 7]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=one_device(),
        check=True,
        capture_output=True,
        text=True,
    )
    ours = Pretrained(weights)([[2, 5, 3]], output_mlm_logits=True).mlm_logits[0, 1, 7]
    np.testing.assert_allclose(float(done.stdout.split()[-1]), ours, rtol=1e-5)


def test_convert_prints_what_went_where(tmp_path, vocabulary):
    weights = random_weights(lacking=["sop_head"], moments=True, **SIZES)
    weights.tokenizer = Tokenizer(vocabulary)
    formats.write(weights, tmp_path / "in", "albert")

    def convert(*arguments):
        return subprocess.run(
            [sys.executable, "tools/convert.py", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    done = convert(
        f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--format=huggingface"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith(("embeddings/", "encoder/"))]) == 23
    assert "pooler/kernel" in done.stdout
    assert "albert.pooler.weight" in done.stdout
    assert "Missing: sop_head." in lines
    assert "Left over: nothing." in lines
    assert "Step 7, without the optimizer's moments." in lines
    assert_same(formats.read(tmp_path / "out"), weights)
    done = convert(f"--input={tmp_path}", f"--output={tmp_path / 'x'}", "--format=albert")
    assert done.returncode == 2
    assert "is not a model" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_without_tensorflow_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    from importlib import import_module

    def absent(name):
        if name == "tensorflow":
            raise ImportError("No module named 'tensorflow'")
        return import_module(name)

    monkeypatch.setattr(original.importlib, "import_module", absent)
    weights = random_weights()
    with pytest.raises(CheckpointError, match=r"pip install -r requirements-original\.txt"):
        formats.write(weights, tmp_path / "out", "original")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "changes", [{}, {"sharing": "none", "inner_group_num": 2}, {"embedding_size": 16}]
)
def test_released_names_are_one_to_one_and_undo_themselves(changes):
    weights = random_weights(**changes)
    found = entries(weights.config, original.name_of)
    assert {e.path for e in found} == parameter_shapes(weights.config).keys()
    assert len({e.name for e in found}) == len(found)
    for entry in found:
        stored = entry.write(weights.params[entry.path])
        assert stored.shape == entry.shape
        np.testing.assert_array_equal(entry.read(stored), weights.params[entry.path])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embedding_size": 16, "map_equal_embeddings": True}, "no mapping of the embeddings"),
        ({"hidden_act": "gelu_erf"}, "has no activation gelu_erf; it has gelu, relu"),
    ],
)
def test_what_the_released_program_cannot_run_is_refused(changes, words, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        formats.write(random_weights(**changes), tmp_path / "x", "original")
    assert not os.listdir(tmp_path)
