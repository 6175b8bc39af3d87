"""Fine-tuning on a task of GLUE with the paper's settings (table 14 of arXiv 1909.11942).

  python train.py --config=configs/finetune/glue.py:mrpc --config.init_from=runs/base \\
      --config.data.path=glue_data/MRPC

RTE, STS-B and MRPC start from a model that was fine-tuned on MNLI: give its folder as init_from.
The paper's figures are medians of five seeds.
"""

from configs.finetune import default

# task: learning rate, batch, dropout of the encoder, steps, warm-up steps.
TABLE_14 = {
    "cola": (1e-5, 16, 0.0, 5336, 320),
    "sts-b": (2e-5, 16, 0.0, 3598, 214),
    "sst-2": (1e-5, 32, 0.0, 20935, 1256),
    "mnli": (3e-5, 128, 0.0, 10000, 1000),
    "qnli": (1e-5, 32, 0.0, 33112, 1986),
    "qqp": (5e-5, 128, 0.1, 14000, 1000),
    "rte": (3e-5, 32, 0.1, 800, 200),
    "mrpc": (2e-5, 32, 0.0, 800, 200),
    "wnli": (2e-5, 16, 0.1, 2000, 250),
}


def get_config(arg="mrpc"):
    """`arg`: a task, and behind commas v1 (with the paper's dropout) or v2 (default: without, which
    the second release needs), and tiny: a few steps, to try whether it runs."""
    words = [word for word in (arg or "mrpc").split(",") if word]
    tasks = [word for word in words if word in TABLE_14]
    unknown = [word for word in words if word not in (*TABLE_14, "v1", "v2", "tiny")]
    if unknown or len(tasks) != 1:
        raise ValueError(
            f"the config's argument is {arg!r}; it names one task of {', '.join(TABLE_14)}, and "
            "may have v1, v2 and tiny behind commas"
        )
    rate, batch, dropout, steps, warmup = TABLE_14[tasks[0]]
    config = default.get_config("glue")
    data = config.data
    data.name = tasks[0]
    data.path = ""  # the task's official folder, or tfds:glue/NAME
    data.diagnostic = ""  # mnli: folder of the diagnostic set, to be predicted as well
    default.texts(data)
    # Classifiers on the depths before the last, to leave early: none; together: learned with the
    # encoder; frozen: behind a fine-tuned init_from, which stays as it is.
    data.exits = "none"

    if "v1" in words:
        config.model.hidden_dropout_prob = dropout
        config.model.attention_probs_dropout_prob = dropout

    default.released(config, rate, batch, steps, warmup)
    if "tiny" in words:
        default.few_steps(config)
    return config
