"""One job for a workdir: a file that says whose it is and is renewed for as long as the job lives.

A renewed file, not a lock of the operating system: those do not hold over network file systems, and
tell nobody who has them. Nothing here compares clocks: a job is alive when its file changes.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from albert.runtime import RunError
from albert.runtime.digests import text_digest
from albert.runtime.paths import is_remote, replace_text

NAME = "running.json"
RENEWED_EVERY = 5.0  # seconds
_SILENT = 4  # renewals that may fail to come before a job counts as gone


class WorkdirTaken(RunError):
    """Another job works in the folder."""


class WorkdirLock:
    """Taken by making it; `lost` is true once another job has taken it over.

    Raises WorkdirTaken when a living job has it. One that is gone is told of and replaced: at once
    if it ran on this machine and its process is no more, else when its file has not changed for
    `_SILENT` renewals.
    """

    def __init__(self, workdir: Path, tell: Callable[[str], None], every: float | None = None):
        self._path = workdir / NAME
        self._every = every or RENEWED_EVERY
        self._me = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "process": os.getpid(),
            "started": _started(os.getpid()),
            "id": uuid.uuid4().hex,
        }
        self.lost = False
        self._end = threading.Event()
        while not (self._create() or self._take_over(tell)):
            pass
        self._thread = threading.Thread(target=self._renew, name="workdir lock", daemon=True)
        self._thread.start()

    def _create(self) -> bool:
        """Whether there was no file and now it is ours."""
        text = self._text(0)
        if is_remote(self._path):
            # A store has no "only if it is not there": of two that write, the later one stays.
            if self._path.exists():
                return False
            self._path.write_text(text)
            time.sleep(self._every / 5)
            found = self._read()
            return found is not None and found.get("id") == self._me["id"]
        try:
            with open(self._path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _take_over(self, tell: Callable[[str], None]) -> bool:
        """Whether the file of a job that is gone is ours now; raises WorkdirTaken for one that is
        alive."""
        first = self._read()
        if first is None:
            return False  # its job has just finished
        whose = (
            f"process {first.get('process', 'unknown')} on {first.get('host', 'an unknown host')}"
        )
        dead = first.get("machine") == self._me["machine"] and _started(
            first.get("process", 0)
        ) != first.get("started")
        if not dead:
            tell(f"{self._path} is of {whose}; seeing whether it is alive.")
            begin = time.monotonic()
            while time.monotonic() - begin < _SILENT * self._every:
                time.sleep(min(0.2, self._every / 4))
                now = self._read()
                if now is None:
                    return False
                if now != first:
                    raise WorkdirTaken(
                        f"Another job works in {self._path.parent}: {whose}. Wait for it, stop it, "
                        "or choose another --workdir."
                    )
        gone = f"{self._path} was left by {whose}, which is gone: taking the workdir over."
        if is_remote(self._path):
            tell(gone)
            self._path.unlink(missing_ok=True)
            return False
        # Of several that find it so, the one that makes this file writes the other.
        guard = self._path.with_name(f"{NAME}.{text_digest(json.dumps(first))[:16]}")
        try:
            guard.touch(exist_ok=False)
        except FileExistsError:
            time.sleep(self._every)
            if self._read() == first:
                guard.unlink(missing_ok=True)  # whoever made it did not come to write
            return False
        try:
            if self._read() != first:
                return False
            tell(gone)
            replace_text(self._path, self._text(0))
            return True
        finally:
            guard.unlink(missing_ok=True)

    def _text(self, renewed: int) -> str:
        return json.dumps(self._me | {"renewed": renewed})

    def _read(self) -> dict | None:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            found = json.loads(content)
        except ValueError:
            found = None  # half written, or damaged
        return found if isinstance(found, dict) else {"content": repr(content)}

    def _renew(self) -> None:
        number = 0
        while not self._end.wait(self._every):
            number += 1
            try:
                now = self._read()
                if now is None or now.get("id") != self._me["id"]:
                    self.lost = True
                    return
                replace_text(self._path, self._text(number))
            except Exception:  # of the file system, or of whatever the library of a store raises
                continue  # a full disk is told where something is lost by it

    def close(self) -> None:
        """Lets go of the folder."""
        self._end.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # a disk that is read-only by now has told already
            found = self._read()
            if not self.lost and found is not None and found.get("id") == self._me["id"]:
                self._path.unlink(missing_ok=True)


def _machine() -> str:
    """This boot of this machine, and the processes that are seen from here: a container's are its
    own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(process: int) -> str:
    """When a process of this machine started, in its own units; empty when there is none.

    A number that is given out again is another process.
    """
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(int(process), 0)
    except (OSError, ValueError, TypeError):
        return ""
    return "running"
