"""The grid that papers search when they fine-tune: learning rate, batch and epochs.

  python tools/sweep.py configs/finetune/grid.py:mrpc --workdir=runs/mrpc-grid \\
      --config.init_from=runs/base --config.data.path=glue_data/MRPC

Behind the colon stands a task of GLUE, squad1.1, squad2.0 or race; tiny behind a comma is four runs
of a few steps. 24 points with one seed each; --seeds=0,1,2,3,4 for medians. What a grid chooses is
chosen on dev, so that its figure there flatters.
"""

from configs.finetune.published import COLUMNS, FIGURES, NOTE, base_of, parse
from tools.sweeps.grid import Sweep, choices, product

# Devlin et al. 2019, arXiv 1810.04805, appendix A.3, and one lower rate, for released models of the
# second version, which do not learn at higher ones.
RATES = 1e-5, 2e-5, 3e-5, 5e-5
BATCHES = 16, 32
EPOCHS = 2.0, 3.0, 4.0


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: see above."""
    task, tiny = parse(arg)
    points = product(
        choices("optimizer.learning_rate", *RATES[: 2 if tiny else None]),
        choices("train.batch_size", *BATCHES),
        choices("train.epochs", *((0.5,) if tiny else EPOCHS)),
    )
    return Sweep(
        title=f"{task}: learning rate, batch and epochs",
        base=base_of(task, tiny),
        runs=points,
        seeds=(0,),
        columns=COLUMNS[task],
        published=(({}, FIGURES[task]),) if task in FIGURES else (),
        center="median",
        note=NOTE,
    )
