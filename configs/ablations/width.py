"""What sharing costs at three widths, with the same tokens each, and what buys it back at the least
of them, where it costs most; the embedding is as wide as the layers and holds none of them back."""

from configs.ablations.scale import LAPTOP, is_laptop
from tools.sweeps.grid import Overrides, Sweep, chain, choices, product


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for the widths about ALBERT-base's."""
    laptop = is_laptop(arg)
    per_head, inner = (32, 2) if laptop else (64, 4)

    def width(hidden: int) -> Overrides:
        return {
            "model.hidden_size": hidden,
            "model.embedding_size": hidden,
            "model.intermediate_size": inner * hidden,
            "model.num_attention_heads": hidden // per_head,
        }

    widths = (32, 64, 128) if laptop else (384, 768, 1536)
    strategies = choices("model.sharing", "all", "attention", "ffn", "none")
    narrow, everything = [width(widths[0])], choices("model.sharing", "all")
    return Sweep(
        title="Sharing at three widths",
        base=LAPTOP if laptop else "configs/base.py:v1",
        runs=chain(
            *(product([width(hidden)], strategies) for hidden in widths),
            product(narrow, choices("model.sharing", "groups:2")),
            product(narrow, everything, choices("model.per_layer_norm", True)),
            product(narrow, everything, choices("model.lora_rank", 4, 8)),
        ),
        note="Heads are as wide at every width, and E = H: the rows of nothing shared are BERT's "
        "shape.",
    )
