"""Meshes, and which mesh axis each logical axis of the model lies on."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("slices", "data", "fsdp", "tensor")
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
    slices: int  # groups of hosts with a fast network inside; between them rows are shared alone
    data: int  # devices of a slice along each mesh axis; one of them may be -1: all that are left
    fsdp: int
    tensor: int
    # (logical axis, mesh axes it is cut along); axes without a rule are not cut.
    rules: tuple[tuple[str, tuple[str, ...]], ...]

    def problems(self) -> list[str]:
        """What is wrong with the fields, one sentence each."""
        found = []
        if self.slices < 1:
            found.append(f"slices is {self.slices}; it must be at least 1")
        sizes = self._sizes
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            found.append(
                f"data, fsdp and tensor are {sizes}; each must be positive, or one of them -1"
            )
        ruled = [logical for logical, _ in self.rules]
        for logical in sorted({name for name in ruled if ruled.count(name) > 1}):
            found.append(f"rules has {logical!r} more than once; an axis is cut by one rule")
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
            if "slices" in axes and logical != "batch":
                found.append(
                    f"rules cut {logical!r} along slices, whose network is slow; only rows may be"
                )
        if self.slices > 1 and dict(self.rules).get("batch", ())[:1] != ("slices",):
            found.append(
                f"slices is {self.slices} and rules do not cut 'batch' along them first: each "
                "would compute the same rows. The rule is ('batch', ('slices', 'data', 'fsdp'))"
            )
        return found

    @property
    def _sizes(self) -> list[int]:
        """Devices of a slice along each mesh axis, as they are written."""
        return [getattr(self, name) for name in MESH_AXES[1:]]

    def mesh_shape(self, num_devices: int) -> tuple[int, ...]:
        """Devices along each mesh axis; raises ValueError when they cannot be arranged so."""
        if num_devices % self.slices:
            raise ValueError(
                f"sharding.slices is {self.slices}: {num_devices} devices are not so many slices "
                "of the same size"
            )
        sizes, in_slice = self._sizes, num_devices // self.slices
        fixed = math.prod(size for size in sizes if size != -1)
        shape = tuple(in_slice // fixed if size == -1 else size for size in sizes)
        if math.prod(shape) != in_slice:
            of_slice = " of a slice" if self.slices > 1 else ""
            raise ValueError(
                f"sharding: data x fsdp x tensor = {' x '.join(map(str, sizes))} cannot be laid "
                f"over {in_slice} devices{of_slice}"
            )
        return (self.slices, *shape)

    @property
    def fewest_devices(self) -> int:
        """Devices that the axes of a given size make."""
        return math.prod(max(getattr(self, name), 1) for name in MESH_AXES)

    def shares(self, logical_axis: str, num_devices: int) -> int:
        """Devices among which a logical axis is cut; raises ValueError as `mesh_shape` does."""
        sizes = dict(zip(MESH_AXES, self.mesh_shape(num_devices), strict=True))
        axes = self.spec(logical_axis)[0] or ()
        return math.prod(sizes[axis] for axis in ((axes,) if isinstance(axes, str) else axes))

    def spec(self, *logical_axes: str | None) -> PartitionSpec:
        """The partition of an array with these logical axes."""
        return nn.logical_to_mesh_axes(logical_axes, self.rules) or PartitionSpec()


def slice_index(device: jax.Device) -> int:
    """The slice that a TPU is in; others say nothing that is meant so."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def slices_of(devices: Sequence[jax.Device], slices: int) -> list[list[jax.Device]]:
    """The devices slice by slice: on TPUs as they say themselves, elsewhere in the order of the
    processes, so many devices to each.

    Raises ValueError where there are other slices than these.
    """
    if devices[0].platform == "tpu":
        by_index: dict[int, list[jax.Device]] = {}
        for device in devices:
            by_index.setdefault(slice_index(device), []).append(device)
        if len(by_index) != slices:
            raise ValueError(
                f"sharding.slices is {slices}, and the devices are in {len(by_index)}: set "
                f"--config.sharding.slices={len(by_index)}"
            )
        return [by_index[index] for index in sorted(by_index)]
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    processes = len({device.process_index for device in devices})
    if len(devices) % slices or (processes > 1 and processes % slices):
        raise ValueError(
            f"sharding.slices is {slices}: {processes} processes with {len(devices)} devices are "
            "not so many slices of whole processes"
        )
    size = len(devices) // slices
    return [ordered[first : first + size] for first in range(0, len(devices), size)]


def mesh_over(devices: Sequence[jax.Device], shape: tuple[int, ...]) -> Mesh:
    """A mesh of these devices, `shape` as `ShardingConfig.mesh_shape` gives it; the devices of a
    slice lie in it as their network does. Raises ValueError as `slices_of` does."""
    laid = []
    for of_slice in slices_of(devices, shape[0]):
        if of_slice[0].platform == "tpu":
            laid.append(jax.make_mesh(shape[1:], MESH_AXES[1:], devices=of_slice).devices)
        else:
            # As they stand: on GPUs each host is a slice to jax, which then refuses.
            laid.append(np.array(of_slice).reshape(shape[1:]))
    # Explicit axes, the default, make flax's logical constraints fail.
    return Mesh(np.stack(laid), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))


def make_mesh(config: ShardingConfig) -> Mesh:
    """A mesh over all devices of all processes; raises ValueError when they cannot form it."""
    return mesh_over(jax.devices(), config.mesh_shape(jax.device_count()))


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


def bytes_of_a_device(boxed, config: ShardingConfig, num_devices: int, whole: str = "") -> int:
    """Bytes of a device's part of a tree, abstract or not, that carries logical axis names.

    Args:
      whole: a logical axis; along the mesh axes that it is cut along the tree is not.

    Raises ValueError as `ShardingConfig.mesh_shape` does.
    """
    sizes = dict(zip(MESH_AXES, config.mesh_shape(num_devices), strict=True))
    for axis in dict(config.rules).get(whole, ()):
        sizes[axis] = 1

    def size(leaf) -> int:
        is_named = isinstance(leaf, nn.LogicallyPartitioned)
        value = leaf.value if is_named else leaf
        cut: list[str] = []
        for axes in config.spec(*leaf.names) if is_named else ():
            cut += [axes] if isinstance(axes, str) else axes or ()
        whole_bytes = value.dtype.itemsize * math.prod(value.shape)
        return whole_bytes // math.prod(sizes[axis] for axis in cut)

    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    return sum(map(size, leaves))


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
