"""JSON lines: `metrics.jsonl`, which resuming, sweeps and pictures read."""

import contextlib
import json
import math
from collections.abc import Collection
from pathlib import Path

from albert.runtime.paths import append_text, replace_text
from albert.train.writers.base import About, Writer

NAME = "metrics.jsonl"


class JsonLines(Writer):
    """A line for each group of figures. JSON has no word for figures that are not finite: they are
    left out."""

    def __init__(self, about: About):
        """Later entries than `first_step` are dropped, and evaluations at that step too, but for
        those named in `evaluated`: the others come again."""
        self._path = about.workdir / NAME
        if about.first_step is not None:
            _drop_after(self._path, about.first_step, about.evaluated)

    @staticmethod
    def place(about: About) -> str:
        return str(about.workdir / NAME)

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        record = {"step": step, "group": group, **finite}
        append_text(self._path, json.dumps(record, allow_nan=False) + "\n")


def last_logged_step(workdir: Path) -> int:
    """The last step that the logs of a run tell of; 0 when there are none."""
    return max((record["step"] for _, record in _records(workdir / NAME)), default=0)


def records(path: Path) -> list[dict]:
    """What the lines of `metrics.jsonl` say; those that are cut off or damaged are left out."""
    return [record for _, record in _records(path)]


def _records(path: Path) -> list[tuple[str, dict]]:
    """Lines of `metrics.jsonl` and what they say, without those that are cut off or damaged."""
    found = []
    text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            record = json.loads(line)
            found.append((line, record | {"step": int(record["step"]), "group": record["group"]}))
    return found


def _drop_after(path: Path, last_step: int, evaluated: Collection[str]) -> None:
    """Keeps the records up to a step; what a killed run wrote after it will come again."""
    if path.exists():
        kept = [
            line + "\n"
            for line, record in _records(path)
            if record["step"] < last_step + (record["group"] in ("train", *evaluated))
        ]
        replace_text(path, "".join(kept))
