"""What a writer is: a place that the figures of a run go to."""

import abc
import dataclasses
import json
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from albert.runtime.paths import replace_text


@dataclasses.dataclass(frozen=True)
class About:
    """What a writer is told of the run.

    Attributes:
      workdir: of the run, here or in a store.
      config: of the run, as plain values.
      first_step: steps taken when this start of the run begins; None: no earlier figures are gone
        back to, as beside a run.
      evaluated: evaluations at that step that are logged already; others come again.
      part: empty for the run itself; else the name of what is logged beside it, as "eval".
    """

    workdir: Path
    config: dict[str, Any]
    first_step: int | None = 0
    evaluated: Collection[str] = ()
    part: str = ""

    @property
    def what_goes_on(self) -> str:
        """Whatever becomes of figures."""
        return "Training" if self.first_step is not None else "Evaluation"

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.workdir.name} {self.part}".strip()

    def kept(self, writer: str) -> Path:
        """The file in which a writer keeps what it must know at the next start."""
        return self.workdir / f"{'_'.join(filter(None, (writer, self.part)))}.json"

    def identity(self, writer: str) -> str:
        """The run's name for a service, the same at every start; made at the first."""
        path = self.kept(writer)
        if not path.is_file():
            replace_text(path, json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n")
        return json.loads(path.read_text())["id"]


class Writer(abc.ABC):
    """A place that figures go to. One process uses it, from one thread; whatever goes wrong is
    raised, and its caller tells it.

    Attributes:
      needs: the module without which there is none; empty: it is always there.
      install: what to install for it.
      is_service: figures are sent from a thread, so that no step waits, and tried again.
      have: of a service: group -> the last step that it has. What is logged and is not there is
        sent first, what is there and comes again is left out. Files go back to `first_step` by
        themselves.
    """

    needs: ClassVar[str] = ""
    install: ClassVar[str] = ""
    is_service: ClassVar[bool] = False
    have: dict[str, int]

    @abc.abstractmethod
    def __init__(self, about: About):
        """Opens it, or goes on with it."""

    @staticmethod
    @abc.abstractmethod
    def place(about: About) -> str:
        """Where the figures go, for people, before it is open."""

    @classmethod
    def problems(cls, workdir: Path) -> list[str]:
        """Why it cannot be used here, one sentence each; asked before any device starts."""
        return []

    @abc.abstractmethod
    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """Figures of a step under a group, as "train" or "valid"; some may not be finite."""

    def write_picture(self, step: int, name: str, png: bytes) -> None:
        """A picture of a step, as a PNG file's bytes. By default none is shown."""
        return None

    def close(self) -> None:
        """Ends it. By default there is nothing to end."""
        return None
