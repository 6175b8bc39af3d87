"""Frameworks in processes of their own, which are asked in turn and answer in lines of JSON.

Thread pools and allocators of one framework then do not disturb another, and memory is its own.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TextIO


def answer(handle: Callable[[dict], dict]) -> None:
    """Answers every request on standard input, a line of JSON, with one on standard output.

    `handle`: request -> answer; what it raises is answered as "failed", with the reason.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this one ends it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # or it ends with whoever started it
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        try:
            found = handle(json.loads(line))
        except Exception as error:
            lines = getattr(error, "problems", str(error).split("\n"))
            found = {"failed": f"{type(error).__name__}: {' '.join(lines)}"[:400]}
        print(json.dumps(found), file=answers, flush=True)


class Process:
    """A process that answers."""

    def __init__(self, process: subprocess.Popen, said: TextIO):
        self._process = process
        self._said = said

    def ask(self, **request) -> dict:
        """Its answer; of a process that is gone, why."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # a process that is gone gives no answer
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        if line := self._process.stdout.readline():
            return json.loads(line)
        code = self._process.wait()
        self._said.seek(0)
        lines = [line.strip() for line in self._said if line.strip()]
        telling = [line for line in lines if re.match(r"F\d{4} |\w*Error: ", line)]
        last = re.sub(r"^F\d{4} .*?\] ", "", (telling or lines or ["nothing"])[-1])
        return {"failed": f"its process left with {code} and said: {last[:400]}"}


@contextlib.contextmanager
def started(
    script: str, arguments: list[str], environment: dict[str, str], python: str = sys.executable
) -> Iterator[Process]:
    """A process of a script that calls `answer`, which ends with the context."""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            [python, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=os.environ | environment,
        ) as process,
    ):
        try:
            yield Process(process, said)
        finally:
            process.kill()
