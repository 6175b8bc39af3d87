"""What a config costs, in closed form: parameters, operations, memory. Touches no device."""

import dataclasses
import json
import math

import flax.linen as nn
import jax

from albert.models.attention import KERNELS, candidates
from albert.models.config import AUTO_DTYPE, REMAT_POLICIES
from albert.models.cost import (
    encoder_activation_bytes,
    layer_bytes,
    parameters_by_part,
    without_heads,
)
from albert.tasks import find_task
from albert.train.config import Config
from albert.train.optimizers import make_optimizer


def parameters_of(config: Config) -> dict[str, int]:
    """Number of parameters of each part of a config's model."""
    task = find_task(config.task)
    return parameters_by_part(task.abstract_params(task.make_model(config)))


def state_bytes(config: Config) -> dict[str, int]:
    """Bytes of parameters, their gradients and the optimizer's slots, over all devices."""
    task = find_task(config.task)
    params = nn.meta.unbox(task.abstract_params(task.make_model(config)))
    optimizer, _ = make_optimizer(config.optimizer, config.train.num_steps, task.kept(config))
    slots = jax.eval_shape(optimizer.init, params)

    def size(tree):
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    return {"parameters": size(params), "gradients": size(params), "optimizer": size(slots)}


def activation_bytes(config: Config) -> int:
    """Estimate of what one part of one batch needs for the backward pass, at its peak; see
    `encoder_activation_bytes`."""
    task = find_task(config.task)
    rows = config.train.batch_size // config.train.accumulation
    heads = rows * task.head_bytes_per_row(config)
    return encoder_activation_bytes(config.model, rows, task.tokens_per_row(config)) + heads


def describe(config: Config) -> dict:
    """Every figure that `--describe` prints, JSON-serialisable; of bfloat16 where the dtype is
    chosen by the machine that trains."""
    if config.model.dtype == AUTO_DTYPE:
        model = dataclasses.replace(config.model, dtype="bfloat16")
        config = dataclasses.replace(config, model=model)
    task = find_task(config.task)
    parts = parameters_of(config)
    use, named = task.attention_use(config), candidates(config.model.attention)
    kernels = [name for name in named if use is None or not KERNELS[name].problems(use)]
    length = use.length if use else task.tokens_per_row(config)
    tokens = config.train.batch_size * task.tokens_per_row(config)
    per_token = task.flops_per_row(config) / task.tokens_per_row(config)
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
        "kept_bytes_per_token_and_layer": {
            kernel: {
                remat: layer_bytes(config.model, length, remat, kernel) for remat in REMAT_POLICIES
            }
            for kernel in kernels
        },
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
    if config.train.epochs:
        told = "the data tells the number of steps, which is not this one"
        print(f"  train.epochs is {config.train.epochs}: {told}")
    print("\nMemory over all devices, GB")
    if config.model.dtype == AUTO_DTYPE:
        print("  (model.dtype is auto; as if bfloat16 were chosen)")
    for name, size in facts["state_bytes"].items():
        print(f"  {name:<28}{size / 1e9:>13.3f}")
    print(f"  {'activations (estimate)':<28}{facts['activation_bytes_estimated'] / 1e9:>13.3f}")
    print("\nKept for the backward pass, bytes for each token and layer")
    print(f"  {'attention':<12}" + "".join(f"{'remat ' + name:>14}" for name in REMAT_POLICIES))
    for kernel, sizes in facts["kept_bytes_per_token_and_layer"].items():
        print(f"  {kernel:<12}" + "".join(f"{size:>14,}" for size in sizes.values()))
    print()
    print(json.dumps(facts))
