"""What went wrong on one of several processes has gone wrong on all: they go on alike, or end."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from albert.checkpoints import CheckpointError
from albert.runtime import RunError
from albert.runtime.console import warn

Made = TypeVar("Made")


class CannotAgree(RunError):
    """A process has failed where the others cannot be told of it: only its end tells them."""


def this_process() -> int | None:
    """The number of this process; None where it is the only one."""
    return jax.process_index() if jax.process_count() > 1 else None


def agreed_error(error: Exception | None) -> Exception | None:
    """What all processes are to raise, or None where nothing went wrong on any.

    Call it on all of them at the same place. A process that has an error of its own gets that one
    back; where the first process has none, which speaks for all, the others warn of theirs.

    Args:
      error: what went wrong on this process.
    """
    if jax.process_count() == 1:
        return error
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array(error is not None)))
    if not failed.size:
        return None
    if error is None:
        noun = "process" if failed.size == 1 else "processes"
        return CheckpointError(f"{noun} {', '.join(map(str, failed))} failed and says why")
    if jax.process_index():
        warn(f"{type(error).__name__}: {error}", this_process())
    return error


def agreed(make: Callable[[], Made]) -> Made:
    """What `make` gives on this process; where it fails on any, it is raised on all, so that none
    waits for another that has ended. Call it on all of them at the same place."""
    made: list[Made] = []
    error = None
    try:
        made.append(make())
    except Exception as raised:
        error = raised
    error = agreed_error(error)
    if error is not None:
        raise error
    return made[0]


def agreed_value(value: float) -> float:
    """That of the first process, to the bit, on all; call it on all of them at the same place."""
    if jax.process_count() == 1:
        return value
    # As bytes: arrays of jax have 32 bits.
    mine = np.frombuffer(np.float64(value).tobytes(), np.uint8)
    first = np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8)
    return float(np.frombuffer(first.tobytes(), np.float64)[0])
