"""Asks the TPU's compiler whether a config's training step fits chips that are not here.

It is asked in a process of its own, since it wants its environment set before jax is imported and
may end the process. Needs libtpu, which `jax[tpu]` brings along, and no device.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from albert.models.attention import AUTO
from albert.runtime.fields import ConfigError
from albert.train.chips import Devices
from albert.train.config import Config, from_json
from albert.train.cost import in_bfloat16

# Chips along each axis of a slice, by their number, as Cloud TPU offers them.
_FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_DEEP = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
}
# Name -> (shapes, devices of a chip). The compiler describes the two halves of a v4, which are one
# device to jax.
_SHAPES = {"v5e": (_FLAT, 1), "v6e": (_FLAT, 1), "v5p": (_DEEP, 1), "tpu7x": (_DEEP, 2)}
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "XLA_FLAGS": "",
}
_SECONDS = 1800
EXHAUSTED = "RESOURCE_EXHAUSTED"  # so jax's errors begin where memory does not suffice


def answer_of(module: str, request: dict) -> dict:
    """What a program of its own, `python -m MODULE`, answers on the last line of its standard
    output to a request on its standard input; or "missing": why it gave none."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=os.environ | _ENVIRONMENT,
            timeout=_SECONDS,
            cwd=Path(__file__).resolve().parents[2],
        )
    except subprocess.TimeoutExpired:
        return {"missing": f"it took over {_SECONDS} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1][:300]
        return {"missing": reason}
    return json.loads(lines[-1])


def described_tpus(topology: str) -> Sequence:
    """The chips of a slice such as "v5e:4x4", to compile for; in a process of `answer_of`."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def compiled(lowered):
    """The program; None where the compiler finds no room for it."""
    import jax

    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if EXHAUSTED in str(error):
            return None
        raise


def can_be_asked(devices: Devices) -> bool:
    """Whether there is a compiler of such chips, installed or not."""
    return devices.name in _SHAPES


def topology_of(devices: Devices) -> str:
    """The slice that so many chips make; raises ConfigError where there is none."""
    if not can_be_asked(devices):
        able = ", ".join(_SHAPES)
        raise ConfigError([f"--ask_compiler: libtpu compiles for {able}, not for {devices.name}"])
    shapes, halves = _SHAPES[devices.name]
    by_devices = {halves * chips: shape for chips, shape in shapes.items()}
    if devices.number not in by_devices:
        raise ConfigError(
            [
                f"--ask_compiler: there is no slice of {devices}; there are "
                f"{', '.join(map(str, by_devices))}"
            ]
        )
    return f"{devices.name}:{by_devices[devices.number]}"


def ask(config: Config, devices: Devices, kernel: str, say: Callable[[str], None]) -> dict:
    """What the compiler says of a config: "fits", and where it does "peak" in bytes of a device, or
    "missing": why it gave no answer.

    Args:
      kernel: the attention kernel on these devices.
      say: told that it takes a while.

    Raises ConfigError where it cannot be asked about this config or these devices.
    """
    topology = topology_of(devices)
    if config.task != "pretraining" or config.distillation.teacher:
        raise ConfigError(
            ["--ask_compiler: only pretraining without a teacher is compiled for what is not here"]
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            ['--ask_compiler: the compiler of TPUs is not installed; pip install "jax[tpu]<0.12"']
        )
    say(f"Asking the compiler of {devices.name}, which takes some minutes.")
    config = dataclasses.replace(in_bfloat16(config), phases=())
    if config.model.attention == AUTO:
        model = dataclasses.replace(config.model, attention=kernel)
        config = dataclasses.replace(config, model=model)
    request = dataclasses.asdict(config)
    return answer_of(__name__, {"topology": topology, "config": request})


def _answer(request: dict) -> dict:
    from albert.train.program import described_mesh, lower_step, memory

    config = from_json(request["config"])
    devices = described_tpus(request["topology"])
    shape = config.sharding.mesh_shape(len(devices))
    program = compiled(lower_step(config, described_mesh(devices, shape)))
    if program is None:
        return {"fits": False}
    return {"fits": True, **memory(program, knows_peak=True)}


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
