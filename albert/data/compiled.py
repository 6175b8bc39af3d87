"""Functions that Numba compiles, with a cache wherever there is room for one.

Numba keeps what it compiled beside the source or in the user's home, and refuses at import where
neither can be written, as in a container with a read-only checkout and no home. Never imports jax.
"""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_CONFIG: Any = numba.config  # its fields are made when it is imported


def compiled(function: Callable) -> Callable:
    """The function compiled when it is first called; kept for later processes if possible."""
    for cache in (_usual_cache, _temporary_cache):
        try:
            return cache(function)
        except (RuntimeError, OSError):  # RuntimeError: Numba knows no folder that it may write
            continue
    return numba.njit(function)


def _usual_cache(function):
    if "~" in os.path.expanduser("~"):  # no home is known: Numba would make a folder of that name
        folder = Path(function.__code__.co_filename).parent
        if not os.access(folder, os.W_OK) and not _CONFIG.CACHE_DIR:
            raise OSError(f"{folder} cannot be written and there is no home")
    return numba.njit(cache=True)(function)


def _temporary_cache(function):
    """Below the folder for temporary files, in a folder of this user alone.

    What is in it is run, so that one which somebody else has made is not taken.
    """
    folder = Path(tempfile.gettempdir()) / f"albert-numba-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"{folder} is not this user's alone")
    before = _CONFIG.CACHE_DIR
    _CONFIG.CACHE_DIR = str(folder)  # read when a function is given a cache, by itself only
    try:
        return numba.njit(cache=True)(function)
    finally:
        _CONFIG.CACHE_DIR = before
