import contextlib
import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from albert.checkpoints.store import Checkpoints
from albert.models.encoder import Albert, abstract_params
from albert.train.optimizers import OPTIMIZERS, decayed, make_optimizer, matrices, slot_of
from albert.train.sharding import ShardingConfig, make_mesh, placed
from models import TINY
from optimizers import LAMB, reference_lamb

# Stacks of two lengths and single tensors, in sizes that adafactor factors and eight devices share.
TREE = {
    "embeddings/word_embeddings": ((136, 16), ("vocab", "embed")),
    "embeddings/layer_norm/scale": ((16,), ("embed",)),
    "encoder/embedding_hidden_mapping_in/kernel": ((16, 128), ("embed", "hidden")),
    "encoder/layers/attention/query/kernel": (
        (2, 128, 2, 4),
        ("layers", "hidden", "heads", "head_dim"),
    ),
    "encoder/layers/attention/query/bias": ((2, 2, 4), ("layers", "heads", "head_dim")),
    "encoder/layers/attention/output/kernel": (
        (2, 2, 4, 128),
        ("layers", "heads", "head_dim", "hidden"),
    ),
    "encoder/layers/intermediate/kernel": ((3, 128, 136), ("layers", "hidden", "mlp")),
    "encoder/layers/output_layer_norm/scale": ((3, 128), ("layers", "hidden")),
    "pooler/kernel": ((128, 128), ("hidden", "pooled")),
}
EIGHTHS = ShardingConfig(
    slices=1,
    data=1,
    fsdp=8,
    tensor=1,
    rules=(("hidden", ("fsdp",)), ("embed", ("fsdp",)), ("mlp", ("tensor",))),
)
# What is set where optax has None: no momentum, no decay.
SET = {"momentum": 0.5, "weight_decay": 0.1}
CHANGED = {
    "b1": 0.5,
    "b2": 0.6,
    "eps": 0.3,
    "weight_decay": 0.7,
    "momentum": 0.3,
    "consistent_rms": 0.7,
}


# One of every kind; the others take the same ways, and run with the slow tests.
KINDS = ("lamb", "muon", "optax.adamw", "optax.lamb", "optax.adafactor")
EVERY = [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS]
SMALL = ("word_embeddings", "query/kernel", "query/bias", "intermediate/kernel")


def draw(seed, *steps, wanted=("",)):
    """Normal numbers for every parameter that ends in one of `wanted`, with axes in front."""
    rng = np.random.default_rng(seed)
    flat = {
        path: jnp.asarray(rng.normal(size=(*steps, *shape)), jnp.float32)
        for path, (shape, _) in TREE.items()
        if path.endswith(wanted)
    }
    return unflatten_dict(flat, sep="/")


def boxed(params):
    flat = flatten_dict(params, sep="/")
    return unflatten_dict(
        {path: nn.LogicallyPartitioned(x, TREE[path][1]) for path, x in flat.items()}, sep="/"
    )


def last_tensors(params, axis=0):
    """The last tensor of every stack, below another name than "layers", and what is no stack."""
    return unflatten_dict(
        {
            path.replace("/layers/", "/layer/"): x.take(-1, axis) if "/layers/" in path else x
            for path, x in flatten_dict(params, sep="/").items()
        },
        sep="/",
    )


def chosen(name, **fields):
    return dataclasses.replace(LAMB, name=name, learning_rate=0.01, **fields)


def steps(config, params, grads):
    """The updates of every step, stacked as `grads` are, and the state behind them."""
    optimizer, _ = make_optimizer(config, 10)

    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), updates

    (_, state), updates = jax.lax.scan(step, (params, optimizer.init(params)), grads)
    return updates, state


@pytest.mark.parametrize("name", EVERY)
def test_every_field_that_is_said_to_be_read_changes_the_update(name):
    """And a stack moves as its tensors would by themselves."""
    params, grads = draw(0, wanted=SMALL), draw(1, 7, wanted=SMALL)

    @jax.jit
    def run(fields):
        together, state = steps(chosen(name, **fields), params, grads)
        alone, _ = steps(chosen(name, **fields), last_tensors(params), last_tensors(grads, 1))
        return last_tensors(together, 1), alone, state

    entry = OPTIMIZERS[name]
    usual = {k: SET[k] if value is None else value for k, value in entry.fields.items()}
    together, alone, state = run(usual)
    for path, update in flatten_dict(together, sep="/").items():
        assert np.isfinite(update).all(), path
        assert (np.asarray(update) != 0).mean() > 0.99, path
        # What is no stack is no matrix to muon: tested below.
        if name != "muon" or "kernel" not in path:
            other = flatten_dict(alone, sep="/")[path]
            np.testing.assert_allclose(update, other, rtol=1e-4, atol=1e-7, err_msg=path)
    # Moments are float32; whatever else there is counts.
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} <= {"float32", "int32"}
    for field in entry.fields:
        changed, _, _ = run(usual | {field: CHANGED[field]})
        differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), changed, together)
        assert max(jax.tree.leaves(differences)) > 1e-6, field


def lying(name, mesh):
    """Parameters and slots of the tree as abstract arrays that say where each lies, by path."""

    def init():
        params = boxed(draw(0))
        return params, make_optimizer(chosen(name), 10)[0].init(params)

    params, state = placed(jax.eval_shape(init), mesh, EIGHTHS)
    return flatten_dict(params, sep="/"), state


# Slots that lack an axis of their parameter, and what is left of its names.
FACTORED = {
    "optax.adafactor": {
        ("v_row", "embeddings/word_embeddings"): None,  # 16 is too short: one number, unused
        ("v_col", "encoder/layers/intermediate/kernel"): ("layers", "mlp"),
        ("v_row", "encoder/layers/intermediate/kernel"): ("layers", "hidden"),
        ("v_row", "pooler/kernel"): None,  # square: which axis is left cannot be told
    },
    "optax.novograd": {
        ("nu", "encoder/layers/attention/query/kernel"): ("layers",),
        ("nu", "pooler/kernel"): (),
    },
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_slot_lies_with_its_parameter(name):
    mesh = make_mesh(EIGHTHS)
    params, state = lying(name, mesh)
    held = {"same": 0, "other": 0}
    for path, slot in jax.tree_util.tree_leaves_with_path(state):
        kind, of = slot_of(path)
        part = math.prod(slot.sharding.shard_shape(slot.shape))
        if of and slot.shape == params[of].shape:
            assert slot.sharding == params[of].sharding, (kind, of)
            held["same"] += part
        else:
            held["other"] += part
        if (kind, of) in FACTORED.get(name, {}):
            names = FACTORED[name][kind, of]
            expected = EIGHTHS.spec(*names) if names else PartitionSpec()
            assert slot.sharding.is_equivalent_to(NamedSharding(mesh, expected), slot.ndim)
            assert not names or slot.shape == tuple(
                size for size, axis in zip(*TREE[of], strict=True) if axis in names
            )
    of_parameters = sum(math.prod(p.sharding.shard_shape(p.shape)) for p in params.values())
    assert of_parameters < 0.13 * sum(math.prod(p.shape) for p in params.values())
    # Whole moments, up to three (adan has four), or next to nothing.
    assert held["same"] <= 4 * of_parameters
    assert held["other"] < 0.1 * of_parameters


@pytest.mark.parametrize(
    "name",
    # Slots of every shape: like parameters, fewer axes, matrices alone, none.
    [
        "muon",
        "optax.adafactor",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("lamb", "optax.adan", "optax.lars", "optax.novograd", "optax.sgd")
        ),
    ],
)
def test_on_eight_devices_slots_stay_where_they_lie(name):
    """And updates are those of one device."""
    mesh = make_mesh(EIGHTHS)
    optimizer, _ = make_optimizer(chosen(name), 10)
    _, abstract = lying(name, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    params, grads = draw(0), draw(1)
    whole, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    # As in training, the compiler chooses where what is not told lies.
    start = jax.jit(
        lambda: nn.meta.unbox(optimizer.init(boxed(draw(0)))), out_shardings=shardings
    )()
    there = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, lying_params(mesh)))
    with jax.set_mesh(mesh):
        updates, state = jax.jit(optimizer.update, out_shardings=(None, shardings))(
            grads, start, there
        )
    for update, expected in zip(jax.tree.leaves(updates), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-7)
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        shape = expected.sharding.shard_shape(expected.shape)
        assert leaf.shape == expected.shape
        assert leaf.addressable_shards[0].data.shape == shape


def lying_params(mesh):
    return placed(jax.eval_shape(lambda: boxed(draw(0))), mesh, EIGHTHS)


def test_the_state_of_every_optimizer_comes_back_from_a_checkpoint(tmp_path):
    params, rng = draw(0, wanted=SMALL[:3]), np.random.default_rng(2)
    states = {
        name: jax.eval_shape(make_optimizer(chosen(name), 10)[0].init, params)
        for name in OPTIMIZERS
    }
    states = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 100).astype(x.dtype), states
    )
    with contextlib.closing(Checkpoints(tmp_path, create=True)) as checkpoints:
        checkpoints.save(1, params, states, {}, None)
        checkpoints.wait()
        _, back = checkpoints.restore(1, params, states)
    assert jax.tree.structure(back) == jax.tree.structure(states)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(states), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_muon_takes_the_kernels_of_layers_and_nothing_else():
    model = dataclasses.replace(TINY, sharing="attention", lora_rank=2)
    params = nn.meta.unbox(abstract_params(Albert(model)))
    flat = flatten_dict(params, sep="/")
    axes = flatten_dict(matrices(params), sep="/")
    taken = {path for path, dimensions in axes.items() if dimensions is not None}
    layers = "encoder/layers/"
    assert taken == {
        f"{layers}attention/{name}/kernel" for name in ("query", "key", "value", "output")
    } | {f"{layers}{name}/kernel" for name in ("intermediate", "output")} | {
        "encoder/embedding_hidden_mapping_in/kernel"
    }
    for path in taken:
        ends = [math.prod(flat[path].shape[a] for a in axis) for axis in axes[path]]
        widths = {"query": 16, "key": 16, "value": 16, "intermediate": 32, "output": 16}
        expected = [16, widths.get(path.split("/")[-2], 16)]
        if path == f"{layers}output/kernel":
            expected = [32, 16]
        if path.startswith("encoder/embedding"):
            expected = [8, 16]
        assert ends == expected, path


def test_muon_is_that_of_optax_for_every_set():
    """As one matrix of its own, attention's kernels folded; the rest is AdamW's."""
    params, grads = draw(0), draw(1, 2)
    config = chosen("muon", weight_decay=0.1, consistent_rms=0.3, momentum=0.8)
    ours, _ = jax.jit(functools.partial(steps, config))(params, grads)
    _, schedule = make_optimizer(config, 10)

    def folded(tree, front=0):
        flat = flatten_dict(tree, sep="/")
        query = flat["encoder/layers/attention/query/kernel"].take(1, front)
        output = flat["encoder/layers/attention/output/kernel"].take(0, front)
        return {
            "query": query.reshape(*query.shape[:front], 128, 8),
            "output": output.reshape(*output.shape[:front], 8, 128),
            "intermediate": flat["encoder/layers/intermediate/kernel"].take(2, front),
            "mapping": flat["encoder/embedding_hidden_mapping_in/kernel"],
        }

    stock = optax.contrib.muon(
        schedule, beta=0.8, weight_decay=0.1, consistent_rms=0.3, adam_b1=0.0
    )
    matrix, state = folded(params), None
    state = stock.init(matrix)
    update = jax.jit(stock.update)
    for k in range(2):
        grad = jax.tree.map(lambda g, k=k: g[k], folded(grads, 1))
        updates, state = update(grad, state, matrix)
        matrix = optax.apply_updates(matrix, updates)
        for name, value in folded(ours, 1).items():
            # Five iterations in float32 spread roundings over a matrix.
            scale = np.abs(updates[name]).max()
            np.testing.assert_allclose(
                value[k], updates[name], rtol=1e-3, atol=1e-3 * scale, err_msg=name
            )
    rest, _ = steps(chosen("optax.adamw", weight_decay=0.1), params, grads)
    np.testing.assert_allclose(ours["pooler"]["kernel"], rest["pooler"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(
        ours["embeddings"]["layer_norm"]["scale"],
        rest["embeddings"]["layer_norm"]["scale"],
        rtol=1e-5,
    )


def test_decay_and_ratio_leave_layer_norms_and_biases_alone():
    mask = decayed(abstract_params(Albert(TINY)))
    paths = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(mask)}
    excluded = [path for path, value in paths.items() if not value]
    assert all("layer_norm" in path or "bias" in path for path in excluded)
    assert len(excluded) == sum("layer_norm" in p or "bias" in p for p in paths)
    assert any("word_embeddings" in path and value for path, value in paths.items())


def test_lamb_equals_a_float64_reference():
    """Unset fields are the released ones; in a stack every tensor has its own ratio."""
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(3, 4, 5)) * np.array([1.0, 10.0, 0.0])[:, None, None]
    params = {
        "kernel": rng.normal(size=(4, 3)),
        "bias": rng.normal(size=3),
        "zero": np.zeros(2),
        "layers": {"kernel": stack},
    }
    grads = [jax.tree.map(lambda p: rng.normal(size=p.shape), params) for _ in range(5)]

    def float32(tree):
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    optimizer, schedule = make_optimizer(LAMB, 10)
    ours = float32(params)
    state = optimizer.init(ours)
    for g in grads:
        updates, state = optimizer.update(float32(g), state, ours)
        ours = optax.apply_updates(ours, updates)

    def expected(start, grads, plain=False):
        return reference_lamb(start, grads, lambda k: float(schedule(k - 1)), plain=plain)

    for name in ("kernel", "bias", "zero"):
        one = expected(params[name], [g[name] for g in grads], name == "bias")
        np.testing.assert_allclose(ours[name], one, rtol=2e-5, atol=1e-6)
    for k in range(3):
        one = expected(stack[k], [g["layers"]["kernel"][k] for g in grads])
        np.testing.assert_allclose(ours["layers"]["kernel"][k], one, rtol=2e-5, atol=1e-6)


def test_gradients_are_clipped_to_the_global_norm():
    config = dataclasses.replace(LAMB, name="optax.sgd", clip_norm=1.0, warmup_steps=0)
    optimizer, schedule = make_optimizer(config, 10)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    updates, _ = optimizer.update(
        {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}, optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["a"][0], -float(schedule(0)) * 0.6, rtol=1e-6)
    np.testing.assert_allclose(updates["b"][0], -float(schedule(0)) * 0.8, rtol=1e-6)


def test_stock_adamw_is_that_of_optax_with_the_released_mask():
    set_ = {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "weight_decay": 0.5}
    for fields in (set_, {}):
        config = dataclasses.replace(LAMB, name="optax.adamw", warmup_steps=0, **fields)
        optimizer, schedule = make_optimizer(config, 10)
        params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
        stock = optax.adamw(schedule, **fields, mask={"kernel": True, "bias": False})
        for grad in (0.0, 1e-5):
            grads = jax.tree.map(lambda p, grad=grad: p * grad, params)
            ours, _ = optimizer.update(grads, optimizer.init(params), params)
            theirs, _ = stock.update(grads, stock.init(params), params)
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)
            assert bool(ours["bias"].any()) == bool(grad)
            assert ours["kernel"].all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"name": "optax.sgd", "weight_decay": 0.01},
            "weight_decay (0.01) is set, and name optax.sgd does not read it (of what may be "
            "unset it reads momentum); leave it unset, --config.optimizer.weight_decay=None, or "
            "choose one that reads it: lamb, adamw, muon, optax.adadelta",
        ),
        (
            {"name": "optax.sign_sgd", "b1": 0.9, "momentum": 0.9},
            "b1 (0.9), momentum (0.9) are set, and name optax.sign_sgd does not read them (of "
            "what may be unset it reads nothing); leave them unset, --config.optimizer.b1=None "
            "--config.optimizer.momentum=None, or choose one that reads them: muon",
        ),
        (
            {"cooldown_steps": 3},
            "cooldown_steps (3) is set, and schedule released does not read it (of what may be "
            "unset it reads final_learning_rate); leave it unset, "
            "--config.optimizer.cooldown_steps=None, or choose one that reads it: wsd",
        ),
        ({"name": "optax.lbfgs"}, "it evaluates the loss several times a step, which training"),
        ({"name": "optax.sm3"}, "name is 'optax.sm3'; it follows no schedule. There is lamb, ad"),
        ({"name": "optax.addamw"}, "name is 'optax.addamw'; did you mean optax.adamw? There is la"),
        ({"name": "optax.chain"}, "name is 'optax.chain'; "),
        ({"name": "optax.adamw.x"}, "name is 'optax.adamw.x'; did you mean optax.adamw?"),
        ({"name": "adam"}, "name is 'adam'; did you mean adamw? There is lamb, adamw, muon, opt"),
        ({"schedule": "cosin"}, "schedule is 'cosin'; did you mean cosine? There is released, li"),
        ({"schedule": "x"}, "schedule is 'x'; that is not offered. There is released, linear"),
        ({"eps": 0.0}, "eps is 0.0; it must be positive"),
        ({"b1": 1.0}, "b1 is 1.0; it must be in [0, 1)"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must not be negative"),
        ({"final_learning_rate": 0.2}, "final_learning_rate is 0.2 and learning_rate, the peak"),
    ],
)
def test_what_is_set_and_not_read_or_not_offered_is_a_problem(fields, words):
    problems = dataclasses.replace(LAMB, **fields).problems()
    assert len(problems) == 1
    assert words in problems[0]
