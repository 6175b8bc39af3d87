"""Runs a sweep: many trainings that differ in a few fields, and a table of what they came to.

  python tools/sweep.py configs/ablations/table4.py --workdir=runs/table4 \\
      --config.data.train_sources=wiki/ --config.data.tokenizer=30k-clean.model
  python tools/sweep.py configs/ablations/sharing.py:laptop --workdir=runs/sharing --jobs=2
  python tools/sweep.py configs/ablations/table4.py --workdir=DIR --print   commands for a scheduler
  python tools/sweep.py configs/ablations/table4.py --workdir=DIR --table   only what is there

configs/ablations/ has one file for each table of the paper; behind a colon, laptop makes it minutes
on two CPU cores. configs/finetune/seeds.py and grid.py are sweeps of fine-tuning.
--config.SECTION.FIELD=VALUE holds for every run. Each run gets a folder below the workdir, named by
what it varies. The same command resumes the sweep: finished runs are skipped, others resume from
their checkpoints; a run that fails is told and the rest goes on. Leaves
table.md, table.csv, loss.png and quality.png in the workdir, and hyper-parameters for TensorBoard.
"""

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
_PRINT = flags.DEFINE_bool("print", False, "Print a command for every run that is left, and stop.")
_TABLE = flags.DEFINE_bool("table", False, "Write the table of what is finished, and stop.")


def main(spec: str, overrides: list[str]) -> None:
    from albert.runtime import RunError
    from albert.runtime.fields import ConfigError
    from tools.sweeps.plan import check_disk, load_sweep, parse_overrides, plan, task_of
    from tools.sweeps.plots import draw
    from tools.sweeps.results import collect, write_hyperparameters, write_tables
    from tools.sweeps.runner import Stopped, calibrated, execute, print_commands

    sweep = load_sweep(spec)
    seeds = sweep.seeds
    if _SEEDS.value is not None:
        if not _SEEDS.value or not all(seed.isdecimal() for seed in _SEEDS.value):
            raise ConfigError([f"--seeds is {','.join(_SEEDS.value)}; give numbers, as in 0,1,2"])
        seeds = tuple(map(int, _SEEDS.value))
    folder = Path(_WORKDIR.value).expanduser()
    fields = parse_overrides(overrides, task_of(sweep))
    planned = plan(sweep, folder.absolute(), fields, seeds)
    runs, failed = calibrated(sweep, planned, _JOBS.value, _ROOT, None)
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
    given = [f"--seeds={','.join(map(str, seeds))}"] if seeds != sweep.seeds else []
    command = shlex.join(["python", "tools/sweep.py", spec, *given, *overrides])
    table = write_tables(sweep, rows, len(sweep.runs), folder, command)
    write_hyperparameters(sweep, runs)
    draw(sweep, runs, rows, folder)
    print(table.read_text(encoding="utf-8"))
    print(
        f"Table, CSV and plots are in {folder}. All runs side by side, with their fields:\n"
        f"  {Path(sys.executable).parent / 'tensorboard'} --logdir {folder}"
    )
    if failed:
        told = "\n".join(f"{run.name}:\n{tail}" for run, tail in failed)
        raise RunError(
            f"{len(failed)} of {len(planned)} runs failed; the same command "
            f"tries them again.\n{told}"
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
