"""The released program's optimisers and schedule as optax transformations.

Source: `optimization.py` and `lamb_optimizer.py` of google-research/albert. They differ from
`optax.lamb` and `optax.adamw`: the moments are not corrected for bias, and LAMB's trust ratio
leaves LayerNorm and bias variables alone.
"""

import dataclasses
import inspect
import re

import flax
import jax
import jax.numpy as jnp
import optax

# Leaves that are neither decayed nor scaled by the trust ratio.
EXCLUDED = re.compile("LayerNorm|layer_norm|bias")
# Arrays that hold several tensors, one for each entry of their first axis: norms are of each.
STACKED = re.compile(r"\['layers'\]")
ORIGINAL = ("lamb", "adamw")
# Of optax, those that treat every number alike; to others a stack is given tensor by tensor.
_ELEMENTWISE = (
    "adabelief",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "amsgrad",
    "lion",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sign_sgd",
    "signum",
    "yogi",
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    name: str  # "lamb" or "adamw" as released, or "optax.NAME" for one of optax's own
    learning_rate: float  # peak
    warmup_steps: int  # linear from 0
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float  # global norm of the gradient; 0 turns clipping off

    def problems(self) -> list[str]:
        """What is wrong with the fields, one sentence each."""
        found = []
        stock = self.name.removeprefix("optax.")
        if self.name not in ORIGINAL and not (
            self.name.startswith("optax.") and "learning_rate" in _parameters(stock)
        ):
            found.append(
                f"name is {self.name!r}; it must be lamb or adamw, as released, or optax.NAME "
                "for an optimiser of optax that takes a learning_rate, such as optax.adamw"
            )
        for name in ("learning_rate", "eps"):
            if getattr(self, name) <= 0:
                found.append(f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("warmup_steps", "weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                found.append(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        return found


def _parameters(stock: str):
    """Names of the parameters of `optax.<stock>`; empty when there is no such function."""
    function = getattr(optax, stock, None)
    return inspect.signature(function).parameters if inspect.isfunction(function) else {}


def linear_schedule(learning_rate: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear decay to 0 counted from step 0; while step < warmup, lr * step / warmup instead.

    So lr(0) = 0 with a warm-up, and at its end the rate drops to lr * (1 - warmup / total).
    """

    def schedule(count):
        step = jnp.asarray(count, jnp.float32)
        decayed = learning_rate * (1.0 - jnp.minimum(step, total_steps) / total_steps)
        warming = learning_rate * step / max(warmup_steps, 1)
        return jnp.where(step < warmup_steps, warming, decayed)

    return schedule


def decayed(params):
    """A tree of bools like `params`: True where weight decay and the trust ratio apply."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: EXCLUDED.search(jax.tree_util.keystr(path)) is None, params
    )


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """m / (sqrt(v) + eps) without bias correction."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(grads, state, params=None):
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def _is_stacked(path) -> bool:
    return STACKED.search(jax.tree_util.keystr(path)) is not None


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """update * |p| / |update| of every tensor, 1 for the ratio where either norm is 0."""

    def scale(path, update, param):
        axes = tuple(range(1 if _is_stacked(path) else 0, update.ndim))
        norms = (jnp.sqrt(jnp.sum(x * x, axes, keepdims=True)) for x in (param, update))
        param_norm, update_norm = norms
        known = (param_norm > 0) & (update_norm > 0)
        return update * jnp.where(known, param_norm / jnp.where(known, update_norm, 1), 1)

    def update(updates, state, params):
        masked = optax.MaskedNode
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, u, p: u if isinstance(u, masked) else scale(path, u, p),
            updates,
            params,
            is_leaf=lambda x: isinstance(x, masked),
        )
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def tensor_by_tensor(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on trees in which every stack is a tuple of its tensors."""

    def split(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, x: tuple(x) if _is_stacked(path) else x, tree
        )

    def update(grads, state, params):
        updates, state = inner.update(split(grads), state, split(params))
        stacked = jax.tree.map(
            lambda u, p: jnp.stack(u) if isinstance(u, tuple) else u,
            updates,
            params,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        return stacked, state

    return optax.GradientTransformation(
        lambda params: inner.init(split(flax.core.meta.unbox(params))), update
    )


def make_optimizer(
    config: OptimizerConfig, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser that `config` names, clipping included, and its learning-rate schedule.

    The schedule maps the number of updates made so far, 0, 1, ..., to the rate of the next one.
    That is lr(updates + 1): the released program reads its step counter after increasing it,
    as its golden runs show, so the first update is not lost to lr(0) = 0.
    """
    rate = linear_schedule(config.learning_rate, config.warmup_steps, total_steps)

    def schedule(count):
        return rate(count + 1)

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if config.name in ORIGINAL:
        ratio = (
            optax.masked(scale_by_trust_ratio(), decayed)
            if config.name == "lamb"
            else optax.identity()
        )
        return (
            optax.chain(
                clip,
                scale_by_uncorrected_adam(config.b1, config.b2, config.eps),
                optax.add_decayed_weights(config.weight_decay, mask=decayed),
                ratio,
                optax.scale_by_learning_rate(schedule),
            ),
            schedule,
        )
    stock = config.name.removeprefix("optax.")
    arguments = {
        "b1": config.b1,
        "b2": config.b2,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
        "mask": decayed,
        "weight_decay_mask": decayed,
    }
    accepted = {k: v for k, v in arguments.items() if k in _parameters(stock)}
    made = getattr(optax, stock)(schedule, **accepted)
    if stock not in _ELEMENTWISE:
        made = tensor_by_tensor(made)
    return optax.chain(clip, made), schedule
