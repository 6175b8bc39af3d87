"""The folder of prepared things: named by what they were made from, complete or not there.

Never imports jax.
"""

import contextlib
import hashlib
import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import filelock


class StoreError(RuntimeError):
    """Prepared things cannot be written, most often because the disk is full."""


def fingerprint_of(description: dict) -> str:
    """16 hexadecimal digits that change with any value of a JSON-serialisable dict."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@contextlib.contextmanager
def made_once(final: Path, resumable: bool = False):
    """Yields (final, folder to fill), or (final, None) when `final` is there already.

    The filled folder takes its final name in one rename. What fails leaves nothing but its lock
    file; with `resumable` the unfinished folder stays, and the next try is given it to go on.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir():
        yield final, None
        return
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A spawned process is importing the script of its parent, who holds the lock.
        raise RuntimeError(
            "This script prepares data while it is imported, which the processes that help "
            'preparing do as well. Put its calls below: if __name__ == "__main__":'
        )
    lock = filelock.FileLock(f"{final}.lock")
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        print(f"Another process is making {final}; waiting for it.", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        if final.is_dir():
            yield final, None
            return
        # Whoever holds the lock is alone: what is there was left by one that failed or was killed.
        unfinished = final.with_name(f"{final.name}.unfinished")
        if not resumable:
            shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(exist_ok=True)
        try:
            yield final, unfinished
            unfinished.rename(final)
        finally:
            if not resumable:
                shutil.rmtree(unfinished, ignore_errors=True)
    finally:
        lock.release()
