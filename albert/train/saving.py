"""When the state of a run is saved, and what happens when that fails."""

import errno
import os
import time
from collections.abc import Callable

import numpy as np

from albert.checkpoints.agreement import CannotAgree, agreed_value
from albert.checkpoints.store import Checkpoints
from albert.runtime import RunError
from albert.train.config import TrainConfig
from albert.train.progress import Progress
from albert.train.step import TrainState


class Saver:
    """Saves a run's state in the background and goes on when that fails, but not for ever.

    Args:
      checkpoints: where to.
      config: for its intervals and `max_failed_saves`.
      tell: says a sentence to the user.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: TrainConfig,
        tell: Callable[[str], None],
    ):
        self._checkpoints = checkpoints
        self.description: dict = {}  # of the run, saved with every checkpoint
        self._config = config
        self._tell = tell
        self._failed, self._most = 0, config.max_failed_saves  # in a row
        self._time = time.monotonic()
        self.step: int | None = None  # last one given to `save` or restored
        self._best = agreed_value(min(checkpoints.losses().values(), default=np.inf))

    def is_due(self, step: int, loss: float | None, ends_phase: bool) -> bool:
        """Whether to save at this step, evaluated with this loss or not at all."""
        improved = loss is not None and loss < self._best
        self._best = min(self._best, loss) if loss is not None else self._best
        return step != self.step and (
            ends_phase
            or step % self._config.checkpoint_every == 0
            or (improved and self._config.keep_best > 0)
            or (step % self._config.log_every == 0 and self._minutes_passed())
        )

    def is_outdated(self, step: int) -> None:
        """What was saved of this step lacks what is known of it now: it is to be saved again."""
        if self.step == step:
            self.step = None

    def _minutes_passed(self) -> bool:
        """Whether a save by time is due; one process decides for all."""
        if not self._config.checkpoint_minutes:
            return False
        return bool(
            agreed_value(time.monotonic() - self._time >= 60 * self._config.checkpoint_minutes)
        )

    def save(
        self, step: int, state: TrainState, progress: Progress, loss: float | None = None
    ) -> None:
        """Starts to save; raises RunError after too many failures in a row.

        Args:
          step: of the loop.
          state: at that step.
          progress: of the run at that step.
          loss: held out, if it was evaluated at this step.
        """
        self._time = time.monotonic()
        self.finish()
        self.step = step
        description = self.description | progress.as_json()  # written in the background
        try:
            self._checkpoints.save(step, *split(state), description, loss)
        except CannotAgree:
            raise
        except Exception as error:
            self._count(error)

    def look(self) -> None:
        """Tells at once of a save that has failed in the background; does not wait."""
        self._judged(self._checkpoints.look)

    def save_now(
        self, step: int, state: TrainState, progress: Progress, loss: float | None = None
    ) -> None:
        """As `save`, and returns when it is on disk, whoever began to save it; tries again when
        that fails.

        Raises RunError after too many failures in a row.
        """
        self.finish()
        while self.step != step:
            self.save(step, state, progress, loss)
            self.finish()

    def finish(self) -> None:
        """Waits for what is being saved; raises RunError after too many failures in a row."""
        self._judged(self._checkpoints.wait)

    def _judged(self, outcome: Callable[[], bool]) -> None:
        try:
            if outcome():
                self._failed = 0
        except Exception as error:  # Orbax, TensorStore and the file system raise many kinds
            self._count(error)

    def _count(self, error: Exception) -> None:
        self._failed += 1
        step, self.step = self.step, None  # it is not saved
        told = [f"The checkpoint of step {step} could not be saved: {_words(error)}."]
        advice = _advice(error)
        if self._failed < self._most:
            told += [f"Meanwhile: {advice[0].lower()}{advice[1:]}."] if advice else []
            told.append(
                f"The next save tries again; after {self._most} failures in a row the run stops."
            )
            self._tell(f"Warning: {' '.join(told)}")
            return
        steps = self._checkpoints.steps()
        told.append(f"That was the {self._failed}. failure in a row.")
        told.append(
            f"The newest checkpoint is step {steps[-1]}." if steps else "There is no checkpoint."
        )
        told.append(f"{advice}, then give the same command again." if advice else _TRY_AGAIN)
        raise RunError(" ".join(told)) from error


_TRY_AGAIN = "Find the cause, then give the same command again."


def split(state: TrainState) -> tuple[dict, dict]:
    """Parameters, which evaluation reads alone, and the rest."""
    training = dict(vars(state))
    return training.pop("params"), training


def restore(checkpoints: Checkpoints, step: int, like: TrainState) -> TrainState:
    """The state that was saved at a step, placed as the abstract arrays of `like`."""
    params, training = checkpoints.restore(step, *split(like))
    return TrainState(params=params, **training)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]


# What helps against what the operating system said; against anything else there is no advice.
_ADVICE = {
    errno.ENOSPC: "Make room on the disk, or lower train.keep_last",
    errno.EDQUOT: "Make room in the quota, or have it raised",
    errno.EFBIG: "Allow larger files (ulimit -f, or another file system)",
    errno.EACCES: "Give this user the right to write there",
    errno.EPERM: "Give this user the right to write there",
    errno.EROFS: "Make the file system writable",
    errno.EMFILE: "Allow more open files (ulimit -n)",
    errno.ENFILE: "Allow more open files on this machine",
    errno.EIO: "Look at the disk, which may be failing",
    errno.ESTALE: "Mount the network file system anew",
    errno.ENOMEM: "Give this machine more memory: a save copies the state into it",
}
# TensorStore repeats the operating system's words.
_IN_WORDS = {os.strerror(number): advice for number, advice in _ADVICE.items()}


def _advice(error: BaseException) -> str:
    """What would help, by the kind of an error or of the one that it came from; empty where nobody
    can say."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError):
            return _ADVICE[errno.ENOMEM]
        if isinstance(seen, OSError) and seen.errno in _ADVICE:
            return _ADVICE[seen.errno]
        for words, advice in _IN_WORDS.items():
            if words in str(seen):
                return advice
        if "out of memory" in str(seen).lower():  # of a device, while sums are made
            return "Leave more of the device's memory free (train.batch_size, model.remat)"
        seen = seen.__cause__
    return ""
