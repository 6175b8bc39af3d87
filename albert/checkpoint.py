"""Orbax checkpoints of a run: the parameters, the rest of the training state, and what it is.

Knows neither model nor data: trees in, trees out.
"""

import functools
import logging
import re
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

_ITEMS = ("params", "training", "info")
_TRAINING = "training"  # not there where weights alone were saved
_LOSS = "loss"  # the held-out figure that decides which checkpoint is best


class CheckpointError(RuntimeError):
    """There is no such checkpoint, or it cannot be read."""


@functools.cache
def _one_error_is_enough() -> None:
    """When one array cannot be read, the reads of others fail after it: each writes a page to
    stderr, some as late as the program's end. These are left out, the first is raised."""
    hook = sys.unraisablehook

    def without_reads(unraisable):
        read = "_read_array_index" in repr(unraisable.object)
        if not read and "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = without_reads
    logging.getLogger("asyncio").addFilter(
        lambda record: "exception was never retrieved" not in record.getMessage()
    )


class Checkpoints:
    """The checkpoints below one folder, written in the background.

    Keeps the newest `keep_last`, and the `keep_best` with the lowest held-out loss among those
    saved with one.
    """

    def __init__(self, folder: Path, keep_last: int = 1, keep_best: int = 0, create: bool = False):
        self.folder = folder
        if not create and not folder.is_dir():
            raise CheckpointError(f"{folder} holds no checkpoints: there is no such folder.")
        keep: list = [policies.LatestN(keep_last)]
        if keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[_LOSS],
                    reverse=True,  # sorted downwards, the last ones are kept
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                # The caller decides when to save.
                save_decision_policy=policies.FixedIntervalPolicy(1),
                cleanup_tmp_directories=create,
                create=create,
            ),
            item_names=_ITEMS,
        )

    def save(self, step: int, params, training, info: dict, loss: float | None) -> None:
        """Starts writing a checkpoint.

        `training` is None for weights alone; `loss` is the held-out loss at this very step, if
        known.
        """
        arguments = {"params": ocp.args.StandardSave(params), "info": ocp.args.JsonSave(info)}
        if training is not None:
            arguments[_TRAINING] = ocp.args.StandardSave(training)
        self._manager.save(
            step,
            args=ocp.args.Composite(**arguments),
            metrics=None if loss is None else {_LOSS: loss},
            force=True,
        )

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, ascending; an empty or foreign folder is none."""
        return sorted(
            step
            for step in self._manager.all_steps()
            if all((self.folder / str(step) / i).is_dir() for i in _ITEMS if i != _TRAINING)
        )

    def has_training(self, step: int) -> bool:
        """Whether an optimiser's state was saved as well; False for weights alone."""
        return (self.folder / str(step) / _TRAINING).is_dir()

    def info(self, step: int) -> dict:
        """The description saved with a checkpoint."""
        return self._restore(step, info=ocp.args.JsonRestore())["info"]

    def restore_params(self, step: int, like):
        """The parameters only, placed as the abstract arrays of `like`."""
        return self._restore(step, params=ocp.args.StandardRestore(like))["params"]

    def restore_arrays(self, step: int, item: str):
        """The item "params" or "training" as NumPy arrays, whatever devices wrote it."""
        try:
            folder = self.folder.absolute() / str(step) / item
            metadata = ocp.StandardCheckpointHandler().metadata(folder)
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
                metadata.tree,
            )
        except Exception as error:
            raise self._unreadable(step, error) from error
        restored = self._restore(step, **{item: ocp.args.StandardRestore(like)})[item]
        return jax.tree.map(np.asarray, restored)

    def restore(self, step: int, params_like, training_like):
        """Parameters and the rest of the training state, placed as the abstract arrays say."""
        restored = self._restore(
            step,
            params=ocp.args.StandardRestore(params_like),
            training=ocp.args.StandardRestore(training_like),
        )
        return restored["params"], restored["training"]

    def _restore(self, step: int, **arguments):
        if step not in self.steps():
            raise CheckpointError(
                f"{self.folder} has no checkpoint of step {step}; "
                f"it has {', '.join(map(str, self.steps())) or 'none'}."
            )
        _one_error_is_enough()
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**arguments))
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> CheckpointError:
        # TensorStore's message goes on for pages; in them stands which array it was.
        text = str(error).strip()
        array = re.search(r"""(?:'path': '|reading ")([^'"/]+)/""", text)
        where = f", in {array[1]}" if array else ""
        reason = re.split(r"\n|\. See full|: \[", text)[0][:200]
        older = " Remove that folder to use an older one." if len(self.steps()) > 1 else ""
        return CheckpointError(
            f"The checkpoint {self.folder / str(step)} cannot be read, it is damaged or not "
            f"of this model{where}: {reason}.{older}"
        )

    def wait(self) -> None:
        """Returns when everything is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written, and lets go of the folder."""
        self._manager.close()
