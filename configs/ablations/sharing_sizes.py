"""At which size the ways of sharing come apart: four of them at three widths, E = H so that the
embedding holds none of them back, with the same tokens each."""

from configs.ablations.scale import LAPTOP, is_laptop
from tools.sweeps.grid import Overrides, Sweep, choices, product


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for 12 layers as wide as those of base, large and xlarge."""
    laptop = is_laptop(arg)
    widths = (64, 96, 128) if laptop else (768, 1024, 2048)
    heads_of = {width: 2 if laptop else width // 64 for width in widths}
    sizes: list[Overrides] = [
        {
            "model.hidden_size": width,
            "model.embedding_size": width,
            "model.intermediate_size": (2 if laptop else 4) * width,
            "model.num_attention_heads": heads,
        }
        for width, heads in heads_of.items()
    ]
    return Sweep(
        title="Sharing by size",
        base=LAPTOP if laptop else "configs/base.py:v1",
        runs=product(sizes, choices("model.sharing", "all", "attention", "ffn", "none")),
        note="Within a width all rows cost the same operations.",
    )
