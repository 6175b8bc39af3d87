"""Learning-rate schedules by name: `optimizer.schedule`.

A schedule is a function from k = 1, 2, ..., the number of the update, to its learning rate. To add
one, write a function of `Shape` and enter it in `SCHEDULES` with the optional fields that it reads.
All of them rise linearly from 0 at k = 0 to the peak at k = warmup_steps, and read
final_learning_rate, below which none falls after that.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a schedule is made from; all lengths in updates."""

    peak: float
    final: float
    warmup: int
    cooldown: int | None  # None: unset
    total: int


def released(shape: Shape) -> optax.Schedule:
    """Linear decay counted from step 0; while k < warmup, peak * k / warmup instead.

    So at the end of the warm-up the rate drops to peak - (peak - final) * warmup / total.
    Source: `optimization.py` of google-research/albert, where `final` is 0.
    """

    def schedule(count):
        step = jnp.asarray(count, jnp.float32)
        left = 1.0 - jnp.minimum(step, shape.total) / shape.total
        decayed = (shape.peak - shape.final) * left + shape.final
        warming = shape.peak * step / max(shape.warmup, 1)
        return jnp.where(step < shape.warmup, warming, decayed)

    return schedule


def linear(shape: Shape) -> optax.Schedule:
    """From the peak at the end of the warm-up straight to `final` at k = total.

    Source: Howard and Ruder 2018, arXiv 1801.06146, as Hugging Face's
    `get_linear_schedule_with_warmup` has it.
    """
    length = max(shape.total - shape.warmup, 1)
    return _warmed(shape, optax.linear_schedule(shape.peak, shape.final, length))


def cosine(shape: Shape) -> optax.Schedule:
    """final + (peak - final) * (1 + cos(pi * t)) / 2, t from 0 to 1 behind the warm-up.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.
    """
    length = max(shape.total - shape.warmup, 1)
    return _warmed(shape, optax.cosine_decay_schedule(shape.peak, length, shape.final / shape.peak))


def wsd(shape: Shape) -> optax.Schedule:
    """The peak, then for `cooldown` updates final + (peak - final) * (1 - sqrt(t)), t up to 1.

    A cool-down that is unset is a fifth of all updates, or what the warm-up leaves of them.
    Sources: Hu et al. 2024, arXiv 2404.06395 (warm-up, stable, decay); Hägele et al. 2024,
    arXiv 2405.18392, section 3 (this form of the cool-down, and a fifth).
    """
    left = shape.total - shape.warmup
    length = min(shape.total // 5, left) if shape.cooldown is None else shape.cooldown

    def cooling(count):
        t = jnp.clip(jnp.asarray(count, jnp.float32) / max(length, 1), 0.0, 1.0)
        return shape.final + (shape.peak - shape.final) * (1.0 - jnp.sqrt(t))

    after = optax.join_schedules([optax.constant_schedule(shape.peak), cooling], [left - length])
    return _warmed(shape, after)


def inverse_sqrt(shape: Shape) -> optax.Schedule:
    """max(final, peak * sqrt(warmup / k)) behind the warm-up; without one as if it were 1 long.

    It does not know where the run ends. Source: Vaswani et al. 2017, arXiv 1706.03762, equation 3,
    with the peak given instead of following from the width.
    """

    def after(count):
        step = jnp.asarray(count, jnp.float32) + shape.warmup
        ratio = max(shape.warmup, 1) / jnp.maximum(step, 1.0)
        return jnp.maximum(shape.final, shape.peak * jnp.sqrt(ratio))

    return _warmed(shape, after)


def _warmed(shape: Shape, after: optax.Schedule) -> optax.Schedule:
    """Linear from 0 to the peak, then `after`, which counts from there."""
    warming = optax.linear_schedule(0.0, shape.peak, max(shape.warmup, 1))
    return optax.join_schedules([warming, after], [shape.warmup])


@dataclasses.dataclass(frozen=True)
class Entry:
    build: Callable[[Shape], optax.Schedule]
    fields: tuple[str, ...] = ("final_learning_rate",)  # that may be unset and that it reads


SCHEDULES = {
    "released": Entry(released),
    "linear": Entry(linear),
    "cosine": Entry(cosine),
    "wsd": Entry(wsd, ("final_learning_rate", "cooldown_steps")),
    "inverse_sqrt": Entry(inverse_sqrt),
}
