"""A small ALBERT on the documentation of the installed Python: minutes on two CPU cores.

Rotary positions and Muon, with which small models learn from context soonest (docs/experiments.md).
Released formats and LiteRT have no rotary positions: --config.model.positions=learned for those.
"""

from configs import default


def get_config(arg=""):
    """`arg`: tiny; see `default.apply_argument`."""
    config = default.get_config()

    model = config.model
    model.vocab_size = 2000
    model.embedding_size = 64
    model.hidden_size = 128
    model.num_hidden_layers = 2
    model.num_attention_heads = 2
    model.intermediate_size = 256
    model.max_position_embeddings = 64
    model.positions = "rotary"
    # How large an update is beside the weights decides; the learning rate was found with this one.
    model.initializer_range = 0.05
    model.dtype = "float32"

    data = config.data
    data.train_sources = ("python-docs",)
    data.valid_fraction = 0.05
    data.seq_length = 64
    data.max_predictions = 10
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
    train.num_steps = 2800
    train.batch_size = 64
    train.log_every = 50
    train.eval_every = 400
    train.eval_rows = 2048
    train.eval_batch_size = 128
    train.checkpoint_every = 400

    default.apply_argument(config, arg)
    return config
