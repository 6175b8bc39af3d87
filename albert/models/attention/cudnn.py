"""NVIDIA's fused attention, from cuDNN: nothing of size [L, L] is ever in memory.

Padded rows go by their lengths, packed rows by the offsets of their examples. For the latter jax
has no public function; the one that it has is asked for here alone, and only where it is as known.

What cuDNN writes for padding is not defined, so what comes out is set to zero there, and so are the
gradients of queries, keys and values.
"""

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from albert.models.attention.base import Kernel, Use, kept_by_fused, not_without_dropout

_PARAMETERS = {"q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "scale", "mask_type"}
_OLDEST = 8.0  # compute capability that has the kernel
_PACKED = 9.0  # and that has it for packed rows
_WIDEST = {_OLDEST: 128, _PACKED: 256}  # D


class Rows(NamedTuple):
    """Where the examples of every row are."""

    real: jax.Array  # bool [B, L, 1, 1]
    lengths: jax.Array  # int32 [B], or [B, M] of packed rows, -1 for filling
    offsets: jax.Array | None  # int32 [B, M + 1], -1 for filling


def _packed_attention() -> tuple[Callable, Any] | None:
    """jax's function for packed rows and its kinds of masks; None where it is not as known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from jax._src.cudnn import fused_attention_stablehlo as module

            known = set(inspect.signature(module.dot_product_attention).parameters)
            return (module.dot_product_attention, module.MaskType) if known >= _PARAMETERS else None
    except (ImportError, AttributeError):
        return None


def prepare(attention_mask, segment_ids, most: int) -> Rows:
    """int [B, L], int [B, L] or None, the most examples in a row -> where they are."""
    real = (attention_mask > 0)[:, :, None, None]
    if segment_ids is None or most == 1:
        return Rows(real, attention_mask.sum(1, dtype=jnp.int32), None)
    numbers = jnp.arange(1, most + 1)
    lengths = (segment_ids[:, None] == numbers[:, None]).sum(-1, dtype=jnp.int32)
    begins = jnp.cumsum(lengths, axis=1) - lengths
    there = lengths > 0
    begins = jnp.pad(jnp.where(there, begins, -1), ((0, 0), (0, 1)), constant_values=-1)
    return Rows(real, jnp.where(there, lengths, -1), begins)


def attend(q, k, v, rows: Rows, dropout=None):
    """softmax(q k^T / sqrt(D)) v within every example."""
    not_without_dropout("cudnn", dropout)
    q, k, v = (_zero_gradient(x, rows.real) for x in (q, k, v))
    scale = 1 / math.sqrt(q.shape[-1])
    if rows.offsets is None:
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=scale,
            query_seq_lengths=rows.lengths,
            key_value_seq_lengths=rows.lengths,
            implementation="cudnn",
        )
    else:
        found = _packed_attention()
        if found is None:
            raise ValueError(_no_packed_rows())
        function, masks = found
        out = function(
            q,
            k,
            v,
            q_seqlen=rows.lengths,
            kv_seqlen=rows.lengths,
            q_offsets=rows.offsets,
            kv_offsets=rows.offsets,
            scale=scale,
            mask_type=masks.PADDING,
        )
    return _zero_value(out, rows.real)


def _zero(x, real):
    """x [B, L, A, D] where real, and zero elsewhere."""
    # Tied to x, or compilers compute [B, L, A, D] of it once, to read it in every layer.
    x, real = jax.lax.optimization_barrier((x, real))
    return jnp.where(real, x, jnp.zeros_like(x))


@jax.custom_vjp
def _zero_value(x, real):
    """x, zero where it is not real; cuDNN does not read the gradient there."""
    return _zero(x, real)


_zero_value.defvjp(lambda x, real: (_zero(x, real), None), lambda _, dx: (dx, None))


@jax.custom_vjp
def _zero_gradient(x, real):
    """x; its gradient is zero where it is not real."""
    del real
    return x


_zero_gradient.defvjp(lambda x, real: (x, real), lambda real, dx: (_zero(dx, real), None))


def _no_packed_rows() -> str:
    return f"jax {jax.__version__} has no attention of cuDNN for packed rows that is known here"


def problems(use: Use) -> list[str]:
    found = []
    capability = float(use.capability) if use.capability.replace(".", "", 1).isdigit() else None
    if use.backend not in (None, "gpu"):
        found.append(f"cuDNN is not there on {use.backend}, only on NVIDIA's GPUs")
    elif use.backend == "gpu" and use.capability and capability is None:
        found.append(f"this GPU, {use.capability}, is none of NVIDIA's")
    elif capability is not None and capability < (_PACKED if use.packed else _OLDEST):
        needed = f"{_PACKED} for packed rows" if use.packed else f"{_OLDEST}"
        found.append(f"this GPU has compute capability {capability}; cuDNN's needs {needed}")
    if use.packed and _packed_attention() is None:
        found.append(_no_packed_rows())
    if use.dtype not in ("bfloat16", "float16"):
        found.append(f"cuDNN's attention is for bfloat16 and float16, not {use.dtype}")
    newest = capability is None or capability >= _PACKED
    widest = _WIDEST[_PACKED if newest else _OLDEST]
    if use.head_dim % 8 or use.head_dim > widest:
        found.append(
            f"cuDNN's attention is for heads of a multiple of 8 up to {widest}, not {use.head_dim}"
        )
    if use.dropout:
        found.append("cuDNN's attention has no dropout that differs from step to step")
    return found


KERNEL = Kernel(prepare, attend, problems, kept_by_fused)
