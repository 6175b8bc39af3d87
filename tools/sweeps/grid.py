"""What a sweep is: the runs it consists of, and how lists of them are put together.

A run is a dict of overrides, such as {"model.sharing": "all"}; a list of them is a grid.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from tools.sweeps.space import Search

Overrides = dict[str, object]


def choices(field: str, *values: object) -> list[Overrides]:
    """One run for each value of a field."""
    return [{field: value} for value in values]


def product(*grids: list[Overrides]) -> list[Overrides]:
    """Every run of the first grid with every run of the others; the last varies fastest."""
    return [_merged(runs) for runs in itertools.product(*grids)]


def zip_runs(*grids: list[Overrides]) -> list[Overrides]:
    """The first runs of all grids together, then the second ones, and so on.

    Raises ValueError when the grids have not the same length.
    """
    return [_merged(runs) for runs in zip(*grids, strict=True)]


def chain(*grids: list[Overrides]) -> list[Overrides]:
    """One grid after the other; a run that was there already is left out."""
    found: list[Overrides] = []
    for run in itertools.chain(*grids):
        if run not in found:
            found.append(run)
    return found


def _merged(runs: Sequence[Overrides]) -> Overrides:
    merged: Overrides = {}
    for run in runs:
        if twice := sorted(merged.keys() & run.keys()):
            raise ValueError(f"{', '.join(twice)} is set by two of the grids that are combined")
        merged |= run
    return merged


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs to be compared, and what of them goes into a table."""

    title: str
    base: str  # config file of every run, with an argument behind a colon if wanted
    runs: list[Overrides] = dataclasses.field(default_factory=list)
    seeds: tuple[int, ...] = (0, 1, 2)
    common: Overrides = dataclasses.field(default_factory=dict)  # overrides of all runs
    # What every run may spend: ("steps" | "tokens" | "flops" | "seconds", how many). Tokens are
    # rows x seq_length, FLOPs those of `albert.train.cost`, seconds those of training steps.
    budget: tuple[str, float] | None = None
    # Programs run on every finished run: arguments of eval.py, and the file that they leave, with
    # {step} in its name.
    evaluations: tuple[tuple[str, str], ...] = ()
    # More columns, or others of the same title: title -> (file in the run's folder, with {step};
    # key in it). Of lists the mean; where the title ends in %, a share is shown as percents.
    columns: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    # (overrides, column -> figure) as published; a row gets the first whose overrides it has.
    published: tuple[tuple[Overrides, dict[str, object]], ...] = ()
    center: str = "mean"  # of the seeds; or median, which papers give of fine-tuning
    note: str = ""  # stands below the table
    # Draws the runs, one after the other; `runs` is then empty, and there is one seed.
    search: Search | None = None
