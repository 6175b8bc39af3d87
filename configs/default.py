"""Every field of a config, with its meaning. Other configs start from this one."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(arg: str = "") -> ConfigDict:
    """ALBERT-base as released (v2), without a corpus. `arg`: see `apply_argument`."""
    config = ConfigDict()
    config.seed = 0  # of parameters, dropout, chunks and masks
    config.task = "pretraining"  # what is learned; the section data is of the task
    # Where to start from: anything that albert.load takes (docs/fidelity.md). Empty: from scratch.
    config.init_from = ""
    config.init_model = False  # have its sizes, sharing and activation, whatever model says
    config.init_optimizer = False  # also take its moments and step, to continue that run
    # Where its layers share otherwise or are fewer: average, or svd for the low-rank differences.
    config.init_method = "average"

    # Model: the names are those of albert_config.json.
    config.model = model = ConfigDict()
    model.vocab_size = 30000
    model.embedding_size = 128  # E; equal to hidden_size for BERT's embedding
    model.hidden_size = 768  # H
    model.num_hidden_layers = 12  # N
    # Which layers have the same weights: all, as released; none, as in BERT; attention or ffn, that
    # block only; groups:G, consecutive groups; cycle:M, M layers again and again; cycle_reversed:M,
    # the last time backwards; sandwich, first and last their own (albert/models/sharing.py).
    model.sharing = "all"
    model.per_layer_norm = False  # LayerNorms and biases of its own for every depth
    model.lora_rank = 0  # of a low-rank difference to shared kernels, for every depth; 0: none
    model.inner_group_num = 1  # layers in a set; the depth is N * inner_group_num
    model.num_attention_heads = 12
    model.intermediate_size = 3072
    model.hidden_act = "gelu"  # gelu (tanh approximation, as released), gelu_erf or relu
    model.hidden_dropout_prob = 0.0
    model.attention_probs_dropout_prob = 0.0
    # Elastic depth: in training each row takes so many layers as are drawn for it, evenly from this
    # to all, so that one model serves at any of these depths. 0: all layers, always.
    model.least_depth = 0
    model.max_position_embeddings = 512
    # Where tokens stand: learned, a table as released, or rotary, by how far they are apart, which
    # small runs learn from sooner (docs/experiments.md); no released format holds it.
    model.positions = "learned"
    model.type_vocab_size = 2
    model.initializer_range = 0.02
    model.map_equal_embeddings = False  # E -> H even where E = H; only Hugging Face does that
    # The kernel: auto, xla (plain, the only one with attention dropout), cudnn, splash
    model.attention = "auto"
    # Of activations and products. auto: bfloat16, or float32 where products are as fast (most CPUs)
    model.dtype = "bfloat16"
    model.param_dtype = "float32"
    model.remat = "none"  # none, dots (keep products) or full: less memory, more operations
    # Layers in a turn of the loop over the depth; all of them: faster on a GPU, and slow to compile
    model.scan_unroll = 1

    # Data. A source is PATH, lines:PATH, text:PATH, jsonl:PATH, parquet:PATH, tfds:NAME or
    # python-docs; PATH is a file, folder or glob, plain or .gz, .xz, .zst (data/sources/parse.py).
    config.data = data = ConfigDict()
    data.train_sources = ()
    data.train_weights = ()  # share of the rows of each source; empty: by size
    data.temperature = 1.0  # shares ** (1 / temperature): over 1 brings sources closer together
    data.valid_sources = ()  # held-out text; empty: valid_fraction of the training documents
    data.valid_fraction = 0.005
    data.text_field = "text"  # of JSON lines, Parquet columns and TFDS records
    data.language = "en"  # for splitting paragraphs into sentences
    data.max_documents = 0  # of each source; 0 for all
    data.max_bad_share = 0.001  # broken records that are left out; more of them stop the run
    data.max_unknown_share = 0.1  # of the characters, <unk> to the vocabulary; more stop the run
    data.tokenizer = ""  # SentencePiece .model; empty: train one with model.vocab_size pieces
    data.lower_case = True
    data.strip_accents = True
    data.character_coverage = 0.99995  # of a trained vocabulary; 0.9995 for Chinese, Japanese
    # Prepared corpora and vocabularies are kept and found here, or on a bucket (gs://...).
    data.folder = "prepared"
    data.seq_length = 512
    data.max_predictions = 77  # masked positions of a row at most; about 0.15 * seq_length
    data.packing = 0  # examples in a row at most; 0: one, as released
    data.masking_rate = 0.15
    data.masking_unit = "word"  # word or piece: what an n-gram is made of
    data.max_ngram = 3  # longest run of them that is masked as one
    data.corruption = (0.8, 0.1, 0.1)  # of the masked: [MASK], left as it is, any piece
    data.sentence_objective = "sop"  # sop, nsp, or none: one segment, no second loss
    data.short_seq_prob = 0.1  # share of documents cut into shorter chunks
    data.single_segment = "split"  # sop: chunks of one sentence: split, drop, random as released
    data.static_copies = 0  # epochs that differ before they repeat, as released 40; 0: all differ
    data.workers = 4  # processes that make batches; 0: a thread

    # Optimizer: lamb and adamw as released, muon, or optax.NAME for one of optax's own; and the
    # schedule of its learning rate (albert/train/optimizers.py and schedules.py say which there are
    # and what they read). What is unset (None) has the chosen one's own value; what is set and not
    # read by it is an error. Gradients and moments are float32.
    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "lamb"
    optimizer.learning_rate = 0.00176  # peak
    optimizer.schedule = "released"  # or linear, cosine, wsd, inverse_sqrt
    optimizer.warmup_steps = 3125
    optimizer.cooldown_steps = placeholder(object)  # wsd; unset: a fifth of num_steps
    optimizer.final_learning_rate = placeholder(object)  # unset: 0
    optimizer.b1 = placeholder(object)  # lamb, adamw: 0.9
    optimizer.b2 = placeholder(object)  # lamb, adamw: 0.999
    optimizer.eps = placeholder(object)  # lamb, adamw: 1e-6
    optimizer.weight_decay = placeholder(object)  # lamb, adamw: 0.01
    optimizer.momentum = placeholder(object)  # muon: 0.95
    optimizer.consistent_rms = placeholder(object)  # size of muon's updates: 0.2, about Adam's
    optimizer.clip_norm = 1.0  # global norm; 0: no clipping

    # Training.
    config.train = train = ConfigDict()
    train.num_steps = 125_000
    # Passes over the training rows, in place of num_steps: of that, warm-up and cooldown keep their
    # share. 0: num_steps says how long.
    train.epochs = 0.0
    train.batch_size = 4096
    # When a batch does not fit: rows that a device computes at once, at most, from which the parts
    # of a batch follow on any number of devices; or the number of parts itself.
    train.microbatch = 0  # 0: not set
    train.accumulation = 1
    train.log_every = 100
    # Where figures go; wandb and mlflow beside these (docs/tracking.md).
    train.writers = ("jsonl", "tensorboard")
    train.eval_every = 5000
    train.eval_rows = 4096  # held-out rows of an evaluation, at most
    train.eval_batch_size = 256
    train.checkpoint_every = 5000
    train.checkpoint_minutes = 30.0  # also save after so long; 0: by steps only
    train.keep_last = 3
    train.keep_best = 1  # by held-out loss
    # Updates that are not finite change nothing and are counted; so many in a row are a divergence.
    train.max_bad_steps = 10
    train.spike_factor = 0.0  # so are gradients of so many times the usual norm; 0: none is
    train.on_divergence = "stop"  # or rollback: from the newest checkpoint on behind the bad rows
    train.max_failed_saves = 3  # stop after so many in a row, with a full disk for example
    train.reduce_dtype = "float32"  # of gradients between devices; bfloat16 sends half the bytes
    # On GPUs: the same bits from the same step every time, at some cost of speed; others have it.
    train.deterministic = False
    train.stall_seconds = 300.0  # tell of a step or batch that takes so long, and 20 times longer

    # Phases: fields that have other values for so many steps; the last phase takes what is left.
    # BERT's: ({"steps": 900_000, "data.seq_length": 128, "data.max_predictions": 20}, {}).
    # With a learning rate of its own a phase begins the schedule again (albert/train/phases.py).
    config.phases = ()

    # Sharding: devices of a slice along each axis of the mesh, -1 for all that are left, and the
    # mesh axes that each logical axis of the model is cut along.
    config.sharding = sharding = ConfigDict()
    # Slices of TPUs, or groups of hosts that only a slow network joins: rows are shared among them,
    # weights are not, so that the gradient alone crosses it.
    sharding.slices = 1
    sharding.data = -1
    sharding.fsdp = 1
    sharding.tensor = 1
    sharding.rules = (
        ("batch", ("slices", "data", "fsdp")),
        ("vocab", ("tensor",)),
        ("heads", ("tensor",)),
        ("mlp", ("tensor",)),
        ("hidden", ("fsdp",)),
        ("embed", ("fsdp",)),
    )

    # Distillation: a larger or less shared teacher, beside the labels (docs/distillation.md). What
    # is unset (None) has the value said here; what is set and not read is an error.
    config.distillation = distillation = ConfigDict()
    # Anything that albert.load takes, with the same vocabulary (and labels); empty: there is none.
    distillation.teacher = ""
    distillation.logits = placeholder(object)  # share of its soft labels in the loss: 0.5
    distillation.temperature = placeholder(object)  # of these: 2
    distillation.relations = placeholder(object)  # weight of the tokens' relations: 0
    distillation.relation_heads = placeholder(object)  # parts of them: model.num_attention_heads
    apply_argument(config, arg)
    return config


def apply_argument(config: ConfigDict, arg: str) -> None:
    """Changes a finished config by the words behind the colon, separated by commas.

    v1, v2: dropout as released with that version (see `released_dropout`); v2 is the default.
    tiny: the same shape of run in under a minute on a CPU.
    """
    words = [word for word in (arg or "").split(",") if word]
    for word in words:
        if word not in ("v1", "v2", "tiny"):
            raise ValueError(f"unknown config argument {word!r}; there is v1, v2 and tiny")
    if "v1" in words:
        # The released v1 models were trained with dropout, all but xxlarge.
        dropout = 0.0 if config.model.hidden_size >= 4096 else 0.1
        config.model.hidden_dropout_prob = dropout
        config.model.attention_probs_dropout_prob = dropout
    if "tiny" in words:
        shrink(config)


def shrink(config: ConfigDict) -> None:
    """Cuts sizes and steps; what the config is about (optimizer, dropout, depth > 1) stays."""
    model, data, train = config.model, config.data, config.train
    config.phases = tuple(shrunk(phase, config) for phase in config.phases)
    model.vocab_size = 1000
    model.embedding_size = 16
    model.hidden_size = 32
    model.num_hidden_layers = 3
    model.least_depth = min(model.least_depth, 3)
    model.num_attention_heads = 4
    model.intermediate_size = 64
    model.max_position_embeddings = 64
    model.dtype = "float32"
    model.remat = "none"
    model.scan_unroll = 1
    data.train_sources = ("python-docs",)
    data.train_weights = ()
    data.valid_sources = ()
    data.valid_fraction = 0.05
    data.max_documents = 2000
    data.tokenizer = ""
    data.seq_length = 64
    data.max_predictions = 10
    data.workers = 0
    config.optimizer.warmup_steps = 10
    if config.optimizer.cooldown_steps is not None:
        config.optimizer.cooldown_steps = 10
    train.num_steps = 60
    train.batch_size = 16
    train.microbatch, train.accumulation = 0, 1
    train.log_every = 10
    train.eval_every = 30
    train.eval_rows = 128
    train.eval_batch_size = 32
    train.checkpoint_every = 30
    train.checkpoint_minutes = 0.0


def shrunk(phase: dict, config: ConfigDict) -> dict:
    """A phase of a config that is being shrunk, in proportion."""
    tiny = {
        "steps": (60, config.train.num_steps),
        "data.seq_length": (64, config.data.seq_length),
        "data.max_predictions": (10, config.data.max_predictions),
        "train.batch_size": (16, config.train.batch_size),
        "optimizer.warmup_steps": (10, config.optimizer.warmup_steps),
    }
    found = {}
    for name, value in phase.items():
        now, before = tiny.get(name, (1, 1))
        found[name] = max(1, value * now // before) if name in tiny else value
    return found | ({"train.accumulation": 1} if "train.accumulation" in phase else {})
