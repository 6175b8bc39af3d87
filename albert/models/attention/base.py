"""What an attention kernel is."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Use(NamedTuple):
    """What a run asks of a kernel."""

    length: int  # L
    head_dim: int  # D
    dtype: str  # of activations
    dropout: float  # of attention probabilities
    packed: bool  # rows hold several examples
    backend: str | None  # "cpu", "gpu", "tpu"; None: not known yet


@dataclasses.dataclass(frozen=True)
class Kernel:
    """softmax(q k^T / sqrt(D)) v, over the tokens that each token may see.

    Attributes:
      prepare: (attention_mask int [B, L], segment_ids int [B, L] or None) -> what `attend` needs to
        know of who sees whom. Called once, in front of the first layer.
      attend: (q, k, v [B, L, A, D], what `prepare` gave, dropout) -> [B, L, A, D]. `dropout` maps
        probabilities [B, A, L, L] to probabilities; None where there is no dropout.
      problems: what it cannot serve of a `Use`, one sentence each.
    """

    prepare: Callable[[jax.Array, jax.Array | None], Any]
    attend: Callable[..., jax.Array]
    problems: Callable[[Use], list[str]]
