"""ALBERT-base for about a day on one GPU such as an H100, after Geiping and Goldstein 2022, arXiv
2212.14034: rows of 128 tokens, 46 billion of them in all, no dropout.

Positions are rotary and the optimizer is Muon, by which small runs learn sooner
(docs/experiments.md). Both were found at sizes of two CPU cores: no run of this size is behind the
learning rate. How long it takes on a device that is not here, by arithmetic:

  python train.py --config=configs/one_gpu.py --describe --devices=h100:1
"""

from configs import base, default


def get_config(arg=""):
    """`arg`: v1 or v2 (default), tiny; see `default.apply_argument`."""
    config = base.get_config()

    model = config.model
    model.max_position_embeddings = 128
    model.positions = "rotary"

    data = config.data
    data.seq_length = 128
    data.max_predictions = 20
    data.workers = 8

    optimizer = config.optimizer
    optimizer.name = "muon"
    optimizer.learning_rate = 1e-3
    optimizer.schedule = "linear"
    optimizer.warmup_steps = 2000
    optimizer.b1 = 0.9
    optimizer.b2 = 0.98
    optimizer.eps = 1e-6
    optimizer.weight_decay = 0.01

    train = config.train
    train.num_steps = 350_000
    train.batch_size = 1024
    train.microbatch = 512
    train.eval_every = 10_000
    train.checkpoint_every = 10_000

    default.apply_argument(config, arg)
    return config
