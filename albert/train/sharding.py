"""Meshes, and which mesh axis each logical axis of the model lies on."""

import dataclasses
import math
import os
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
LOGICAL_AXES = (
    "batch",
    "length",
    "layers",
    "vocab",
    "embed",
    "hidden",
    "heads",
    "head_dim",
    "mlp",
    "rank",
    "pooled",
    "position",
    "token_type",
    "label",
)


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    data: int  # devices along each mesh axis; one of them may be -1: all that are left
    fsdp: int
    tensor: int
    # (logical axis, mesh axes it is cut along); axes without a rule are not cut.
    rules: tuple[tuple[str, tuple[str, ...]], ...]

    def problems(self) -> list[str]:
        """What is wrong with the fields, one sentence each."""
        found = []
        sizes = [getattr(self, name) for name in MESH_AXES]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            found.append(
                f"data, fsdp and tensor are {sizes}; each must be positive, or one of them -1"
            )
        for logical, axes in self.rules:
            if len(set(axes)) < len(axes):
                found.append(f"rules cut {logical!r} along {axes}, one of them twice")
            if logical not in LOGICAL_AXES:
                found.append(
                    f"rules name the logical axis {logical!r}; there is {', '.join(LOGICAL_AXES)}"
                )
            for axis in axes:
                if axis not in MESH_AXES:
                    found.append(
                        f"rules name the mesh axis {axis!r}; there is {', '.join(MESH_AXES)}"
                    )
        return found

    def mesh_shape(self, num_devices: int) -> tuple[int, ...]:
        """Devices along each mesh axis; raises ValueError when they cannot be arranged so."""
        sizes = [getattr(self, name) for name in MESH_AXES]
        fixed = math.prod(size for size in sizes if size != -1)
        shape = tuple(num_devices // fixed if size == -1 else size for size in sizes)
        if math.prod(shape) != num_devices:
            raise ValueError(
                f"sharding: data x fsdp x tensor = {' x '.join(map(str, sizes))} cannot be laid "
                f"over {num_devices} devices"
            )
        return shape

    def spec(self, *logical_axes: str | None) -> PartitionSpec:
        """The partition of an array with these logical axes."""
        return nn.logical_to_mesh_axes(logical_axes, self.rules) or PartitionSpec()


def join_processes(heartbeat_seconds: int = 100) -> None:
    """Makes this process one of several; call it before anything else touches a device.

    On cloud TPUs and under Slurm jax finds the others by itself. Elsewhere it is told by
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. A process that shows no sign of
    life for `heartbeat_seconds`, dead or hung, ends all others with an error that names its task.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")

    def number(variable: str) -> int | None:
        return int(os.environ[variable]) if variable in os.environ else None

    jax.distributed.initialize(
        os.environ.get("JAX_COORDINATOR_ADDRESS"),
        number("JAX_NUM_PROCESSES"),
        number("JAX_PROCESS_ID"),
        heartbeat_timeout_seconds=heartbeat_seconds,
    )


def make_mesh(config: ShardingConfig) -> Mesh:
    """A mesh over all devices of all processes."""
    return jax.make_mesh(
        config.mesh_shape(jax.device_count()),
        MESH_AXES,
        # Explicit axes, the default, make flax's logical constraints fail.
        axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES),
    )


def tree_shardings(boxed, mesh: Mesh, config: ShardingConfig):
    """The sharding of every leaf of a tree whose parameters and slots carry logical axis names.

    Leaves without names are whole on every device.
    """

    def sharding(leaf):
        names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        return NamedSharding(mesh, config.spec(*names))

    return jax.tree.map(sharding, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def placed(boxed, mesh: Mesh, config: ShardingConfig):
    """The same tree unboxed, as abstract arrays that say where each one lies."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.meta.unbox(boxed),
        tree_shardings(boxed, mesh, config),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def partition_problems(boxed_params, mesh_shape: tuple[int, ...], config: ShardingConfig):
    """Parameters whose sizes the mesh does not divide, one sentence each."""
    sizes = dict(zip(MESH_AXES, mesh_shape, strict=True))
    found = set()
    leaves = jax.tree.leaves(boxed_params, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    for leaf in leaves:
        for name, size, axes in zip(
            leaf.names, leaf.value.shape, config.spec(*leaf.names), strict=True
        ):
            axes = (axes,) if isinstance(axes, str) else axes or ()
            parts = math.prod(sizes[axis] for axis in axes)
            if size % parts:
                found.add(
                    f"sharding: the axis {name!r} of size {size} cannot be cut into {parts} equal "
                    f"parts along {' x '.join(axes)}"
                )
    return sorted(found)


def batch_sharding(mesh: Mesh, config: ShardingConfig) -> NamedSharding:
    """Rows over the mesh axes of the logical axis "batch"."""
    return NamedSharding(mesh, config.spec("batch"))


def local_rows(sharding: NamedSharding, batch_size: int) -> tuple[int, ...]:
    """Rows of the whole batch that this process's devices hold, in order."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return tuple(sorted({row for cut in slices for row in np.arange(batch_size)[cut].tolist()}))


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows as part of one array over all processes."""
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def any_process(mesh: Mesh) -> Callable[[bool], jax.Array]:
    """A function of a process's own answer: whether any process says yes, without waiting for it.

    Call it on all processes alike.
    """
    along_all = NamedSharding(mesh, PartitionSpec(MESH_AXES))
    combine = jax.jit(lambda answers: answers.any(), out_shardings=replicated(mesh))

    def ask(answer: bool) -> jax.Array:
        own = np.full(jax.local_device_count(), answer)
        return combine(jax.make_array_from_process_local_data(along_all, own))

    return ask
