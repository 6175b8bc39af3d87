"""Table 3 of the paper: the embedding size, with nothing shared and with all layers shared."""

from configs.ablations.scale import LAPTOP, PLACES, is_laptop
from tools.sweeps.grid import Sweep, choices, product

# E -> parameters and average of the downstream tasks, nothing shared and all shared.
_PAPER = {
    64: (("87M", 81.3), ("10M", 79.0)),
    128: (("89M", 81.7), ("12M", 80.1)),
    256: (("93M", 81.8), ("16M", 79.6)),
    768: (("108M", 82.3), ("31M", 79.8)),
}


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for the paper's size."""
    laptop = is_laptop(arg)
    sizes = (8, 16, 32, 64) if laptop else tuple(_PAPER)
    published = [
        (
            {"model.sharing": sharing, "model.embedding_size": size},
            {"parameters": figures[0], "average": figures[1]},
        )
        for size, both in zip(sizes, _PAPER.values(), strict=True)
        for sharing, figures in zip(("none", "all"), both, strict=True)
    ]
    return Sweep(
        title="Table 3: embedding size",
        base=LAPTOP if laptop else "configs/base.py:v1",
        runs=product(
            choices("model.sharing", "none", "all"), choices("model.embedding_size", *sizes)
        ),
        published=tuple(published),
        note=PLACES if laptop else "",
    )
