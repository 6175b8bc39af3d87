"""Where figures go: `metrics.jsonl` and TensorBoard's event files, and services beside them.

A writer is a class in a file of its own and a line in WRITERS; `config.train.writers` names those
of a run.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from albert.runtime.fields import ConfigError
from albert.train.writers.base import About, Writer
from albert.train.writers.jsonl import NAME, JsonLines, records
from albert.train.writers.mlflow import MLflow
from albert.train.writers.sender import Sender
from albert.train.writers.tensorboard import TensorBoard
from albert.train.writers.wandb import WeightsAndBiases

WRITERS: dict[str, type[Writer]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def unusable(names: Sequence[str], workdir: Path) -> dict[str, list[str]]:
    """Name -> why this writer cannot be used here, one sentence each; starts no device."""
    found = {}
    for name in names:
        writer = WRITERS[name]
        if writer.needs and importlib.util.find_spec(writer.needs) is None:
            found[name] = [
                f"train.writers has {name}, and {writer.needs} is not installed: "
                f"pip install -r {writer.install}"
            ]
        elif problems := writer.problems(workdir):
            found[name] = problems
    return found


def check_writers(names: Sequence[str], workdir: Path) -> None:
    """Raises ConfigError where a writer cannot be used here."""
    if problems := [text for of in unusable(names, workdir).values() for text in of]:
        raise ConfigError(problems)


class MetricWriter:
    """All writers of a run; use it in one process only.

    What cannot be written is told once, and counted: figures are no reason to end a run.
    """

    def __init__(self, names: Sequence[str], about: About, tell: Callable[[str], None]):
        """Opens them, or goes on with them behind `about.first_step`."""
        self._tell, self._about = tell, about
        self._files: dict[str, Writer] = {}
        self._left_out: dict[str, int] = {}
        self._names = [name for name in names if not WRITERS[name].is_service]
        self._each(lambda writer: None)
        # They are sent what the files have: those have gone back to `first_step` already.
        logged: list[dict] = []
        if about.first_step is not None:
            with self._telling("jsonl"):
                logged = records(about.workdir / NAME)
        self._senders = [
            Sender(WRITERS[name], about, logged, tell) for name in names if WRITERS[name].is_service
        ]

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """Writes figures under `group`, such as "train" or "valid"."""
        self._each(lambda writer: writer.write(step, group, values))
        for sender in self._senders:
            sender.write(step, group, values)

    def write_picture(self, step: int, name: str, png: bytes) -> None:
        """Shows a picture, as a PNG file's bytes, wherever pictures are shown."""
        self._each(lambda writer: writer.write_picture(step, name, png))
        for sender in self._senders:
            sender.write_picture(step, name, png)

    def _each(self, do: Callable[[Writer], None]) -> None:
        """Opens those files that are not open, and does something with each."""
        for name in self._names:
            with self._telling(name):
                if name not in self._files:
                    self._files[name] = WRITERS[name](self._about)
                do(self._files[name])

    @contextlib.contextmanager
    def _telling(self, name: str):
        try:
            yield
        except Exception as error:  # of a file system, or of the library of a store
            place = WRITERS[name].place(self._about)
            if name not in self._left_out:
                reason = getattr(error, "strerror", None) or error
                self._tell(
                    f"Warning: {place} cannot be written: {reason}. {self._about.what_goes_on} "
                    "goes on; what cannot be logged is left out."
                )
            self._left_out[name] = self._left_out.get(name, 0) + 1

    def close(self) -> None:
        """Ends them all; waits a moment for services."""
        for name, writer in self._files.items():
            with self._telling(name):
                writer.close()
        for sender in self._senders:
            sender.close()
        for name, times in self._left_out.items():
            if times > 1:
                self._tell(
                    f"Warning: {WRITERS[name].place(self._about)} could not be written {times} "
                    "times."
                )
