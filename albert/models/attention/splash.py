"""The TPU's fused attention, jax's Splash kernel: nothing of size [L, L] is ever in memory.

Tokens see those with the same segment number; padding is a segment of its own. Rows are filled up
to the lanes of the chip with more padding.
"""

import math
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp

from albert.models.attention.base import Kernel, Use, kept_by_fused, not_without_dropout

_LANES = 128  # blocks are multiples of them
_BLOCK = 512  # the largest: at L 512 one block is a third faster than four
_NAMES = ("batch", "length", "heads", "head_dim")


def block_size(length: int) -> int:
    """The largest block that cuts a row of a multiple of 128 tokens into equal parts."""
    return next(b for b in range(min(_BLOCK, length), 0, -_LANES) if length % b == 0)


def prepare(attention_mask, segment_ids, most: int):
    """int [B, L], int [B, L] or None -> int32 [B, L]: numbers of segments, 0 for padding."""
    del most
    numbers = attention_mask > 0 if segment_ids is None else segment_ids
    return numbers.astype(jnp.int32)


def _attend_here(q, k, v, segments, interpret: bool):
    """On one device: [B, A, L, D] three times, int32 [B, L] -> [B, A, L, D]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_kernel as splash,
        )
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_mask as masks,
        )

    _, heads, length, _ = q.shape
    block = block_size(length)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((length, length))] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    return jax.vmap(kernel)(q, k, v, segment_ids=splash.SegmentIds(segments, segments))


def attend(q, k, v, segments, dropout=None, *, interpret: bool = False):
    """softmax(q k^T / sqrt(D)) v within every segment. `interpret`: without a TPU, slowly."""
    not_without_dropout("splash", dropout)
    length = q.shape[1]
    more = -length % _LANES
    q = q / math.sqrt(q.shape[-1])
    q, k, v = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in (q, k, v))
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    segments = jnp.pad(segments, ((0, 0), (0, more)))

    def here(q, k, v, segments):
        return _attend_here(q, k, v, segments, interpret)

    if not jax.sharding.get_abstract_mesh().empty:
        # The compiler cannot cut a kernel by itself; rows and heads are apart from one another.
        batch, _, heads, _ = nn.logical_to_mesh_axes(_NAMES) or (None,) * 4
        spec = jax.sharding.PartitionSpec
        rows = spec(batch, heads)
        here = jax.shard_map(
            here,
            in_specs=(rows, rows, rows, spec(batch)),
            out_specs=rows,
            check_vma=False,
        )
    return jnp.swapaxes(here(q, k, v, segments), 1, 2)[:, :length]


def problems(use: Use) -> list[str]:
    found = []
    if use.backend not in (None, "tpu"):
        found.append(f"Splash is not there on {use.backend}, only on TPUs")
    if use.dropout:
        found.append("Splash has no dropout")
    if use.dtype == "float16":
        found.append("Splash is for bfloat16 and float32, not float16")
    return found


KERNEL = Kernel(prepare, attend, problems, kept_by_fused)
