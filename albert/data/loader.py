"""From rows to the batches a process feeds its devices, made ahead of time by Grain workers.

Never imports jax itself; worker processes import this module.
"""

import dataclasses
import os
import signal
from collections.abc import Sequence
from multiprocessing import resource_tracker
from typing import Protocol

import grain
import numpy as np

Batch = dict[str, np.ndarray]


class Rows(Protocol):
    """Rows, each a pure function of (data, seed, row number). Picklable, without jax."""

    @property
    def rows_per_epoch(self) -> int: ...

    def batch(self, rows: Sequence[int], whole: Sequence[int] | None = None) -> Batch:
        """The rows with these numbers, one behind the other; a negative one is padding that counts
        in no figure.

        `whole` are those of the batch over all processes, of which these are some; None: these are
        all. Shapes may follow from them, and differ from batch to batch.
        """
        ...


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """The batches of a run, indexed by step: `source[step]` needs nothing that came before."""

    examples: Rows
    batch_size: int  # of the whole batch, over all processes
    rows: tuple[int, ...]  # which rows of every batch this process makes, in order
    num_steps: int
    first_step: int = 0  # steps of the run before the first batch of this size and these rows
    first_row: int = 0  # of that batch

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:
        first = self.first_row + (step - self.first_step) * self.batch_size
        whole = range(first, first + self.batch_size)
        return self.examples.batch([whole[row] for row in self.rows], whole)


def iterate(source: BatchSource, first_step: int, workers: int) -> grain.DatasetIterator[Batch]:
    """Batches from `first_step` to the last, in order, made ahead in `workers` processes.

    No workers means a thread of this process. Close the iterator to end the workers.
    """
    dataset = grain.MapDataset.source(source)[first_step:].to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    )
    if workers:
        _parse_absl_flags()
        _start_quiet_resource_tracker()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4),
            worker_init_fn=_leave_ctrl_c_to_the_parent,
        )
    return iter(dataset)


def _start_quiet_resource_tracker() -> None:
    """Starts Python's resource tracker, if it is not running, without its warning at exit.

    Grain's workers leave one batch of shared memory to it. It frees that as it should, but warns
    of a leak in the middle of a run's last lines. It is a process of its own, whose warnings are
    only told by its environment, so that it is started with another one.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = before or "ignore:resource_tracker:UserWarning"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _leave_ctrl_c_to_the_parent(number: int, count: int) -> None:
    """A terminal sends it to every process of the run; the parent still needs their batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def heldout_batch(
    examples: Rows, batch_size: int, rows: Sequence[int], index: int, num_rows: int
) -> Batch:
    """Batch `index` of the first `num_rows` rows; rows past the end are padding without labels."""
    first = index * batch_size
    whole = [row if row < num_rows else -1 for row in range(first, first + batch_size)]
    return examples.batch([whole[row] for row in rows], whole)


def _parse_absl_flags() -> None:
    """Grain's worker processes refuse to start where absl flags were never parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
