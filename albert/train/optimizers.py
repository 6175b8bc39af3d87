"""Optimizers by name: `optimizer.name`.

To add one, write a function of (schedule, **fields) that gives an optax transformation, and enter
it in `OPTIMIZERS` with the optional fields of the config that it reads. It sees plain arrays: names
of axes are put on its slots by `make_optimizer`, stacks of layers are its tensors one by one where
the entry says `per_tensor`.

The released program's are written here; source: `optimization.py` and `lamb_optimizer.py` of
google-research/albert. They differ from `optax.lamb` and `optax.adamw`: the moments are not
corrected for bias, and LAMB's trust ratio leaves LayerNorm and bias variables alone.

Gradients have the dtype of the parameters and slots are made like parameters, so both are float32:
training refuses every other `model.param_dtype`.
"""

import dataclasses
import difflib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from albert.train.schedules import SCHEDULES, Shape

# Leaves that are neither decayed nor scaled by the trust ratio.
EXCLUDED = re.compile("LayerNorm|layer_norm|bias")
# Arrays that hold several tensors, one for each entry of their first axis: norms are of each.
STACKED = re.compile(r"\['layers'\]")
# What muon takes as a matrix: kernels of layers, and the mapping in front of them.
_MATRIX = re.compile(r"\['(layers|embedding_hidden_mapping_in)'\].*\['kernel'\]$")
_ATTENTION_OUTPUT = re.compile(r"\['attention'\]\['output'\]")
# Fields that may be unset and that an optimizer may read; the first ones lie in [0, 1).
_SHARES = ("b1", "b2", "momentum")
_OPTIONAL = (*_SHARES, "eps", "weight_decay", "consistent_rms")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """A field that may be None is unset: the optimizer's or schedule's own value is taken.

    One that is set and that the chosen optimizer or schedule does not read is a problem.
    """

    name: str  # of OPTIMIZERS: lamb and adamw as released, muon, or optax.NAME
    learning_rate: float  # peak
    schedule: str  # of SCHEDULES: how the rate changes over the run
    warmup_steps: int  # linear from 0
    cooldown_steps: int | None  # the last ones, over which the rate falls
    final_learning_rate: float | None  # where the rate ends, or what it does not fall below
    b1: float | None  # of the mean of gradients
    b2: float | None  # of the mean of their squares
    eps: float | None
    weight_decay: float | None
    momentum: float | None
    consistent_rms: float | None  # size of muon's updates; 0.2 is about that of Adam's
    clip_norm: float  # global norm of the gradient; 0 turns clipping off

    def problems(self) -> list[str]:
        """What is wrong with the fields, one sentence each."""
        found = []
        for field, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, field) not in known:
                found.append(_unknown(field, getattr(self, field), known))
        if self.name in OPTIMIZERS:
            found += self._unread("name", _OPTIONAL, OPTIMIZERS, lambda entry: tuple(entry.fields))
        if self.schedule in SCHEDULES:
            fields = "cooldown_steps", "final_learning_rate"
            found += self._unread("schedule", fields, SCHEDULES, lambda entry: entry.fields)
        for name in ("learning_rate", "eps", "consistent_rms"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                found.append(f"{name} is {value}; it must be positive")
        for name in (
            "warmup_steps",
            "cooldown_steps",
            "final_learning_rate",
            "weight_decay",
            "clip_norm",
        ):
            value = getattr(self, name)
            if value is not None and value < 0:
                found.append(f"{name} is {value}; it must not be negative")
        for name in _SHARES:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                found.append(f"{name} is {value}; it must be in [0, 1)")
        if self.final_learning_rate is not None and self.final_learning_rate > self.learning_rate:
            found.append(
                f"final_learning_rate is {self.final_learning_rate} and learning_rate, the peak, "
                f"{self.learning_rate}; it must not be over the peak"
            )
        return found

    def _unread(self, chosen: str, fields, known, reads) -> list[str]:
        """A sentence about those of `fields` that are set and not read by the chosen entry."""
        choice = getattr(self, chosen)
        own = reads(known[choice])
        idle = [f for f in fields if getattr(self, f) is not None and f not in own]
        if not idle:
            return []
        verb, it = ("is", "it") if len(idle) == 1 else ("are", "them")
        named = ", ".join(f"{field} ({getattr(self, field)})" for field in idle)
        flags = " ".join(f"--config.optimizer.{field}=None" for field in idle)
        fitting = [name for name, entry in known.items() if {*idle} <= {*reads(entry)}]
        others = f", or choose one that reads {it}: {', '.join(fitting)}" if fitting else ""
        return [
            f"{named} {verb} set, and {chosen} {choice} does not read {it} (of what may be unset "
            f"it reads {', '.join(own) or 'nothing'}); leave {it} unset, {flags}{others}"
        ]

    def length_problems(self, num_steps: int) -> list[str]:
        """A sentence when the run is shorter than what the schedule does in it."""
        if self.warmup_steps > num_steps:
            return [f"warmup_steps {self.warmup_steps} is more than train.num_steps {num_steps}"]
        known = self.schedule in SCHEDULES
        cools = known and "cooldown_steps" in SCHEDULES[self.schedule].fields
        if cools and self.warmup_steps + (self.cooldown_steps or 0) > num_steps:
            return [
                f"warmup_steps {self.warmup_steps} and cooldown_steps {self.cooldown_steps} are "
                f"together more than train.num_steps {num_steps}"
            ]
        return []

    def moments_problems(self) -> list[str]:
        """A sentence when the moments of another run are of no use to this optimizer."""
        if self.name not in OPTIMIZERS or OPTIMIZERS[self.name].adam_moments:
            return []
        fitting = ", ".join(name for name, entry in OPTIMIZERS.items() if entry.adam_moments)
        return [
            f"name is {self.name!r}, which does not keep the two moments that init_optimizer takes "
            "for every parameter, means of gradients and of their squares. Set "
            f"--config.init_optimizer=False to start from the weights alone, or choose {fitting}"
        ]


def _unknown(field: str, name: str, known: Mapping) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    unfit = _UNFIT.get(name.removeprefix("optax.")) if field == "name" else None
    hint = unfit or (f"did you mean {close[0]}?" if close else "that is not offered.")
    return f"{field} is {name!r}; {hint} There is {', '.join(known)}"


# Of optax and not offered: why.
_UNFIT = {
    "lbfgs": "it evaluates the loss several times a step, which training does not.",
    "polyak_sgd": "it sets its rate by the value of the loss and follows no schedule alone.",
    "rprop": "it is for gradients of all data and follows no schedule.",
    "sm3": "it follows no schedule.",
    "noisy_sgd": "it adds noise from a seed that a run does not have.",
    "optimistic_gradient_descent": "it is for games of two players.",
    "optimistic_adam": "it is for games of two players.",
    "optimistic_adam_v2": "it is for games of two players.",
}


def decayed(params):
    """A tree of bools like `params`: True where weight decay and the trust ratio apply."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: EXCLUDED.search(jax.tree_util.keystr(path)) is None, params
    )


def _is_stacked(path) -> bool:
    return STACKED.search(jax.tree_util.keystr(path)) is not None


def _is_masked(x) -> bool:
    return isinstance(x, optax.MaskedNode)


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


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """update * |p| / |update| of every tensor, 1 for the ratio where either norm is 0."""

    def scale(path, update, param):
        axes = tuple(range(1 if _is_stacked(path) else 0, update.ndim))
        norms = (jnp.sqrt(jnp.sum(x * x, axes, keepdims=True)) for x in (param, update))
        param_norm, update_norm = norms
        known = (param_norm > 0) & (update_norm > 0)
        return update * jnp.where(known, param_norm / jnp.where(known, update_norm, 1), 1)

    def update(updates, state, params):
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, u, p: u if _is_masked(u) else scale(path, u, p),
            updates,
            params,
            is_leaf=_is_masked,
        )
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _released(schedule, ratio, b1, b2, eps, weight_decay) -> optax.GradientTransformation:
    return optax.chain(
        scale_by_uncorrected_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        ratio,
        optax.scale_by_learning_rate(schedule),
    )


def lamb(schedule, **fields) -> optax.GradientTransformation:
    """LAMB (You et al. 2019, arXiv 1904.00962) as ALBERT was trained with."""
    return _released(schedule, optax.masked(scale_by_trust_ratio(), decayed), **fields)


def adamw(schedule, **fields) -> optax.GradientTransformation:
    """BERT's Adam with weight decay, as the released program offers it."""
    return _released(schedule, optax.identity(), **fields)


def matrices(params):
    """A tree like `params`: which axes muon takes as in and out of a matrix, None for no matrix.

    Query, key and value [H, A, D] are H x A D, attention's output [A, D, H] is A D x H. An axis of
    sets in front is in neither: every set is a matrix of its own.
    """

    def dimensions(path, param):
        name = jax.tree_util.keystr(path)
        if not _MATRIX.search(name):
            return None
        axes = tuple(range(1 if _is_stacked(path) else 0, param.ndim))
        split = len(axes) - 1 if _ATTENTION_OUTPUT.search(name) else 1
        return optax.contrib.MuonDimensionNumbers(axes[:split], axes[split:])

    return jax.tree_util.tree_map_with_path(dimensions, params)


def muon(
    schedule, momentum, b1, b2, eps, weight_decay, consistent_rms
) -> optax.GradientTransformation:
    """Muon for the kernels of layers, AdamW for embeddings, heads, vectors, low-rank differences.

    Muon is Jordan et al. 2024, https://kellerjordan.github.io/posts/muon: the momentum of a matrix
    is made orthogonal, about. Weight decay, and updates scaled by
    consistent_rms * sqrt(max(in, out)) so that one learning rate serves both parts, are those of
    Liu et al. 2025, arXiv 2502.16982. The AdamW part differs from that of `optax.contrib.muon`:
    LayerNorm and biases are not decayed.
    """

    def scaled(updates, _):
        def scale(update, axes):
            size = max(math.prod(update.shape[axis] for axis in ends) for ends in axes)
            return update * (consistent_rms * math.sqrt(size))

        return jax.tree.map(scale, updates, matrices(updates))

    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "muon" if _MATRIX.search(jax.tree_util.keystr(path)) else "adamw",
            params,
        )

    return optax.partition(
        {
            "muon": optax.chain(
                optax.contrib.scale_by_muon(
                    beta=momentum, eps=eps, weight_dimension_numbers=matrices
                ),
                optax.stateless(scaled),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(schedule),
            ),
            "adamw": optax.adamw(
                schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decayed
            ),
        },
        labels,
    )


def per_tensor(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, whose statistics are of whole tensors, with every stack seen as its tensors.

    It is mapped over the first axis of the stacks of one length after the other, so that its slots
    keep the shapes of parameters, stacks and all. What it counts is counted once.
    """

    def lengths(params) -> dict[tuple[str, ...], int | None]:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {_keys(path): len(x) if _is_stacked(path) else None for path, x in leaves}

    def of_length(tree, sizes, length):
        """`tree` without parameters, or slots of such, in stacks of another length."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x if sizes.get(_keys(path), length) == length else optax.MaskedNode(),
            tree,
        )

    def merged(trees):
        def one_of(*leaves):
            return next((leaf for leaf in leaves if not _is_masked(leaf)), leaves[0])

        return jax.tree.map(one_of, *trees, is_leaf=_is_masked)

    def mapped_axes(state, sizes):
        """0 for what every tensor has, None for what there is once, such as a counter."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: 0 if _keys(path) in sizes else None, state
        )

    def init(params):
        sizes, states = lengths(params), []
        for length in dict.fromkeys(sizes.values()):
            chosen = of_length(params, sizes, length)
            if length is None:
                states.append(inner.init(chosen))
                continue
            tensor = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), chosen)
            axes = mapped_axes(jax.eval_shape(inner.init, tensor), sizes)
            states.append(jax.vmap(inner.init, out_axes=axes, axis_size=length)(chosen))
        return merged(states)

    def update(grads, state, params):
        sizes, results = lengths(params), []
        for length in dict.fromkeys(sizes.values()):
            chosen = [of_length(tree, sizes, length) for tree in (grads, state, params)]
            if length is None:
                results.append(inner.update(*chosen))
            else:
                axes = mapped_axes(chosen[1], sizes)
                step = jax.vmap(inner.update, (0, axes, 0), (0, axes), axis_size=length)
                results.append(step(*chosen))
        updates, states = zip(*results, strict=True)
        return merged(updates), merged(states)

    return optax.GradientTransformation(init, update)


def _keys(path) -> tuple[str, ...]:
    """The keys of dictionaries that a path ends in: of a slot, those of its parameter."""
    keys: list[str] = []
    for part in reversed(path):
        if not isinstance(part, jax.tree_util.DictKey):
            break
        keys.insert(0, part.key)
    return tuple(keys)


def slot_of(path) -> tuple[str, str]:
    """Of a leaf of an optimizer's state: what it is, and of which parameter.

    Args:
      path: as `jax.tree_util` gives it.

    Returns:
      Name, such as "mu" or "count", and the parameter's path, such as "pooler/kernel", or "".
    """
    keys = _keys(path)
    return getattr(path[-len(keys) - 1], "name", ""), "/".join(keys)


def with_axis_names(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, which sees plain arrays, with its slots boxed as the parameters are.

    A slot of its parameter's shape has its parameter's names. One that lacks an axis, as factored
    moments and norms do, has those of the others; where two axes of one size could be the one that
    is lacking, it has none, and is whole on every device.
    """

    def init(params):
        boxes = {
            _keys(path): box
            for path, box in jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_box)
            if _is_box(box)
        }

        def boxed(path, slot):
            if _keys(path) not in boxes:
                return slot
            box = boxes[_keys(path)]
            names = _axis_names(slot.shape, box)
            return slot if names is None else box.replace(value=slot, names=names)

        return jax.tree_util.tree_map_with_path(boxed, inner.init(nn.meta.unbox(params)))

    return optax.GradientTransformation(init, inner.update)


def _is_box(x) -> bool:
    return isinstance(x, nn.Partitioned)


def _axis_names(shape: tuple[int, ...], box: nn.Partitioned) -> tuple[str | None, ...] | None:
    """Names of the axes of a slot, where they can be told from those of its parameter."""
    sizes, names = box.value.shape, box.names
    if shape == sizes:
        return names
    possible = {
        names[:k] + names[k + 1 :] for k in range(len(sizes)) if shape == sizes[:k] + sizes[k + 1 :]
    }
    return possible.pop() if len(possible) == 1 else None


@dataclasses.dataclass(frozen=True)
class Entry:
    build: Callable[..., optax.GradientTransformation]  # of a schedule and the fields, by name
    fields: Mapping[str, float | None]  # that it reads -> what they are where unset
    per_tensor: bool = False  # it looks at a tensor as a whole: its norm, its rows
    # Its slots mu and nu are running means of gradients and of their squares, so that those of
    # another run can be taken.
    adam_moments: bool = False


_AS_RELEASED = {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "weight_decay": 0.01}
_ADAM, _ADAMW = ("b1", "b2", "eps"), ("b1", "b2", "eps", "weight_decay")


def _of_optax(name: str, *same: str, adam_moments=False, per_tensor=False, **other: str) -> Entry:
    """One of optax's own, with its own values for what is unset.

    Weight decay leaves LayerNorm and biases alone wherever it can be told to.

    Args:
      name: in optax.
      same: fields whose name is that of its argument.
      adam_moments: see `Entry`.
      per_tensor: see `Entry`.
      other: field -> its argument.
    """
    function = getattr(optax, name)
    arguments = {field: field for field in same} | other
    parameters = inspect.signature(function).parameters
    masks = {k: decayed for k in ("mask", "weight_decay_mask") if k in parameters}

    def build(schedule, **fields):
        return function(schedule, **{arguments[k]: v for k, v in fields.items()}, **masks)

    fields = {field: parameters[argument].default for field, argument in arguments.items()}
    return Entry(build, fields, per_tensor, adam_moments)


OPTIMIZERS: dict[str, Entry] = {
    "lamb": Entry(lamb, _AS_RELEASED, adam_moments=True),
    "adamw": Entry(adamw, _AS_RELEASED, adam_moments=True),
    "muon": Entry(
        muon,
        {
            "momentum": 0.95,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "consistent_rms": 0.2,
        },
    ),
} | {
    f"optax.{name}": entry
    for name, entry in {
        "adabelief": _of_optax("adabelief", *_ADAM),
        "adadelta": _of_optax("adadelta", "eps", "weight_decay", b2="rho"),
        # Its weight decay is not multiplied by the learning rate.
        "adafactor": _of_optax(
            "adafactor", "eps", "momentum", weight_decay="weight_decay_rate", per_tensor=True
        ),
        "adagrad": _of_optax("adagrad", "eps"),
        "adam": _of_optax("adam", *_ADAM, adam_moments=True),
        "adamax": _of_optax("adamax", *_ADAM),
        "adamaxw": _of_optax("adamaxw", *_ADAMW),
        "adamw": _of_optax("adamw", *_ADAMW, adam_moments=True),
        "adan": _of_optax("adan", *_ADAMW),
        "amsgrad": _of_optax("amsgrad", *_ADAM),
        "fromage": _of_optax("fromage", per_tensor=True),
        "lamb": _of_optax("lamb", *_ADAMW, adam_moments=True, per_tensor=True),
        "lars": _of_optax("lars", "momentum", "weight_decay", per_tensor=True),
        "lion": _of_optax("lion", "b1", "b2", "weight_decay"),
        "nadam": _of_optax("nadam", *_ADAM, adam_moments=True),
        "nadamw": _of_optax("nadamw", *_ADAMW, adam_moments=True),
        "novograd": _of_optax("novograd", *_ADAMW, per_tensor=True),  # decays every tensor
        "radam": _of_optax("radam", *_ADAM, adam_moments=True),
        "rmsprop": _of_optax("rmsprop", "eps", "momentum", b2="decay"),
        "sgd": _of_optax("sgd", "momentum"),
        "sign_sgd": _of_optax("sign_sgd"),
        "signum": _of_optax("signum", momentum="beta"),
        "yogi": _of_optax("yogi", *_ADAM, adam_moments=True),
    }.items()
}


def make_optimizer(
    config: OptimizerConfig,
    total_steps: int,
    kept: Sequence[str] = (),
    again: Sequence[tuple[int, OptimizerConfig]] = (),
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer that `config` names, clipping included, and its learning-rate schedule.

    Every slot has the shape of its parameter, stacks included, or lacks an axis of it, and carries
    its logical axis names where the parameters that `init` is given do.

    The schedule maps the number of updates made so far, 0, 1, ..., to the rate of the next one.
    That is lr(updates + 1): the released program reads its step counter after increasing it,
    as its golden runs show, so the first update is not lost to lr(0) = 0.

    `kept`: parts of the model, such as "pooler", that stay as they are: weight decay would change
    what no gradient does. `again`: updates made so far -> what the schedule is of from there on,
    with an end of its own; moments are kept.
    """
    begins = [0, *(first for first, _ in again)]
    ends = [*begins[1:], total_steps]
    parts = [
        _schedule(of, end - begin)
        for of, begin, end in zip((config, *(of for _, of in again)), begins, ends, strict=True)
    ]
    schedule = optax.join_schedules(parts, begins[1:])
    entry = OPTIMIZERS[config.name]
    chosen = {field: getattr(config, field) for field in entry.fields}
    fields = {k: entry.fields[k] if value is None else value for k, value in chosen.items()}
    made = entry.build(schedule, **fields)
    if entry.per_tensor:
        made = per_tensor(made)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    rest = [_kept(kept)] if kept else []
    return with_axis_names(optax.chain(clip, made, *rest)), schedule


def _schedule(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """Updates made so far -> the rate of the next, over so many."""
    rate = SCHEDULES[config.schedule].build(
        Shape(
            peak=config.learning_rate,
            final=config.final_learning_rate or 0.0,
            warmup=config.warmup_steps,
            cooldown=config.cooldown_steps,
            total=updates,
        )
    )
    return lambda count: rate(count + 1)


def _kept(parts: Sequence[str]) -> optax.GradientTransformation:
    """Updates of 0 for these parts of the model."""

    def keep(updates, _):
        return jax.tree_util.tree_map_with_path(
            lambda path, update: 0 * update if path[0].key in parts else update, updates
        )

    return optax.stateless(keep)
