"""Evaluates a run's checkpoints on held-out text.

  python eval.py --workdir=runs/quickstart                    newest checkpoint, own held-out text
  python eval.py --workdir=runs/quickstart --step=all         every checkpoint that was kept
  python eval.py --workdir=runs/base --text=other_text.txt    other text; any source of a config

Prints MLM and SOP figures and a few filled-in masks, and writes eval_STEP.json and TensorBoard
scalars into the workdir.
"""

from pathlib import Path

from absl import flags

from albert import cli

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the run.")
_STEP = flags.DEFINE_string("step", "latest", "Step to evaluate: a number, latest, or all.")
_TEXT = flags.DEFINE_string(
    "text", None, "Text to evaluate on, as in data.valid_sources. Default: the run's held-out text."
)
_ROWS = flags.DEFINE_integer(
    "rows", None, "Rows to evaluate on at most. Default: the run's train.eval_rows.", lower_bound=1
)
_EXAMPLES = flags.DEFINE_integer("examples", 5, "Filled-in masks to show.", lower_bound=0)


def main() -> None:
    from albert.evaluation import evaluate_run

    evaluate_run(Path(_WORKDIR.value), _STEP.value, _TEXT.value, _ROWS.value, _EXAMPLES.value)


if __name__ == "__main__":
    cli.run(main)
