"""ALBERT-xlarge with the paper's pretraining recipe. Name the corpus with data.train_sources."""

from configs import default


def get_config(arg=""):
    """`arg`: v1 or v2 (default), tiny; see `default.apply_argument`."""
    config = default.get_config()
    config.model.num_hidden_layers = 24
    config.model.hidden_size = 2048
    config.model.num_attention_heads = 16  # as released; the text of the paper says H / 64 = 32
    config.model.intermediate_size = 8192
    default.apply_argument(config, arg)
    return config
