import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from albert.models.encoder import Albert
from albert.train.cost import abstract_params
from albert.train.optimizers import decayed, linear_schedule, make_optimizer
from models import LAMB, TINY
from reference import reference_lamb


def test_schedule_is_the_released_one():
    rate = linear_schedule(0.00176, 3125, 125_000)
    for step in (0, 1, 100, 3124):
        np.testing.assert_allclose(rate(step), 0.00176 * step / 3125, rtol=1e-5)
    # No jump up: the decay is counted from step 0.
    for step in (3125, 60_000, 124_999, 125_000, 130_000):
        expected = 0.00176 * (1 - min(step, 125_000) / 125_000)
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5, atol=1e-9)


def test_decay_and_ratio_leave_layer_norms_and_biases_alone():
    mask = decayed(abstract_params(Albert(TINY)))
    paths = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(mask)}
    excluded = [path for path, value in paths.items() if not value]
    assert all("layer_norm" in path or "bias" in path for path in excluded)
    assert len(excluded) == sum("layer_norm" in p or "bias" in p for p in paths)
    assert any("word_embeddings" in path and value for path, value in paths.items())


def test_lamb_equals_a_float64_reference():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3), "zero": np.zeros(2)}
    grads = [{k: rng.normal(size=v.shape) for k, v in params.items()} for _ in range(5)]
    optimizer, _ = make_optimizer(LAMB, 10)
    rate = linear_schedule(0.1, 2, 10)
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = optimizer.init(ours)
    for g in grads:
        updates, state = optimizer.update(
            jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g), state, ours
        )
        ours = optax.apply_updates(ours, updates)
    for name, start in params.items():
        expected = reference_lamb(
            start, [g[name] for g in grads], lambda k: float(rate(k)), plain=name == "bias"
        )
        np.testing.assert_allclose(ours[name], expected, rtol=2e-5, atol=1e-6)


def test_gradients_are_clipped_to_the_global_norm():
    config = dataclasses.replace(LAMB, name="optax.sgd", clip_norm=1.0, warmup_steps=0)
    optimizer, schedule = make_optimizer(config, 10)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    updates, _ = optimizer.update(
        {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}, optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["a"][0], -float(schedule(0)) * 0.6, rtol=1e-6)
    np.testing.assert_allclose(updates["b"][0], -float(schedule(0)) * 0.8, rtol=1e-6)


@pytest.mark.parametrize("name", ["optax.adamw", "optax.lamb", "optax.adafactor", "optax.lion"])
def test_stock_optimisers_take_a_step(name):
    config = dataclasses.replace(LAMB, name=name)
    assert not config.problems()
    optimizer, _ = make_optimizer(config, 10)
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert all(np.isfinite(u).all() and (u != 0).all() for u in jax.tree.leaves(updates))


def test_stock_adamw_decays_only_what_the_released_one_does():
    config = dataclasses.replace(LAMB, name="optax.adamw", warmup_steps=0, weight_decay=0.5)
    optimizer, schedule = make_optimizer(config, 10)
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * float(schedule(0)), rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


@pytest.mark.parametrize("name", ["adam", "optax.nothing", "optax.chain", "optax.adamw.x"])
def test_unknown_optimisers_are_named(name):
    assert "lamb or adamw" in dataclasses.replace(LAMB, name=name).problems()[0]
