"""A Slurm cluster of two nodes on this machine, for tests."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

INSTALL = "needs root and Debian's slurm-wlm and munge: apt-get install slurm-wlm munge"


def is_possible() -> bool:
    programs = ("slurmctld", "slurmd", "munged", "sbatch")
    return os.geteuid() == 0 and all(map(shutil.which, programs))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def configuration(folder: Path, nodes: list[str]) -> str:
    ports = _free_ports(1 + len(nodes))
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={socket.gethostname()}(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={folder}/munge.socket,cred_expire=5",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "SwitchType=switch/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SlurmdParameters=config_overrides",
        "ReturnToService=2",
        f"Prolog={folder}/prolog",
        # On a busy machine a node is slow, and not to be left out.
        "UnkillableStepTimeout=600",
        "SlurmdTimeout=600",
        "MessageTimeout=60",
        "JobRequeue=1",
        "MpiDefault=none",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        *(
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=1 "
            "RealMemory=2000"
            for name, port in zip(nodes, ports[1:], strict=True)
        ),
        f"PartitionName=all Nodes={','.join(nodes)} Default=YES MaxTime=INFINITE State=UP",
    ]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def cluster(folder: Path):
    """Yields the environment in which sbatch and the others speak to the cluster.

    A node starts jobs 5 s late while there is a file `slow-NODE` in the folder.
    """
    nodes = ["n1", "n2"]
    for name in ("state", *(f"spool-{node}" for node in nodes)):
        (folder / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(configuration(folder, nodes))
    prolog = folder / "prolog"
    prolog.write_text(f"#!/bin/bash\n! [ -e {folder}/slow-$SLURMD_NODENAME ] || sleep 5\n")
    prolog.chmod(0o755)
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        # jax would ask for the first node by a name that this machine does not know.
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{_free_ports(1)[0]}",
    }
    running: list[subprocess.Popen] = []
    try:
        # One of its own, so that clusters of several test processes do not share one's end.
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        places = {name: folder / f"munge.{name}" for name in ("socket", "pid", "seed", "log")}
        options = [
            f"--{name}{'' if name == 'socket' else '-file'}={p}" for name, p in places.items()
        ]
        running.append(
            subprocess.Popen(
                ["munged", "--foreground", "--force", f"--key-file={key}", *options],
                stderr=subprocess.DEVNULL,
            )
        )
        wait_until(places["socket"].exists)
        with open(folder / "daemons.log", "w") as log:
            for command in (["slurmctld", "-D"], *(["slurmd", "-D", "-N", n] for n in nodes)):
                running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        wait_until(
            lambda: (
                "idle" in answer(environment, "sinfo", "-h", "-o", "%t %D")
                and answer(environment, "sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2"
            )
        )
        yield environment
        subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], env=environment)
    finally:
        for one in reversed(running):
            one.terminate()
        for one in running:
            one.wait(20)


def answer(environment, *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def wait_until(is_so, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.3)


def state(environment, job: str) -> str:
    """Of a job, such as RUNNING, with its restarts and exit code."""
    fields = dict(
        pair.split("=", 1)
        for pair in answer(environment, "scontrol", "show", "job", "-o", job).split()
        if "=" in pair
    )
    return f"{fields.get('JobState', 'GONE')} {fields.get('Restarts')} {fields.get('ExitCode')}"
