"""Weights & Biases: a run of the same identity at every start, or files below the workdir for
`wandb sync` where WANDB_MODE is offline. Project and account are those of its own variables."""

import importlib
import io
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from albert.runtime.paths import is_remote
from albert.train.writers.base import About, Writer

_PROJECT = "albert"  # where WANDB_PROJECT names none
_FLUSHED_EVERY = 1.0  # seconds until figures are safe from a kill; by default 15
_FINISHES_WITHIN = 15.0  # seconds
# Of its log files, which are those of LevelDB: blocks of pieces, each with a checksum, its length
# and whether it is whole, a first, a middle or a last one.
_HEADER, _BLOCK = 7, 32768
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class WeightsAndBiases(Writer):
    """What it has is asked of its own files when offline, and else of the run's summary."""

    needs, install, is_service = "wandb", "requirements-wandb.txt", True

    def __init__(self, about: About):
        wandb = importlib.import_module("wandb")
        self._wandb = wandb
        identity = about.identity("wandb")
        self._scratch = None
        folder = about.workdir
        if is_remote(folder):
            self._scratch = tempfile.TemporaryDirectory(prefix="albert-")
            folder = Path(self._scratch.name)
        before = list(_history(folder, identity))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            id=identity,
            name=about.name,
            group=about.workdir.name,
            job_type=about.part or "train",
            config=about.config,
            dir=str(folder),
            resume="allow",
            reinit="create_new",  # a notebook's own run goes on
            settings=wandb.Settings(
                console="off",
                silent=True,
                x_transaction_log_flush_interval=_FLUSHED_EVERY,
                finish_timeout=_FINISHES_WITHIN,
            ),
        )
        # Offline every start counts its lines from 0, and they would lie over those of before.
        self._line = len(before) if self._run.offline else None
        found = before if self._run.offline else [dict(self._run.summary)]
        self.have = {
            key.removesuffix("/step"): int(values[key])
            for values in found
            for key in values
            if key.endswith("/step")
        }
        self._groups: set[str] = set()

    @staticmethod
    def place(about: About) -> str:
        return "Weights & Biases"

    @classmethod
    def problems(cls, workdir: Path) -> list[str]:
        offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun")
        if offline and is_remote(workdir):
            return [
                f"WANDB_MODE is offline, which keeps its files in the workdir, and {workdir} is a "
                "store; go online, or leave wandb out of train.writers"
            ]
        if offline or os.environ.get("WANDB_MODE") == "disabled":
            return []
        if not os.environ.get("WANDB_API_KEY") and not _has_key():
            return [
                "Weights & Biases knows no key here: `wandb login`, or set WANDB_API_KEY, or "
                "WANDB_MODE=offline"
            ]
        return []

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        if group not in self._groups:
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
            self._groups.add(group)
        named = {f"{group}/{name}": value for name, value in values.items()}
        self._log({f"{group}/step": step, **named})

    def write_picture(self, step: int, name: str, png: bytes) -> None:
        image = importlib.import_module("PIL.Image").open(io.BytesIO(png))
        self._log({f"pictures/{name}": self._wandb.Image(image, caption=f"step {step}")})

    def _log(self, values: dict) -> None:
        self._run.log(values, step=self._line)
        if self._line is not None:
            self._line += 1

    def close(self) -> None:
        self._run.finish()
        if self._scratch:
            self._scratch.cleanup()


def _has_key() -> bool:
    """Whether somebody has logged in on this machine."""
    try:
        return importlib.import_module("wandb").login(prompt=False)
    except Exception:  # there is a key that the service does not take or, out of reach, not yet
        return True


def _history(folder: Path, identity: str) -> Iterator[dict[str, float]]:
    """The lines of figures in the files of a run that was offline, in their order; only the values
    of keys that end in "/step"."""
    record = None
    for path in sorted((folder / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb")):
        if record is None:
            record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
        for data in _entries(path.read_bytes()):
            entry = record.FromString(data)
            if entry.WhichOneof("record_type") == "history":
                named = [
                    (i.key or "/".join(i.nested_key), i.value_json) for i in entry.history.item
                ]
                yield {key: float(value) for key, value in named if key.endswith("/step")}


def _entries(data: bytes) -> Iterator[bytes]:
    """The entries of a log file; what was cut off at its end is left out."""
    at, parts = _HEADER, b""
    while at + _HEADER <= len(data):
        room = _BLOCK - at % _BLOCK
        if room < _HEADER:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        piece = data[at + _HEADER : at + _HEADER + length]
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or len(piece) < length:
            return
        parts = piece if kind in (_WHOLE, _FIRST) else parts + piece
        if kind in (_WHOLE, _LAST):
            yield parts
        at += _HEADER + length
