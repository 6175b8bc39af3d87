"""BERT-large, ALBERT's baseline in the same code: nothing shared, E = H, next-sentence prediction.

The recipe is that of configs/large.py, so that the two differ in the model and its second
objective alone.
"""

from configs import default, large


def get_config(arg=""):
    """`arg`: v1 for BERT's dropout of 0.1, v2 (default) for none, tiny; see `apply_argument`."""
    config = large.get_config()
    config.model.sharing = "none"
    config.model.embedding_size = config.model.hidden_size
    config.data.sentence_objective = "nsp"
    default.apply_argument(config, arg)
    if "tiny" in arg.split(","):
        config.model.embedding_size = config.model.hidden_size
    return config
