"""The metrics of every step: collected without making the device wait, logged, and judged."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from albert.models.config import DTYPES
from albert.runtime.console import format_count, format_seconds
from albert.tasks.base import Evaluation, Task
from albert.train.config import Config, as_plain
from albert.train.cost import flops_per_row
from albert.train.goodput import Clock
from albert.train.hardware import peak_flops, peak_memory_bytes
from albert.train.phases import Phase
from albert.train.progress import Progress
from albert.train.writers import MetricWriter
from albert.train.writers.base import About

# Metrics that say where the run is; the others are averaged over the steps of a line.
_STATES = ("learning_rate", "param_norm", "bad_steps", "bad_steps_in_row")
# Steps whose metrics may still be on the device: the host runs ahead by so many, not more.
STEPS_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Steps in a row that changed nothing, because they were not finite or spiked."""

    last: int  # the step after which they had become too many
    number: int


class RunLog:
    """Collects the metrics of every step without making the device wait for the host."""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        first_step: int,
        progress: Progress,
        say: Callable[[str], None],
        clock: Clock,
    ):
        """Goes on with the logs of a run at `first_step`; `enter` must follow."""
        self._config, self._progress, self._say = config, progress, say
        self._clock = clock
        about = About(workdir, as_plain(config), first_step, progress.evaluated)
        self._writer = (
            MetricWriter(config.train.writers, about, say) if jax.process_index() == 0 else None
        )
        self.divergence: Divergence | None = None  # for the loop to act upon
        peak, origin = peak_flops(DTYPES[config.model.dtype])
        say(
            f"{jax.device_count()} x {jax.devices()[0].device_kind}; MFU counts against "
            f"{format_count(peak)}FLOP/s each ({origin})."
        )
        self._peak = peak * jax.device_count()
        self._pending: deque = deque()
        # When the last step was finished; None before the first and after a pause, so that
        # compiling, evaluating and saving count for no step.
        self._since: float | None = None
        self._elapsed, self._timed_steps, self._waited = 0.0, 0, 0.0

    def enter(self, phase: Phase, task: Task) -> None:
        """The steps from here on are of this phase; those before were flushed."""
        self._config, self._phase, self._task = phase.config, phase, task
        self._flops_per_step = phase.config.train.batch_size * flops_per_row(
            phase.config, task.distillation.model.config if task.distillation else None
        )

    def step(self, step: int, metrics, waited: float) -> None:
        """Takes the metrics of a step that was started, and the seconds waited for its data."""
        self._pending.append((step, metrics))
        self._waited += waited if self._since is not None else 0.0
        while len(self._pending) > STEPS_AHEAD:
            self._collect()

    def flush(self) -> None:
        """Waits for every step that was started, and stops the clock until the next."""
        while self._pending:
            self._collect()
        self._since = None

    def _collect(self) -> None:
        step, metrics = self._pending.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        if values["bad_steps_in_row"] >= self._config.train.max_bad_steps:
            self.divergence = Divergence(step, int(values["bad_steps_in_row"]))
        self._progress.unlogged.append(values)
        if self._since is not None:
            self._elapsed += now - self._since
            self._timed_steps += 1
        self._since = now
        if step % self._config.train.log_every == 0 or step == self._phase.end:
            self._write(step)

    def _write(self, step: int) -> None:
        config, task, steps = self._config, self._task, self._progress.unlogged
        last = steps[-1]
        # Steps that were skipped have no metrics worth a mean; bad_steps tells of them.
        finite = [v for v in steps if math.isfinite(v["loss"] + v["grad_norm"])]
        means = [name for name in last if name not in (*_STATES, *task.amounts)]
        values = {n: float(np.mean([v[n] for v in finite])) for n in means} if finite else {}
        values |= {n: last[n] for n in ("learning_rate", "param_norm", "bad_steps")}
        assert task.rows is not None
        values["goodput"] = self._clock.goodput
        values["epoch"] = self._phase.row_at(step) / task.rows.rows_per_epoch
        line = f"step {step}/{config.train.num_steps}  "
        line += f"loss {values['loss']:.3f}  {task.line(values)}" if finite else "loss not finite"
        if self._timed_steps:
            seconds = self._elapsed / self._timed_steps
            per_second = {
                f"{name}_per_second": float(np.mean([v[name] for v in steps])) / seconds
                for name in task.amounts
            }
            values |= {
                "step_seconds": seconds,
                "rows_per_second": config.train.batch_size / seconds,
                **per_second,
                "mfu": float(np.mean([self._flops(v) for v in steps])) / seconds / self._peak,
                "data_wait_share": min(self._waited / self._elapsed, 1.0),
                "peak_memory_bytes": peak_memory_bytes(),
            }
            name = task.amounts[0] if task.amounts else "rows"
            speed = format_count(values[f"{name}_per_second"])
            left = seconds * (self._phase.end - step)
            until = "ETA" if self._phase.end == config.train.num_steps else "ETA of the phase"
            line += (
                f"  {speed} {name.split('_')[-1]}/s  "
                f"waiting for data {100 * values['data_wait_share']:.0f} %  "
                f"{until} {format_seconds(left)}"
            )
        if last["bad_steps"]:
            line += f"  skipped {last['bad_steps']:.0f}"
        if self._writer:
            self._writer.write(step, "train", values)
        self._say(line)
        steps.clear()
        self._elapsed, self._timed_steps, self._waited = 0.0, 0, 0.0

    def _flops(self, metrics: dict[str, float]) -> float:
        found = self._task.flops_of(metrics)
        return self._flops_per_step if found is None else found

    def evaluated(self, step: int, evaluation: Evaluation, figures: dict[str, float]) -> None:
        """Logs an evaluation."""
        if self._writer:
            self._writer.write(step, evaluation.name, figures)
        self._say(f"step {step}  {evaluation.line(figures)}")

    def rolled_back(self) -> None:
        """Forgets the steps that were undone; their metrics stay in the log."""
        self._pending.clear()
        self._progress.unlogged.clear()
        self._since = None
        self._elapsed, self._timed_steps, self._waited = 0.0, 0, 0.0
        self.divergence = None

    def close(self) -> None:
        if self._writer:
            self._writer.close()
