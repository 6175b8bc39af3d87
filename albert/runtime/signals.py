"""Signals that ask a run to stop: remembered until it can without losing a step."""

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

# What a scheduler takes as "start me again": EX_TEMPFAIL of sysexits.h.
EXIT_CODE = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_MOMENT = 0.05  # seconds, until a StopNow that was dropped is raised again


class Preempted(RuntimeError):
    """The run was asked to stop and did; the same command resumes it. Programs leave with
    EXIT_CODE.

    `alone`: of several processes this one stops without the others having agreed to.
    """

    def __init__(self, text: str, alone: bool = False):
        super().__init__(text)
        self.alone = alone


class StopNow(KeyboardInterrupt):
    """Raised in the middle of work that loses nothing by it; ends workers as Ctrl-C does."""


class StopSignals:
    """Between `with` and its end SIGTERM and SIGINT set `asked` and do nothing else.

    Inside `immediately()` they raise StopNow. Where Python takes no signals, outside of the main
    thread, they are left as they are.

    Python drops what is raised in the middle of a garbage collection's callbacks, of which jax has
    one, and of `__del__`: a StopNow that is dropped there is raised again a moment later.
    """

    def __init__(self):
        self.asked: str | None = None  # the signal's name
        self._before: dict = {}
        self._raises = False
        self._again: threading.Timer | None = None

    def __enter__(self) -> "StopSignals":
        self.install()
        return self

    def install(self) -> None:
        """Again, after something else has set handlers of its own, as `jax.distributed` does."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.signal(number, self._take)
                self._before.setdefault(number, before)

    def __exit__(self, *_) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
        self._before = {}

    def _take(self, number: int, frame) -> None:
        again = self.asked is not None and not self._raises
        self.asked = self.asked or signal.Signals(number).name
        told = (
            f"{signal.Signals(number).name} once more: already stopping.\n"
            if again
            else f"{self.asked}: stopping at the next step boundary.\n"
            if not self._raises
            else ""
        )
        with contextlib.suppress(OSError):  # nobody reads it
            os.write(2, told.encode())  # print may be in the middle of printing
        if self._raises:
            self._raises = False
            raise StopNow

    @contextlib.contextmanager
    def immediately(self) -> Iterator[None]:
        """Inside, a signal raises StopNow at once, at the end at the latest; so does one that came
        before."""
        if self.asked:
            raise StopNow
        before = sys.unraisablehook

        def look(dropped) -> None:
            if not isinstance(dropped.exc_value, StopNow):
                before(dropped)
                return
            self._raises = True
            self._again = threading.Timer(_MOMENT, _thread.interrupt_main, (signal.SIGTERM,))
            self._again.daemon = True
            self._again.start()

        self._raises = True
        sys.unraisablehook = look
        try:
            yield
        finally:
            self._raises = False
            sys.unraisablehook = before
            if self._again is not None:
                self._again.cancel()
        if self.asked:
            raise StopNow
