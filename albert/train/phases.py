"""Phases of a run: from some step on, a few fields have other values, such as rows of 512 tokens
where they had 128.

BERT was trained so, nine tenths of its steps with short rows (Devlin et al. 2019, appendix A.2);
You et al. 2019, arXiv 1904.00962, section 4.1, begin the learning rate again with the long ones.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import optax

from albert.runtime.fields import matches, wrong_type
from albert.tasks import find_task
from albert.train.optimizers import OptimizerConfig, make_optimizer

RATE, WARMUP = "optimizer.learning_rate", "optimizer.warmup_steps"
# What a phase may change: how rows are made of the text, how many there are, and how they are
# computed. Everything else is the same in the whole run.
FIELDS = (
    "data.seq_length",
    "data.max_predictions",
    "data.packing",
    "data.masking_rate",
    "data.masking_unit",
    "data.max_ngram",
    "data.short_seq_prob",
    "train.batch_size",
    "train.accumulation",
    "train.microbatch",
    "train.eval_batch_size",
    "model.remat",
    RATE,
    WARMUP,
)
STEPS = "steps"


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps of a run for which all fields stay as they are.

    Attributes:
      number: from 0.
      config: of the run, with the fields of this phase in their sections.
      first: steps taken before it.
      end: steps taken at its end.
      first_row: where its first row is among all rows that are cut as its rows are. Phases that cut
        the text alike go on in the same epochs, whatever they mask.
      changes: its fields, by name.
      course: what decided which rows the phases before it took, a line for each.
    """

    number: int
    config: Any
    first: int
    end: int
    first_row: int
    changes: Mapping[str, Any]
    course: tuple[str, ...] = ()

    def row_at(self, step: int) -> int:
        """The number of the first row behind so many steps."""
        return self.first_row + (step - self.first) * self.config.train.batch_size

    def __str__(self) -> str:
        fields = ", ".join(f"{name} {value}" for name, value in self.changes.items())
        return f"steps {self.first + 1} to {self.end}" + (f": {fields}" if fields else "")


def phases_of(config) -> tuple[Phase, ...]:
    """The phases of a checked config; without `config.phases` the whole run is one."""
    last = config.train.num_steps
    found: list[Phase] = []
    rows: dict[tuple, int] = {}  # how rows are cut -> how many of these were taken
    optimizer, first = config.optimizer, 0
    course: tuple[str, ...] = ()
    for number, phase in enumerate(config.phases or ({},)):
        changes = {name: value for name, value in phase.items() if name != STEPS}
        changed = _with(config, changes)
        # A rate that is not set again is that of the phase whose schedule goes on.
        optimizer = changed.optimizer if RATE in changes else optimizer
        changed = dataclasses.replace(changed, optimizer=optimizer)
        end = first + phase[STEPS] if STEPS in phase else last
        cut = tuple(_value(changed, name) for name in _cut_by(changed))
        taken = rows.get(cut, 0)
        found.append(Phase(number, changed, first, end, taken, changes, course))
        course = (*course, f"steps {first + 1} to {end}: {_rows(changed)}")
        rows[cut] = taken + (end - first) * changed.train.batch_size
        first = end
    return tuple(found)


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The one in which the last of so many steps was taken; the first one before any."""
    return next((phase for phase in phases if step <= phase.end), phases[-1])


def tokens_until(config, step: int) -> int:
    """Positions of the rows of so many steps, padding among them."""
    task = find_task(config.task)
    return sum(
        (min(step, phase.end) - phase.first)
        * phase.config.train.batch_size
        * task.tokens_per_row(phase.config)
        for phase in phases_of(config)
        if phase.first < step
    )


def make_phased_optimizer(
    config, kept: Sequence[str] = ()
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """As `make_optimizer`: the optimizer of a whole run, with a schedule that begins again in each
    phase that sets a learning rate. `kept`: see there."""
    phases = phases_of(config)
    again = [(phase.first, phase.config.optimizer) for phase in phases[1:] if RATE in phase.changes]
    return make_optimizer(phases[0].config.optimizer, config.train.num_steps, kept, again)


def phase_problems(config) -> list[str]:
    """What is wrong with `config.phases` by itself, one sentence each."""
    found = []
    for number, phase in enumerate(config.phases):
        found += [f"phases[{number}] {text}" for text in _field_problems(config, phase)]
    if found or not config.phases:
        return found
    *before, last = config.phases
    if config.train.epochs:
        found.append(
            f"train.epochs is {config.train.epochs}; phases are counted in steps: set "
            "train.num_steps, and train.epochs to 0"
        )
    for number, phase in enumerate(before):
        if STEPS not in phase:
            found.append(f"phases[{number}] lacks steps; only the last takes what is left")
    if STEPS in last:
        found.append(
            f"phases[{len(before)}] has steps; the last takes what train.num_steps leaves: leave "
            "its steps out"
        )
    if not found and (steps := sum(p[STEPS] for p in before)) >= config.train.num_steps:
        found.append(
            f"phases: {steps} steps are taken before the last one begins, and train.num_steps is "
            f"{config.train.num_steps}; it must be more"
        )
    return found


def length_problems(config) -> list[str]:
    """Why a schedule does not fit into the phases that it is for; see
    `OptimizerConfig.length_problems`."""
    parts: list[tuple[OptimizerConfig, int]] = []  # a schedule's fields, and its steps
    for phase in phases_of(config):
        steps = phase.end - phase.first
        if parts and RATE not in phase.changes:
            parts[-1] = parts[-1][0], parts[-1][1] + steps
        else:
            parts.append((phase.config.optimizer, steps))
    return [text for optimizer, steps in parts for text in optimizer.length_problems(steps)]


def _field_problems(config, phase: Mapping) -> list[str]:
    """What is wrong with the fields of one phase."""
    found = []
    for name, value in phase.items():
        if name == STEPS:
            if type(value) is not int or value < 1:
                found.append(f"has steps {value!r}; it must be a whole number of at least 1")
            continue
        if name not in FIELDS:
            close = difflib.get_close_matches(str(name), FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(FIELDS)}"
            found.append(f"changes {name}, which is the same in a whole run; {hint}")
            continue
        section, field = name.split(".")
        kind = typing.get_type_hints(type(getattr(config, section))).get(field)
        if kind is None:
            found.append(f"changes {name}, which the task {config.task} does not have")
        elif not matches(value, kind):
            found.append(f"is wrong: {wrong_type(name, value, kind)}")
    if WARMUP in phase and RATE not in phase:
        found.append(
            f"sets {WARMUP} and no {RATE}: the schedule goes on and does not warm up again. Set "
            "both, or neither"
        )
    return found


def _with(config, changes: Mapping[str, Any]):
    """The config with fields of sections changed."""
    sections: dict[str, dict] = {}
    for name, value in changes.items():
        section, field = name.split(".")
        sections.setdefault(section, {})[field] = value
    return dataclasses.replace(
        config,
        **{name: dataclasses.replace(getattr(config, name), **of) for name, of in sections.items()},
    )


def _value(config, name: str):
    section, field = name.split(".")
    return getattr(getattr(config, section), field, None)


def _rows(config) -> str:
    """What decides a batch's rows."""
    names = [n for n in FIELDS if n.startswith("data.") or n == "train.batch_size"]
    values = {name: _value(config, name) for name in names}
    return ", ".join(f"{k} {v}" for k, v in values.items() if v is not None)


def _cut_by(config) -> tuple[str, ...]:
    """The fields that decide how the text is cut into rows; of packed rows masks do so too."""
    if _value(config, "data.packing"):
        return tuple(name for name in FIELDS if name.startswith("data."))
    return "data.seq_length", "data.short_seq_prob", "data.packing"
