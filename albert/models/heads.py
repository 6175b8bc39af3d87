"""Heads by name: what a task computes from the encoder's output.

A head is a flax module of the model's config and of fields of its own, such as a number of labels.
It is called with the encoder's output (`Encoded`) and with inputs of its own by keyword, all of
them optional. Its parameters lie below its name and "_head".
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from albert.models.config import ACTIVATIONS, DTYPES, AlbertConfig
from albert.models.layers import Dense, dropout, layer_norm, zeros


class MaskedLanguageModel(nn.Module):
    """Dense H -> E, activation, LayerNorm, times the word embeddings, plus a bias."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, encoded, positions=None):
        """`positions`: int [B, P], where to predict; None predicts everywhere.

        Returns float32 [B, P, V], or [B, L, V].
        """
        c = self.config
        hidden = encoded.last_hidden_state
        if positions is not None:
            hidden = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
        sizes = c.hidden_size, c.embedding_size
        x = Dense(sizes, ("hidden", "embed"), c, name="transform")(hidden)
        x = layer_norm(c, "embed", "layer_norm")(ACTIVATIONS[c.hidden_act](x))
        dtype = DTYPES[c.dtype]
        logits = jnp.einsum(
            "BPE,VE->BPV",
            x.astype(dtype),
            encoded.word_embeddings.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        bias = self.param("output_bias", zeros("vocab"), (c.vocab_size,), DTYPES[c.param_dtype])
        return logits + bias.astype(jnp.float32)


class SentenceOrder(nn.Module):
    """A dense layer on the pooled output: in order or swapped, in float32."""

    config: AlbertConfig

    def setup(self):
        width = self.config.hidden_size
        self.linear = Dense((width, 2), ("pooled", "label"), self.config, dtype=jnp.float32)
        nn.share_scope(self, self.linear)

    def __call__(self, encoded):
        """Returns float32 [B, 2], or [B, K, 2] of packed rows."""
        return self.linear(encoded.pooled_output)


# What a classifier tells: one of several classes; a number, which is its one logit; or any of
# several labels, each by itself. A choice is one logit for each of several candidates, each a row.
KINDS = ("classes", "number", "several", "choice")


class Classifier(nn.Module):
    """Dropout and a dense layer on the pooled output, in float32."""

    config: AlbertConfig
    labels: int
    dropout: float = 0.0
    kind: str = "classes"  # of KINDS: what the logits mean

    def setup(self):
        shape = self.config.hidden_size, self.labels
        self.linear = Dense(shape, ("pooled", "label"), self.config, dtype=jnp.float32)
        nn.share_scope(self, self.linear)

    def __call__(self, encoded, keys=None):
        """`keys`: random keys [B], one for each row; None turns dropout off.

        Returns float32 [B, labels].
        """
        return self.linear(dropout(encoded.pooled_output, self.dropout, keys, 0))


HEADS: dict[str, type[nn.Module]] = {
    "mlm": MaskedLanguageModel,
    "sop": SentenceOrder,
    "classifier": Classifier,
}


def label_probabilities(kind: str, logits: np.ndarray) -> np.ndarray:
    """What a classifier's logits, [..., labels], are worth: probabilities of classes, which add up
    to 1, or of each of several labels. In NumPy."""
    if kind == "several":
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
