"""Sentence vectors by contrast (SimCSE: Gao et al. 2021, arXiv 2104.08821), judged on STS-B.

  python train.py --config=configs/finetune/contrastive.py --config.init_from=runs/base \\
      --config.data.train="('wiki/*.txt.gz',)" --config.data.dev=glue_data/STS-B
  python train.py --config=configs/finetune/contrastive.py:pairs --config.init_from=runs/base \\
      --config.data.train="('nli.csv',)" --config.data.text_a=sent0 --config.data.text_b=sent1 \\
      --config.data.negative=hard_neg --config.data.dev=glue_data/STS-B

Without labels a sentence is its own partner, under other dropout. Afterwards
albert.load(WORKDIR).encode(texts) gives the vectors that were trained.
"""

from configs.finetune import default

# learning rate, batch, epochs, steps: those of the paper's BERT-base, appendix A and the scripts
# run_unsup_example.sh and run_sup_example.sh of princeton-nlp/SimCSE; a million sentences of
# Wikipedia, and 275,601 pairs with negatives from NLI.
RECIPES = {
    "unsupervised": (3e-5, 64, 1.0, 15625),
    "pairs": (5e-5, 512, 3.0, 1615),
}


def get_config(arg="unsupervised"):
    """`arg`: unsupervised (default) or pairs, and behind a comma tiny: a few steps, to try whether
    it runs."""
    words = [word for word in (arg or "").split(",") if word]
    kinds = [word for word in words if word in RECIPES] or ["unsupervised"]
    unknown = [word for word in words if word not in (*RECIPES, "tiny")]
    if unknown or len(kinds) != 1:
        raise ValueError(
            f"the config's argument is {arg!r}; it is {' or '.join(RECIPES)}, and may have tiny "
            "behind a comma"
        )
    rate, batch, epochs, steps = RECIPES[kinds[0]]
    pairs = kinds[0] == "pairs"
    config = default.get_config("contrastive")

    # Of the encoder: both views of a sentence differ by it. Released models (v2) have none.
    config.model.hidden_dropout_prob = 0.1
    config.model.attention_probs_dropout_prob = 0.1

    data = config.data
    # Text as of pretraining (see configs/default.py), a row for each sentence; with text_a, tables:
    # files that end in .tsv, .csv, .jsonl or .parquet, or tfds:NAME:SPLIT.
    data.train = ()
    data.text_a = "text_a" if pairs else ""  # names of columns; empty: sentences of text
    data.text_b = "text_b" if pairs else ""  # what means the same; empty: text_a itself
    data.negative = ""  # what does not, though it looks so; empty: the others of the batch alone
    data.max_sentences = 1_000_000  # of text, drawn at random; 0: all
    data.text_field = "text"  # of JSON lines, Parquet columns and TFDS records of text
    data.language = "en"  # for splitting paragraphs into sentences
    data.max_bad_share = 0.001  # broken records of text that are left out; more stop the run
    data.max_unknown_share = 0.1  # of the characters of text, <unk>; more stop the run
    data.dev = ""  # the folder of STS-B, tfds:glue/stsb, or a table of your own
    data.dev_columns = ("text_a", "text_b", "score")  # of that table
    # What a text's vector is of, kept with the model: mean (of all tokens), cls, or pooled (a dense
    # layer and tanh on cls, the pooler). With projection a layer like it stands behind the vector
    # in training alone. Those scripts: unsupervised cls with projection, of pairs pooled.
    data.pooling = "pooled" if pairs else "cls"
    data.projection = not pairs
    data.temperature = 0.05
    default.texts(data)
    data.seq_length = 32
    data.dropout = 0.0  # on the vector, beside the encoder's

    default.released(config, rate, batch, steps, warmup=0)
    config.optimizer.schedule = "linear"  # of the scripts' trainer, which has no decay of weights
    config.optimizer.weight_decay = 0.0
    config.train.epochs = epochs  # as many steps as that are of the data at hand
    config.train.eval_every = config.train.checkpoint_every = 250
    if "tiny" in words:
        default.few_steps(config)
        config.train.epochs = 0.0
        data.seq_length = 32
    return config
