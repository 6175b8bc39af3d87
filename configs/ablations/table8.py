"""Table 8 of the paper: ALBERT-xxlarge with dropout and without, after a million steps."""

from configs.ablations.scale import LAPTOP, PLACES, is_laptop
from tools.sweeps.grid import Sweep, choices, zip_runs


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for the paper's size."""
    laptop = is_laptop(arg)
    return Sweep(
        title="Table 8: dropout",
        base=LAPTOP if laptop else "configs/xxlarge.py",
        runs=zip_runs(
            choices("model.hidden_dropout_prob", 0.1, 0.0),
            choices("model.attention_probs_dropout_prob", 0.1, 0.0),
        ),
        budget=None if laptop else ("steps", 1_000_000),
        published=(
            ({"model.hidden_dropout_prob": 0.1}, {"average": 90.4}),
            ({"model.hidden_dropout_prob": 0.0}, {"average": 90.7}),
        ),
        note=PLACES if laptop else "",
    )
