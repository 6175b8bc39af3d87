"""Packed rows give every example what it gets alone, in every output and gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert.models.encoder import Albert
from albert.tasks.pretraining import apply_model, evaluation_sums
from models import random_weights
from rows import OPTIONS, make_examples
from steps import loss_and_metrics, pretraining_of


def random_model(seed, **changes):
    """A model for the small vocabulary, and its parameters."""
    weights = random_weights(seed, vocab_size=96, max_position_embeddings=32, **changes)
    return Albert(weights.config), weights.tree


@pytest.fixture(scope="module")
def batches(corpus, tokenizer):
    """The same examples, one to a row and packed."""
    made = []
    for packing in (0, 4):
        options = dataclasses.replace(OPTIONS, packing=packing)
        examples = make_examples(corpus, tokenizer, options)
        made.append(examples.batch(range(examples.rows_per_epoch)))
    keys = [example_keys(batch) for batch in made]
    chosen = set(keys[1][:12] + keys[1][-12:])
    packed_rows = [
        row
        for row in range(len(made[1]["input_ids"]))
        if any(row == r for r, key in zip(owners(made[1]), keys[1], strict=True) if key in chosen)
    ]
    packed = {name: values[packed_rows] for name, values in made[1].items()}
    wanted = example_keys(packed)
    plain_rows = [keys[0].index(key) for key in wanted]
    return {name: values[plain_rows] for name, values in made[0].items()}, packed


def spans(batch):
    """Row, number in the row, first position and length of every example."""
    for row, mask in enumerate(batch["attention_mask"]):
        segments = batch["segment_ids"][row] if "segment_ids" in batch else mask
        for number in range(1, segments.max() + 1):
            where = np.flatnonzero(segments == number)
            yield row, number - 1, int(where[0]), len(where)


def owners(batch):
    return [row for row, *_ in spans(batch)]


def example_keys(batch):
    return [
        tuple(batch["input_ids"][row, first : first + length].tolist())
        for row, _, first, length in spans(batch)
    ]


PATHS = {
    "plain": {},
    "dots": {"remat": "dots"},
    "full": {"remat": "full"},
    "groups": {"sharing": "groups:2", "inner_group_num": 2},
    "rotary": {"positions": "rotary"},
}


@pytest.mark.parametrize(
    "path",
    [p if p in ("plain", "rotary") else pytest.param(p, marks=pytest.mark.slow) for p in PATHS],
)
def test_packed_equals_unpacked(batches, path):
    plain, packed = batches
    assert len(packed["input_ids"]) < len(plain["input_ids"])
    model, params = random_model(0, **PATHS[path])

    def loss_fn(params, rows):
        output = apply_model(model, params, rows, output_hidden_states=True)
        loss, metrics = loss_and_metrics(pretraining_of(model.config), params, rows)
        return loss, (output, metrics)

    run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, (alone, figures)), gradient = run(params, plain)
    (packed_loss, (together, packed_figures)), packed_gradient = run(params, packed)

    close = dict(rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(loss, packed_loss, rtol=1e-6)
    for name in figures.keys() - {"padded_tokens"}:
        np.testing.assert_allclose(figures[name], packed_figures[name], rtol=1e-5, err_msg=name)
    masks = [np.cumsum(batch["mlm_weights"], axis=1) for batch in batches]
    for (row, _, first, length), (at, number, begin, _) in zip(
        spans(plain), spans(packed), strict=True
    ):
        np.testing.assert_allclose(
            alone.hidden_states[:, row, first : first + length],
            together.hidden_states[:, at, begin : begin + length],
            **close,
        )
        np.testing.assert_allclose(
            alone.pooled_output[row], together.pooled_output[at, number], **close
        )
        np.testing.assert_allclose(alone.sop_logits[row], together.sop_logits[at, number], **close)
        count = int(masks[0][row, -1])
        before = int((packed["mlm_weights"][at] * (packed["mlm_positions"][at] < begin)).sum())
        ours, theirs = alone.mlm_logits[row, :count], together.mlm_logits[at, before:][:count]
        np.testing.assert_allclose(ours, theirs, **close)
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    for (path, ours), theirs in zip(leaves, jax.tree.leaves(packed_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6, err_msg=str(path))


def test_held_out_figures_do_not_depend_on_packing(batches):
    model, params = random_model(1)
    step = jax.jit(lambda params, rows: evaluation_sums(apply_model(model, params, rows), rows))
    alone, together = (step(params, batch) for batch in batches)
    for name in alone:
        np.testing.assert_allclose(alone[name], together[name], rtol=1e-4, err_msg=name)


def test_neighbours_in_a_row_are_not_seen(batches):
    """Other words in one example change nothing in the others, to the bit."""
    _, packed = batches
    row = int(np.argmax(packed["segment_ids"].max(axis=1)))
    rows = {name: values[row : row + 1] for name, values in packed.items()}
    changed = rows["input_ids"].copy()
    first = rows["segment_ids"] == 1
    changed[first] = 5 + (changed[first] + 7) % 80
    model, params = random_model(2)
    params = jax.tree.map(jnp.asarray, params)
    run = jax.jit(lambda rows: apply_model(model, params, rows))
    before, after = run(rows), run({**rows, "input_ids": changed})
    others = (rows["segment_ids"] > 1)[0]
    ours, theirs = (np.asarray(out.last_hidden_state[0]) for out in (before, after))
    np.testing.assert_array_equal(ours[others], theirs[others])
    assert (ours[first[0]] != theirs[first[0]]).any()
    count = rows["segment_ids"].max()
    np.testing.assert_array_equal(before.sop_logits[0, 1:count], after.sop_logits[0, 1:count])
