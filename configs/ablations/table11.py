"""Table 11 of the paper: the depth of ALBERT-large, 18M parameters at each."""

from configs.ablations.scale import LAPTOP, is_laptop
from tools.sweeps.grid import Sweep, choices

_PAPER = {1: 52.9, 3: 71.2, 6: 77.2, 12: 81.5, 24: 82.1, 48: 81.8}


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for the paper's size.

    From three layers on the paper started each model from the one before; `config.init_from` does.
    """
    laptop = is_laptop(arg)
    depths = (1, 2, 4, 8) if laptop else tuple(_PAPER)
    return Sweep(
        title="Table 11: depth",
        base=LAPTOP if laptop else "configs/large.py:v1",
        runs=choices("model.num_hidden_layers", *depths),
        published=()
        if laptop
        else tuple(
            ({"model.num_hidden_layers": n}, {"parameters": "18M", "average": average})
            for n, average in _PAPER.items()
        ),
    )
