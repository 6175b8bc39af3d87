"""Shows the very rows that a training step sees, as text.

  python tools/show_batch.py --config=configs/quickstart.py --step=0
  python tools/show_batch.py --config=configs/base.py --step=81234 --rows=3 \\
      --config.data.train_sources="('wiki/',)" --config.data.tokenizer=30k-clean.model

Give the config and overrides of the run. Step s is the one that takes the model from s to s + 1
updates. A masked piece is shown as {piece > what the model sees}.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_CONFIG = cli.define_config()
_STEP = flags.DEFINE_integer("step", 0, "Training step.", lower_bound=0)
_ROWS = flags.DEFINE_integer("rows", 5, "Rows to print; 0 for the whole batch.", lower_bound=0)
_FIRST = flags.DEFINE_integer("first", 0, "First row of the batch to print.", lower_bound=0)


def main() -> None:
    from albert.config import ConfigError
    from albert.data.examples import show_row
    from albert.data.prepare import prepare

    config = cli.checked(_CONFIG)
    size = config.train.batch_size
    if _STEP.value >= config.train.num_steps or _FIRST.value >= size:
        raise ConfigError(
            [f"the run has steps 0 to {config.train.num_steps - 1} with rows 0 to {size - 1}"]
        )
    examples = prepare(config.data, config.model.vocab_size, config.seed).train
    last = min(size, _FIRST.value + _ROWS.value) if _ROWS.value else size
    for row in range(_FIRST.value, last):
        number = _STEP.value * size + row
        print(f"step {_STEP.value}, row {row} of {size} (row {number} of the run):")
        print(show_row(examples[number], examples.tokenizer) + "\n")


if __name__ == "__main__":
    cli.run(main)
