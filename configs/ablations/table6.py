"""Table 6 of the paper: BERT-large against ALBERT-xxlarge in the same time.

The seconds are those of training steps on the machine at hand; a short run of each model measures
its step first. The paper's runs took 34 and 32 hours.
"""

from configs.ablations.scale import LAPTOP, PLACES, is_laptop
from tools.sweeps.grid import Sweep, zip_runs

_HOURS = 33.0
_FIELDS = (
    "sharing",
    "embedding_size",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


def _model(*values) -> dict[str, object]:
    return {f"model.{field}": value for field, value in zip(_FIELDS, values, strict=True)}


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop, or nothing for the paper's size."""
    laptop = is_laptop(arg)
    if laptop:
        bert = _model("none", 64, 4, 64, 2, 256, 0.0, 0.0)
        albert = _model("all", 32, 2, 128, 4, 512, 0.0, 0.0)
    else:
        bert = _model("none", 1024, 24, 1024, 16, 4096, 0.1, 0.1)
        albert = _model("all", 128, 12, 4096, 64, 16384, 0.0, 0.0)
    return Sweep(
        title="Table 6: the same time",
        base=LAPTOP if laptop else "configs/base.py",
        runs=zip_runs([bert, albert]),
        budget=("seconds", 120.0 if laptop else _HOURS * 3600),
        published=(
            (bert, {"steps": "400k", "hours": 34, "average": 87.2}),
            (albert, {"steps": "125k", "hours": 32, "average": 88.7}),
        ),
        note=PLACES if laptop else "",
    )
