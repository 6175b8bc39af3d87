"""Starts a run, or the runs of a sweep, on a cluster, by the engine that the cluster has.

  python tools/launch.py slurm --config=configs/base.py --workdir=runs/base --nodes=2 --gpus=8
  python tools/launch.py slurm --sweep=configs/ablations/sharing.py:laptop --workdir=runs/sharing
  python tools/launch.py kubernetes --config=configs/base.py --workdir=gs://BUCKET/base \\
      --shape=v6e-16 --slices=2 --image=REGISTRY/albert:1
  python tools/launch.py skypilot --config=configs/base.py --workdir=gs://BUCKET/base \\
      --shape=h100-80gb-8 --nodes=2
  python tools/launch.py tpu_vm --config=configs/base.py --workdir=gs://BUCKET/base \\
      --shape=v6e-16 --zone=us-east5-b --image=REGISTRY/albert:1 --print

Checks the config, what the devices can share and where the workdir lies, writes the engine's own
file, prints each command and hands the file over by it. A run that is preempted saves and is
started again. --print shows the file and the commands, and touches nothing. launch/ENGINE/README.md
says what is needed, and how to watch and stop. Give it in the folder in which the paths of the
config lead somewhere.
"""

import dataclasses
import glob
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli
from tools.launchers import TARGETS
from tools.launchers.base import PROJECT, Devices, Engine, Job, Run

_SLICES = "config.sharding.slices"


def with_slices(arguments: list[str]) -> list[str]:
    """Arguments with the config's number of slices where the job has several."""
    text = ""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "slices" and argument.startswith("-"):
            text = value if equals else "".join(arguments[place + 1 : place + 2])
    several = text.isdecimal() and int(text) > 1
    return [*arguments, f"--{_SLICES}={text}"] if several else arguments


_GIVEN = sys.argv[1:]
sys.argv = with_slices(sys.argv)
_names = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
_TARGET = next((name for name in _names if name in TARGETS), _names[0] if _names else "")
_IS_SWEEP = any(a.lstrip("-").partition("=")[0] == "sweep" for a in sys.argv[1:])
# A sweep's fields are read by tools/sweep.py.
_FIELDS = [a for a in sys.argv[1:] if a.startswith("--config.")]
if _IS_SWEEP:
    sys.argv = [a for a in sys.argv if a not in _FIELDS]
_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run or sweep, here or on gs://.")
_SWEEP = flags.DEFINE_string("sweep", None, "A sweep, as tools/sweep.py takes it, not one run.")
_PRINT = flags.DEFINE_bool("print", False, "Print what would be started, and stop.")


def define_options(engine: Engine) -> list[flags.FlagHolder]:
    """A flag for each field of the engine's options."""
    holders: list[flags.FlagHolder] = []
    for field in dataclasses.fields(engine.Options):
        name, text = field.name, field.metadata["help"]
        default: Any = field.default
        if isinstance(default, bool):
            holders.append(flags.DEFINE_bool(name, default, text))
        elif isinstance(default, int):
            least = field.metadata["least"]
            holders.append(flags.DEFINE_integer(name, default, text, lower_bound=least))
        elif isinstance(default, tuple):
            holders.append(flags.DEFINE_multi_string(name, list(default), text))
        else:
            holders.append(flags.DEFINE_string(name, default, text))
    return holders


_OPTIONS = define_options(TARGETS[_TARGET]) if _TARGET in TARGETS else []


def options_text() -> str:
    """The flags of every engine, for --help."""
    lines = []
    for target, engine in TARGETS.items():
        lines.append(f"\nFlags of {target}:")
        for field in dataclasses.fields(engine.Options):
            default = f" ({field.default})" if field.default not in ("", (), False) else ""
            lines.append(f"  --{field.name}: {field.metadata['help']}{default}")
    return "\n".join(lines) + "\n"


def main(target: str) -> None:
    from albert.runtime import RunError
    from albert.runtime.fields import ConfigError
    from albert.runtime.paths import LiteralPath, place
    from tools.sweeps.plan import without_accelerator

    if target not in TARGETS:
        raise ConfigError([f"there is no engine {target!r}; there is {', '.join(TARGETS)}"])
    if not _WORKDIR.value:
        raise ConfigError(["--workdir is missing; it is the folder of the run or sweep"])
    engine = TARGETS[target]
    without_accelerator()
    # What is in a bucket is read for a sweep alone; the run needs the store's library, not this.
    is_named_only = not (engine.SEES_THIS_DISK or _SWEEP.value) and _WORKDIR.value[:5] == "gs://"
    workdir = LiteralPath(_WORKDIR.value) if is_named_only else place(_WORKDIR.value)
    values = {h.name: tuple(h.value) if isinstance(h.value, list) else h.value for h in _OPTIONS}
    options = engine.Options(**values)
    if problems := engine.problems(options, workdir, bool(_SWEEP.value)):
        raise ConfigError(problems)
    devices = engine.devices(options)
    if _SWEEP.value:
        runs = _of_sweep(_SWEEP.value, workdir, devices, engine.SEES_THIS_DISK, values)
    else:
        runs = _of_run(devices, engine.SEES_THIS_DISK)
    if not runs:
        raise RunError(f"All runs of the sweep in {workdir} are finished.")
    at = time.strftime("%Y%m%d-%H%M%S")
    job = Job(workdir.name, workdir, runs, bool(_SWEEP.value), options, at)
    files = engine.files(job)
    if _PRINT.value:
        print("---\n".join(files.values()), end="", flush=True)
        engine.start(job, _would_run)
        return
    if shutil.which(engine.PROGRAM) is None:
        raise RunError(
            f"There is no {engine.PROGRAM} here: give the command where jobs are handed over "
            f"(launch/{target}/README.md), or add --print to see what it is."
        )
    for name, text in files.items():
        path = job.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"Written to {path}.", flush=True)
    print("\n".join(engine.start(job, _run)))


def _would_run(command) -> str:
    print("$", shlex.join(command), file=sys.stderr)
    return ""


def _run(command) -> str:
    """The output of an engine's command; raises RunError."""
    from albert.runtime import RunError

    print("$", shlex.join(command), flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise RunError(f"{shlex.join(command)} is refused: {said}")
    return done.stdout


def _check(config, devices: Devices, sees_this_disk: bool) -> list[str]:
    """What keeps so many devices, or machines that see buckets alone, from running a config."""
    from albert.runtime.fields import ConfigError
    from albert.tasks import find_task
    from albert.train.config import check_devices
    from albert.train.cost import in_bfloat16

    found = [] if sees_this_disk else _files_here(config)
    if config.init_model and config.init_from:
        from albert.train.init_from import read_start

        config, _ = read_start(config)
    # The kernel is one of the hosts', whatever this machine has; no shape depends on it.
    config = in_bfloat16(config)  # where the hosts choose the dtype
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="xla"))
    kind = find_task(config.task)
    try:
        params = kind.abstract_params(kind.make_model(config, None))
        check_devices(config, params, devices.count)
    except ConfigError as error:
        found += [f"{text} (of {devices.words})" for text in error.problems]
    return found


def _files_here(config) -> list[str]:
    """A sentence for each field that names files of this machine."""
    names = [field.name for field in dataclasses.fields(config.data)]
    fields = {f"data.{name}": getattr(config.data, name) for name in names}
    fields |= {"init_from": config.init_from, "distillation.teacher": config.distillation.teacher}
    found = []
    for name, value in fields.items():
        for text in value if isinstance(value, tuple) else (value,):
            if not isinstance(text, str) or name == "data.folder" or "://" in text:
                continue
            path = re.sub("^(lines|text|jsonl|parquet):", "", text)
            if re.search("[/.]", path) and glob.glob(str(Path(path).expanduser())):
                found.append(
                    f"{name} names {text}, which is on this machine, and the job's hosts do not "
                    "see it; copy it to gs:// and name that"
                )
    return found


def _program(sees_this_disk: bool) -> tuple[str, Path]:
    """Python and the project's folder, here or where the run starts, which is that folder."""
    return (sys.executable, PROJECT) if sees_this_disk else ("python", Path())


def _found_there(arguments: list[str]) -> list[str]:
    """Arguments with the config as the project's folder has it; raises ConfigError."""
    from albert.runtime.fields import ConfigError

    found = []
    for argument in arguments:
        name, _, spec = argument.partition("=")
        if name in ("--config", "-config"):
            path, colon, of = spec.partition(":")
            file = Path(path).resolve()
            if not file.is_relative_to(PROJECT):
                raise ConfigError(
                    [
                        f"{path} is not in {PROJECT}, which is what the job's hosts get; put it "
                        "into configs/ there, and build the image anew where there is one"
                    ]
                )
            argument = f"{name}={file.relative_to(PROJECT)}{colon}{of}"
        found.append(argument)
    return found


def _of_run(devices: Devices, sees_this_disk: bool) -> tuple[Run, ...]:
    """The run; raises ConfigError."""
    from albert.runtime.fields import ConfigError

    named = [a for a in sys.argv[1:] if re.match(r"--?(no)?config\b", a)]
    if apart := [a for a in named if "=" not in a]:
        raise ConfigError([f"{apart[0]}: write fields with their values, as in --config.seed=1"])
    if problems := _check(cli.checked(_CONFIG), devices, sees_this_disk):
        raise ConfigError(problems)
    python, root = _program(sees_this_disk)
    named = named if sees_this_disk else _found_there(named)
    more = ["--distributed"] if devices.processes > 1 else []
    command = (python, str(root / "train.py"), *named, f"--workdir={_WORKDIR.value}", *more)
    return (Run("", (command,)),)


def _of_sweep(
    spec: str, workdir: Path, devices: Devices, sees_this_disk: bool, options: dict
) -> tuple[Run, ...]:
    """The runs that are left, or the workers of a search; raises ConfigError, and RunError where a
    bucket cannot be read."""
    from albert.runtime import RunError
    from albert.runtime.fields import ConfigError
    from albert.runtime.paths import is_remote
    from tools.sweeps.plan import load_sweep, parse_overrides, plan, task_of
    from tools.sweeps.runner import stages_left

    sweep = load_sweep(spec)
    if sweep.budget and sweep.budget[0] == "seconds":
        raise ConfigError(
            [
                "the budget of the sweep is in seconds, and what a step takes where the runs will "
                "be is not known; give it another"
            ]
        )
    fields = parse_overrides(_FIELDS, task_of(sweep))
    if sweep.search is not None:
        if not sees_this_disk or is_remote(workdir):
            raise ConfigError(
                [
                    f"{spec} has a search, whose workers share a folder on a file system: it "
                    "cannot lie in a bucket, nor be run where this machine's folders are not seen. "
                    "Give it by slurm, or a sweep without a search"
                ]
            )
        return _of_search(sweep, spec, workdir.expanduser().absolute(), fields, options["jobs"])
    remote = is_remote(workdir)
    python, root = _program(sees_this_disk)
    more = ["--distributed"] if devices.processes > 1 else []
    try:
        folder = workdir if remote else workdir.expanduser().absolute()
        planned = plan(sweep, folder, fields, sweep.seeds)
        left = [(run, stages_left(sweep, run, root, python)) for run in planned]
    except Exception as error:
        if not remote or isinstance(error, (ConfigError, *cli.matters_of_use())):
            raise
        raise RunError(f"What is finished in {workdir} cannot be read: {error}") from error
    problems: list[str] = []
    for run in {str(run.row): run for run in planned}.values():  # seeds are alike in this
        problems += _check(run.config, devices, sees_this_disk)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return tuple(
        Run(
            run.name,
            tuple(
                tuple([*(command if sees_this_disk else _found_there(command)), *more])
                for command in commands
            ),
        )
        for run, commands in left
        if commands
    )


def _of_search(sweep, spec: str, folder: Path, fields: dict, workers: int) -> tuple[Run, ...]:
    """So many workers, each with one trial at a time, or fewer where fewer trials are left."""
    from tools.sweeps.study import Trials

    trials = Trials(sweep, folder, fields, sweep.seeds, print)
    script = str(PROJECT / "tools/sweep.py")
    command = (sys.executable, script, spec, f"--workdir={folder}", *_FIELDS)
    return tuple(Run(f"worker-{n}", (command,)) for n in range(min(workers, trials.left())))


def misplaced(arguments: list[str]) -> list[str]:
    """A sentence for each flag that another engine or another flag has."""
    engines = {
        name: {field.name for field in dataclasses.fields(engine.Options)}
        for name, engine in TARGETS.items()
    }
    found = []
    for argument in arguments:
        flag = argument.lstrip("-").partition("=")[0]
        having = [name for name, own in engines.items() if flag in own]
        if argument.startswith("-") and having and _TARGET not in having:
            found.append(f"--{flag} is of {', '.join(having)}, not of {_TARGET}. See --help.")
        if flag == _SLICES and "slices" in engines[_TARGET]:
            found.append(f"--{flag} is set by --slices, the number that is asked for; give that.")
        if flag == "config" and _IS_SWEEP:
            found.append("--config is for one run; a sweep names its own. Leave it out.")
    return found


if __name__ == "__main__":
    if _TARGET in TARGETS and (_wrong := misplaced(_GIVEN)):
        print("\n".join(_wrong), file=sys.stderr)
        sys.exit(2)
    cli.run(main, "ENGINE", __doc__ + ("" if _TARGET in TARGETS else options_text()))
