"""Functions with backward passes of their own: they keep what they were given and little else, in
its own dtype, compute the rest again, and let no product of the backward pass run in float32 where
activations are in 16 bits.

Left to itself, differentiation keeps every step of an activation and of a LayerNorm, and a float32
result of a product makes both products of its backward pass float32 ones. In float32 the gradients
differ from those by rounding. In 16 bits sums over tokens come out in float32, which is closer;
what comes back of `scores` is rounded in front of its products, which is further by a third.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

DENSE = "dense"  # what policies of rematerialisation call the results of `product`


def product(x, kernel, contracted: int, activation: Callable | None = None, cast=None):
    """activation(x) @ kernel.

    Args:
      x: [..., contracted axes], in the compute dtype.
      kernel: [contracted axes, axes of the result], in its own dtype, cast to that of x.
      contracted: how many axes are summed over.
      activation: elementwise, computed in float32; None: there is none.
      cast: the kernel in the dtype of x, where it was cast before; None: it is cast here.

    Returns:
      [..., axes of the result], in the dtype of x. The kernel's gradient is summed over tokens in
      float32 and keeps the kernel's dtype.
    """
    return checkpoint_name(_product(x, kernel, cast, contracted, activation), DENSE)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _product(x, kernel, cast, contracted, activation):
    kernel = kernel.astype(x.dtype) if cast is None else cast
    return _rounded(_activated(x, activation), kernel, contracted)


def _rounded(a, b, axes):
    """A product, summed in float32 and rounded to the dtype of a."""
    if a.dtype == jnp.float32:
        return jnp.tensordot(a, b, axes)

    def in_two_steps(a, b):
        return jnp.tensordot(a, b, axes, preferred_element_type=jnp.float32).astype(a.dtype)

    # In one step, a CPU with units for 16 bits is six times slower; in two, a GPU writes more.
    return jax.lax.platform_dependent(
        a, b, cpu=in_two_steps, default=lambda a, b: jnp.tensordot(a, b, axes)
    )


def _activated(x, activation: Callable | None):
    return x if activation is None else activation(x.astype(jnp.float32)).astype(x.dtype)


def _product_forward(x, kernel, cast, contracted, activation):
    return _product(x, kernel, cast, contracted, activation), (x, kernel, cast)


def _product_backward(contracted, activation, kept, dy):
    x, kernel, cast = kept
    a = _activated(x, activation)
    # Apart from the value: compilers would keep what the two have in common, such as a tanh, in
    # float32, which is slower to write and to read than to compute twice.
    apart = x if activation is None else jax.lax.optimization_barrier(x)
    _, pull = jax.vjp(lambda x: _activated(x, activation), apart)
    tokens = tuple(range(x.ndim - contracted))
    results = tuple(range(contracted, kernel.ndim))
    of_dy = tuple(range(len(tokens), dy.ndim))
    weights = kernel.astype(x.dtype) if cast is None else cast
    (dx,) = pull(_rounded(dy, weights, (of_dy, results)))
    dw = _summed_over_tokens(a, dy, tokens, activation is not None)
    return dx, dw.astype(kernel.dtype), None


def _summed_over_tokens(a, dy, tokens, computed: bool):
    """[axes of a, axes of dy] in float32. computed: whether a is a result of others on the way."""

    def plain(a, dy):
        return jnp.tensordot(a, dy, (tokens, tokens), preferred_element_type=jnp.float32)

    def swapped(a, dy):
        # The first operand is transposed for its product. A CPU computes what is fused into that
        # number by number, a GELU ten times slower. Without the barrier the two are swapped back.
        dw = jax.lax.optimization_barrier(plain(dy, a))
        own = range(dy.ndim - len(tokens))
        return jnp.moveaxis(dw, tuple(own), tuple(axis - len(own) for axis in own))

    if not computed:
        return plain(a, dy)
    return jax.lax.platform_dependent(a, dy, cpu=swapped, default=plain)


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def add_bias(x, bias):
    """x + bias over the last axes, in the dtype of x: [..., axes of bias].

    The gradient of the bias is summed over tokens in float32 and keeps its dtype.
    """
    return x + bias.astype(x.dtype)


def _add_bias_forward(x, bias):
    return add_bias(x, bias), bias


def _add_bias_backward(bias, dy):
    tokens = tuple(range(dy.ndim - bias.ndim))
    return dy, dy.astype(jnp.float32).sum(tokens).astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def scores(a, b, equation: str):
    """The product of two arrays that an einsum equation says, summed and returned in float32.

    a: in the compute dtype. b: cast to that of a; its gradient is summed in float32 and has its own
    dtype. Every letter that only one of them has is one of the result.
    """
    return jnp.einsum(equation, a, b.astype(a.dtype), preferred_element_type=jnp.float32)


def _scores_forward(a, b, equation):
    return scores(a, b, equation), (a, b)


def _scores_backward(equation, kept, dy):
    a, b = kept
    ends, result = equation.split("->")
    of_a, of_b = ends.split(",")
    dy = dy.astype(a.dtype)
    da = jnp.einsum(f"{result},{of_b}->{of_a}", dy, b.astype(a.dtype))
    db = jnp.einsum(f"{result},{of_a}->{of_b}", dy, a, preferred_element_type=jnp.float32)
    return da, db.astype(b.dtype)


scores.defvjp(_scores_forward, _scores_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(scores, dtype):
    """Softmax over the last axis of float32 scores, returned in `dtype`, which is all it keeps."""
    return jax.nn.softmax(scores, axis=-1).astype(dtype)


def _softmax_forward(scores, dtype):
    p = softmax(scores, dtype)
    return p, p


def _softmax_backward(dtype, p, dp):
    del dtype
    p, dp = p.astype(jnp.float32), dp.astype(jnp.float32)
    return (p * (dp - (p * dp).sum(-1, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)


@jax.custom_vjp
def cross_entropy(logits, labels):
    """Negative log likelihood of labels, and whether they are the likeliest.

    No array of log-probabilities is made. A label whose logit is one of several largest is taken
    for the likeliest.

    Args:
      logits: float32 [..., V].
      labels: int [...], each in [0, V).

    Returns:
      (nll, hit): float32 [...] each.
    """
    return _cross_entropy_forward(logits, labels)[0]


def _cross_entropy_forward(logits, labels):
    # The largest logit and what is added to it stay apart: their sum would round.
    largest = logits.max(-1)
    more = jnp.log(jnp.exp(logits - largest[..., None]).sum(-1))
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    hit = (chosen >= largest).astype(jnp.float32)
    return (more + (largest - chosen), hit), (logits, labels, largest, more)


def _cross_entropy_backward(kept, cotangents):
    logits, labels, largest, more = kept
    of_nll, _ = cotangents
    p = jnp.exp(logits - largest[..., None] - more[..., None])
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    chosen = (labels[..., None] == classes).astype(jnp.float32)
    return (p - chosen) * of_nll[..., None], None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def soft_cross_entropy(logits, others, temperature: float):
    """Cross entropy of softmax(logits / T) with the probabilities softmax(others / T).

    Neither probabilities nor their logarithms are kept, and no gradient goes to `others`.

    Args:
      logits: float32 [..., V].
      others: the same.
      temperature: T.

    Returns:
      float32 [...].
    """
    return _soft_cross_entropy_forward(logits, others, temperature)[0]


def _soft_cross_entropy_forward(logits, others, temperature):
    z = logits / temperature
    largest = z.max(-1, keepdims=True)
    more = jnp.log(jnp.exp(z - largest).sum(-1, keepdims=True))
    p = jax.nn.softmax(others / temperature)
    # Finite where a logit is -1e30 to say that it is not there, in both.
    found = (p * (largest - z)).sum(-1) + more[..., 0]
    return found, (logits, others, largest, more)


def _soft_cross_entropy_backward(temperature, kept, dy):
    logits, others, largest, more = kept
    ours = jnp.exp(logits / temperature - largest - more)
    theirs = jax.nn.softmax(others / temperature)
    return (ours - theirs) * (dy / temperature)[..., None], None


soft_cross_entropy.defvjp(_soft_cross_entropy_forward, _soft_cross_entropy_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, epsilon: float):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis.

    Source: Ba et al. 2016, arXiv 1607.06450. x: [..., H], any dtype; scale, bias: [H]. Returns
    float32; the variance is the mean of squared distances. Keeps x, and float32 [..., 1] twice.
    """
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    y = centred * (inverse * scale.astype(jnp.float32)) + bias.astype(jnp.float32)
    return y, (x, scale, bias, mean, inverse)


def _layer_norm_backward(epsilon, kept, dy):
    del epsilon
    x, scale, bias, mean, inverse = kept
    normalised = (x.astype(jnp.float32) - mean) * inverse
    d = dy * scale.astype(jnp.float32)
    along = (d * normalised).mean(-1, keepdims=True)
    dx = inverse * (d - d.mean(-1, keepdims=True) - normalised * along)
    rows = tuple(range(x.ndim - 1))
    dscale, dbias = (dy * normalised).sum(rows), dy.sum(rows)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
