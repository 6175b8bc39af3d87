"""Learning from a teacher beside the labels: from what it says of the same rows, and from how it
relates their tokens.

Sources: Hinton et al. 2015, arXiv 1503.02531, section 2, for the soft labels. Wang et al. 2020 and
2021, MiniLM, arXiv 2002.10957, section 3.2, and 2012.15828, section 3.1, for the relations; theirs
are of the queries, keys and values of a layer, here they are of the last hidden states.

The letters of shapes are those of `albert/models/layers.py`; here A is the number of parts into
which hidden states are cut.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from albert.models import lean
from albert.models.encoder import Albert

TAUGHT = "taught"  # of rows: what the teacher makes of them, a `Seen`
_UNSEEN = -1e30  # score of a token that is not seen


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """The section `distillation` of a config. What is None has its value where unset."""

    teacher: str  # anything that albert.load takes; empty: there is none
    logits: float | None  # share of the loss that the teacher's soft labels have: 0.5
    temperature: float | None  # of these: 2
    relations: float | None  # weight of the relations' loss: 0, there is none
    relation_heads: int | None  # parts of the hidden states: model.num_attention_heads

    @property
    def share(self) -> float:
        """Of the soft labels in the loss of what has both: from 0 to 1."""
        return 0.5 if self.logits is None else self.logits

    @property
    def at_temperature(self) -> float:
        return 2.0 if self.temperature is None else self.temperature

    @property
    def relation_weight(self) -> float:
        return 0.0 if self.relations is None else self.relations

    def parts(self, attention_heads: int) -> int:
        """Into which hidden states are cut; `attention_heads`: of the student."""
        return attention_heads if self.relation_heads is None else self.relation_heads

    def problems(self) -> list[str]:
        """What is wrong with the fields, one sentence each."""
        fields = ("logits", "temperature", "relations", "relation_heads")
        said = [name for name in fields if getattr(self, name) is not None]
        if not self.teacher:
            return [
                f"{name} is {getattr(self, name)} and teacher is empty: nothing reads it; name the "
                "model to learn from, or set it to None"
                for name in said
            ]
        found = []
        if not 0 <= self.share <= 1:
            found.append(f"logits is {self.logits}; it must be from 0 to 1, a share of the loss")
        if self.at_temperature <= 0:
            found.append(f"temperature is {self.temperature}; it must be positive")
        if self.relation_weight < 0:
            found.append(f"relations is {self.relations}; it must not be negative")
        if self.relation_heads is not None and self.relation_heads < 1:
            found.append(f"relation_heads is {self.relation_heads}; it must be at least 1")
        if not self.share and not self.relation_weight:
            found.append("logits and relations are 0: nothing is learned from the teacher")
        elif not self.share and self.temperature is not None:
            found.append(
                f"temperature is {self.temperature} and logits 0: nothing reads it; set it to None"
            )
        if not self.relation_weight and self.relation_heads is not None:
            found.append(
                f"relation_heads is {self.relation_heads} and relations 0: nothing reads it; set "
                "it to None"
            )
        return found


class Seen(NamedTuple):
    """What a model makes of rows, as far as a student and its teacher are compared."""

    logits: Any  # float32, of the head that is taught; None where the model lacks it
    hidden: Any  # [B, L, H], the last hidden states


def soft_terms(kind: str, logits, others, temperature: float):
    """How far logits are from a teacher's, so that the gradient's size does not depend on the
    temperature.

    Args:
      kind: of `albert.models.kinds.KINDS`: cross entropy of classes and of a choice; the mean
        binary cross entropy of several labels; of a number the squared difference, which has no
        temperature.
      logits: float32 [..., C].
      others: the teacher's.

    Returns:
      float32 [...]; no gradient goes to `others`.
    """
    others = jax.lax.stop_gradient(others)
    if kind == "number":
        return jnp.square(logits - others)[..., 0]
    if kind == "several":
        scaled = logits / temperature
        each = jax.nn.softplus(scaled) - scaled * jax.nn.sigmoid(others / temperature)
        return temperature**2 * each.mean(-1)
    return temperature**2 * lean.soft_cross_entropy(logits, others, temperature)


def visible_keys(attention_mask, segment_ids=None):
    """Which tokens each token sees: bool [B, 1, 1 or L, L]. attention_mask: [B, L]; segment_ids:
    int [B, L] of packed rows."""
    seen = attention_mask[:, None, None, :] > 0
    if segment_ids is None:
        return seen
    return seen & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])


def relation_terms(hidden, others, visible, parts: int):
    """How far the relations of each token to those that it sees are from a teacher's: the KL
    divergence of softmax(x x^T / sqrt(D)), x a part of the hidden states, the mean over the parts.

    Neither width, depth nor heads of the two models need to be equal, and no map is learned.

    Args:
      hidden: [B, L, H].
      others: the teacher's, [B, L, another H]; both widths are multiples of `parts`.
      visible: of `visible_keys`.

    Returns:
      float32 [B, L]; no gradient goes to `others`.
    """
    scores = _relations(hidden, visible, parts)
    wanted = jax.lax.stop_gradient(_relations(others, visible, parts))
    entropy = lean.soft_cross_entropy(wanted, wanted, 1.0)
    return (lean.soft_cross_entropy(scores, wanted, 1.0) - entropy).mean(1)


def _relations(hidden, visible, parts: int):
    """[B, L, H] -> float32 [B, A, L, L]."""
    rows, length, width = hidden.shape
    x = hidden.reshape(rows, length, parts, width // parts)
    scores = lean.scores(x, x, "BLAD,BMAD->BALM") / math.sqrt(width // parts)
    return jnp.where(visible, scores, _UNSEEN)


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How a task learns from a teacher: its part of sums, loss and metrics.

    Attributes:
      model: the teacher, without dropout; its parameters are given with every step.
      share: of the soft labels in the loss of what has both; the labels have the rest.
      temperature: of the soft labels.
      relations: weight of the relations' loss, which comes on top.
      parts: into which hidden states are cut for them.
      digest: changes with any number of the teacher.
    """

    model: Albert
    share: float
    temperature: float
    relations: float
    parts: int
    digest: str = ""

    def denominators(self, batch) -> dict[str, jax.Array]:
        """What the relations' sum over the whole batch is divided by: its tokens."""
        return {"tokens": batch["attention_mask"].sum().astype(jnp.float32)}

    def sums(self, kind: str, seen: Seen, taught: Seen, weights, rows) -> dict[str, jax.Array]:
        """Sums over rows: scalars.

        Args:
          kind: what the logits mean; see `soft_terms`.
          seen, taught: what student and teacher make of the rows.
          weights: float32 [...], how much each of the logits' terms counts.
          rows: "attention_mask", [B, L] like the hidden states, and "segment_ids" of packed ones.
        """
        found = {}
        if self.share:
            terms = soft_terms(kind, seen.logits, taught.logits, self.temperature)
            found["soft"] = (terms * weights).sum()
        if self.relations:
            mask = rows["attention_mask"]
            visible = visible_keys(mask, rows.get("segment_ids"))
            terms = relation_terms(seen.hidden, taught.hidden, visible, self.parts)
            found["relations"] = (terms * mask).sum()
        return found

    def loss(self, hard, sums, denominators, scale) -> jax.Array:
        """The loss that labels and teacher give together; linear in `hard` and `sums`.

        Args:
          hard: of the labels alone.
          scale: what their sum was multiplied by, and that of the soft labels is.
        """
        loss = (1 - self.share) * hard
        if self.share:
            loss += self.share * sums["soft"] * scale
        if self.relations:
            loss += self.relations * sums["relations"] / jnp.maximum(denominators["tokens"], 1.0)
        return loss

    def metrics(self, hard, sums, denominators, scale) -> dict[str, jax.Array]:
        """The terms of the loss apart, none of them weighted."""
        found = {"hard_loss": hard}
        if self.share:
            found["soft_loss"] = sums["soft"] * scale
        if self.relations:
            tokens = jnp.maximum(denominators["tokens"], 1.0)
            found["relation_loss"] = sums["relations"] / tokens
        return found

    def line(self, metrics: dict[str, float]) -> str:
        """What the console says of these."""
        names = {"hard_loss": "hard", "soft_loss": "soft", "relation_loss": "relations"}
        return "  ".join(f"{word} {metrics[n]:.3f}" for n, word in names.items() if n in metrics)
