"""Where figures go, and what a device could do at most."""

import datetime
import json
import math
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from tensorboardX import SummaryWriter

# Dense matrix peak of one device in FLOP/s for bfloat16, from the makers' data sheets. The part
# after the colon of a TPU's kind varies by generation, so the longest match wins.
_PEAK_FLOPS = {
    "TPU v2": 45e12, "TPU v3": 123e12, "TPU v4": 275e12, "TPU v5 lite": 197e12,
    "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12, "TPU v6 lite": 918e12,
    "TPU v6e": 918e12, "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}  # fmt: skip


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


class MetricWriter:
    """TensorBoard events and `metrics.jsonl` in a run's folder; use it in one process only."""

    def __init__(self, workdir: Path, first_step: int):
        """Continues the logs of a run that goes on from `first_step`: later entries are dropped."""
        self._path = workdir / "metrics.jsonl"
        _drop_after(self._path, first_step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115, closed by close()
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """Writes figures under `group`, such as "train" or "valid"."""
        for name, value in values.items():
            self._board.add_scalar(f"{group}/{name}", value, step)
        self._board.flush()
        record = {"step": step, "group": group, **values}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()


def write_scalars(folder: Path, step: int, group: str, values: dict[str, float]) -> None:
    """Writes figures of one step to TensorBoard, as a run of their own below `folder`."""
    with SummaryWriter(str(folder)) as board:
        for name, value in values.items():
            board.add_scalar(f"{group}/{name}", value, step)


def _drop_after(path: Path, last_step: int) -> None:
    """Keeps the records up to a step; what a killed run wrote after it will come again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when the run was killed
        if record["step"] <= last_step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def format_count(number: float) -> str:
    """1234 -> "1.23k"."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}"


def format_seconds(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
