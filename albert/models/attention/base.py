"""What an attention kernel is."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax


class Use(NamedTuple):
    """What a run, or one program of it, asks of a kernel."""

    length: int  # L
    head_dim: int  # D
    dtype: str  # of activations
    dropout: float  # of attention probabilities
    packed: bool  # rows hold several examples
    backend: str | None  # "cpu", "gpu", "tpu"; None: not known yet
    capability: str = ""  # of a GPU, as its maker counts: "9.0"; empty: not known


@flax.struct.dataclass
class Visible:
    """Who sees whom, for the kernel that it was prepared for, and where they stand."""

    kernel: str = flax.struct.field(pytree_node=False)  # a key of KERNELS
    prepared: Any = None
    # What `rotary.turns` gave; None: queries and keys are not turned.
    turns: tuple[jax.Array, jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """softmax(q k^T / sqrt(D)) v, over the tokens that each token may see.

    Attributes:
      prepare: (attention_mask int [B, L], segment_ids int [B, L] or None, the most examples in a
        row) -> what `attend` needs to know of who sees whom. Called once, in front of the first
        layer. Padding stands behind the tokens of a row, and segments follow one another.
      attend: (q, k, v [B, L, A, D], what `prepare` gave, dropout) -> [B, L, A, D]. `dropout` maps
        probabilities [B, A, L, L] to probabilities; None where there is no dropout. What comes out
        for padding is finite and nothing else.
      problems: what it cannot serve of a `Use`, one sentence each.
      kept: (heads A, head width D, length L, bytes of an activation) -> bytes for each token that
        the backward pass needs of a layer, beside q, k, v and what comes out.
    """

    prepare: Callable[[jax.Array, jax.Array | None, int], Any]
    attend: Callable[..., jax.Array]
    problems: Callable[[Use], list[str]]
    kept: Callable[[int, int, int, int], int]


def kept_by_fused(heads: int, head_dim: int, length: int, item: int) -> int:
    """`Kernel.kept` of a kernel that computes probabilities again: its own result, and a float32
    log-sum-exp for each head."""
    del length
    return item * heads * head_dim + 4 * heads


def not_without_dropout(name: str, dropout: Callable | None) -> None:
    """Raises ValueError when a kernel that has no probabilities is given dropout of them."""
    if dropout is not None:
        raise ValueError(f"the attention kernel {name!r} has no dropout; use 'xla'")
