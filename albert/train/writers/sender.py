"""Sends figures to a service from a thread of its own: no step waits for a network."""

import queue
import threading
import time
from collections.abc import Callable

from albert.train.writers.base import About, Writer

_WAITS = 20.0  # seconds, at the end, for what is not sent
_LONGEST_PAUSE = 60.0  # seconds between attempts


class Sender:
    """Opens a writer and gives it what is logged, in its order, as often as it takes.

    Each step of a group is sent once: what the service has already is left out, and what was logged
    in earlier starts and is not there goes first.

    Args:
      writer: the class.
      about: the run.
      logged: records of earlier starts, as `jsonl.records` gives them.
      tell: told once that the service fails, and at the end of what it did not get.
    """

    def __init__(
        self,
        writer: type[Writer],
        about: About,
        logged: list[dict],
        tell: Callable[[str], None],
    ):
        self._writer, self._about, self._tell = writer, about, tell
        self._waiting: queue.Queue = queue.Queue()
        self._taken = 0  # entries that are not waiting any more and not sent
        self._ending = threading.Event()
        self._deadline = 0.0
        self._has_told = False
        self._last_error = ""
        for record in logged:
            values = {k: v for k, v in record.items() if k not in ("step", "group")}
            self.write(record["step"], record["group"], values)
        # It may hang in a library that waits for a network; then the program does not wait for it.
        self._thread = threading.Thread(target=self._send, name=writer.__name__, daemon=True)
        self._thread.start()

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """Figures of a step; returns at once."""
        self._waiting.put(("write", step, group, values))

    def write_picture(self, step: int, name: str, png: bytes) -> None:
        """A picture of a step; returns at once."""
        self._waiting.put(("write_picture", step, name, png))

    def close(self) -> None:
        """Waits a moment for what is not sent, and tells of what is left."""
        self._deadline = time.monotonic() + _WAITS
        self._ending.set()
        self._waiting.put(None)
        self._thread.join(_WAITS + 1)
        left = sum(entry is not None for entry in list(self._waiting.queue)) + self._taken
        if left or self._thread.is_alive():
            why = f": {self._last_error}" if self._last_error else ""
            self._tell(
                f"Warning: {self._writer.place(self._about)} did not get {left} entries{why}. "
                "Figures are in metrics.jsonl, and sent when the run is resumed; pictures are in "
                "the workdir."
            )

    # In the thread.

    def _send(self) -> None:
        open_one: list[Writer] = []
        if not self._again(lambda: open_one.append(self._writer(self._about))):
            return
        (writer,) = open_one
        have = dict(writer.have) if self._about.first_step is not None else {}
        while (entry := self._waiting.get()) is not None:
            how, step, name, what = entry
            if how == "write" and step <= have.get(name, -1):
                continue
            self._taken = 1
            if not self._again(lambda: getattr(writer, how)(step, name, what)):  # noqa: B023
                return
            self._taken = 0
        self._again(writer.close)

    def _again(self, do: Callable[[], None]) -> bool:
        """Does it, however often that fails; False: the run ended before it could be done."""
        pause = 1.0
        while True:
            try:
                do()
                return True
            except Exception as error:  # of a network, a service, or its library
                self._last_error = f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]
                if not self._has_told:
                    self._has_told = True
                    self._tell(
                        f"Warning: {self._writer.place(self._about)} cannot be written: "
                        f"{self._last_error}. {self._about.what_goes_on} goes on; it is tried "
                        "again."
                    )
            left = self._deadline - time.monotonic() if self._ending.is_set() else pause
            if left <= 0:
                return False
            self._wait(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _wait(self, seconds: float) -> None:
        if self._ending.is_set():
            time.sleep(min(seconds, 1.0))
        else:
            self._ending.wait(seconds)
