"""The folder of prepared things: named by what they were made from, complete or not there.

Never imports jax.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import filelock


def fingerprint_of(description: dict) -> str:
    """16 hexadecimal digits that change with any value of a JSON-serialisable dict."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@contextlib.contextmanager
def made_once(final: Path):
    """Yields (final, folder to fill), or (final, None) when `final` is there already.

    The filled folder takes its final name in one rename; what fails leaves its lock file only.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir():
        yield final, None
        return
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
        # Whoever holds the lock is alone: what others left unfinished was killed.
        for stale in final.parent.glob(f"{final.name}.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
        temporary.mkdir()
        try:
            yield final, temporary
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    finally:
        lock.release()
