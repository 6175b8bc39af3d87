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
# The paper's Table 4 at E = 128: parameters and average of the downstream tasks.
_PAPER = {
    "all": ("12M", 80.1),
    "attention": ("64M", 81.7),
    "ffn": ("38M", 80.2),
    "none": ("89M", 81.6),
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
    published: list[tuple[Overrides, dict[str, object]]] = [
        ({"model.per_layer_norm": True}, {}),  # the paper has none of these three
        ({"model.lora_rank": 8}, {}),
        (wide, {}),
    ]
    published += [
        (
            {"model.sharing": name, "model.embedding_size": middle},
            {"parameters": parameters, "average": average},
        )
        for name, (parameters, average) in _PAPER.items()
    ]
    return Sweep(
        title="Sharing and embedding size",
        base=LAPTOP if laptop else "configs/base.py:v1",
        runs=chain(
            product(choices("model.sharing", *_STRATEGIES), size),
            product(choices("model.sharing", "all"), size, choices("model.per_layer_norm", True)),
            product(choices("model.sharing", "all"), size, choices("model.lora_rank", 8)),
            product(choices("model.sharing", "all"), size, [wide]),
            product(choices("model.sharing", "all"), choices("model.embedding_size", *sizes)),
            product(choices("model.sharing", "none"), choices("model.embedding_size", widest)),
        ),
        published=tuple(published),
        note="The last row is BERT's shape: nothing shared, E = H. The paper's columns are those "
        "of its Table 4 at E = 128.",
    )
