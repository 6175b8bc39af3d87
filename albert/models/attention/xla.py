"""The plain path: written out, fused by XLA as it likes. The only one with attention dropout."""

import math

import jax.numpy as jnp

from albert.models import lean
from albert.models.attention.base import Kernel


def prepare(attention_mask, segment_ids, most: int = 1):
    """int [B, L], int [B, L] or None -> a bias, float32 [B, 1, 1 or L, L]."""
    del most
    if segment_ids is None:
        seen = attention_mask[:, None, None, :]
    else:
        seen = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    # Finite even for a row of padding only: its softmax is uniform, never 0/0.
    return (1.0 - seen.astype(jnp.float32)) * -10000.0


def probabilities(q, k, bias, dtype=jnp.float32):
    """[B, L, A, D] twice, a bias of `prepare` -> [B, A, L, L] in `dtype`."""
    scores = lean.scores(q, k, "BLAD,BMAD->BALM")
    return lean.softmax(scores / math.sqrt(q.shape[-1]) + bias, dtype)


def attend(q, k, v, bias, dropout=None):
    """softmax(q k^T / sqrt(D) + bias) v, scores and softmax in float32."""
    p = probabilities(q, k, bias, q.dtype)
    return jnp.einsum("BALM,BMAD->BLAD", dropout(p) if dropout else p, v)


def kept(heads: int, head_dim: int, length: int, item: int) -> int:
    """The probabilities."""
    del head_dim
    return item * heads * length


KERNEL = Kernel(prepare, attend, problems=lambda use: [], kept=kept)
