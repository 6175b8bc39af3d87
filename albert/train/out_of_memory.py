"""What a run leaves and says when the memory of a device does not suffice."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from albert.models import attention
from albert.models.config import REMAT_POLICIES
from albert.models.cost import layer_bytes
from albert.runtime import RunError
from albert.tasks.base import Task
from albert.train.capacity import fits_of, memory_line, remedy
from albert.train.compiler import EXHAUSTED
from albert.train.config import Config
from albert.train.hardware import device_memory_bytes

_SAID = 300  # characters of jax's own words


@contextlib.contextmanager
def explained(workdir: Path, busy_with: Callable[[], tuple[Config, Task, str]]) -> Iterator[None]:
    """Inside, an error of jax that the memory of a device is exhausted becomes a RunError with the
    figures of `--describe` and what to do, and what held the memory is written into the workdir.

    Args:
      busy_with: the config and the task of the phase that is reached, and what the run is doing, as
        `Clock.kind` has it.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if EXHAUSTED not in str(error):
            raise
        profile = _write_profile(workdir)  # while what filled the memory is still there
        raise RunError(_told(str(error), *busy_with(), profile)) from error


def _write_profile(workdir: Path) -> str:
    """Writes what holds the memory, and says where."""
    suffix = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = workdir / f"out_of_memory{suffix}.prof"
    try:
        path.write_bytes(jax.profiler.device_memory_profile())
    except Exception as error:  # of the backend, the file system, or the library of a store
        return f"What held the memory could not be written: {error}."
    return f"What held the memory is in {path}: pprof -http=: {path}"


def _told(error: str, config: Config, task: Task, doing: str, profile: str) -> str:
    said = f"The memory of a device does not suffice ({doing}): {error.strip()[:_SAID]}"
    if doing == "evaluation":
        size = config.train.eval_batch_size
        help_ = f"Set --config.train.eval_batch_size to less than {size}, its rows over all devices"
        return f"{said}\n{help_}, or look at what a step needs with --describe.\n{profile}"
    use = task.attention_use(config)
    here = attention.here(use) if use else None
    kernel = attention.choose(config.model.attention, here)[0] if here else "xla"
    model = task.distillation.model if task.distillation else None
    devices = jax.device_count(), device_memory_bytes(), jax.default_backend()
    fits = fits_of(config, *devices, kernel, model)
    own = fits[config.model.remat]
    length = use.length if use else task.tokens_per_row(config)
    kept = ", ".join(
        f"{layer_bytes(config.model, length, remat, kernel):,} with remat {remat}"
        for remat in REMAT_POLICIES
    )
    lines = [said, f"By arithmetic a step needs {memory_line(own)}."]
    if own.fits:
        lines[-1] += " That should fit: is the device shared with another process?"
    lines += [
        f"A layer keeps for each token, in bytes: {kept}. Rows that fit at once: "
        + ", ".join(f"{of.most_at_once} with remat {remat}" for remat, of in fits.items())
        + ".",
        remedy(config, fits),
        profile,
    ]
    return "\n".join(lines)
