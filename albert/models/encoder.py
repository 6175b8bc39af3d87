"""ALBERT: factorised embeddings, one layer applied at every depth, a pooler, and heads by name.

The letters of shapes are those of `albert/models/layers.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from albert.models import attention, exits, rotary
from albert.models.attention import xla
from albert.models.config import AUTO_DTYPE, DTYPES, AlbertConfig
from albert.models.heads import HEADS
from albert.models.layers import Dense, LayerNorm, LayerStack, dropout, in_use, initializer

_DEPTH_STREAM = 3  # of a row's key; layers and embeddings take 0 and 1, a task's head 2


@flax.struct.dataclass
class Encoded:
    """What the encoder makes of rows."""

    last_hidden_state: jax.Array  # [B, L, H]
    pooled_output: jax.Array  # [B, H], or [B, K, H] of packed rows
    pooled_before: jax.Array | None  # [N - 1, B, H]: the same of all depths but the last
    hidden_states: jax.Array | None  # [N + 1, B, L, H]: the input of the layers, then every output
    attention_entropy: jax.Array | None  # float32 [N, B, A, L], in nats
    word_embeddings: jax.Array  # [V, E], which heads may share


@flax.struct.dataclass
class AlbertOutput:
    """What the model returns; a field that was not asked for, or whose head a loaded checkpoint
    lacks, is None."""

    last_hidden_state: jax.Array | None  # [B, L, H]
    pooled_output: jax.Array | None  # [B, H], or [B, K, H] of packed rows
    hidden_states: jax.Array | None  # [N + 1, B, L, H]: the input of the layers, then every output
    attention_entropy: jax.Array | None  # float32 [N, B, A, L], in nats
    logits: dict[str, jax.Array]  # by the head's name

    @property
    def mlm_logits(self) -> jax.Array | None:
        """float32 [B, P, V], or [B, L, V] when no positions were given."""
        return self.logits.get("mlm")

    @property
    def sop_logits(self) -> jax.Array | None:
        """float32 [B, 2] or [B, K, 2]: in order, swapped."""
        return self.logits.get("sop")

    @property
    def classifier_logits(self) -> jax.Array | None:
        """float32 [B, labels]."""
        return self.logits.get("classifier")


class Embeddings(nn.Module):
    """Word + token type + position, LayerNorm, dropout: all of width E."""

    config: AlbertConfig

    def setup(self):
        c = self.config

        def table(name, axis, entries):
            drawn = initializer(c, axis, "embed")
            found = self.param(name, drawn, (entries, c.embedding_size), DTYPES[c.param_dtype])
            return in_use(found, axis, "embed")

        self.word_embeddings = table("word_embeddings", "vocab", c.vocab_size)
        self.token_type_embeddings = table("token_type_embeddings", "token_type", c.type_vocab_size)
        if c.positions == "learned":
            self.position_embeddings = table(
                "position_embeddings", "position", c.max_position_embeddings
            )
        self.layer_norm = LayerNorm("embed", c)

    def __call__(self, input_ids, token_type_ids, position_ids=None, keys=None):
        """int [B, L] each -> [B, L, E]; `position_ids` None counts from 0; `keys`: for dropout.

        Ids are checked where data enters, not here.
        """
        length = input_ids.shape[1]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence of length {length} is longer than the model has positions, "
                f"max_position_embeddings {self.config.max_position_embeddings}"
            )
        x = self.word_embeddings[input_ids] + self.token_type_embeddings[token_type_ids]
        if self.config.positions == "learned":
            positions = slice(length) if position_ids is None else position_ids
            x += self.position_embeddings[positions]
        x = self.layer_norm(x)
        return dropout(
            x.astype(DTYPES[self.config.dtype]), self.config.hidden_dropout_prob, keys, 0
        )


def drawn_depths(keys: jax.Array, config: AlbertConfig) -> jax.Array:
    """How many layers each row takes in training, evenly from `least_depth` to all: keys [B] ->
    int32 [B].

    So that the model serves at any of these depths; random depths as in Fan et al. 2019, arXiv
    1909.11556, but always the first layers, and drawn for each row, so that what is learned depends
    neither on the mesh nor on the parts that a batch is computed in.
    """
    least, most = config.least_depth, config.depth
    return jax.vmap(lambda key: jax.random.randint(key, (), least, most + 1))(keys)


class Encoder(nn.Module):
    """Embeddings, layers and pooler."""

    config: AlbertConfig

    def setup(self):
        c = self.config
        if c.dtype == AUTO_DTYPE:
            raise ValueError(
                f"model.dtype is {AUTO_DTYPE!r}, which a training run replaces at its start; name "
                f"one of {', '.join(DTYPES)}"
            )
        self.embeddings = Embeddings(c)
        self.encoder = LayerStack(c)
        self.pooler = Dense((c.hidden_size, c.hidden_size), ("hidden", "pooled"), c)

    def __call__(
        self,
        input_ids,
        attention_mask,
        token_type_ids,
        *,
        segment_ids=None,
        position_ids=None,
        cls_positions=None,
        dropout_keys=None,
        output_hidden_states=False,
        output_attention_entropy=False,
        output_pooled_before=False,
    ) -> Encoded:
        """Runs the encoder.

        Args:
          input_ids: int [B, L], each in [0, V).
          attention_mask: [B, L], 1 for a token and 0 for padding, which stands behind the tokens.
          token_type_ids: int [B, L], 0 for the first segment and 1 for the second.
          segment_ids: int [B, L] of packed rows: tokens see those with the same number only.
          position_ids: int [B, L] of packed rows, each in [0, max_position_embeddings).
          cls_positions: int [B, K] of packed rows: where its K examples begin; all are pooled.
          dropout_keys: random keys [B], one for each row; None turns dropout off, and every row
            takes all layers.
          output_hidden_states: also return the layers' input and every layer's output.
          output_attention_entropy: also return the entropy of every layer's attention.
          output_pooled_before: also return what the pooler makes of all depths but the last; of
            rows that are not packed.

        Raises:
          ValueError: L is over `max_position_embeddings`, or what all depths give is asked for of
            packed rows.
        """
        c = self.config
        if output_pooled_before and cls_positions is not None:
            raise ValueError("what the pooler makes of every depth is there for unpacked rows only")
        layer_keys = embedding_keys = depths = None
        if dropout_keys is not None:
            fold = jax.vmap(jax.random.fold_in, (0, None))
            layer_keys, embedding_keys = fold(dropout_keys, 0), fold(dropout_keys, 1)
            if c.least_depth:
                depths = drawn_depths(fold(dropout_keys, _DEPTH_STREAM), c)
        x = self.embeddings(input_ids, token_type_ids, position_ids, embedding_keys)
        rate = c.attention_probs_dropout_prob if dropout_keys is not None else 0.0
        most = input_ids.shape[1] if cls_positions is None else cls_positions.shape[1]
        visible = self._visible(attention_mask, rate, segment_ids, most, position_ids)
        entropy_bias = (
            xla.prepare(attention_mask, segment_ids) if output_attention_entropy else None
        )
        hidden, hidden_states, firsts, entropies = self.encoder(
            x,
            visible,
            layer_keys,
            entropy_bias,
            output_hidden_states,
            output_pooled_before,
            depths=depths,
        )
        if cls_positions is None:
            first = hidden[:, 0]
        else:
            first = jnp.take_along_axis(hidden, cls_positions[:, :, None], axis=1)
        return Encoded(
            last_hidden_state=hidden,
            pooled_output=jnp.tanh(self.pooler(first)),
            hidden_states=hidden_states,
            attention_entropy=entropies,
            word_embeddings=self.embeddings.word_embeddings,
            pooled_before=None if firsts is None else jnp.tanh(self.pooler(firsts[:-1])),
        )

    def until(self, input_ids, attention_mask, token_type_ids, state, look):
        """Runs layers until every row has what it needs, and the pooler behind each of them.

        Args:
          input_ids, attention_mask, token_type_ids: as above.
          state, look: of `LayerStack`, but `look` is given the pooled output, [B, H].

        Returns:
          The last state.
        """
        c = self.config
        x = self.embeddings(input_ids, token_type_ids)
        visible = self._visible(attention_mask, 0.0, None, input_ids.shape[1])
        # Of a module that belongs to no other, since a loop of jax runs it.
        pooler = Dense((c.hidden_size, c.hidden_size), ("hidden", "pooled"), c, parent=None)
        params = {"params": self.pooler.variables["params"]}

        def look_at(state, depth, first):
            pooled: Any = pooler.apply(params, first)
            return look(state, depth, jnp.tanh(pooled))

        return self.encoder(x, visible, None, None, until=(state, look_at))

    def _visible(
        self, attention_mask, dropout_rate: float, segment_ids, most: int, position_ids=None
    ):
        """Who sees whom, and the kernel, and by how much queries and keys are turned; `most`:
        examples in a row at most."""
        c = self.config
        use = attention.Use(
            length=attention_mask.shape[1],
            head_dim=c.head_width,
            dtype=c.dtype,
            dropout=dropout_rate,
            packed=segment_ids is not None,
            backend=None,
        )
        visible = attention.prepare(
            c.attention, attention.here(use), attention_mask, segment_ids, most
        )
        if c.positions == "learned":
            return visible
        if position_ids is None:
            position_ids = jnp.arange(attention_mask.shape[1])[None]
        turns = rotary.turns(position_ids, c.head_width)
        return dataclasses.replace(visible, turns=turns)


class Albert(nn.Module):
    """An encoder and the heads of a task.

    The encoder's parameters lie beside the heads', as "embeddings", "encoder" and "pooler"; those
    of a head below its name and "_head".
    """

    config: AlbertConfig
    heads: tuple[str, ...] = ("mlm", "sop")  # names in `albert.models.heads.HEADS`
    # Fields of heads that have some: {"classifier": {"labels": 3}}.
    head_fields: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)

    def setup(self):
        self.trunk = Encoder(self.config)
        nn.share_scope(self, self.trunk)
        for name in self.heads:
            if name not in HEADS:
                raise ValueError(f"there is no head {name!r}; there is {', '.join(HEADS)}")
            if self.heads.count(name) > 1:
                raise ValueError(f"heads is {self.heads}: {name} twice")
            fields = self.head_fields.get(name, {})
            setattr(self, f"{name}_head", HEADS[name](self.config, **fields))

    def __call__(self, *rows, head_inputs=None, **more) -> AlbertOutput:
        """Runs the encoder and every head.

        Args:
          rows, more: what `Encoder` takes.
          head_inputs: what heads take beside the encoder's output, by the head's name: a dict of
            arrays such as {"mlm": {"positions": int [B, P]}}.
        """
        encoded = self.trunk(*rows, **more, output_pooled_before="exits" in self.heads)
        inputs = head_inputs or {}
        return AlbertOutput(
            last_hidden_state=encoded.last_hidden_state,
            pooled_output=encoded.pooled_output,
            hidden_states=encoded.hidden_states,
            attention_entropy=encoded.attention_entropy,
            logits={
                name: getattr(self, f"{name}_head")(encoded, **inputs.get(name, {}))
                for name in self.heads
            },
        )

    def leave(self, input_ids, attention_mask, token_type_ids, exit: exits.Exit, real=None):
        """What the classifier of the depth says at which each row leaves.

        Layers are run until the last row has left; what a row gets is what its own depth gave.

        Args:
          input_ids, attention_mask, token_type_ids: as `Encoder` takes them.
          exit: when a row leaves; one that `exits.problem` finds nothing wrong with.
          real: bool [B], False for rows of padding, which nobody waits for; None: all are real.

        Returns:
          float32 [B, labels]; and how many layers each row took, int32 [B].
        """
        c, rows = self.config, input_ids.shape[0]
        kind, labels = self.classifier_head.kind, self.classifier_head.labels
        kernels, biases = (
            jnp.stack([exit_of[leaf] for exit_of in self.every_exit]) for leaf in ("kernel", "bias")
        )
        classifier = Dense(
            (c.hidden_size, labels), ("pooled", "label"), c, dtype=jnp.float32, parent=None
        )

        def look(seen, depth, pooled):
            params = {"kernel": kernels[depth], "bias": biases[depth]}
            seen = exits.look(exit, kind, seen, depth, classifier.apply({"params": params}, pooled))
            return seen, seen.left

        left = jnp.zeros(rows, bool) if real is None else ~real
        start = exits.Seen(
            jnp.zeros((rows, labels), jnp.float32),
            jnp.zeros(rows, jnp.int32),
            jnp.zeros(rows, jnp.int32),
            left,
        )
        seen = self.trunk.until(input_ids, attention_mask, token_type_ids, start, look)
        return seen.logits, seen.depth

    @property
    def every_exit(self) -> list[dict]:
        """Kernel and bias of the classifier of every depth, the last one's behind the others."""
        before = self.exits_head.variables["params"]
        last = self.classifier_head.variables["params"]
        return [*(before[f"depth_{n}"] for n in range(1, self.config.depth)), last]


def init_params(model: nn.Module, key: jax.Array):
    """A new parameter tree, each leaf boxed with its logical axis names."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return model.init({"params": key}, ids, ids, ids)["params"]


def abstract_params(model: nn.Module, init: Callable = init_params):
    """Shapes, dtypes and logical axis names of every parameter, without making any.

    `init`: what makes them, a function of (model, key).
    """
    if not isinstance(model, Albert):  # of a user's task, and perhaps not hashable
        return _trace_params(model, init)
    frozen = model.clone(head_fields=flax.core.freeze(model.head_fields))
    boxed = _albert_params(frozen, init, jax.sharding.get_abstract_mesh())
    return jax.tree.map(lambda x: x, boxed)


@lru_cache(maxsize=64)  # the same is asked for several times, and tracing takes half a second
def _albert_params(model: Albert, init: Callable, mesh):
    del mesh  # what is traced may depend on it
    return _trace_params(model, init)


def _trace_params(model: nn.Module, init: Callable):
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda k: init(model, k), key)
