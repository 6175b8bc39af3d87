"""Lets several runs on SQuAD answer together: an ensemble.

  python tools/squad.py --runs=runs/squad-0,runs/squad-1 --output=runs/ensemble
  python tools/squad.py --runs='runs/squad-*' --dev=dev-v2.0.json --output=runs/ensemble

Computes the best checkpoint of each run on the same questions, prints the official scores of each
and of all together, and writes the answers of the ensemble into --output: predictions.json,
nbest.json, of version 2.0 null_odds.json, and scores.json. A span has the mean of the scores that
the runs give it; of 2.0 null odds are means as well, and the threshold is the best one for F1 of
the ensemble.
"""

import contextlib
import glob
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_RUNS = flags.DEFINE_list("runs", None, "Folders of runs; may be patterns.", required=True)
_DEV = flags.DEFINE_string(
    "dev", None, "Questions to answer, an official JSON file. Default: those of the runs' data.dev."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write into.", required=True)

# Of the section data: what makes questions into windows, and windows into answers.
_ALIKE = (
    "version",
    "seq_length",
    "doc_stride",
    "max_question",
    "max_answer",
    "lower_case",
    "strip_accents",
)


def differences(found: Mapping[Path, Mapping[str, object]]) -> list[str]:
    """A sentence for everything, by its name, in which a run is not as the first one."""
    first, *others = found
    return [
        f"--runs: {name} is {found[other][name]} in {other} and {value} in {first}; only runs that "
        "agree on it answer together"
        for other in others
        for name, value in found[first].items()
        if found[other][name] != value
    ]


def answer_together(workdirs: Sequence[Path], dev: str | None, output: Path) -> None:
    """Prints the scores of runs and of their ensemble, and writes its answers; see above.

    Raises:
      CheckpointError: there is no such run.
      ConfigError: the runs do not belong together.
      SourceError, VocabularyError: questions or a vocabulary cannot be used.
    """
    from albert.checkpoints.store import Checkpoints
    from albert.interop.workdir import VOCABULARY, is_run, served
    from albert.runtime.digests import file_digest
    from albert.runtime.fields import ConfigError
    from albert.runtime.paths import replace_text
    from albert.tasks.squad import Squad
    from albert.train.evaluate import Options, open_run, predictions_of

    runs: list[tuple[Path, int, dict]] = []
    alike: dict[Path, dict[str, object]] = {}
    for workdir in workdirs:
        with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
            step = served(checkpoints)
            info = checkpoints.info(step)
        if not is_run(info) or info["config"].get("task") != "squad":
            raise ConfigError([f"--runs: {workdir} is not a run of the task squad"])
        runs.append((workdir, step, info))
        alike[workdir] = {f"data.{name}": info["config"]["data"][name] for name in _ALIKE}
        alike[workdir][f"the SHA-256 of {VOCABULARY}"] = file_digest(workdir / VOCABULARY)[1]
    if problems := differences(alike):
        raise ConfigError(problems)

    options = Options(data={"dev": dev} if dev else {})
    opened = [open_run(workdir, info, options) for workdir, _, info in runs]
    questions = [task.description()["held_out"] for _, task in opened]
    for workdir, digest, (config, _) in zip(workdirs, questions, opened, strict=True):
        if digest != questions[0]:
            problem = (
                f"--runs: data.dev of {workdir}, {config.data.dev}, has other questions than that "
                f"of {workdirs[0]}; name one file with --dev"
            )
            raise ConfigError([problem])
    output.mkdir(parents=True, exist_ok=True)

    judge = opened[0][1]
    assert isinstance(judge, Squad)
    (evaluation,) = judge.evaluations
    outputs, scores = [], []
    for (workdir, step, _), (config, task) in zip(runs, opened, strict=True):
        outputs += predictions_of(workdir, step, config, task)
        figures, *_ = judge.judged(outputs[-1:])
        print(evaluation.table(f"by {workdir} at step {step}", figures), flush=True)
        scores.append({"run": str(workdir), "step": step, **figures})
    figures, answers, null_odds = judge.judged(outputs)
    print(evaluation.table(f"by all {len(outputs)} together", figures))
    told = {"dev": opened[0][0].data.dev, "runs": scores, "ensemble": figures}
    files = judge.files(figures, answers, null_odds)
    files["scores.json"] = json.dumps(told, indent=1, ensure_ascii=False).split("\n")
    for name, lines in files.items():
        replace_text(output / name, "".join(f"{line}\n" for line in lines))
    print(f"Written into {output}: {', '.join(files)}.")


def main() -> None:
    from albert.runtime.paths import place

    folders = [
        folder
        for pattern in _RUNS.value or []
        for folder in sorted(glob.glob(pattern)) or [pattern]
    ]
    answer_together([place(f) for f in folders], _DEV.value, place(_OUTPUT.value))


if __name__ == "__main__":
    cli.run(main)
