"""Cloud TPU VMs, v6e and older: a queued resource whose hosts begin or resume a run at start."""

import dataclasses
import re
import shlex
from pathlib import Path

from tools.launchers.base import (
    AGAIN,
    PROJECT,
    Ask,
    Devices,
    Job,
    bucket_problems,
    dns_name,
    option,
)
from tools.launchers.kubernetes import image_problems
from tools.launchers.shapes import Shape, find_shape, shape_problems
from tools.launchers.skypilot import RUNTIMES

PROGRAM = "gcloud"
SEES_THIS_DISK = False
FOLDER = PROJECT / "launch" / "tpu_vm"
_GONE = ("SUSPENDED", "FAILED")  # never comes back; in the way of another of its name
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


@dataclasses.dataclass(frozen=True)
class Options:
    shape: str = option("", "Slice: v6e-16, v5e:4x4, v5p-32, ...")
    slices: int = option(1, "Slices of a run.", 1)
    zone: str = option("", "Such as us-east5-b.")
    project: str = option("", "Default: gcloud's own.")
    image: str = option("", "The container, with a tag: built by launch/images/Dockerfile.")
    service_account: str = option("", "Of the hosts; may write to the bucket. Default: Compute's.")
    spot: bool = option(False, "Spot capacity: cheaper, and taken away at any time.")
    reserved: bool = option(False, "Capacity of a reservation.")
    valid: str = option("", "How long the request waits, such as 12h. Default: for ever.")
    notice: int = option(120, "Seconds to save in when its container is stopped.", 1)
    restarts: int = option(50, "Started again so often at most, on hosts that stay.", 0)
    delete_when_done: bool = option(False, "The hosts delete the slice when the run has ended.")

    @property
    def of(self) -> Shape:
        return find_shape(self.shape)


def problems(options: Options, workdir: Path, is_sweep: bool) -> list[str]:
    """What is wrong, one sentence each."""
    found = shape_problems(options.shape, options.slices, 1) + bucket_problems(workdir)
    found += image_problems(options.image)
    if is_sweep:
        found.append("tpu_vm starts one run; for a sweep use slurm, kubernetes or skypilot")
    if not re.fullmatch("[a-z]+-[a-z]+[0-9]+-[a-z]", options.zone):
        found.append(f"--zone is {options.zone!r}; it must be a zone, such as us-east5-b")
    if options.spot and options.reserved:
        found.append("--spot and --reserved are two kinds of capacity; choose one")
    if options.delete_when_done and options.slices > 1:
        # No host knows whether those of other slices have saved.
        found.append("--delete_when_done is for one slice; delete several when the run is finished")
    if options.valid and not re.fullmatch("[0-9]+[smhd]", options.valid):
        found.append(f"--valid is {options.valid!r}; it must be a duration, such as 12h")
    if options.shape and not found and options.of.kind not in RUNTIMES:
        found.append(
            f"--shape: {options.shape} is not in the Cloud TPU API, which ends with v6e; use "
            "kubernetes, or instance groups as launch/tpu_vm/README.md says"
        )
    return found


def devices(options: Options) -> Devices:
    shape = options.of
    count = options.slices * shape.devices
    words = f"{options.slices} x {shape.name}, {count} devices"
    return Devices(count, options.slices * shape.hosts, words, options.slices)


def startup(job: Job) -> str:
    """What every host runs when it starts."""
    options: Options = job.options
    filled = (FOLDER / "startup.sh").read_text(encoding="utf-8")
    for name, value in {
        "IMAGE": shlex.quote(options.image),
        # Of this launch alone: what an earlier one ended with is no reason to rest.
        "ENDED": shlex.quote(f"{str(job.workdir).rstrip('/')}/ended-{job.at}"),
        "COMMAND": shlex.join(job.runs[0].commands[0]),
        "NOTICE": str(options.notice),
        "RESTARTS": str(options.restarts),
        "AGAIN": "|".join(map(str, AGAIN)),
        "DELETE": _delete(job) if options.delete_when_done else "",
    }.items():
        filled = filled.replace(f"@{name}@", value)
    return filled.rstrip() + "\n"


def _queued(job: Job, verb: str) -> list[str]:
    options: Options = job.options
    project = [f"--project={options.project}"] if options.project else []
    return [
        *("gcloud", "compute", "tpus", "queued-resources", verb),
        *([] if verb == "list" else [dns_name(job.name)]),
        f"--zone={options.zone}",
        *project,
    ]


def _delete(job: Job) -> str:
    """By the host that saves last."""
    place = "http://metadata.google.internal/computeMetadata/v1/instance/attributes"
    worker = f'"$(curl --silent --header "Metadata-Flavor: Google" {place}/agent-worker-number)"'
    command = shlex.join([*_queued(job, "delete"), "--quiet", "--force", "--async"])
    return f"if [ {worker} = 0 ]; then\n  {command}\nfi"


def create(job: Job) -> list[str]:
    """The command that asks for the slices."""
    options: Options = job.options
    name = dns_name(job.name)
    nodes = (
        [f"--node-count={options.slices}", f"--node-prefix={name}"]
        if options.slices > 1
        else [f"--node-id={name}"]
    )
    account = options.service_account
    return [
        *_queued(job, "create"),
        *nodes,
        f"--accelerator-type={options.of.name}",
        f"--runtime-version={RUNTIMES[options.of.kind]}",
        *(["--spot"] if options.spot else []),
        *(["--reserved"] if options.reserved else []),
        *([f"--valid-until-duration={options.valid}"] if options.valid else []),
        *([f"--service-account={account}"] if account else []),
        f"--scopes={_SCOPE}",
        f"--metadata-from-file=startup-script={job.folder / _file(job)}",
    ]


def _file(job: Job) -> str:
    return f"tpu_vm-{dns_name(job.name)}-startup.sh"


def files(job: Job) -> dict[str, str]:
    return {_file(job): startup(job)}


def start(job: Job, ask: Ask) -> list[str]:
    name = dns_name(job.name)
    state = ask([*_queued(job, "list"), f"--filter=name~/{name}$", "--format=value(state.state)"])
    if state.strip() in _GONE:
        ask([*_queued(job, "delete"), "--quiet", "--force"])
    ask(create(job))
    return [
        f"Asked for. Watch: {shlex.join(_queued(job, 'describe'))}",
        f"  {shlex.join(on_hosts(job, LOG))}",
        f"Stop: {shlex.join(on_hosts(job, STOP))}",
        f"Clean up, or it goes on costing: {shlex.join([*_queued(job, 'delete'), '--force'])}",
    ]


LOG = "sudo journalctl --unit=google-startup-scripts --no-pager --lines=30"
STOP = "sudo touch /run/albert-stop; sudo docker stop albert"


def on_hosts(job: Job, command: str) -> list[str]:
    """A command on every host: on some alone, jax waits for the others."""
    return [*_queued(job, "ssh"), "--node=all", "--worker=all", f"--command={command}"]
