"""Every way of sharing: who uses which weights, what it counts, and that it equals a plain loop."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from albert.models.attention.base import Visible
from albert.models.config import AlbertConfig
from albert.models.cost import parameters_by_part
from albert.models.encoder import Albert, abstract_params, init_params
from albert.models.layers import Layer
from albert.models.sharing import tables
from configs import base
from models import TINY, random_rows
from steps import configured, losses

STRATEGIES = (
    "all",
    "none",
    "attention",
    "ffn",
    "groups:2",
    "cycle:2",
    "cycle_reversed:3",
    "sandwich",
)
# Strategy and what may come with it; a difference to weights that nobody shares is refused.
QUICK = [
    ("attention", {"lora_rank": 2}),
    ("cycle_reversed:4", {"num_hidden_layers": 6, "per_layer_norm": True, "lora_rank": 3}),
]
ALL = [
    ("groups:2", {"inner_group_num": 2, "num_hidden_layers": 3}),
    ("cycle:4", {"num_hidden_layers": 6}),  # the last time through is not a whole one
    *((s, {}) for s in STRATEGIES),
    *((s, {"per_layer_norm": True}) for s in ("all", "ffn", "sandwich")),
    *((s, {"lora_rank": 2}) for s in ("all", "ffn", "groups:2", "sandwich")),
    ("all", {"per_layer_norm": True, "lora_rank": 3}),
    ("all", {"inner_group_num": 2}),
]


def name_of(variant):
    return "-".join([variant[0], *(f"{k}={v}" for k, v in variant[1].items())])


VARIANTS = [
    *(pytest.param(*v, id=name_of(v)) for v in QUICK),
    *(pytest.param(*v, id=name_of(v), marks=pytest.mark.slow) for v in ALL if v not in QUICK),
]


def config_of(sharing, **more):
    return dataclasses.replace(TINY, **{"num_hidden_layers": 6, "sharing": sharing, **more})


def random_params(config, seed=0):
    """Normal numbers everywhere, so that no difference is zero and no scale one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype),
        nn.meta.unbox(abstract_params(Albert(config))),
    )


@pytest.mark.parametrize(
    ("sharing", "expected"),
    [
        ("all", [0, 0, 0, 0, 0, 0]),
        ("none", [0, 1, 2, 3, 4, 5]),
        ("groups:2", [0, 0, 0, 1, 1, 1]),
        ("groups:3", [0, 0, 1, 1, 2, 2]),
        ("cycle:2", [0, 1, 0, 1, 0, 1]),
        ("cycle:4", [0, 1, 2, 3, 0, 1]),
        # Takase and Kiyono, figure 1: three sets over six layers, the second time backwards.
        ("cycle_reversed:3", [0, 1, 2, 2, 1, 0]),
        ("cycle_reversed:2", [0, 1, 0, 1, 1, 0]),
        ("cycle_reversed:4", [0, 1, 2, 3, 3, 2]),
        ("cycle_reversed:6", [0, 1, 2, 3, 4, 5]),
        ("sandwich", [0, 1, 1, 1, 1, 2]),
    ],
)
def test_which_layer_uses_which_set(sharing, expected):
    assert tables(sharing, 6, 1) == (tuple(expected), tuple(expected))
    twice = tuple(2 * s + i for s in expected for i in (0, 1))
    assert tables(sharing, 6, 2) == (twice, twice)


def test_half_shared_layers_have_two_tables():
    assert tables("attention", 3, 1) == ((0, 0, 0), (0, 1, 2))
    assert tables("ffn", 3, 1) == ((0, 1, 2), (0, 0, 0))


@pytest.mark.parametrize(("sharing", "more"), VARIANTS)
def test_parameters_are_counted_by_a_closed_form(sharing, more):
    c = config_of(sharing, **more)
    h, i, r, n = c.hidden_size, c.intermediate_size, c.lora_rank, c.depth
    attention, ffn = (
        {"attention": 1, "ffn": n}.get(sharing),
        {"attention": n, "ffn": 1}.get(sharing),
    )
    name, _, count = sharing.partition(":")
    sets = {"all": 1, "none": c.num_hidden_layers, "sandwich": 3}.get(name) or int(count or 0)
    attention = attention or sets * c.inner_group_num
    ffn = ffn or sets * c.inner_group_num
    small = (4 * h + 2 * h, i + h + 2 * h)  # biases and LayerNorm of either block
    kernels = attention * 4 * h * h + ffn * 2 * h * i
    own = c.per_layer_norm
    rest = (n if own else attention) * small[0] + (n if own else ffn) * small[1]
    low_rank = n * r * (4 * 2 * h * (attention < n) + 2 * (h + i) * (ffn < n))
    assert parameters_by_part(abstract_params(Albert(c)))["layers"] == kernels + rest + low_rank


# Tables 3 and 4 of the paper, in millions: every cell that differs.
PAPER = {
    (64, "none"): 87,
    (128, "none"): 89,
    (256, "none"): 93,
    (768, "none"): 108,
    (64, "all"): 10,
    (128, "all"): 12,
    (256, "all"): 16,
    (768, "all"): 31,
    (768, "attention"): 83,
    (768, "ffn"): 57,
    (128, "attention"): 64,
    (128, "ffn"): 38,
}
# The backbone with pooler, computed by hand.
FORMULA = {
    (768, "all"): 31.1,
    (768, "attention"): 83.1,
    (768, "ffn"): 57.1,
    (768, "none"): 109.1,
    (128, "all"): 11.7,
    (128, "attention"): 63.6,
    (128, "ffn"): 37.7,
    (128, "none"): 89.7,
}


@pytest.mark.parametrize(("size", "sharing"), PAPER)
def test_the_papers_tables_3_and_4(size, sharing):
    values = base.get_config().model
    values.sharing, values.embedding_size = sharing, size
    parts = parameters_by_part(abstract_params(Albert(AlbertConfig(**values))))
    backbone = sum(parts.values()) - parts["mlm_head"] - parts["sop_head"]
    if (size, sharing) in FORMULA:
        assert round(backbone / 1e6, 1) == FORMULA[size, sharing]
    # The rows with nothing shared are printed without the pooler, as BERT's 108M is, the others
    # with it: so counted, every cell is the paper's.
    printed = backbone - (parts["pooler"] if sharing == "none" else 0)
    assert round(printed / 1e6) == PAPER[size, sharing]


@pytest.mark.parametrize(("sharing", "more"), VARIANTS)
def test_every_strategy_equals_a_written_out_loop(sharing, more):
    """Outputs, hidden states and every gradient, the latter summed by autodiff of the loop."""
    config = config_of(sharing, **more)
    model, params = Albert(config), random_params(config)
    ids, mask, types = random_rows()
    bias = (1.0 - mask[:, None, None, :]) * -10000.0

    def scanned(params):
        output = model.apply({"params": params}, ids, mask, types, output_hidden_states=True)
        return jnp.sum(jnp.sin(output.hidden_states)), output.hidden_states

    def loop(params):
        layers = flatten_dict(params["encoder"]["layers"], sep="/")
        x = model.apply({"params": params}, ids, mask, types, output_hidden_states=True)
        x = x.hidden_states[0]
        states = [x]
        for depth in range(config.depth):
            own = {leaf: p[config.leaf_sets(leaf)[depth]] for leaf, p in layers.items()}
            for leaf in [leaf for leaf in own if leaf.endswith("lora_a")]:
                a, b = own.pop(leaf), own.pop(leaf.replace("lora_a", "lora_b"))
                kernel = leaf.replace("lora_a", "kernel")
                own[kernel] = own[kernel] + jnp.tensordot(a, b, axes=1)
            plain = dataclasses.replace(config, sharing="none", lora_rank=0)
            x, _ = Layer(plain).apply(
                {"params": unflatten_dict(own, sep="/")}, x, Visible("xla", bias)
            )
            states.append(x)
        return jnp.sum(jnp.sin(jnp.stack(states))), jnp.stack(states)

    (_, ours), gradient = jax.jit(jax.value_and_grad(scanned, has_aux=True))(params)
    (_, plain), expected = jax.jit(jax.value_and_grad(loop, has_aux=True))(params)
    assert ours.shape[0] == config.depth + 1
    np.testing.assert_allclose(ours, plain, rtol=2e-5, atol=2e-5)
    expected = flatten_dict(expected["encoder"]["layers"], sep="/")
    scale = max(np.abs(value).max() for value in expected.values())
    for leaf, value in flatten_dict(gradient["encoder"]["layers"], sep="/").items():
        # A bias of all keys moves every score alike: its gradient is zero but for rounding.
        assert leaf == "attention/key/bias" or np.abs(expected[leaf]).max() > 1e-4 * scale, leaf
        np.testing.assert_allclose(
            value, expected[leaf], rtol=1e-3, atol=2e-6 * scale, err_msg=leaf
        )


def test_differences_begin_as_zero_and_sets_are_drawn_apart():
    config = config_of("groups:2", lora_rank=2)
    params = nn.meta.unbox(init_params(Albert(config), jax.random.key(0)))
    layers = flatten_dict(params["encoder"]["layers"], sep="/")
    kernel = layers["intermediate/kernel"]
    assert kernel.shape == (2, 16, 32)
    assert (kernel[0] != kernel[1]).mean() > 0.99
    a, b = layers["intermediate/lora_a"], layers["intermediate/lora_b"]
    assert a.shape == (6, 16, 2)
    assert b.shape == (6, 2, 32)
    assert not b.any()
    assert a.any(axis=(1, 2)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharing", "remat"),
    [("none", "none"), ("attention", "dots"), ("cycle:2", "full"), ("sandwich", "none")],
)
def test_losses_of_other_sharing_do_not_depend_on_the_mesh(tiny, sharing, remat):
    tiny.model.sharing, tiny.model.remat = sharing, remat
    tiny.model.lora_rank = 2 if sharing == "cycle:2" else 0
    tiny.model.per_layer_norm = sharing == "cycle:2"
    alone, _, _ = losses(configured(tiny), devices=1, steps=5)
    spread, state, _ = losses(configured(tiny, data=2, fsdp=2, tensor=2), steps=5)
    np.testing.assert_allclose(spread, alone, rtol=1e-5)
    kernel = state.params["encoder"]["layers"]["intermediate"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size


def lowered(config, rows=4):
    model = Albert(config)
    params = nn.meta.unbox(abstract_params(model))
    ids = jax.ShapeDtypeStruct((rows, 12), jnp.int32)

    def loss(params, ids):
        return model.apply({"params": params}, ids, ids, ids).mlm_logits.sum()

    return jax.jit(jax.grad(loss)).lower(params, ids)


@pytest.mark.parametrize(
    ("sharing", "more"), [v for v in VARIANTS if "num_hidden_layers" not in v[1]]
)
def test_the_program_does_not_grow_with_depth(sharing, more):
    sizes = set()
    for depth in (6, 48):
        text = lowered(config_of(sharing, **{**more, "num_hidden_layers": depth})).as_text()
        # Tables of sets are constants in it; its operations are what is compiled.
        sizes.add(text.count(" = stablehlo."))
    assert len(sizes) == 1, sizes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sharing", ["cycle:2", "none"])
def test_no_copy_of_the_weights_is_kept_for_every_depth(sharing, dtype):
    """With next to no tokens, what the backward pass keeps would be weights."""
    big = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 24, "dtype": dtype}
    config = config_of(sharing, **big)
    temporary = lowered(config, rows=1).compile().memory_analysis().temp_size_in_bytes
    one_layer = 4 * (4 * 128 * 128 + 2 * 128 * 512)
    # Gradients are results; some layers' worth of weights, and what tokens there are, move about.
    assert temporary < 12 * one_layer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"sharing": "some"},
            "sharing is 'some'; it must be one of all, none, attention, ffn, "
            "sandwich, groups:G, cycle:M, cycle_reversed:M",
        ),
        ({"sharing": "all:2"}, "must be one of all"),
        ({"sharing": "groups"}, "must be one of all"),
        ({"sharing": "groups:two"}, "behind groups must be from 1 to num_hidden_layers, 6"),
        ({"sharing": "cycle:7"}, "the number behind cycle must be from 1 to num_hidden_layers, 6"),
        ({"sharing": "sandwich", "num_hidden_layers": 2}, "num_hidden_layers of 3 or more, not 2"),
        ({"lora_rank": 17}, "lora_rank is 17; it must be from 0 to 16"),
        ({"lora_rank": -1}, "lora_rank is -1; it must be from 0 to 16"),
        ({"lora_rank": 2, "sharing": "none"}, "needs weights that are shared"),
    ],
)
def test_impossible_sharing_is_told(changes, words):
    found = config_of(**{"sharing": "all", **changes}).problems()
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize("sharing", ["cycle:3", "groups:3"])
def test_a_gradient_is_added_to_its_own_set_alone(sharing):
    """The compiled backward loop adds arrays of one set and never the whole stack, which has an
    axis of 3 in front."""
    text = lowered(config_of(sharing)).compile().as_text()
    assert re.search(r"= f32\[3,16,32\]\S* dynamic-update-slice\(", text)
    assert not re.search(r"= f32\[3,16,32\]\S* add\(", text)
