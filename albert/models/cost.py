"""What a model costs in closed form: parameters, operations, what a layer keeps."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax

from albert.models.attention import KERNELS
from albert.models.config import DTYPES, AlbertConfig


def parameters_by_part(params) -> dict[str, int]:
    """Number of parameters of each part of a tree, abstract or not, the encoder's first."""
    params = nn.meta.unbox(params)

    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    parts = {part: count(tree) for part, tree in params.items() if part != "encoder"}
    layers = params.get("encoder", {})
    encoder = {part: count(tree) for part, tree in layers.items()}
    in_order = ("embeddings", "embedding_hidden_mapping_in", "layers", "pooler")
    found = parts | encoder
    return {part: found[part] for part in (*in_order, *parts) if part in found}


def without_heads(parts: dict[str, int]) -> int:
    """Parameters of the encoder, its embeddings and the pooler, which is what papers count."""
    return sum(n for part, n in parts.items() if not part.endswith("_head"))


def encoder_flops(config: AlbertConfig, length: int) -> float:
    """Model FLOPs of the encoder in one training step, for each token of rows of this length.

    6 * (parameters used per token, every pass through a layer counted) + 12 * N * L * H for the
    attention products: the forward pass and twice as much for the backward pass. Nothing is added
    for what remat computes again. The pooler is a head's matter: it sees one token of a row.
    """
    h, e, i = config.hidden_size, config.embedding_size, config.intermediate_size
    layers = config.depth
    used: float = layers * (4 * h * h + 2 * h * i)
    # A difference of rank r to a kernel [n, m] takes r * (n + m) more.
    used += layers * config.low_rank(attention=True) * 4 * 2 * h
    used += layers * config.low_rank(attention=False) * 2 * (h + i)
    used += e * h if config.maps_embeddings else 0
    return 6 * used + 12 * layers * length * h


class Layout(NamedTuple):
    """How a device holds what a layer keeps."""

    lanes: int = 1  # to a multiple of so many a head's width is filled up: 128 on TPUs
    heads: int = 1  # devices that share the heads
    mlp: int = 1  # devices that share the feed-forward width


WHOLE = Layout()


def layer_bytes(
    config: AlbertConfig, length: int, remat: str, kernel: str = "xla", layout: Layout = WHOLE
) -> int:
    """Bytes for each token of rows of this length that one layer keeps for the backward pass, on
    each of the devices that share it.

    Nothing computed again, in the compute dtype: its input, q, k, v, context, the input of either
    LayerNorm and what comes of the first (8 H), and the feed-forward product in front of its
    activation (I); in float32: mean and deviation of each LayerNorm; what the attention kernel
    keeps; dropout masks of a byte. With "dots" its input and its dense products; with "full" its
    input alone. Compilers are held to it (`tests/test_compilers.py`).
    """
    h, i = config.hidden_size, config.intermediate_size // layout.mlp
    heads = config.num_attention_heads // layout.heads
    width = h // config.num_attention_heads
    of_heads = heads * layout.lanes * math.ceil(width / layout.lanes)  # of each of q, k, v, context
    item = DTYPES[config.dtype](0).dtype.itemsize
    if remat == "full":
        return item * h
    if remat == "dots":
        return item * (3 * h + 3 * of_heads + i)
    kept = item * (4 * h + 4 * of_heads + i) + 4 * 4
    kept += KERNELS[kernel].kept(heads, width, length, item)
    if config.hidden_dropout_prob:
        kept += 2 * h
    if config.attention_probs_dropout_prob:
        kept += heads * length
    return kept
