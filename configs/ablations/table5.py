"""Table 5 of the paper: the second objective, each model judged by both of them.

A model trained without a second loss has a head that was never trained: its NSP and SOP figures are
chance. The paper's, for such a model, are those of a head that was.
"""

from configs.ablations.scale import LAPTOP, PLACES, is_laptop
from tools.sweeps.grid import Sweep, choices

_PAPER: dict[str, dict[str, object]] = {
    "none": {"MLM, %": 54.9, "NSP, %": 52.4, "SOP, %": 53.3, "average": 79.0},
    "nsp": {"MLM, %": 54.5, "NSP, %": 90.5, "SOP, %": 52.0, "average": 79.2},
    "sop": {"MLM, %": 54.0, "NSP, %": 78.9, "SOP, %": 86.5, "average": 80.1},
}


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for the paper's size."""
    laptop = is_laptop(arg)
    return Sweep(
        title="Table 5: the second objective",
        base=LAPTOP if laptop else "configs/base.py:v1",
        runs=choices("data.sentence_objective", *_PAPER),
        evaluations=(
            ("--sentence_objective=nsp --examples=0", "eval_{step}_nsp.json"),
            ("--sentence_objective=sop --examples=0", "eval_{step}_sop.json"),
        ),
        columns={
            "NSP accuracy, %": ("eval_{step}_nsp.json", "sop_accuracy"),
            "SOP accuracy, %": ("eval_{step}_sop.json", "sop_accuracy"),
        },
        published=tuple(({"data.sentence_objective": k}, v) for k, v in _PAPER.items()),
        note=PLACES if laptop else "",
    )
