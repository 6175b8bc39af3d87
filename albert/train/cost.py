"""What a config costs, in closed form: parameters, operations, memory. Touches no device."""

import dataclasses
import json
import math

import flax.linen as nn
import jax

from albert.models.config import DTYPES, AlbertConfig
from albert.models.encoder import Albert, abstract_params
from albert.train.config import Config
from albert.train.optimizers import make_optimizer


def parameters_by_part(config: AlbertConfig) -> dict[str, int]:
    """Number of parameters of each part of the model."""
    params = nn.meta.unbox(abstract_params(Albert(config)))

    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    encoder = params["encoder"]
    parts = {"embeddings": count(params["embeddings"])}
    if "embedding_hidden_mapping_in" in encoder:
        parts["embedding_hidden_mapping_in"] = count(encoder["embedding_hidden_mapping_in"])
    parts["layers"] = count(encoder["layers"])
    parts["pooler"] = count(params["pooler"])
    parts["mlm_head"] = count(params["mlm_head"])
    parts["sop_head"] = count(params["sop_head"])
    return parts


def without_heads(parts: dict[str, int]) -> int:
    """Parameters of the encoder, its embeddings and the pooler, which is what papers count."""
    return sum(n for part, n in parts.items() if part not in ("mlm_head", "sop_head"))


def flops_per_token(config: AlbertConfig, seq_length: int, max_predictions: int) -> float:
    """Model FLOPs of one training step for each of the B * L positions.

    6 * (parameters used per token, every pass through a layer counted, the head only at masked
    positions) + 12 * N * L * H for the attention products: the forward pass and twice as much
    for the backward pass. Nothing is added for what remat computes again.
    """
    h, e, i = config.hidden_size, config.embedding_size, config.intermediate_size
    layers = config.depth
    used: float = layers * (4 * h * h + 2 * h * i)
    # A difference of rank r to a kernel [n, m] takes r * (n + m) more.
    used += layers * config.low_rank(attention=True) * 4 * 2 * h
    used += layers * config.low_rank(attention=False) * 2 * (h + i)
    used += e * h if config.maps_embeddings else 0
    used += (h * e + e * config.vocab_size) * max_predictions / seq_length
    used += (h * h + 2 * h) / seq_length
    return 6 * used + 12 * layers * seq_length * h


def state_bytes(config: Config) -> dict[str, int]:
    """Bytes of parameters, their gradients and the optimiser's slots, over all devices."""
    params = nn.meta.unbox(abstract_params(Albert(config.model)))
    optimizer, _ = make_optimizer(config.optimizer, config.train.num_steps)
    slots = jax.eval_shape(optimizer.init, params)

    def size(tree):
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    return {"parameters": size(params), "gradients": size(params), "optimizer": size(slots)}


def activation_bytes(config: Config) -> int:
    """Estimate of what one part of one batch needs for the backward pass, at its peak.

    Counts what each layer keeps. In the compute dtype: q, k, v, context and both outputs (6 H)
    and the feed-forward input with the steps of its activation (4 I); in float32: three arrays
    for each LayerNorm, and scores and softmax, which is cast as well; dropout masks of a byte.
    With a remat policy all layers keep less and one is computed again. To that come three
    float32 arrays of MLM logits. Compilers fuse more or less: take it within a factor of two.
    """
    model = config.model
    rows = config.train.batch_size // config.train.accumulation
    tokens, length = rows * config.data.seq_length, config.data.seq_length
    h, i, heads = model.hidden_size, model.intermediate_size, model.num_attention_heads
    item = DTYPES[model.dtype](0).dtype.itemsize
    dense = item * (6 * h + 4 * i)
    scores = heads * length * (4 + 4 + item)
    layer = tokens * (dense + scores + 4 * 2 * 3 * h)
    if model.hidden_dropout_prob:
        layer += tokens * 2 * h
    if model.attention_probs_dropout_prob:
        layer += tokens * heads * length
    kept = {
        "none": layer,
        "dots": item * tokens * (7 * h + i),  # the layer's input and its dense products
        "full": item * tokens * h,
    }[model.remat]
    depth = model.depth
    again = 0 if model.remat == "none" else layer
    logits = 3 * 4 * rows * config.data.max_predictions * model.vocab_size
    return depth * kept + again + logits


def describe(config: Config) -> dict:
    """Every figure that `--describe` prints, JSON-serialisable."""
    parts = parameters_by_part(config.model)
    tokens = config.train.batch_size * config.data.seq_length
    per_token = flops_per_token(config.model, config.data.seq_length, config.data.max_predictions)
    return {
        "parameters": sum(parts.values()),
        "parameters_by_part": parts,
        "parameters_without_heads": without_heads(parts),
        "flops_per_token": per_token,
        "tokens_per_step": tokens,
        "steps": config.train.num_steps,
        "flops_of_run": config.train.num_steps * tokens * per_token,
        "state_bytes": state_bytes(config),
        "activation_bytes_estimated": activation_bytes(config),
    }


def print_description(config: Config) -> None:
    """Prints the config and its costs for a person; the last line is one JSON object."""
    facts = describe(config)
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        if not dataclasses.is_dataclass(value):
            print(f"{section.name}: {value!r}")
            continue
        print(f"{section.name}:")
        for field in dataclasses.fields(value):
            print(f"  {field.name}: {getattr(value, field.name)!r}")
    print("\nParameters")
    for name, count in facts["parameters_by_part"].items():
        print(f"  {name:<28}{count:>13,}")
    print(f"  {'total':<28}{facts['parameters']:>13,}")
    print(f"  {'without heads, as in papers':<28}{facts['parameters_without_heads']:>13,}")
    print("\nCost")
    print(f"  {'FLOPs per token':<28}{facts['flops_per_token']:>13.4g}")
    print(f"  {'tokens per step':<28}{facts['tokens_per_step']:>13,}")
    print(f"  {'steps':<28}{facts['steps']:>13,}")
    print(f"  {'FLOPs of the run':<28}{facts['flops_of_run']:>13.4g}")
    print("\nMemory over all devices, GB")
    for name, size in facts["state_bytes"].items():
        print(f"  {name:<28}{size / 1e9:>13.3f}")
    print(f"  {'activations (estimate)':<28}{facts['activation_bytes_estimated'] / 1e9:>13.3f}\n")
    print(json.dumps(facts))
