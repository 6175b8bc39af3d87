"""Orbax as it is used here: what several arrays are written by, and what is not to be printed."""

import contextlib
import gc
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from albert.checkpoints.agreement import agreed_error
from albert.runtime.paths import LiteralPath, resolved

TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a step's folder while it is written
# Seconds until one process gives up waiting for what another writes.
_OTHERS_WRITE = 300
# What several devices hold alike each of them writes a part of, when a part is this many bytes or
# more. Orbax's own bound is 0: each part is cut by a program of its own, which is compiled first,
# 136 of them in the first save of a tiny model on eight devices.
_PART_BYTES = 1 << 20


class _NoRepetition(logging.Filter):
    """Of asyncio's and absl's records those that tell once more of an error that was raised."""

    def filter(self, record: logging.LogRecord) -> bool:
        told = record.getMessage()
        of_orbax = "orbax" in told or "OCDBT" in told  # its tasks, files and kind of file
        return not (
            # The traceback of a save that fails.
            "orbax" in record.pathname or (of_orbax and "exception was never retrieved" in told)
        )


_SILENCED = ("asyncio", "absl")
_silence_lock = threading.Lock()
_silences = 0  # that are asked for, in whatever threads
_silence = _NoRepetition()
_hook_before: Callable | None = None


def _without_reads(unraisable) -> None:
    read = "_read_array_index" in repr(unraisable.object)
    if not read and "Event loop is closed" not in str(unraisable.exc_value) and _hook_before:
        _hook_before(unraisable)


def begin_one_error_is_enough() -> None:
    """Until as many calls of `end_one_error_is_enough`: what Orbax raises is not printed as well.

    When one array cannot be read, the reads of others fail after it: each writes a page to stderr.
    Hook and filters are the whole process's, so they stand only while Orbax is at work. Nobody
    knows how long its threads are after a read or a save that failed: then nothing ends them.
    """
    global _silences, _hook_before
    with _silence_lock:
        _silences += 1
        if _silences == 1:
            _hook_before, sys.unraisablehook = sys.unraisablehook, _without_reads
            for name in _SILENCED:
                logging.getLogger(name).addFilter(_silence)


def end_one_error_is_enough() -> None:
    """Ends what one call of `begin_one_error_is_enough` began."""
    global _silences
    with _silence_lock:
        _silences -= 1
        if _silences == 0:
            if sys.unraisablehook is _without_reads and _hook_before is not None:
                sys.unraisablehook = _hook_before
            for name in _SILENCED:
                logging.getLogger(name).removeFilter(_silence)


@contextlib.contextmanager
def one_error_is_enough() -> Iterator[None]:
    """Inside, and for good once something failed inside, what Orbax raises is not printed as well.

    TensorStore goes on with the other reads, and each tells a loop that is closed by then.
    """
    begin_one_error_is_enough()
    try:
        yield
    except BaseException:
        gc.collect()  # what was left half done complains when it is collected
        raise
    end_one_error_is_enough()


class Items(ocp.CompositeCheckpointHandler):
    """Remembers what writes the arrays: when one of several fails, Orbax tells at once, and the
    others go on. What goes wrong in the part of a save that its caller waits for has gone wrong on
    all processes, or they would wait for each other in the background.

    `has_failed_on_all`: whether what the last save raised has been agreed upon.
    """

    _writers: Sequence = ()
    has_failed_on_all = False

    def __init__(self, **handlers):
        super().__init__(**handlers)
        self._errors: list[Exception] = []
        for name in ("params", "training", "info"):
            handlers[name].async_save = self._keeping(handlers[name].async_save)

    def _keeping(self, save: Callable) -> Callable:
        async def keep(*arguments, **more):
            try:
                return await save(*arguments, **more)
            except Exception as error:
                self._errors.append(error)
                return []

        return keep

    async def async_save(self, *arguments, **more):
        self._writers, self._errors = (), []
        # Orbax waits for the other processes in here, though not in the handlers of items: what
        # these raise is kept until all have come through.
        self._writers = tuple(await super().async_save(*arguments, **more) or ())
        error = agreed_error(self._errors[0] if self._errors else None)
        if error is not None:
            self.has_failed_on_all = True
            raise error
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
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_PART_BYTES)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays),
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
        (np.number, ocp.type_handlers.ScalarHandler()),
    )
    items = Items(
        composite_options=ocp.CompositeOptions(async_options=options),
        params=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        training=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        info=ocp.JsonCheckpointHandler(),
    )
    return ocp.AsyncCheckpointer(items, async_options=options), items


def for_orbax(folder: Path) -> LiteralPath:
    """A folder as Orbax takes it: whole, and whatever letters are in its name."""
    return LiteralPath(str(resolved(folder)))


def check_writable(folder: Path) -> None:
    """Raises OSError or ValueError when TensorStore, which writes the arrays, does not write into a
    folder of this machine, whose name it may read otherwise than the operating system does."""
    name = f".write-test-{uuid.uuid4().hex}"
    path = f"{for_orbax(folder)}/"
    path.encode()  # or ValueError: TensorStore has no sentence for what is not UTF-8
    store = {"driver": "file", "path": path}
    tensorstore.KvStore.open(store).result().write(name, name).result()
    (folder / name).unlink()


def read_arrays(folder: Path):
    """An item as NumPy arrays; by itself, so that one process can do it alone."""
    path = for_orbax(folder)
    with one_error_is_enough():
        handler = ocp.PyTreeCheckpointHandler()
        tree = handler.metadata(path).tree
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=wanted))


def read_item(folder: Path, like):
    """An item placed as the abstract arrays of `like`; no file outside of it is read."""
    with one_error_is_enough(), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(for_orbax(folder), like)
