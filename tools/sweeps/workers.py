"""A worker of a search: runs trials in processes of their own, and ends early what the pruner says.

A run is pruned as a scheduler would stop it: by SIGTERM, upon which it saves and leaves.
"""

import dataclasses
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from albert.runtime import RunError
from albert.runtime.console import format_seconds
from albert.runtime.signals import EXIT_CODE, Preempted
from tools.sweeps.grid import Sweep, chain
from tools.sweeps.plots import draw
from tools.sweeps.results import collect_trials, short, write_hyperparameters, write_tables
from tools.sweeps.runner import LOG, end_of_log, program, stages_left, start
from tools.sweeps.study import Trial, Trials

_POLL_SECONDS = 0.2
_MOST_FAILURES = 3
_DIVERGED = "Training diverged"  # what such a run says last


def print_workers(arguments: list[str], workers: int, root: Path, python: str) -> None:
    """A shell command for each worker, with one trial at a time, for a cluster's scheduler; to be
    given in the folder that the search was given in. `arguments`: of tools/sweep.py."""
    for _ in range(workers):
        print(shlex.join([python, program(root, "tools/sweep.py"), *arguments]))


def write_trials(sweep: Sweep, trials: Trials, folder: Path, command: str) -> Path:
    """Writes the table, plots and hyper-parameters of the trials that are over; returns the table.

    Written again where another worker has ended a trial meanwhile, so that the last one to leave
    leaves the whole table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        left = trials.left()
        ended, refused = trials.ended()
        rows = collect_trials(sweep, ended)
        table = write_tables(sweep, rows, trials.search.trials, folder, command, refused)
        if trials.left() == left:
            break
    finished = [trial.run for trial in ended if not trial.outcome]
    points = dataclasses.replace(sweep, runs=chain([run.row for run in finished]))
    write_hyperparameters(points, finished)
    draw(points, finished, [row for row in rows if row.of_seeds], folder)
    return table


@dataclasses.dataclass
class _Job:
    trial: Trial
    stages: list[list[str]]  # commands that are still to come
    slot: int
    begin: float
    process: subprocess.Popen | None = None  # None: there was nothing left to start
    pruned: int | None = None  # the step that decided it


class Worker:
    """Runs trials until there is none left.

    Args:
      sweep: for the evaluations behind a run.
      trials: of its search.
      workers: trials at once.
      root: where train.py and eval.py are.
    """

    def __init__(self, sweep: Sweep, trials: Trials, workers: int, root: Path):
        self._sweep, self._trials, self._root = sweep, trials, root
        self._workers = workers
        self._running: list[_Job] = []
        self._more = True  # there may be trials that nobody runs
        self._failures = 0  # in a row
        self.failed: list[tuple[Trial, str]] = []  # with the end of their logs

    def work(self) -> None:
        """Returns when every trial is over, or runs elsewhere, or has failed here.

        Raises:
          Preempted: by Ctrl-C or SIGTERM, or since a run was; the same command goes on.
          RunError: the search compares a figure that its runs do not have.
        """

        def stop(number, frame):
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, stop)
        try:
            while self._more or self._running:
                # Several in a row would fail at any point of the space.
                self._more &= self._failures < _MOST_FAILURES
                while self._more and len(self._running) < self._workers:
                    trial = self._trials.next()
                    self._more = trial is not None
                    if trial is not None:
                        self._begin(trial)
                for job in list(self._running):
                    self._look(job)
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            raise self._preempted() from None
        finally:
            for job in self._running:
                if job.process is not None:
                    job.process.terminate()
            for job in self._running:
                if job.process is not None:
                    job.process.wait()
                job.trial.lock.close()
            signal.signal(signal.SIGTERM, before)

    def _preempted(self) -> Preempted:
        return Preempted(
            f"Stopped with {self._trials.left()} trials to go. The same command goes on: trials "
            "that were not over are resumed from their checkpoints."
        )

    def _begin(self, trial: Trial) -> None:
        run = trial.run
        run.workdir.mkdir(parents=True, exist_ok=True)
        free = {job.slot for job in self._running}
        slot = next(s for s in range(self._workers) if s not in free)
        stages = stages_left(self._sweep, run, self._root, sys.executable)
        job = _Job(trial, stages, slot, time.monotonic())
        self._running.append(job)
        drawn = ", ".join(f"{f.split('.')[-1]}={short(v)}" for f, v in run.row.items())
        self._say(trial, drawn)
        # What was logged before a kill may have decided it already.
        job.pruned = self._trials.pruned_at(trial)
        if job.pruned is None and stages:
            self._start(job)

    def _start(self, job: _Job) -> None:
        job.process = start(job.stages.pop(0), job.trial.run, job.slot, self._workers)

    def _look(self, job: _Job) -> None:
        trial, code = job.trial, 0
        if trial.lock.lost:  # this worker was stopped for long
            self._say(trial, "another worker has taken it over")
            self._forget(job)
            return
        ended = job.process is None
        if job.process is not None:
            left = job.process.poll()
            ended, code = left is not None, left or 0
        if job.pruned is None:
            job.pruned = self._trials.pruned_at(trial)
            if job.pruned is not None and job.process is not None and not ended:
                job.process.terminate()
        if not ended:
            return
        if job.pruned is None and code == 0 and job.stages:
            self._start(job)
            return
        self._end(job, code)

    def _end(self, job: _Job, code: int) -> None:
        trial, log = job.trial, job.trial.run.workdir / LOG
        took = format_seconds(time.monotonic() - job.begin)
        if job.pruned is not None:
            self._trials.prune(trial, job.pruned)
            self._say(trial, f"ended at step {job.pruned} by the pruner, after {took}")
        elif code == 0:
            told = self._trials.complete(trial)
            self._say(trial, f"{told} after {took}")
        elif code == EXIT_CODE:
            self._forget(job)
            raise self._preempted()
        elif _DIVERGED in end_of_log(log):
            self._trials.diverge(trial)
            self._say(trial, f"diverged; see {log}")
        else:
            self.failed.append((trial, end_of_log(log)))
            self._failures += 1
            self._say(trial, f"FAILED with code {code}; see {log}")
            self._forget(job)
            return
        self._failures = 0
        self._forget(job)

    def _forget(self, job: _Job) -> None:
        self._running.remove(job)
        self._more = True
        if job.process is not None:
            job.process.terminate()
            job.process.wait()
        job.trial.lock.close()

    def _say(self, trial: Trial, text: str) -> None:
        print(f"trial {trial.number}: {text}", flush=True)


def failure(failed: list[tuple[Trial, str]]) -> RunError | None:
    """What to tell of trials that failed; None where none did."""
    if not failed:
        return None
    told = "\n".join(f"trial {trial.number}:\n{tail}" for trial, tail in failed)
    return RunError(f"{len(failed)} trials failed; the same command tries them again.\n{told}")
