"""What a config costs, in closed form: parameters, operations, memory. Touches no device."""

import dataclasses
import json
import math
from collections.abc import Sequence

import flax.linen as nn
import jax

from albert.interop.weights import Weights
from albert.models.attention import KERNELS, candidates
from albert.models.config import AUTO_DTYPE, REMAT_POLICIES, AlbertConfig
from albert.models.cost import (
    WHOLE,
    Layout,
    layer_bytes,
    parameters_by_part,
    without_heads,
)
from albert.models.encoder import abstract_params
from albert.tasks import find_task
from albert.train.config import Config, rows_at_once
from albert.train.optimizers import make_optimizer
from albert.train.phases import phases_of
from albert.train.teacher import teacher_model


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


def activation_bytes_per_row(
    config: Config,
    teacher: AlbertConfig | None = None,
    kernel: str | None = None,
    layout: Layout = WHOLE,
    shares_of_vocabulary: int = 1,
) -> int:
    """Estimate of what a row that is computed needs at its peak, on each of the devices that share
    it: what all layers keep for the backward pass, one layer that is being computed or computed
    again, what the heads keep, and what learning from a teacher takes.

    Args:
      teacher: sizes of `config.distillation`'s; None: there is none.
      kernel: of attention; None: the plain one, or the one that the config names.
      layout: how a device holds what a layer keeps.
      shares_of_vocabulary: devices that share each position's logits.
    """
    task, model = find_task(config.task), config.model
    use, tokens = task.attention_use(config), task.tokens_per_row(config)
    length = use.length if use else tokens
    kernel = kernel or candidates(model.attention)[0]
    kept = model.depth * layer_bytes(model, length, model.remat, kernel, layout)
    at_work = layer_bytes(model, length, "none", kernel, layout)
    needed = tokens * (kept + at_work) + task.head_bytes_per_row(config) // shares_of_vocabulary
    if teacher is not None:
        taught = teacher_bytes_per_row(config, teacher, kernel, layout)
        # Its layers are computed when nothing is kept yet.
        needed = max(needed, taught["layer"])
        needed += taught["logits"] // shares_of_vocabulary + taught["relations"]
    return needed


def teacher_bytes_per_row(
    config: Config, teacher: AlbertConfig, kernel: str, layout: Layout = WHOLE
) -> dict[str, int]:
    """Estimate of what learning from a teacher takes of a row: the layer that is computed, since
    none is kept for a backward pass; its logits and their softmax, in float32; relations of tokens,
    [parts, L, L] in float32 of both models and the gradient of the student's."""
    task, section = find_task(config.task), config.distillation
    use, tokens = task.attention_use(config), task.tokens_per_row(config)
    length = use.length if use else tokens
    of_teacher = dataclasses.replace(config, model=teacher)
    parts = section.parts(config.model.num_attention_heads) if section.relation_weight else 0
    return {
        "layer": tokens * layer_bytes(teacher, length, "none", kernel, layout),
        "logits": 2 * task.head_bytes_per_row(of_teacher) // 3 if section.share else 0,
        "relations": 3 * 4 * parts * length * tokens,
    }


def activation_bytes(config: Config, teacher: AlbertConfig | None = None) -> int:
    """Estimate of what one part of a batch needs at its peak, over all devices; where
    `train.microbatch` says how large a part is, over as few devices as `config.sharding` allows.
    See `activation_bytes_per_row`."""
    number = config.sharding.fewest_devices
    rows = rows_at_once(config, number) * config.sharding.shares("batch", number)
    return rows * activation_bytes_per_row(config, teacher)


def flops_per_row(config: Config, teacher: AlbertConfig | None) -> float:
    """Model FLOPs of one training step for each row; a teacher's are those of its forward pass, a
    third of what it would take to train it."""
    task = find_task(config.task)
    flops = task.flops_per_row(config)
    if teacher is not None:
        flops += task.flops_per_row(dataclasses.replace(config, model=teacher)) / 3
    return flops


def in_bfloat16(config: Config) -> Config:
    """The config as if bfloat16 were chosen, where the machine that trains chooses the dtype."""
    if config.model.dtype != AUTO_DTYPE:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))


def describe(config: Config, teacher: Weights | None = None) -> dict:
    """Every figure that `--describe` prints, JSON-serialisable; of bfloat16 where the dtype is
    chosen by the machine that trains. teacher: that of `config.distillation`."""
    config = in_bfloat16(config)
    task = find_task(config.task)
    parts = parameters_of(config)
    use, named = task.attention_use(config), candidates(config.model.attention)
    kernels = [name for name in named if use is None or not KERNELS[name].problems(use)]
    length = use.length if use else task.tokens_per_row(config)
    tokens = config.train.batch_size * task.tokens_per_row(config)
    taught_by = teacher_model(config, teacher) if teacher else None
    sizes_of_teacher = taught_by.config if taught_by else None
    per_row = flops_per_row(config, sizes_of_teacher)
    per_token = per_row / task.tokens_per_row(config)
    held = state_bytes(config)
    of_teacher = {}
    if taught_by is not None:
        count = sum(parameters_by_part(abstract_params(taught_by)).values())
        needed = teacher_bytes_per_row(config, taught_by.config, kernels[0])
        of_teacher = {"teacher_parameters": count, "teacher_bytes_per_row_estimated": needed}
        held["teacher"] = 4 * count  # float32
    return {
        "parameters": sum(parts.values()),
        "parameters_by_part": parts,
        "parameters_without_heads": without_heads(parts),
        **of_teacher,
        "flops_per_token": per_token,
        "tokens_per_step": tokens,
        "steps": config.train.num_steps,
        "flops_of_run": sum(
            (phase.end - phase.first)
            * phase.config.train.batch_size
            * flops_per_row(phase.config, sizes_of_teacher)
            for phase in phases_of(config)
        ),
        "state_bytes": held,
        "activation_bytes_estimated": activation_bytes(config, sizes_of_teacher),
        "kept_bytes_per_token_and_layer": {
            kernel: {
                remat: layer_bytes(config.model, length, remat, kernel) for remat in REMAT_POLICIES
            }
            for kernel in kernels
        },
    }


def print_description(
    config: Config,
    teacher: Weights | None = None,
    planned: Sequence[str] = (),
    planned_facts: Sequence[dict] = (),
) -> None:
    """Prints the config and its costs for a person; the last line is one JSON object.

    Args:
      teacher: that of `config.distillation`.
      planned, planned_facts: what `albert.train.capacity` says of some devices, as lines and for
        each phase.
    """
    facts = describe(config, teacher) | ({"plans": planned_facts} if planned_facts else {})
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
    if teacher:
        print(f"  {'of the teacher, beside them':<28}{facts['teacher_parameters']:>13,}")
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
    if of_teacher := facts.get("teacher_bytes_per_row_estimated"):
        of_row = ", ".join(f"{what} {size / 1e6:.3g}" for what, size in of_teacher.items())
        print(f"  of the teacher, MB for each row that is computed at once: {of_row}")
    print("\nKept for the backward pass, bytes for each token and layer")
    print(f"  {'attention':<12}" + "".join(f"{'remat ' + name:>14}" for name in REMAT_POLICIES))
    for kernel, sizes in facts["kept_bytes_per_token_and_layer"].items():
        print(f"  {kernel:<12}" + "".join(f"{size:>14,}" for size in sizes.values()))
    print("\n".join(["", *planned]))
    print(json.dumps(facts))
