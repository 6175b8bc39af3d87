"""What is done when update after update has to be skipped."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from albert.checkpoints.agreement import this_process
from albert.checkpoints.store import Checkpoints
from albert.data.loader import BatchSource
from albert.runtime import RunError
from albert.runtime.console import warn
from albert.train.log import Divergence
from albert.train.saving import restore
from albert.train.step import TrainState

FOLDER = "diverged"
_MAX_ROLLBACKS = 3  # in one go of a run


def save_rows(workdir: Path, source: BatchSource, divergence: Divergence) -> list[Path]:
    """Writes this process's rows of the offending steps, for `tools/show_batch.py --file`."""
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    paths = []
    first = max(divergence.last - divergence.number, source.first_step)  # of this phase
    for step in range(first, divergence.last):
        suffix = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
        paths.append(folder / f"step_{step}{suffix}.npz")
        rows = io.BytesIO()
        arrays: dict[str, Any] = dict(source[step])
        np.savez_compressed(rows, **arrays)  # no options: NumPy 2.0 takes them for arrays
        paths[-1].write_bytes(rows.getvalue())
    return paths


def report(workdir: Path, source: BatchSource, divergence: Divergence, steps: list[int]) -> str:
    """Keeps the offending rows and says what happened, in sentences."""
    try:
        paths = save_rows(workdir, source, divergence)
        rows = f" Their rows: python tools/show_batch.py --file={paths[-1]}"
    except Exception as error:  # of the file system, or of the library of a store
        reason = getattr(error, "strerror", None) or error
        rows = f" Their rows could not be saved: {reason}."
        if jax.process_index():  # the first process speaks for all, and not of this
            warn(rows.strip(), this_process())
    good = f"The newest checkpoint is step {steps[-1]}." if steps else "There is no checkpoint."
    return (
        f"Training diverged: {divergence.number} steps in a row were not finite or spiked, the "
        f"last of them step {divergence.last}. {good}{rows}"
    )


class Rollbacks:
    """Goes back to the newest checkpoint and on behind the rows that were the matter."""

    def __init__(self, checkpoints: Checkpoints, say: Callable[[str], None]):
        self._checkpoints = checkpoints
        self._say = say
        self._number = 0

    def roll_back(self, step: int, like: TrainState, told: str) -> TrainState:
        """The newest sound state, as if all steps since had been skipped.

        Args:
          step: of the loop: batches drawn so far, which are not drawn again.
          like: the abstract state.
          told: the sentences of `report`.

        Raises RunError when there is no checkpoint, or it was done too often.
        """
        self._number += 1
        if self._number > _MAX_ROLLBACKS:
            raise RunError(f"{told}\nIt was rolled back {_MAX_ROLLBACKS} times before.")
        self._checkpoints.wait()
        saved = self._checkpoints.newest_sound(self._say)
        if saved is None:
            raise RunError(f"{told}\nThere is nothing to roll back to.")
        self._say(
            f"{told}\nRolled back to step {saved}; resuming with the rows of step {step + 1}."
        )
        state = restore(self._checkpoints, saved, like)
        skipped = state.bad_steps + (step - saved)

        def number(value, like):
            return jax.device_put(jnp.asarray(value, jnp.int32), like.sharding)

        return state.replace(
            step=number(step, like.step),
            bad_steps=number(skipped, like.bad_steps),
            bad_steps_in_row=number(0, like.bad_steps_in_row),
        )
