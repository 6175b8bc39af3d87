"""ALBERT: factorised embeddings, one layer applied at every depth, two pretraining heads.

Shapes, here and in every docstring of the package:
    B batch    L sequence length    P masked positions per sequence    V vocabulary
    E embedding size    H hidden size    A heads    D = H/A    I feed-forward width    N layers
    K examples in a packed row    R rank of a low-rank difference

Source of every formula: Lan et al. 2019 (arXiv 1909.11942) and the released program,
google-research/albert. Where the two differ, the program decides.
"""

import math
from collections.abc import Iterable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from albert.models.config import ACTIVATIONS, DTYPES, REMAT_POLICIES, AlbertConfig

LAYER_NORM_EPSILON = 1e-12


@flax.struct.dataclass
class AlbertOutput:
    """What the model returns; a field that was not asked for, or whose head a loaded checkpoint
    lacks, is None."""

    last_hidden_state: jax.Array  # [B, L, H]
    pooled_output: jax.Array | None  # [B, H], or [B, K, H] of packed rows
    hidden_states: jax.Array | None  # [depth + 1, B, L, H]: the encoder's input, every layer
    mlm_logits: jax.Array | None  # float32 [B, P, V], or [B, L, V] when no positions were given
    sop_logits: jax.Array | None  # float32 [B, 2] or [B, K, 2]: in order, swapped


def _initializer(config, *axes):
    """Truncated normal cut at two sigma, carrying its logical axis names."""
    init = nn.initializers.truncated_normal(config.initializer_range)
    return nn.with_logical_partitioning(init, axes)


def _zeros(*axes):
    return nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)


class Dense(nn.Module):
    """x @ kernel + bias over the last axes of x, the parameters cast where they are used.

    The cast happens inside the scanned layer, so the gradient of a shared kernel is summed over
    depth in param_dtype, not in the compute dtype.
    """

    shape: tuple[int, ...]  # of the kernel: contracted axes of x, then the axes of the result
    axes: tuple[str, ...]  # their logical names
    config: AlbertConfig
    contracted: int = 1
    dtype: jnp.dtype | None = None  # None: the config's
    rank: int = 0  # of a difference to the kernel, x @ a @ b; it begins as zero

    @nn.compact
    def __call__(self, x):
        dtype = self.dtype or DTYPES[self.config.dtype]
        param_dtype = DTYPES[self.config.param_dtype]
        kernel = self.param(
            "kernel", _initializer(self.config, *self.axes), self.shape, param_dtype
        )
        bias = self.param(
            "bias",
            _zeros(*self.axes[self.contracted :]),
            self.shape[self.contracted :],
            param_dtype,
        )
        x = x.astype(dtype)

        product = jnp.tensordot(x, kernel.astype(dtype), axes=self.contracted)
        if self.rank:
            ends = self.shape[: self.contracted], self.shape[self.contracted :]
            names = self.axes[: self.contracted], self.axes[self.contracted :]
            a = self.param(
                "lora_a",
                _initializer(self.config, *names[0], "rank"),
                (*ends[0], self.rank),
                param_dtype,
            )
            b = self.param("lora_b", _zeros("rank", *names[1]), (self.rank, *ends[1]), param_dtype)
            narrow = jnp.tensordot(x, a.astype(dtype), axes=self.contracted)
            product += jnp.tensordot(narrow, b.astype(dtype), axes=1)
        return product + bias.astype(dtype)


def _layer_norm(config, axis, name):
    return nn.LayerNorm(
        epsilon=LAYER_NORM_EPSILON,
        dtype=jnp.float32,
        param_dtype=DTYPES[config.param_dtype],
        use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits the released program keeps
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), (axis,)),
        bias_init=_zeros(axis),
        name=name,
    )


class Embeddings(nn.Module):
    """Word + token type + position, LayerNorm, dropout: all of width E."""

    config: AlbertConfig

    def setup(self):
        c = self.config
        dtype = DTYPES[c.param_dtype]
        self.word_embeddings = self.param(
            "word_embeddings",
            _initializer(c, "vocab", "embed"),
            (c.vocab_size, c.embedding_size),
            dtype,
        )
        self.token_type_embeddings = self.param(
            "token_type_embeddings",
            _initializer(c, "token_type", "embed"),
            (c.type_vocab_size, c.embedding_size),
            dtype,
        )
        self.position_embeddings = self.param(
            "position_embeddings",
            _initializer(c, "position", "embed"),
            (c.max_position_embeddings, c.embedding_size),
            dtype,
        )
        self.layer_norm = _layer_norm(c, "embed", "layer_norm")
        self.dropout = nn.Dropout(c.hidden_dropout_prob)

    def __call__(self, input_ids, token_type_ids, position_ids, deterministic):
        """int [B, L] each -> [B, L, E]; `position_ids` None counts from 0.

        Ids are checked where data enters, not here.
        """
        length = input_ids.shape[1]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence of length {length} is longer than the position table, "
                f"max_position_embeddings {self.config.max_position_embeddings}"
            )
        x = self.word_embeddings[input_ids] + self.token_type_embeddings[token_type_ids]
        positions = slice(length) if position_ids is None else position_ids
        x = self.layer_norm(x + self.position_embeddings[positions])
        return self.dropout(x.astype(DTYPES[self.config.dtype]), deterministic=deterministic)


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(D) + bias) v, with dropout on the probabilities."""

    config: AlbertConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x, bias):
        """[B, L, H], float32 [B, 1, 1 or L, L] -> [B, L, H]."""
        c = self.config
        h, a, d = c.hidden_size, c.num_attention_heads, c.hidden_size // c.num_attention_heads
        axes, rank = ("hidden", "heads", "head_dim"), c.low_rank(attention=True)
        q, k, v = (
            Dense((h, a, d), axes, c, rank=rank, name=n)(x) for n in ("query", "key", "value")
        )
        q, k, v = (
            nn.with_logical_constraint(t, ("batch", "length", "heads", "head_dim"))
            for t in (q, k, v)
        )
        scores = jnp.einsum("BLAD,BMAD->BALM", q, k, preferred_element_type=jnp.float32)
        probabilities = jax.nn.softmax(scores / math.sqrt(d) + bias)
        # In nats, [B, A, L]: of use to who asks for intermediates, and not computed otherwise.
        self.sow("intermediates", "entropy", jax.scipy.special.entr(probabilities).sum(-1))
        probabilities = nn.Dropout(
            c.attention_probs_dropout_prob, deterministic=self.deterministic
        )(probabilities.astype(q.dtype))
        context = jnp.einsum("BALM,BMAD->BLAD", probabilities, v)
        axes = ("heads", "head_dim", "hidden")
        return Dense((a, d, h), axes, c, contracted=2, rank=rank, name="output")(context)


class Layer(nn.Module):
    """Post-LayerNorm transformer layer: a = LN(x + drop(att(x))), y = LN(a + drop(ffn(a)))."""

    config: AlbertConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x, bias):
        """[B, L, H], float32 [B, 1, 1 or L, L] -> [B, L, H]."""
        c = self.config
        dropout = nn.Dropout(c.hidden_dropout_prob, deterministic=self.deterministic)
        attended = SelfAttention(c, self.deterministic, name="attention")(x, bias)
        a = _layer_norm(c, "hidden", "attention_layer_norm")(x + dropout(attended))
        a = a.astype(x.dtype)
        sizes, rank = (c.hidden_size, c.intermediate_size), c.low_rank(attention=False)
        h = Dense(sizes, ("hidden", "mlp"), c, rank=rank, name="intermediate")(a)
        h = nn.with_logical_constraint(h, ("batch", "length", "mlp"))
        h = ACTIVATIONS[c.hidden_act](h)
        h = Dense(sizes[::-1], ("mlp", "hidden"), c, rank=rank, name="output")(h)
        y = _layer_norm(c, "hidden", "output_layer_norm")(a + dropout(h)).astype(x.dtype)
        return nn.with_logical_constraint(y, ("batch", "length", "hidden"))


def init_layers(key: jax.Array, config: AlbertConfig):
    """The parameters of one `Layer`, each with an axis in front: one entry for each set.

    Leaves are boxed with their logical axis names, "layers" the first of them.
    """
    x = jnp.zeros((1, 1, config.hidden_size), DTYPES[config.dtype])
    bias = jnp.zeros((1, 1, 1, 1))

    def one(key):
        return flatten_dict(Layer(config, True).init({"params": key}, x, bias)["params"], sep="/")

    counts = {leaf: max(config.leaf_sets(leaf)) + 1 for leaf in jax.eval_shape(one, key)}
    drawn = {n: jax.vmap(one)(jax.random.split(key, n)) for n in set(counts.values())}
    return unflatten_dict(
        {
            leaf: drawn[n][leaf].add_axis(0, {nn.meta.PARTITION_NAME: "layers"})
            for leaf, n in counts.items()
        },
        sep="/",
    )


def keep_all_but_weights(stacks: Iterable[jax.Array]):
    """A remat policy: the backward pass picks and casts weights again, as cheap as reading them.

    Otherwise the scan would keep what it picked, a copy of the weights for every depth. Nothing
    else is computed again; an activation that happens to have the shape of a weight costs a little.
    """
    shapes = set()
    for stack in stacks:
        shapes |= {stack.shape, (1, *stack.shape[1:]), stack.shape[1:]}

    def policy(primitive, *operands, **parameters):
        return not (operands and operands[0].shape in shapes)

    return policy


class LayerStep(nn.Module):
    """One depth of the encoder, as a body for `nn.scan`: picks its weights, applies the layer."""

    config: AlbertConfig
    deterministic: bool
    keep_hidden: bool

    @nn.compact
    def __call__(self, x, depth, own, shared, bias):
        """[B, L, H], int [], leaves of this depth, leaves [sets, ...], bias -> the next x."""

        def pick(leaf, entries):
            sets = self.config.leaf_sets(leaf)
            entry = jnp.asarray(sets)[depth] if len(entries) > 1 else 0
            return entries[entry]

        weights = own | {leaf: pick(leaf, entries) for leaf, entries in shared.items()}
        rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
        x, found = Layer(self.config, self.deterministic, parent=None).apply(
            {"params": unflatten_dict(weights, sep="/")},
            x,
            bias,
            rngs=rngs,
            mutable=["intermediates"],
        )
        for values in jax.tree.leaves(found):
            self.sow("intermediates", "attention_entropy", values)  # [B, A, L]
        return x, (x if self.keep_hidden else None)


class Encoder(nn.Module):
    """The mapping E -> H, if any, then one layer scanned over the depth.

    Parameters that every depth has for itself are scanned along; the others are the same arrays at
    every depth, or entries of them, so that their gradient is summed in the scan and no copy of
    them is ever made for each depth.
    """

    config: AlbertConfig

    @nn.compact
    def __call__(self, x, bias, deterministic, keep_hidden):
        """[B, L, E], float32 [B, 1, 1 or L, L] -> [B, L, H], every layer's [depth + 1, B, L, H]."""
        c = self.config
        if c.maps_embeddings:
            sizes = c.embedding_size, c.hidden_size
            x = Dense(sizes, ("embed", "hidden"), c, name="embedding_hidden_mapping_in")(x)
        x = nn.with_logical_constraint(x, ("batch", "length", "hidden"))
        layers = flatten_dict(self.param("layers", init_layers, c), sep="/")
        own = {leaf: p for leaf, p in layers.items() if c.leaf_sets(leaf) == tuple(range(c.depth))}
        shared = {leaf: p for leaf, p in layers.items() if leaf not in own}
        policy = REMAT_POLICIES[c.remat] or keep_all_but_weights(layers.values())
        step = nn.scan(
            nn.remat(LayerStep, prevent_cse=False, policy=policy),
            # Without this, values sown inside the layer vanish silently.
            variable_axes={"intermediates": 0},
            split_rngs={"dropout": True},  # a mask of its own for every depth
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=c.depth,
        )
        last, states = step(c, deterministic, keep_hidden, name="step")(
            x, jnp.arange(c.depth), own, shared, bias
        )
        return last, (jnp.concatenate([x[None], states]) if keep_hidden else None)


class MaskedLMHead(nn.Module):
    """Dense H -> E, activation, LayerNorm, times the word embeddings, plus a bias."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, hidden, word_embeddings):
        """[B, P, H], [V, E] -> float32 [B, P, V]."""
        c = self.config
        sizes = c.hidden_size, c.embedding_size
        x = Dense(sizes, ("hidden", "embed"), c, name="transform")(hidden)
        x = _layer_norm(c, "embed", "layer_norm")(ACTIVATIONS[c.hidden_act](x))
        dtype = DTYPES[c.dtype]
        logits = jnp.einsum(
            "BPE,VE->BPV",
            x.astype(dtype),
            word_embeddings.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        bias = self.param("output_bias", _zeros("vocab"), (c.vocab_size,), DTYPES[c.param_dtype])
        return logits + bias.astype(jnp.float32)


class Albert(nn.Module):
    """The encoder with its pooler and both pretraining heads."""

    config: AlbertConfig

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(c)
        self.encoder = Encoder(c)
        self.pooler = Dense((c.hidden_size, c.hidden_size), ("hidden", "pooled"), c)
        self.mlm_head = MaskedLMHead(c)
        self.sop_head = Dense((c.hidden_size, 2), ("pooled", "label"), c, dtype=jnp.float32)

    def __call__(
        self,
        input_ids,
        attention_mask,
        token_type_ids,
        mlm_positions=None,
        segment_ids=None,
        position_ids=None,
        cls_positions=None,
        *,
        deterministic=True,
        output_hidden_states=False,
    ) -> AlbertOutput:
        """Runs the encoder and both heads.

        Args:
          input_ids: int [B, L], each in [0, V).
          attention_mask: [B, L], 1 for a token and 0 for padding.
          token_type_ids: int [B, L], 0 for the first segment and 1 for the second.
          mlm_positions: int [B, P], where to predict; None predicts everywhere.
          segment_ids: int [B, L] of packed rows: tokens see those with the same number only.
          position_ids: int [B, L] of packed rows, each in [0, max_position_embeddings).
          cls_positions: int [B, K] of packed rows: where its K examples begin; all are pooled.
          deterministic: False turns dropout on, which needs a "dropout" random stream.
          output_hidden_states: also return the encoder's input and every layer's output.

        Raises:
          ValueError: L is over `max_position_embeddings`.
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids, deterministic)
        if segment_ids is None:
            seen = attention_mask[:, None, None, :]
        else:
            seen = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        # Finite even for a row of padding only: its softmax is uniform, never 0/0.
        bias = (1.0 - seen.astype(jnp.float32)) * -10000.0
        hidden, hidden_states = self.encoder(x, bias, deterministic, output_hidden_states)
        if cls_positions is None:
            first = hidden[:, 0]
        else:
            first = jnp.take_along_axis(hidden, cls_positions[:, :, None], axis=1)
        pooled = jnp.tanh(self.pooler(first))
        predicted = hidden
        if mlm_positions is not None:
            predicted = jnp.take_along_axis(hidden, mlm_positions[:, :, None], axis=1)
        return AlbertOutput(
            last_hidden_state=hidden,
            pooled_output=pooled,
            hidden_states=hidden_states,
            mlm_logits=self.mlm_head(predicted, self.embeddings.word_embeddings),
            sop_logits=self.sop_head(pooled),
        )


def init_params(model: Albert, key: jax.Array):
    """A new parameter tree, each leaf boxed with its logical axis names."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return model.init({"params": key}, ids, ids, ids)["params"]


def abstract_params(model: Albert):
    """Shapes, dtypes and logical axis names of every parameter, without making any."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda k: init_params(model, k), key)
