"""A laptop-sized ALBERT for a text of tens of megabytes: some 20 minutes on two CPU cores.

Name the text with data.train_sources; the vocabulary is trained on it. Single pieces are masked,
rows are short, there are two layers, positions are rotary and the optimizer is Muon: what learns
soonest from context (docs/experiments.md). Released formats and LiteRT have no rotary positions:
--config.model.positions=learned for those.
"""

from configs import default


def get_config(arg=""):
    """`arg`: v1 or v2 (default), tiny; see `default.apply_argument`."""
    config = default.get_config()

    model = config.model
    model.vocab_size = 4000
    model.embedding_size = 128
    model.hidden_size = 128
    model.num_hidden_layers = 2
    model.num_attention_heads = 2
    model.intermediate_size = 512
    model.max_position_embeddings = 128
    model.positions = "rotary"
    # How large an update is beside the weights decides; the learning rate was found with this one.
    model.initializer_range = 0.05
    model.dtype = "float32"

    data = config.data
    data.valid_fraction = 0.02
    data.seq_length = 64
    # Twice the released share: more to learn from every token when time is short.
    data.masking_rate = 0.3
    data.max_predictions = 20
    data.masking_unit = "piece"
    data.max_ngram = 1
    data.workers = 0

    optimizer = config.optimizer
    optimizer.name = "muon"
    optimizer.learning_rate = 6e-3
    optimizer.warmup_steps = 200
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.eps = 1e-6
    optimizer.weight_decay = 0.01

    train = config.train
    train.num_steps = 4000
    train.batch_size = 64
    train.log_every = 50
    train.eval_every = 500
    train.eval_rows = 1024
    train.eval_batch_size = 128
    train.checkpoint_every = 500
    train.checkpoint_minutes = 10.0

    default.apply_argument(config, arg)
    return config
