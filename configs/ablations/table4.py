"""Table 4 of the paper: what is shared, with factorised embeddings and without."""

from configs.ablations.scale import LAPTOP, PLACES, is_laptop
from tools.sweeps.grid import Sweep, choices, product

# Sharing -> parameters and average of the downstream tasks at E = 768 and at E = 128.
_PAPER = {
    "all": (("31M", 79.8), ("12M", 80.1)),
    "attention": (("83M", 81.6), ("64M", 81.7)),
    "ffn": (("57M", 79.5), ("38M", 80.2)),
    "none": (("108M", 82.3), ("89M", 81.6)),
}


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for the paper's size."""
    laptop = is_laptop(arg)
    sizes = (64, 32) if laptop else (768, 128)
    published = [
        (
            {"model.sharing": sharing, "model.embedding_size": size},
            {"parameters": figures[0], "average": figures[1]},
        )
        for sharing, both in _PAPER.items()
        for size, figures in zip(sizes, both, strict=True)
    ]
    return Sweep(
        title="Table 4: what is shared",
        base=LAPTOP if laptop else "configs/base.py:v1",
        runs=product(
            choices("model.embedding_size", *sizes),
            choices("model.sharing", *_PAPER),
        ),
        published=tuple(published),
        note=PLACES if laptop else "",
    )
