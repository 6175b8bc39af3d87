"""Puts runs on GLUE's tasks together: a table beside the paper's figures, and a submission.

  python tools/glue.py --runs=runs/cola,runs/mrpc,runs/mnli
  python tools/glue.py --runs='runs/glue/*' --zip=submission.zip

Evaluate each run first (python eval.py --workdir=RUN): its figures and predictions are read from
what that wrote; without predictions, which --zip needs, the figures are those of its best
checkpoint. The score is the mean over tasks of each one's mean metric, as GLUE's server has.
"""

import glob
import json
import re
import sys
import zipfile
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli
from albert.interop.workdir import BEST_REPORT
from albert.tasks import glue

_RUNS = flags.DEFINE_list(
    "runs", None, "Folders of runs, one for each task; may be patterns.", required=True
)
_ZIP = flags.DEFINE_string("zip", None, "Also pack the predictions of the test sets into this.")

# Lan et al. 2019, arXiv 1909.11942, table 9: dev, single model, xxlarge after 1.5 M steps.
PAPER = {
    "mnli": 90.8,
    "qnli": 95.3,
    "qqp": 92.2,
    "rte": 89.2,
    "sst-2": 96.9,
    "mrpc": 90.9,
    "cola": 71.4,
    "sts-b": 93.0,
}


def evaluated(workdir: Path) -> tuple[str, dict[str, float], Path | None]:
    """(task, its metrics, folder of its predictions, if there is one) of a run; raises
    ValueError."""
    try:
        config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{workdir} is not the folder of a run: {error}") from error
    if config["task"] != "glue":
        raise ValueError(f"{workdir} is a run of the task {config['task']}, not of glue")
    task = glue.find(config["data"]["name"])
    folders = [f for f in workdir.glob("predictions_*") if re.fullmatch(r"predictions_\d+", f.name)]
    if folders:
        newest = max(folders, key=lambda folder: folder.stat().st_mtime)
        report = workdir / f"eval_{newest.name.removeprefix('predictions_')}.json"
    else:  # of a task without a test set, or not evaluated yet
        newest, report = None, workdir / BEST_REPORT
        if not report.is_file():
            raise ValueError(f"{workdir} has no figures; first: python eval.py --workdir={workdir}")
    figures = json.loads(report.read_text(encoding="utf-8"))
    found = {name: figures[name] for name in glue.TASKS[task].metrics}
    if task == "mnli":
        found["accuracy_mismatched"] = figures["dev_mismatched/accuracy"]
    return task, found, newest


def table(figures: dict[str, dict[str, float]]) -> str:
    """The tasks' metrics in percent, the paper's figure of the first one, and the score."""
    lines = [f"{'task':<8}{'paper':>7}  here"]
    for task in glue.TASKS:
        if task in figures:
            values = [f"{name} {100 * value:.1f}" for name, value in figures[task].items()]
            paper = f"{PAPER[task]:.1f}" if task in PAPER else ""
            lines.append(f"{task:<8}{paper:>7}  {', '.join(values)}")
    lines.append(f"{'score':<15}  {100 * glue.score(figures):.1f} over {len(figures)} tasks, dev")
    return "\n".join(lines)


def main() -> None:
    from albert.runtime.fields import ConfigError

    folders = [
        folder
        for pattern in _RUNS.value or []
        for folder in sorted(glob.glob(pattern)) or [pattern]
    ]
    figures: dict[str, dict[str, float]] = {}
    files: dict[str, Path] = {}
    try:
        for workdir in map(Path, folders):
            task, found, folder = evaluated(workdir)
            if task in figures:
                raise ValueError(f"{workdir} is a second run of {task}; name one for each task")
            figures[task] = found
            if folder is not None:
                files |= {path.name: path for path in sorted(folder.glob("*.tsv"))}
            elif _ZIP.value:
                raise ValueError(
                    f"{workdir} has no predictions; first: python eval.py --workdir={workdir}, "
                    "with test.tsv in the task's folder"
                )
    except (ValueError, KeyError) as error:
        raise ConfigError([str(error)]) from error
    print(table(figures))
    if _ZIP.value:
        with zipfile.ZipFile(_ZIP.value, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, path in files.items():
                archive.write(path, name)
        print(f"{len(files)} files are in {_ZIP.value}: {', '.join(files)}.")
        lacking = sorted({f"{n}.tsv" for n in glue.SUBMITTED.values()} - files.keys())
        if lacking:
            print(f"GLUE's server wants these as well: {', '.join(lacking)}.")


if __name__ == "__main__":
    cli.run(main)
