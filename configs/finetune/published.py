"""What was published of fine-tuned ALBERTs, and what sweeps of fine-tuning have in common."""

from albert.interop.workdir import BEST_REPORT
from albert.tasks import glue
from configs.finetune.glue import TABLE_14

NOTE = (
    "Figures are of the dev set, each run's best checkpoint. xxlarge: Lan et al. 2019, arXiv "
    "1909.11942, tables 9 and 10, single models after 1.5 M steps, RTE, STS-B and MRPC started "
    "from MNLI; RACE on its test set. base v2: the README of google-research/albert."
)
# Metrics by task.
_METRICS = {
    **{name: glue.TASKS[name].metrics for name in TABLE_14},
    "squad1.1": ("exact_match", "f1"),
    "squad2.0": ("exact", "f1"),
    "race": ("accuracy",),
}
# Column -> (file, key), by task.
COLUMNS = {
    task: {f"{name.replace('_', ' ')}, %": (BEST_REPORT, name) for name in names}
    for task, names in _METRICS.items()
}
for _task in TABLE_14:
    if glue.TASKS[_task].labels:
        COLUMNS[_task]["most frequent class, %"] = BEST_REPORT, "majority"
# Of the first metric, in percent; of SQuAD F1 / exact match. No figure of WNLI's dev set was given.
FIGURES: dict[str, dict[str, object]] = {
    "cola": {"xxlarge": 71.4},
    "sst-2": {"xxlarge": 96.9, "base v2": 92.9},
    "mrpc": {"xxlarge": 90.9},
    "qqp": {"xxlarge": 92.2},
    "sts-b": {"xxlarge": 93.0},
    "mnli": {"xxlarge": 90.8, "base v2": 84.6},
    "qnli": {"xxlarge": 95.3},
    "rte": {"xxlarge": 89.2},
    "squad1.1": {"xxlarge": "94.8/89.3", "base v2": "90.2/83.2"},
    "squad2.0": {"xxlarge": "90.2/87.4", "base v2": "82.1/79.3"},
    "race": {"xxlarge": 86.5, "base v2": 66.8},
}


def parse(arg: str) -> tuple[str, bool]:
    """(task, whether it is tiny); raises ValueError."""
    words = [word for word in (arg or "").split(",") if word]
    tasks = [word for word in words if word in COLUMNS]
    if len(tasks) != 1 or set(words) - {tasks[0], "tiny"}:
        raise ValueError(
            f"the argument is {arg!r}; it names one task of {', '.join(COLUMNS)}, and may have "
            "tiny behind a comma"
        )
    return tasks[0], "tiny" in words


def base_of(task: str, tiny: bool) -> str:
    """The config of a task's runs."""
    if task.startswith("squad"):
        base = f"configs/finetune/squad.py:{task.removeprefix('squad')}"
    else:
        base = f"configs/finetune/{'race.py:' if task == 'race' else f'glue.py:{task}'}"
    return f"{base},tiny" if tiny else base
