"""The same numbers on one device and on eight, however they are arranged."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from albert.models.encoder import Albert
from albert.train.config import check
from albert.train.optimizers import make_optimizer
from albert.train.sharding import (
    MESH_AXES,
    batch_sharding,
    local_rows,
    make_mesh,
    placed,
    put_batch,
)
from albert.train.step import new_state, on_mesh
from test_train_step import random_batch


def configured(tiny, accumulation=1, **mesh):
    tiny.model.vocab_size = 96
    tiny.train.accumulation = accumulation
    tiny.optimizer.learning_rate = 0.01
    return dataclasses.replace(
        check(tiny), sharding=dataclasses.replace(check(tiny).sharding, **mesh)
    )


def losses(config, devices=8, steps=20):
    """Losses of a run with dropout on, the way the loop sets it up."""
    model = Albert(config.model)
    optimizer, schedule = make_optimizer(config.optimizer, steps)
    if devices == 8:
        mesh = make_mesh(config.sharding)
    else:
        mesh = jax.make_mesh(
            (1, 1, 1),
            MESH_AXES,
            axis_types=(jax.sharding.AxisType.Auto,) * 3,
            devices=jax.devices()[:1],
        )
    _, create, step = on_mesh(
        model, optimizer, schedule, config.train.accumulation, 0, mesh, config.sharding
    )
    state = create()
    rows = batch_sharding(mesh, config.sharding)
    with jax.set_mesh(mesh), nn.logical_axis_rules(config.sharding.rules):
        batches = [
            put_batch(random_batch(rows=16, length=32, predictions=6, vocab=96, seed=n), rows)
            for n in range(steps)
        ]
        compiled = step.lower(state, batches[0]).compile()
        found = []
        for batch in batches:
            state, metrics = compiled(state, batch)
            found.append(float(metrics["loss"]))
    return np.array(found), state, compiled.as_text()


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_losses_do_not_depend_on_the_mesh(tiny, accumulation):
    alone, _, text = losses(configured(tiny, accumulation), devices=1)
    assert "all-reduce" not in text
    assert alone[-1] < alone[0]
    meshes = ({"data": 4, "tensor": 2}, {"data": 1, "fsdp": 8})
    for mesh in meshes if accumulation == 1 else meshes[:1]:
        spread, state, text = losses(configured(tiny, accumulation, **mesh))
        np.testing.assert_allclose(spread, alone, rtol=1e-5, err_msg=str(mesh))
        assert "all-reduce" in text
        kernel = state.params["encoder"]["layers"]["intermediate"]["kernel"]
        expected = {"tensor": (None, "tensor"), "fsdp": ("fsdp", None)}.get(
            next(iter(set(mesh) - {"data"}), ""), (None, None)
        )
        assert (
            kernel.addressable_shards[0].data.size
            * (1 if expected == (None, None) else mesh.get("tensor", mesh.get("fsdp")))
            == kernel.size
        )


def test_every_slot_of_the_optimizer_lies_with_its_parameter(tiny):
    config = configured(tiny, fsdp=4, data=1, tensor=2)
    optimizer, _ = make_optimizer(config.optimizer, 10)
    boxed = jax.eval_shape(lambda: new_state(Albert(config.model), optimizer, 0))
    state = placed(boxed, make_mesh(config.sharding), config.sharding)

    def specs(tree):
        return [leaf.sharding.spec for leaf in jax.tree.leaves(tree)]

    parameters = specs(state.params)
    assert PartitionSpec(None, "fsdp", "tensor", None) in parameters
    slots = [s for s in specs(state.opt_state) if s != PartitionSpec()]
    assert slots == 2 * [s for s in parameters if s != PartitionSpec()]


def test_rows_of_a_process(tiny):
    config = configured(tiny, data=4, tensor=2)
    sharding = batch_sharding(make_mesh(config.sharding), config.sharding)
    assert local_rows(sharding, 16) == tuple(range(16))
    batch = random_batch(rows=16)
    for name, array in put_batch(batch, sharding).items():
        np.testing.assert_array_equal(np.asarray(array), batch[name])
        assert array.addressable_shards[0].data.shape[0] == 4
