"""Fine-tuning with five seeds, as papers report it: the median beside the published figure.

  python tools/sweep.py configs/finetune/seeds.py:mrpc --workdir=runs/mrpc-seeds \\
      --config.init_from=runs/base --config.data.path=glue_data/MRPC

Behind the colon stands a task of GLUE, squad1.1, squad2.0 or race; tiny behind a comma is a few
steps.
"""

from configs.finetune.published import COLUMNS, FIGURES, NOTE, base_of, parse
from tools.sweeps.grid import Sweep


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: see above."""
    task, tiny = parse(arg)
    return Sweep(
        title=f"{task}: five seeds",
        base=base_of(task, tiny),
        runs=[{}],
        seeds=(0, 1, 2, 3, 4),
        columns=COLUMNS[task],
        published=(({}, FIGURES[task]),) if task in FIGURES else (),
        center="median",
        note=NOTE,
    )
