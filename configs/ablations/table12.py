"""Table 12 of the paper: the width of ALBERT with three layers."""

from configs.ablations.scale import LAPTOP, PLACES, is_laptop
from tools.sweeps.grid import Sweep, choices, zip_runs

_PAPER = {1024: ("18M", 71.2), 2048: ("60M", 74.6), 4096: ("225M", 76.3), 6144: ("499M", 74.0)}


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for the paper's size. Heads of 64, a feed-forward width of 4 H."""
    laptop = is_laptop(arg)
    widths = (32, 64, 128, 256) if laptop else tuple(_PAPER)
    head = 32 if laptop else 64
    return Sweep(
        title="Table 12: width, three layers",
        base=LAPTOP if laptop else "configs/large.py:v1",
        runs=zip_runs(
            choices("model.hidden_size", *widths),
            choices("model.num_attention_heads", *(width // head for width in widths)),
            choices("model.intermediate_size", *(4 * width for width in widths)),
        ),
        common={"model.num_hidden_layers": 3},
        published=tuple(
            ({"model.hidden_size": width}, {"parameters": parameters, "average": average})
            for width, (parameters, average) in zip(widths, _PAPER.values(), strict=True)
        ),
        note=PLACES if laptop else "",
    )
