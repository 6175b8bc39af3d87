"""The training state, and the pure functions of one training and one evaluation step."""

from collections.abc import Callable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from albert.data.tokenizer import CLS, MASK, SEP
from albert.models.encoder import Albert, init_params
from albert.tasks.losses import masked_lm_terms, pretraining_loss, sentence_order_terms
from albert.train.sharding import ShardingConfig, batch_sharding, placed, replicated

_SPIKES_AFTER = 50  # updates; the first gradients say little of the later ones
_NORM_WEIGHT = 0.02  # of a new gradient norm in the running mean
MAX_SPAN = 4  # masked runs of this length and longer are counted together
# What the model was shown at a masked position.
SHOWN = ("mask", "unchanged", "random")
# What packed rows have besides, for the model.
PACKED_FIELDS = ("segment_ids", "position_ids", "cls_positions")


class TrainState(flax.struct.PyTreeNode):
    """Everything that a run continues from."""

    step: jax.Array  # int32: batches consumed
    params: dict
    opt_state: optax.OptState
    bad_steps: jax.Array  # int32: steps whose update was skipped: not finite, or a spike
    bad_steps_in_row: jax.Array  # int32
    grad_norm_mean: jax.Array  # float32: running mean of the gradient norms of the others


def new_state(model: Albert, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """A fresh state, its parameters and moments boxed with their logical axis names."""
    params = init_params(model, jax.random.key(seed))
    zero = jnp.zeros([], jnp.int32)
    return TrainState(zero, params, optimizer.init(params), zero, zero, jnp.zeros([], jnp.float32))


def apply_model(model: Albert, params, rows, **kwargs):
    return model.apply(
        {"params": params},
        rows["input_ids"],
        rows["attention_mask"],
        rows["token_type_ids"],
        rows["mlm_positions"],
        **{name: rows[name] for name in PACKED_FIELDS if name in rows},
        **kwargs,
    )


def make_train_step(
    model: Albert,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulation: int,
    seed: int,
    spike_factor: float = 0.0,
) -> Callable:
    """The function (state, batch) -> (state, metrics).

    An update whose loss or gradient is not finite is skipped: parameters and optimiser stay as they
    are. So is one whose gradient norm is over `spike_factor` times its running mean, unless that is
    0 or fewer than `_SPIKES_AFTER` updates were made.

    With accumulation the gradient is that of the whole batch, not a mean of means: every part
    is scaled by the batch's own denominators.
    """

    def loss_fn(params, rows, key, mlm_weight, sop_weight):
        output = apply_model(model, params, rows, deterministic=False, rngs={"dropout": key})
        return pretraining_loss(output, rows, mlm_weight, sop_weight)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def accumulated_gradient(params, batch, key, *weights):
        # Rows r with r % accumulation == k form part k, so no row changes its device.
        def split(x):
            parts = x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1)
            return nn.with_logical_constraint(parts, (None, "batch", *(None,) * (x.ndim - 1)))

        parts = jax.tree.map(split, batch)

        def add(total, part):
            number, rows = part
            result = gradient(params, rows, jax.random.fold_in(key, number), *weights)
            return jax.tree.map(jnp.add, total, result), None

        rows = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, params, rows, key, *weights)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zeros, (jnp.arange(accumulation), parts))[0]

    def train_step(state: TrainState, batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        weights = (
            batch["mlm_weights"].sum(),
            (batch["sop_labels"] >= 0).sum().astype(jnp.float32),
        )
        compute = gradient if accumulation == 1 else accumulated_gradient
        (loss, metrics), grads = compute(state.params, batch, key, *weights)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        applied = state.step - state.bad_steps
        usual = state.grad_norm_mean
        good = finite
        if spike_factor:
            known = (applied >= _SPIKES_AFTER) & (usual > 0)
            good &= ~(known & (grad_norm > spike_factor * usual))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        def keep_if_good(new, old):
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        bad = 1 - good.astype(jnp.int32)
        mean = jnp.where(usual > 0, usual + _NORM_WEIGHT * (grad_norm - usual), grad_norm)
        state = TrainState(
            step=state.step + 1,
            params=keep_if_good(params, state.params),
            opt_state=keep_if_good(opt_state, state.opt_state),
            bad_steps=state.bad_steps + bad,
            bad_steps_in_row=(state.bad_steps_in_row + bad) * bad,
            grad_norm_mean=keep_if_good(mean, usual),
        )
        metrics |= {
            "loss": loss,
            "learning_rate": schedule(applied),
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(state.params),
            "update_norm": jnp.where(good, optax.tree.norm(updates), 0.0),
            "real_tokens": batch["attention_mask"].sum(),
            "bad_steps": state.bad_steps,
            "bad_steps_in_row": state.bad_steps_in_row,
        }
        return state, metrics

    return train_step


def on_mesh(
    model: Albert,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulation: int,
    seed: int,
    mesh: Mesh,
    sharding: ShardingConfig,
    spike_factor: float = 0.0,
) -> tuple[TrainState, Callable, jax.stages.Wrapped]:
    """Training over a mesh.

    Call the step inside `jax.set_mesh(mesh)` and `nn.logical_axis_rules(sharding.rules)`, but
    not `create`: flax would apply the rules while it draws.

    Returns:
      (abstract, create, step): the state as abstract arrays that say where each lies; a function
      without arguments that makes it there, never whole on one device; and the compiled training
      step, which donates the state it is given.
    """

    def boxed():
        return new_state(model, optimizer, seed)

    abstract = placed(jax.eval_shape(boxed), mesh, sharding)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    create = jax.jit(lambda: nn.meta.unbox(boxed()), out_shardings=shardings)
    step = jax.jit(
        make_train_step(model, optimizer, schedule, accumulation, seed, spike_factor),
        in_shardings=(shardings, batch_sharding(mesh, sharding)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return abstract, create, step


def span_lengths(positions: jax.Array, weights: jax.Array) -> jax.Array:
    """Length of the run of adjacent masked positions that each one is part of.

    int [B, P] sorted along P where the weight is 1, float32 [B, P] -> int [B, P]; 0 for filling.
    """
    real = weights > 0
    begins = jnp.diff(positions, axis=1, prepend=-2) != 1
    run = jnp.cumsum(begins, axis=1)
    same = (run[:, :, None] == run[:, None, :]) & real[:, :, None] & real[:, None, :]
    return same.sum(-1)


def make_eval_step(model: Albert) -> Callable:
    """The function (params, batch) -> sums over the batch, to be added up over batches."""

    def eval_step(params, batch) -> dict[str, jax.Array]:
        output = apply_model(model, params, batch)
        labels, weights = batch["mlm_labels"], batch["mlm_weights"]
        nll, hit = masked_lm_terms(output.mlm_logits, labels, weights)
        sop_nll, sop_hit, sop_weights = sentence_order_terms(output.sop_logits, batch["sop_labels"])
        # Every token of the text, masked or not, as a sample of what could be a target.
        rows = jnp.arange(len(labels))[:, None]
        masked = (
            jnp.zeros_like(batch["input_ids"])
            .at[rows, batch["mlm_positions"]]
            .max(jnp.where(weights > 0, labels + 1, 0))
        )
        words = jnp.where(masked > 0, masked - 1, batch["input_ids"])
        is_word = batch["attention_mask"] * ((masked > 0) | (words != CLS) & (words != SEP))
        sums = {
            "mlm": jnp.stack([nll.sum(), hit.sum(), weights.sum()]),
            "sop": jnp.stack([sop_nll.sum(), sop_hit.sum(), sop_weights.sum()]),
            "words": jnp.zeros(output.mlm_logits.shape[-1]).at[words].add(is_word),
        }

        def split(name, group):
            chosen = weights * group
            sums[name] = jnp.stack([(nll * group).sum(), (hit * group).sum(), chosen.sum()])

        lengths = jnp.minimum(span_lengths(batch["mlm_positions"], weights), MAX_SPAN)
        for length in range(1, MAX_SPAN + 1):
            split(f"mlm_span_{length}", lengths == length)
        shown = jnp.take_along_axis(batch["input_ids"], batch["mlm_positions"], axis=1)
        is_mask, is_label = shown == MASK, shown == labels
        groups = (is_mask, is_label & ~is_mask, ~is_mask & ~is_label)
        for name, group in zip(SHOWN, groups, strict=True):
            split(f"mlm_shown_{name}", group)
        return sums

    return eval_step


def make_guess_step(model: Albert) -> Callable:
    """The function (params, batch) -> int [B, P], the likeliest piece at every masked position."""

    def guess_step(params, batch) -> jax.Array:
        return jnp.argmax(apply_model(model, params, batch).mlm_logits, axis=-1)

    return guess_step
