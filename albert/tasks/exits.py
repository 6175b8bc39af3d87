"""What leaving early costs and saves: figures over the mean depth, from one pass over all."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from albert.models import exits
from albert.models.exits import Exit
from albert.tasks.pictures import Draw, tradeoff

_CONFIDENCES = 0.6, 0.7, 0.8, 0.9, 0.95, 0.99
# Of the spread of a model's numbers: what two of them may differ by to be the same.
_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Point:
    """One way to leave.

    Attributes:
      exit: as text.
      mean_depth: layers that a row takes.
      figures: by the metric's name.
    """

    exit: str
    mean_depth: float
    figures: dict[str, float]


def rules(kind: str, logits: np.ndarray) -> list[Exit]:
    """Every fixed depth, every patience and several confidences, as far as they are of use.

    logits: float32 [n, N, labels].
    """
    depth, tolerance = logits.shape[1], None
    found = [Exit("depth", float(n)) for n in range(1, depth + 1)]
    if kind == "number":
        tolerance = float(f"{_TOLERANCE * logits[:, -1].std() or _TOLERANCE:.2g}")
    found += [Exit("patience", float(n), tolerance) for n in range(1, depth)]
    if kind != "number":
        found += [Exit("confidence", share) for share in _CONFIDENCES]
    return found


def points(
    kind: str, logits: np.ndarray, figures: Callable[[np.ndarray], dict[str, float]]
) -> list[Point]:
    """A point for each of `rules`.

    Args:
      kind: of `albert.models.kinds.KINDS`.
      logits: float32 [n, N, labels], of all depths.
      figures: of logits [n, labels].
    """
    found = []
    for rule in rules(kind, logits):
        left, depths = exits.leave(rule, kind, jnp.asarray(logits))
        mean = float(np.mean(np.asarray(depths, np.float64)))
        found.append(Point(str(rule), mean, figures(np.asarray(left))))
    return found


def draw(found: Sequence[Point], metric: str, milliseconds: Sequence[float] = ()) -> Draw:
    """A metric over the mean depth, or over each point's time; a line for each kind of rule."""
    lines: Mapping[str, list[tuple[float, float]]] = {name: [] for name in exits.RULES}
    for number, point in enumerate(found):
        cost = milliseconds[number] if milliseconds else point.mean_depth
        lines[exits.parse(point.exit).rule].append((cost, point.figures[metric]))
    what = "ms a text, mean" if milliseconds else "layers, mean"
    return tradeoff(lines, what, metric.replace("_", " "), "leaving early")


def table(found: Sequence[Point], more: Mapping[str, Sequence[float]] | None = None) -> list[str]:
    """Lines of Markdown; `more`: further columns, a number for each point."""
    names, more = list(found[0].figures), more or {}
    lines = [
        f"| exit | layers, mean | {' | '.join([*(f'{n}, %' for n in names), *more])} |",
        f"|---|{'---|' * (1 + len(names) + len(more))}",
    ]
    for number, point in enumerate(found):
        cells = [f"{point.mean_depth:.2f}", *(f"{100 * point.figures[n]:.1f}" for n in names)]
        cells += [f"{column[number]:.3g}" for column in more.values()]
        lines.append(f"| {point.exit} | {' | '.join(cells)} |")
    return lines
