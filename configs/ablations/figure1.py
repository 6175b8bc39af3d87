"""Figure 1 of the paper: how far each layer moves its input, in BERT-large and ALBERT-large.

The pictures are layers_STEP.png in the folder of each run; the table has the means over layers.
"""

from configs.ablations.scale import LAPTOP, is_laptop
from tools.sweeps.grid import Sweep, choices, zip_runs


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for the paper's size."""
    laptop = is_laptop(arg)
    layers = "layers_{step}.json"
    return Sweep(
        title="Figure 1: input and output of each layer",
        base=LAPTOP if laptop else "configs/large.py:v1",
        runs=zip_runs(
            choices("model.sharing", "none", "all"),
            choices("model.embedding_size", *((64, 32) if laptop else (1024, 128))),
        ),
        seeds=(0,),
        common={"model.num_hidden_layers": 12} if laptop else {},
        evaluations=(("--layers", layers),),
        columns={
            "L2 distance": (layers, "l2"),
            "cosine": (layers, "cosine"),
            "attention entropy": (layers, "entropy"),
        },
    )
