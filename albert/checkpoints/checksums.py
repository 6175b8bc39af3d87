"""Sums of arrays that tell damage, wherever their parts lie."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Two independent sums of 32 bits each.
_MIXERS = ((0x9E3779B1, 0x85EBCA6B), (0xC2B2AE35, 0x27D4EB2F))
_CHUNK = 1 << 18  # elements that the host sums at once, so that they stay in its cache


def leaf_names(tree) -> dict[str, Any]:
    """The leaves of a tree by their path, such as "encoder/layers/output/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def array_sums(tree):
    """Two sums of the bits of every leaf, uint32 [leaves, 2], in the order of `leaf_names`.

    Each is the sum over elements of bits(x_i) * m_i modulo 2^32 with an odd m_i of its own for
    every place i: whatever the mesh, whatever the order of summing, the same numbers. A single
    flipped bit changes both for certain, since 2^k * m_i is never 0; any other damage is missed
    once in 2^64. Run it under `jax.jit`.
    """
    return jnp.stack([_device_sums(leaf) for leaf in leaf_names(tree).values()])


def _device_sums(x) -> jax.Array:
    words = _words(jnp.asarray(x), jax.lax.bitcast_convert_type, jnp)
    place = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.stack([jnp.sum(words * _multiplier(place, *m), dtype=jnp.uint32) for m in _MIXERS])


def host_sums(x: np.ndarray) -> tuple[int, int]:
    """The same of an array on the host."""
    words = _words(np.ascontiguousarray(x), lambda x, dtype: x.view(dtype), np).reshape(-1)
    totals = [0 for _ in _MIXERS]
    for begin in range(0, words.size, _CHUNK):
        part = words[begin : begin + _CHUNK]
        place = np.arange(begin, begin + part.size, dtype=np.uint64).astype(np.uint32)
        for number, mixer in enumerate(_MIXERS):
            totals[number] += int(np.sum(part * _multiplier(place, *mixer), dtype=np.uint32))
    return totals[0] % 2**32, totals[1] % 2**32


def _words(x, view, numpy):
    """The bits of an array as uint32; of 64 bits as two, in memory order."""
    size = x.dtype.itemsize
    if x.dtype == bool:
        return x.astype(numpy.uint32)
    if size == 8:
        return view(x.reshape(*x.shape, 1), numpy.uint32).reshape(*x.shape, 2)
    return view(x, {1: numpy.uint8, 2: numpy.uint16, 4: numpy.uint32}[size]).astype(numpy.uint32)


def _multiplier(place, first: int, second: int):
    """An odd number for every place, far from regular."""
    mixed = place * np.uint32(first)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(second)
    return mixed | np.uint32(1)
