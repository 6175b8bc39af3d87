"""Fine-tuning on labelled texts of your own: classes, a number, or several labels for each text.

  python train.py --config=configs/finetune/texts.py --config.init_from=runs/base \\
      --config.data.train="('reviews.csv',)" --config.data.text=review --config.data.label=stars

Sources end in .tsv, .csv, .jsonl or .parquet, or are tfds:NAME:SPLIT. The labels are found in the
training data. Afterwards albert.load(WORKDIR).classify(text) gives a label and probabilities.
"""

from configs.finetune import default


def get_config(arg=""):
    """`arg`: tiny: a few steps, to try whether it runs."""
    if arg not in ("", "tiny", None):
        raise ValueError(f"the config's argument is {arg!r}; there is tiny")
    config = default.get_config("classification")
    data = config.data
    data.train = ()
    data.dev = ()  # none: dev_fraction of the training examples are held out
    data.dev_fraction = 0.1
    data.predict = ()  # to be labelled by eval.py
    data.text = "text"  # names of columns
    data.pair = ""  # of the second text; empty: there is one text
    data.label = "label"
    data.id = ""  # empty: the number of the record
    data.kind = "classes"  # or number; or several: any number of labels for each text
    data.separator = ","  # between several labels in one cell
    data.class_weights = "none"  # or balanced: every class counts as much
    data.metric = ""  # which decides what checkpoint is best; empty: the first of the kind's
    default.texts(data)
    # Classifiers on the depths before the last, to leave early: none; together: learned with the
    # encoder; frozen: behind a fine-tuned init_from, which stays as it is.
    data.exits = "none"
    data.seq_length = 128
    default.released(config, rate=2e-5, batch=32, steps=1000, warmup=100)
    if arg == "tiny":
        default.few_steps(config)
    return config
