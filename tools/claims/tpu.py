"""Compiling the training step for TPUs that are not there: `python -m tools.claims.tpu`.

Reads a request as JSON from standard input and answers on the last line of standard output. It is
a process of its own because the TPU compiler wants its environment set before jax is imported, and
may end the process. Needs the libtpu that jax[tpu] asks for; no TPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

# Chips: topology of 16, and bytes of memory of one.
CHIPS = {"v5e": ("v5e:4x4", 15.75 * 2**30), "v6e": ("v6e:4x4", 31.25 * 2**30)}
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "XLA_FLAGS": "",
}
_SECONDS = 900
INSTALL = "pip install -r requirements-report.txt"


def compile_for(chip: str, config: dict) -> dict:
    """Asks the TPU compiler about a config made plain by `dataclasses.asdict`.

    Returns:
      "fits"; and where it does "arguments", "temporaries" and "peak" in bytes per chip,
      "exchanged" of `tools.claims.compiled`, "seconds" of compiling. Or "missing": why the
      compiler could not be asked.
    """
    request = json.dumps({"chip": chip, "config": config})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tools.claims.tpu"],
            input=request,
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


def _answer(request: dict) -> dict:
    import time

    from jax.experimental import topologies

    from albert.train.config import from_json
    from tools.claims.compiled import data_mesh, exchanged, lower_step, memory

    topology, _ = CHIPS[request["chip"]]
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    config = from_json(request["config"])
    lowered = lower_step(config, data_mesh(devices))
    begin = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:  # XlaRuntimeError has no public name
        if "RESOURCE_EXHAUSTED" in str(error):
            return {"fits": False}
        raise
    return {
        "fits": True,
        **memory(compiled, knows_peak=True),
        "exchanged": exchanged(compiled.as_text(), config.model.depth),
        "seconds": time.perf_counter() - begin,
    }


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
