"""What happens to runs: signals and deaths at any phase, and numbers that are not finite."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np

from albert.tasks import TASKS
from albert.tasks.pretraining import Pretraining


def signal_at(phase, step, how=(signal.SIGTERM,)):
    """Watches a run, and sends it signals in front of a phase."""

    def watch(now, taken):
        if (now, taken) == (phase, step):
            for number in how:
                os.kill(os.getpid(), number)

    return watch


def killed_at(phase, step, error=MemoryError):
    """Watches a run, and ends it in front of a phase as nothing that it expects would."""

    def watch(now, taken):
        if (now, taken) == (phase, step):
            raise error

    return watch


class PoisonedRows:
    """Rows whose steps of these numbers give no finite loss."""

    def __init__(self, rows, steps, batch_size, value):
        self.rows, self.steps, self.batch_size, self.value = rows, steps, batch_size, value
        self.rows_per_epoch = rows.rows_per_epoch

    def batch(self, rows, whole=None):
        made = self.rows.batch(rows, whole)
        if rows[0] // self.batch_size + 1 in self.steps:
            made = {**made, "mlm_weights": np.full_like(made["mlm_weights"], self.value)}
        return made


def hungry(monkeypatch, size):
    """Pretraining whose step asks for so many bytes that no device has."""

    class Hungry(Pretraining):
        def sums(self, params, rows, dropout_keys):
            sums = super().sums(params, rows, dropout_keys)
            if dropout_keys is None:
                return sums
            side = int((size / 4) ** 0.5)
            numbers = jnp.arange(side**2, dtype=jnp.float32).reshape(side, side)
            # Sorted, so that it has to be there as a whole.
            of_all = jnp.sort(numbers * jax.lax.stop_gradient(sums["mlm_nll"]), axis=0)[0, 0]
            return sums | {"mlm_nll": sums["mlm_nll"] + of_all}

    monkeypatch.setitem(TASKS, "pretraining", Hungry)


def poisoned(monkeypatch, steps, value=np.inf):
    """Pretraining on such rows."""

    class Poisoned(Pretraining):
        @classmethod
        def prepare(cls, config, *arguments):
            task = super().prepare(config, *arguments)
            task.rows = PoisonedRows(task.rows, steps, config.train.batch_size, value)
            return task

    monkeypatch.setitem(TASKS, "pretraining", Poisoned)
