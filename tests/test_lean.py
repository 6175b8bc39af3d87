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


def plain_add_bias(x, bias):
    return x + bias.astype(x.dtype)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


CASES = {
    "product": ("product", (normal(0, 2, 7, 8), normal(1, 8, 4, 3)), (1,)),
    "of_two_axes": ("product", (normal(0, 2, 7, 4, 3), normal(1, 4, 3, 8)), (2,)),
    "of_two_axes_each": (
        "product",
        (normal(0, 2, 7, 4, 3), normal(1, 4, 3, 5, 2)),
        (2, ACTIVATIONS["gelu"]),
    ),
    **{
        name: ("product", (2 * normal(0, 2, 7, 8), normal(1, 8, 5)), (1, activation))
        for name, activation in ACTIVATIONS.items()
    },
    "bias": ("add_bias", (normal(0, 2, 7, 4, 3), normal(1, 4, 3)), ()),
    "attention": ("scores", (normal(0, 2, 7, 3, 4), normal(1, 2, 6, 3, 4)), ("BLAD,BMAD->BALM",)),
    "vocabulary": ("scores", (normal(0, 2, 7, 8), normal(1, 11, 8)), ("BPE,VE->BPV",)),
    "layer_norm": ("layer_norm", (normal(0, 2, 7, 8) + 3, normal(1, 8), normal(2, 8)), (1e-12,)),
}
PLAIN = {
    "product": plain_product,
    "add_bias": plain_add_bias,
    "scores": plain_scores,
    "layer_norm": plain_layer_norm,
}


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


def test_cross_entropy_is_that_of_log_probabilities():
    logits, labels = 3 * normal(0, 4, 5, 11), jnp.arange(20).reshape(4, 5) % 11

    def plain(logits):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]

    nll, pull = jax.vjp(lambda x: lean.cross_entropy(x, labels)[0], logits)
    expected, plain_pull = jax.vjp(plain, logits)
    np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-6)
    weights = normal(1, 4, 5)
    np.testing.assert_allclose(pull(weights)[0], plain_pull(weights)[0], rtol=1e-5, atol=1e-6)
    hits = lean.cross_entropy(logits, labels)[1]
    np.testing.assert_array_equal(hits, jnp.argmax(logits, -1) == labels)
    # A label that is one of several largest counts; far logits neither overflow nor vanish.
    far = jnp.asarray([[1e4, 1e4, -1e4], [-3e4, 0.0, 3e4]])
    nll, hits = lean.cross_entropy(far, jnp.asarray([1, 0]))
    np.testing.assert_allclose(nll, [np.log(2), 6e4], rtol=1e-6)
    np.testing.assert_array_equal(hits, [1, 0])


def test_the_loss_keeps_its_logits_and_nothing_else_of_their_size():
    logits, labels = normal(0, 4, 5, 64), jnp.zeros((4, 5), jnp.int32)
    _, pull = jax.vjp(lambda x: lean.cross_entropy(x, labels)[0], logits)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(pull))
    assert sizes[-1] == logits.size
    assert sum(sizes[:-1]) <= 4 * labels.size  # labels, the gradient's own, two numbers for each


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_softmax_keeps_its_result_in_the_compute_dtype(dtype):
    scores = normal(0, 2, 3, 16)
    p, pull = jax.vjp(lambda x: lean.softmax(x, dtype), scores)
    assert [(leaf.size, str(leaf.dtype)) for leaf in jax.tree.leaves(pull)] == [
        (scores.size, dtype)
    ]
    exact, plain_pull = jax.vjp(jax.nn.softmax, scores)
    weights = normal(1, *scores.shape)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 0.02, "atol": 0.01}
    np.testing.assert_allclose(p.astype(jnp.float32), exact, **close)
    np.testing.assert_allclose(pull(weights.astype(dtype))[0], plain_pull(weights)[0], **close)


def test_a_kernel_that_was_cast_before_has_the_gradient_of_one_that_is_cast_here():
    x, kernel = normal(0, 2, 7, 8).astype(jnp.bfloat16), normal(1, 8, 5)
    cast = kernel.astype(jnp.bfloat16)
    here = outcome(lambda x, k: lean.product(x, k, 1), (x, kernel), ())
    before = outcome(lambda x, k: lean.product(x, k, 1, cast=cast), (x, kernel), ())
    for a, b in zip(here, before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert before[2].dtype == jnp.float32


def test_the_gradient_of_a_bias_is_not_rounded_to_16_bits():
    dy = normal(0, 64, 16, 5).astype(jnp.bfloat16)
    _, pull = jax.vjp(lean.add_bias, dy, jnp.zeros(5))
    _, ours = pull(dy)
    np.testing.assert_allclose(ours, np.asarray(dy, np.float64).sum((0, 1)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cpu_computes_no_activation_on_the_way_of_a_transposition(dtype):
    """It would be computed number by number, ten times slower."""
    x, kernel = normal(0, 4, 32, 64).astype(dtype), normal(1, 64, 16)

    def loss(x, kernel):
        return lean.product(x, kernel, 1, ACTIVATIONS["gelu"]).astype(jnp.float32).sum()

    program = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile().as_text()
    assert "tanh(" in program
    for computation in program.split("\n\n"):
        assert not ("tanh(" in computation and " transpose(" in computation)
