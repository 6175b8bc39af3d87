"""Sizes and numerics of a model, and what each of them may be.

The letters are those of `albert/model.py`: E embedding size, H hidden size, N layers.
"""

import dataclasses

import jax
import jax.numpy as jnp

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),  # the released program's, with tanh
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),  # what Hugging Face names "gelu"
    "relu": jax.nn.relu,
}
# What the backward pass may keep of each layer instead of computing it again.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # dense outputs are kept
    "full": jax.checkpoint_policies.nothing_saveable,  # only the layer's input is kept
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclasses.dataclass(frozen=True)
class AlbertConfig:
    """Sizes and numerics of a model; the names down to `initializer_range` are those of
    `albert_config.json`."""

    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    num_hidden_groups: int  # sets of weights; layer l uses set l * groups // layers
    inner_group_num: int  # layers in one set, applied one after the other at every step
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str  # a key of ACTIVATIONS
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    max_position_embeddings: int
    type_vocab_size: int
    initializer_range: float
    map_equal_embeddings: bool  # E -> H even where E = H, as Hugging Face has it
    dtype: str  # of activations and products; LayerNorm, softmax and losses are always float32
    param_dtype: str  # of parameters, their gradients and the optimiser's moments
    remat: str  # a key of REMAT_POLICIES

    def problems(self) -> list[str]:
        """What is wrong with the sizes, one sentence each; empty when the model can be built."""
        found = []
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers",
                     "num_hidden_groups", "inner_group_num", "num_attention_heads",
                     "intermediate_size", "max_position_embeddings",
                     "type_vocab_size"):  # fmt: skip
            if getattr(self, name) < 1:
                found.append(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        choices = {"hidden_act": ACTIVATIONS, "dtype": DTYPES, "param_dtype": DTYPES,
                   "remat": REMAT_POLICIES}  # fmt: skip
        for name, legal in choices.items():
            if getattr(self, name) not in legal:
                found.append(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(legal)}"
                )
        if self.initializer_range <= 0:
            found.append(f"initializer_range is {self.initializer_range}; it must be positive")
        if found:
            return found
        if self.hidden_size % self.num_attention_heads:
            found.append(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.num_hidden_groups > self.num_hidden_layers:
            found.append(
                f"num_hidden_groups {self.num_hidden_groups} is more than "
                f"num_hidden_layers {self.num_hidden_layers}: some weights would never be used"
            )
        return found

    @property
    def maps_embeddings(self) -> bool:
        """Whether a dense layer E -> H stands between embeddings and encoder."""
        return self.map_equal_embeddings or self.embedding_size != self.hidden_size

    @property
    def group_lengths(self) -> list[int]:
        """How many consecutive steps each group of weights is applied for; sums to N.

        The released program computes int(l / N * G) in floating point; integers give the
        same groups wherever that has no rounding error.
        """
        groups = [
            layer * self.num_hidden_groups // self.num_hidden_layers
            for layer in range(self.num_hidden_layers)
        ]
        return [groups.count(group) for group in range(self.num_hidden_groups)]
