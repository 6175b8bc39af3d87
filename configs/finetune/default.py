"""What configs of fine-tuning have in common, with the meaning of every field of their data."""

from ml_collections import ConfigDict

from configs import default


def get_config(task: str) -> ConfigDict:
    """The config of a task of `albert.tasks.TASKS`, with an empty section data."""
    config = default.get_config()
    config.task = task
    config.init_model = True  # sizes and sharing are those of init_from
    config.data = ConfigDict()
    return config


def texts(data: ConfigDict) -> None:
    """Sets the fields of data that all tasks on one text or two have."""
    data.tokenizer = ""  # SentencePiece .model; empty: that of init_from
    data.lower_case = True
    data.strip_accents = True
    data.folder = "prepared"  # rows of text are made once and kept here
    data.seq_length = 512  # tokens of a row at most; batches are as long as their longest row
    data.dropout = 0.1  # in front of the classifier
    data.workers = 2  # processes that make rows of text


def released(config: ConfigDict, rate: float, batch: int, steps: int, warmup: int) -> None:
    """Sets optimizer and training as the released program fine-tunes."""
    optimizer, train = config.optimizer, config.train
    optimizer.name = "adamw"
    optimizer.learning_rate = rate
    optimizer.warmup_steps = warmup
    train.num_steps = steps
    train.batch_size = batch
    train.log_every = min(50, steps)
    train.eval_every = 100
    train.eval_rows = 1_000_000  # all
    train.eval_batch_size = 64
    train.checkpoint_every = 500
    train.keep_last = 1
    train.keep_best = 1  # by the first metric of the dev set; what is loaded of such a run


def few_steps(config: ConfigDict) -> None:
    """Cuts a fine-tuning run to what a CPU does in a minute."""
    config.model.dtype = "float32"
    config.data.seq_length = 64
    config.optimizer.warmup_steps = 4
    train = config.train
    train.num_steps = 20
    train.batch_size = 16
    train.log_every = 5
    train.eval_every = 10
    train.checkpoint_every = 10
    train.checkpoint_minutes = 0.0
