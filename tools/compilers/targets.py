"""Compiling the training step for accelerators that are not there.

`python -m tools.compilers.targets` reads a request as JSON from standard input and answers on the
last line of standard output. It is a process of its own because these compilers want their
environment set before jax is imported, and may end the process. Needs the TPU's compiler (libtpu)
or NVIDIA's, no device.
"""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import NamedTuple

from albert.train.chips import CHIPS, Chip
from albert.train.compiler import answer_of, compiled, described_tpus


class Target(NamedTuple):
    platform: str  # as jax names its plugins
    topology: str  # as the compiler of that platform names it
    chip: Chip
    attention: str  # the fused kernel

    @property
    def memory(self) -> float:
        """Bytes of a device."""
        return self.chip.memory

    @property
    def flops(self) -> float:
        """Products in bfloat16, FLOP/s at best."""
        return self.chip.flops

    @property
    def reached(self) -> float:
        """Bytes/s that copies within the memory reach."""
        return self.chip.reached


# One H100, since nothing is sent where there is one; 16 TPU chips.
TARGETS = {
    "v5e": Target("tpu", "v5e:4x4", CHIPS["v5e"], "splash"),
    "v5p": Target("tpu", "v5p:2x2x4", CHIPS["v5p"], "splash"),
    "v6e": Target("tpu", "v6e:4x4", CHIPS["v6e"], "splash"),
    "h100": Target("cuda", "1x1x1", CHIPS["h100"], "cudnn"),
    # The program for an H100; only memory and bandwidth differ.
    "h200": Target("cuda", "1x1x1", CHIPS["h200"], "cudnn"),
    "h100x8": Target("cuda", "1x1x8", CHIPS["h100"], "cudnn"),
}
# What XLA:GPU wants to know of an H100 SXM, as its GpuTargetConfigProto. cuDNN's version is that of
# the library that plans its kernels here.
_H100 = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84929347584
  l2_cache_size: 52428800
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: {0} minor: {1} patch: {2} }}
runtime_version {{ major: 13 }}
device_description_str: "NVIDIA H100 80GB HBM3"
"""
INSTALL = {
    "tpu": "pip install -r requirements-report.txt",
    "cuda": "pip install --no-deps -r requirements-gpu-compiler.txt",
}
_MODULES = {"tpu": ("libtpu",), "cuda": ("jax_cuda13_plugin", "nvidia.cudnn", "nvidia.cu13")}


def missing(target: str) -> str:
    """Why a target's compiler cannot be asked, with the command that installs it; empty: it can."""
    platform = TARGETS[target].platform
    for module in _MODULES[platform]:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"no compiler for {target}: {INSTALL[platform]}"
    return ""


def compile_for(target: str, config: dict, text_to: str = "") -> dict:
    """Asks the compiler of a target about a config made plain by `dataclasses.asdict`.

    `text_to`: a file that the optimised program is written to.

    Returns:
      "fits"; and where it does "arguments", "temporaries" and "peak" in bytes per device, what
      `tools.compilers.hlo.figures` reads off the program, "seconds" of compiling. Or "missing": why
      the compiler could not be asked.
    """
    if reason := missing(target):
        return {"missing": reason}
    request = {"target": target, "config": config, "text_to": text_to}
    return answer_of("tools.compilers.targets", request)


def devices_of(target: str) -> list:
    """The described devices, to compile for. Needs the environment of this file's processes."""
    of = TARGETS[target]
    if of.platform == "tpu":
        return list(described_tpus(of.topology))
    from jax._src.cudnn import fused_attention_stablehlo
    from jax._src.lib import cuda_versions
    from jax.experimental import topologies

    # jax asks the device that is there, of which there is none.
    fused_attention_stablehlo.check_compute_capability = lambda capability: True
    assert cuda_versions is not None
    number = cuda_versions.cudnn_get_version()
    version = number // 10000, number // 100 % 100, number % 100
    return list(
        topologies.get_topology_desc(
            platform="cuda", topology=of.topology, target_config=_H100.format(*version)
        ).devices
    )


def _answer(request: dict) -> dict:
    import time

    from albert.train.config import from_json
    from albert.train.program import described_mesh, lower_step, memory
    from tools.compilers.hlo import figures

    target = request["target"]
    config = from_json(request["config"])
    devices = devices_of(target)
    lowered = lower_step(config, described_mesh(devices, config.sharding.mesh_shape(len(devices))))
    begin = time.perf_counter()
    program = compiled(lowered)
    if program is None:
        return {"fits": False}
    seconds = time.perf_counter() - begin
    text = program.as_text()
    if request["text_to"]:
        Path(request["text_to"]).write_text(text)
    of = TARGETS[target]
    return {
        "fits": True,
        **memory(program, knows_peak=of.platform == "tpu"),
        **dataclasses.asdict(figures(text, config.model.depth)),
        "seconds": seconds,
    }


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
