"""From rows to the batches a process feeds its devices, made ahead of time by Grain workers.

Never imports jax itself; worker processes import this module.
"""

import dataclasses
import os
from collections.abc import Sequence

import grain
import numpy as np

from albert.data.examples import Examples

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """The batches of a run, indexed by step: `source[step]` needs nothing that came before."""

    examples: Examples
    batch_size: int  # of the whole batch, over all processes
    rows: tuple[int, ...]  # which rows of every batch this process makes, in order
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:
        first = step * self.batch_size
        examples = [self.examples[first + row] for row in self.rows]
        return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def iterate(source: BatchSource, first_step: int, workers: int) -> grain.DatasetIterator[Batch]:
    """Batches from `first_step` to the last, in order, made ahead in `workers` processes.

    No workers means a thread of this process. Close the iterator to end the workers.
    """
    dataset = grain.MapDataset.source(source)[first_step:].to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    )
    if workers:
        _parse_absl_flags()
        # Grain's workers leave one batch of shared memory to Python's resource tracker, which
        # frees it at exit as it should, but warns of a leak in the middle of our last lines.
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
        )
    return iter(dataset)


def heldout_batch(examples: Examples, batch_size: int, rows: Sequence[int], index: int,
                  num_rows: int) -> Batch:  # fmt: skip
    """Batch `index` of the first `num_rows` rows; rows past the end are padding without labels."""
    first = index * batch_size
    made = [examples[first + row] if first + row < num_rows else _padding(examples) for row in rows]
    return {name: np.stack([e[name] for e in made]) for name in made[0]}


def _padding(examples: Examples) -> Batch:
    options = examples.options
    tokens = np.zeros(options.seq_length, np.int32)
    predictions = np.zeros(options.max_predictions, np.int32)
    return {
        "input_ids": tokens,
        "token_type_ids": tokens,
        "attention_mask": tokens,
        "mlm_positions": predictions,
        "mlm_labels": predictions,
        "mlm_weights": predictions.astype(np.float32),
        "sop_labels": np.array(-1, np.int32),
    }


def _parse_absl_flags() -> None:
    """Grain's worker processes refuse to start where absl flags were never parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
