"""A search for learning rate, warm-up and sharing, by held-out loss: an example of one.

pip install -r requirements-optuna.txt
python tools/sweep.py configs/ablations/search.py:laptop --workdir=runs/search --workers=2
"""

from configs.ablations.scale import LAPTOP, is_laptop
from tools.sweeps.grid import Sweep
from tools.sweeps.space import Search, log_uniform, one_of, uniform


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for the size of ALBERT-base."""
    laptop = is_laptop(arg)
    rates, warmup = ((3e-4, 3e-2), (0, 400, 50)) if laptop else ((3e-4, 6e-3), (1000, 10_000, 500))
    return Sweep(
        title="Learning rate, warm-up and sharing",
        base=LAPTOP if laptop else "configs/base.py",
        search=Search(
            space={
                "optimizer.learning_rate": log_uniform(*rates),
                "optimizer.warmup_steps": uniform(*warmup),
                "model.sharing": one_of("all", "attention", "cycle:2", "none"),
            },
            trials=24 if laptop else 40,
            # What is told of a trial in its warm-up says little of its end.
            pruner_options={"n_warmup_steps": 500 if laptop else 25_000},
        ),
        seeds=(0,),
    )
