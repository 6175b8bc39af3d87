"""What the encoder is made of: dense layers, LayerNorm, dropout, attention, and the one layer that
is applied at every depth.

Shapes, here and in every docstring of the package:
    B batch    L sequence length    P masked positions per sequence    V vocabulary
    E embedding size    H hidden size    A heads    D = H/A    I feed-forward width    N layers
    K examples in a packed row    R rank of a low-rank difference

Source of every formula: Lan et al. 2019 (arXiv 1909.11942) and the released program,
google-research/albert. Where the two differ, the program decides.
"""

from collections.abc import Callable, Collection, Iterable
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from albert.models import lean, rotary
from albert.models.attention import attend, xla
from albert.models.attention.base import Visible
from albert.models.config import ACTIVATIONS, DTYPES, REMAT_POLICIES, AlbertConfig

LAYER_NORM_EPSILON = 1e-12
CAST = "cast"  # the collection of kernels that were cast once for all depths
# Where a layer drops out; each place draws from a stream of its own.
_OF_PROBABILITIES, _OF_ATTENTION, _OF_FEED_FORWARD = range(3)


def initializer(config, *axes):
    """Truncated normal cut at two sigma, carrying its logical axis names."""
    init = nn.initializers.truncated_normal(config.initializer_range)
    return nn.with_logical_partitioning(init, axes)


def zeros(*axes):
    return nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)


def in_use(weight, *axes: str):
    """A weight as rows meet it: whole along the mesh axes that rows are cut along.

    A rule that cuts weights along such an axis (FSDP) says how they are held. Left to themselves,
    compilers would rather cut activations along it, or send a weight piece by piece in the middle
    of a product, at every depth anew. The gradient comes back as whole, so that it is summed over
    these devices where it leaves what is differentiated, not at every use.

    Args:
      weight: a parameter, or one that was cast: what is sent is what is given here.
      axes: logical names of its axes.
    """
    return nn.with_logical_constraint(weight, axes, rules=rules_without(row_axes()))


def cast_in_use(kernel, dtype, *axes: str):
    """A kernel in the compute dtype as rows meet it, through which no gradient goes."""
    # Cut as it is held: else the compiler for GPUs gathers it first, in float32.
    cut = nn.with_logical_constraint(jax.lax.stop_gradient(kernel.astype(dtype)), axes)
    return in_use(cut, *axes)


def row_axes() -> tuple[str, ...]:
    """Mesh axes that rows are cut along, by the rules in force."""
    rules = nn.get_logical_axis_rules()
    return tuple(axis for name, axes in rules if name == "batch" for axis in _each(axes))


def rules_without(axes: Collection[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The rules in force without these mesh axes."""
    return [
        (name, tuple(axis for axis in _each(of) if axis not in axes))
        for name, of in nn.get_logical_axis_rules()
    ]


def _each(axes) -> tuple[str, ...]:
    """Of a rule, which names several mesh axes, one or none."""
    return axes if isinstance(axes, tuple) else () if axes is None else (axes,)


class Dense(nn.Module):
    """activation(x) @ kernel + bias over the last axes of x, in the compute dtype.

    The gradient of a shared kernel is summed over tokens and depth in param_dtype, not in the
    compute dtype. In the collection CAST may be the kernel in the compute dtype.
    """

    shape: tuple[int, ...]  # of the kernel: contracted axes of x, then the axes of the result
    axes: tuple[str, ...]  # their logical names
    config: AlbertConfig
    contracted: int = 1
    dtype: jnp.dtype | None = None  # None: the config's
    rank: int = 0  # of a difference to the kernel, x @ a @ b; it begins as zero
    has_bias: bool = True
    activation: Callable | None = None  # of x, elementwise

    @nn.compact
    def __call__(self, x):
        dtype = self.dtype or DTYPES[self.config.dtype]
        param_dtype = DTYPES[self.config.param_dtype]
        kernel = self.param("kernel", initializer(self.config, *self.axes), self.shape, param_dtype)
        bias = None
        if self.has_bias:
            bias = self.param(
                "bias",
                zeros(*self.axes[self.contracted :]),
                self.shape[self.contracted :],
                param_dtype,
            )
            bias = in_use(bias, *self.axes[self.contracted :])
        x = x.astype(dtype)

        cast: jax.Array | None = self.get_variable(CAST, "kernel")
        if cast is None and kernel.dtype != dtype:
            cast = cast_in_use(kernel, dtype, *self.axes)
        kernel = in_use(kernel, *self.axes)
        product = lean.product(x, kernel, self.contracted, self.activation, cast)
        if self.rank:
            ends = self.shape[: self.contracted], self.shape[self.contracted :]
            names = self.axes[: self.contracted], self.axes[self.contracted :]
            a = self.param(
                "lora_a",
                initializer(self.config, *names[0], "rank"),
                (*ends[0], self.rank),
                param_dtype,
            )
            b = self.param("lora_b", zeros("rank", *names[1]), (self.rank, *ends[1]), param_dtype)
            a, b = in_use(a, *names[0], "rank"), in_use(b, "rank", *names[1])
            narrow = lean.product(x, a, self.contracted, self.activation)
            product += lean.product(narrow, b, 1)
        return product if bias is None else lean.add_bias(product, bias)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, in float32; see `lean.layer_norm`."""

    axis: str  # its logical name
    config: AlbertConfig

    @nn.compact
    def __call__(self, x):
        """[..., H] -> float32 [..., H]."""
        shape, dtype = x.shape[-1:], DTYPES[self.config.param_dtype]
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
        scale = self.param("scale", ones, shape, dtype)
        bias = self.param("bias", zeros(self.axis), shape, dtype)
        scale, bias = (in_use(leaf, self.axis) for leaf in (scale, bias))
        return lean.layer_norm(x, scale, bias, LAYER_NORM_EPSILON)


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """A random key for every row of a batch: what the rows drop out depends neither on the mesh nor
    on the parts that the batch is computed in."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def dropout(x, rate: float, keys: jax.Array | None, place: int):
    """Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate).

    Args:
      x: [B, ...].
      rate: in [0, 1).
      keys: random keys [B], one for each row; None turns dropout off.
      place: which of the streams of a key to draw from.
    """
    if keys is None or not rate:
        return x

    def kept(key):
        return jax.random.bernoulli(jax.random.fold_in(key, place), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(kept)(keys), x / (1 - rate), 0).astype(x.dtype)


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(D)) v by the kernel that was chosen, with its dense layers."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, x, visible, keys=None, entropy_bias=None):
        """What the tokens take from those that they see.

        Args:
          x: [B, L, H].
          visible: of `attention.prepare`: who sees whom, and the kernel; with `turns` where
            positions are rotary.
          keys: random keys [B] for dropout; None turns it off.
          entropy_bias: of the plain path, to return the entropy of the attention as well.

        Returns:
          [B, L, H], and the entropy in nats, float32 [B, A, L], or None.
        """
        c = self.config
        h, a, d = c.hidden_size, c.num_attention_heads, c.head_width
        axes, rank = ("hidden", "heads", "head_dim"), c.low_rank(attention=True)
        q, k, v = (
            Dense((h, a, d), axes, c, rank=rank, name=n)(x) for n in ("query", "key", "value")
        )
        q, k, v = (
            nn.with_logical_constraint(t, ("batch", "length", "heads", "head_dim"))
            for t in (q, k, v)
        )
        if visible.turns is not None:
            q, k = (rotary.turned(t, visible.turns) for t in (q, k))
        rate = c.attention_probs_dropout_prob
        drop = partial(dropout, rate=rate, keys=keys, place=_OF_PROBABILITIES)
        drops = keys is not None and rate > 0
        context = attend(q, k, v, visible, drop if drops else None)
        entropy = None
        if entropy_bias is not None:
            # Written out whatever the kernel: fused ones never have the probabilities.
            entropy = jax.scipy.special.entr(xla.probabilities(q, k, entropy_bias)).sum(-1)
        axes = ("heads", "head_dim", "hidden")
        output = Dense((a, d, h), axes, c, contracted=2, rank=rank, name="output")
        return output(context), entropy


class Layer(nn.Module):
    """Post-LayerNorm transformer layer: a = LN(x + drop(att(x))), y = LN(a + drop(ffn(a)))."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, x, visible, keys=None, entropy_bias=None):
        """[B, L, H] -> [B, L, H], and the entropy of the attention; see `SelfAttention`."""
        c = self.config
        rate = c.hidden_dropout_prob
        attended, entropy = SelfAttention(c, name="attention")(x, visible, keys, entropy_bias)
        attended = dropout(attended, rate, keys, _OF_ATTENTION)
        a = LayerNorm("hidden", c, name="attention_layer_norm")(x + attended).astype(x.dtype)
        sizes, rank = (c.hidden_size, c.intermediate_size), c.low_rank(attention=False)
        h = Dense(sizes, ("hidden", "mlp"), c, rank=rank, name="intermediate")(a)
        h = nn.with_logical_constraint(h, ("batch", "length", "mlp"))
        activation = ACTIVATIONS[c.hidden_act]
        names = "mlp", "hidden"
        h = Dense(sizes[::-1], names, c, rank=rank, activation=activation, name="output")(h)
        h = dropout(h, rate, keys, _OF_FEED_FORWARD)
        y = LayerNorm("hidden", c, name="output_layer_norm")(a + h).astype(x.dtype)
        return nn.with_logical_constraint(y, ("batch", "length", "hidden")), entropy


def init_layers(key: jax.Array, config: AlbertConfig):
    """The parameters of one `Layer`, each with an axis in front: one entry for each set.

    Leaves are boxed with their logical axis names, "layers" the first of them.
    """
    one = partial(_init_layer, config)
    counts = {leaf: max(config.leaf_sets(leaf)) + 1 for leaf in _leaves(config)}
    drawn = {n: jax.vmap(one)(jax.random.split(key, n)) for n in set(counts.values())}
    return unflatten_dict(
        {
            leaf: drawn[n][leaf].add_axis(0, {nn.meta.PARTITION_NAME: "layers"})
            for leaf, n in counts.items()
        },
        sep="/",
    )


def _init_layer(config: AlbertConfig, key: jax.Array) -> dict:
    """The boxed parameters of one `Layer`, by path."""
    x = jnp.zeros((1, 1, config.hidden_size), DTYPES[config.dtype])
    visible = Visible("xla", xla.prepare(jnp.ones((1, 1), jnp.int32), None))
    return flatten_dict(Layer(config).init({"params": key}, x, visible)["params"], sep="/")


@cache
def _leaves(config: AlbertConfig) -> tuple[str, ...]:
    """The paths of `_init_layer`."""
    return tuple(jax.eval_shape(lambda: _init_layer(config, jax.random.key(0))))


@cache
def layer_axes(config: AlbertConfig) -> dict[str, tuple[str, ...]]:
    """Logical axis names of the parameters that `init_layers` draws, by name."""
    boxed = jax.eval_shape(lambda: init_layers(jax.random.key(0), config))
    return {leaf: box.names for leaf, box in flatten_dict(boxed, sep="/").items()}


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
    keep_hidden: bool
    keep_first: bool

    @nn.compact
    def __call__(self, x, depth, own, shared, cast, visible, keys, entropy_bias, depths):
        """[B, L, H], int [], leaves of this depth, leaves [sets, ...] and what of them was cast to
        the compute dtype, ... -> the next x."""
        deeper, entropy = apply_layer(
            self.config, x, depth, own, shared, cast, visible, keys, entropy_bias
        )
        x = deeper if depths is None else jnp.where((depth < depths)[:, None, None], deeper, x)
        kept = x if self.keep_hidden else None, x[:, 0] if self.keep_first else None
        return x, (*kept, entropy)


def apply_layer(
    config: AlbertConfig, x, depth, own, shared, cast, visible, keys=None, entropy_bias=None
):
    """The layer with the weights of a depth: [B, L, H], and the entropy of the attention.

    Args:
      x: [B, L, H].
      depth: int [], from 0.
      own: leaves of this depth.
      shared: leaves [sets, ...], of which the depth picks an entry.
      cast: what of these was cast to the compute dtype.
      visible, keys, entropy_bias: see `SelfAttention`.
    """

    def pick(leaf, entries):
        sets = config.leaf_sets(leaf)
        entry = jnp.asarray(sets)[depth] if len(entries) > 1 else 0
        # A slice, whose gradient is added to its own entry; that of indexing is as large as
        # the whole stack, at every depth.
        return jax.lax.dynamic_index_in_dim(entries, entry, keepdims=False)

    def picked(stacks):
        return {leaf: pick(leaf, entries) for leaf, entries in stacks.items()}

    variables = {"params": own | picked(shared), CAST: picked(cast)}
    if keys is not None:
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, depth)
    return Layer(config, parent=None).apply(
        {name: unflatten_dict(leaves, sep="/") for name, leaves in variables.items()},
        x,
        visible,
        keys,
        entropy_bias,
    )


class LayerStack(nn.Module):
    """The mapping E -> H, if any, then one layer scanned over the depth.

    Parameters that every depth has for itself are scanned along; the others are the same arrays at
    every depth, or entries of them, so that their gradient is summed in the scan and no copy of
    them is ever made for each depth.
    """

    config: AlbertConfig

    @nn.compact
    def __call__(
        self,
        x,
        visible,
        keys,
        entropy_bias,
        keep_hidden=False,
        keep_first=False,
        until=None,
        depths=None,
    ):
        """What every depth made of the embeddings.

        Args:
          x: [B, L, E].
          visible: of `attention.prepare`: who sees whom, and the kernel.
          keys: random keys [B] for dropout; None turns it off.
          entropy_bias: of the plain attention path, to return entropies; else None.
          keep_hidden: whether to return what every layer gave.
          keep_first: whether to return what every layer gave for the first token.
          until: (state, look) to stop in front of a depth: `look` takes the state, the depth that
            was just run, counted from 0, and what it gave for the first token, [B, H]; it gives the
            next state, and whether each row has all that it needs, bool [B].
          depths: int [B], behind how many layers each row stays as it is; None: behind all.

        Returns:
          [B, L, H]; every layer's input and output [N + 1, B, L, H], or None; first tokens
          [N, B, H], or None; the entropies of the attention, float32 [N, B, A, L], or None.
          With `until` the last state alone; nothing is kept of the way, and no gradient goes back.
        """
        c = self.config
        if c.maps_embeddings:
            sizes = c.embedding_size, c.hidden_size
            x = Dense(sizes, ("embed", "hidden"), c, name="embedding_hidden_mapping_in")(x)
        x = nn.with_logical_constraint(x, ("batch", "length", "hidden"))
        layers = flatten_dict(self.param("layers", init_layers, c), sep="/")
        own = {leaf: p for leaf, p in layers.items() if c.leaf_sets(leaf) == tuple(range(c.depth))}
        shared = {leaf: p for leaf, p in layers.items() if leaf not in own}
        # Once for all depths; the gradient goes past it, to be summed over them in param_dtype.
        dtype, axes = DTYPES[c.dtype], layer_axes(c)
        cast = {
            leaf: cast_in_use(entries, dtype, *axes[leaf])
            for leaf, entries in shared.items()
            if leaf.endswith("kernel") and entries.dtype != dtype
        }
        shared = {leaf: in_use(entries, *axes[leaf]) for leaf, entries in shared.items()}
        if until is not None:
            state, look = until

            def goes_on(carry):
                depth, _, _, done = carry
                return (depth < c.depth) & ~done.all()

            def deeper(carry):
                depth, x, state, _ = carry
                x, _ = apply_layer(c, x, depth, {}, shared | own, cast, visible)
                return depth + 1, x, *look(state, depth, x[:, 0])

            none = jnp.zeros(x.shape[0], bool)
            return jax.lax.while_loop(goes_on, deeper, (jnp.int32(0), x, state, none))[2]
        policy = REMAT_POLICIES[c.remat] or keep_all_but_weights(layers.values())
        step = nn.scan(
            nn.remat(LayerStep, prevent_cse=False, policy=policy),
            in_axes=(0, 0, *(nn.broadcast,) * 6),
            length=c.depth,
            unroll=c.scan_unroll,
        )
        last, (states, firsts, entropies) = step(c, keep_hidden, keep_first, name="step")(
            x, jnp.arange(c.depth), own, shared, cast, visible, keys, entropy_bias, depths
        )
        hidden = jnp.concatenate([x[None], states]) if keep_hidden else None
        return last, hidden, firsts, entropies
