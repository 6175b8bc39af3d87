"""The schema of a config file, and a check that finds every mistake at once.

A config file builds an `ml_collections.ConfigDict`; `check` turns it into the frozen dataclasses
below, which are what the package reads. Values and comments stand in `configs/default.py`.
"""

import ast
import dataclasses
import json
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from albert import __version__
from albert.checkpoints import CheckpointError
from albert.data.pretraining.prepare import MAX_SEED
from albert.interop.reshare import INIT_METHODS
from albert.models import attention
from albert.models.attention import Use
from albert.models.config import ADDED, AUTO_DTYPE, AlbertConfig
from albert.models.sharing import uneven_groups
from albert.runtime.fields import ConfigError, build, matches, unknown, wrong_type
from albert.tasks import TASKS, find_task
from albert.tasks.base import Task
from albert.tasks.distillation import DistillationConfig
from albert.train.hardware import fastest_dtype
from albert.train.optimizers import OptimizerConfig
from albert.train.phases import length_problems, phase_problems, phases_of
from albert.train.sharding import ShardingConfig, partition_problems, slices_of
from albert.train.writers import WRITERS


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    num_steps: int
    epochs: float  # passes over the training rows, in place of num_steps; 0: num_steps says
    batch_size: int  # rows of one step, over all devices and parts
    accumulation: int  # parts a batch is cut into, one after the other, to save memory
    microbatch: int  # rows of a part on a device at most, in place of accumulation; 0: not set
    log_every: int  # steps
    writers: tuple[str, ...]  # where figures go: keys of `albert.train.writers.WRITERS`
    eval_every: int  # steps; the last step is always evaluated
    eval_rows: int  # held-out rows of one evaluation, at most
    eval_batch_size: int
    checkpoint_every: int  # steps; the last step is always saved
    checkpoint_minutes: float  # also save when this long has passed; 0: by steps only
    keep_last: int
    keep_best: int  # by held-out loss
    max_bad_steps: int  # diverged after so many skipped updates in a row
    spike_factor: float  # skip gradients of so many times the usual norm; 0: never
    on_divergence: str  # stop, or rollback: from the newest checkpoint on behind the bad rows
    max_failed_saves: int  # stop after so many failed saves in a row
    reduce_dtype: str  # in which gradients are sent and summed over devices
    deterministic: bool  # on a GPU too, the same bits every time
    stall_seconds: float  # tell of a step or batch that takes so long; 0: of none

    def problems(self) -> list[str]:
        """What is wrong with the fields, one sentence each."""
        found = []
        for name in (
            "num_steps",
            "batch_size",
            "accumulation",
            "log_every",
            "eval_every",
            "eval_rows",
            "eval_batch_size",
            "checkpoint_every",
            "keep_last",
            "max_bad_steps",
            "max_failed_saves",
        ):
            if getattr(self, name) < 1:
                found.append(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("epochs", "microbatch", "checkpoint_minutes", "keep_best", "stall_seconds"):
            if getattr(self, name) < 0:
                found.append(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.spike_factor and self.spike_factor <= 1:
            found.append(f"spike_factor is {self.spike_factor}; it must be over 1, or 0 for never")
        if unknown_ones := [name for name in self.writers if name not in WRITERS]:
            found.append(f"writers has {', '.join(unknown_ones)}; there is {', '.join(WRITERS)}")
        elif "jsonl" not in self.writers or len({*self.writers}) < len(self.writers):
            found.append(
                f"writers is {self.writers}; each may stand there once, and jsonl must: resuming, "
                "sweeps and pictures read it"
            )
        if self.reduce_dtype not in ("float32", "bfloat16"):
            found.append(f"reduce_dtype is {self.reduce_dtype!r}; it must be float32 or bfloat16")
        if self.on_divergence not in ("stop", "rollback"):
            found.append(f"on_divergence is {self.on_divergence!r}; it must be stop or rollback")
        if self.microbatch > 0 and self.accumulation > 1:
            found.append(
                f"microbatch is {self.microbatch} and accumulation {self.accumulation}: both say "
                "in how many parts a batch is computed; set accumulation to 1, or microbatch to 0"
            )
        if not found and self.batch_size % self.accumulation:
            found.append(
                f"batch_size {self.batch_size} is not a multiple of accumulation "
                f"{self.accumulation}"
            )
        return found


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int
    task: str  # what is learned: a key of `albert.tasks.TASKS`
    init_from: str  # a model to start from: anything that albert.load takes; empty: from scratch
    init_model: bool  # its sizes and sharing are those of init_from, whatever model says
    init_optimizer: bool  # go on with its optimizer's moments and its step
    init_method: str  # how layers that share are made of those that did not: INIT_METHODS
    model: AlbertConfig
    data: Any  # the `Section` of the task
    optimizer: OptimizerConfig
    train: TrainConfig
    phases: tuple[Mapping, ...]  # fields that change with the steps; see phases.py
    sharding: ShardingConfig
    distillation: DistillationConfig


# Fields, by section, and sections that came after the first version, as they are in a run that did
# not have them.
_ADDED_FIELDS: dict[str, dict] = {
    "model": ADDED,
    "train": {"microbatch": 0, "writers": ["jsonl", "tensorboard"]},
    "sharding": {"slices": 1},
}
_ADDED_SECTIONS: dict[str, Any] = {
    "phases": [],
    "distillation": dataclasses.asdict(DistillationConfig("", None, None, None, None)),
}


def check(values: Mapping, needs_text: bool = True, for_training: bool = True) -> Config:
    """The typed config of a ConfigDict or dict; raises ConfigError with all that is wrong.

    What never reads data (`needs_text` False) needs none named either, and a model that is not
    trained any more (`for_training` False) may have any dtype.
    """
    problems: list[str] = []
    task = None
    if "task" not in values:
        problems.append("task is missing; see configs/default.py for what it says")
    else:
        try:
            task = find_task(values["task"])
        except (ValueError, TypeError) as error:
            problems.append(str(error))
    if task is None:
        raise ConfigError(problems)
    config = build(Config, values, "", problems, {"data": task.Section})
    if config is None:
        raise ConfigError(problems)
    problems += _problems_of_sections(config, task, needs_text)
    problems += (of_phases := phase_problems(config))
    if not of_phases:
        for phase in phases_of(config):
            if phase.changes:  # else it has nothing that was not looked at
                of = _problems_of_sections(phase.config, task, needs_text)
                new = [text for text in of if text not in problems]
                problems += [f"phases[{phase.number}]: {text}" for text in new]
    if config.init_optimizer and not config.init_from:
        problems.append("init_optimizer is True and init_from is empty: there is nothing to take")
    if config.init_optimizer:
        problems += [f"optimizer.{text}" for text in config.optimizer.moments_problems()]
    if config.init_model and not config.init_from and needs_text:
        problems.append("init_model is True and init_from is empty: there is no model to be like")
    if config.init_method not in INIT_METHODS:
        problems.append(
            f"init_method is {config.init_method!r}; it must be one of {', '.join(INIT_METHODS)}"
        )
    elif config.init_method == "svd" and not (config.init_from and config.model.lora_rank):
        problems.append(
            "init_method is svd and init_from is empty or model.lora_rank 0; it makes low-rank "
            "differences from the layers of another model, so it needs both"
        )
    if config.distillation.teacher and not task.taught_head:
        able = [name for name in TASKS if find_task(name).taught_head]
        problems.append(
            f"distillation.teacher is {config.distillation.teacher!r} and the task {config.task} "
            f"learns from no teacher; {', '.join(able)} do. Set it to ''"
        )
    if not config.init_from:  # released models may be so
        sharing, steps = config.model.sharing, config.model.num_hidden_layers
        problems += [f"model.{text}" for text in uneven_groups(sharing, steps)]
    if not 0 <= config.seed < MAX_SEED:
        problems.append(f"seed is {config.seed}; it must be in [0, {MAX_SEED})")
    if config.train.epochs and config.init_optimizer:
        problems.append(
            f"train.epochs is {config.train.epochs} and init_optimizer True, which goes on at the "
            "step of init_from; set train.num_steps, and train.epochs to 0"
        )
    if not of_phases:
        problems += [f"optimizer.{text}" for text in length_problems(config)]
    if for_training:
        problems += [f"model.{text}" for text in _training_dtype_problems(config.model)]
    if problems:
        raise ConfigError(problems)
    return config


def _problems_of_sections(config: Config, task: type[Task], needs_text: bool) -> list[str]:
    """What is wrong with the fields of each section, and of the task's beside the others."""
    found: list[str] = []
    for section in ("model", "data", "optimizer", "train", "sharding", "distillation"):
        found += [f"{section}.{text}" for text in getattr(config, section).problems()]
    found += task.problems(config, needs_text)
    if not config.model.problems():
        found += attention_problems_of(config)
    return found


def with_dtype(config: Config, info: dict | None, say: Callable[[str], None]) -> Config:
    """The config with a dtype of activations where it has "auto": that of the run that is resumed,
    or what is fastest here. info: a checkpoint's description, None for a new run."""
    if config.model.dtype != AUTO_DTYPE:
        return config
    if info is not None:
        dtype = info["config"]["model"]["dtype"]
    else:
        dtype, why = fastest_dtype()
        say(f"model.dtype: {dtype}, since {why}.")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))


def in_steps(config: Config, rows_per_epoch: int) -> Config:
    """The config with `train.num_steps` for its `train.epochs`, where these are set; warm-up and
    cooldown keep their share of the steps."""
    train, optimizer = config.train, config.optimizer
    if not train.epochs:
        return config
    steps = max(1, math.ceil(train.epochs * rows_per_epoch / train.batch_size))

    def scaled(length):
        return length and round(length * steps / train.num_steps)

    return dataclasses.replace(
        config,
        train=dataclasses.replace(train, num_steps=steps),
        optimizer=dataclasses.replace(
            optimizer,
            warmup_steps=scaled(optimizer.warmup_steps),
            cooldown_steps=scaled(optimizer.cooldown_steps),
        ),
    )


def attention_problems_of(config: Config, where: Callable[[Use], Use] = lambda use: use):
    """Why the attention kernel cannot serve this config, one sentence each: wherever it runs or,
    with `attention.here`, on this machine."""
    use = find_task(config.task).attention_use(config)
    if use is None:
        return []
    problems = attention.attention_problems(config.model.attention, where(use))
    return [f"model.{text}" for text in problems]


def from_json(values: dict) -> Config:
    """The config that `dataclasses.asdict` and JSON made plain; raises ConfigError."""

    def tuples(value):
        if isinstance(value, dict):
            return {name: tuples(inner) for name, inner in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value

    return check(tuples(with_added(values)), needs_text=False, for_training=False)


def as_plain(config: Config) -> dict:
    """The config as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def with_added(values: dict) -> dict:
    """A plain config with what came after the version that wrote it, as it was without that."""
    whole = _ADDED_SECTIONS | values
    return whole | {
        section: fields | whole[section]
        for section, fields in _ADDED_FIELDS.items()
        if section in whole
    }


def _training_dtype_problems(model: AlbertConfig) -> list[str]:
    """A sentence for each dtype in which a model computes, but does not learn."""
    found = []
    if model.dtype == "float16":
        found.append(
            "dtype is float16; training does not scale its loss, and without that nearly all "
            "gradients underflow to 0 in float16. Train in bfloat16, or in float32; float16 is "
            "for a model that was trained"
        )
    if model.param_dtype != "float32":
        found.append(
            f"param_dtype is {model.param_dtype}; training keeps parameters and the optimizer's "
            "moments in float32: in 16 bits updates round to nothing and second moments stop "
            "moving. Set it to float32; activations and products have model.dtype in any case"
        )
    return found


def config_of_run(info: dict, workdir: Path) -> Config:
    """The config of a run, from a checkpoint's description.

    Raises:
      CheckpointError: another version of this package made it, which had other fields.
      ConfigError: it is not a config.
    """
    try:
        return from_json(info["config"])
    except ConfigError as error:
        version = version_of(info)
        if version == __version__:
            raise
        raise CheckpointError(
            f"{workdir} was made by albert {version}, and this is {__version__}, which has other "
            f"fields: {error.problems[0]}. Use that version to resume or evaluate it, or start "
            f"from its weights in another --workdir with --config.init_from={workdir}."
        ) from error


def version_of(info: dict) -> str:
    """The version of this package that wrote a checkpoint's description."""
    return info.get("version", "0.1.0")  # the last version that did not say


def parts_of(config: Config, num_devices: int) -> int:
    """Parts in which a batch is computed, one after the other: `train.accumulation` or, where
    `train.microbatch` is set, as few as leave a device no more rows of each than that.

    Raises ConfigError when the devices cannot share the rows of a part equally.
    """
    train = config.train
    shards = _row_shards(config, num_devices)
    name, rows = "train.batch_size", train.batch_size
    if train.accumulation > 1:
        name, rows = f"{name} / train.accumulation", rows // train.accumulation
    if rows % shards:
        raise ConfigError([_not_shared(name, rows, shards)])
    if not train.microbatch:
        return train.accumulation
    each = rows // shards
    most = max(n for n in range(1, min(each, train.microbatch) + 1) if each % n == 0)
    return each // most


def rows_at_once(config: Config, num_devices: int) -> int:
    """Rows that a device computes at once; raises ConfigError as `parts_of` does."""
    parts = parts_of(config, num_devices)
    return config.train.batch_size // parts // _row_shards(config, num_devices)


def _row_shards(config: Config, num_devices: int) -> int:
    try:
        return config.sharding.shares("batch", num_devices)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def _not_shared(name: str, rows: int, shards: int) -> str:
    return f"{name} = {rows} rows cannot be shared by {shards} devices equally"


def check_devices(
    config: Config, boxed_params, num_devices: int, where: Callable[[Use], Use] = attention.here
) -> None:
    """Raises ConfigError when the devices cannot share the batch or the parameters equally, or
    lack the attention kernel; `where`: as in `attention_problems_of`."""
    shards = _row_shards(config, num_devices)
    shape = config.sharding.mesh_shape(num_devices)
    problems = partition_problems(boxed_params, shape, config.sharding)
    problems += attention_problems_of(config, where)
    for phase in phases_of(config):
        of = f"phases[{phase.number}]: " if phase.changes else ""
        try:
            parts_of(phase.config, num_devices)
        except ConfigError as error:
            problems += [f"{of}{text}" for text in error.problems]
        if (rows := phase.config.train.eval_batch_size) % shards:
            problems.append(of + _not_shared("train.eval_batch_size", rows, shards))
    if problems:
        raise ConfigError(problems)


def check_here(config: Config, boxed_params) -> None:
    """As `check_devices`, of the devices that are here, which also say what slices they are in."""
    check_devices(config, boxed_params, jax.device_count())
    try:
        slices_of(jax.devices(), config.sharding.slices)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Command-line arguments without the impossible --config.FIELD=VALUE ones, and why not.

    ml_collections stops at the first; this finds them all.
    """
    kept, problems = [], []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.lstrip("-").partition("=")
        off = name.startswith("noconfig.")
        if not argument.startswith("-") or not (name.startswith("config.") or off):
            kept.append(argument)
            continue
        spelling = [argument]
        path = name.removeprefix("no").removeprefix("config.")
        kinds = field_types(path)
        if not equals:
            # --config.FIELD VALUE, or a switch: --config.FIELD and --noconfig.FIELD.
            value = "true"
            if not off and bool not in kinds:
                value = next(rest, "")
                # ml_collections takes a field that may be unset for a switch.
                optional = any(type(None) in typing.get_args(kind) for kind in kinds)
                spelling = [f"{argument}={value}"] if optional else [argument, value]
        problem = _override_problem(path, value)
        if problem:
            problems.append(problem)
        else:
            kept += spelling
    return kept, problems


def field_types(path: str) -> list[Any]:
    """The types of a field given as SECTION.FIELD; empty when there is none. A field of `data` may
    have several, one for each task."""
    kinds: list[Any] = [Config]
    for depth, name in enumerate(path.split(".")):
        if depth == 0 and name == "data":
            kinds = list(dict.fromkeys(find_task(task).Section for task in TASKS))
            continue
        kinds = [
            typing.get_type_hints(kind)[name]
            for kind in kinds
            if dataclasses.is_dataclass(kind) and name in typing.get_type_hints(kind)
        ]
    return list(dict.fromkeys(kinds))


def _override_problem(path: str, value: str) -> str | None:
    walked: list[str] = []
    for name in path.split("."):
        kinds = field_types(".".join([*walked, name]))
        if not kinds:
            sections = field_types(".".join(walked)) if walked else [Config]
            hints = [
                hint
                for kind in sections
                if dataclasses.is_dataclass(kind)
                for hint in typing.get_type_hints(kind)
            ]
            return unknown(".".join([*walked, name]), name, list(dict.fromkeys(hints)))
        walked.append(name)
    if dataclasses.is_dataclass(kinds[0]):
        return f"{path} is a section; set one of its fields, such as {path}." + next(
            iter(typing.get_type_hints(kinds[0]))
        )
    if any(kind is str or typing.get_origin(kind) is tuple for kind in kinds):
        return None
    try:
        parsed = ast.literal_eval(value.capitalize() if bool in kinds else value)
    except (ValueError, SyntaxError):
        parsed = value
    return None if any(matches(parsed, k) for k in kinds) else wrong_type(path, parsed, kinds[0])
