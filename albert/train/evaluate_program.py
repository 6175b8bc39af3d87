"""Judges an exported program by what its run is judged by: what it cost to round the weights."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from albert.checkpoints.store import Checkpoints
from albert.export import FORMATS
from albert.export.interface import HEADS, INPUTS
from albert.interop import exported
from albert.interop.exported import CONDITIONAL, Exported
from albert.models.heads import BEAMS
from albert.runtime.fields import ConfigError
from albert.runtime.paths import file_name_part, replace_text
from albert.tasks.base import Task
from albert.tasks.finetuning import FineTuning
from albert.tasks.texts import EXITS
from albert.train.evaluate import Options, chosen_steps, on_these_devices, open_run

MODEL = "model"  # beside the precisions of a program


def evaluate_program(workdir: Path, step: str | None, folder: Path, options: Options) -> dict:
    """Evaluates every program of an exported folder on what a fine-tuned run is judged by, beside
    the run's own checkpoint, prints the figures and writes them into the workdir.

    Args:
      workdir: folder of the run.
      step: a number, "latest" or "best"; None: the one that stands for the run.
      folder: of tools/export.py.
      options: see `Options`.

    Returns:
      The evaluations' figures by MODEL and by precision.

    Raises:
      CheckpointError: there is no such run or checkpoint, the folder is damaged, or a package that
        runs it is not installed.
      ConfigError, SourceError, VocabularyError: the program is not of this task, or its data or
        vocabulary cannot be used.
    """
    if step == "all":
        raise ConfigError(["--step is all; a program is of one checkpoint"])
    found = exported.read(folder)
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        number = chosen_steps(checkpoints, step)[-1]
        config, task = open_run(workdir, checkpoints.info(number), options)
        task = _checked(task, found, workdir)
        with on_these_devices(config, task) as (evaluators, like, *_):
            params = checkpoints.restore_params(number, like)
            judged = {MODEL: {e.evaluation.name: e.figures(params) for e in evaluators}}
    programs = {
        precision: FORMATS[found.format].runner(found.program(precision))
        for precision in found.programs
    }
    # One function for all of them, since what is traced once for a task is not traced again.
    task.program = in_place_of(task, lambda *rows: programs[precision](*rows))
    with on_these_devices(config, task) as (evaluators, *_):
        for precision in programs:
            judged[precision] = {e.evaluation.name: e.figures({}) for e in evaluators}
    print(f"The model at step {number}, and {folder}:")
    print("\n".join(_table(judged)), flush=True)
    name = f"eval_{number}{options.suffix}_program-{file_name_part(folder.name)}.json"
    replace_text(workdir / name, json.dumps({"step": number, **judged}, indent=1) + "\n")
    print(f"Written to {workdir / name}", flush=True)
    return judged


def in_place_of(task: FineTuning, run: Callable[..., dict[str, np.ndarray]]):
    """What a task asks in place of its model: rows -> what the heads give, by name.

    run: of the three inputs, int32 [B, L], or [B, C, L] where a model chooses; outputs by name.
    """
    head = task.model.heads[0]
    fields = task.model.head_fields.get(head, {})
    kinds = {n: np.int32 if n.endswith("_index") else np.float32 for n in CONDITIONAL.values()}

    def ask(*rows) -> Any:
        inputs = [np.asarray(row, np.int32) for row in rows]
        if fields.get("kind") == "choice":
            inputs = [row[:, None] for row in inputs]
        found = run(*inputs)
        if head == "conditional_span":
            return {ours: found[name].astype(kinds[ours]) for name, ours in CONDITIONAL.items()}
        values = [found[name].astype(np.float32) for name in HEADS[head].outputs]
        return values[0] if len(values) == 1 else np.stack(values, -1)

    def outputs(rows) -> dict[str, Any]:
        batch, length = rows["input_ids"].shape
        many = min(BEAMS, length)
        starts, pairs = (batch, many), (batch, many * many)
        names = {"start": starts, "start_index": starts, "end": pairs, "end_index": pairs}
        shapes: dict[str, Any] = {
            "classifier": (batch, fields.get("labels")),
            "tokens": (batch, length, fields.get("labels")),
            "span": (batch, length, 2),
            "sentence": (batch, task.model.config.hidden_size),
            "conditional_span": names | {"none": (batch,)},
        }
        wanted: Any = jax.ShapeDtypeStruct(shapes[head], np.float32)
        if head == "conditional_span":
            of_each = shapes[head].items()
            wanted = {name: jax.ShapeDtypeStruct(shape, kinds[name]) for name, shape in of_each}
        # The program runs once, on this machine: it gets the rows of all devices.
        whole = (nn.with_logical_constraint(rows[name], (None, None)) for name in INPUTS)
        value = jax.pure_callback(ask, wanted, *whole)
        every: dict[str, Any] = {head: {"vector": value} if head == "sentence" else value}
        if EXITS in task.model.heads:  # of the depths before the last it says nothing
            every[EXITS] = value[:, None][:, :0]
        return every

    return outputs


def _checked(task: Task, found: Exported, workdir: Path) -> FineTuning:
    """The task; raises ConfigError where the program does not do it."""
    if not isinstance(task, FineTuning):
        raise ConfigError(
            [f"{workdir} is a run of pretraining; the check of an export says how near it is"]
        )
    head = task.model.heads[0]
    if found.heads != (head,):
        raise ConfigError(
            [
                f"{found.folder} gives {', '.join(found.heads)} and {workdir} is judged by {head}; "
                f"export it with --heads={head}"
            ]
        )
    pieces = task.model.config.vocab_size, found.model["vocab_size"]
    if pieces[0] != pieces[1]:
        raise ConfigError(
            [
                f"{found.folder} knows {pieces[1]} pieces and {workdir} {pieces[0]}: it is of "
                "another model"
            ]
        )
    ours, theirs = tuple(getattr(task, "labels", ())), found.labels
    if ours != theirs:
        raise ConfigError(
            [
                f"{found.folder} tells apart {', '.join(theirs) or 'no names'} and {workdir} "
                f"{', '.join(ours) or 'no names'}: it is of another model"
            ]
        )
    return task


def _table(judged: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Lines of Markdown: a row for each figure, a column for each precision."""
    lines = [f"| | {' | '.join(judged)} |", f"|---|{'---|' * len(judged)}"]
    for split, figures in judged[MODEL].items():
        for name in figures:
            cells = (f"{of[split].get(name, float('nan')):.4f}" for of in judged.values())
            lines.append(f"| {split} {name} | {' | '.join(cells)} |")
    return lines
