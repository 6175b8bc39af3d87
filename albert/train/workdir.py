"""Claiming a workdir: finding out at once whether it can be written, and taking it for one job."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from albert.runtime import RunError
from albert.runtime.lock import WorkdirLock
from albert.runtime.paths import is_remote
from albert.train.processes import check_shared


def claim(workdir: Path) -> None:
    """Finds out at once whether the workdir can be written, and is one and the same to all
    processes; raises RunError."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".write-test-{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # of the file system, or of whatever the library of a store raises
        if not isinstance(error, OSError) and not is_remote(workdir):
            raise
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"Cannot write to the workdir {workdir}: {reason}. Choose another --workdir."
        ) from error
    check_shared(workdir)


class NoLock:
    """That of the processes that leave it to the first."""

    lost = False

    def close(self) -> None:
        pass


def lock(workdir: Path, say: Callable[[str], None]) -> WorkdirLock | NoLock:
    """The first process takes the workdir for all; raises RunError on all when it cannot."""
    taken: WorkdirLock | NoLock = NoLock()
    error: RunError | None = None
    if jax.process_index() == 0:
        try:
            taken = WorkdirLock(workdir, say)
        except RunError as refused:
            error = refused
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.array(bool(error))):
        raise error or RunError(f"Another job works in {workdir}; the first process tells which.")
    if error:
        raise error
    return taken
