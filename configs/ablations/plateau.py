"""Which single thing brings a small run back to the plateau of unigram entropy: one change of the
config at a time, with the same tokens each. What came of it stands in docs/experiments.md."""

from configs.ablations.scale import LAPTOP, is_laptop
from tools.sweeps.grid import Overrides, Sweep, chain, choices

_QUICKSTART = "configs/quickstart.py"


def get_sweep(arg: str = "") -> Sweep:
    """`arg`: laptop for models of configs/laptop.py, or nothing for configs/quickstart.py."""
    laptop = is_laptop(arg)
    learned: Overrides = {"model.positions": "learned"}
    adamw: Overrides = {"optimizer.name": "optax.adamw"}
    pieces: Overrides = {"data.masking_unit": "piece", "data.max_ngram": 1}
    words: Overrides = {"data.masking_unit": "word", "data.max_ngram": 3}
    often: Overrides = {"data.masking_rate": 0.3, "data.max_predictions": 10 if laptop else 20}
    steps = 3000 if laptop else 5600
    smaller: Overrides = {"train.batch_size": 32, "train.num_steps": steps}
    return Sweep(
        title="What keeps a run on the plateau",
        base=LAPTOP if laptop else _QUICKSTART,
        runs=chain(
            [{"model.positions": "rotary"}],  # the config as it is
            [learned, adamw, learned | adamw],
            choices("model.initializer_range", 0.02, 0.1),
            choices("model.num_hidden_layers", 1, 8),
            [words if laptop else pieces, often],
            choices("model.vocab_size", 4000),
            choices("optimizer.learning_rate", 2e-3, 4e-3),
            choices("optimizer.warmup_steps", 400),
            choices("optimizer.schedule", "wsd"),
            [smaller],
        ),
        note="The first row is the config as it is. Unigram entropy is that of the vocabulary, and "
        "what a share of masked pieces leaves to see makes a loss easier or harder: between rows "
        "that differ in these, gains compare roughly.",
    )
