"""Orbax as it is used here: what several arrays are written by, and what is not to be printed."""

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from albert.runtime.paths import resolved

TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a step's folder while it is written
# Seconds until one process gives up waiting for what another writes.
_OTHERS_WRITE = 300


@functools.cache
def one_error_is_enough() -> None:
    """What is raised is not printed as well. When one array cannot be read, the reads of others
    fail after it: each writes a page to stderr, some as late as the program's end."""
    hook = sys.unraisablehook

    def without_reads(unraisable):
        read = "_read_array_index" in repr(unraisable.object)
        if not read and "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = without_reads
    logging.getLogger("asyncio").addFilter(
        lambda record: "exception was never retrieved" not in record.getMessage()
    )
    # Orbax writes the traceback of a save that fails, which is raised as well.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Items(ocp.CompositeCheckpointHandler):
    """Remembers what writes the arrays: when one of several fails, Orbax tells at once, and the
    others go on."""

    _writers: Sequence = ()

    async def async_save(self, *arguments, **more):
        self._writers = ()
        self._writers = tuple(await super().async_save(*arguments, **more) or ())
        return list(self._writers)

    def wait(self, deadline: float) -> None:
        """Returns when all writers have ended or failed, or at a time of `time.monotonic`."""
        for writer in self._writers:
            with contextlib.suppress(Exception):  # the first of them was raised
                writer.result(timeout=max(0.0, deadline - time.monotonic()))


@ocp.args.register_with_handler(Items, for_save=True, for_restore=True)
class ItemsArgs(ocp.args.Composite):
    """What `Items` saves."""


def make_checkpointer(verify: Callable[[], None]) -> tuple[ocp.AsyncCheckpointer, Items]:
    """What writes steps of the items "params", "training" and "info" in the background.

    Args:
      verify: runs on process 0 when all files of a step are there, before its folder is renamed.
    """
    options = ocp.options.AsyncOptions(
        timeout_secs=_OTHERS_WRITE,
        post_finalization_callback=verify,
        # Where folders cannot be made, writers would wait for them in vain. Of several processes
        # the others would, and for ever if it was not in the background.
        create_directories_asynchronously=jax.process_count() > 1,
    )
    items = Items(
        composite_options=ocp.CompositeOptions(async_options=options),
        params=ocp.StandardCheckpointHandler(),
        training=ocp.StandardCheckpointHandler(),
        info=ocp.JsonCheckpointHandler(),
    )
    return ocp.AsyncCheckpointer(items, async_options=options), items


def read_arrays(folder: Path):
    """An item as NumPy arrays; by itself, so that one process can do it alone."""
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(resolved(folder)).tree
    wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return handler.restore(resolved(folder), args=ocp.args.PyTreeRestore(restore_args=wanted))
