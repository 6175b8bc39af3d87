"""Where figures go, and what a device could do at most."""

import contextlib
import datetime
import json
import math
import resource
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import jax.numpy as jnp
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from albert.runtime.paths import append_text, is_remote, replace_text

# Dense matrix peak of one device in FLOP/s for bfloat16, from the makers' data sheets. The part
# after the colon of a TPU's kind varies by generation, so the longest match wins.
_PEAK_FLOPS = {
    "TPU v2": 45e12,
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(dtype) -> tuple[float, str]:
    """FLOP/s of one device at best, and where the number comes from.

    A kind of device that is not in the table is measured with a matrix product in `dtype`.
    """
    kind = jax.local_devices()[0].device_kind
    for name in sorted(_PEAK_FLOPS, key=len, reverse=True):
        if kind.startswith(name):
            return _PEAK_FLOPS[name], f"data sheet of {name}, bfloat16"
    size, best = 1024, math.inf
    x = jnp.full((size, size), 0.5, dtype)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    for _ in range(8):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    # Simulated devices share the cores that this one product had to itself.
    share = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    peak = 2 * size**3 / best / share
    return peak, f"best of 8 {size} x {size} products in {jnp.dtype(dtype)} on {kind}"


def peak_memory_bytes() -> int:
    """The most that the first local device's allocator held; of a CPU, which has none, the most
    that this process was resident."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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


def format_count(number: float) -> str:
    """1234 -> "1.23k"."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}"


def format_seconds(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
