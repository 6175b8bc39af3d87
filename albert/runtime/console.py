"""Words for whoever watches, who may be gone: no reason to lose a run."""

import os
import sys
from typing import TextIO


def tell(text: str, to: TextIO | None = None) -> None:
    """Prints at once, to standard output by default. Nothing is raised when nobody reads it any
    more, as behind a `| tee` that was interrupted, or when the disk that it goes to is full."""
    stream = to or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # What is still to be said, and Python's own last flush, would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except OSError:
        pass  # room may come back
