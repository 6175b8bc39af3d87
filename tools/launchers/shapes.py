"""The shapes in which accelerators are lent: slices of TPUs by topology, machines with GPUs.

As GKE and Cloud TPU have them; tests ask xpk about each. A slice's name counts chips, of v4, v5p
and tpu7x TensorCores, two to a chip.
"""

import dataclasses
import math

_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
_CHIPS_OF_HOST = 4  # but for a slice of one chip


@dataclasses.dataclass(frozen=True)
class _Tpu:
    label: str  # GKE's cloud.google.com/gke-tpu-accelerator
    topologies: tuple[str, ...]
    cores: int = 1  # of a chip, as its name counts
    devices: int = 1  # of a chip, as jax counts


_TPUS = {
    "v4": _Tpu("tpu-v4-podslice", _CUBES, cores=2),
    "v5litepod": _Tpu("tpu-v5-lite-podslice", _FLAT),
    "v5p": _Tpu("tpu-v5p-slice", _CUBES, cores=2),
    "v6e": _Tpu("tpu-v6e-slice", ("1x1", *_FLAT)),
    "tpu7x": _Tpu("tpu7x", _CUBES, cores=2, devices=2),
}
_ALIASES = {"v5e": "v5litepod", "7x": "tpu7x"}
# Kind -> GKE's cloud.google.com/gke-accelerator, SkyPilot's name, GPUs of a machine.
_GPUS = {
    "l4": ("nvidia-l4", "L4", (1, 2, 4, 8)),
    "a100-40gb": ("nvidia-tesla-a100", "A100", (1, 2, 4, 8)),
    "h100-80gb": ("nvidia-h100-80gb", "H100", (8,)),
    "h100-mega-80gb": ("nvidia-h100-mega-80gb", "H100-MEGA", (8,)),
    "h200-141gb": ("nvidia-h200-141gb", "H200", (8,)),
    "b200": ("nvidia-b200", "B200", (8,)),
    "gpu": ("", "", (1, 2, 4, 8)),  # of whatever kind a cluster has
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is lent as one.

    Attributes:
      name: such as v6e-16 or h100-80gb-8.
      kind: such as v6e.
      topology: of chips, such as 4x4; empty for GPUs.
      hosts: machines; 1 for GPUs, of which a job asks for several machines.
      chips: of a host.
      devices: of all hosts, as jax counts them.
      label: of the accelerator, as GKE names it; empty: any.
      sky: of the accelerator, as SkyPilot names it; empty: none.
    """

    name: str
    kind: str
    topology: str
    hosts: int
    chips: int
    devices: int
    label: str
    sky: str

    @property
    def is_tpu(self) -> bool:
        return bool(self.topology)


def _slice(kind: str, tpu: _Tpu, topology: str) -> Shape:
    chips = math.prod(map(int, topology.split("x")))
    of_host = min(chips, _CHIPS_OF_HOST)
    name = f"{kind}-{chips * tpu.cores}"
    # The Cloud TPU API, by which SkyPilot asks for TPUs, ends with v6e.
    sky = "" if kind == "tpu7x" else f"tpu-{name}"
    devices = chips * tpu.devices
    return Shape(name, kind, topology, chips // of_host, of_host, devices, tpu.label, sky)


def _shapes() -> dict[str, Shape]:
    slices = [_slice(kind, tpu, of) for kind, tpu in _TPUS.items() for of in tpu.topologies]
    machines = [
        Shape(f"{kind}-{gpus}", kind, "", 1, gpus, gpus, label, sky and f"{sky}:{gpus}")
        for kind, (label, sky, counts) in _GPUS.items()
        for gpus in counts
    ]
    return {shape.name: shape for shape in (*slices, *machines)}


SHAPES = _shapes()


def find_shape(text: str) -> Shape:
    """The shape that KIND-SIZE or KIND:TOPOLOGY names; raises ValueError with those that exist."""
    kind, colon, topology = text.partition(":")
    if not colon:
        kind, _, size = text.rpartition("-")
    kind = _ALIASES.get(kind, kind)
    of_kind = [shape for shape in SHAPES.values() if shape.kind == kind]
    for shape in of_kind:
        if shape.topology == topology if colon else shape.name == f"{kind}-{size}":
            return shape
    if of_kind:
        there = ", ".join(
            f"{shape.name} ({shape.topology})" if shape.is_tpu else shape.name for shape in of_kind
        )
        raise ValueError(f"there is no {text}; of {kind} there is {there}")
    kinds = ", ".join((*_TPUS, *_GPUS))
    raise ValueError(
        f"there is no accelerator of the kind in {text!r}; write KIND-SIZE, such as v6e-16 or "
        f"h100-80gb-8, or KIND:TOPOLOGY, such as v6e:4x4. Kinds: {kinds}"
    )


def shape_problems(text: str, slices: int, machines: int) -> list[str]:
    """Why there is no such shape, or no such number of it."""
    if not text:
        return ["--shape is missing; it is the accelerator, such as v6e-16 or h100-80gb-8"]
    try:
        shape = find_shape(text)
    except ValueError as error:
        return [f"--shape: {error}"]
    if shape.is_tpu and machines > 1:
        return [
            f"--nodes is {machines}, and {shape.name} is a slice of TPUs, which has {shape.hosts} "
            "hosts; several of them are --slices"
        ]
    if not shape.is_tpu and slices > 1:
        return [f"--slices is {slices}, and {shape.name} are GPUs; several machines are --nodes"]
    return []
