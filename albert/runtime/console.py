"""Words for whoever watches, who may be gone: no reason to lose a run."""

import datetime
import io
import os
import sys
from typing import TextIO


def tell(text: str, to: TextIO | None = None) -> None:
    """Prints at once, to standard output by default. Nothing is raised when nobody reads it any
    more, as behind a `| tee` that was interrupted, or when the disk that it goes to is full."""
    stream = to or sys.stdout
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:  # not every terminal and log takes every letter
            encoding = stream.encoding or "ascii"
            text = text.encode(encoding, "backslashreplace").decode(encoding)
            print(text, file=stream, flush=True)
    except BrokenPipeError:
        # What is still to be said, and Python's own last flush, would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except OSError:
        pass  # room may come back


def warn(text: str, process: int | None = None) -> None:
    """Prints a warning; of several processes each says which it is, and none is silent.

    Args:
      text: a sentence.
      process: the number of this process, or None where it is the only one.
    """
    tell(f"Warning{'' if process is None else f' (process {process})'}: {text}")


def print_any_letter() -> None:
    """Makes standard output and error take every text: what their encoding lacks is printed as
    `\\u043f`. For programs, at their start."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def format_count(number: float) -> str:
    """1234 -> "1.23k"."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}"


def format_seconds(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
