"""ALBERT's pretraining: masked words, and the order of two sentences.

Sources: sections "Loss" and "Examples" of the released program, google-research/albert. Log-softmax
and reductions are float32.
"""

import json
import math
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from albert.data.pretraining.examples import Examples
from albert.data.pretraining.prepare import (
    DataConfig,
    PreparedData,
    changed_corpora,
    found_corpora,
    open_tokenizer,
    prepare,
    prepare_valid,
    warn_of_overlap,
)
from albert.data.sources.base import SourceError
from albert.data.tokenizer import CLS, MASK, SEP, Tokenizer, VocabularyError
from albert.interop.weights import Weights
from albert.interop.workdir import VOCABULARY
from albert.models import lean
from albert.models.attention import Use
from albert.models.config import AlbertConfig
from albert.models.cost import encoder_flops
from albert.models.encoder import Albert, AlbertOutput
from albert.runtime.paths import place
from albert.tasks.base import Best, Evaluation, RunConfig, Samples, Task
from albert.tasks.distillation import TAUGHT, Seen
from albert.tasks.vocabulary import (
    taught_vocabulary_problems,
    vocabulary_of,
    vocabulary_problems,
)

MLM_EPSILON = 1e-5  # added to the sum of weights, as released
MAX_SPAN = 4  # masked runs of this length and longer are counted together
# What the model was shown at a masked position.
SHOWN = ("mask", "unchanged", "random")
# What packed rows have besides, for the encoder.
PACKED_FIELDS = ("segment_ids", "position_ids", "cls_positions")


def apply_model(model: nn.Module, params, rows, dropout_keys=None, **more) -> AlbertOutput:
    """The model's output for rows of this task; MLM logits at the masked positions."""
    return model.apply(  # type: ignore[return-value]
        {"params": params},
        rows["input_ids"],
        rows["attention_mask"],
        rows["token_type_ids"],
        head_inputs={"mlm": {"positions": rows["mlm_positions"]}},
        dropout_keys=dropout_keys,
        **{name: rows[name] for name in PACKED_FIELDS if name in rows},
        **more,
    )


def masked_lm_terms(logits, labels, weights):
    """Negative log likelihood and hit of every masked position.

    Args:
      logits: float32 [B, P, V].
      labels: int [B, P].
      weights: float32 [B, P], 1 for a masked position and 0 for filling.

    Returns:
      (nll, hit): float32 [B, P] each, 0 where the weight is 0.
    """
    nll, hit = lean.cross_entropy(logits, labels)
    return nll * weights, hit * weights


def sentence_order_terms(logits, labels):
    """Cross entropy, hit and weight of every example. Label 0 in order, 1 swapped, -1 no label.

    float32 [..., 2], int [...] -> three of float32 [...]; [B], or [B, K] for packed rows.
    """
    weights = (labels >= 0).astype(jnp.float32)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.maximum(labels, 0)[..., None]
    nll = -jnp.take_along_axis(log_probabilities, chosen, axis=-1)[..., 0]
    hit = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return nll * weights, hit * weights, weights


class Pretraining(Task):
    """MLM = sum(w * nll) / (sum(w) + 1e-5); SOP = mean cross entropy; the loss is their sum.

    A teacher's soft labels are of the masked words; the order of sentences is learned from labels.
    """

    Section = DataConfig
    taught_head = "mlm"
    amounts = ("real_tokens", "padded_tokens")
    best = Best("valid", "loss")

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer | None = None,
        valid: Examples | None = None,
        data: PreparedData | None = None,
    ):
        """Without `valid` nothing can be evaluated, and without `data` nothing trained on: what is
        left are the pure functions of a step."""
        self.model = self.make_model(config)
        self.tokenizer = tokenizer
        self.workers = config.data.workers
        self.rows = data.train if data else None
        self.evaluations = []
        self._config, self._data, self._valid = config, data, valid
        self._has_sop = True
        if valid is not None and tokenizer is not None:
            num_rows = min(config.train.eval_rows, valid.rows_per_epoch)
            self.evaluations = [
                Evaluation("valid", valid, num_rows, self._evaluate, figures, line_of, format_table)
            ]
            self.samples = Samples(
                valid,
                num_rows,
                self._guess,
                "Masks filled in, [right] or [guess, was: truth]:",
                partial(filled_masks, tokenizer),
            )
        if data:
            self.opening = [
                f"{data.train.rows_per_epoch:,} rows an epoch, "
                f"{100 * data.train.padding():.1f} % of their positions padding, "
                f"{100 * data.train.dropped_share():.1f} % of the tokens in none of them."
            ]

    @classmethod
    def problems(cls, config, needs_text):
        data, model = config.data, config.model
        found = []
        if data.seq_length > model.max_position_embeddings:
            found.append(
                f"data.seq_length {data.seq_length} is longer than the position table, "
                f"model.max_position_embeddings {model.max_position_embeddings}; set "
                f"--config.data.seq_length={model.max_position_embeddings}"
            )
        if needs_text:
            found += [f"data.{text}" for text in data.text_problems()]
            path = place(data.tokenizer)
            if data.tokenizer and path.is_file():
                try:
                    open_tokenizer(path, data, model.vocab_size, padded=bool(config.init_from))
                except VocabularyError as error:
                    found.append(f"data.tokenizer: {error}")
        return found

    @classmethod
    def start_problems(cls, config, start):
        return vocabulary_problems(config, start)

    @classmethod
    def evaluation_problems(cls, config, model):
        found = []
        if "mlm_head" in model.missing:
            found.append("the model has no MLM head, so it predicts nothing to be evaluated")
        if model.tokenizer is None:
            note = f" ({model.vocabulary_note})" if model.vocabulary_note else ""
            found.append(
                f"there is no vocabulary beside the model{note}; name it with "
                "--config.data.tokenizer"
            )
        if not config.data.valid_sources:
            found.append("there is no text to evaluate on; name it with --text")
        return found

    @classmethod
    def attention_use(cls, config):
        return Use(
            length=config.data.seq_length,
            head_dim=config.model.head_width,
            dtype=config.model.dtype,
            dropout=config.model.attention_probs_dropout_prob,
            packed=config.data.packing > 0,
            backend=None,
        )

    @classmethod
    def make_model(cls, config, saved=None):
        del saved
        return Albert(config.model, ("mlm", "sop"))

    @classmethod
    def flops_per_row(cls, config):
        data = config.data
        return data.seq_length * flops_per_token(
            config.model, data.seq_length, data.max_predictions
        )

    @classmethod
    def tokens_per_row(cls, config):
        return config.data.seq_length

    @classmethod
    def head_bytes_per_row(cls, config):
        return 3 * 4 * config.data.max_predictions * config.model.vocab_size  # float32 logits

    @classmethod
    def read(
        cls,
        config,
        start: Weights | None,
        workdir: Path | None = None,
        saved: dict | None = None,
    ) -> PreparedData:
        """The rows of a run, with the vocabulary of `start`, the model of `config.init_from`, where
        none is named; of a run that is resumed, the `workdir` and what is `saved` of it.

        Raises SourceError, VocabularyError.
        """
        tokenizer = start.tokenizer if start else None
        if config.data.tokenizer and config.init_from:
            tokenizer = _open_padded(place(config.data.tokenizer), config)
        elif workdir is not None and config.init_from and saved is not None:
            tokenizer = _open_padded(workdir / VOCABULARY, config)
        return prepare(
            config.data, config.model.vocab_size, config.seed, tokenizer, _fingerprints(saved)
        )

    @classmethod
    def prepare(cls, config, workdir: Path, saved: dict | None, start: Weights | None):
        data = cls.read(config, start, workdir, saved)
        if data.train.rows_per_epoch < config.train.batch_size:
            raise SourceError(
                f"The training text is too small: it gives {data.train.rows_per_epoch} rows of up "
                f"to {config.data.seq_length} tokens, fewer than one batch of "
                f"{config.train.batch_size}. Add text or lower train.batch_size."
            )
        return cls(config, data.tokenizer, data.valid, data)

    @classmethod
    def to_evaluate(cls, config, tokenizer, saved, model=None):
        tokenizer = vocabulary_of(tokenizer)
        valid = prepare_valid(config.data, tokenizer, wanted=_fingerprints(saved))
        if saved is not None and not config.data.valid_sources:
            learned = {plan.corpus.fingerprint for plan in valid.plans} & {*saved["data"]["train"]}
            held_out = saved["data"]["valid_fraction"]  # 0: of none of them
            if learned and config.data.valid_fraction > held_out:
                raise SourceError(
                    f"data.valid_fraction is {config.data.valid_fraction:g} and the run held "
                    f"{held_out:g} of its training text out: it has learned from the rest. Lower "
                    "it, or name other text with --config.data.valid_sources."
                )
        if saved is not None and config.data.valid_sources:
            trained_on = found_corpora(config.data, saved["data"]["train"])
            warn_of_overlap(trained_on, [plan.corpus for plan in valid.plans])
        task = cls(config, tokenizer, valid)
        if model and {"sop_head", "pooler"} & set(model.missing):
            task._has_sop = False
        return task

    def denominators(self, batch):
        found = {
            "mlm": batch["mlm_weights"].sum(),
            "sop": (batch["sop_labels"] >= 0).sum().astype(jnp.float32),
        }
        return found | self.distillation.denominators(batch) if self.distillation else found

    def taught(self, rows, teacher):
        if self.distillation is None:
            return rows
        return rows | {TAUGHT: self._seen(apply_model(self.distillation.model, teacher, rows))}

    def sums(self, params, rows, dropout_keys):
        output = apply_model(self.model, params, rows, dropout_keys)
        mlm_nll, mlm_hit = masked_lm_terms(
            output.mlm_logits, rows["mlm_labels"], rows["mlm_weights"]
        )
        sop_nll, sop_hit, _ = sentence_order_terms(output.sop_logits, rows["sop_labels"])
        sums = {
            "mlm_nll": mlm_nll.sum(),
            "mlm_hits": mlm_hit.sum(),
            "sop_nll": sop_nll.sum(),
            "sop_hits": sop_hit.sum(),
            "real_tokens": rows["attention_mask"].sum(),
            "padded_tokens": jnp.asarray(rows["attention_mask"].size, jnp.int32),
        }
        if self.distillation:
            seen, weights = self._seen(output), rows["mlm_weights"]
            sums |= self.distillation.sums("classes", seen, rows[TAUGHT], weights, rows)
        return sums

    @staticmethod
    def _scales(denominators):
        # A batch without labels gives 0, not 0/0.
        mlm = 1.0 / (denominators["mlm"] + MLM_EPSILON)
        return mlm, 1.0 / jnp.maximum(denominators["sop"], 1.0)

    def loss(self, sums, denominators):
        mlm, sop = self._scales(denominators)
        of_words = sums["mlm_nll"] * mlm
        if self.distillation:
            of_words = self.distillation.loss(of_words, sums, denominators, mlm)
        return of_words + sums["sop_nll"] * sop

    def metrics(self, sums, denominators):
        mlm, sop = self._scales(denominators)
        found = {
            "mlm_loss": sums["mlm_nll"] * mlm,
            "mlm_accuracy": sums["mlm_hits"] * mlm,
            "real_tokens": sums["real_tokens"],
            "padded_tokens": sums["padded_tokens"],
        }
        if self._config.data.sentence_objective != "none":
            found |= {"sop_loss": sums["sop_nll"] * sop, "sop_accuracy": sums["sop_hits"] * sop}
        if self.distillation:
            hard = sums["mlm_nll"] * mlm + sums["sop_nll"] * sop
            found |= self.distillation.metrics(hard, sums, denominators, mlm)
        return found

    def line(self, metrics):
        text = f"mlm {metrics['mlm_loss']:.3f} ({100 * metrics['mlm_accuracy']:.1f} %)"
        if "sop_loss" in metrics:
            text += f"  sop {metrics['sop_loss']:.3f} ({100 * metrics['sop_accuracy']:.1f} %)"
        return f"{text}  {self.distillation.line(metrics)}" if self.distillation else text

    def teacher_problems(self, config, teacher):
        return taught_vocabulary_problems(config, self.tokenizer, teacher)

    def description(self):
        assert self._data is not None
        assert self._valid is not None
        held_out = [plan.corpus.fingerprint for plan in self._valid.plans]
        described = {"data": self._data.identity, "held_out": held_out}
        return json.loads(json.dumps(described))  # as it is read again

    def changes(self, saved):
        assert self._data is not None
        now = self.description()
        before, after = saved["data"], now["data"]
        refused = [
            f"  data.{field}: {before.get(field)} -> {after.get(field)}"
            for field in sorted(before.keys() | after.keys())
            if before.get(field) != after.get(field)
        ]
        refused += changed_corpora(self._config.data, before["train"], self._data.train)
        told = []
        if saved["held_out"] != now["held_out"]:
            told.append("  held-out text: figures before and after do not compare")
        return refused, told

    def _seen(self, output: AlbertOutput) -> Seen:
        """With logits of pieces alone: either model may have more rows than there are pieces."""
        logits = output.mlm_logits
        if logits is not None and self.tokenizer is not None:
            logits = logits[..., : self.tokenizer.vocab_size]
        return Seen(logits, output.last_hidden_state)

    def _guess(self, params, rows):
        """The likeliest piece at every masked position, int [B, P]. A model may have more rows than
        there are pieces."""
        assert self.tokenizer is not None
        logits = apply_model(self.model, params, rows).logits["mlm"]
        return jnp.argmax(logits[..., : self.tokenizer.vocab_size], axis=-1)

    def _evaluate(self, params, rows):
        """Sums over rows, to be added up; see `figures`."""
        output = apply_model(self.model, params, rows)
        sums = evaluation_sums(output, rows)
        if not self._has_sop:  # figures of a head that is not there would be made up
            sums["sop"] = jnp.zeros_like(sums["sop"])
        return sums


def _open_padded(path: Path, config) -> Tokenizer:
    return open_tokenizer(path, config.data, config.model.vocab_size, padded=True)


def _fingerprints(saved: dict | None) -> tuple[str, ...]:
    """Those of the corpora of a run, by its description."""
    return (*saved["data"]["train"], *saved["held_out"]) if saved else ()


def flops_per_token(config: AlbertConfig, seq_length: int, max_predictions: int) -> float:
    """Model FLOPs of one training step for each of the B * L positions.

    Those of the encoder, and 6 * (parameters of the heads) at masked positions only.
    """
    h, e = config.hidden_size, config.embedding_size
    heads = (h * e + e * config.vocab_size) * max_predictions / seq_length
    heads += (h * h + 2 * h) / seq_length  # pooler and SOP, for the first token
    return encoder_flops(config, seq_length) + 6 * heads


def span_lengths(positions: jax.Array, weights: jax.Array) -> jax.Array:
    """Length of the run of adjacent masked positions that each one is part of.

    int [B, P] sorted along P where the weight is 1, float32 [B, P] -> int [B, P]; 0 for filling.
    """
    real = weights > 0
    begins = jnp.diff(positions, axis=1, prepend=-2) != 1
    run = jnp.cumsum(begins, axis=1)
    same = (run[:, :, None] == run[:, None, :]) & real[:, :, None] & real[:, None, :]
    return same.sum(-1)


def evaluation_sums(output: AlbertOutput, batch) -> dict[str, jax.Array]:
    """Sums over a batch, to be added up over batches; see `figures`."""
    labels, weights = batch["mlm_labels"], batch["mlm_weights"]
    nll, hit = masked_lm_terms(output.mlm_logits, labels, weights)
    sop_nll, sop_hit, sop_weights = sentence_order_terms(output.sop_logits, batch["sop_labels"])
    # Every token of the text, masked or not, as a sample of what could be a target.
    rows = jnp.arange(len(labels))[:, None]
    masked = (
        jnp.zeros_like(batch["input_ids"])
        .at[rows, batch["mlm_positions"]]
        .max(jnp.where(weights > 0, labels + 1, 0))
    )
    words = jnp.where(masked > 0, masked - 1, batch["input_ids"])
    is_word = batch["attention_mask"] * ((masked > 0) | (words != CLS) & (words != SEP))
    sums = {
        "mlm": jnp.stack([nll.sum(), hit.sum(), weights.sum()]),
        "sop": jnp.stack([sop_nll.sum(), sop_hit.sum(), sop_weights.sum()]),
        "words": jnp.zeros(output.logits["mlm"].shape[-1]).at[words].add(is_word),
    }

    def split(name, group):
        chosen = weights * group
        sums[name] = jnp.stack([(nll * group).sum(), (hit * group).sum(), chosen.sum()])

    lengths = jnp.minimum(span_lengths(batch["mlm_positions"], weights), MAX_SPAN)
    for length in range(1, MAX_SPAN + 1):
        split(f"mlm_span_{length}", lengths == length)
    shown = jnp.take_along_axis(batch["input_ids"], batch["mlm_positions"], axis=1)
    is_mask, is_label = shown == MASK, shown == labels
    groups = (is_mask, is_label & ~is_mask, ~is_mask & ~is_label)
    for name, group in zip(SHOWN, groups, strict=True):
        split(f"mlm_shown_{name}", group)
    return sums


def figures(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Means from the sums of `evaluation_sums`; a group without a target is left out.

    `unigram_entropy`, in nats, is that of the held-out text's own pieces: the lowest MLM loss
    that is possible without looking at the context. All pieces are counted, not just the masked
    ones, since the entropy of few samples comes out too low. `gain`, in nats: by how much the loss
    where [MASK] is shown is below it, which only the context can give.
    """
    result = {}
    for task in ("mlm", "sop"):
        nll, hit, count = sums[task]
        if task == "sop" and not count:
            continue  # data.sentence_objective is "none"
        result[f"{task}_loss"] = nll / max(count, 1)
        result[f"{task}_accuracy"] = hit / max(count, 1)
        result[f"{task}_targets"] = count
    result["loss"] = result["mlm_loss"] + result.get("sop_loss", 0.0)
    result["mlm_perplexity"] = math.exp(min(result["mlm_loss"], 700.0))
    share = sums["words"][sums["words"] > 0] / max(sums["words"].sum(), 1)
    result["unigram_entropy"] = -(share * np.log(share)).sum()
    groups = [f"span_{n}" for n in range(1, MAX_SPAN + 1)] + [f"shown_{name}" for name in SHOWN]
    for group in groups:
        nll, hit, count = sums[f"mlm_{group}"]
        if count:
            result[f"mlm_loss_{group}"] = nll / count
            result[f"mlm_accuracy_{group}"] = hit / count
    if "mlm_loss_shown_mask" in result:
        result["gain"] = result["unigram_entropy"] - result["mlm_loss_shown_mask"]
    return {name: float(value) for name, value in result.items()}


def line_of(result: dict[str, float]) -> str:
    """The figures for the console during training."""
    text = (
        f"held-out: mlm {result['mlm_loss']:.3f} ({100 * result['mlm_accuracy']:.1f} %), "
        f"unigram entropy {result['unigram_entropy']:.3f}"
    )
    if "gain" in result:
        text += f", gain {result['gain']:.2f} where [MASK] is shown"
    if "sop_loss" in result:
        text += f"; sop {result['sop_loss']:.3f} ({100 * result['sop_accuracy']:.1f} %)"
    return text


def format_table(of: str, result: dict[str, float]) -> str:
    """The figures as a table that also says what chance would give; `of`: at which step."""
    sop_rows = []
    if "sop_loss" in result:
        noise = 0.5 / math.sqrt(max(result["sop_targets"], 1))
        sop_rows = [
            ("SOP loss (nats)", f"{result['sop_loss']:.3f}", f"chance {math.log(2):.3f}"),
            (
                "SOP accuracy",
                f"{100 * result['sop_accuracy']:.1f} %",
                f"chance 50.0 +- {100 * noise:.1f} over {result['sop_targets']:.0f} examples",
            ),
        ]
    gap = result["unigram_entropy"] - result["mlm_loss"]
    rows = [
        (
            "MLM loss (nats)",
            f"{result['mlm_loss']:.3f}",
            f"unigram entropy {result['unigram_entropy']:.3f}: "
            + (f"{gap:.3f} below it" if gap > 0 else "not below it yet"),
        ),
        ("MLM perplexity", f"{result['mlm_perplexity']:.1f}", ""),
        (
            "MLM accuracy",
            f"{100 * result['mlm_accuracy']:.1f} %",
            f"{result['mlm_targets']:.0f} masked tokens",
        ),
        *sop_rows,
    ]
    names = {f"span_{n}": f"runs of {n} masked pieces" for n in range(1, MAX_SPAN)}
    names[f"span_{MAX_SPAN}"] = f"runs of {MAX_SPAN} or more"
    names |= {
        "shown_mask": "shown [MASK]",
        "shown_unchanged": "shown unchanged",
        "shown_random": "shown another piece",
    }
    rows += [
        (
            f"  {text}",
            f"{result[f'mlm_loss_{key}']:.3f}",
            f"accuracy {100 * result[f'mlm_accuracy_{key}']:.1f} %",
        )
        for key, text in names.items()
        if f"mlm_loss_{key}" in result
    ]
    lines = [f"Held-out text {of}"]
    lines += [f"  {name:<26} {value:>9}   {note}".rstrip() for name, value, note in rows]
    return "\n".join(lines)


def filled_masks(
    tokenizer: Tokenizer, batch: dict[str, np.ndarray], guesses: np.ndarray, count: int
) -> list[str]:
    """A masked place of each of the first rows in words, with what the model puts there.

    [word] is a right guess, [guess, was: word] a wrong one. guesses: int [B, P].
    """
    lines: list[str] = []
    for row in range(len(guesses)):
        if len(lines) == count:
            break
        at = {
            int(position): (int(guess), int(label))
            for position, guess, label, weight in zip(
                batch["mlm_positions"][row],
                guesses[row],
                batch["mlm_labels"][row],
                batch["mlm_weights"][row],
                strict=True,
            )
            if weight
        }
        if not at:
            continue  # a row whose every word is longer than its budget, or padding
        middle = sorted(at)[len(at) // 2]
        # Its own example only: the tokens of the others in a packed row mean nothing to it.
        numbers = batch.get("segment_ids", batch["attention_mask"])[row]
        own = np.flatnonzero(numbers == numbers[middle])
        words = []
        for position in range(max(own[0] + 1, middle - 14), min(own[-1], middle + 15)):
            if position not in at:
                words.append(tokenizer.pieces([batch["input_ids"][row][position]])[0])
                continue
            guess, label = (tokenizer.decode([i]) or "_" for i in at[position])
            right = at[position][0] == at[position][1]
            words.append(f"\u2581[{guess}]" if right else f"\u2581[{guess}, was: {label}]")
        lines.append("... " + "".join(words).replace("\u2581", " ").strip() + " ...")
    return lines
