"""Tells of work that takes far longer than it did: what it was, and where every thread stands."""

import faulthandler
import statistics
import sys
import threading
import time
from collections import defaultdict, deque

_TIMES = 20  # longer than the median before, to be told of
_REMEMBERED = 50


class Watchdog:
    """Watches one piece of work after the other from a thread of its own; never ends anything.

    Args:
      least_seconds: what is over sooner is never told of; 0 watches nothing.
    """

    def __init__(self, least_seconds: float):
        self._least = least_seconds
        self._durations: dict[str, deque] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._work: tuple[str, str, float] | None = None  # kind, in words, since
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if least_seconds:
            self._thread.start()

    def now(self, kind: str, words: str) -> None:
        """The work before is over and this begins. Kinds are compared with their own kind."""
        self._finish()
        self._work = kind, words, time.monotonic()

    def rest(self) -> None:
        """The work before is over; nothing is watched until the next."""
        self._finish()
        self._work = None

    def _finish(self) -> None:
        if self._work:
            kind, _, since = self._work
            self._durations[kind].append(time.monotonic() - since)

    def _watch(self) -> None:
        told: tuple[str, str, float] | None = None
        while not self._end.wait(min(1.0, self._least / 4)):
            work = self._work
            if work is None or work is told:
                continue
            kind, words, since = work
            before = list(self._durations[kind])
            median = statistics.median(before) if before else 0.0
            seconds = time.monotonic() - since
            if seconds >= max(self._least, _TIMES * median):
                told = work
                usual = f", usually {median:.2g} s" if before else ""
                print(
                    f"Warning: {words} has taken {seconds:.0f} s so far{usual}. Where every thread "
                    "stands:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=2, all_threads=True)

    def close(self) -> None:
        self._end.set()
