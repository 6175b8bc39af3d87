"""What engines that start runs on clusters are given, and what each of them states."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from albert.runtime.paths import is_remote

PROJECT = Path(__file__).resolve().parent.parent.parent
# Exit codes behind which a run goes on when it is started again: 75, it was asked to stop and has
# saved; the rest are ends by a signal (128 + its number: HUP, INT, ABRT, BUS, KILL, SEGV, TERM), as
# jax ends a process whose peer is gone. 2, something to mend, is not among them.
AGAIN = (75, 129, 130, 134, 135, 137, 139, 143)
# Of jax's coordinator, where jax does not choose it itself.
PORT = 8476


def option(default: Any, help: str, least: int | None = None) -> Any:
    """A field of an engine's `Options`: a flag of tools/launch.py.

    Args:
      default: says the type: bool, int, str, or () for a flag that may be given several times.
      help: what it says, a sentence.
      least: a number's lower bound.
    """
    return dataclasses.field(default=default, metadata={"help": help, "least": least})


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: commands, one after the other (training, then evaluations that are left)."""

    name: str  # of its folder in a sweep; empty for a run by itself
    commands: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Devices:
    """On what a run computes."""

    count: int  # as jax counts them, over all processes
    processes: int
    words: str  # for errors, such as "2 slices of v6e-16"
    slices: int = 1


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be started.

    Attributes:
      name: the workdir's last part.
      workdir: of the run, or of the sweep.
      runs: one, or of a sweep those that are left.
      is_sweep: whether they are of a sweep.
      options: the engine's own.
      at: when, such as 20260131-235959.
    """

    name: str
    workdir: Path
    runs: tuple[Run, ...]
    is_sweep: bool
    options: Any
    at: str

    @property
    def folder(self) -> Path:
        """Where what is written for the engine is kept."""
        return Path.cwd() if is_remote(self.workdir) else self.workdir.absolute()


Ask = Callable[[Sequence[str]], str]


class Engine(Protocol):
    """A module of this folder."""

    @property
    def PROGRAM(self) -> str:
        """The command that jobs are handed to."""

    @property
    def SEES_THIS_DISK(self) -> bool:
        """Runs see the files of this machine, and not the project and buckets alone."""

    @property
    def Options(self) -> type[Any]:
        """A dataclass of what `option` makes."""

    def problems(self, options: Any, workdir: Path, is_sweep: bool) -> list[str]:
        """What cannot be started, one sentence each."""

    def devices(self, options: Any) -> Devices:
        """Of options without problems."""

    def files(self, job: Job) -> Mapping[str, str]:
        """Name -> content of what is written for the engine's command."""

    def start(self, job: Job, ask: Ask) -> list[str]:
        """Hands the files over; what to tell of watching and stopping.

        `ask` runs a command and gives its output; raises RunError where it fails.
        """


def dns_name(text: str, most: int = 40) -> str:
    """A name of lower-case letters, digits and hyphens that begins with a letter.

    What has to be changed or cut gets eight digits of the text's SHA-256, so that names differ
    where texts do.
    """
    name = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")
    if not re.match("[a-z]", name):
        name = f"run-{name}".strip("-")
    if name == text and len(name) <= most:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: most - 9].strip('-')}-{digest}"


def run_name(job: Job, run: Run) -> str:
    """A name for one of its runs as `dns_name` makes them."""
    return dns_name("-".join(filter(None, (job.name, run.name))))


def bucket_problems(workdir: Path) -> list[str]:
    """What is wrong with the place of a run whose machines keep nothing."""
    text = str(workdir)
    if not is_remote(workdir):
        return [
            f"--workdir={text} is a folder of this machine, which the job's hosts do not see, and "
            "theirs are gone with them; write gs://BUCKET/FOLDER"
        ]
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[^/]+)+/?", text):
        return [f"--workdir is {text!r}; it must be gs://BUCKET/FOLDER, a folder in a bucket"]
    return []
