"""SkyPilot: a managed job for a run, on a cloud that has room; one for each run of a sweep."""

import dataclasses
import re
import shlex
from pathlib import Path

import yaml

from albert.runtime import RunError
from tools.launchers.base import (
    PORT,
    PROJECT,
    Ask,
    Devices,
    Job,
    Run,
    bucket_problems,
    dns_name,
    option,
    run_name,
)
from tools.launchers.shapes import Shape, find_shape, shape_problems

PROGRAM = "sky"
SEES_THIS_DISK = False


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)
_ENVIRONMENT = "$HOME/albert-environment"
# Of Cloud TPU's machines, by kind.
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


@dataclasses.dataclass(frozen=True)
class Options:
    shape: str = option("", "Accelerator: v6e-16, v5litepod-16, h100-80gb-8, ...")
    nodes: int = option(1, "Machines with GPUs of a run, a process for each.", 1)
    infra: str = option("gcp", "CLOUD, CLOUD/REGION or CLOUD/REGION/ZONE.")
    spot: bool = option(True, "On spot machines.")
    restarts: int = option(0, "Also so often after any other end; a mistake (2) counts alike.", 0)
    disk: int = option(200, "GB of a machine's disk, for prepared text.", 50)

    @property
    def of(self) -> Shape:
        return find_shape(self.shape)


def problems(options: Options, workdir: Path, is_sweep: bool) -> list[str]:
    """What is wrong, one sentence each: SkyPilot's parser lets names of accelerators and places
    through that do not exist."""
    found = shape_problems(options.shape, 1, options.nodes) + bucket_problems(workdir)
    cloud, *rest = options.infra.split("/")
    if not re.fullmatch("[a-z0-9-]+(/[a-z0-9-]+){0,2}", options.infra):
        found.append(f"--infra is {options.infra!r}; it must be CLOUD/REGION/ZONE, such as gcp")
    elif cloud == "gcp" and len(rest) == 2 and not re.fullmatch(rf"{rest[0]}-[a-z]", rest[1]):
        found.append(f"--infra is {options.infra!r}, and {rest[1]} is no zone of {rest[0]}")
    if options.shape and not found:
        shape = options.of
        if not shape.sky:
            found.append(
                f"--shape: SkyPilot knows no {shape.name}; it asks for TPUs by the Cloud TPU API, "
                "which ends with v6e, and for GPUs by their kind. Use kubernetes"
            )
        elif shape.is_tpu and cloud != "gcp":
            found.append(f"--infra is {options.infra!r}, and TPUs are on gcp")
    return found


def devices(options: Options) -> Devices:
    shape = options.of
    words = f"{options.nodes} x {shape.name}, {options.nodes * shape.devices} devices"
    return Devices(options.nodes * shape.devices, options.nodes * shape.hosts, words)


def task(job: Job, run: Run) -> dict:
    """A managed job. Its machines are made anew when they are preempted, whatever the run left
    with, and when it asks to go on (75); with any other code it ends after `restarts`."""
    options: Options = job.options
    shape = options.of
    resources: dict = {"infra": options.infra, "accelerators": shape.sky}
    if shape.is_tpu:
        resources["accelerator_args"] = {"tpu_vm": True, "runtime_version": RUNTIMES[shape.kind]}
    else:
        resources["disk_size"] = options.disk
    resources["use_spot"] = options.spot
    resources["job_recovery"] = {
        "strategy": "EAGER_NEXT_REGION",
        "max_restarts_on_errors": options.restarts,
        "recover_on_exit_codes": [75],
    }
    return {
        "name": run_name(job, run),
        "workdir": str(PROJECT),
        "num_nodes": options.nodes,
        "resources": resources,
        "envs": {"JAX_PLATFORMS": "tpu,cpu" if shape.is_tpu else "cuda,cpu"},
        "setup": _setup(shape),
        "run": _run(options, run),
    }


def _setup(shape: Shape) -> str:
    """The same versions as in the image; the machines' own Python is too old."""
    extra = "tpu" if shape.is_tpu else "cuda13"
    return "\n".join(
        (
            "set -e",
            'export PATH="$HOME/.local/bin:$PATH"',
            "command -v uv > /dev/null || python3 -m pip install --quiet --user uv",
            f'uv venv --quiet --allow-existing --python 3.12 "{_ENVIRONMENT}"',
            f'uv pip install --quiet --python "{_ENVIRONMENT}/bin/python" \\',
            "  --requirements requirements.txt --constraints launch/images/constraints.txt \\",
            f"  gcsfs 'jax[{extra}]'",
            "",
        )
    )


def _run(options: Options, run: Run) -> str:
    lines = [f'export PATH="{_ENVIRONMENT}/bin:$PATH"']
    if options.nodes > 1:  # hosts of TPUs find each other
        lines += [
            f'JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"',
            "export JAX_COORDINATOR_ADDRESS",
            'export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"',
        ]
    if len(run.commands) > 1:
        stages = shlex.join(map(shlex.join, run.commands))
        lines.append(f"exec bash launch/stages.sh {stages}")
    else:
        lines.append(f"exec {shlex.join(run.commands[0])}")
    return "\n".join([*lines, ""])


def files(job: Job) -> dict[str, str]:
    folder = f"skypilot-{dns_name(job.name)}/" if job.is_sweep else "skypilot-"
    return {
        f"{folder}{run_name(job, run)}.yaml": yaml.dump(
            task(job, run), Dumper=_Dumper, sort_keys=False, width=1000
        )
        for run in job.runs
    }


def start(job: Job, ask: Ask) -> list[str]:
    name = run_name(job, job.runs[0])
    for place, file in enumerate(files(job)):
        try:
            ask(["sky", "jobs", "launch", "--yes", "--detach-run", str(job.folder / file)])
        except RunError as error:
            if not place:
                raise
            raise RunError(
                f"{error}. {place} jobs were handed over before it: sky jobs queue shows them, sky "
                "jobs cancel ends them."
            ) from error
    return [
        f"Handed over. Watch: sky jobs queue; sky jobs logs --name {name}",
        f"Stop: sky jobs cancel --name {name}; the same command goes on from what was saved.",
    ]
