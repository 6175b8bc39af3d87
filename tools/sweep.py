"""Runs a sweep: many trainings that differ in a few fields, and a table of what they came to.

  python tools/sweep.py configs/ablations/table4.py --workdir=runs/table4 \\
      --config.data.train_sources=wiki/ --config.data.tokenizer=30k-clean.model
  python tools/sweep.py configs/ablations/sharing.py:laptop --workdir=runs/sharing --jobs=2
  python tools/sweep.py configs/ablations/table4.py --workdir=DIR --print   commands for a scheduler
  python tools/sweep.py configs/ablations/table4.py --workdir=DIR --table   only what is there
  python tools/sweep.py configs/ablations/search.py:laptop --workdir=runs/search --workers=2

configs/ablations/ has one file for each table of the paper; behind a colon, laptop makes it minutes
on two CPU cores. configs/finetune/seeds.py and grid.py are sweeps of fine-tuning.
--config.SECTION.FIELD=VALUE holds for every run. Each run gets a folder below the workdir, named by
what it varies. The same command resumes the sweep: finished runs are skipped, others resume from
their checkpoints; a run that fails is told and the rest goes on. Leaves
table.md, table.csv, loss.png and quality.png in the workdir, and hyper-parameters for TensorBoard.

A sweep with a search (configs/ablations/search.py) draws its runs one after the other by Optuna
(pip install -r requirements-optuna.txt) and ends early those that fall behind. Give its command as
often as you like, on all hosts that see the workdir: each is a worker more. --print prints a line
for each of --workers, for a scheduler. docs/tracking.md says more.
"""

import dataclasses
import functools
import shlex
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_ROOT = Path(__file__).resolve().parent.parent
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs and the table.", required=True)
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds of every row. Default: the sweep's own.")
_JOBS = flags.DEFINE_integer(
    "jobs",
    1,
    "Runs at once. On CPU each gets cores of its own; an accelerator takes one.",
    lower_bound=1,
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "Of a search: trials at once by this command, or lines of --print. Default: 1.",
    lower_bound=1,
)
_TRIALS = flags.DEFINE_integer(
    "trials", None, "Of a search: how many in all. Default: the sweep's own.", lower_bound=1
)
_PRINT = flags.DEFINE_bool("print", False, "Print a command for every run that is left, and stop.")
_TABLE = flags.DEFINE_bool("table", False, "Write the table of what is finished, and stop.")


def main(spec: str, overrides: list[str]) -> None:
    from albert.runtime import RunError
    from albert.runtime.fields import ConfigError
    from tools.sweeps.plan import (
        check_disk,
        load_sweep,
        parse_overrides,
        plan,
        task_of,
        without_accelerator,
    )
    from tools.sweeps.plots import draw
    from tools.sweeps.results import collect, write_hyperparameters, write_tables
    from tools.sweeps.runner import Stopped, calibrated, execute, print_commands

    without_accelerator()
    sweep = load_sweep(spec)
    seeds = sweep.seeds
    if _SEEDS.value is not None:
        if not _SEEDS.value or not all(seed.isdecimal() for seed in _SEEDS.value):
            raise ConfigError([f"--seeds is {','.join(_SEEDS.value)}; give numbers, as in 0,1,2"])
        seeds = tuple(map(int, _SEEDS.value))
    if "://" in _WORKDIR.value:
        raise ConfigError(
            [
                f"--workdir is {_WORKDIR.value}; a sweep's folder is on a file system. Of runs "
                "in a bucket copy config.json, metrics.jsonl and eval_*.json here for --table"
            ]
        )
    folder = Path(_WORKDIR.value).expanduser()
    fields = parse_overrides(overrides, task_of(sweep))
    given = [f"--seeds={','.join(map(str, seeds))}"] if seeds != sweep.seeds else []
    command = ["python", "tools/sweep.py", spec, *given, *overrides]
    if sweep.search is not None:
        _search(sweep, folder, fields, seeds, command)
        return
    if _WORKERS.value or _TRIALS.value:
        raise ConfigError([f"{spec} has no search: leave --workers and --trials out"])
    planned = plan(sweep, folder.absolute(), fields, seeds)
    runs, failed = calibrated(sweep, planned, None if _TABLE.value else _JOBS.value, _ROOT, None)
    if _PRINT.value:
        if failed:
            raise ConfigError(
                [
                    "the budget is in seconds, and what a step takes where the runs will be is not "
                    "known: give the sweep there without --print, or another budget"
                ]
            )
        print_commands(sweep, runs, _ROOT)
        return
    if _TABLE.value:
        failed = []
    else:
        check_disk([*runs, *(run for run, _ in failed)], folder)
        runs, failed = calibrated(
            sweep, planned, _JOBS.value, _ROOT, lambda text: print(text, flush=True)
        )
        print(f"{sweep.title}: {len(runs)} runs in {folder}", flush=True)
        try:
            failed += execute(sweep, runs, _JOBS.value, _ROOT)
        except Stopped as stopped:
            raise RunError(str(stopped)) from stopped
    rows = collect(sweep, runs)
    folder.mkdir(parents=True, exist_ok=True)
    table = write_tables(sweep, rows, len(sweep.runs), folder, shlex.join(command))
    write_hyperparameters(sweep, runs)
    draw(sweep, runs, rows, folder)
    _show(table)
    if failed:
        told = "\n".join(f"{run.name}:\n{tail}" for run, tail in failed)
        raise RunError(
            f"{len(failed)} of {len(planned)} runs failed; the same command "
            f"tries them again.\n{told}"
        )


def _search(sweep, folder: Path, fields: dict, seeds: tuple, command: list[str]) -> None:
    from albert.runtime.fields import ConfigError
    from tools.sweeps.plan import check_disk
    from tools.sweeps.study import Trials
    from tools.sweeps.workers import Worker, failure, print_workers, write_trials

    if _JOBS.value != 1:
        raise ConfigError(["a search has --workers, not --jobs"])
    if _TRIALS.value:
        search = dataclasses.replace(sweep.search, trials=_TRIALS.value)
        sweep = dataclasses.replace(sweep, search=search)
    say = functools.partial(print, flush=True)
    trials = Trials(sweep, folder.absolute(), fields, seeds, say)
    workers = _WORKERS.value or 1
    if _PRINT.value:
        more = [f"--trials={_TRIALS.value}"] if _TRIALS.value else []
        line = [*command[2:], f"--workdir={folder.absolute()}", *more]
        print_workers(line, min(workers, trials.left()), _ROOT, command[0])
        return
    worker = None
    if not _TABLE.value:
        check_disk(trials.edges[:1] * trials.left(), folder)
        trials.create()
        print(f"{sweep.title}: {trials.left()} trials to go in {folder}", flush=True)
        worker = Worker(sweep, trials, workers, _ROOT)
        worker.work()
    _show(write_trials(sweep, trials, folder, shlex.join(command)))
    if worker and (failed := failure(worker.failed)):
        raise failed


def _show(table: Path) -> None:
    print(table.read_text(encoding="utf-8"))
    print(
        f"Table, CSV and plots are in {table.parent}. All runs side by side, with their fields:\n"
        f"  {Path(sys.executable).parent / 'tensorboard'} --logdir {table.parent}"
    )


if __name__ == "__main__":
    arguments: list[str] = []
    own = [sys.argv[0]]
    for argument in sys.argv[1:]:
        is_field = argument.lstrip("-").startswith(("config.", "noconfig."))
        (arguments if is_field else own).append(argument)
    names = [argument for argument in own[1:] if not argument.startswith("-")]
    sys.argv = [argument for argument in own if argument not in names]
    if len(names) != 1 and not any("help" in argument for argument in sys.argv):
        print("Name one sweep, such as configs/ablations/table4.py. See --help.", file=sys.stderr)
        sys.exit(2)
    cli.run(lambda: main(names[0], arguments))
