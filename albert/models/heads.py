"""Heads by name: what a task computes from the encoder's output.

A head is a flax module of the model's config, called with the encoder's output (`Encoded`) and with
inputs of its own by keyword, all of them optional. Its parameters lie below its name and "_head".
"""

import flax.linen as nn
import jax.numpy as jnp

from albert.models.config import ACTIVATIONS, DTYPES, AlbertConfig
from albert.models.layers import Dense, layer_norm, zeros


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


HEADS: dict[str, type[nn.Module]] = {"mlm": MaskedLanguageModel, "sop": SentenceOrder}
