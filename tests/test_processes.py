"""What one of several processes tells and finds out at its start."""

import re
import socket
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from albert import cli
from albert.runtime import RunError
from albert.runtime.fields import ConfigError
from albert.train import processes
from albert.train.optimizers import make_optimizer
from albert.train.processes import check_shared, host_line, slurm_devices
from albert.train.sharding import batch_sharding, local_rows, make_mesh
from albert.train.step import shard_training
from steps import configured, pretraining_of

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


@pytest.mark.parametrize(
    ("changes", "wanted", "told"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [0, 1, 2, 3], "takes all 4 GPUs that it sees"),
        # Nothing is set, and the host has three.
        ({}, [0, 1, 2], "Slurm's task 1 takes all 3 GPUs"),
        # A task for each GPU: jax's own choice, its number on the node.
        (
            {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            None,
            None,
        ),
        # --gpus-per-task: what a task sees is its own.
        (
            {
                "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
                "SLURM_GPUS_PER_TASK": "2",
                "CUDA_VISIBLE_DEVICES": "0,1",
            },
            [0, 1],
            "takes all 2 GPUs",
        ),
        (
            {"SLURM_STEP_TASKS_PER_NODE": "8,4", "CUDA_VISIBLE_DEVICES": "GPU-b1"},
            [0],
            "takes the one GPU that it sees",
        ),
        ({"CUDA_VISIBLE_DEVICES": ""}, None, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None, None),
    ],
)
def test_the_gpus_of_a_task_of_slurm(changes, wanted, told, tmp_path):
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    said = []
    assert slurm_devices(SLURM | changes, tmp_path, said.append) == wanted
    assert len(said) == (told is not None)
    assert told is None or told in said[0]


def test_tasks_whose_gpus_are_not_known_are_refused(tmp_path):
    many = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1,2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    with pytest.raises(
        ConfigError, match=r"2 tasks on this node, and each sees 4 GPUs.*per-node=4"
    ):
        slurm_devices(many, tmp_path, print)
    assert slurm_devices(many | {"SLURM_NODEID": "0"}, tmp_path, lambda text: None) == [0, 1, 2, 3]
    # A shell of a job, in front of srun, is no task.
    assert (
        slurm_devices({"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path, print) is None
    )


def test_a_host_says_what_it_works_on(tiny):
    config = configured(tiny, data=2, fsdp=2, tensor=2)
    mesh = make_mesh(config.sharding)
    optimizer, schedule = make_optimizer(config.optimizer, 10)
    state, _, _ = shard_training(
        pretraining_of(config.model), optimizer, schedule, 1, 0, mesh, config.sharding
    )
    rows = local_rows(batch_sharding(mesh, config.sharding), 16)
    line = host_line(mesh, rows, 16, state)
    # What the first device has of every array.
    placed = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), state)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    assert line == (
        f"Process 0 of 1 on {socket.gethostname()}: 8 of 8 devices (cpu), mesh "
        f"{' x '.join(f'{name} {size}' for name, size in mesh.shape.items())}, 16 of 16 rows a "
        f"batch (0-15), a state of {held / 1e6:,.1f} MB on each device."
    )
    assert "4 of 16 rows a batch (0-1, 6, 8)" in host_line(mesh, (0, 1, 6, 8), 16, state)


@pytest.mark.parametrize("number", [0, 1])
def test_a_folder_that_one_process_does_not_see(number, tmp_path, monkeypatch):
    """The part of each of two processes, the second on another host; `test_faults.py` runs both."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: number)
    monkeypatch.setattr(processes, "agreed_value", float)
    answers = []

    def gathered(answer):
        answers.append(bool(answer))
        return np.array([False, True])

    monkeypatch.setattr(multihost_utils, "process_allgather", gathered)
    with pytest.raises(RunError) as refused:
        check_shared(tmp_path, seconds=0.3)
    assert answers == [bool(number)]
    who = f"process 1 on {socket.gethostname()}" if number else "process 1"
    assert f"is not seen by {who}. Name one that all hosts see with --workdir" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("devices", "distributed", "told"),
    [
        ("0,a", True, "--local_device_ids is '0,a'; it must be numbers"),
        ("1,1", True, "--local_device_ids is '1,1'"),
        ("", True, "--local_device_ids is ''"),
        ("0,1", False, "is for one of several processes"),
    ],
)
def test_devices_that_cannot_be_are_refused_before_anyone_is_waited_for(devices, distributed, told):
    flags = cli.Processes.__new__(cli.Processes)  # an object, since flags can be defined only once
    flags._devices, flags._distributed = (SimpleNamespace(value=v) for v in (devices, distributed))
    with pytest.raises(ConfigError, match=re.escape(told)):
        flags.join()
