"""A config file for the runs of a sweep."""

BASE = """
from configs import base


def get_config(arg=""):
    config = base.get_config("tiny")
    config.model.vocab_size = 96
    config.data.train_sources = ({text!r},)
    config.data.max_documents = 0
    config.data.tokenizer = {vocabulary!r}
    config.data.folder = {prepared!r}
    config.data.seq_length = 32
    config.data.max_predictions = 6
    config.optimizer.warmup_steps = 2
    config.train.num_steps = {steps}
    config.train.log_every = 2
    config.train.eval_every = {evaluated}
    config.train.eval_rows = 40
    config.train.checkpoint_every = {saved}
    return config
"""
