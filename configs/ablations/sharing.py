"""Every way of sharing at one size, what may buy back its price, and four embedding sizes, with the
same tokens each; all of one width cost the same operations."""

from configs.ablations.scale import LAPTOP, is_laptop
from tools.sweeps.grid import Overrides, Sweep, chain, choices, product

_STRATEGIES = (
    "all",
    "attention",
    "ffn",
    "groups:2",
    "cycle:2",
    "cycle_reversed:2",
    "sandwich",
    "none",
)
# The paper's Table 4 at E = 128 and E = 768: parameters and average of the downstream tasks.
_PAPER = {
    "all": (("12M", 80.1), ("31M", 79.8)),
    "attention": (("64M", 81.7), ("83M", 81.6)),
    "ffn": (("38M", 80.2), ("57M", 79.5)),
    "none": (("89M", 81.6), ("108M", 82.3)),
}


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for the size of ALBERT-base."""
    laptop = is_laptop(arg)
    sizes = (8, 16, 32, 64) if laptop else (64, 128, 256, 768)
    middle, widest = (32, 64) if laptop else (128, 768)
    # As many parameters as the layers of one width have where none is shared.
    width, heads = (124, 2) if laptop else (2560, 40)
    wide: Overrides = {
        "model.hidden_size": width,
        "model.intermediate_size": (2 if laptop else 4) * width,
        "model.num_attention_heads": heads,
    }
    size = choices("model.embedding_size", middle)
    largest = choices("model.embedding_size", widest)
    everything = choices("model.sharing", "all")
    published: list[tuple[Overrides, dict[str, object]]] = [
        ({"model.per_layer_norm": True}, {}),  # the paper has none of these three
        ({"model.lora_rank": 8}, {}),
        (wide, {}),
    ]
    published += [
        (
            {"model.sharing": name, "model.embedding_size": of},
            {"parameters": parameters, "average": average},
        )
        for name, figures in _PAPER.items()
        for of, (parameters, average) in zip((middle, widest), figures, strict=True)
    ]
    return Sweep(
        title="Sharing and embedding size",
        base=LAPTOP if laptop else "configs/base.py:v1",
        runs=chain(
            product(choices("model.sharing", *_STRATEGIES), size),
            product(everything, size, choices("model.per_layer_norm", True)),
            product(everything, size, choices("model.lora_rank", 8)),
            product(everything, size, [wide]),
            product(everything, choices("model.embedding_size", *sizes)),
            # Where the embedding is as wide as the layers and holds none of them back.
            product(choices("model.sharing", *_PAPER), largest),
            product(everything, largest, choices("model.per_layer_norm", True)),
            product(everything, largest, choices("model.lora_rank", 8)),
        ),
        published=tuple(published),
        note=f"Nothing shared at E = {widest}, which is H, is BERT's shape. The paper's columns "
        "are those of its Table 4, at E = 128 and E = 768.",
    )
