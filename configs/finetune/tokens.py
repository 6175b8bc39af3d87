"""Fine-tuning on labelled words: entities, slots of a command, parts of speech.

  python train.py --config=configs/finetune/tokens.py --config.init_from=runs/base \\
      --config.data.train="('train.conll',)" --config.data.dev="('dev.conll',)"

A file is CoNLL (a word a line, the label in its last column, a blank line between sentences) or
JSON lines with two lists. Afterwards albert.load(WORKDIR).tag(text) labels every word.
"""

from configs.finetune import default


def get_config(arg=""):
    """`arg`: tiny: a few steps, to try whether it runs."""
    if arg not in ("", "tiny", None):
        raise ValueError(f"the config's argument is {arg!r}; there is tiny")
    config = default.get_config("tokens")
    data = config.data
    data.train = ()
    data.dev = ()  # none: dev_fraction of the training sentences are held out
    data.dev_fraction = 0.1
    data.predict = ()  # to be labelled by eval.py; of CoNLL the first column is read
    data.words = "tokens"  # names of the lists in JSON lines
    data.labels = "labels"
    default.texts(data)
    data.seq_length = 128
    default.released(config, rate=3e-5, batch=32, steps=1500, warmup=150)
    if arg == "tiny":
        default.few_steps(config)
    return config
