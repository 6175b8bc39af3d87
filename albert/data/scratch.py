"""Arrays that one process of a machine makes and the others map, while its owner lives.

Workers that make batches need the plan of an epoch, which takes minutes and gigabytes to make for
a large corpus. It is written once below the system's folder for temporary files; every process
maps it, and the memory is shared. Never imports jax.
"""

import contextlib
import os
import shutil
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

import filelock
import numpy as np

_PREFIX = "albert-scratch-"
_OWNER = "owner.lock"  # held as long as the process lives that made the folder
_YOUNG = 60.0  # seconds: a folder may be made and not locked yet


class Scratch:
    """A folder of arrays. It is removed with its owner; what was sent elsewhere only reads it."""

    def __init__(self):
        """Raises OSError where no folder can be made."""
        _remove_what_the_killed_left()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._owner = filelock.FileLock(self.folder / _OWNER)
        self._owner.acquire()
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def __reduce__(self):
        return (_attached, (self.folder,))

    def arrays(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays kept under a name; the first process to ask makes them, others wait for it.

        Where they cannot be kept, most often for want of room, the process has its own.
        """
        final = self.folder / name
        if not self.folder.is_dir():  # its owner is gone
            return make()
        with filelock.FileLock(f"{final}.lock"):
            if not final.is_dir():
                made = make()
                temporary = final.with_suffix(".new")
                try:
                    shutil.rmtree(temporary, ignore_errors=True)
                    temporary.mkdir()
                    for key, array in made.items():
                        np.save(temporary / key, array)
                    temporary.rename(final)
                except OSError as error:
                    shutil.rmtree(temporary, ignore_errors=True)
                    warnings.warn(
                        f"{self.folder} cannot keep the plan of an epoch "
                        f"({error.strerror or error}): every process that makes batches plans for "
                        "itself. Give more room there, or set TMPDIR to a folder that has it.",
                        stacklevel=2,
                    )
                    return made
        # A plain view: indexing a numpy.memmap costs a microsecond more every time.
        return {
            path.stem: np.asarray(np.load(path, mmap_mode="r")).view(np.ndarray)
            for path in final.glob("*.npy")
        }

    def remove(self, name: str) -> None:
        """Removes arrays; a process that has mapped them keeps them."""
        shutil.rmtree(self.folder / name, ignore_errors=True)


def _attached(folder: Path) -> Scratch:
    scratch = Scratch.__new__(Scratch)
    scratch.folder = folder
    return scratch


def _remove_what_the_killed_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Folders of other users, or that another process removes just now, are none of ours.
        with contextlib.suppress(OSError, filelock.Timeout):
            if time.time() - folder.stat().st_mtime < _YOUNG or folder.stat().st_uid != os.getuid():
                continue
            with filelock.FileLock(folder / _OWNER, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
