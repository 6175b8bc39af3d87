"""Functions with backward passes of their own, beside what differentiation makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from albert.models import lean
from albert.models.config import ACTIVATIONS


def plain_product(x, kernel, contracted, activation=None):
    x = x if activation is None else activation(x)
    return jnp.tensordot(x, kernel.astype(x.dtype), axes=contracted)


def plain_scores(a, b, equation):
    return jnp.einsum(equation, a, b.astype(a.dtype), preferred_element_type=jnp.float32)


def plain_layer_norm(x, scale, bias, epsilon):
    module = nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False)
    return module.apply({"params": {"scale": scale, "bias": bias}}, x)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


CASES = {
    "product": ("product", (normal(0, 2, 7, 8), normal(1, 8, 4, 3)), (1,)),
    "of_two_axes": ("product", (normal(0, 2, 7, 4, 3), normal(1, 4, 3, 8)), (2,)),
    **{
        name: ("product", (2 * normal(0, 2, 7, 8), normal(1, 8, 5)), (1, activation))
        for name, activation in ACTIVATIONS.items()
    },
    "attention": ("scores", (normal(0, 2, 7, 3, 4), normal(1, 2, 6, 3, 4)), ("BLAD,BMAD->BALM",)),
    "vocabulary": ("scores", (normal(0, 2, 7, 8), normal(1, 11, 8)), ("BPE,VE->BPV",)),
    "layer_norm": ("layer_norm", (normal(0, 2, 7, 8) + 3, normal(1, 8), normal(2, 8)), (1e-12,)),
}
PLAIN = {"product": plain_product, "scores": plain_scores, "layer_norm": plain_layer_norm}


def outcome(function, arguments, more):
    """The value and the gradients of arguments of some number made of it."""
    value, pull = jax.vjp(lambda *x: function(*x, *more), *arguments)
    weights = normal(9, *value.shape).astype(value.dtype)
    return value, *pull(weights)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_plain_formula(case):
    name, arguments, more = CASES[case]
    ours = outcome(getattr(lean, name), arguments, more)
    plain = outcome(PLAIN[name], arguments, more)
    np.testing.assert_array_equal(ours[0], plain[0])
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("case", CASES)
def test_in_bfloat16_they_are_about_as_close_to_float32(case):
    """Arguments of activations in bfloat16, weights in float32, as a layer has them. What comes
    back of float32 scores is rounded in front of its products, which costs a third of precision."""
    name, arguments, more = CASES[case]
    first = arguments[0].astype(jnp.bfloat16)
    kept = [a.astype(jnp.bfloat16) if case == "attention" else a for a in arguments[1:]]
    exact = outcome(PLAIN[name], [a.astype(jnp.float32) for a in (first, *kept)], more)
    ours = outcome(getattr(lean, name), [first, *kept], more)
    plain = outcome(PLAIN[name], [first, *kept], more)
    for a, b, c in zip(ours, plain, exact, strict=True):
        assert a.dtype == b.dtype
        errors = [float(jnp.linalg.norm((x.astype(jnp.float32) - c).ravel())) for x in (a, b)]
        allowed = 1.4 if name == "scores" else 1.1
        assert errors[0] <= allowed * errors[1] + 1e-5 * float(jnp.linalg.norm(c.ravel()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_more_is_kept_than_was_given(dtype):
    """A feed-forward block with LayerNorm: its input, the product in front of the activation, the
    input of the LayerNorm, and two numbers for each token."""
    tokens, h, i = 64, 32, 128
    x = normal(0, tokens, h).astype(dtype)
    wide, back = normal(1, h, i), normal(2, i, h)
    ones, activation = jnp.ones(h), ACTIVATIONS["gelu"]

    def block(x):
        hidden = lean.product(lean.product(x, wide, 1), back, 1, activation)
        return lean.layer_norm(x + hidden, ones, ones, 1e-12)

    _, pull = jax.vjp(block, x)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.shape[:1] == (tokens,)]
    sizes = sorted((leaf.size // tokens, str(leaf.dtype)) for leaf in kept)
    assert sizes == [(1, "float32"), (1, "float32"), (h, dtype), (h, dtype), (i, dtype)]


def test_no_product_of_the_backward_pass_is_wider_than_what_it_was_given():
    q, k = (normal(s, 2, 5, 3, 4).astype(jnp.bfloat16) for s in (0, 1))
    x, kernel = normal(2, 2, 5, 8).astype(jnp.bfloat16), normal(3, 8, 4)

    def loss(q, k, x, kernel):
        found = lean.scores(q, k, "BLAD,BMAD->BALM").sum()
        return found + lean.product(x, kernel, 1).astype(jnp.float32).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2, 3)))(q, k, x, kernel).jaxpr
    found = [eqn for eqn in _equations(jaxpr) if eqn.primitive.name == "dot_general"]
    assert len(found) == 8  # two of them written in two ways, for CPUs and others
    assert {str(v.aval.dtype) for eqn in found for v in eqn.invars} == {"bfloat16"}


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jaxprs_in_params(eqn.params):
            yield from _equations(sub)
