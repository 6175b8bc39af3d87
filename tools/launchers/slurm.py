"""Slurm: a job, or an array for the runs of a sweep, as one script for sbatch."""

import contextlib
import dataclasses
import re
import shlex
from pathlib import Path

from albert.runtime.paths import is_remote
from tools.launchers.base import PROJECT, Ask, Devices, Job, option

PROGRAM = "sbatch"
SEES_THIS_DISK = True
FOLDER = PROJECT / "launch" / "slurm"
# Of file systems that several nodes see, as /proc/mounts names them.
_SHARED = re.compile(
    r"nfs|lustre|gpfs|beegfs|ceph|gluster|panfs|wekafs|fuse|9p|virtiofs|afs|orangefs"
)
_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")


@dataclasses.dataclass(frozen=True)
class Options:
    jobs: int = option(4, "Runs of a sweep at once.", 1)
    nodes: int = option(1, "Nodes of a run.", 1)
    gpus: int = option(0, "GPUs of a node, a process for each.", 0)
    time: str = option("", "Limit of a job's time. Default: the partition's.")
    notice: int = option(120, "Seconds to save in before that.", 1)
    restarts: int = option(50, "Requeued so often at most.", 0)
    sbatch: tuple[str, ...] = option((), "More options for sbatch: --partition=NAME, ...")
    shared_workdir: bool = option(False, "All nodes see the workdir, whatever it is on.")

    @property
    def tasks(self) -> int:
        """Processes of one run: one for each GPU, or for a node without."""
        return self.nodes * max(self.gpus, 1)


def problems(options: Options, workdir: Path, is_sweep: bool) -> list[str]:
    """What is wrong, one sentence each."""
    found = []
    if options.time and not _TIME.fullmatch(options.time):
        found.append(f"--time is {options.time!r}; it must be as sbatch takes it, such as 24:00:00")
    if wrong := [more for more in options.sbatch if not more.startswith("-")]:
        found.append(f"--sbatch is {wrong[0]!r}; it must be an option, such as --partition=gpu")
    if is_sweep and options.tasks > 1:
        found.append("the runs of a sweep take one process each: leave --nodes and --gpus at 1")
    if options.nodes > 1 and not options.shared_workdir:
        with contextlib.suppress(FileNotFoundError):  # where there is no such table, nobody knows
            problem = storage_problem(workdir, Path("/proc/mounts").read_text())
            found += [problem] if problem else []
    return found


def devices(options: Options) -> Devices:
    """A device for each process."""
    return Devices(options.tasks, options.tasks, f"{options.tasks} processes with a device each")


def storage_problem(workdir: Path, mounts: str) -> str | None:
    """Why several nodes cannot work in a workdir, by the table of mounts of this machine."""
    if is_remote(workdir):
        return None
    place = workdir.absolute()
    kind, longest = "", -1
    for line in mounts.splitlines():
        _, where, of, *_ = line.split(" ")
        where = where.replace("\\040", " ")
        if place.is_relative_to(where) and len(where) > longest:
            kind, longest = of, len(where)
    if _SHARED.search(kind):
        return None
    return (
        f"--workdir={workdir} is on a disk of this machine ({kind or 'unknown'}), and the job has "
        "several nodes; choose a folder that all of them see, or gs://. If they do see it, say "
        "--shared_workdir"
    )


def script(job: Job) -> str:
    """The script for sbatch."""
    asked: Options = job.options
    options = [
        f"--job-name={_name(job)}",
        f"--nodes={asked.nodes}",
        f"--ntasks-per-node={max(asked.gpus, 1)}",
        *([f"--gres=gpu:{asked.gpus}"] if asked.gpus else []),
        *([f"--time={asked.time}"] if asked.time else []),
        *([f"--array=0-{len(job.runs) - 1}%{asked.jobs}"] if job.is_sweep else []),
        f"--output={job.folder / ('slurm-%A_%a.log' if job.is_sweep else 'slurm-%j.log')}",
        "--open-mode=append",
        "--requeue",
        f"--signal=TERM@{asked.notice}",
        *asked.sbatch,
    ]
    lines = [" && ".join(map(shlex.join, run.commands)) for run in job.runs]
    commands, command = "", lines[0]
    if job.is_sweep:
        commands = "\n".join(["commands=(", *(f"  {shlex.quote(line)}" for line in lines), ")"])
        command = 'bash -c "trap : TERM; ${commands[$SLURM_ARRAY_TASK_ID]}"'
    filled = (FOLDER / "job.sbatch").read_text(encoding="utf-8")
    for name, value in {
        "SBATCH": "\n".join(f"#SBATCH {each}" for each in options),
        "NOTICE": str(asked.notice),
        "RESTARTS": str(asked.restarts),
        "COMMANDS": commands,
        "TASK": shlex.quote(str(FOLDER / "task.sh")),
        "COMMAND": command,
        "JOB": "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.is_sweep else "$SLURM_JOB_ID",
    }.items():
        filled = filled.replace(f"@{name}@", value)
    return re.sub(r"\n{2,}", "\n", filled)


def _name(job: Job) -> str:
    return re.sub(r"[^\w.-]+", "-", job.name) or "albert"


def _file(job: Job) -> str:
    return f"slurm-{_name(job)}.sbatch"


def files(job: Job) -> dict[str, str]:
    return {_file(job): script(job)}


def start(job: Job, ask: Ask) -> list[str]:
    path = str(job.folder / _file(job))
    ask(["sbatch", "--test-only", path])
    number = ask(["sbatch", "--parsable", path]).strip().split(";")[0]
    log = job.folder / f"slurm-{number}{'_*' if job.is_sweep else ''}.log"
    return [
        f"Job {number} is queued. Watch: squeue --job {number}; tail -f {log}",
        f"Stop: scancel --signal=TERM {number} saves and queues it again, scancel {number} saves "
        "and ends it.",
    ]
