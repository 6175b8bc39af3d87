"""The trials of a search: drawn by Optuna, kept in its journal below the sweep's folder.

Any number of workers on any hosts that see the folder take part. A trial belongs to the worker that
holds its lock; one whose worker is gone is taken over by the next and goes on from its checkpoint,
as the same trial.
"""

import dataclasses
import importlib
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from albert.runtime import RunError
from albert.runtime.digests import text_digest
from albert.runtime.fields import ConfigError
from albert.runtime.lock import NAME as LOCK
from albert.runtime.lock import RENEWED_EVERY, WorkdirLock, WorkdirTaken
from albert.train.writers.jsonl import records
from tools.sweeps.grid import Overrides, Sweep, chain
from tools.sweeps.plan import Run, other_run, plan
from tools.sweeps.space import Choice, Range, Search

JOURNAL = "search.journal"
_LOCKS = "workers"  # a folder for each trial that was ever run
_NAME = "search"  # of the study in its journal
# Names for Optuna's classes.
SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler"}
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}
# What may differ where a search goes on; all else makes it another one.
_FREE = ("trials",)


@dataclasses.dataclass
class Trial:
    """A trial that this worker has: its number, its run, its lock, and the last step whose figure
    was judged."""

    number: int
    run: Run
    lock: WorkdirLock
    judged: int = -1


@dataclasses.dataclass(frozen=True)
class Ended:
    """A trial that is over, as the table tells it.

    Attributes:
      number: counted from 0.
      run: with its folder.
      outcome: empty where it was trained to its end; else "pruned at step 40" or "diverged".
      figure: the last finite one that was compared; None: there is none.
    """

    number: int
    run: Run
    outcome: str
    figure: float | None


def space_problems(sweep: Sweep) -> list[str]:
    """What is wrong with a search, one sentence each."""
    search = sweep.search
    assert search is not None
    found = [f"{name}: {text}" for name, of in search.space.items() for text in _problems(of)]
    if not search.space:
        found.append("the search has no space to draw from")
    if "seed" in search.space:
        found.append("seed is in the space; a trial's is the sweep's: leave it out")
    if sweep.budget and "train.num_steps" in search.space:
        found.append("train.num_steps is in the space, and the budget says it; leave one out")
    if sweep.runs:
        found.append("runs are listed and drawn: leave out runs or search")
    if len(sweep.seeds) != 1:
        found.append(f"a trial of a search has one seed, and there are {len(sweep.seeds)}")
    if sweep.budget and sweep.budget[0] == "seconds":
        found.append("a search has no budget in seconds, which is measured for each run beforehand")
    if search.trials < 1:
        found.append(f"trials is {search.trials}; it must be at least 1")
    if not all(search.figure.partition("/")):
        found.append(f"figure is {search.figure!r}; it must be GROUP/NAME, as valid/mlm_loss")
    for kind, name, known in (
        ("sampler", search.sampler, SAMPLERS),
        ("pruner", search.pruner, PRUNERS),
    ):
        if name not in known:
            found.append(f"{kind} is {name!r}; it must be one of {', '.join(known)}")
    return found


def _problems(of: Range | Choice) -> list[str]:
    if isinstance(of, Choice):
        plain = all(v is None or isinstance(v, (str, bool, int, float)) for v in of.values)
        wrong = "" if of.values else "there is nothing to choose from"
        return [] if of.values and plain else [wrong or f"{of.values} are not all plain values"]
    found = []
    if not of.low < of.high:
        found.append(f"it goes from {of.low} to {of.high}; the first must be less")
    if of.log and of.low <= 0:
        found.append(f"it goes from {of.low} by magnitude; that must be over 0")
    if of.step is not None:
        steps = (of.high - of.low) / of.step if of.step > 0 else math.nan
        if not math.isclose(steps, round(steps) if math.isfinite(steps) else 0):
            found.append(f"no number of steps of {of.step} goes from {of.low} to {of.high}")
    return found


class Trials:
    """The trials of a search, shared with every other worker on the same folder."""

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        common: Overrides,
        seeds: tuple[int, ...],
        say: Callable[[str], None],
    ):
        """Reads what there is, and writes nothing.

        Args:
          sweep: with a search.
          folder: of the journal and the trials.
          common: overrides of all trials, over those that the sweep has for all of them.
          seeds: the one of every trial.
          say: told of trials that are taken over.

        Raises:
          ConfigError: Optuna is missing, the search is wrong or another than the folder's, or a
            config somewhere at the space's edges is wrong; names all of it.
        """
        assert sweep.search is not None
        self.search: Search = sweep.search
        sweep = dataclasses.replace(sweep, seeds=seeds)
        if problems := space_problems(sweep):
            raise ConfigError(problems)
        self.folder, self._say = folder, say
        self._sweep, self._common = sweep, common
        self.edges = plan(self._listed(_edges(self.search)), folder / "edges", common, seeds)
        self._optuna = _optuna()
        self._sampler, self._pruner = _choices(self._optuna, self.search)
        self._study: Any = None
        self._mine: set[int] = set()  # trials that this worker has or had
        self._orphans: list[int] | None = None
        if (folder / JOURNAL).is_file():
            self._open()

    def create(self) -> None:
        """Makes the journal where there is none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open()

    def _open(self) -> None:
        storages = self._optuna.storages
        backend = storages.journal.JournalFileBackend(str(self.folder / JOURNAL))
        self._study = self._optuna.create_study(
            storage=storages.JournalStorage(backend),
            sampler=self._sampler,
            pruner=self._pruner,
            study_name=_NAME,
            direction="maximize" if self.search.maximize else "minimize",
            load_if_exists=True,
        )
        now = self._description()
        before = self._study.user_attrs.get("search")
        if before is None:
            self._study.set_user_attr("search", now)
        elif changed := [n for n in now if n not in _FREE and now[n] != before.get(n)]:
            raise ConfigError(
                [
                    f"{self.folder} holds a search with another {', '.join(changed)}; choose "
                    "another --workdir or go back to it"
                ]
            )

    def _description(self) -> dict:
        """What makes it this search and no other, as JSON."""
        of = dataclasses.asdict(self.search)
        of |= {
            "base": self._sweep.base,
            "budget": self._sweep.budget,
            "overrides": self._sweep.common | self._common,
            "seeds": self._sweep.seeds,
        }
        return json.loads(json.dumps(of))

    def _listed(self, rows: list[Overrides]) -> Sweep:
        return dataclasses.replace(self._sweep, runs=rows, search=None)

    def _run(self, number: int, row: Overrides) -> Run:
        """The run of a trial; raises ConfigError for a point that is no config, RunError where its
        folder holds another run."""
        (run,) = plan(self._listed([row]), self.folder, self._common, self._sweep.seeds)
        name = f"trial={number}"
        run = dataclasses.replace(run, name=name, workdir=self.folder / name)
        if problems := other_run(run):
            raise RunError("\n".join(problems))
        return run

    # Taking trials.

    def next(self) -> Trial | None:
        """A trial to run: first those whose worker is gone, then new ones; None: there is none."""
        looked = self._orphans is None
        if looked:
            self._orphans = self._abandoned()
        if taken := self._first_taken() or self._first_new():
            return taken
        if not looked:  # since then somebody may be gone
            self._orphans = self._abandoned()
            if taken := self._first_taken():
                return taken
        self._orphans = None
        return None

    def _first_taken(self) -> Trial | None:
        """The first of the orphans that can be taken."""
        while self._orphans:
            if taken := self._taken(self._orphans.pop(0)):
                return taken
        return None

    def _first_new(self) -> Trial | None:
        while (new := self._new()) is not None:
            if taken := self._taken(new):
                return taken
        return None

    def _new(self) -> int | None:
        """The number of a trial that was not there; None: there are as many as wanted."""
        if len(self._study.get_trials(deepcopy=False)) >= self.search.trials:
            return None
        number = self._study.ask().number
        # Of two workers that ask for the last one, one gets a number too many: it waits for
        # --trials to be raised, and counts for nothing until then.
        return number if number < self.search.trials else None

    def _abandoned(self) -> list[int]:
        """Trials that nobody seems to run. Those of living workers are known by their lock, which
        changes every few seconds."""
        states = (self._optuna.trial.TrialState.RUNNING,)
        open_trials = [
            trial.number
            for trial in self._study.get_trials(deepcopy=False, states=states)
            if trial.number < self.search.trials and trial.number not in self._mine
        ]
        before = {number: _content(self._lock_folder(number) / LOCK) for number in open_trials}
        if any(before.values()):
            time.sleep(1.2 * RENEWED_EVERY)
        return [
            number
            for number, content in before.items()
            if content is None or _content(self._lock_folder(number) / LOCK) == content
        ]

    def _lock_folder(self, number: int) -> Path:
        return self.folder / _LOCKS / f"trial={number}"

    def _taken(self, number: int) -> Trial | None:
        """The trial with its lock; None: another worker has it, or it is over."""
        folder = self._lock_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = WorkdirLock(folder, self._say)
        except WorkdirTaken:
            return None
        self._mine.add(number)
        trial = self._live(number)
        frozen = self._study.get_trials(deepcopy=False)[number]
        if frozen.state.is_finished():
            lock.close()
            return None
        row = {name: _drawn(trial, name, of) for name, of in self.search.space.items()}
        try:
            return Trial(number, self._run(number, row), lock)
        except ConfigError as error:
            outcome = f"refused: {'; '.join(error.problems)}"
            self._end(number, outcome)
            lock.close()
            self._say(f"trial {number} was {outcome}")
            return None
        except RunError:
            lock.close()
            raise

    def _live(self, number: int):
        """Optuna's object of a trial, to report to and to be asked."""
        frozen = self._study.get_trials(deepcopy=False)[number]
        return self._optuna.trial.Trial(self._study, frozen._trial_id)

    # Judging them.

    def pruned_at(self, trial: Trial) -> int | None:
        """Reports what the run has logged; the step at which the pruner ends it, or None.

        It follows from the logged figures alone, in their order, so that a run that was killed
        and logs the same again is judged the same. The last evaluation prunes nothing.
        """
        new = {s: v for s, v in self._logged(trial.run).items() if s > trial.judged}
        if not new:
            return None
        live = self._live(trial.number)
        reported = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        last = max(reported, default=-1)
        end = trial.run.trained.train.num_steps
        for step, value in new.items():
            trial.judged = step
            if step < last:
                continue
            if step > last:
                live.report(value, step)
            if step < end and live.should_prune():
                return step
        return None

    def _logged(self, run: Run) -> dict[int, float]:
        """Step -> the figure that is compared; NaN where it was not finite, which is not logged."""
        group, _, name = self.search.figure.partition("/")
        path = run.workdir / "metrics.jsonl"
        of_group = [r for r in records(path) if r["group"] == group]
        if not any(name in record for record in of_group):
            return {}
        return {r["step"]: float(r[name]) if name in r else math.nan for r in of_group}

    def prune(self, trial: Trial, step: int) -> None:
        """Tells that a trial was ended early; where its figure is not finite, that it diverged."""
        figures = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        finite = math.isfinite(figures[step])
        self._end(trial.number, f"pruned at step {step}" if finite else "diverged")

    def diverge(self, trial: Trial) -> None:
        """Tells that a trial diverged, as worse than any other, so that it is kept clear of."""
        reported = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        self._live(trial.number).report(math.nan, max(reported, default=0) + 1)
        self._end(trial.number, "diverged")

    def complete(self, trial: Trial) -> str:
        """Tells what a run that is finished came to; returns it in words.

        Raises RunError where it has no such figure.
        """
        step = trial.run.trained.train.num_steps
        group, _, name = self.search.figure.partition("/")
        found = self._logged(trial.run).get(step, math.nan)
        if math.isfinite(found):
            self._study.tell(trial.number, found, skip_if_finished=True)
            return f"{self.search.figure} {found:.4g}"
        report = json.loads((trial.run.workdir / f"eval_{step}.json").read_text())
        if name not in report and f"{group}/{name}" not in report:
            names = sorted(
                f"{r['group']}/{key}"
                for r in trial.run.metrics()
                for key in r
                if r["step"] == step and r["group"] != "train" and key not in ("step", "group")
            )
            raise RunError(
                f"The search compares {self.search.figure}, which its runs do not have; there is "
                f"{', '.join(dict.fromkeys(names))}. Name one of them in `figure`, and begin in "
                "another --workdir."
            )
        self.diverge(trial)
        return "diverged"

    def _end(self, number: int, outcome: str) -> None:
        self._live(number).set_user_attr("outcome", outcome)
        state = self._optuna.trial.TrialState.PRUNED
        self._study.tell(number, state=state, skip_if_finished=True)

    # What came of them.

    def left(self) -> int:
        """Trials that are not over."""
        trials = self._counted()
        return self.search.trials - sum(trial.state.is_finished() for trial in trials)

    def ended(self) -> tuple[list[Ended], list[str]]:
        """Trials that are over, the best first, then those that were not trained to their end; and
        a sentence for each whose config was refused."""
        found, refused = [], []
        for trial in self._counted():
            if not trial.state.is_finished():
                continue
            outcome = trial.user_attrs.get("outcome", "")
            if outcome.startswith("refused"):
                refused.append(f"trial {trial.number} was {outcome}")
                continue
            steps = sorted(s for s, v in trial.intermediate_values.items() if math.isfinite(v))
            figure = trial.intermediate_values[steps[-1]] if steps else None
            run = self._run(trial.number, dict(trial.params))
            found.append(Ended(trial.number, run, outcome, trial.value if not outcome else figure))
        worse = -1 if self.search.maximize else 1
        kinds = ("", "pruned", "diverged")

        def order(e: Ended) -> tuple:
            kind = kinds.index(e.outcome.partition(" ")[0])
            return kind, math.inf if e.figure is None else worse * e.figure, e.number

        return sorted(found, key=order), refused

    def _counted(self) -> list:
        if self._study is None:
            return []
        return self._study.get_trials(deepcopy=False)[: self.search.trials]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _edges(search: Search) -> list[Overrides]:
    """Points that have every end of every range, and every choice."""
    first = {name: of.ends()[0] for name, of in search.space.items()}
    ends = [[first | {name: end} for end in of.ends()] for name, of in search.space.items()]
    return chain(list(itertools.chain(*ends)))


def _optuna():
    """Optuna, told to be quiet; raises ConfigError where it is not installed."""
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise ConfigError(
            ["a search needs Optuna: pip install -r requirements-optuna.txt"]
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _drawn(trial, name: str, of: Range | Choice) -> object:
    """A field's value in a trial: as it was drawn, or drawn now."""
    if isinstance(of, Choice):
        return trial.suggest_categorical(name, of.values)
    if isinstance(of.low, int) and isinstance(of.high, int):
        return trial.suggest_int(name, of.low, of.high, step=of.step or 1, log=of.log)
    return trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log)


def _choices(optuna, search: Search) -> tuple:
    """(sampler, pruner) of Optuna's; raises ConfigError for options that they do not take."""
    make = getattr(optuna.samplers, SAMPLERS[search.sampler])
    prune = getattr(optuna.pruners, PRUNERS[search.pruner])
    problems = []
    pruner = None
    try:
        make(seed=0, **search.sampler_options)
    except (TypeError, ValueError) as error:
        problems.append(f"sampler_options of {search.sampler}: {error}")
    try:
        pruner = prune(**search.pruner_options)
    except (TypeError, ValueError) as error:
        problems.append(f"pruner_options of {search.pruner}: {error}")
    if problems:
        raise ConfigError(problems)

    class Keyed(optuna.samplers.BaseSampler):
        """Draws trial n by a stream of its own, whichever worker draws it and after whatever
        restart: what is drawn follows from the seed, n, and what was told before it.

        Optuna's own samplers have one stream for a process, which a restart begins again.
        """

        def _of(self, *key: object):
            seed = int(text_digest(json.dumps([search.seed, *key]))[:8], 16)
            return make(seed=seed, **search.sampler_options)

        def infer_relative_search_space(self, study, trial):
            return self._of(trial.number).infer_relative_search_space(study, trial)

        def sample_relative(self, study, trial, search_space):
            return self._of(trial.number).sample_relative(study, trial, search_space)

        def sample_independent(self, study, trial, param_name, param_distribution):
            sampler = self._of(trial.number, param_name)
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    return Keyed(), pruner
