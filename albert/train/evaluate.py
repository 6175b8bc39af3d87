"""Evaluating: a task's evaluations over whatever devices there are, in a run and afterwards."""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from albert.checkpoints.agreement import agreed_error, agreed_value
from albert.checkpoints.store import CheckpointError, Checkpoints
from albert.data.loader import heldout_batch
from albert.data.tokenizer import Tokenizer
from albert.interop import formats
from albert.interop.reshare import first_layers
from albert.interop.weights import predicting_pieces, stacked
from albert.interop.workdir import VOCABULARY, is_run, served
from albert.models import attention
from albert.runtime.console import tell
from albert.runtime.digests import text_digest
from albert.runtime.fields import ConfigError
from albert.runtime.paths import file_name_part, place, replace_text
from albert.tasks import find_task
from albert.tasks.base import Evaluation, Predictions, Samples, Task
from albert.tasks.pictures import Draw
from albert.train.config import Config, as_plain, attention_problems_of, config_of_run, from_json
from albert.train.pictures import pictures_of_run, write_pictures
from albert.train.processes import host_line
from albert.train.sharding import (
    ShardingConfig,
    batch_sharding,
    local_rows,
    make_mesh,
    placed,
    put_batch,
    replicated,
    slice_index,
)
from albert.train.writers import MetricWriter, unusable
from albert.train.writers.base import About

# Fields of data that say where things are, and change no figure.
_PLACES = ("folder", "tokenizer", "train_sources", "workers")


class _OverRows:
    """A step over the same rows every time, a batch after the other."""

    def __init__(
        self,
        of: Evaluation | Samples | Predictions,
        mesh: Mesh,
        sharding: ShardingConfig,
        size: int,
    ):
        self._of, self._size = of, size
        self._sharding = batch_sharding(mesh, sharding)
        self._step = jax.jit(of.step, out_shardings=replicated(mesh))

    def batch(self, index: int, whole: bool = False) -> dict[str, np.ndarray]:
        """This process's rows of a batch, or all of them."""
        rows = range(self._size) if whole else local_rows(self._sharding, self._size)
        return heldout_batch(self._of.rows, self._size, rows, index, self._of.num_rows)

    @cached_property
    def batches(self) -> list[dict[str, np.ndarray]]:
        return [self.batch(index) for index in range(math.ceil(self._of.num_rows / self._size))]

    def run(self, params, batch):
        return self._step(params, put_batch(batch, self._sharding))

    def outcomes(self, params) -> list:
        """What the step gives of every batch, on the host."""
        return jax.device_get([self.run(params, batch) for batch in self.batches])

    def gathered(self, params):
        """What the step gives of every row, one behind the other, without padding."""
        count, found = self._of.num_rows, self.outcomes(params)
        return jax.tree.map(lambda *x: np.concatenate(x)[:count], *found)


class Evaluator:
    """One of a task's evaluations over a mesh. Of several processes call it on all."""

    def __init__(
        self, evaluation: Evaluation, mesh: Mesh, sharding: ShardingConfig, batch_size: int
    ):
        self.evaluation = evaluation
        self._rows = _OverRows(evaluation, mesh, sharding, batch_size)

    def outcome(self, params):
        """What the evaluation's step gives of all rows, the same on every process."""
        if self.evaluation.gathers:
            return self._rows.gathered(params)
        # In float64: sums of millions of terms outgrow the digits of float32.
        found = self._rows.outcomes(params)
        return jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), axis=0), *found)

    def figures(self, params) -> dict[str, float]:
        """The evaluation's figures of these parameters."""
        return self.evaluation.figures(self.outcome(params))


def sample_lines(
    samples: Samples | None, params, mesh: Mesh, sharding: ShardingConfig, size: int, most: int
) -> list[str]:
    """What the model makes of the first held-out rows; empty for a task without samples."""
    if samples is None or not most:
        return []
    rows = _OverRows(samples, mesh, sharding, size)
    outcome = np.asarray(rows.run(params, rows.batch(0)))
    return samples.lines(rows.batch(0, whole=True), outcome, most)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may ask of an evaluation.

    Attributes:
      text: a source to evaluate on instead of the run's own held-out text.
      rows: at most so many rows instead of the config's `train.eval_rows`.
      examples: lines of what the model makes of held-out rows.
      data, train: fields of these sections of the config to replace, such as
        {"sentence_objective": "nsp"}.
    """

    text: str | None = None
    rows: int | None = None
    examples: int = 5
    data: dict = dataclasses.field(default_factory=dict)
    train: dict = dataclasses.field(default_factory=dict)

    def with_fields(self, fields: dict[str, object]) -> "Options":
        """With fields that are given as SECTION.FIELD; raises ConfigError for other sections."""
        changes: dict[str, dict] = {"data": dict(self.data), "train": dict(self.train)}
        problems = []
        for name, value in fields.items():
            section, _, field = name.partition(".")
            if section in changes:
                changes[section][field] = value
            else:
                problems.append(f"{name} is the run's own; what may differ is data and train")
        if problems:
            raise ConfigError(problems)
        return dataclasses.replace(self, data=changes["data"], train=changes["train"])

    def applied(self, config: Config) -> Config:
        """The config with what these options say."""
        changes = dict(self.data)
        if self.text is not None:
            changes["valid_sources"] = (self.text,)
        if lacking := [name for name in changes if not hasattr(config.data, name)]:
            raise ConfigError(
                [
                    f"the task {config.task} has no field data.{name} to evaluate otherwise by"
                    for name in lacking
                ]
            )
        data = dataclasses.replace(config.data, **changes)
        rows = {"eval_rows": self.rows} if self.rows else {}
        train = dataclasses.replace(config.train, **(self.train | rows))
        changed = dataclasses.replace(config, data=data, train=train)
        return from_json(dataclasses.asdict(changed)) if self.data or self.train else changed

    @property
    def suffix(self) -> str:
        """What tells the files of such an evaluation from those of another."""
        parts = [self.text] if self.text is not None else []
        for name, value in (self.data | self.train).items():
            parts.append(str(value) if name == "sentence_objective" else f"{name}={value}")
        parts += [f"rows={self.rows}"] if self.rows else []
        return "".join(f"_{file_name_part(part)}" for part in parts)


def evaluate_run(
    workdir: Path, step: str | None, options: Options, other: Config | None = None
) -> None:
    """Evaluates checkpoints of a run, prints the figures and writes them into its workdir, with the
    task's pictures, and what it predicts of unlabelled rows.

    Args:
      workdir: folder of the run.
      step: a number, "latest", "best" or "all"; None: the one that stands for the run.
      options: see `Options`.
      other: a config whose sections `data` and `train` say how to evaluate; None: the run's own.

    Raises:
      CheckpointError: there is no such run or checkpoint.
      ConfigError, SourceError, VocabularyError: its text or vocabulary cannot be used.
    """
    with contextlib.ExitStack() as stack:
        error: Exception | None = None
        try:
            opened = Checkpoints(workdir / "checkpoints")
            checkpoints = stack.enter_context(contextlib.closing(opened))
            steps = chosen_steps(checkpoints, step)
        except CheckpointError as not_there:  # on this host, maybe, whose folder is its own
            error = not_there
        if (agreed := agreed_error(error)) is not None:
            raise agreed
        # Beside a living run every process sees others: all take the first one's.
        steps = [
            int(agreed_value(steps[min(i, len(steps) - 1)]))
            for i in range(int(agreed_value(len(steps))))
        ]
        config, task = open_run(workdir, checkpoints.info(steps[-1]), options, other)
        suffix = options.suffix + _suffix_of(other, checkpoints.info(steps[-1]))
        with (
            on_these_devices(config, task) as (evaluators, like, mesh, sharding, size),
            _writer_beside(workdir, config, f"eval{suffix}") as writer,
        ):
            for number in steps:
                params = _restored(checkpoints, number, like)
                if params is None:
                    continue
                found = {e.evaluation.name: (e.evaluation, e.outcome(params)) for e in evaluators}
                figures = {name: of.figures(outcome) for name, (of, outcome) in found.items()}
                lines = sample_lines(task.samples, params, mesh, sharding, size, options.examples)
                predicted: dict = {}
                for each in task.predictions:
                    rows = _OverRows(each, mesh, sharding, size)
                    predicted |= each.files(rows.gathered(params))
                if writer is None:
                    continue
                path = workdir / f"eval_{number}{suffix}.json"
                write_report(path, number, figures, lines)
                for name, values in figures.items():
                    writer.write(number, "eval" if name == "valid" else name, values)
                print_figures(f"at step {number}", task, figures, lines)
                print(f"Written to {path}", flush=True)
                drawn: dict[str, Draw] = {}
                for name, (of, outcome) in found.items():
                    if of.pictures:
                        all_of = of.pictures(outcome) | pictures_of_run(workdir, name, number)
                        drawn |= {f"{name}_{picture}": draw for picture, draw in all_of.items()}
                if drawn:
                    folder = workdir / f"pictures_{number}{suffix}"
                    write_pictures(folder, writer, number, drawn)
                    print(f"Pictures are in {folder}: {', '.join(drawn)}", flush=True)
                for name, of_file in predicted.items():
                    place_of = workdir / f"predictions_{number}{suffix}" / name
                    place_of.parent.mkdir(exist_ok=True)
                    replace_text(place_of, "".join(f"{line}\n" for line in of_file))
                    print(f"Predictions are in {place_of}", flush=True)
                print(flush=True)


@contextlib.contextmanager
def _writer_beside(workdir: Path, config: Config, part: str) -> Iterator[MetricWriter | None]:
    """The run's writers for what is logged beside it, as a run of their own; None in all processes
    but the first. Those that cannot be used here are told and left out."""
    if jax.process_index():
        yield None
        return
    names = [name for name in config.train.writers if name != "jsonl"]  # the run's own record
    left_out = unusable(names, workdir)
    for problems in left_out.values():
        print("\n".join(f"Not logged there: {text}" for text in problems), flush=True)
    about = About(workdir, as_plain(config), None, part=part)
    kept = [name for name in names if name not in left_out]
    with contextlib.closing(MetricWriter(kept, about, functools.partial(print, flush=True))) as it:
        yield it


def predictions_of(workdir: Path, step: int, config: Config, task: Task) -> list:
    """What a checkpoint of a run makes of the rows of each of the task's predictions: what their
    `files` take. `config`, `task`: as `open_run` gives them. Raises CheckpointError."""
    with (
        contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints,
        on_these_devices(config, task) as (_, like, mesh, sharding, size),
    ):
        params = checkpoints.restore_params(step, like)
        return [_OverRows(each, mesh, sharding, size).gathered(params) for each in task.predictions]


def _restored(checkpoints: Checkpoints, step: int, like):
    """The parameters of a step, or None, which is told, where its run has removed it since."""
    error: Exception | None = None
    params = None
    try:
        params = checkpoints.restore_params(step, like)
    except CheckpointError as unreadable:
        error = unreadable
    if agreed_error(error) is None:
        return params
    if agreed_value(step in checkpoints.folders()):
        raise error or CheckpointError(f"another process could not read the step {step}")
    if jax.process_index() == 0:
        print(f"Step {step} has been removed by its run since: left out.")
    return None


def _suffix_of(other: Config | None, info: dict) -> str:
    """What tells the files of an evaluation by another config from those of the run's own."""
    if other is None:
        return ""
    mine = json.loads(json.dumps(dataclasses.asdict(other)))
    changed = {
        name: value
        for name, value in mine["data"].items()
        if name not in _PLACES and value != info["config"]["data"].get(name)
    }
    if mine["train"]["eval_rows"] != info["config"]["train"]["eval_rows"]:
        changed["eval_rows"] = mine["train"]["eval_rows"]
    return f"_config-{text_digest(json.dumps(changed))[:8]}" if changed else ""


def open_run(
    workdir: Path, info: dict, options: Options, other: Config | None = None
) -> tuple[Config, Task]:
    """The config of a run, from a checkpoint's description, and its task to evaluate it by.

    Raises:
      CheckpointError: it is a model and not a run.
      ConfigError, SourceError, VocabularyError: its text or vocabulary cannot be used any more.
    """
    if not is_run(info):
        raise CheckpointError(
            f"{workdir} holds a model and not a run; evaluate it with --model={workdir} --text=..."
        )
    config = config_of_run(info, workdir)
    if other is not None:
        config = _evaluated_by(other, config, workdir)
    config = options.applied(config)
    path = workdir / VOCABULARY  # its own copy, wherever the original has gone
    tokenizer = None
    if path.is_file():
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, tokenizer=str(path))
        )
        tokenizer = Tokenizer(path, config.data.lower_case, config.data.strip_accents)
    return config, find_task(config.task).to_evaluate(config, tokenizer, info)


def _evaluated_by(other: Config, own: Config, workdir: Path) -> Config:
    """A run's config with the sections `data` and `train` of another one of the same model."""
    problems = [
        f"model.{field.name} is {getattr(other.model, field.name)!r} in --config and "
        f"{getattr(own.model, field.name)!r} in the run {workdir}"
        for field in dataclasses.fields(own.model)
        if getattr(other.model, field.name) != getattr(own.model, field.name)
    ]
    if other.task != own.task:
        problems.append(f"task is {other.task!r} in --config and {own.task!r} in the run {workdir}")
    for field in ("lower_case", "strip_accents"):  # the vocabulary is used as it was learned
        if getattr(other.data, field, None) != getattr(own.data, field, None):
            problems.append(
                f"data.{field} is {getattr(other.data, field)} in --config and "
                f"{getattr(own.data, field)} in the run {workdir}"
            )
    if problems:
        raise ConfigError([*problems, "leave --config out to evaluate the run by its own config"])
    return dataclasses.replace(own, data=other.data, train=other.train)


def evaluate_model(path: Path, config: Config, options: Options, depth: int | None = None) -> None:
    """Evaluates any model that `albert.load` takes and prints the figures; writes nothing.

    Args:
      path: the model.
      config: says how data becomes rows, and how many at once; its model section is not used.
      options: see `Options`.
      depth: end behind so many layers; None: all.

    Raises:
      CheckpointError: there is no such model, or it cannot end there.
      ConfigError, SourceError, VocabularyError: there is no vocabulary or text, or it does not fit.
    """
    named = place(config.data.tokenizer) if config.data.tokenizer else None
    weights = formats.read(path, vocabulary=named)
    if depth is not None:
        weights = first_layers(weights, depth)
    kind = find_task(config.task)
    config = dataclasses.replace(options.applied(config), model=weights.config)
    problems = kind.problems(config, needs_text=False) + kind.evaluation_problems(config, weights)
    if problems:
        raise ConfigError([f"{text} ({path})" for text in problems])
    if weights.vocabulary_note and jax.process_index() == 0:
        print(f"{path}: {weights.vocabulary_note}")
    task = kind.to_evaluate(config, weights.tokenizer, None, weights)
    with on_these_devices(config, task) as (evaluators, like, mesh, sharding, size):
        params = stacked(weights.config, predicting_pieces(weights))
        flat = {
            name: jax.device_put(params.get(name, np.zeros(leaf.shape)), leaf.sharding)
            for name, leaf in flatten_dict(like, sep="/").items()
        }
        tree = unflatten_dict(flat, sep="/")
        figures = {e.evaluation.name: e.figures(tree) for e in evaluators}
        lines = sample_lines(task.samples, tree, mesh, sharding, size, options.examples)
    if jax.process_index() == 0:
        print_figures(f"by {path}", task, figures, lines)


@contextlib.contextmanager
def on_these_devices(config: Config, task: Task) -> Iterator[tuple]:
    """Yields (evaluators, abstract parameters, mesh, sharding, rows at once) over the devices that
    are here: the run's own mesh where they can form it, else all of a slice along "data"."""
    sharding = config.sharding
    if problems := attention_problems_of(config, attention.here):
        raise ConfigError(problems)
    try:
        mesh = make_mesh(sharding)
    except ValueError:
        slices = len({slice_index(device) for device in jax.devices()})
        sharding = dataclasses.replace(sharding, slices=slices, data=-1, fsdp=1, tensor=1)
        mesh = make_mesh(sharding)
    size = -(-config.train.eval_batch_size // jax.device_count()) * jax.device_count()
    like = placed(task.abstract_params(task.model), mesh, sharding)
    if jax.process_count() > 1:
        tell(host_line(mesh, local_rows(batch_sharding(mesh, sharding), size), size, like))
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.rules):
        evaluators = [Evaluator(e, mesh, sharding, size) for e in task.evaluations]
        yield evaluators, like, mesh, sharding, size


def print_figures(of: str, task: Task, figures: dict[str, dict], lines: list[str]) -> None:
    """The tables of the evaluations, and what the model makes of held-out rows."""
    print(report_text(of, task, figures, lines), flush=True)


def report_text(of: str, task: Task, figures: dict[str, dict], lines: list[str]) -> str:
    tables = [e.table(of, figures[e.name]) for e in task.evaluations if e.name in figures]
    if lines and task.samples:
        tables += [task.samples.heading, *(f"  {line}" for line in lines)]
    return "\n".join(tables)


def write_report(path: Path, step: int, figures: dict[str, dict], examples: list[str]) -> None:
    """The figures and examples of one evaluation as a JSON file: those of the first evaluation by
    name, those of others behind its name and a slash."""
    first, *others = figures
    flat = dict(figures[first])
    for name in others:
        flat |= {f"{name}/{figure}": value for figure, value in figures[name].items()}
    found = {"step": step, **flat, "examples": examples}
    # In one go: its being there says that a run is finished.
    replace_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def chosen_steps(checkpoints: Checkpoints, step: str | None) -> list[int]:
    """The checkpoints that "latest", "best", "all" or a number name, or None: the one that stands
    for the run. Raises CheckpointError."""
    if step is None:
        return [served(checkpoints)]
    found = checkpoints.steps()
    if not found:
        raise CheckpointError(f"{checkpoints.folder} holds no finished checkpoint yet.")
    if step == "latest":
        return found[-1:]
    if step == "all":
        return found
    if step == "best":
        best = checkpoints.from_the_best()
        if not best:
            raise CheckpointError(f"No checkpoint in {checkpoints.folder} was evaluated.")
        return best[:1]
    if not step.isdecimal() or int(step) not in found:
        raise CheckpointError(
            f"{checkpoints.folder} has no checkpoint of step {step}; it has "
            f"{', '.join(map(str, found))}. Give one of them, best, latest or all."
        )
    return [int(step)]
