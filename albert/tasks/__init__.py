"""Tasks by name: what `config.task` chooses from."""

import importlib

from albert.tasks.base import Task

# name -> the module and the class in it, imported when it is asked for.
TASKS: dict[str, str | type[Task]] = {
    "pretraining": "albert.tasks.pretraining:Pretraining",
    "glue": "albert.tasks.glue:Glue",
    "classification": "albert.tasks.classification:OwnTexts",
    "choice": "albert.tasks.race:MultipleChoice",
    "squad": "albert.tasks.squad:Squad",
    "tokens": "albert.tasks.tokens:TokenLabels",
    "contrastive": "albert.tasks.contrastive:Contrastive",
}
_REQUIRED = (
    "Section",
    "make_model",
    "flops_per_row",
    "tokens_per_row",
    "prepare",
    "to_evaluate",
    "denominators",
    "sums",
    "loss",
)


def find_task(name: str) -> type[Task]:
    """The class of a task; raises ValueError for a name that is not in `TASKS`, and TypeError for
    a task without a required part."""
    if name not in TASKS:
        raise ValueError(f"task is {name!r}; it must be one of {', '.join(TASKS)}")
    task = TASKS[name]
    if isinstance(task, str):
        module, _, attribute = task.partition(":")
        task = getattr(importlib.import_module(module), attribute)
    missing = [
        part
        for part in _REQUIRED
        if not hasattr(task, part) or getattr(getattr(task, part), "__isabstractmethod__", False)
    ]
    if missing:
        raise TypeError(f"the task {name!r} has no {', '.join(missing)}; see albert/tasks/base.py")
    return task


def check_task(task: Task) -> None:
    """Raises TypeError for an instance that lacks a part, or whose evaluations share a name."""
    missing = [part for part in ("model", "rows", "evaluations", "best") if not _has(task, part)]
    if missing:
        raise TypeError(f"the task {type(task).__name__} brings no {', '.join(missing)}")
    names = [evaluation.name for evaluation in task.evaluations]
    if len(set(names)) < len(names) or "train" in names:
        raise TypeError(
            f"the task {type(task).__name__} has the evaluations {', '.join(names)}; each needs a "
            'name of its own, which is not "train"'
        )
    if task.best.evaluation not in names:
        raise TypeError(
            f"the best checkpoint of the task {type(task).__name__} is by the evaluation "
            f"{task.best.evaluation!r}, which it does not have"
        )


def _has(task: Task, part: str) -> bool:
    value = getattr(task, part, None)
    return value is not None and (part != "evaluations" or len(value) > 0)
