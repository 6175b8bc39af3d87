"""Whether to stop, asked by all processes and answered alike on all at the same step."""

from collections import deque

import jax
from jax.sharding import Mesh

from albert.runtime.signals import StopSignals
from albert.train.log import STEPS_AHEAD
from albert.train.sharding import any_process


class StopQuestion:
    """Asked at every step boundary.

    Several processes answer together: each sends its own answer along with the devices' work and
    reads what came of it two steps later, so that nobody waits.
    """

    def __init__(self, stop: StopSignals, mesh: Mesh):
        self._stop = stop
        self._ask = any_process(mesh) if jax.process_count() > 1 else None
        self._answers: deque[jax.Array] = deque()

    def any(self) -> bool:
        """Whether any process was asked to stop; call it on all at the same steps."""
        if self._ask is None:
            return self._stop.asked is not None
        self._answers.append(self._ask(self._stop.asked is not None))
        return len(self._answers) > STEPS_AHEAD and bool(self._answers.popleft())
