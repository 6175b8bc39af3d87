"""What a task is: everything that training and evaluation must know of what is learned.

The loop, the step and the run's machinery name no loss, metric, head or field of a batch: they ask
the task. A task is one file here, one line in `albert.tasks.TASKS`, one section of the config
(`config.data`) and one config.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax
import numpy as np

from albert.data.loader import Rows
from albert.data.tokenizer import Tokenizer
from albert.interop.weights import Weights
from albert.models.attention import Use
from albert.models.config import AlbertConfig
from albert.models.encoder import abstract_params, init_params
from albert.tasks.distillation import Distillation, DistillationConfig
from albert.tasks.pictures import Draw

Batch = dict[str, Any]  # arrays by field, each with the rows as its first axis


class RunConfig(Protocol):
    """What a task reads of a run's config (`albert.train.config.Config`)."""

    @property
    def seed(self) -> int: ...
    @property
    def init_from(self) -> str: ...
    @property
    def model(self) -> AlbertConfig: ...
    @property
    def data(self) -> Any: ...
    @property
    def train(self) -> Any: ...
    @property
    def distillation(self) -> DistillationConfig: ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures of parameters over rows that are the same every time.

    Attributes:
      name: of its group in the logs, such as "valid".
      rows: what to evaluate on.
      num_rows: so many of them, from the first.
      step: (params, batch) -> a tree of arrays; a pure function, compiled once. Rows of padding
        must count for nothing, or be left out by `figures`.
      figures: that tree over all rows, as NumPy arrays -> figures by name.
      line: figures -> what the console says of them during training.
      table: (of what, such as "at step 80", figures) -> what programs print at the end.
      gathers: False: `step` gives sums, which are added up over batches, in float64. True: it
        gives arrays with the rows as their first axis, which are put one behind the other on every
        process, without padding: for metrics that are no sums.
      every: steps between evaluations; None: `train.eval_every`. The last step always is.
      pictures: that tree over all rows -> pictures by name, where it gathers and has some.
    """

    name: str
    rows: Rows
    num_rows: int
    step: Callable[[Any, Batch], Any]
    figures: Callable[[Any], dict[str, float]]
    line: Callable[[dict[str, float]], str]
    table: Callable[[str, dict[str, float]], str]
    gathers: bool = False
    every: int | None = None
    pictures: Callable[[Any], dict[str, Draw]] | None = None


@dataclasses.dataclass(frozen=True)
class Samples:
    """What the model makes of a few held-out rows, for people to read.

    Attributes:
      rows, num_rows: as in `Evaluation`.
      step: (params, batch) -> an array with the rows as its first axis.
      heading: a line above them.
      lines: (batch, that array, most) -> at most so many lines.
    """

    rows: Rows
    num_rows: int
    step: Callable[[Any, Batch], Any]
    heading: str
    lines: Callable[[dict[str, np.ndarray], np.ndarray, int], list[str]]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What the model makes of rows, as files.

    Attributes:
      rows, num_rows: as in `Evaluation`.
      step: (params, batch) -> a tree of arrays with the rows as their first axis.
      files: that tree over all rows, without padding -> name of a file, such as "MRPC.tsv" -> its
        lines.
    """

    rows: Rows
    num_rows: int
    step: Callable[[Any, Batch], Any]
    files: Callable[[Any], Mapping[str, Iterable[str]]]


@dataclasses.dataclass(frozen=True)
class Best:
    """The figure by which the best checkpoints are kept."""

    evaluation: str
    figure: str
    higher_is_better: bool = False

    def loss(self, figures: dict[str, dict[str, float]]) -> float | None:
        """The figure so that lower is better; None where it was not evaluated."""
        value = figures.get(self.evaluation, {}).get(self.figure)
        return None if value is None else -value if self.higher_is_better else value


class Task(abc.ABC):
    """What is learned, with its data.

    An instance is made by `prepare` to train, or by `to_evaluate`. Its attributes:

      model: a flax module; `init` draws its parameters.
      rows: of training; None where it was made to evaluate.
      evaluations: by which the model is judged.
      samples: or None.
      predictions: made by `to_evaluate`; files to write beside the figures.
      best: the figure that decides which checkpoints are kept.
      tokenizer: whose copy lies in the workdir; None where there is none.
      workers: processes that make batches; 0: a thread.
      opening: lines that tell of the data when a run starts.
      distillation: how it learns from a teacher beside the data, set by whoever trains it; None:
        there is no teacher.
    """

    Section: ClassVar[type]  # of `config.data`: a frozen dataclass with `problems() -> list[str]`
    # Metrics that are amounts, logged per second as well; the console shows the first.
    amounts: ClassVar[tuple[str, ...]] = ()
    # What is loaded and evaluated of a run unless a step is named: its best checkpoint, by `best`,
    # or its newest.
    serves_best: ClassVar[bool] = False
    # The head whose logits a teacher may teach; empty: the task learns from no teacher. One that
    # does has `taught`, and adds the part of `distillation` to its sums, loss and metrics.
    taught_head: ClassVar[str] = ""

    model: nn.Module
    rows: Rows | None
    evaluations: Sequence[Evaluation]
    samples: Samples | None = None
    predictions: Sequence[Predictions] = ()
    best: Best
    tokenizer: Tokenizer | None = None
    workers: int = 0
    opening: Sequence[str] = ()
    distillation: Distillation | None = None

    # Asked before there is any data or device.

    @classmethod
    def problems(cls, config: RunConfig, needs_text: bool) -> list[str]:
        """What is wrong with the task's section beside the others, one sentence each, and with the
        data that it names where they are needed. Looks for files and reads none."""
        del config, needs_text
        return []

    @classmethod
    def start_problems(cls, config: RunConfig, start: Weights) -> list[str]:
        """Why the model that `config.init_from` names does not fit the task's data."""
        del config, start
        return []

    @classmethod
    def evaluation_problems(cls, config: RunConfig, model: Weights) -> list[str]:
        """Why a model that is no run of this task cannot be evaluated by this config."""
        del config, model
        return []

    @classmethod
    def attention_use(cls, config: RunConfig) -> Use | None:
        """What the task asks of the attention kernel, wherever it runs; None: nothing that could be
        refused."""
        del config
        return None

    @classmethod
    def unused(cls, config: RunConfig) -> tuple[str, ...]:
        """Parts of the model that it does not use, such as "pooler": they stay as they are."""
        del config
        return ()

    @classmethod
    @abc.abstractmethod
    def make_model(cls, config: RunConfig, saved: dict | None = None) -> nn.Module:
        """The model with the task's heads.

        Args:
          saved: what `description` was in the checkpoint of a run; None: there is none, and what
            only the data tells, such as a number of labels, is not known yet.
        """

    @classmethod
    def kept(cls, config: RunConfig) -> tuple[str, ...]:
        """Parts of the model that training leaves as they are."""
        return cls.unused(config)

    @classmethod
    def init(cls, model: nn.Module, key: jax.Array):
        """New parameters, each leaf boxed with its logical axis names."""
        return init_params(model, key)

    @classmethod
    def abstract_params(cls, model: nn.Module):
        """Shapes, dtypes and logical axis names of every parameter, without making any."""
        return abstract_params(model, cls.init)

    @classmethod
    @abc.abstractmethod
    def flops_per_row(cls, config: RunConfig) -> float:
        """Model FLOPs of one training step for each row."""

    @classmethod
    @abc.abstractmethod
    def tokens_per_row(cls, config: RunConfig) -> int:
        """Positions of a row, padding among them."""

    @classmethod
    def head_bytes_per_row(cls, config: RunConfig) -> int:
        """Estimate of what the heads keep of a row for the backward pass."""
        del config
        return 0

    # Makers.

    @classmethod
    @abc.abstractmethod
    def prepare(
        cls, config: RunConfig, workdir: Path, saved: dict | None, start: Weights | None
    ) -> "Task":
        """Reads or makes the data of a run.

        Args:
          config: checked.
          workdir: of the run.
          saved: what `description` was in the checkpoint to resume from; None: there is none.
          start: the model of `config.init_from`, in a run's first start.

        Raises:
          SourceError, VocabularyError: the data cannot be used.
        """

    @classmethod
    @abc.abstractmethod
    def to_evaluate(
        cls,
        config: RunConfig,
        tokenizer: Tokenizer | None,
        saved: dict | None,
        model: Weights | None = None,
    ) -> "Task":
        """The evaluations alone, of a model that is there.

        Args:
          config: its `data` names what to evaluate on; its `model` is that model's.
          tokenizer: the model's vocabulary.
          saved: what `description` was for its run; None where it is not a run's.
          model: what is evaluated, where it is not a run's: figures that need a part which it
            lacks (`model.missing`) are left out.

        Raises:
          SourceError, VocabularyError: the data cannot be used.
        """

    # Pure functions of one step. The parts of a batch add up: `sums` are additive over rows, and
    # `loss` is linear in them. A task whose rows need the others of their batch says in `problems`
    # that it knows no parts (`train.accumulation`, `train.microbatch`, `train.reduce_dtype`,
    # `sharding.slices`).

    @abc.abstractmethod
    def denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """What sums over the whole batch are divided by: scalars."""

    @abc.abstractmethod
    def sums(self, params, rows: Batch, dropout_keys: jax.Array | None) -> dict[str, jax.Array]:
        """Sums over rows: scalars.

        Args:
          params: unboxed.
          rows: some rows of the batch.
          dropout_keys: random keys, one for each row; None turns dropout off.
        """

    def taught(self, rows: Batch, teacher) -> Batch:
        """Some rows of the batch, and with them what the teacher makes of them: what `sums` takes.

        Args:
          teacher: the parameters of `distillation.model`, unboxed; None: there is no teacher.
        """
        del teacher
        return rows

    @abc.abstractmethod
    def loss(self, sums, denominators) -> jax.Array:
        """The loss, or the share of it that these sums contribute: linear in `sums`."""

    def metrics(self, sums, denominators) -> dict[str, jax.Array]:
        """What to log of a step beside its loss: means, and the names of `amounts`."""
        del sums, denominators
        return {}

    def flops_of(self, metrics: dict[str, float]) -> float | None:
        """Model FLOPs of a step with these metrics; None: those of rows of `tokens_per_row`."""
        del metrics
        return None

    def line(self, metrics: dict[str, float]) -> str:
        """What the console says of logged metrics behind the loss."""
        del metrics
        return ""

    # What a run is.

    def teacher_problems(self, config: RunConfig, teacher: Weights) -> list[str]:
        """Why a model with the task's head cannot teach what the data tells, one sentence each."""
        del config, teacher
        return []

    def left_out(self, start: Weights) -> Sequence[str]:
        """Parts of a model to start from that are not taken, such as "classifier_head"."""
        del start
        return ()

    def description(self) -> dict:
        """What decides its rows, as JSON: saved with every checkpoint."""
        return {}

    def changes(self, saved: dict) -> tuple[list[str], list[str]]:
        """What sets this data apart from those of the run that was saved.

        Args:
          saved: the description there.

        Returns:
          Lines on what forbids to resume, and on what is only told.
        """
        del saved
        return [], []
