"""The folder of prepared things: named by what they were made from, complete or not there.

It may be on a bucket (gs://). Then things are made on this machine and sent there whole, and who
reads them fetches the files that it needs, each once for a machine. Never imports jax.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from albert.runtime.paths import file_name_part, files_below, is_remote

_COPIED_AT_ONCE = 1 << 24  # bytes
_makes_on_buckets = True


class StoreError(RuntimeError):
    """Prepared things cannot be written, most often because the disk is full, or not fetched."""


def is_one_of_several() -> None:
    """From now on this process makes nothing on a bucket, and only finds what is there: hosts that
    made the same thing at once would wait for each other with their accelerators, or send it
    twice."""
    global _makes_on_buckets
    _makes_on_buckets = False


def fingerprint_of(description: dict) -> str:
    """16 hexadecimal digits that change with any value of a JSON-serialisable dict."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@contextlib.contextmanager
def made_once(final: Path, resumable: bool = False, last: str = "") -> Iterator[tuple]:
    """Yields (final, folder to fill), or (final, None) when `final` is there already.

    The filled folder takes its final name in one rename. What fails leaves nothing but its lock
    file; with `resumable` the unfinished folder stays, and the next try is given it to go on.

    Args:
      last: the file that says that a folder on a bucket is complete, sent behind all others.

    Raises StoreError where a bucket has it not and several processes ask for it.
    """
    if is_remote(final):
        yield from _made_there(final, resumable, last)
        return
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


def _made_there(final: Path, resumable: bool, last: str) -> Iterator[tuple]:
    """As `made_once`, of a folder on a bucket."""
    if not last:
        raise StoreError(
            f"{final.parent}: rows of labelled text are made and kept by every host for itself, "
            "and not on a bucket: name a folder of this machine with data.folder."
        )
    if (final / last).is_file():
        yield final, None
        return
    if not _makes_on_buckets:
        raise StoreError(
            f"{final} is not there, and a job of several processes does not make it: run "
            "tools/prepare.py with the same config once, on one machine, and start the job again."
        )
    with made_once(_kept_here(final, "made"), resumable) as (made, unfinished):
        yield final, unfinished
    try:
        if not (final / last).is_file():  # another machine may have been faster
            names = [name for name, _ in files_below(made) if name != last]
            print(f"Sending {len(names) + 1} files to {final}.", file=sys.stderr, flush=True)
            for name in [*names, last]:
                _copy(made / name, final / name)
    except Exception as error:  # of the library of the store
        raise StoreError(
            f"{final} could not be written: {error}. What was made is kept in {made}: give the "
            "same command again."
        ) from error
    shutil.rmtree(made)


def _kept_here(remote: Path, kind: str) -> Path:
    """Where this machine keeps what belongs to a folder on a bucket: below $XDG_CACHE_HOME, or
    ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "albert" / kind / file_name_part(str(remote.parent)) / remote.name


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as written:
        while data := read.read(_COPIED_AT_ONCE):
            written.write(data)


class Fetched:
    """The files of a folder on a bucket, as far as this machine needs them.

    Args:
      remote: the folder.
      version: tells what is in it from what was there before under the same name.
    """

    def __init__(self, remote: Path, version: str):
        self._remote = remote
        self.folder = _kept_here(remote, "fetched") / version

    def file(self, name: str, is_sound: Callable[[Path], bool]) -> Path:
        """One of the files here; of several processes the first one fetches it.

        Raises StoreError where it cannot be fetched, or is not `is_sound` when it was.
        """
        path = self.folder / name
        if path.is_file():
            return path
        temporary = path.with_name(f"{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # of the lock
            with filelock.FileLock(f"{path}.lock"):
                if path.is_file():
                    return path
                _copy(self._remote / name, temporary)
                if is_sound(temporary):
                    temporary.rename(path)
                    return path
                temporary.unlink()
        except Exception as error:  # of this disk, or of the library of the store
            temporary.unlink(missing_ok=True)
            raise StoreError(
                f"{self._remote / name} could not be fetched to {path}: "
                f"{getattr(error, 'strerror', None) or error}. Give room there, or set "
                "XDG_CACHE_HOME to a folder that has it."
            ) from error
        raise StoreError(
            f"{self._remote / name} is not as it was written, or came damaged. Give the same "
            f"command again; if that does not help, remove {self._remote} and prepare it anew."
        )
