"""Fine-tuning on RACE, or on any multiple choice, with the paper's settings (table 14 of arXiv
1909.11942).

  python train.py --config=configs/finetune/race.py --config.init_from=runs/base \\
      --config.data.train=RACE/train --config.data.dev=RACE/dev --config.data.test=RACE/test

A source is a folder of RACE, or JSON lines with context, question, options and answer.
"""

from configs.finetune import default


def get_config(arg=""):
    """`arg`: v1 (the paper's learning rate and dropout) or v2 (default: half the rate and no
    dropout, which the second release needs), and tiny: a few steps, to try whether it runs."""
    words = [word for word in (arg or "").split(",") if word]
    if unknown := [word for word in words if word not in ("v1", "v2", "tiny")]:
        raise ValueError(f"unknown config argument {unknown[0]!r}; there is v1, v2 and tiny")
    config = default.get_config("choice")
    data = config.data
    data.train = ""
    data.dev = ""
    data.test = ""  # judged as well by eval.py; empty: none
    data.predict = ()  # JSON lines to be answered by eval.py
    data.options = 4  # of a question, at most
    data.max_question = 128  # pieces of a question with an option: the last ones are kept
    default.texts(data)
    rate = 1e-5
    if "v1" in words:
        rate = 2e-5
        config.model.hidden_dropout_prob = 0.1
        config.model.attention_probs_dropout_prob = 0.1
    default.released(config, rate, batch=32, steps=12000, warmup=1000)
    if "tiny" in words:
        default.few_steps(config)
        data.max_question = 24
    return config
