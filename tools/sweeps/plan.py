"""From a sweep to its runs: overrides, folder and command of each, all checked beforehand."""

import ast
import dataclasses
import functools
import importlib.util
import json
import multiprocessing
import shutil
import typing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from albert.checkpoints import CheckpointError
from albert.interop import formats
from albert.models.config import AUTO_DTYPE
from albert.runtime.fields import ConfigError
from albert.runtime.paths import file_name_part, place
from albert.tasks import find_task
from albert.train.config import Config, check, field_types, from_json, split_overrides, with_added
from albert.train.cost import in_bfloat16, state_bytes
from albert.train.phases import phases_of
from tools.sweeps.grid import Overrides, Sweep

_ROOT = Path(__file__).resolve().parent.parent.parent
_MOST_LETTERS = 150  # of a folder's name, in front of its seed

BUDGETS = ("steps", "tokens", "flops", "seconds")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    name: str  # of its folder
    row: Overrides  # what the sweep varies, without the seed
    seed: int
    workdir: Path
    base: str
    overrides: Overrides  # everything that differs from the base
    config: Config

    @property
    def arguments(self) -> list[str]:
        """For train.py."""
        return [
            f"--config={found_file(self.base)}",
            *(f"--config.{name}={value}" for name, value in self.overrides.items()),
            f"--workdir={self.workdir}",
        ]

    @property
    def trained(self) -> Config:
        """The config that it was trained by, from its folder: with the steps of `train.epochs`, and
        sizes from `init_from`."""
        stored = _stored_config(self)
        return self.config if stored is None else from_json(stored)

    def metrics(self) -> list[dict]:
        """The records of its `metrics.jsonl`."""
        text = (self.workdir / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def with_steps(self, steps: int) -> "Run":
        """The same run with so many steps; raises ConfigError when its warm-up is longer."""
        train = dataclasses.replace(self.config.train, num_steps=steps)
        config = dataclasses.replace(self.config, train=train)
        return dataclasses.replace(
            self,
            overrides=self.overrides | {"train.num_steps": steps},
            config=check(dataclasses.asdict(config), needs_text=False),
        )


def found_file(spec: str) -> str:
    """`FILE` or `FILE:ARGUMENT` as programs find it from the caller's folder: the file that is
    there, or else the project's own of this name."""
    path, colon, argument = spec.partition(":")
    ours = _ROOT / path
    if not Path(path).is_file() and ours.is_file():
        path = str(ours)
    return f"{path}{colon}{argument}"


def load_module(path: str):
    """A Python file by its path; raises ConfigError when there is none."""
    path = found_file(path)
    if not Path(path).is_file():
        raise ConfigError([f"There is no file {path}."])
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError([f"{path} is not a Python file."])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_sweep(spec: str) -> Sweep:
    """The sweep that `FILE` or `FILE:ARGUMENT` names; raises ConfigError."""
    path, _, argument = spec.partition(":")
    module = load_module(path)
    if not hasattr(module, "get_sweep"):
        raise ConfigError([f"{path} has no function get_sweep; see configs/ablations/table4.py."])
    try:
        return module.get_sweep(argument)
    except ValueError as error:
        raise ConfigError([f"{path}: {error}"]) from error


def task_of(sweep: Sweep) -> str:
    """What the runs of a sweep learn."""
    path, _, argument = sweep.base.partition(":")
    return load_module(path).get_config(argument).task


def parse_overrides(arguments: list[str], task: str = "pretraining") -> Overrides:
    """Values of `--config.FIELD=VALUE`, those of data as the task has them; raises ConfigError for
    what cannot be."""
    kept, problems = split_overrides(arguments)
    problems += [f"{a} has no value; write {a}=VALUE" for a in kept if "=" not in a]
    if problems:
        raise ConfigError(problems)
    found: Overrides = {}
    for argument in kept:
        name, _, text = argument.lstrip("-").removeprefix("config.").partition("=")
        section, _, field = name.partition(".")
        kinds = field_types(name)
        if section == "data":
            own = typing.get_type_hints(find_task(task).Section)
            kinds = [own[field]] if field in own else kinds
        found[name] = _parsed(text, kinds[0])
    return found


def _parsed(text: str, kind) -> object:
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text.capitalize() if kind is bool else text)
    except (ValueError, SyntaxError):
        value = text
    if typing.get_origin(kind) is tuple and not isinstance(value, tuple):
        return (value,)
    return value


def plan(sweep: Sweep, folder: Path, common: Overrides, seeds: tuple[int, ...]) -> list[Run]:
    """Every run of a sweep, in order, with its seeds one after the other.

    Args:
      sweep: see `Sweep`.
      folder: below it every run gets a folder named by its overrides.
      common: overrides of all runs, over those that the sweep has for all of them.
      seeds: of every row.

    Raises:
      ConfigError: a run's config is wrong, two would share a folder, a folder holds another run,
        or `common` sets what the sweep varies; names all of them.
    """
    problems: list[str] = []
    names_of = field_names(sweep.runs)
    kind = sweep.budget[0] if sweep.budget else ""
    if sweep.budget and kind not in BUDGETS:
        problems.append(f"budget is by {kind!r}; it must be by one of {', '.join(BUDGETS)}")
    if not sweep.runs or not seeds:
        problems.append("there are no runs or no seeds")
    varied = {field for row in sweep.runs for field in row} | {"seed"}
    varied |= {"train.num_steps"} if sweep.budget else set()
    problems += [
        f"--config.{field} is set, and the sweep itself sets {field}; leave it out"
        + (" and give --seeds" if field == "seed" else "")
        for field in common
        if field in varied
    ]
    if problems:
        raise ConfigError(problems)
    path, _, argument = sweep.base.partition(":")
    module = load_module(path)
    runs: list[Run] = []
    for row in sweep.runs:
        for seed in seeds:
            overrides = {**sweep.common, **row, **common, "seed": seed}
            name = run_name(row, seed, names_of)
            values = module.get_config(argument)
            try:
                for field, value in overrides.items():
                    values.update_from_flattened_dict({field: value})
                run = Run(name, row, seed, folder / name, sweep.base, overrides, check(values))
                if sweep.budget and run.config.train.epochs:
                    problems.append(
                        f"{name}: train.epochs is {run.config.train.epochs}, and the sweep has a "
                        f"budget of {kind}, which says how long its runs are; set it to 0"
                    )
                if sweep.budget and run.config.phases:
                    problems.append(
                        f"{name}: it has phases, and the sweep a budget of {kind}, which says how "
                        "long its runs are and not its phases; leave one of them out"
                    )
                if sweep.budget and kind != "seconds":
                    run = run.with_steps(steps_of(run.config, *sweep.budget))
            except (ConfigError, KeyError, TypeError, AttributeError) as error:
                told = getattr(error, "problems", [f"{error}"])
                problems += [f"{name}: {text}" for text in told]
                continue
            runs.append(run)
    names = [run.name for run in runs]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"{names.count(name)} runs would share the folder {folder / name}")
    if not problems and kind != "seconds":
        problems += [text for run in runs for text in other_run(run)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return runs


def field_names(rows: list[Overrides]) -> dict[str, str]:
    """Field -> how folders call it: by its last part, or whole where two fields share that."""
    fields = list(dict.fromkeys(field for row in rows for field in row))
    last = [field.split(".")[-1] for field in fields]
    return {
        field: name if last.count(name) == 1 and name != "seed" else field
        for field, name in zip(fields, last, strict=True)
    }


def run_name(row: Overrides, seed: int, names: dict[str, str] | None = None) -> str:
    """A folder's name, such as "sharing=attention,embedding_size=768,seed=0"; other rows have other
    names.

    Args:
      row: overrides.
      seed: of the run.
      names: as `field_names` gives them for the whole sweep; by default for this row alone.
    """
    names = field_names([row]) if names is None else names
    parts = [f"{names[field]}={_value_name(value)}" for field, value in row.items()]
    name = ",".join(parts)
    if len(name.encode()) > _MOST_LETTERS:
        name = file_name_part(repr(sorted(row.items())))
    return f"{name},seed={seed}" if name else f"seed={seed}"


def _value_name(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value)
    return file_name_part(str(value), also=":")


def steps_of(config: Config, kind: str, amount: float) -> int:
    """Training steps that a budget of steps, tokens or FLOPs pays for; at least one."""
    task, rows = find_task(config.task), config.train.batch_size
    tokens, flops = rows * task.tokens_per_row(config), rows * task.flops_per_row(config)
    cost = {"steps": 1, "tokens": tokens, "flops": flops}[kind]
    return max(1, int(amount / cost))


def _stored_config(run: Run) -> dict | None:
    path = run.workdir / "config.json"
    if not path.is_file():
        return None
    try:
        return with_added(json.loads(path.read_text())["config"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Remove {run.workdir}.") from error


def other_run(run: Run) -> list[str]:
    """A sentence when the run's folder holds a run with another config."""
    stored = _stored_config(run)
    if stored is None:
        return []
    # Its folder has the config of the phase that it has reached.
    changes = min((_changes(phase.config, stored) for phase in phases_of(run.config)), key=len)
    if not changes:
        return []
    return [
        f"{run.workdir} holds a run with another {', '.join(changes)}; choose another --workdir or "
        "remove it"
    ]


def _changes(config: Config, stored: dict) -> list[str]:
    """The fields in which what a run has stored is not what it would store with a config."""
    wanted = json.loads(json.dumps(dataclasses.asdict(config)))
    # What a run finds out when it starts.
    if config.init_model and config.init_from:
        wanted["model"] = stored["model"]
    if config.model.dtype == AUTO_DTYPE:
        wanted["model"]["dtype"] = stored["model"]["dtype"]
    if config.train.epochs:
        wanted["train"]["num_steps"] = stored["train"]["num_steps"]
        for field in ("warmup_steps", "cooldown_steps"):
            wanted["optimizer"][field] = stored["optimizer"][field]
    return [
        f"{section}{'.' + field if field else ''}"
        for section, values in wanted.items()
        for field in (values if isinstance(values, dict) else [""])
        if (stored.get(section, {}).get(field) if field else stored.get(section))
        != (values[field] if field else values)
    ]


def is_finished(run: Run) -> bool:
    """Whether the run was trained to its end, with this config."""
    if other_run(run):
        return False
    return (run.workdir / f"eval_{run.trained.train.num_steps}.json").is_file()


def without_accelerator() -> None:
    """Leaves it to the runs: jax would take it, with most of its memory, for whoever asks sizes."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def _bytes_of(configs: list[Config]) -> int:
    """What the checkpoints of runs take at most."""
    total = 0
    read = functools.cache(lambda path: formats.read(place(path)).config)
    sized = functools.cache(state_bytes)
    for config in configs:
        if config.init_model and config.init_from:
            config = dataclasses.replace(config, model=read(config.init_from))
        sizes = sized(in_bfloat16(dataclasses.replace(config, seed=0, phases=())))
        kept = config.train.keep_last + config.train.keep_best + 1
        total += kept * (sizes["parameters"] + sizes["optimizer"])
    return total


def check_disk(runs: list[Run], folder: Path) -> None:
    """Raises ConfigError when the checkpoints that are still to come are larger than what is free.

    A run keeps `keep_last + keep_best` checkpoints of parameters and optimizer, and one more while
    it is being written.
    """
    left = [run.config for run in runs if not is_finished(run)]
    # Sizes wake jax up, which takes an accelerator that the runs need, and a process in which it is
    # awake should start no others by fork: asked in one of its own.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawned, without_accelerator) as other:
        needed = other.submit(_bytes_of, left).result()
    disk = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise ConfigError(
            [
                f"the checkpoints of the sweep take up to {needed / 1e9:.1f} GB and {disk} has "
                f"{free / 1e9:.1f} GB free; lower train.keep_last, or choose another --workdir"
            ]
        )
