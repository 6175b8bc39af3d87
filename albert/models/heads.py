"""Heads by name: what a task computes from the encoder's output.

A head is a flax module of the model's config and of fields of its own, such as a number of labels.
It is called with the encoder's output (`Encoded`) and with inputs of its own by keyword, all of
them optional. Its parameters lie below its name and "_head".
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from albert.models import lean
from albert.models.config import ACTIVATIONS, DTYPES, AlbertConfig
from albert.models.layers import Dense, LayerNorm, dropout, in_use, initializer, zeros


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
        x = LayerNorm("embed", c, name="layer_norm")(ACTIVATIONS[c.hidden_act](x))
        x = x.astype(DTYPES[c.dtype])
        logits = lean.scores(x, encoded.word_embeddings, "BPE,VE->BPV")
        bias = self.param("output_bias", zeros("vocab"), (c.vocab_size,), DTYPES[c.param_dtype])
        return logits + in_use(bias, "vocab").astype(jnp.float32)


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


class Classifier(nn.Module):
    """Dropout and a dense layer on the pooled output, in float32."""

    config: AlbertConfig
    labels: int
    dropout: float = 0.0
    kind: str = "classes"  # of `kinds.KINDS`: what the logits mean

    def setup(self):
        shape = self.config.hidden_size, self.labels
        self.linear = Dense(shape, ("pooled", "label"), self.config, dtype=jnp.float32)
        nn.share_scope(self, self.linear)

    def __call__(self, encoded, keys=None):
        """`keys`: random keys [B], one for each row; None turns dropout off.

        Returns float32 [B, labels].
        """
        return self.linear(dropout(encoded.pooled_output, self.dropout, keys, 0))


class Exits(nn.Module):
    """A classifier on the pooled output of every depth but the last, whose is `Classifier`; all by
    the one pooler.

    Source: Zhou et al. 2020, arXiv 2006.04152.
    """

    config: AlbertConfig
    labels: int
    dropout: float = 0.0

    def setup(self):
        shape = self.config.hidden_size, self.labels
        for depth in range(1, self.config.depth):
            one = Dense(shape, ("pooled", "label"), self.config, dtype=jnp.float32)
            setattr(self, f"depth_{depth}", one)

    def __call__(self, encoded, keys=None):
        """`keys`: random keys [B], one for each row; None turns dropout off.

        Returns float32 [B, N - 1, labels].
        """
        logits = []
        # The stream of depth 0 is the classifier's.
        for depth, pooled in enumerate(encoded.pooled_before, 1):
            linear = getattr(self, f"depth_{depth}")
            logits.append(linear(dropout(pooled, self.dropout, keys, depth)))
        return jnp.stack(logits, 1)


class Tokens(nn.Module):
    """Dropout and a dense layer on every token, in float32: what each is."""

    config: AlbertConfig
    labels: int
    dropout: float = 0.0

    def setup(self):
        shape = self.config.hidden_size, self.labels
        self.linear = Dense(shape, ("hidden", "label"), self.config, dtype=jnp.float32)
        nn.share_scope(self, self.linear)

    def __call__(self, encoded, keys=None):
        """`keys`: random keys [B], one for each row; None turns dropout off.

        Returns float32 [B, L, labels].
        """
        return self.linear(dropout(encoded.last_hidden_state, self.dropout, keys, 0))


class Span(nn.Module):
    """A dense layer on every token, in float32: where an answer starts, and where it ends."""

    config: AlbertConfig

    def setup(self):
        shape = self.config.hidden_size, 2
        self.linear = Dense(shape, ("hidden", "label"), self.config, dtype=jnp.float32)
        nn.share_scope(self, self.linear)

    def __call__(self, encoded):
        """Returns logits, float32 [B, L, 2]."""
        return self.linear(encoded.last_hidden_state)


class _OnPairs(nn.Module):
    """A dense layer on two vectors put together, without putting them together: one of them may be
    the same for many of the other."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, a, b):
        """[..., H] and [..., H] -> float32 [..., H]."""
        h = self.config.hidden_size
        dtype = DTYPES[self.config.param_dtype]
        kernel = self.param(
            "kernel", initializer(self.config, "hidden", "pooled"), (2 * h, h), dtype
        )
        bias = self.param("bias", zeros("pooled"), (h,), dtype)
        kernel, bias = in_use(kernel, "hidden", "pooled"), in_use(bias, "pooled")
        return a @ kernel[:h] + b @ kernel[h:] + bias


BEAMS = 5  # starts of an answer that are followed, and ends for each


def outside_of_paragraph(attention_mask, token_type_ids):
    """bool [B, L]: where an answer may not stand. It may in the second segment without its [SEP],
    and at [CLS], which means that there is none."""
    position = jnp.arange(attention_mask.shape[1])
    last = attention_mask.sum(1, keepdims=True) - 1
    return ~((token_type_ids > 0) & (position < last)) & (position > 0)


class ConditionalSpan(nn.Module):
    """Where an answer starts; where it ends, given its start; and whether there is none. Float32.

    Source: `get_model_predictions_v2` of `squad_utils.py`, google-research/albert: logits of start
    from X; of end from tanh and LayerNorm of a dense layer on X and X[start]; of no answer from
    tanh of a dense layer on sum(softmax(start) X) and X[0], X the sequence.
    """

    config: AlbertConfig
    dropout: float = 0.0  # in front of the last layer of the answerability
    threshold: float = 0.0  # no answer where "none" is over it: for whoever uses the model

    def setup(self):
        c = self.config
        last = (c.hidden_size, 1), ("pooled", "label")
        self.start = Dense((c.hidden_size, 1), ("hidden", "label"), c, dtype=jnp.float32)
        self.end_pairs = _OnPairs(c)
        self.end_layer_norm = LayerNorm("pooled", c)
        self.end = Dense(*last, c, dtype=jnp.float32)
        self.answer_pairs = _OnPairs(c)
        self.answer = Dense(*last, c, dtype=jnp.float32, has_bias=False)

    def __call__(self, encoded, mask=None, starts=None, keys=None, beams=(BEAMS, BEAMS)):
        """The heads' log-probabilities and logits.

        Args:
          encoded: of the encoder.
          mask: bool [B, L], True where an answer may neither start nor end; None: nowhere.
          starts: int [B], the true starts; None: the likeliest are followed.
          keys: random keys [B]; None turns dropout off.
          beams: starts that are followed, and ends for each.

        Returns:
          With `starts`: "start" and "end", float32 [B, L]. Without: the beams "start_index",
          "start", [B, S], and "end_index", "end", [B, S * E], start by start. Both: "none", [B],
          positive where there is no answer.
        """
        x = encoded.last_hidden_state.astype(jnp.float32)
        beams = tuple(min(size, x.shape[1]) for size in beams)
        if mask is None:
            mask = jnp.zeros(x.shape[:2], bool)

        def masked(logits, where):
            return jax.nn.log_softmax(jnp.where(where, -1e30, logits))

        start = masked(self.start(x)[..., 0], mask)
        expected = jnp.einsum("BL,BLH->BH", jnp.exp(start), x)
        hidden = jnp.tanh(self.answer_pairs(expected, x[:, 0]))
        none = self.answer(dropout(hidden, self.dropout, keys, 0))[:, 0]

        def ends(at):
            """Log-probabilities of ends for starts [B, S]: [B, S, L]."""
            begun = jnp.take_along_axis(x, at[..., None], axis=1)
            pairs = self.end_pairs(x[:, None], begun[:, :, None])
            return masked(self.end(self.end_layer_norm(jnp.tanh(pairs)))[..., 0], mask[:, None])

        if starts is not None:
            return {"start": start, "end": ends(starts[:, None])[:, 0], "none": none}
        top, at = jax.lax.top_k(start, beams[0])
        top_ends, ends_at = jax.lax.top_k(ends(at), beams[1])
        flat = x.shape[0], beams[0] * beams[1]
        return {
            "start": top,
            "start_index": at,
            "end": top_ends.reshape(flat),
            "end_index": ends_at.reshape(flat),
            "none": none,
        }


# What a text's one vector is of: the mean over all its tokens, [CLS] and [SEP] among them; the
# pooler's output; or the last hidden state of [CLS].
POOLING = ("mean", "pooled", "cls")


def pool(pooling: str, last_hidden_state, pooled_output, attention_mask):
    """One vector of each row, by a name of POOLING: float32 [B, H].

    Args:
      last_hidden_state: [B, L, H].
      pooled_output: [B, H].
      attention_mask: [B, L], 1 for a token.
    """
    if pooling == "pooled":
        return pooled_output.astype(jnp.float32)
    hidden = last_hidden_state.astype(jnp.float32)
    if pooling == "cls":
        return hidden[:, 0]
    weights = attention_mask[:, :, None].astype(jnp.float32)
    return (hidden * weights).sum(1) / weights.sum(1)


class Sentence(nn.Module):
    """The vector of a text; and, for training alone, what stands behind it: dropout and, with
    `projection`, a dense layer and tanh in float32, which Gao et al. 2021 (arXiv 2104.08821) train
    with and leave out afterwards."""

    config: AlbertConfig
    pooling: str = "mean"  # of POOLING: what whoever loads the model takes, too
    projection: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, encoded, attention_mask=None, keys=None):
        """`attention_mask`: [B, L], None where all are tokens; `keys`: random keys [B], one for
        each row, None turns dropout off.

        Returns "vector" and, of it, "projected": float32 [B, H] each.
        """
        hidden = encoded.last_hidden_state
        mask = jnp.ones(hidden.shape[:2]) if attention_mask is None else attention_mask
        vector = pool(self.pooling, hidden, encoded.pooled_output, mask)
        projected = dropout(vector, self.dropout, keys, 0)
        if self.projection:
            shape = self.config.hidden_size, self.config.hidden_size
            dense = Dense(
                shape, ("hidden", "pooled"), self.config, dtype=jnp.float32, name="projection"
            )
            projected = jnp.tanh(dense(projected))
        return {"vector": vector, "projected": projected}


HEADS: dict[str, type[nn.Module]] = {
    "mlm": MaskedLanguageModel,
    "sop": SentenceOrder,
    "classifier": Classifier,
    "exits": Exits,
    "tokens": Tokens,
    "span": Span,
    "conditional_span": ConditionalSpan,
    "sentence": Sentence,
}


def has_parameters(name: str, fields: Mapping) -> bool:
    """Whether a head with these fields has parameters, which a checkpoint may lack."""
    return name != "sentence" or bool(fields.get("projection"))
