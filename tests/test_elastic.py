"""Elastic depth: rows that take as many layers in training as are drawn for them, and models that
end behind some of their layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import albert
from albert.checkpoints import CheckpointError
from albert.interop import formats
from albert.interop.reshare import first_layers
from albert.interop.weights import stacked
from albert.models.encoder import Albert, drawn_depths
from albert.models.layers import row_keys
from albert.runtime.fields import ConfigError
from albert.train.config import check
from configs import laptop
from configs.finetune import texts as texts_config
from models import TINY, random_rows, random_weights
from steps import PLAIN, pretraining_of, random_batch
from steps import make as make_step

SHARINGS = ("all", "none", "ffn", "cycle:2")
ELASTIC = dataclasses.replace(PLAIN, num_hidden_layers=4, least_depth=2)


def outputs(weights, rows, **more):
    model = Albert(weights.config, ("mlm", "sop"))
    params = unflatten_dict(stacked(weights.config, weights.params), sep="/")
    return model.apply({"params": params}, *rows, **more)


def test_depths_are_drawn_evenly_for_each_row():
    keys = row_keys(jax.random.key(0), 3000)
    found = np.asarray(drawn_depths(keys, ELASTIC))
    counts = np.bincount(found, minlength=5)
    assert counts[:2].sum() == 0
    assert (np.abs(counts[2:] - 1000) < 120).all()
    # What a row draws does not depend on the rows beside it.
    np.testing.assert_array_equal(drawn_depths(keys[7:9], ELASTIC), found[7:9])


@pytest.mark.parametrize(
    "changes", [{}, {"scan_unroll": 4}, {"remat": "full"}, {"sharing": "none"}], ids=str
)
def test_a_row_leaves_behind_the_layers_that_it_drew(changes):
    weights = random_weights(**dataclasses.asdict(dataclasses.replace(ELASTIC, **changes)))
    rows, keys = random_rows(8), row_keys(jax.random.key(3), 8)
    whole = outputs(weights, rows, output_hidden_states=True).hidden_states
    depths = np.asarray(drawn_depths(jax.vmap(jax.random.fold_in, (0, None))(keys, 3), ELASTIC))
    assert len(set(depths)) == 3
    found = outputs(weights, rows, dropout_keys=keys).last_hidden_state
    for row, depth in enumerate(depths):
        np.testing.assert_allclose(found[row], whole[depth, row], atol=1e-6)
    # Without keys, as in evaluation, every row takes all layers.
    np.testing.assert_array_equal(outputs(weights, rows).last_hidden_state, whole[-1])


@pytest.mark.slow
def test_the_gradient_is_that_of_models_that_end_there():
    """Of rows with one depth it is the gradient of the model of that depth."""
    task, batch = pretraining_of(ELASTIC), random_batch(rows=12)
    state, _ = make_step(ELASTIC)[:2]
    keys = row_keys(jax.random.key(1), 12)
    depths = np.asarray(drawn_depths(jax.vmap(jax.random.fold_in, (0, None))(keys, 3), ELASTIC))

    def gradient(task, batch, keys):
        return jax.jit(jax.grad(lambda p: loss_of(task, p, batch, keys)))(state.params)

    def loss_of(task, params, rows, keys):
        """With the whole batch's denominators, so that parts add up."""
        return task.loss(task.sums(params, rows, keys), task.denominators(batch))

    total = None
    for depth in (2, 3, 4):
        rows = {name: value[depths == depth] for name, value in batch.items()}
        of = pretraining_of(dataclasses.replace(ELASTIC, num_hidden_layers=depth, least_depth=0))
        part = gradient(of, rows, None)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(task, batch, keys),
        total,
    )


@pytest.mark.parametrize(
    "sharing", ["all", *(pytest.param(s, marks=pytest.mark.slow) for s in SHARINGS[1:])]
)
def test_a_model_that_ends_early_gives_what_that_layer_gave(sharing, tmp_path):
    weights = random_weights(num_hidden_layers=4, sharing=sharing, least_depth=2)
    rows = random_rows(3)
    whole = outputs(weights, rows, output_hidden_states=True).hidden_states
    formats.write(weights, tmp_path / "model", "albert")
    for depth in (2, 3, 4):
        cut = first_layers(weights, depth)
        np.testing.assert_allclose(outputs(cut, rows).last_hidden_state, whole[depth], atol=1e-6)
    loaded = albert.load(tmp_path / "model", depth=3)
    assert (loaded.config.depth, loaded.config.least_depth) == (3, 0)
    for depth in (0, 5):
        with pytest.raises(CheckpointError, match="can end behind 1 to 4 layers"):
            first_layers(weights, depth)


def test_a_sharing_that_depends_on_the_depth_cannot_be_cut():
    for sharing in ("groups:2", "sandwich"):
        weights = random_weights(num_hidden_layers=6, sharing=sharing)
        with pytest.raises(CheckpointError, match="the first 3 are no model of that strategy"):
            first_layers(weights, 3)


def test_what_makes_no_sense_is_refused():
    (problem,) = dataclasses.replace(ELASTIC, least_depth=5).problems()
    assert "least_depth is 5; it must be from 1 to 4" in problem
    assert ELASTIC.problems() == []
    assert TINY.least_depth == 0
    config = texts_config.get_config("tiny")
    config.init_model, config.data.exits, config.model.least_depth = False, "together", 1
    with pytest.raises(ConfigError, match="classifiers on every depth train every depth"):
        check(config, needs_text=False)
    small = laptop.get_config()
    small.model.least_depth = small.model.num_hidden_layers
    assert check(small, needs_text=False).model.least_depth
