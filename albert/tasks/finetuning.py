"""What all tasks of fine-tuning have in common: a head on a pretrained encoder, labelled examples
as rows, and the best checkpoint by what they are judged on.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from albert.data.sources.base import SourceError
from albert.interop.weights import Weights
from albert.models.attention import Use
from albert.models.config import AlbertConfig
from albert.models.cost import encoder_flops
from albert.models.encoder import Albert, AlbertOutput
from albert.tasks.base import RunConfig, Task
from albert.tasks.distillation import TAUGHT, Seen
from albert.tasks.vocabulary import taught_vocabulary_problems, vocabulary_problems

_INPUTS = "input_ids", "attention_mask", "token_type_ids"
_HEAD_STREAM = 2  # of a row's dropout key; the encoder takes 0 and 1
_HELD_OUT_STREAM = 6  # which examples are held out


@dataclasses.dataclass(frozen=True)
class FineTuningConfig:
    """Fields of the section `data` that all these tasks have."""

    tokenizer: str  # SentencePiece .model; empty: that of init_from
    lower_case: bool
    strip_accents: bool
    folder: str  # rows are made once and kept here
    seq_length: int  # tokens of a row at most; longer texts are cut, and counted
    dropout: float  # in front of the head
    workers: int  # processes that make rows of text; batches are made by a thread

    def problems(self) -> list[str]:
        """What is wrong with the fields, one sentence each."""
        found = []
        if self.seq_length < 4:
            found.append(f"seq_length is {self.seq_length}; it must be at least 4")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout is {self.dropout}; it must be in [0, 1)")
        if self.workers < 0:
            found.append(f"workers is {self.workers}; it must not be negative")
        return found

    def text_problems(self) -> list[str]:
        """What is wrong with the data that they name; looks for files and reads none."""
        return []


class FineTuning(Task):
    """A task with one head. `description` has "examples" and "held_out", digests of these."""

    amounts = ("real_tokens", "padded_tokens")
    serves_best = True
    # Of the description, beside the examples: what forbids to resume when it changes, in words.
    deciding: ClassVar[dict[str, str]] = {}

    model: Albert
    _config: RunConfig
    # What is asked in place of the model, if anything: rows -> what the heads give, by name.
    program: Callable[[Mapping[str, jax.Array]], dict[str, Any]] | None = None

    @classmethod
    def problems(cls, config, needs_text):
        data, model = config.data, config.model
        found = []
        if data.seq_length > model.max_position_embeddings and not config.init_model:
            found.append(
                f"data.seq_length {data.seq_length} is longer than the position table, "
                f"model.max_position_embeddings {model.max_position_embeddings}; set "
                f"--config.data.seq_length={model.max_position_embeddings}"
            )
        if needs_text:
            found += [f"data.{text}" for text in data.text_problems()]
            if not config.init_from and not data.tokenizer:
                found.append(
                    "init_from is empty: name the pretrained model to start from (anything that "
                    "albert.load takes); or name data.tokenizer to learn from random weights, "
                    "which is far worse"
                )
        return found

    @classmethod
    def draws_held_out(cls, config) -> bool:
        """Whether its held-out examples are drawn from those that are named for training."""
        del config
        return False

    @classmethod
    def start_problems(cls, config, start):
        found = vocabulary_problems(config, start)
        positions = start.config.max_position_embeddings
        if config.data.seq_length > positions:
            found.append(
                f"data.seq_length is {config.data.seq_length} and init_from, {config.init_from}, "
                f"has {positions} positions; set --config.data.seq_length={positions}"
            )
        return found

    @classmethod
    def attention_use(cls, config):
        return Use(
            length=config.data.seq_length,
            head_dim=config.model.head_width,
            dtype=config.model.dtype,
            dropout=config.model.attention_probs_dropout_prob,
            packed=False,
            backend=None,
        )

    @classmethod
    def sequences_per_row(cls, config) -> int:
        """So many sequences of tokens are a row."""
        del config
        return 1

    @classmethod
    def flops_per_row(cls, config):
        return cls.sequences_per_row(config) * _flops(config.model, config.data.seq_length)

    @classmethod
    def tokens_per_row(cls, config):
        return cls.sequences_per_row(config) * config.data.seq_length

    def flops_of(self, metrics):
        sequences = self._config.train.batch_size * self.sequences_per_row(self._config)
        length = round(metrics["padded_tokens"] / sequences)
        of_sequence = _flops(self._config.model, length)
        if self.distillation:  # whose forward pass is a third of a training step
            of_sequence += _flops(self.distillation.model.config, length) / 3
        return sequences * of_sequence

    def _head_output(self, params, rows, dropout_keys=None, inputs: dict | None = None) -> Any:
        """What the first head gives of rows; `inputs`: of its own."""
        return self._output(params, rows, dropout_keys, inputs).logits[self.model.heads[0]]

    def _seen(self, params, rows, dropout_keys=None, model: Albert | None = None) -> Seen:
        """What the task's model, or another one with the same head or none, makes of rows."""
        output = self._output(params, rows, dropout_keys, None, model)
        return Seen(output.logits.get(self.model.heads[0]), output.last_hidden_state)

    def _output(
        self,
        params,
        rows,
        dropout_keys=None,
        inputs: dict | None = None,
        model: Albert | None = None,
    ) -> AlbertOutput:
        """What encoder and heads give of rows; `inputs`: of the first head; `model`: None for the
        task's own."""
        if self.program is not None and model is None:
            return AlbertOutput(None, None, None, None, self.program(rows))
        model = self.model if model is None else model
        first = model.heads[0] if model.heads else None
        of_heads = {head: dict(inputs or {}) if head == first else {} for head in model.heads}
        if dropout_keys is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, _HEAD_STREAM)
            for head, own in of_heads.items():
                if "dropout" in model.head_fields.get(head, {}):
                    own["keys"] = keys
        output: Any = model.apply(
            {"params": params},
            rows["input_ids"],
            rows["attention_mask"],
            rows["token_type_ids"],
            head_inputs=of_heads,
            dropout_keys=dropout_keys,
        )
        return output

    @staticmethod
    def _flat(rows, dropout_keys=None) -> tuple[dict, Any]:
        """Rows of several sequences, [B, S, L], as B S rows of one, and a dropout key for each."""
        count = rows["input_ids"].shape[1]
        if dropout_keys is not None:
            keys = jax.vmap(lambda key: jax.random.split(key, count))(dropout_keys)
            dropout_keys = keys.reshape(-1)
        flat = {name: rows[name].reshape(-1, rows[name].shape[-1]) for name in _INPUTS}
        return flat, dropout_keys

    def taught(self, rows, teacher):
        if self.distillation is None:
            return rows
        return rows | {TAUGHT: self._seen(teacher, rows, model=self.distillation.model)}

    def teacher_problems(self, config, teacher):
        return taught_vocabulary_problems(config, self.tokenizer, teacher)

    def changes(self, saved):
        now = self.description()
        told = self.deciding | {"examples": "digest of the training examples"}
        refused = [
            f"  data: {what}: {saved.get(name)} -> {now[name]}"
            for name, what in told.items()
            if saved.get(name) != now[name]
        ]
        if saved.get("held_out") == now["held_out"]:
            return refused, []
        return refused, ["  held-out examples: figures before and after do not compare"]

    def check_drawn(self, saved: dict | None) -> None:
        """Raises SourceError where held-out examples are drawn from those of training, and are not
        those that the run with this description did not learn from."""
        now = self.description()["held_out"]
        if self.draws_held_out(self._config) and saved and saved.get("held_out", now) != now:
            raise SourceError(
                "data.dev is empty, so that held-out examples are drawn from data.train, which has "
                "changed since the run began: it has learned from some of those that would be "
                "drawn now. Bring the file back, or name other examples with --config.data.dev."
            )

    def _enough(self) -> "FineTuning":
        """The task itself; raises SourceError where it has less rows than a batch."""
        rows = self.rows.rows_per_epoch if self.rows else 0
        if rows < self._config.train.batch_size:
            raise SourceError(
                f"The training examples give {rows} rows, fewer than one batch of "
                f"{self._config.train.batch_size}. Lower train.batch_size."
            )
        return self


def _flops(model: AlbertConfig, length: int) -> float:
    """Model FLOPs of one training step for a sequence of this length; see `encoder_flops`. The
    pooler is counted, heads are not."""
    h = model.hidden_size
    return length * encoder_flops(model, length) + 6 * h * h


def taught_label_problems(config, labels: Sequence[str], teacher: Weights) -> list[str]:
    """A sentence where a teacher does not tell these labels apart, in this order."""
    if tuple(labels) == tuple(teacher.labels):
        return []
    return [
        f"the labels of distillation.teacher, {config.distillation.teacher}, are "
        f"{', '.join(teacher.labels) or 'without names'} and those of the data "
        f"{', '.join(labels)}: they must be the same, in the same order. Fine-tune the teacher on "
        "this task with this project, which keeps their names"
    ]


def digest_of(examples: Sequence | None) -> str:
    """Digits that change with any of some examples, which are tuples."""
    text = json.dumps([tuple(example) for example in examples or ()])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def whole_within(of_rows: np.ndarray, rows: int, what: str) -> tuple[int, list[str]]:
    """How many of the first examples have all of their rows among the first `rows`, at least one.

    Args:
      of_rows: int [n], the number of each row's example, from 0, in their order.
      rows: `train.eval_rows`.
      what: the examples, in the plural.

    Returns:
      (how many, a line for people where that is not all of them).
    """
    count = int(of_rows[-1]) + 1
    if len(of_rows) <= rows:
        return count, []
    whole = max(int(of_rows[rows]), 1)
    told = f"dev: judged by the first {whole:,} of {count:,} {what} (train.eval_rows)."
    return whole, [told] if whole < count else []


def held_out(examples: list, fraction: float, seed: int) -> tuple[list, list]:
    """(training, held out); which ones depends on their number and the seed alone.

    Raises SourceError where there would be none of either.
    """
    count = round(len(examples) * fraction)
    if not 0 < count < len(examples):
        raise SourceError(
            f"data.dev_fraction {fraction} of {len(examples)} examples are {count}: both training "
            "and held-out examples are needed."
        )
    order = np.random.default_rng((_HELD_OUT_STREAM, seed)).permutation(len(examples))
    chosen = set(order[:count].tolist())
    return (
        [example for row, example in enumerate(examples) if row not in chosen],
        [example for row, example in enumerate(examples) if row in chosen],
    )
