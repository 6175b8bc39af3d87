"""The figures of every step: collected without making the device wait, logged, and judged."""

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
from albert.train.config import Config
from albert.train.cost import flops_per_token
from albert.train.hardware import peak_flops, peak_memory_bytes
from albert.train.log_files import MetricWriter

# Steps whose figures may still be on the device: the host runs ahead by so many, not more.
STEPS_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Steps in a row that changed nothing, because they were not finite or spiked."""

    last: int  # the step after which they had become too many
    number: int


class RunLog:
    """Collects the figures of every step without making the device wait for the host."""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        first_step: int,
        evaluated: bool,
        figures: list[dict[str, float]],
        rows_per_epoch: int,
        say: Callable[[str], None],
    ):
        """`evaluated`: whether the state of `first_step` was, and its log kept."""
        self._config = config
        self._say = say
        self._rows_per_epoch = rows_per_epoch
        self._writer = (
            MetricWriter(workdir, first_step, evaluated, say) if jax.process_index() == 0 else None
        )
        self.divergence: Divergence | None = None  # for the loop to act upon
        peak, origin = peak_flops(DTYPES[config.model.dtype])
        say(
            f"{jax.device_count()} x {jax.devices()[0].device_kind}; MFU counts against "
            f"{format_count(peak)}FLOP/s each ({origin})."
        )
        tokens = config.train.batch_size * config.data.seq_length
        self._flops_per_step = tokens * flops_per_token(
            config.model, config.data.seq_length, config.data.max_predictions
        )
        self._peak = peak * jax.device_count()
        self._pending: deque = deque()
        self.figures = figures  # of the steps since the last line
        # When the last step was finished; None before the first and after a pause, so that
        # compiling, evaluating and saving count for no step.
        self._since: float | None = None
        self._elapsed, self._timed_steps, self._waited = 0.0, 0, 0.0

    def step(self, step: int, metrics, waited: float) -> None:
        """Takes the figures of a step that was just started."""
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
        self.figures.append(values)
        if self._since is not None:
            self._elapsed += now - self._since
            self._timed_steps += 1
        self._since = now
        if step % self._config.train.log_every == 0 or step == self._config.train.num_steps:
            self._write(step)

    def _write(self, step: int) -> None:
        config = self._config
        last = self.figures[-1]
        means = ["loss", "mlm_loss", "mlm_accuracy", "grad_norm", "update_norm"]
        if config.data.sentence_objective != "none":
            means += ["sop_loss", "sop_accuracy"]
        # Steps that were skipped have no figures worth a mean; bad_steps tells of them.
        finite = [v for v in self.figures if math.isfinite(v["loss"] + v["grad_norm"])]
        values = {n: float(np.mean([v[n] for v in finite])) for n in means} if finite else {}
        values |= {n: last[n] for n in ("learning_rate", "param_norm", "bad_steps")}
        values["epoch"] = step * config.train.batch_size / self._rows_per_epoch
        line = f"step {step}/{config.train.num_steps}  "
        line += (
            f"loss {values['loss']:.3f}  "
            f"mlm {values['mlm_loss']:.3f} ({100 * values['mlm_accuracy']:.1f} %)"
            if finite
            else "loss not finite"
        )
        if finite and "sop_loss" in values:
            line += f"  sop {values['sop_loss']:.3f} ({100 * values['sop_accuracy']:.1f} %)"
        if self._timed_steps:
            seconds = self._elapsed / self._timed_steps
            real = float(np.mean([v["real_tokens"] for v in self.figures]))
            values |= {
                "step_seconds": seconds,
                "rows_per_second": config.train.batch_size / seconds,
                "real_tokens_per_second": real / seconds,
                "padded_tokens_per_second": config.train.batch_size
                * config.data.seq_length
                / seconds,
                "mfu": self._flops_per_step / seconds / self._peak,
                "data_wait_share": min(self._waited / self._elapsed, 1.0),
                "peak_memory_bytes": peak_memory_bytes(),
            }
            left = seconds * (config.train.num_steps - step)
            line += (
                f"  {format_count(values['real_tokens_per_second'])} tokens/s  "
                f"waiting for data {100 * values['data_wait_share']:.0f} %  "
                f"ETA {format_seconds(left)}"
            )
        if last["bad_steps"]:
            line += f"  skipped {last['bad_steps']:.0f}"
        if self._writer:
            self._writer.write(step, "train", values)
        self._say(line)
        self.figures, self._elapsed, self._timed_steps, self._waited = [], 0.0, 0, 0.0

    def evaluated(self, step: int, result: dict[str, float]) -> None:
        if self._writer:
            self._writer.write(step, "valid", result)
        line = (
            f"step {step}  held-out: mlm {result['mlm_loss']:.3f} "
            f"({100 * result['mlm_accuracy']:.1f} %), unigram entropy "
            f"{result['unigram_entropy']:.3f}"
        )
        if "sop_loss" in result:
            line += f"; sop {result['sop_loss']:.3f} ({100 * result['sop_accuracy']:.1f} %)"
        self._say(line)

    def rolled_back(self) -> None:
        """Forgets the steps that were undone; their figures stay in the log."""
        self._pending.clear()
        self.figures = []
        self.divergence = None

    def close(self) -> None:
        if self._writer:
            self._writer.close()
