"""Where a run's time goes, over all its starts: `time.jsonl` in the workdir, and shares of it.

Goodput is the share of the wall-clock in which steps were taken that the run still has.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from albert.runtime.console import format_seconds
from albert.runtime.paths import append_text

STEPS, LOST, STOPPED = "steps", "lost by restarts", "between starts"
# The kinds of time, by the phases of the loop that take them; see `loop.Watch`.
_KINDS = {
    "prepare": "starting",
    "stop": STEPS,
    "evaluate": "evaluation",
    "save": "saving",
    "batch": "waiting for data",
    "step": STEPS,
    "log": STEPS,
    "report": "evaluation",
}
COMPILING = "compiling"


class Clock:
    """The seconds of each kind in this start of a run, written down as it goes.

    Args:
      path: the file; None writes nothing, as in all processes but the first.
      say: told once that the file cannot be written.
    """

    def __init__(self, path: Path | None, say: Callable[[str], None]):
        self._path, self._say = path, say
        self._start, self._since = time.time(), time.monotonic()
        self._kind, self._compiled = _KINDS["prepare"], False
        self._seconds: dict[str, float] = {}
        self._first = 0
        self._before: dict[str, float] = {}  # in earlier starts

    def opened(self, step: int) -> None:
        """The run begins, or goes on behind this step."""
        self._first = step
        if self._path is not None:
            this = {"start": self._start, "from": step, "step": step, "seconds": {}}
            of = account([*read(self._path), this])
            self._before = of.seconds if of else {}
        self.mark(step)

    def compiles(self) -> None:
        """The next step is compiled first."""
        self._compiled = False

    @property
    def kind(self) -> str:
        """What the run is busy with."""
        return self._kind

    @property
    def goodput(self) -> float:
        """The share of steps in the time of all starts until now."""
        self._switch(self._kind)
        every = [*self._before.values(), *self._seconds.values()]
        steps = self._before.get(STEPS, 0.0) + self._seconds.get(STEPS, 0.0)
        return steps / math.fsum(every)

    def phase(self, phase: str, step: int) -> None:
        """A phase of the loop begins, with so many steps taken."""
        if phase == "step" and not self._compiled:
            self._switch(COMPILING)
            self._compiled = True
        else:
            self._switch(_KINDS[phase])
        if phase == "save":
            self.mark(step)

    def mark(self, step: int) -> None:
        """Writes down what has passed until now; `step`: steps taken."""
        self._switch(self._kind)
        if self._path is None:
            return
        seconds = {kind: round(value, 3) for kind, value in self._seconds.items()}
        record = {"start": self._start, "from": self._first, "step": step, "seconds": seconds}
        try:
            append_text(self._path, json.dumps(record) + "\n")
        except Exception as error:  # of a file system or a store: time is no reason to end a run
            self._say(f"Warning: {self._path} cannot be written: {error}. Training goes on.")
            self._path = None

    def _switch(self, kind: str) -> None:
        now = time.monotonic()
        self._seconds[self._kind] = self._seconds.get(self._kind, 0.0) + now - self._since
        self._kind, self._since = kind, now


@dataclasses.dataclass(frozen=True)
class Account:
    """What became of a run's time.

    Attributes:
      starts: how often it was started.
      seconds: by kind; LOST is what was done again, or is to be, STOPPED when it did not run, or
        did not live to write down that it did.
    """

    starts: int
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Wall-clock from the first start to the last record."""
        return math.fsum(self.seconds.values())

    @property
    def goodput(self) -> float:
        return self.seconds.get(STEPS, 0.0) / self.total if self.total else 0.0

    def __str__(self) -> str:
        kinds = sorted(self.seconds, key=lambda kind: -self.seconds[kind])
        shares = ", ".join(f"{k} {100 * self.seconds[k] / self.total:.1f} %" for k in kinds)
        times = "one start" if self.starts == 1 else f"{self.starts} starts"
        return f"{format_seconds(self.total)} over {times}: {shares}"


def account(records: Iterable[dict]) -> Account | None:
    """Of the records of `Clock`, in their order; None: there are none."""
    starts: dict[float, list[dict]] = {}
    for record in records:
        starts.setdefault(record["start"], []).append(record)
    seconds: dict[str, float] = {}

    def add(kind: str, value: float) -> None:
        seconds[kind] = seconds.get(kind, 0.0) + value

    bound, following = math.inf, None
    for start, of in reversed(starts.items()):
        last = of[-1]["seconds"]
        # What later starts went on from, and all that was done for it.
        reached = [record for record in of if record["step"] <= bound]
        kept: dict[str, float] = reached[-1]["seconds"] if reached else {}
        for kind, value in last.items():
            add(kind, kept.get(kind, 0.0))
            add(LOST, value - kept.get(kind, 0.0))
        if following is not None:
            add(STOPPED, max(following - start - math.fsum(last.values()), 0.0))
        bound, following = min(bound, of[0]["from"]), start
    if not starts:
        return None
    return Account(len(starts), {kind: value for kind, value in seconds.items() if value})


def read(path: Path) -> list[dict]:
    """The records of a file, without lines that are cut off or damaged; none where it is not."""
    found = []
    text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            record = json.loads(line)
            whole = float(record["start"]), int(record["from"]), int(record["step"])
            seconds = {kind: float(value) for kind, value in record["seconds"].items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        found.append(
            dict(zip(("start", "from", "step"), whole, strict=True)) | {"seconds": seconds}
        )
    return found
