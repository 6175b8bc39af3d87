"""TensorBoard's event files."""

import contextlib
import tempfile
import time
import uuid
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from albert.runtime.paths import is_remote
from albert.train.writers.base import About, Writer


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


class TensorBoard(Writer):
    """Event files below `tensorboard/`; those of a part in a folder of its own there."""

    def __init__(self, about: About):
        self._board = Board(_folder(about), about.first_step)

    @staticmethod
    def place(about: About) -> str:
        return str(_folder(about))

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        self._board.write(step, group, values)

    def write_picture(self, step: int, name: str, png: bytes) -> None:
        self._board.write_picture(step, name, png)

    def close(self) -> None:
        self._board.close()


def _folder(about: About) -> Path:
    return about.workdir / "tensorboard" / about.part


def write_scalars(folder: Path, step: int, group: str, values: dict[str, float]) -> None:
    """Writes figures of one step to TensorBoard, as a run of their own below `folder`."""
    with contextlib.closing(Board(folder)) as board:
        board.write(step, group, values)
