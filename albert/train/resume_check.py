"""Whether a run that is to be resumed is the one that was saved."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from albert import __version__
from albert.runtime import RunError
from albert.tasks.base import Task
from albert.train.config import version_of, with_added
from albert.train.phases import Phase

# Told by the task's own description, or past: where a run started.
_NOT_COMPARED = ("init_from", "init_model", "init_optimizer", "init_method")
# Of the model and yet harmless: what is computed is the same up to rounding.
_NUMERICS = ("model.dtype", "model.remat", "model.attention", "model.scan_unroll")
# Harmless and yet not exact: what is learned differs from here on.
_LEARNING = (
    "optimizer",
    "distillation",
    "train.max_bad_steps",
    "train.spike_factor",
    "train.reduce_dtype",
    "train.num_steps",
    "train.epochs",
)


def describe_run(phase: Phase, task: Task) -> dict:
    """What a checkpoint of this phase says of its run, as JSON. `task`: with the phase's rows."""
    described = {
        "version": __version__,
        "config": dataclasses.asdict(phase.config),
        "course": phase.course,
        "heads": _heads(task),
        "serves_best": task.serves_best,
        "teacher": task.distillation.digest if task.distillation else None,
        **task.description(),
    }
    return json.loads(json.dumps(described))


def _heads(task: Task) -> dict:
    """The heads of a task's model with their fields, for whoever loads it without the task."""
    fields = getattr(task.model, "head_fields", {})
    return {name: dict(fields.get(name, {})) for name in getattr(task.model, "heads", ())}


def check_version(saved: dict, workdir: Path) -> None:
    """Raises RunError for a run of a version that kept other things in its checkpoints."""
    version = version_of(saved)
    if version.split(".")[:2] != __version__.split(".")[:2]:
        raise RunError(
            f"{workdir} was made by albert {version}, and this is {__version__}, which keeps other "
            "things in a checkpoint. Resume it with that version, or start from its weights in "
            f"another --workdir with --config.init_from={workdir}."
        )


def check_same_run(
    saved: dict, phase: Phase, task: Task, workdir: Path, say: Callable[[str], None]
) -> None:
    """Refuses to resume with another model, teacher or other rows; tells of any other change.

    Args:
      saved: a checkpoint's description.
      phase: that it has reached.
      task: with the phase's rows.

    Raises:
      RunError: names every value that may not change.
    """
    now = describe_run(phase, task)
    old = with_added(saved["config"])
    refused, warned = task.changes(saved)
    told: list[str] = []
    before, after = saved.get("teacher"), now["teacher"]
    if before != after:
        named = [digest[:12] if digest else "none" for digest in (before, after)]
        refused.append(
            f"  distillation.teacher: digest of what is used of its weights: {' -> '.join(named)}"
        )
    if (course := saved.get("course", [])) != now["course"]:
        was, given = ("; ".join(lines) or "none" for lines in (course, now["course"]))
        refused.append(f"  phases before this one: {was} -> {given}")
    for section, after in now["config"].items():
        if section in _NOT_COMPARED:
            continue
        for line in _changes(section, old.get(section), after):
            field = line.split(":")[0].strip()
            # A row's number is step * batch_size + its place in the batch.
            if field in ("task", "seed", "train.batch_size") or (
                section == "model" and field not in _NUMERICS
            ):
                refused.append(line)
            elif field == "distillation.teacher":
                told.append(line)  # its weights are compared, wherever they lie
            elif field.startswith(_LEARNING) or section == "model":
                warned.append(line)
            else:
                told.append(line)
    if refused:
        raise RunError(
            f"The checkpoints in {workdir} come from another run:\n"
            + "\n".join(refused)
            + "\nGo back to these values, or start a new run in another --workdir."
        )
    if warned:
        say(
            "Warning: from here on the run learns or is judged otherwise, since this was changed:\n"
            + "\n".join(warned)
        )
    if told:
        say("Changed since the checkpoint was written:\n" + "\n".join(told))


def _changes(name: str, before, after) -> list[str]:
    """A line for every field of a section, or for a field without a section, that differs."""
    if not isinstance(after, dict):
        return [f"  {name}: {before} -> {after}"] if before != after else []
    before = before or {}
    return [
        f"  {name}.{field}: {before.get(field)} -> {after.get(field)}"
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
    ]
