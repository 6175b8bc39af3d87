"""Where figures go: `metrics.jsonl` and TensorBoard's event files."""

import contextlib
import json
import math
import tempfile
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from albert.runtime.paths import append_text, is_remote, replace_text


class Board:
    """Figures for TensorBoard, below one folder, here or in a store.

    Written at once: tensorboardX's own writer has a thread, which a full disk ends, and which then
    keeps the run waiting for ever.
    """

    def __init__(self, folder: Path, first_step: int | None = None):
        """`first_step`: what an earlier writer wrote after it is not shown."""
        self._folder = folder
        self._scratch = tempfile.TemporaryDirectory(prefix="albert-") if is_remote(folder) else None
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(self._scratch.name) if self._scratch else folder
        number = uuid.uuid4().hex[:8]  # several in a second, or a clock that goes backwards
        self._events = EventsWriter(str(scratch / "events"), f".{number}")
        self._file = next(scratch.glob(f"*.{number}"))
        if first_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(first_step + 1, session_log=start)

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=summary.scalar(f"{group}/{name}", value))
        self._flush()

    def write_picture(self, step: int, name: str, png: bytes) -> None:
        """Shows a picture; tensorboardX's own way to write one needs Pillow."""
        height, width = int.from_bytes(png[20:24]), int.from_bytes(png[16:20])  # its first chunk
        image = summary_pb2.Summary.Image(
            height=height, width=width, colorspace=4, encoded_image_string=png
        )
        value = summary_pb2.Summary.Value(tag=name, image=image)
        self._write(step, summary=summary_pb2.Summary(value=[value]))
        self._flush()

    def _write(self, step: int, **what) -> None:
        self._events.write_event(event_pb2.Event(step=step, wall_time=time.time(), **what))

    def _flush(self) -> None:
        self._events.flush()
        if self._scratch:
            (self._folder / self._file.name).write_bytes(self._file.read_bytes())

    def close(self) -> None:
        self._flush()
        self._events.close()
        if self._scratch:
            self._scratch.cleanup()


class MetricWriter:
    """TensorBoard events and `metrics.jsonl` in a run's folder; use it in one process only.

    What cannot be written is told once and left out: figures are no reason to end a run.
    """

    def __init__(
        self,
        workdir: Path,
        first_step: int,
        evaluated: Collection[str],
        tell: Callable[[str], None],
    ):
        """Continues the logs of a run resumed at `first_step`: later entries are dropped, and
        evaluations at that step too, but for those named in `evaluated`: the others come again."""
        self._path, self._board_path = workdir / "metrics.jsonl", workdir / "tensorboard"
        self._tell = tell
        self._told: set[Path] = set()
        self._board: Board | None = None
        with self._telling(self._path):
            _drop_after(self._path, first_step, evaluated)
        with self._telling(self._board_path):
            self._board = Board(self._board_path, first_step)

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """Writes figures under `group`, such as "train" or "valid".

        JSON has no word for figures that are not finite: in `metrics.jsonl` they are left out.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        record = {"step": step, "group": group, **finite}
        with self._telling(self._path):
            append_text(self._path, json.dumps(record, allow_nan=False) + "\n")
        if self._board is not None:
            with self._telling(self._board_path):
                self._board.write(step, group, values)

    @contextlib.contextmanager
    def _telling(self, path: Path):
        try:
            yield
        except (
            Exception
        ) as error:  # of the file system, or of whatever the library of a store raises
            if path not in self._told:
                self._told.add(path)
                reason = getattr(error, "strerror", None) or error
                self._tell(
                    f"Warning: {path} cannot be written: {reason}. Training goes on; what "
                    "cannot be logged is left out."
                )

    def close(self) -> None:
        if self._board is not None:
            with self._telling(self._board_path):
                self._board.close()


def write_scalars(folder: Path, step: int, group: str, values: dict[str, float]) -> None:
    """Writes figures of one step to TensorBoard, as a run of their own below `folder`."""
    with contextlib.closing(Board(folder)) as board:
        board.write(step, group, values)


def last_logged_step(workdir: Path) -> int:
    """The last step that the logs of a run tell of; 0 when there are none."""
    return max((record["step"] for _, record in _records(workdir / "metrics.jsonl")), default=0)


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
