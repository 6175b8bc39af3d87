"""Shows the very rows that a training step sees, as text.

  python tools/show_batch.py --config=configs/quickstart.py --step=0
  python tools/show_batch.py --config=configs/base.py --step=81234 --rows=3 \\
      --config.data.train_sources="('wiki/',)" --config.data.tokenizer=30k-clean.model

  python tools/show_batch.py --file=runs/base/diverged/step_81234.npz

Give the config and overrides of the run, or a file of rows that a diverged run has left. Step s is
the one that takes the model from s to s + 1 updates. A masked piece is shown as {piece > what the
model sees}.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_CONFIG = cli.define_config()
_STEP = flags.DEFINE_integer("step", 0, "Training step.", lower_bound=0)
_ROWS = flags.DEFINE_integer("rows", 5, "Rows to print; 0 for the whole batch.", lower_bound=0)
_FILE = flags.DEFINE_string("file", None, "Rows that a run has left, rather than a step's.")
_FIRST = flags.DEFINE_integer("first", 0, "First row of the batch to print.", lower_bound=0)


def main() -> None:
    from albert.data.pretraining.examples import show_row
    from albert.programs.rows import as_begun
    from albert.runtime.fields import ConfigError
    from albert.runtime.paths import place
    from albert.tasks.pretraining import Pretraining
    from albert.train.phases import phase_at, phases_of

    if _FILE.value is not None:
        _show_file(place(_FILE.value))
        return
    config, start = as_begun(cli.checked(_CONFIG))
    phase = phase_at(phases_of(config), _STEP.value + 1)
    size = phase.config.train.batch_size
    if _STEP.value >= config.train.num_steps or _FIRST.value >= size:
        raise ConfigError(
            [f"the run has steps 0 to {config.train.num_steps - 1} with rows 0 to {size - 1}"]
        )
    examples = Pretraining.read(phase.config, start).train
    last = min(size, _FIRST.value + _ROWS.value) if _ROWS.value else size
    for row in range(_FIRST.value, last):
        number = phase.row_at(_STEP.value) + row
        print(f"step {_STEP.value}, row {row} of {size} (row {number} of the run):")
        print(show_row(examples[number], examples.tokenizer) + "\n")


def _show_file(path: Path) -> None:
    import io

    import numpy as np

    from albert.data.pretraining.examples import show_row
    from albert.data.tokenizer import Tokenizer
    from albert.runtime.fields import ConfigError

    vocabulary = path.parent.parent / "tokenizer.model"
    if not path.is_file() or not vocabulary.is_file():
        raise ConfigError(
            [f"--file: there must be {path}, in the folder of a run with {vocabulary.name}"]
        )
    with np.load(io.BytesIO(path.read_bytes())) as file:
        # NumPy 2.0 has written an option of its own among the rows.
        batch = {name: file[name] for name in file.files if name != "allow_pickle"}
    size = len(batch["input_ids"])
    last = min(size, _FIRST.value + _ROWS.value) if _ROWS.value else size
    tokenizer = Tokenizer(vocabulary)
    for row in range(_FIRST.value, last):
        print(f"{path.stem}, row {row} of {size}:")
        print(show_row({name: rows[row] for name, rows in batch.items()}, tokenizer) + "\n")


if __name__ == "__main__":
    cli.run(main)
