"""What the compiler says of a training step that is never run: memory, and bytes exchanged."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from albert.tasks.pretraining import Pretraining
from albert.train.config import Config
from albert.train.optimizers import make_optimizer
from albert.train.sharding import MESH_AXES, batch_sharding
from albert.train.step import shard_training

_ITEM = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def bert_of(config: Config) -> Config:
    """The same shape as BERT has it: nothing shared, E = H."""
    model = dataclasses.replace(
        config.model,
        sharing="none",
        embedding_size=config.model.hidden_size,
        per_layer_norm=False,
        lora_rank=0,
    )
    return dataclasses.replace(config, model=model)


def resized(config: Config, rows: int, length: int, predictions: int, **model) -> Config:
    """The same config with so many rows of so many tokens and masked positions."""
    positions = max(length, config.model.max_position_embeddings)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, max_position_embeddings=positions, **model),
        data=dataclasses.replace(config.data, seq_length=length, max_predictions=predictions),
        train=dataclasses.replace(config.train, batch_size=rows, accumulation=1),
    )


def abstract_batch(config: Config, sharding: NamedSharding | None = None) -> dict:
    """Shapes of a training batch without packing; B, L and P from the config."""
    rows, length = config.train.batch_size, config.data.seq_length
    shapes = {
        "input_ids": ((rows, length), jnp.int32),
        "token_type_ids": ((rows, length), jnp.int32),
        "attention_mask": ((rows, length), jnp.int32),
        "mlm_positions": ((rows, config.data.max_predictions), jnp.int32),
        "mlm_labels": ((rows, config.data.max_predictions), jnp.int32),
        "mlm_weights": ((rows, config.data.max_predictions), jnp.float32),
        "sop_labels": ((rows,), jnp.int32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def data_mesh(devices) -> Mesh:
    """A mesh of these devices along the data axis alone."""
    return Mesh(
        np.array(devices).reshape(-1, 1, 1),
        MESH_AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )


def lower_step(config: Config, mesh: Mesh):
    """The loop's training step for these devices, not yet compiled."""
    optimizer, schedule = make_optimizer(config.optimizer, config.train.num_steps)
    state, _, step = shard_training(
        Pretraining(config),
        optimizer,
        schedule,
        config.train.accumulation,
        config.seed,
        mesh,
        config.sharding,
    )
    with jax.set_mesh(mesh), nn.logical_axis_rules(config.sharding.rules):
        return step.lower(state, abstract_batch(config, batch_sharding(mesh, config.sharding)))


def memory(compiled, knows_peak: bool = False) -> dict[str, int]:
    """Bytes per device: "arguments" (parameters, moments and the batch), "temporaries" (gradients
    and activations) and "peak", both together.

    Args:
      compiled: the program.
      knows_peak: whether its compiler says what is live at the same time at most, as the TPU's
        does: its temporaries are a sum that can exceed the memory they fit in. The CPU's leaves
        them out of its peak, and its sum is what is allocated.
    """
    found = compiled.memory_analysis()
    arguments = found.argument_size_in_bytes
    more = found.output_size_in_bytes - found.alias_size_in_bytes
    peak = found.peak_memory_in_bytes if knows_peak else arguments + found.temp_size_in_bytes + more
    return {"arguments": arguments, "temporaries": peak - arguments, "peak": peak}


def exchanged(text: str, turns: int | None = None) -> dict[str, dict[str, int]]:
    """Collective operations of an optimised HLO module: kind -> number and bytes of their results,
    for one run of the program: those in the body of a loop count as often as it turns.

    Asynchronous ones count once, at their start; the result of a start that holds operands as well
    counts by its larger half.

    Args:
      text: the module.
      turns: of loops whose line does not say how often they turn, as the TPU compiler's do not; in
        a training step the one loop with collectives is that over the depth.

    Raises ValueError when that is needed and None.
    """
    lines_of: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
            lines_of[name] = []
        elif name:
            lines_of[name].append(line)

    def count(name: str) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}

        def add(kind: str, number: int, size: int) -> None:
            of_kind = found.setdefault(kind, {"number": 0, "bytes": 0})
            of_kind["number"] += number
            of_kind["bytes"] += size

        for line in lines_of[name]:
            if one := _collective(line):
                add(one[0], 1, one[1])
            for callee in re.findall(r"(?:calls|body|to_apply)=%?([\w.-]+)", line):
                inner = count(callee)
                times = 1
                if inner and " while(" in line:
                    said = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                    if not said and turns is None:
                        raise ValueError(f"a loop with collectives of no known length: {line[:80]}")
                    times = int(said[1]) if said else turns or 1
                for kind, sums in inner.items():
                    add(kind, times * sums["number"], times * sums["bytes"])
        return found

    return count(entry)


def _collective(line: str) -> tuple[str, int] | None:
    match = re.search(rf"= (\(.*?\)|\S+) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
    if not match:
        return None
    sizes = [
        _ITEM[dtype] * int(np.prod([int(d) for d in dims.split(",") if d], initial=1))
        for dtype, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", match[1])
        if dtype in _ITEM
    ]
    one_half = match[3] and match[2] != "all-reduce"
    return match[2], max(sizes) if one_half else sum(sizes)


def largest_that_fits(fits, guess: int, limit: int = 4096, halvings: int = 2) -> int:
    """The largest n for which `fits(n)` is true, to within a fourth of the power of two below it.

    Starts from a guess and asks as few times as possible, since each time is a compilation: first
    for powers of two, then `halvings` times between the last that fits and the next. 0 when 1 is
    too large.
    """
    n = guess
    if fits(n):
        while 2 * n <= limit and fits(2 * n):
            n *= 2
        if 2 * n > limit:
            return n
    else:
        while n > 1:
            n //= 2
            if fits(n):
                break
        else:
            return 0
    step = n // 2
    for _ in range(halvings):
        if step and fits(n + step):
            n += step
        step //= 2
    return n
