"""A tiny model, random weights for any config, and weights to compare."""

import dataclasses

import numpy as np

from albert.interop.weights import Weights, parameter_shapes
from albert.models.config import AlbertConfig

TINY = AlbertConfig(
    vocab_size=50,
    embedding_size=8,
    hidden_size=16,
    num_hidden_layers=3,
    sharing="all",
    per_layer_norm=False,
    lora_rank=0,
    inner_group_num=1,
    num_attention_heads=2,
    intermediate_size=32,
    hidden_act="gelu",
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    least_depth=0,
    positions="learned",
    max_position_embeddings=12,
    type_vocab_size=2,
    initializer_range=0.02,
    map_equal_embeddings=False,
    dtype="float32",
    param_dtype="float32",
    remat="none",
    attention="auto",
    scan_unroll=1,
)


def random_rows(rows=3, length=10, vocab=50, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int32)
    mask[0, length // 2 :] = 0
    return (
        rng.integers(0, vocab, (rows, length)).astype(np.int32),
        mask,
        rng.integers(0, 2, (rows, length)).astype(np.int32),
    )


def random_weights(seed=0, lacking=(), moments=False, **changes) -> Weights:
    """Normal numbers everywhere, biases and LayerNorm scales too, so that nothing hides."""
    config = dataclasses.replace(TINY, **changes)
    rng = np.random.default_rng(seed)

    def draw():
        return {
            path: rng.normal(path.endswith("scale"), 0.2, shape).astype(np.float32)
            for path, shape in parameter_shapes(config).items()
            if path.split("/")[0] not in lacking
        }

    weights = Weights(config, draw())
    if moments:
        weights.step, weights.mu, weights.nu = 7, draw(), draw()
    return weights


def assert_same(ours: Weights, theirs: Weights) -> None:
    """Bit-equal parameters of equal models."""
    assert ours.config == theirs.config
    assert ours.params.keys() == theirs.params.keys()
    for path, value in ours.params.items():
        assert value.dtype == theirs.params[path].dtype
        assert value.tobytes() == theirs.params[path].tobytes(), path
