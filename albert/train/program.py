"""The training step of a config as a program for some devices, and the memory that it takes; it is
never run."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from albert.tasks.pretraining import Pretraining
from albert.train.config import Config, parts_of
from albert.train.optimizers import make_optimizer
from albert.train.sharding import MESH_AXES, batch_sharding
from albert.train.step import shard_training


def abstract_batch(config: Config, sharding: NamedSharding | None = None) -> dict:
    """Shapes of a training batch; B, L, P and K from the config."""
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
    if config.data.packing:
        each = (rows, config.data.packing)
        shapes |= {"sop_labels": (each, jnp.int32), "cls_positions": (each, jnp.int32)}
        shapes |= {name: ((rows, length), jnp.int32) for name in ("segment_ids", "position_ids")}
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def described_mesh(devices, shape: tuple[int, ...]) -> Mesh:
    """These devices as they stand, so many along each axis of the mesh. Those that are only
    described say nothing of their network, by which `sharding.mesh_over` would lay them."""
    return Mesh(
        np.array(devices).reshape(shape),
        MESH_AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
    )


def data_mesh(devices) -> Mesh:
    """A mesh of these devices along the data axis alone."""
    return described_mesh(devices, (1, -1, 1, 1))


def lower_step(config: Config, mesh: Mesh):
    """The loop's training step for these devices, not yet compiled."""
    optimizer, schedule = make_optimizer(config.optimizer, config.train.num_steps)
    state, _, step = shard_training(
        Pretraining(config),
        optimizer,
        schedule,
        parts_of(config, mesh.size),
        config.seed,
        mesh,
        config.sharding,
        deterministic=config.train.deterministic,
        reduce_dtype=config.train.reduce_dtype,
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
