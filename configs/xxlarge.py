"""ALBERT-xxlarge with the paper's pretraining recipe. Name the corpus with data.train_sources."""

from configs import default


def get_config(arg=""):
    """`arg`: v1 or v2 (default), tiny; see `default.apply_argument`."""
    config = default.get_config()
    config.model.num_hidden_layers = 12
    config.model.hidden_size = 4096
    config.model.num_attention_heads = 64
    config.model.intermediate_size = 16384
    default.apply_argument(config, arg)
    return config
