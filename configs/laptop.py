"""A model for comparisons on two CPU cores: minutes a run, on whatever text is named.

Small enough that a sweep of dozens of runs is over in an hour, which is what it is for: see
docs/experiments.md for what such runs can and cannot tell, and why positions are rotary and the
optimizer is Muon. By default it reads the documentation of the installed Python.
"""

from configs import default


def get_config(arg=""):
    """`arg`: v1 or v2 (default), tiny; see `default.apply_argument`."""
    config = default.get_config()

    model = config.model
    model.vocab_size = 1000
    model.embedding_size = 32
    model.hidden_size = 64
    model.num_hidden_layers = 4
    model.num_attention_heads = 2
    model.intermediate_size = 128
    model.max_position_embeddings = 32
    model.positions = "rotary"
    # How large an update is beside the weights decides; the learning rate was found with this one.
    model.initializer_range = 0.05
    model.dtype = "float32"

    data = config.data
    data.train_sources = ("python-docs",)
    data.valid_fraction = 0.02
    data.seq_length = 32
    data.max_predictions = 5
    # Single pieces, whose neighbours tell most: there is no time to learn more.
    data.masking_unit = "piece"
    data.max_ngram = 1
    data.workers = 0

    optimizer = config.optimizer
    optimizer.name = "muon"
    optimizer.learning_rate = 8e-3
    optimizer.warmup_steps = 100
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.eps = 1e-6
    optimizer.weight_decay = 0.01

    train = config.train
    train.num_steps = 1500
    train.batch_size = 64
    train.log_every = 100
    train.eval_every = 250
    train.eval_rows = 4096
    train.eval_batch_size = 256
    train.checkpoint_every = 500
    train.keep_last = 1
    train.keep_best = 0

    default.apply_argument(config, arg)
    return config
