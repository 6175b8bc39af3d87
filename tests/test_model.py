import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from albert.models import layers
from albert.models.config import REMAT_POLICIES, AlbertConfig
from albert.models.cost import parameters_by_part
from albert.models.encoder import Albert, abstract_params, init_params
from albert.models.layers import dropout, row_keys
from albert.train.sharding import LOGICAL_AXES
from configs import base, large, xlarge, xxlarge
from models import TINY, random_rows


def make(**changes):
    config = dataclasses.replace(TINY, **changes)
    model = Albert(config)
    return model, nn.meta.unbox(init_params(model, jax.random.key(0)))


@pytest.mark.parametrize(
    ("config", "backbone", "total"),
    [
        (base, 11_683_584, 11_813_810),
        (large, 17_683_968, 17_847_474),
        (xlarge, 58_724_864, 59_021_490),
        (xxlarge, 222_595_584, 223_158_450),
    ],
)
def test_parameter_counts_of_the_released_sizes(config, backbone, total):
    parts = parameters_by_part(abstract_params(Albert(AlbertConfig(**config.get_config().model))))
    assert sum(parts.values()) == total
    assert total - parts["mlm_head"] - parts["sop_head"] == backbone


def test_every_parameter_has_known_logical_axes():
    leaves = jax.tree.leaves(
        abstract_params(Albert(dataclasses.replace(TINY, sharing="attention", lora_rank=2))),
        is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
    )
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
        assert set(leaf.names) <= set(LOGICAL_AXES)


def test_initialisation_is_a_normal_cut_at_two_sigma():
    _, params = make(vocab_size=20000)
    table = np.asarray(params["embeddings"]["word_embeddings"])
    assert np.abs(table).max() <= 0.04
    # The standard deviation of a normal cut at two sigma is 0.8796 sigma.
    np.testing.assert_allclose(table.std(), 0.02 * 0.8796, rtol=0.01)
    for path, leaf in flatten_dict(params, sep="/").items():
        if path.endswith("bias"):
            assert not leaf.any(), path
        if path.endswith("scale"):
            assert (leaf == 1).all(), path


def test_shared_gradient_is_summed_in_float32():
    model = Albert(dataclasses.replace(TINY, dtype="bfloat16", hidden_dropout_prob=0.0))
    params = nn.meta.unbox(abstract_params(model))

    def loss(params, ids):
        return model.apply({"params": params}, ids, ids, ids).mlm_logits.sum()

    ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    text = str(jax.make_jaxpr(jax.grad(loss))(params, ids))
    # The backward scan carries the gradient of the feed-forward kernel [16, 32].
    assert re.search(r"f32\[1,16,32\] = add_any", text)
    assert not re.search(r"bf16\[(1,)?16,32\] = add_any", text)


@pytest.mark.parametrize("remat", sorted(REMAT_POLICIES.keys() - {"none"}))
def test_remat_changes_no_gradient(remat):
    ids, mask, types = random_rows()

    def gradient(**changes):
        model, params = make(**changes)

        def loss(params):
            output = model.apply(
                {"params": params},
                ids,
                mask,
                types,
                dropout_keys=row_keys(jax.random.key(1), len(ids)),
            )
            return jnp.sum(output.mlm_logits**2)

        return jax.jit(jax.grad(loss))(params)

    for ours, plain in zip(
        jax.tree.leaves(gradient(remat=remat)), jax.tree.leaves(gradient()), strict=True
    ):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


class OnlyDropout(nn.Module):
    """A layer that adds its dropped-out ones to x: the masks can be read off the hidden states."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, x, visible, keys=None, entropy_bias=None):
        return x + dropout(jnp.ones_like(x), self.config.hidden_dropout_prob, keys, 0), None


@pytest.mark.parametrize(
    "sharing", ["all", *(pytest.param(s, marks=pytest.mark.slow) for s in ("none", "groups:2"))]
)
def test_every_depth_and_row_draws_its_own_dropout(monkeypatch, sharing):
    model, params = make(num_hidden_layers=4, sharing=sharing, hidden_dropout_prob=0.3)
    monkeypatch.setattr(layers, "Layer", OnlyDropout)
    monkeypatch.setattr(layers, "init_layers", lambda key, config: params["encoder"]["layers"])
    ids, mask, types = random_rows()

    def masks_of(keys):
        output = model.apply(
            {"params": params},
            ids[: len(keys)],
            mask[: len(keys)],
            types[: len(keys)],
            dropout_keys=keys,
            output_hidden_states=True,
        )
        return np.diff(np.asarray(output.hidden_states), axis=0) > 0.5

    keys = row_keys(jax.random.key(0), len(ids))
    masks = masks_of(keys)
    assert np.all(np.abs(1 - masks.mean((1, 2, 3)) - 0.3) < 0.1)
    drawn = [*masks[:, 0], *masks[:, 1], *masks[:, 2]]
    for i in range(len(drawn)):
        for j in range(i):
            assert 0.2 < np.mean(drawn[i] != drawn[j]) < 0.65  # 0.42 where they are independent
    # A row's masks are its own, whatever rows it is computed with.
    np.testing.assert_array_equal(masks_of(keys[:2]), masks[:, :2])


def test_padding_changes_nothing_and_a_row_of_padding_is_finite():
    model, params = make()
    ids, mask, types = random_rows()
    output = model.apply({"params": params}, ids, mask, types)
    other = np.where(mask == 1, ids, 7)
    changed = model.apply({"params": params}, other, mask, types)
    real = mask.astype(bool)
    np.testing.assert_allclose(
        output.last_hidden_state[real], changed.last_hidden_state[real], atol=1e-6
    )
    empty = model.apply({"params": params}, ids, np.zeros_like(mask), types)
    assert np.isfinite(empty.mlm_logits).all()


def test_gathered_positions_equal_all_positions():
    model, params = make()
    ids, mask, types = random_rows()
    positions = np.array([[1, 4], [0, 9], [3, 3]], np.int32)
    everywhere = model.apply({"params": params}, ids, mask, types).mlm_logits
    gathered = model.apply(
        {"params": params}, ids, mask, types, head_inputs={"mlm": {"positions": positions}}
    ).mlm_logits
    expected = np.take_along_axis(np.asarray(everywhere), positions[:, :, None], axis=1)
    np.testing.assert_allclose(gathered, expected, atol=1e-6)


def test_a_sequence_longer_than_the_position_table_is_refused():
    model, params = make()
    ids = np.zeros((1, 13), np.int32)
    with pytest.raises(ValueError, match="length 13 is longer than the model has positions"):
        model.apply({"params": params}, ids, ids, ids)


def test_float32_where_it_matters():
    model, params = make(dtype="bfloat16")
    output = model.apply({"params": params}, *random_rows())
    assert output.last_hidden_state.dtype == jnp.bfloat16
    assert output.mlm_logits.dtype == output.sop_logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 15}, "not a multiple of num_attention_heads"),
        ({"sharing": "groups:4"}, "from 1 to num_hidden_layers, 3"),
        ({"hidden_act": "swish"}, "one of gelu, gelu_erf, relu"),
        ({"vocab_size": 0}, "at least 1"),
        ({"hidden_dropout_prob": 1.0}, "in \\[0, 1\\)"),
        ({"remat": "some"}, "one of none, dots, full"),
    ],
)
def test_impossible_sizes_are_named(changes, words):
    assert re.search(words, " ".join(dataclasses.replace(TINY, **changes).problems()))
    assert not TINY.problems()


def test_shapes_are_of_the_model_that_was_asked_for():
    def shape(config, labels):
        params = abstract_params(
            Albert(config, ("classifier",), {"classifier": {"labels": labels}})
        )
        return nn.meta.unbox(params.pop("classifier_head"))["kernel"].shape

    wider = dataclasses.replace(TINY, hidden_size=2 * TINY.hidden_size)
    asked = [(TINY, 2), (TINY, 3), (wider, 3)] * 2  # the second time none is traced
    assert [shape(*case) for case in asked] == [(c.hidden_size, n) for c, n in asked]
