"""Fine-tuning on SQuAD with the paper's settings (table 14 of arXiv 1909.11942).

  python train.py --config=configs/finetune/squad.py:1.1 --config.init_from=runs/base \\
      --config.data.train=train-v1.1.json --config.data.dev=dev-v1.1.json
  python train.py --config=configs/finetune/squad.py:2.0 ...

The released program's README has other values for 2.0: rate 5e-5, two epochs, L 384.
"""

from configs.finetune import default

# version: learning rate, steps, warm-up steps, L
TABLE_14 = {"1.1": (5e-5, 3649, 365, 384), "2.0": (3e-5, 8144, 814, 512)}


def get_config(arg="1.1"):
    """`arg`: 1.1 or 2.0, and behind a comma tiny: a few steps, to try whether it runs."""
    words = [word for word in (arg or "1.1").split(",") if word]
    versions = [word for word in words if word in TABLE_14]
    unknown = [word for word in words if word not in (*TABLE_14, "tiny")]
    if unknown or len(versions) != 1:
        raise ValueError(f"the config's argument is {arg!r}; it is 1.1 or 2.0, and may have tiny")
    rate, steps, warmup, length = TABLE_14[versions[0]]
    config = default.get_config("squad")
    data = config.data
    data.train = ""  # official JSON files
    data.dev = ""
    data.version = versions[0]
    data.doc_stride = 128  # tokens from one window of a paragraph to the next
    data.max_question = 64  # pieces: the first ones
    data.max_answer = 30  # pieces
    default.texts(data)
    data.seq_length = length
    if versions[0] == "1.1":
        data.dropout = 0.0  # its head has none
    default.released(config, rate, batch=48, steps=steps, warmup=warmup)
    config.train.eval_every = config.train.checkpoint_every = 1000
    if "tiny" in words:
        default.few_steps(config)
        data.doc_stride, data.max_question = 24, 12
    return config
