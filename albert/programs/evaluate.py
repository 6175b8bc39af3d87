"""Evaluates a run's checkpoints, or any other model, on held-out text.

  python eval.py --workdir=runs/quickstart                    newest checkpoint, own held-out text
  python eval.py --workdir=runs/quickstart --step=all         every checkpoint that was kept
  python eval.py --workdir=runs/quickstart --layers           what each layer does, with a plot
  python eval.py --workdir=runs/base --text=other_text.txt    other text; any source of a config
  python eval.py --workdir=runs/mrpc                          a fine-tuned run: its best checkpoint
  python eval.py --workdir=runs/mrpc --program=mrpc-onnx      what int8 cost: exported programs
  python eval.py --model=albert-base-v2 --text=other_text.txt --config.data.seq_length=128 \\
      --config.train.eval_batch_size=16                       a Hugging Face folder, a TensorFlow
                                                              checkpoint, or another run

Prints the task's figures (of pretraining MLM and SOP, and a few filled-in masks); for a workdir it
also writes eval_STEP.json and TensorBoard scalars there, and what a fine-tuned model predicts into
predictions_STEP. A run is evaluated by its own config, with the fields of data and
train that --config.SECTION.FIELD=VALUE sets, or by these two sections of --config, whose model must
be the run's. --model is evaluated by --config, which says how text becomes rows and how many are
computed at once; its model section is not used.
"""

import sys

from absl import flags

from albert import cli

# Asked before the flags are parsed, since the flag has a default.
_NAMES_CONFIG = any(a.lstrip("-").partition("=")[0] == "config" for a in sys.argv[1:])
_CONFIG = cli.define_config("configs/default.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. Default: runs/quickstart.")
_MODEL = flags.DEFINE_string("model", None, "Any model that albert.load takes, rather than a run.")
_STEP = flags.DEFINE_string(
    "step",
    None,
    "Step to evaluate: a number, latest, best, or all. Default: the newest; of a task that was "
    "fine-tuned on, the best.",
)
_TEXT = flags.DEFINE_string(
    "text", None, "Text to evaluate on, as in data.valid_sources. Default: the run's held-out text."
)
_ROWS = flags.DEFINE_integer(
    "rows", None, "Rows to evaluate on at most. Default: train.eval_rows.", lower_bound=1
)
_OBJECTIVE = flags.DEFINE_enum(
    "sentence_objective",
    None,
    ["sop", "nsp"],
    "Judge a run by rows for this objective. Default: the run's own.",
)
_LAYERS = flags.DEFINE_bool(
    "layers",
    False,
    "Look into the layers of a run instead: how far each one moves its input, the entropy of "
    "its attention, its share of the gradient. Writes layers_STEP.json and layers_STEP.png.",
)
_PROGRAM = flags.DEFINE_string(
    "program",
    None,
    "A folder of tools/export.py: judge what is in it by what the run is judged by, beside the "
    "run's checkpoint. Says what int8 cost.",
)
_DEPTH = flags.DEFINE_integer(
    "depth", None, "Of --model: end behind so many layers. Default: all.", lower_bound=1
)
_EXAMPLES = flags.DEFINE_integer("examples", 5, "Filled-in masks to show.", lower_bound=0)
_PROCESSES = cli.Processes()


def main() -> None:
    from albert.runtime.fields import ConfigError
    from albert.runtime.paths import place
    from albert.train.evaluate import Options, evaluate_model, evaluate_run

    data = {"sentence_objective": _OBJECTIVE.value} if _OBJECTIVE.value else {}
    options = Options(_TEXT.value, _ROWS.value, _EXAMPLES.value, data)
    if _MODEL.value is not None:
        if (_WORKDIR.value, _STEP.value, _PROGRAM.value) != (None,) * 3 or _LAYERS.value:
            raise ConfigError(
                [
                    "--model names what to evaluate; leave --workdir, --step, --program and "
                    "--layers out. One checkpoint of a run is --model=WORKDIR/checkpoints/STEP"
                ]
            )
        config = cli.checked(_CONFIG, needs_text=False)
        _PROCESSES.join()
        with _PROCESSES.ending_alone():
            evaluate_model(place(_MODEL.value), config, options, _DEPTH.value)
        return
    if _DEPTH.value is not None:
        raise ConfigError(["--depth is of --model; a run is --model=WORKDIR too"])
    workdir = place(_WORKDIR.value or "runs/quickstart")
    if _LAYERS.value:
        from albert.diagnostics import diagnose_run

        given = _OBJECTIVE.value, _PROCESSES.are_several, _PROGRAM.value
        if _NAMES_CONFIG or cli.overrides(_CONFIG) or any(given):
            raise ConfigError(
                [
                    "--layers looks at a run by its own config, in one process; leave --config, "
                    "--sentence_objective, --distributed and --program out"
                ]
            )
        diagnose_run(workdir, _STEP.value, _TEXT.value, _ROWS.value)
        return
    if _PROGRAM.value is not None:
        from albert.train.evaluate_program import evaluate_program

        if _NAMES_CONFIG or _PROCESSES.are_several:
            raise ConfigError(
                [
                    "--program is judged as the run is, in one process; leave --config and "
                    "--distributed out"
                ]
            )
        options = options.with_fields(cli.overrides(_CONFIG))
        evaluate_program(workdir, _STEP.value, place(_PROGRAM.value), options)
        return
    other = cli.checked(_CONFIG, needs_text=False) if _NAMES_CONFIG else None
    if other is None:
        options = options.with_fields(cli.overrides(_CONFIG))
    _PROCESSES.join()
    with _PROCESSES.ending_alone():
        evaluate_run(workdir, _STEP.value, options, other)


def run() -> None:
    """The program: `python eval.py`, or `albert-eval` where the package is installed."""
    cli.run(main, doc=__doc__)
