"""A small ALBERT on the documentation of the installed Python: minutes on two CPU cores."""

from configs import default


def get_config(arg=""):
    """`arg`: tiny; see `default.apply_argument`."""
    config = default.get_config()

    model = config.model
    model.vocab_size = 8000
    model.embedding_size = 64
    model.hidden_size = 128
    model.num_hidden_layers = 3
    model.num_attention_heads = 4
    model.intermediate_size = 512
    model.max_position_embeddings = 128
    model.dtype = "float32"

    data = config.data
    data.train_sources = ("python-docs",)
    data.valid_fraction = 0.02
    data.seq_length = 128
    data.max_predictions = 20
    data.workers = 0

    optimizer = config.optimizer
    optimizer.name = "optax.adamw"
    optimizer.learning_rate = 2e-3
    optimizer.warmup_steps = 100

    train = config.train
    train.num_steps = 1200
    train.batch_size = 32
    train.log_every = 50
    train.eval_every = 300
    train.eval_rows = 1024
    train.eval_batch_size = 128
    train.checkpoint_every = 300

    default.apply_argument(config, arg)
    return config
