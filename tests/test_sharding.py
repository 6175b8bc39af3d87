"""The same numbers on one device and on eight, however they are arranged."""

import contextlib
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from albert.models.layers import row_keys
from albert.train.optimizers import make_optimizer
from albert.train.sharding import (
    ShardingConfig,
    batch_sharding,
    local_rows,
    make_mesh,
    placed,
    put_batch,
    slices_of,
    tree_shardings,
)
from albert.train.step import make_gradient, new_state, shard_training
from steps import configured, losses, pretraining_of, random_batch
from tools.compilers.hlo import Module, exchanges


@pytest.mark.parametrize(
    ("accumulation", "meshes"),
    [
        (1, [{"data": 2, "fsdp": 2, "tensor": 2}]),
        pytest.param(1, [{"data": 4, "tensor": 2}, {"data": 1, "fsdp": 8}], marks=pytest.mark.slow),
        pytest.param(2, [{"data": 4, "tensor": 2}], marks=pytest.mark.slow),
    ],
)
def test_losses_do_not_depend_on_the_mesh(tiny, accumulation, meshes):
    alone, _, text = losses(configured(tiny, accumulation), devices=1)
    assert "all-reduce" not in text
    assert alone[-1] < alone[0]
    for mesh in meshes:
        spread, state, text = losses(configured(tiny, accumulation, **mesh))
        np.testing.assert_allclose(spread, alone, rtol=1e-5, err_msg=str(mesh))
        assert "all-reduce" in text
        kernel = state.params["encoder"]["layers"]["intermediate"]["kernel"]
        cut = mesh.get("tensor", 1) * mesh.get("fsdp", 1)
        assert kernel.addressable_shards[0].data.size * cut == kernel.size


def test_every_slot_of_the_optimizer_lies_with_its_parameter(tiny):
    config = configured(tiny, fsdp=4, data=1, tensor=2)
    optimizer, _ = make_optimizer(config.optimizer, 10)
    task = pretraining_of(config.model)
    boxed = jax.eval_shape(lambda: new_state(partial(task.init, task.model), optimizer, 0))
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


def test_accumulated_gradients_are_summed_over_devices_once(tiny):
    """However many parts: no loop sends anything, and what is sent does not grow."""
    sent = {}
    for parts in (2, 4):
        config = configured(tiny, parts)
        mesh = make_mesh(config.sharding)
        optimizer, schedule = make_optimizer(config.optimizer, 10)
        task = pretraining_of(config.model)
        state, _, step = shard_training(task, optimizer, schedule, parts, 0, mesh, config.sharding)
        with jax.set_mesh(mesh), nn.logical_axis_rules(config.sharding.rules):
            batch = random_batch(rows=64, length=32, predictions=6, vocab=96)
            text = step.lower(state, batch).compile().as_text()
        sums = [one for one in exchanges(Module(text)) if one.kind == "all-reduce"]
        assert {one.times for one in sums} == {1}
        sent[parts] = sum(one.size for one in sums)
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sent[2] == sent[4] < 4 * weights * 1.1


def gradient_and_exchanges(config, batch, mesh):
    """Loss and gradient with parameters and rows where the config says, and what is sent for it."""
    task = pretraining_of(config.model)
    boxed = task.init(task.model, jax.random.key(0))
    keys = row_keys(jax.random.key(1), len(batch["input_ids"]))
    function = make_gradient(task, config.train.accumulation, mesh)
    rules = config.sharding.rules if mesh else ()
    params = nn.meta.unbox(boxed)
    if mesh:
        params = jax.device_put(params, tree_shardings(boxed, mesh, config.sharding))
        batch = put_batch(batch, batch_sharding(mesh, config.sharding))
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext(), nn.logical_axis_rules(rules):
        lowered = jax.jit(function).lower(params, batch, keys, task.denominators(batch))
        compiled = lowered.compile()
        (loss, _), grads = compiled(params, batch, keys, task.denominators(batch))
    return loss, grads, exchanges(Module(compiled.as_text())), params


@pytest.mark.parametrize(
    ("parts", "sharing", "mesh"),
    [
        (1, "all", {"data": 2, "fsdp": 4}),
        pytest.param(2, "all", {"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
        pytest.param(1, "none", {"data": 1, "fsdp": 8}, marks=pytest.mark.slow),
        pytest.param(1, "all", {"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
    ],
)
def test_fsdp_gathers_weights_once_for_every_use(tiny, parts, sharing, mesh):
    """What all depths share before the loop over them; what a depth has for itself when it is its
    turn, forward and backward. The gradient is that of one device."""
    tiny.model.sharing = sharing
    tiny.model.dtype = "float32"
    config = configured(tiny, parts, **mesh)
    batch = random_batch(rows=16, length=32, predictions=6, vocab=96)
    alone, exact, nothing, _ = gradient_and_exchanges(config, batch, None)
    loss, grads, sent, params = gradient_and_exchanges(config, batch, make_mesh(config.sharding))
    assert nothing == []
    np.testing.assert_allclose(loss, alone, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(grads), strict=True):
        assert float(jnp.linalg.norm(a - b)) <= 1e-5 * float(jnp.linalg.norm(a)) + 1e-7

    def gathered_size(leaf):
        """Bytes of a weight in use, on each device."""
        spec = str(leaf.sharding.spec)
        return leaf.nbytes // (mesh.get("tensor", 1) if "tensor" in spec else 1) * ("fsdp" in spec)

    sizes = {k: gathered_size(leaf) for k, leaf in flatten_dict(params, sep="/").items()}
    of_layers = {k: v for k, v in sizes.items() if "/layers/" in k and sharing == "none"}
    gathered = [one for one in sent if one.kind == "all-gather"]
    before = sum(one.size for one in gathered if one.times == 1)
    assert before == sum(sizes.values()) - sum(of_layers.values())
    in_loop = sum(one.times * one.size for one in gathered if one.times != 1)
    kernels = sum(v for k, v in of_layers.items() if k.endswith("kernel"))
    # A bias is not needed again by the backward pass.
    assert sum(of_layers.values()) + kernels <= in_loop <= 2 * sum(of_layers.values())
    if parts > 1:
        sums = [one for one in sent if one.kind == "all-reduce"]
        assert {one.times for one in sums} == {1}
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        assert weights <= sum(one.size for one in sums) <= weights + 100  # and the loss's


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_gradients_may_cross_devices_in_bfloat16(tiny, parts):
    """As close as rounding eight numbers and seven sums to eight bits allows; the loss is exact."""
    config = configured(tiny, parts)
    mesh = make_mesh(config.sharding)
    task = pretraining_of(config.model)
    params = nn.meta.unbox(task.init(task.model, jax.random.key(0)))
    batch = random_batch(rows=16, length=32, predictions=6, vocab=96)
    keys = row_keys(jax.random.key(1), 16)

    def gradient(dtype):
        function = make_gradient(task, parts, mesh, dtype)
        with jax.set_mesh(mesh), nn.logical_axis_rules(config.sharding.rules):
            rows = put_batch(batch, batch_sharding(mesh, config.sharding))
            run = jax.jit(lambda rows: function(params, rows, keys, task.denominators(rows)))
            lowered = run.lower(rows)
            return run(rows), lowered.as_text()

    ((loss, _), exact), _ = gradient("float32")
    ((other, _), rounded), text = gradient("bfloat16")
    assert "bf16" in text
    np.testing.assert_allclose(loss, other, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert a.dtype == b.dtype
        distance = float(jnp.linalg.norm(a - b))
        assert distance <= 8 * 2**-8 * float(jnp.linalg.norm(a)) + 1e-7
    pairs = zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True)
    assert any(bool((a != b).any()) for a, b in pairs)


def across_slices(text, slices, devices=8):
    """The collectives of a program in which devices of different slices take part, and the
    others. A device of the program is one of the mesh, in order."""
    in_slice = devices // slices
    across, within = [], []
    for one in exchanges(Module(text)):
        groups = one.groups or [range(devices)]
        crosses = any(len({device // in_slice for device in group}) > 1 for group in groups)
        (across if crosses else within).append(one)
    return across, within


@pytest.mark.parametrize(
    ("parts", "mesh"),
    [
        (1, {"data": 1, "fsdp": 2, "tensor": 2}),
        pytest.param(2, {"data": 2, "fsdp": 2}, marks=pytest.mark.slow),
        pytest.param(1, {"data": 4}, marks=pytest.mark.slow),
    ],
)
def test_between_slices_goes_the_gradient_once_a_step(tiny, parts, mesh):
    """Weights are gathered and activations summed within a slice; losses are those of one device,
    and what crosses is one sum of the gradient, with the figures of a step."""
    alone, _, _ = losses(configured(tiny, parts), devices=1, steps=4)
    spread, state, text = losses(configured(tiny, parts, slices=2, **mesh), steps=4)
    np.testing.assert_allclose(spread, alone, rtol=1e-5)
    across, within = across_slices(text, 2)
    assert {one.kind for one in across} == {"all-reduce"}
    assert {one.times for one in across} == {1}
    size = sum(one.size for one in across)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
    # Without parts each device sends what it holds of the gradient, with parts all of it.
    assert own <= size <= (own if parts == 1 else weights) + 300  # and figures
    if "fsdp" in mesh:
        assert "all-gather" in {one.kind for one in within}


class Chip(NamedTuple):
    """What a TPU says of itself."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "tpu"


def test_tpus_are_grouped_by_the_slices_that_they_say():
    chips = [Chip(id, slice_index=id // 2 % 2, process_index=id // 2) for id in range(8)]
    found = slices_of(chips, 2)
    assert [[chip.id for chip in of_slice] for of_slice in found] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    with pytest.raises(ValueError, match="slices is 4, and the devices are in 2: set --config"):
        slices_of(chips, 4)


def test_other_devices_are_grouped_by_their_processes():
    devices = [Chip(id, 0, process_index=id % 4, platform="cpu") for id in range(8)]
    found = slices_of(devices, 2)
    assert [[one.process_index for one in of] for of in found] == [[0, 0, 1, 1], [2, 2, 3, 3]]
    with pytest.raises(ValueError, match="slices is 8: 4 processes with 8 devices are not so"):
        slices_of(devices, 8)
    # A process that is alone may stand for several, to try it.
    assert len(slices_of(jax.devices(), 4)) == 4
    mesh = make_mesh(ShardingConfig(2, -1, 2, 1, ()))
    assert dict(mesh.shape) == {"slices": 2, "data": 2, "fsdp": 2, "tensor": 1}
    assert [device.id for device in mesh.devices.flat] == list(range(8))
