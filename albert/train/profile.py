"""Traces of some steps by jax's profiler, for TensorBoard's profile page (xprof)."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from albert.runtime.paths import is_remote

FOLDER = "profile"  # below the workdir


class Profile:
    """Traces steps `first` to `last`, counted from 1, of this process: each writes its own.

    Args:
      workdir: of the run; the trace goes into FOLDER there.
      say: told where it is, or why there is none.
    """

    def __init__(self, first: int, last: int, workdir: Path, say: Callable[[str], None]):
        self._first, self._last = first, last
        self._folder, self._say = workdir / FOLDER, say
        self._scratch: str | None = None
        self._traces = False

    def opened(self, step: int) -> None:
        """The run begins or goes on behind this step."""
        if step >= self._first:
            self._say(
                f"No profile: the run is at step {step} already, and steps {self._first} to "
                f"{self._last} were asked for."
            )

    def step(self, step: int) -> contextlib.AbstractContextManager:
        """In which a step is taken; marked as one in the trace."""
        if step == self._first:
            remote = is_remote(self._folder)
            self._scratch = tempfile.mkdtemp(prefix="albert-profile-") if remote else None
            jax.profiler.start_trace(self._scratch or str(self._folder))
            self._traces = True
        if not self._traces:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, state) -> None:
        """Behind a step; `state`: what it gave, waited for where it is the last."""
        if self._traces and step == self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends a trace that goes on, as when the run is stopped in it, and says where it is."""
        if not self._traces:
            return
        self._traces = False
        jax.profiler.stop_trace()
        if self._scratch:
            scratch = Path(self._scratch)
            for file in scratch.rglob("*"):
                if file.is_file():
                    target = self._folder / file.relative_to(scratch)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
            shutil.rmtree(scratch)
        self._say(
            f"Profile of steps {self._first} to {self._last}: {self._folder}. Look at it with:\n"
            f"  pip install xprof && tensorboard --logdir {self._folder}"
        )
