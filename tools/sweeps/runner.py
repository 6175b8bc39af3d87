"""Runs the runs of a sweep in processes of their own, and survives their failures and its own."""

import ctypes
import dataclasses
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from albert.runtime.console import format_seconds
from albert.runtime.fields import ConfigError
from albert.runtime.paths import replace_text
from tools.sweeps.grid import Sweep
from tools.sweeps.plan import Run, is_finished, other_run

LOG = "sweep.log"
_CALIBRATION_STEPS = 40
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


class Stopped(RuntimeError):
    """The sweep was interrupted; says how to go on."""


@dataclasses.dataclass
class _Job:
    run: Run
    process: subprocess.Popen
    stages: list[list[str]]  # commands that are still to come
    slot: int
    begin: float


def print_commands(sweep: Sweep, runs: list[Run], root: Path, python: str = "python") -> None:
    """One shell command for each run that is not finished, for a cluster's scheduler; to be given
    in the folder that the sweep was given in, where its relative paths lead."""
    for run in runs:
        if stages := stages_left(sweep, run, root, python):
            print(" && ".join(shlex.join(stage) for stage in stages))


def execute(sweep: Sweep, runs: list[Run], jobs: int, root: Path) -> list[tuple[Run, str]]:
    """Trains and evaluates what is not finished; returns failed runs with the end of their logs.

    Args:
      sweep: for its budget and its evaluations.
      runs: as planned.
      jobs: processes at once. On CPU each gets cores of its own.
      root: where train.py and eval.py are.

    Raises:
      Stopped: by Ctrl-C or SIGTERM; the runs were stopped too, and go on from their checkpoints.
    """

    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    running: list[_Job] = []
    failed: list[tuple[Run, str]] = []
    waiting = list(enumerate(runs))
    begin, done, skipped = time.monotonic(), 0, 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, run = waiting.pop(0)
                stages = stages_left(sweep, run, root, sys.executable)
                if not stages:
                    skipped += 1
                    print(f"[{number + 1}/{len(runs)}] {run.name}: finished before", flush=True)
                    continue
                slot = next(s for s in range(jobs) if s not in {job.slot for job in running})
                run.workdir.mkdir(parents=True, exist_ok=True)
                print(f"[{number + 1}/{len(runs)}] {run.name}: starts", flush=True)
                first = start(stages.pop(0), run, slot, jobs)
                running.append(_Job(run, first, stages, slot, time.monotonic()))
            for job in list(running):
                code = job.process.poll()
                if code is None:
                    continue
                if code == 0 and job.stages:
                    job.process = start(job.stages.pop(0), job.run, job.slot, jobs)
                    continue
                running.remove(job)
                done += 1
                seconds = time.monotonic() - job.begin
                left = len(waiting) + len(running)
                eta = (time.monotonic() - begin) / done * left
                if code:
                    failed.append((job.run, end_of_log(job.run.workdir / LOG)))
                    print(
                        f"{job.run.name}: FAILED with code {code}; see {job.run.workdir / LOG}",
                        flush=True,
                    )
                else:
                    print(
                        f"{job.run.name}: done in {format_seconds(seconds)}; {left} left, "
                        f"ETA {format_seconds(eta)}",
                        flush=True,
                    )
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        raise Stopped(
            f"Stopped with {len(waiting) + len(running)} runs to go. The same command resumes it: "
            "finished runs are kept, others go on from their checkpoints."
        ) from None
    finally:
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.wait()
        signal.signal(signal.SIGTERM, before)
    return failed


def stages_left(sweep: Sweep, run: Run, root: Path, python: str) -> list[list[str]]:
    """The commands that are left to do for a run; none when it is finished."""
    stages = [] if is_finished(run) else [[python, program(root, "train.py"), *run.arguments]]
    for arguments, left in sweep.evaluations:
        path = run.workdir / left.format(step=run.trained.train.num_steps)
        if stages or not path.is_file():
            judge = program(root, "eval.py")
            stages.append([python, judge, f"--workdir={run.workdir}", *shlex.split(arguments)])
    return stages


def program(root: Path, name: str) -> str:
    """How a program is called from the caller's folder. Runs start there, so that the paths that
    were checked beforehand lead to the same files."""
    return name if Path.cwd() == root else str(root / name)


def start(command: list[str], run: Run, slot: int, jobs: int) -> subprocess.Popen:
    """Starts a command of a run, which ends with this process; what it prints goes into LOG.

    Args:
      command: as `stages_left` gives it.
      run: whose folder is there.
      slot: which of the `jobs` parts of the cores it keeps to.
      jobs: processes at once.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    own = cores[slot * len(cores) // jobs : (slot + 1) * len(cores) // jobs]

    def prepare():
        # In the child: it ends when the sweep is killed, and keeps to its cores.
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if jobs > 1 and own:
                os.sched_setaffinity(0, own)

    with open(run.workdir / LOG, "a", encoding="utf-8") as log:
        print("$", shlex.join(command), file=log, flush=True)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=prepare,
        )


def end_of_log(path: Path, lines: int = 5) -> str:
    """The last lines of what a run has printed."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def calibrated(
    sweep: Sweep, runs: list[Run], jobs: int | None, root: Path, say: Callable[[str], None] | None
) -> tuple[list[Run], list[tuple[Run, str]]]:
    """Runs of a budget in seconds, with the steps that they can take in it on this machine.

    A short run of each measures its step, one after the other with nothing beside it and on the
    cores that the run will have; the first seed's figure serves the others. What was measured is
    kept in the run's folder, and measured again when the run or `jobs` is another.

    Args:
      sweep: for its budget.
      runs: as planned.
      jobs: runs at once; None: as many as there were, where nothing is measured.
      root: where train.py is.
      say: told of each measurement; None measures nothing.

    Returns:
      (runs, failed): those whose calibration fails, or is not there where nothing is measured, are
      in the second list, with their logs' ends.

    Raises:
      ConfigError: a budget is shorter than the warm-up, or by `other_run`.
    """
    if sweep.budget is None or sweep.budget[0] != "seconds":
        return runs, []
    measured: dict[str, float] = {}  # row -> seconds of a step
    ready: list[Run] = []
    failed: list[tuple[Run, str]] = []
    problems: list[str] = []
    for run in runs:
        key = str(run.row)
        kept = run.workdir / "calibration.json"
        of = {
            "overrides": {k: str(v) for k, v in run.overrides.items() if k != "seed"},
            "base": run.base,
            "jobs": jobs,
        }
        if key not in measured and kept.is_file():
            found = json.loads(kept.read_text())
            if found["of"] == (of if jobs else of | {"jobs": found["of"]["jobs"]}):
                measured[key] = found["step_seconds"]
        if key not in measured and say is None:
            failed.append((run, "its step was not measured yet"))
            continue
        if key not in measured and say is not None:
            assert jobs is not None
            say(f"{run.name}: measuring its step")
            seconds = _step_seconds(run, jobs, root)
            if seconds is None:
                failed.append((run, end_of_log(run.workdir / "calibration" / LOG)))
                continue
            measured[key] = seconds
        try:
            ready.append(run.with_steps(max(1, int(sweep.budget[1] / measured[key]))))
        except ConfigError as error:
            problems += [f"{run.name}: {text}" for text in error.problems]
            continue
        if say is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            replace_text(kept, json.dumps({"of": of, "step_seconds": measured[key]}) + "\n")
    problems += [text for run in ready for text in other_run(run)]
    if problems:
        raise ConfigError(problems)
    return ready, failed


def _step_seconds(run: Run, jobs: int, root: Path) -> float | None:
    """Median seconds of a training step; None when the run fails."""
    folder = run.workdir / "calibration"
    small: dict[str, object] = {
        "train.num_steps": _CALIBRATION_STEPS,
        "train.log_every": 5,
        "train.eval_every": _CALIBRATION_STEPS,
        "train.eval_rows": run.config.train.eval_batch_size,
        "train.checkpoint_every": _CALIBRATION_STEPS,
        "optimizer.warmup_steps": 1,
        "optimizer.cooldown_steps": None,
    }
    short = dataclasses.replace(run, workdir=folder, overrides=run.overrides | small)
    shutil.rmtree(folder, ignore_errors=True)  # of another budget or machine
    folder.mkdir(parents=True)
    command = [sys.executable, program(root, "train.py"), *short.arguments]
    if start(command, short, 0, jobs).wait():
        return None
    times = [r["step_seconds"] for r in short.metrics() if "step_seconds" in r]
    return statistics.median_high(times)
