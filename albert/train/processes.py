"""Runs of several processes: how this one joins the others, what it tells of itself, and whether
they see the same folder."""

import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from albert.checkpoints.agreement import agreed_value
from albert.data import cache
from albert.runtime import RunError
from albert.runtime.console import tell
from albert.runtime.fields import ConfigError

_SEEN_AFTER = 10.0  # seconds: what a network file system takes to show a file to another host
# Without all of these jax does not take itself for a task of Slurm.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def join_processes(
    heartbeat_seconds: int, join_seconds: int, local_device_ids: Sequence[int] | None = None
) -> None:
    """Makes this process one of several; call it before anything else touches a device.

    On cloud TPUs and under Slurm jax finds the others by itself. Elsewhere it is told by
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Args:
      heartbeat_seconds: a process that shows no sign of life for so long, dead or hung, ends all
        others with an error that names its task.
      join_seconds: for so long it waits for the others, and ends without them.
      local_device_ids: GPUs of this host that are this process's, counted from 0 among those that
        it sees. None: all that it sees; under Slurm as `slurm_devices` says.

    Raises ConfigError where Slurm's tasks and GPUs do not say which are whose.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    elif local_device_ids is None and not os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        local_device_ids = slurm_devices(os.environ, Path("/"), lambda text: tell(text, sys.stderr))

    def number(variable: str) -> int | None:
        return int(os.environ[variable]) if variable in os.environ else None

    cache.is_one_of_several()
    # Where nobody comes, jax ends the process by force and says little.
    tell(
        f"{socket.gethostname()}: waiting for the other processes, {join_seconds} s at most "
        "(--initialization_timeout).",
        sys.stderr,
    )
    jax.distributed.initialize(
        os.environ.get("JAX_COORDINATOR_ADDRESS"),
        number("JAX_NUM_PROCESSES"),
        number("JAX_PROCESS_ID"),
        local_device_ids,
        initialization_timeout=join_seconds,
        heartbeat_timeout_seconds=heartbeat_seconds,
    )


def slurm_devices(
    environment: Mapping[str, str], root: Path, say: Callable[[str], None]
) -> list[int] | None:
    """The GPUs of a task of Slurm, counted from 0 among those that it sees; None: what jax takes.

    jax gives task n of a node its GPU n and nothing else. That is right where a node has as many
    tasks as GPUs. A task that is alone on its node, or was given GPUs of its own, takes all that
    it sees.

    Args:
      environment: variables, those of Slurm among them.
      root: of the file system in which GPUs are looked for where CUDA_VISIBLE_DEVICES is not set.
      say: is told what was chosen where jax would choose otherwise.

    Raises ConfigError for any other number of tasks and GPUs.
    """
    if any(name not in environment for name in _SLURM):
        return None
    if (named := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        gpus = 0 if named in ("", "NoDevFiles") else len(named.split(","))
    else:
        gpus = len([*(root / "dev").glob("nvidia[0-9]*")])
    tasks = _tasks_on_this_node(environment)
    if not gpus or (tasks == gpus == 1):
        return None
    if tasks == 1 or gpus == 1 or "SLURM_GPUS_PER_TASK" in environment:
        say(
            f"Slurm's task {environment['SLURM_PROCID']} takes all {gpus} GPUs that it sees"
            if gpus > 1
            else f"Slurm's task {environment['SLURM_PROCID']} takes the one GPU that it sees"
        )
        return list(range(gpus))
    if tasks == gpus:
        return None
    raise ConfigError(
        [
            f"Slurm runs {tasks} tasks on this node, and each sees {gpus} GPUs: which are whose is "
            f"not known. Start one task for each GPU (--ntasks-per-node={gpus}) or one for each "
            "node (--ntasks-per-node=1), or say it with --local_device_ids, by SLURM_LOCALID"
        ]
    )


def _tasks_on_this_node(environment: Mapping[str, str]) -> int:
    """From Slurm's "2(x3),1": two tasks on each of three nodes, one on the fourth."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        counts += [int(tasks)] * int(times or 1)
    return counts[int(environment.get("SLURM_NODEID", "0"))]


def host_line(mesh: Mesh, rows: Sequence[int], batch_size: int, state) -> str:
    """What this process works on, in a line: devices, mesh, rows of a batch, bytes on a device.

    Args:
      rows: numbers of those of a batch that this process's devices hold, in order.
      batch_size: rows of a batch over all processes.
      state: parameters, and in training the optimizer's moments: what the devices hold all the
        time, as arrays that say where each lies, abstract ones too.
    """
    devices = jax.local_devices()
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    held = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    of_memory = f" of {limit / 1e9:,.1f} GB" if limit else ""
    return (
        f"Process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: "
        f"{len(devices)} of {jax.device_count()} devices ({devices[0].device_kind}), mesh {shape}, "
        f"{len(rows)} of {batch_size} rows a batch ({_ranges(rows)}), a state of "
        f"{held / 1e6:,.1f} MB on each device{of_memory}."
    )


def _ranges(rows: Sequence[int]) -> str:
    """0, 1, 2, 5, 6 -> "0-2, 5-6"."""
    breaks = [i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1]
    parts = [
        rows[a:b] for a, b in zip([0, *breaks], [*breaks, len(rows)], strict=True) if rows[a:b]
    ]
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def check_shared(folder: Path, seconds: float = _SEEN_AFTER) -> None:
    """Whether what one process writes into a folder is seen by all; call it on all of them.

    Raises RunError on all, within `seconds`, where it is not.
    """
    if jax.process_count() == 1:
        return
    number = secrets.randbits(48)
    if jax.process_index() == 0:
        (folder / _mark(number)).write_text("")
    mark = folder / _mark(int(agreed_value(number)))  # comes behind the writing
    deadline = time.monotonic() + seconds
    while not (seen := mark.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = np.flatnonzero(multihost_utils.process_allgather(np.array(not seen))).tolist()
    if jax.process_index() == 0:
        mark.unlink()
    if not blind:
        return
    if seen:
        noun = "process" if len(blind) == 1 else "processes"
        who = f"{noun} {', '.join(map(str, blind))}"
    else:
        who = f"process {jax.process_index()} on {socket.gethostname()}"
    raise RunError(
        f"The workdir {folder} is not the same folder for all processes: what process 0 writes "
        f"there is not seen by {who}. Name one that all hosts see with --workdir, on a shared file "
        "system or on gs://."
    )


def _mark(number: int) -> str:
    return f".shared-test-{number:x}"
