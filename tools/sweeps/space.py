"""What a search is: fields with the values that they may have, and how trials are drawn and ended.

Plain values, so that a sweep's file is read where Optuna is not installed.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both of them are."""

    low: float
    high: float
    log: bool = False  # evenly by magnitude
    step: float | None = None  # only every so many

    def ends(self) -> tuple[object, ...]:
        return self.low, self.high


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values: strings, numbers, True, False or None."""

    values: tuple[object, ...]

    def ends(self) -> tuple[object, ...]:
        return self.values


def uniform(low: float, high: float, step: float | None = None) -> Range:
    """Numbers that are drawn evenly; whole ones if both are written without a point."""
    return Range(low, high, False, step)


def log_uniform(low: float, high: float) -> Range:
    """Numbers whose logarithm is drawn evenly; whole ones if both are written without a point."""
    return Range(low, high, True)


def one_of(*values: object) -> Choice:
    """One of these."""
    return Choice(values)


@dataclasses.dataclass(frozen=True)
class Search:
    """Trials drawn from a space one after the other, each with what the ones before came to."""

    space: dict[str, Range | Choice]  # by field
    trials: int
    # What is compared: GROUP/NAME as in metrics.jsonl, at every evaluation and at the last.
    figure: str = "valid/mlm_loss"
    maximize: bool = False
    seed: int = 0  # of the draws; the trials' own is the sweep's
    sampler: str = "tpe"  # a key of tools.sweeps.study.SAMPLERS
    pruner: str = "median"  # a key of tools.sweeps.study.PRUNERS
    # What the two take beside their values in Optuna, such as {"n_startup_trials": 5}.
    sampler_options: dict[str, object] = dataclasses.field(default_factory=dict)
    pruner_options: dict[str, object] = dataclasses.field(default_factory=dict)
