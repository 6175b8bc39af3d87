"""Rows that wait in a bounded queue, and the thread that computes them in batches."""

import collections
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, NamedTuple

from albert.serving.backend import Backend, Row

_SLOWEST = 60  # seconds after which to come again, at most


class QueueFull(Exception):
    """No more rows are taken now.

    `waiting`: rows that are there; `retry_after`: whole seconds that they take, about.
    """

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} rows wait, for about {retry_after} s")
        self.waiting = waiting
        self.retry_after = retry_after


class Batch(NamedTuple):
    """What was computed at once, for whoever counts."""

    ability: str
    rows: int
    shape: tuple[int, int]  # with what was added to it
    seconds: float


class _Work:
    """The rows of one request."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows
        self.outputs: list[Any] = [None] * len(rows)
        self.left = len(rows)
        self.future: Future[list[Any]] = Future()


class _Waiting(NamedTuple):
    """One row of a request in the queue."""

    work: _Work
    number: int  # of the row in its request
    since: float


class Batcher:
    """Gathers rows of one ability and of alike lengths, and computes them together.

    The row that has waited longest goes first, with as many of its kind as there is room for, once
    these fill a batch or it has waited for the window. While the model computes, the next batch
    gathers: the window only matters where there is little to do.

    Args:
      backend: computes; its shapes say how large a batch is and what lengths are alike.
      window: seconds that a row waits for others.
      limit: rows that may wait.
      patience: seconds; rows are refused where those that wait take longer by what batches took
        lately, although there is room: nobody would wait for their answers.
      on_batch: called behind every batch, by the thread that computes.
    """

    def __init__(
        self,
        backend: Backend,
        window: float,
        limit: int,
        patience: float = math.inf,
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ):
        self.limit = limit
        self._backend = backend
        self._window = window
        self._patience = patience
        self._on_batch = on_batch
        # (ability, length of the shape) -> rows, the longest waiting first; no queue is empty.
        self._queues: dict[tuple[str, int], collections.deque[_Waiting]] = {}
        self._condition = threading.Condition()
        self._waiting = 0
        self._closing = False
        self._seconds_per_row = 0.0
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows in the queue; those that are being computed are not among them."""
        return self._waiting

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def check_room(self, rows: int = 1) -> None:
        """Raises QueueFull where so many rows have no room, or would wait for too long."""
        seconds = self._waiting * self._seconds_per_row
        if self._waiting + rows > self.limit or seconds > self._patience:
            raise QueueFull(self._waiting, min(max(math.ceil(seconds), 1), _SLOWEST))

    def submit(self, ability: str, rows: Sequence[Row]) -> "Future[list[Any]]":
        """What the backend finds for each row, when it is there; without rows at once.

        Cancelling the future takes the rows that wait out of the queue.

        Raises:
          QueueFull: there is no room for all of them.
          RuntimeError: the queue is closed.
        """
        work = _Work(rows)
        if not rows:
            work.future.set_result([])
            return work.future
        now = time.monotonic()
        with self._condition:
            if not self.is_running:
                raise RuntimeError("no more rows are taken")
            self.check_room(len(rows))
            for number, row in enumerate(rows):
                key = ability, self._backend.shapes.length_for(row.length)
                queue = self._queues.setdefault(key, collections.deque())
                queue.append(_Waiting(work, number, now))
            self._waiting += len(rows)
            self._condition.notify()
        work.future.add_done_callback(lambda future: self._forget(work, future))
        return work.future

    def close(self) -> None:
        """Computes what waits and takes no more; returns when that is done."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()

    def _forget(self, work: _Work, future: Future) -> None:
        """Takes out what waits of a request that nobody waits for, or that has failed."""
        if not future.cancelled() and not future.exception():
            return
        with self._condition:
            for key, queue in list(self._queues.items()):
                kept = collections.deque(each for each in queue if each.work is not work)
                self._waiting -= len(queue) - len(kept)
                self._keep(key, kept)

    def _keep(self, key: tuple[str, int], queue: collections.deque[_Waiting]) -> None:
        if queue:
            self._queues[key] = queue
        else:
            self._queues.pop(key, None)

    def _run(self) -> None:
        while chosen := self._next():
            (ability, length), rows = chosen
            shape = self._backend.shapes.batch_for(len(rows)), length
            begin = time.perf_counter()
            outputs, failure = None, None
            try:
                outputs = self._backend.compute(
                    ability, [each.work.rows[each.number] for each in rows], shape
                )
            except Exception as error:  # of this batch: the next one may well be computed
                failure = error
            seconds = time.perf_counter() - begin
            # Of the last ten batches or so.
            share = 0.1 if self._seconds_per_row else 1.0
            self._seconds_per_row += share * (seconds / len(rows) - self._seconds_per_row)
            if outputs is None:
                for each in rows:
                    _finish(each.work.future, error=failure)
            else:
                self._hand_out(rows, outputs)
            self._on_batch(Batch(ability, len(rows), shape, seconds))

    def _next(self) -> tuple[tuple[str, int], list[_Waiting]] | None:
        """The next batch, when there is one; None when the queue is closed and empty."""
        with self._condition:
            while True:
                now = time.monotonic()
                due = {key: queue[0].since + self._window for key, queue in self._queues.items()}
                ready = [
                    key
                    for key, queue in self._queues.items()
                    if self._closing or due[key] <= now or len(queue) >= self._backend.shapes.full
                ]
                if ready:
                    key = min(ready, key=due.__getitem__)
                    queue = self._queues[key]
                    count = min(len(queue), self._backend.shapes.full)
                    rows = [queue.popleft() for _ in range(count)]
                    self._waiting -= count
                    self._keep(key, queue)
                    return key, rows
                if self._closing:
                    return None
                self._condition.wait(min(due.values()) - now if due else None)

    @staticmethod
    def _hand_out(rows: Sequence[_Waiting], outputs: Sequence[Any]) -> None:
        for each, output in zip(rows, outputs, strict=True):
            work = each.work
            work.outputs[each.number] = output
            work.left -= 1
            if not work.left:
                _finish(work.future, work.outputs)


def _finish(future: Future, outputs: list[Any] | None = None, error: Exception | None = None):
    """Sets a result or an error, where nobody has given up and no other row has failed."""
    try:
        if error is None:
            future.set_result(outputs)
        else:
            future.set_exception(error)
    except InvalidStateError:
        pass
