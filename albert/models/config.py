"""Sizes and numerics of a model, and what each of them may be.

The letters are those of `albert/models/layers.py`: E embedding size, H hidden size, N layers.
"""

import dataclasses

import jax
import jax.numpy as jnp

from albert.models import lean
from albert.models import sharing as parameter_sharing
from albert.models.attention import AUTO, KERNELS
from albert.runtime.fields import ConfigError, build

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),  # the released program's, with tanh
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),  # what Hugging Face names "gelu"
    "relu": jax.nn.relu,
}
# What the backward pass may keep of each layer instead of computing it again.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(lean.DENSE),  # dense outputs are kept
    "full": jax.checkpoint_policies.nothing_saveable,  # only the layer's input is kept
}
POSITIONS = ("learned", "rotary")
AUTO_DTYPE = "auto"  # of a config whose dtype is chosen where it runs; of no model that is built
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


# Fields that came after the first version, and what a model did that was described without them.
ADDED = {"attention": "xla", "scan_unroll": 1, "least_depth": 0, "positions": "learned"}


@dataclasses.dataclass(frozen=True)
class AlbertConfig:
    """Sizes and numerics of a model; the names down to `initializer_range` are those of
    `albert_config.json`."""

    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    sharing: str  # which layers have the same weights; see `albert.models.sharing`
    per_layer_norm: bool  # every depth has LayerNorms and biases of its own
    lora_rank: int  # of a difference to shared kernels that every depth has for itself; 0: none
    inner_group_num: int  # layers in one set, applied one after the other at every step
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str  # a key of ACTIVATIONS
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    # In training each row takes so many layers as are drawn for it, from this to all; 0: all.
    least_depth: int
    max_position_embeddings: int
    positions: str  # learned, a table as released, or rotary; see `albert.models.rotary`
    type_vocab_size: int
    initializer_range: float
    map_equal_embeddings: bool  # E -> H even where E = H, as Hugging Face has it
    attention: str  # auto, or a key of albert.models.attention.KERNELS
    # Of activations and products, or AUTO_DTYPE; LayerNorm, softmax and losses are always float32.
    dtype: str
    param_dtype: str  # of parameters, their gradients and the optimizer's moments
    remat: str  # a key of REMAT_POLICIES
    scan_unroll: int  # layers that are written out in the program of the loop over the depth

    def problems(self) -> list[str]:
        """What is wrong with the sizes, one sentence each; empty when the model can be built."""
        found = []
        for name in (
            "vocab_size",
            "embedding_size",
            "hidden_size",
            "num_hidden_layers",
            "inner_group_num",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            if getattr(self, name) < 1:
                found.append(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        choices = {
            "hidden_act": ACTIVATIONS,
            "dtype": (AUTO_DTYPE, *DTYPES),
            "param_dtype": DTYPES,
            "remat": REMAT_POLICIES,
            "attention": (AUTO, *KERNELS),
            "positions": POSITIONS,
        }
        for name, legal in choices.items():
            if getattr(self, name) not in legal:
                found.append(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(legal)}"
                )
        if not 1 <= self.scan_unroll <= max(self.depth, 1):
            found.append(
                f"scan_unroll is {self.scan_unroll}; it must be from 1, a loop over the layers, to "
                f"{self.depth}, all of them written out"
            )
        if not 0 <= self.least_depth <= max(self.depth, 0):
            found.append(
                f"least_depth is {self.least_depth}; it must be from 1 to {self.depth}, the layers "
                "of the model, or 0 to train with all of them always"
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
        elif self.positions == "rotary" and self.head_width % 2:
            found.append(
                f"positions is rotary and a head is {self.head_width} wide (hidden_size / "
                "num_attention_heads); it turns pairs of numbers, so that must be even"
            )
        found += parameter_sharing.problems(self.sharing, self.num_hidden_layers)
        widest = min(self.hidden_size, self.intermediate_size)
        if not 0 <= self.lora_rank <= widest:
            found.append(
                f"lora_rank is {self.lora_rank}; it must be from 0 to {widest}, the smaller of "
                "hidden_size and intermediate_size: no kernel has a higher rank"
            )
        elif self.lora_rank and not found and not any(map(self.low_rank, (True, False))):
            found.append(
                f"lora_rank is {self.lora_rank} and sharing {self.sharing!r}: a difference to "
                "shared weights needs weights that are shared; set lora_rank to 0"
            )
        return found

    @property
    def maps_embeddings(self) -> bool:
        """Whether a dense layer E -> H stands between embeddings and encoder."""
        return self.map_equal_embeddings or self.embedding_size != self.hidden_size

    @property
    def head_width(self) -> int:
        """D."""
        return self.hidden_size // self.num_attention_heads

    @property
    def depth(self) -> int:
        """Layers that an input passes through."""
        return self.num_hidden_layers * self.inner_group_num

    def leaf_sets(self, leaf: str) -> tuple[int, ...]:
        """Which entry of a layer's parameter each depth uses; `depth` numbers from 0 on.

        `leaf` is a path below a layer, such as "attention/query/kernel".
        """
        if parameter_sharing.is_of_one_depth(leaf, self.per_layer_norm):
            return tuple(range(self.depth))
        return self._tables[0 if parameter_sharing.is_attention(leaf) else 1]

    def low_rank(self, attention: bool) -> int:
        """Rank of the differences of the attention kernels, or the feed-forward's; 0: none."""
        table = self._tables[0 if attention else 1]
        return self.lora_rank if len(set(table)) < self.depth else 0

    @property
    def _tables(self):
        return parameter_sharing.tables(self.sharing, self.num_hidden_layers, self.inner_group_num)


def model_from_json(values: dict) -> AlbertConfig:
    """The model of a config that was made plain; raises ConfigError."""
    problems: list[str] = []
    config = build(AlbertConfig, ADDED | values, "model.", problems)
    if config is not None:
        problems += [f"model.{text}" for text in config.problems()]
    if problems:
        raise ConfigError(problems)
    return config
