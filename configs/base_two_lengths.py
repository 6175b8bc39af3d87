"""ALBERT-base on rows of 128 tokens for nine tenths of the steps and of 512 for the rest, as BERT
was trained (Devlin et al. 2019, appendix A.2). A short row takes a quarter of the tokens, and less
attention for each. The paper's own recipe, rows of 512 all along, is configs/base.py.
"""

from configs import base, default


def get_config(arg=""):
    """`arg`: v1 or v2 (default), tiny; see `default.apply_argument`."""
    config = base.get_config()
    short = {
        "steps": config.train.num_steps * 9 // 10,
        "data.seq_length": 128,
        "data.max_predictions": 20,
    }
    config.phases = (short, {})
    default.apply_argument(config, arg)
    return config
