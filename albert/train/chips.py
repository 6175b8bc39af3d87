"""Accelerators by name: what one device has, as jax counts them (of a TPU7x, half a chip).

Peaks are those of `albert.train.hardware`. Memory of a TPU is what its compiler says is there for a
program (libtpu 0.0.42; of a v4 of each core, of which a chip has two); memory of a GPU what its
driver shows, of which jax takes `XLA_PYTHON_CLIENT_MEM_FRACTION`. Bandwidth and links: Cloud TPU's
page of each version (https://docs.cloud.google.com/tpu/docs/v5e and so on), NVIDIA's data sheets.
"""

import os
from typing import NamedTuple

from albert.runtime.fields import ConfigError
from albert.train.hardware import data_sheet_peak

_GIB = 2**30
# Of the bandwidth, what copies reach: measured by others on H100 and H200, guessed for TPUs.
_REACHED = {"gpu": 0.9, "tpu": 0.8}
_FRACTION, _USUAL_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"  # of a GPU's memory


class Chip(NamedTuple):
    kind: str  # as jax names the device
    memory: float  # bytes
    bandwidth: float  # bytes/s between a device and its memory at best
    # Bytes/s to the chips of the same slice, or the GPUs of the same host, in both directions.
    links: float
    backend: str  # "tpu" or "gpu"
    capability: str = ""  # of a GPU, as its maker counts

    @property
    def flops(self) -> float:
        """Products in bfloat16, FLOP/s at best."""
        peak = data_sheet_peak(self.kind)
        assert peak is not None
        return peak

    @property
    def reached(self) -> float:
        """Bytes/s that copies within the memory reach."""
        return _REACHED[self.backend] * self.bandwidth

    @property
    def available(self) -> tuple[float, str]:
        """Bytes of the memory that programs get, and which share of it, in words."""
        if self.backend == "tpu":
            return self.memory, ""
        text = os.environ.get(_FRACTION, _USUAL_FRACTION)
        try:
            share = float(text)
        except ValueError:
            raise ConfigError([f"{_FRACTION} is {text!r}; it must be a number"]) from None
        return share * self.memory, f"{share:.0%} of it, as {_FRACTION} says or by default"


CHIPS = {
    "v4": Chip("TPU v4", 2 * 15.25 * _GIB, 1.2e12, 600e9, "tpu"),
    "v5e": Chip("TPU v5 lite", 15.75 * _GIB, 0.82e12, 400e9, "tpu"),
    "v5p": Chip("TPU v5", 95.74 * _GIB, 2.77e12, 1200e9, "tpu"),
    "v6e": Chip("TPU v6 lite", 31.25 * _GIB, 1.64e12, 800e9, "tpu"),
    "tpu7x": Chip("TPU7x", 94.75 * _GIB, 3.69e12, 600e9, "tpu"),
    "a100-40": Chip("NVIDIA A100-SXM4-40GB", 39 * _GIB, 1.56e12, 600e9, "gpu", "8.0"),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 79 * _GIB, 2.04e12, 600e9, "gpu", "8.0"),
    "h100": Chip("NVIDIA H100 80GB HBM3", 79 * _GIB, 3.35e12, 900e9, "gpu", "9.0"),
    "h200": Chip("NVIDIA H200", 139 * _GIB, 4.8e12, 900e9, "gpu", "9.0"),
    "b200": Chip("NVIDIA B200", 178 * _GIB, 8e12, 1800e9, "gpu", "10.0"),
}


class Devices(NamedTuple):
    name: str  # a key of CHIPS
    number: int

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name]

    def __str__(self) -> str:
        return f"{self.number} x {self.name}"


def read_devices(text: str) -> Devices:
    """The devices that NAME:NUMBER names, such as v5e:256; raises ConfigError."""
    name, _, number = text.partition(":")
    if name not in CHIPS:
        raise ConfigError([f"--devices names {name!r}; there is {', '.join(CHIPS)}"])
    if not (number.isdecimal() and int(number) > 0):
        raise ConfigError(
            [f"--devices is {text!r}; it must be NAME:NUMBER, such as v5e:256 or h100:8"]
        )
    return Devices(name, int(number))
