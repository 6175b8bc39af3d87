"""Checkpoints of a run that can be trusted: written by Orbax in the background, verified by us.

Knows neither model nor data: trees in, trees out. Below a folder every step has a folder of its own
with the items "params", "training" (not where weights alone were saved) and "info", and a manifest:
sums of every array as they were on the devices, and digests of every file. It is written when what
lies on disk was read back and found to be what was on the devices; only then Orbax renames the
folder to its final name, and only then older checkpoints are removed.
"""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from albert.checkpoints import CheckpointError, manifest
from albert.checkpoints.agreement import CannotAgree, agreed_error, this_process
from albert.checkpoints.manifest import describe, describe_on_host, differences, named
from albert.checkpoints.orbax import (
    TEMPORARY,
    ItemsArgs,
    begin_one_error_is_enough,
    check_writable,
    end_one_error_is_enough,
    for_orbax,
    make_checkpointer,
    read_arrays,
    read_item,
)
from albert.runtime.console import warn
from albert.runtime.paths import is_remote, remove_folder

__all__ = ["CheckpointError", "Checkpoints"]

_REMOVED = ".removed"
_REPLACED = ".replaced"  # a step that is there until another one of it is written
# Seconds that the writers of a failed save get to end, and to remove what they left.
_PATIENCE = 10.0


class Checkpoints:
    """The checkpoints below one folder.

    Keeps the newest `keep_last`, and the `keep_best` with the lowest held-out loss among those
    saved with one.
    """

    def __init__(self, folder: Path, keep_last: int = 1, keep_best: int = 0, create: bool = False):
        self.folder = folder
        self._keep_last, self._keep_best = keep_last, keep_best
        self._verified: dict[int, dict] = {}  # step -> manifest
        self._saving: int | None = None  # a step on its way to disk
        self._has_failed = False  # a save, which may have left something
        self._refuted: Exception | None = None  # why what was written last is not sound
        self._written: tuple[int, dict[str, dict]] = 0, {}  # the last one, and its arrays
        if not create and not folder.is_dir():
            raise CheckpointError(f"{folder} holds no checkpoints: there is no such folder.")
        if create and jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            for left_over in folder.glob(f"*{_REMOVED}"):
                shutil.rmtree(left_over)
            if not is_remote(folder):
                try:
                    check_writable(folder)
                except (OSError, ValueError) as error:
                    raise CheckpointError(
                        f"{folder}: no checkpoint can be written: {_reason(error)}. Where it is "
                        "the name that is not taken, choose another folder."
                    ) from error
        self._checkpointer, self._items = make_checkpointer(self._verify)

    # Saving.

    def save(self, step: int, params, training, info: dict, loss: float | None) -> None:
        """Starts writing a checkpoint; a damaged one of the same step is replaced.

        Waits for the one before. What goes wrong later is raised by `look` and `wait`.

        Args:
          step: names it.
          params: a tree of arrays, on whatever devices.
          training: another, or None for weights alone.
          info: a JSON-serialisable description.
          loss: the held-out loss at this very step, if known.

        Of several processes call it on all; all raise when one does.

        Raises:
          CannotAgree: of several processes this one failed while the others wait for it; it must
            end, and they will after it.
          Whatever Orbax and the file system raise, of this save or of the one before.
        """
        self.wait()
        trees = {"params": params} | ({} if training is None else {"training": training})
        arguments: dict = {item: ocp.args.PyTreeSave(tree) for item, tree in trees.items()}
        arguments["info"] = ocp.args.JsonSave(info if loss is None else info | {"loss": loss})
        self._verified.pop(step, None)
        begin_one_error_is_enough()
        try:
            self._prepare(step)
            self._start(step, trees, ItemsArgs(**arguments))
        except Exception as error:
            if not isinstance(error, CannotAgree):
                self._give_up()
            raise
        self._saving = step

    def _prepare(self, step: int) -> None:
        """Does what the first process does by itself, and agrees on how it went."""
        error: Exception | None = None
        try:
            self._make_room(step)
        except Exception as failed:
            error = failed
        if error := agreed_error(error):
            raise error

    def _start(self, step: int, trees: dict, arguments: ItemsArgs) -> None:
        """Does what a save needs its caller for. The processes wait for each other in here: what
        goes wrong on one is agreed upon by `Items`, or there is no telling the others."""
        self._items.has_failed_on_all = False
        try:
            self._written = step, {item: describe(tree) for item, tree in trees.items()}
            self._checkpointer.save(for_orbax(self.folder) / str(step), args=arguments, force=True)
        except Exception as error:
            if jax.process_count() == 1 or self._items.has_failed_on_all:
                raise
            raise CannotAgree(
                f"Process {jax.process_index()} failed while it saved step {step} together with "
                f"the others: {type(error).__name__}: {error}. It ends, and they end when they "
                "miss it; the same command resumes from the newest checkpoint."
            ) from error

    def _make_room(self, step: int) -> None:
        """Removes what a failed save has left, and puts away what this one replaces: a damaged
        checkpoint, one of before a roll-back, or one that was not evaluated yet."""
        if self._has_failed:
            self._remove_unfinished()
        there = self.folder / str(step)
        if jax.process_index() != 0 or not there.is_dir():
            return
        if is_remote(there):
            remove_folder(there, _REMOVED)
        else:
            there.rename(there.with_name(there.name + _REPLACED))

    def _verify(self) -> None:
        """As `_verify_saved`, in Orbax's thread. Of several processes the others wait there for
        this one, and an error raised here would keep them until their patience ends: it is kept
        for `wait`, and the folder, which has no manifest, removed there."""
        try:
            self._verify_saved()
        except Exception as error:
            if jax.process_count() == 1:
                raise
            self._refuted = error

    def _verify_saved(self) -> None:
        """Reads back what was written, and adds the manifest; raises CheckpointError."""
        step, written = self._written
        # A store's folders have their final names from the beginning.
        folder = next(self.folder.glob(f"{step}{TEMPORARY}*"), self.folder / str(step))
        for item, leaves in written.items():
            if wrong := differences(leaves, describe_on_host(read_arrays(folder / item))):
                raise CheckpointError(
                    f"what was written of step {step} is not what was to be saved: {named(wrong)}"
                )
        manifest.write(folder, written)

    def wait(self) -> bool:
        """Returns when what was being saved is on disk and verified, and what it replaces is gone;
        whether there was something.

        Of several processes call it on all; all raise when one does. Raises what went wrong, once.
        """
        step = self._saving
        if step is None:
            return False
        error = agreed_error(self._ended(step))
        if error is not None:
            self._give_up()
            raise error
        if jax.process_index() == 0:
            try:
                self._remove_old(step)
            except Exception as left:  # of the file system, or of the library of a store
                # Saved it is, and no other process could be told otherwise.
                warn(
                    f"Step {step} is saved; an older checkpoint could not be removed: "
                    f"{type(left).__name__}: {left}.",
                    this_process(),
                )
        return True

    def _ended(self, step: int) -> Exception | None:
        """Waits for what is being saved; returns what went wrong with it here."""
        self._saving = None
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            return error
        end_one_error_is_enough()
        refuted, self._refuted = self._refuted, None
        if refuted is not None:
            with contextlib.suppress(OSError):  # without a manifest it is nobody's checkpoint
                remove_folder(self.folder / str(step), _REMOVED)
        return refuted

    def look(self) -> bool:
        """As `wait`, if what was being saved is finished or has failed; else does nothing. Several
        processes never find that out at the same time: then it does nothing at all."""
        if self._saving is None or jax.process_count() > 1:
            return False
        try:
            self._checkpointer.check_for_errors()
        except Exception:
            self._saving = None
            self._give_up()
            raise
        return (self.folder / str(self._saving) / manifest.NAME).is_file() and self.wait()

    def _give_up(self, alone: bool = False) -> None:
        """Makes room after a save that failed; again before the next save and at the end, since
        what an operating system was given to write may come later still.

        `alone`: asks no other process whether its writers have ended.
        """
        self._has_failed = True
        self._items.wait(time.monotonic() + _PATIENCE)
        if not alone:
            agreed_error(None)
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        if jax.process_index() != 0:
            return
        deadline = time.monotonic() + _PATIENCE
        while left := list(self.folder.glob(f"*{TEMPORARY}*")):
            for left_over in left:
                shutil.rmtree(left_over, ignore_errors=True)  # it takes room, no more
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        for replaced in self.folder.glob(f"*{_REPLACED}"):
            there = replaced.with_name(replaced.name.removesuffix(_REPLACED))
            if there.exists():
                shutil.rmtree(replaced)
            else:  # what was to replace it was not written
                replaced.rename(there)
        if is_remote(self.folder):
            for step in self.folders():
                if not (self.folder / str(step) / manifest.COMMITTED).exists():
                    remove_folder(self.folder / str(step), _REMOVED)

    def _remove_old(self, saved: int) -> None:
        for replaced in self.folder.glob(f"*{_REPLACED}"):
            shutil.rmtree(replaced)
        # Later ones were found damaged and passed over: they replace nothing.
        steps = [step for step in self.steps() if step <= saved]
        kept = set(steps[-self._keep_last :])
        if self._keep_best:
            kept |= {*[step for step in self.from_the_best() if step <= saved][: self._keep_best]}
        for step in set(steps) - kept:
            remove_folder(self.folder / str(step), _REMOVED)

    def close(self) -> None:
        """Waits for what is being written, and lets go of the folder. Asks no other process: this
        one may be the only one that ends."""
        step = self._saving
        if step is not None and (error := self._ended(step)):  # whoever cares has waited before
            self._give_up(alone=True)
            warn(f"The checkpoint of step {step} was not saved: {error}", this_process())
        self._checkpointer.close()
        if self._has_failed:
            self._remove_unfinished()

    # What there is.

    def steps(self) -> list[int]:
        """Steps that have a folder with a manifest, ascending."""
        return [
            step for step in self.folders() if (self.folder / str(step) / manifest.NAME).is_file()
        ]

    def folders(self) -> list[int]:
        """Steps that have a folder, whatever is in it, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(
            int(path.name)
            for path in self.folder.iterdir()
            if path.name.isdecimal() and path.is_dir()
        )

    def losses(self) -> dict[int, float]:
        """Step -> held-out loss of those that were saved with one."""
        found = {}
        for step in self.steps():
            try:
                info = json.loads((self.folder / str(step) / "info" / "metadata").read_text())
                found[step] = float(info["loss"])
            except (OSError, ValueError, KeyError):
                continue  # damaged, or without a loss
        return {step: loss for step, loss in found.items() if math.isfinite(loss)}

    def from_the_best(self) -> list[int]:
        """Those that were saved with a held-out loss, the lowest first; of equals the earliest."""
        losses = self.losses()
        return sorted(losses, key=lambda step: (losses[step], step))

    def problems(self, step: int) -> list[str]:
        """What is wrong with the files of a checkpoint, one phrase each, by its manifest."""
        found, problems = manifest.read(self.folder / str(step))
        if not problems:
            self._verified[step] = found
        return problems

    def newest_sound(self, tell: Callable[[str], None]) -> int | None:
        """The newest checkpoint whose files are as they were written; None where there is none.

        Call it on all processes: the first one reads, the others are told. What is passed over is
        told with its reason. Raises CheckpointError when there are some and none is sound.
        """
        answer = -1
        if jax.process_index() == 0:
            there = self.folders()
            told = []
            for step in reversed(there):
                found = self.problems(step)
                if not found:
                    answer = step
                    break
                told.append(
                    f"The checkpoint {self.folder / str(step)} is not sound: {named(found)}."
                )
                tell(f"Warning: {told[-1]}")
            if there and answer < 0:
                answer = -2
        if jax.process_count() > 1:
            answer = int(multihost_utils.broadcast_one_to_all(np.int64(answer)))
        if answer == -2:
            raise CheckpointError(
                f"None of the checkpoints in {self.folder} is sound:\n"
                + "\n".join(told if jax.process_index() == 0 else ["process 0 tells of them"])
                + "\nPut a sound copy there, or start again in another --workdir."
            )
        return answer if answer >= 0 else None

    # Restoring.

    def has_training(self, step: int) -> bool:
        """Whether an optimizer's state was saved as well; False for weights alone."""
        return "training" in self._manifest(step)["leaves"]

    def info(self, step: int) -> dict:
        """The description saved with a checkpoint."""
        self._manifest(step)
        return json.loads((self.folder / str(step) / "info" / "metadata").read_text())

    def restore_params(self, step: int, like):
        """The parameters only, placed as the abstract arrays of `like`."""
        return self._restore(step, "params", like)

    def restore(self, step: int, params_like, training_like):
        """Parameters and the rest of the training state, placed as the abstract arrays say.

        Raises CheckpointError when the checkpoint is damaged or its leaves are not those, all of
        them named.
        """
        wrong = [
            problem
            for item, like in (("params", params_like), ("training", training_like))
            for problem in self._misfits(step, item, like)
        ]
        if wrong:
            raise CheckpointError(
                f"The checkpoint {self.folder / str(step)} is not of this model and optimizer:\n  "
                + "\n  ".join(wrong)
            )
        return (
            self._restore(step, "params", params_like),
            self._restore(step, "training", training_like),
        )

    def restore_arrays(self, step: int, item: str):
        """The item "params" or "training" as NumPy arrays, whatever devices wrote it."""
        known = self._manifest(step)
        try:
            arrays = read_arrays(self.folder / str(step) / item)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise self._unreadable(step, error) from error
        wrong = differences(known["leaves"][item], describe_on_host(arrays))
        self._check_restored(step, wrong)
        return arrays

    def check_arrays(self, step: int) -> int:
        """Reads every array of a checkpoint; returns their bytes, or raises CheckpointError."""
        trees = [self.restore_arrays(step, item) for item in self._manifest(step)["leaves"]]
        return sum(leaf.nbytes for leaf in jax.tree.leaves(trees))

    def _restore(self, step: int, item: str, like):
        known = self._manifest(step)
        if wrong := self._misfits(step, item, like):
            raise CheckpointError(
                f"The checkpoint {self.folder / str(step)} is not of this model:\n  "
                + "\n  ".join(wrong)
            )
        try:
            restored = read_item(self.folder / str(step) / item, like)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise self._unreadable(step, error) from error
        self._check_restored(step, differences(known["leaves"][item], describe(restored)))
        return restored

    def _check_restored(self, step: int, wrong: list[str]) -> None:
        if wrong:
            raise CheckpointError(
                f"The checkpoint {self.folder / str(step)} was read and is not what was saved, "
                f"though its files are: {named(wrong)}. Memory or disk may be at fault; try again."
            )

    def _manifest(self, step: int) -> dict:
        """That of a sound checkpoint; raises CheckpointError."""
        if step not in self._verified:
            if not (self.folder / str(step)).is_dir():
                raise CheckpointError(
                    f"{self.folder} has no checkpoint of step {step}; "
                    f"it has {', '.join(map(str, self.steps())) or 'none'}."
                )
            if found := self.problems(step):
                older = [s for s in self.steps() if s != step]
                raise CheckpointError(
                    f"The checkpoint {self.folder / str(step)} is not sound: {named(found)}."
                    + (f" There is also step {', '.join(map(str, older))}." if older else "")
                )
        return self._verified[step]

    def _misfits(self, step: int, item: str, like) -> list[str]:
        return manifest.misfits(self._manifest(step)["leaves"].get(item, {}), like, item)

    def _unreadable(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"The checkpoint {self.folder / str(step)} cannot be read: {_reason(error)}."
        )


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]  # TensorStore's goes on for pages
