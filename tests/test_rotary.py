"""Rotary positions: what is turned, what follows from it, and which formats refuse it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert.checkpoints import CheckpointError
from albert.interop import formats
from albert.interop.weights import parameter_shapes
from albert.models import rotary
from albert.models.config import model_from_json
from albert.models.encoder import Albert
from albert.runtime.fields import ConfigError
from albert.train.config import check
from albert.train.init_from import read_start
from models import TINY, random_rows, random_weights

ROTARY = dataclasses.replace(TINY, positions="rotary")


@given(st.integers(0, 400), st.integers(1, 6), st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_by_complex_numbers(first, pairs, seed):
    """Pair i is one number x_i + y_i j, multiplied by exp(j position / BASE ** (i / pairs))."""
    x = np.random.default_rng(seed).normal(size=(2, 5, 3, 2 * pairs)).astype(np.float32)
    positions = np.arange(first, first + 5)
    found = rotary.turned(jnp.asarray(x), rotary.turns(jnp.asarray(positions), 2 * pairs))
    angles = positions[:, None] * rotary.BASE ** (-np.arange(pairs) / pairs)
    numbers = (x[..., :pairs] + 1j * x[..., pairs:]) * np.exp(1j * angles)[:, None]
    expected = np.concatenate([numbers.real, numbers.imag], axis=-1)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_products_follow_from_the_distance_alone():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 9, 2, 8)).astype(np.float32)

    def products(first):
        by = rotary.turns(jnp.arange(first, first + 9), 8)
        turned = [rotary.turned(jnp.asarray(x), by) for x in (q, k)]
        return jnp.einsum("BQAD,BKAD->BAQK", *turned)

    np.testing.assert_allclose(products(0), products(100), atol=1e-4)
    assert np.abs(products(0) - jnp.einsum("BQAD,BKAD->BAQK", q, k)).max() > 0.1


def test_a_model_has_no_table_and_knows_the_order_of_its_tokens():
    shapes = parameter_shapes(ROTARY)
    table = {"embeddings/position_embeddings"}
    assert parameter_shapes(TINY).keys() - shapes.keys() == table
    weights = random_weights(positions="rotary")
    ids, mask, types = random_rows(length=12)
    types[:] = 0
    model = Albert(weights.config)

    def states(ids, **more):
        found = model.apply({"params": weights.tree}, ids, mask, types, **more)
        return found.last_hidden_state

    order = np.array([0, 2, 1, *range(3, 12)])
    swapped = states(ids[:, order])[:, order]
    assert np.abs(swapped - states(ids))[1].max() > 1e-3
    # All of them further on: the distances are the same.
    further = jnp.broadcast_to(jnp.arange(50, 62), ids.shape)
    np.testing.assert_allclose(states(ids, position_ids=further)[1:], states(ids)[1:], atol=2e-5)


@pytest.mark.parametrize("sharing", ["all", "none"])
def test_the_program_does_not_grow_with_the_depth(sharing):
    def text(depth):
        config = dataclasses.replace(ROTARY, sharing=sharing, num_hidden_layers=depth)
        model = Albert(config)
        rows = random_rows()
        params = jax.eval_shape(lambda: model.init(jax.random.key(0), *rows)["params"])

        def loss(params):
            return model.apply({"params": params}, *rows).last_hidden_state.sum()

        return jax.jit(jax.grad(loss)).lower(params).as_text()

    assert len(text(12).splitlines()) == len(text(4).splitlines())


@pytest.mark.parametrize("format", ["huggingface", "original"])
def test_released_formats_refuse_it(format, tmp_path):
    if format == "original":
        pytest.importorskip("tensorflow", reason="pip install -r requirements-original.txt")
    with pytest.raises(CheckpointError, match="a table of positions, and this model's are rotary"):
        formats.write(random_weights(positions="rotary"), tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_run_does_not_start_from_a_model_with_other_positions(tiny, tmp_path):
    config = check(tiny)
    sizes = dataclasses.asdict(config.model) | {"positions": "rotary"}
    start = random_weights(**sizes)
    formats.write(start, tmp_path / "start", "albert")
    tiny.init_from = str(tmp_path / "start")
    with pytest.raises(ConfigError, match=r"set --config.model.positions=rotary"):
        read_start(check(tiny))


def test_it_is_kept_in_the_projects_own_format(tmp_path):
    weights = random_weights(positions="rotary")
    formats.write(weights, tmp_path / "out", "albert")
    assert formats.read(tmp_path / "out").config == weights.config


def test_odd_heads_and_unknown_positions_are_told():
    odd = dataclasses.replace(ROTARY, hidden_size=14, num_attention_heads=2)
    (problem,) = odd.problems()
    assert "a head is 7 wide" in problem
    (problem,) = dataclasses.replace(TINY, positions="rotated").problems()
    assert "positions is 'rotated'; it must be one of learned, rotary" in problem


def test_models_of_before_have_a_table():
    values = dataclasses.asdict(TINY)
    del values["positions"]
    assert model_from_json(values) == TINY
