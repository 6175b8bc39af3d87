"""The training state, and the pure function of one training step, whatever the task."""

import math
from collections.abc import Callable
from functools import partial

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from albert.models.encoder import abstract_params
from albert.models.layers import row_axes, row_keys, rules_without
from albert.tasks.base import Task
from albert.train.sharding import ShardingConfig, batch_sharding, placed, replicated

_SPIKES_AFTER = 50  # updates; the first gradients say little of the later ones
# No kernels whose sums are in any order, and none chosen by timing them at every start.
_DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
_NORM_WEIGHT = 0.02  # of a new gradient norm in the running mean


class TrainState(flax.struct.PyTreeNode):
    """Everything that a run continues from."""

    step: jax.Array  # int32: batches consumed
    params: dict
    opt_state: optax.OptState
    bad_steps: jax.Array  # int32: steps whose update was skipped: not finite, or a spike
    bad_steps_in_row: jax.Array  # int32
    grad_norm_mean: jax.Array  # float32: running mean of the gradient norms of the others


def new_state(init: Callable, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """A fresh state, its parameters and moments boxed with their logical axis names.

    `init` draws parameters, boxed, from a random key.
    """
    params = init(jax.random.key(seed))
    zero = jnp.zeros([], jnp.int32)
    return TrainState(zero, params, optimizer.init(params), zero, zero, jnp.zeros([], jnp.float32))


def abstract_state(
    init: Callable,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    sharding: ShardingConfig,
) -> TrainState:
    """The state as abstract arrays that say where each lies."""
    return placed(jax.eval_shape(lambda: new_state(init, optimizer, 0)), mesh, sharding)


def abstract_teacher(model: nn.Module, mesh: Mesh, sharding: ShardingConfig):
    """The teacher's parameters as abstract arrays that say where each lies: cut by the rules that
    the student's are cut by."""
    return placed(abstract_params(model), mesh, sharding)


def make_gradient(
    task: Task, accumulation: int, mesh: Mesh | None = None, reduce_dtype: str = "float32"
) -> Callable:
    """The function (params, batch, keys, denominators, teacher) -> ((loss, sums), gradient).

    The gradient is that of the whole batch, in parts or not: every part is scaled by the batch's
    own denominators. Of parts, the devices that hold different rows add up what is their own, and
    it is summed over them once, behind the last part. Without parts each slice has a gradient of
    its own, which is summed over slices once. A teacher computes the same part, without a gradient;
    None: there is none.

    `reduce_dtype`: in which that sum is sent and made.
    """

    def objective(params, rows, keys, denominators, teacher):
        sums = task.sums(params, task.taught(rows, teacher), keys)
        return task.loss(sums, denominators), sums

    gradient = jax.value_and_grad(objective, has_aux=True)

    def of_batch(params, batch, keys, denominators, teacher=None):
        cut = tuple(axis for axis in row_axes() if mesh is not None and mesh.shape[axis] > 1)
        if accumulation == 1 and reduce_dtype == "float32":
            # The compiler sums in float32 by itself; but where it likes, such as at every depth.
            cut = tuple(axis for axis in cut if axis == "slices")
        if accumulation == 1 and not cut:
            return gradient(params, batch, keys, denominators, teacher)
        sizes = [mesh.shape[axis] for axis in cut] if mesh is not None else []
        shards = math.prod(sizes)

        def along_shards(x, place=0):
            """No shard's rows or gradient leave their device."""
            if not cut:
                return x
            free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - place - 1)
            spec = PartitionSpec(*(None,) * place, cut, *free)
            return jax.lax.with_sharding_constraint(x, spec)

        def split(x):
            """[B, ...] -> [parts, shards, rows, ...]."""
            x = x.reshape(shards, -1, accumulation, *x.shape[1:])
            return along_shards(jnp.moveaxis(x, 2, 0), place=1)

        def of_part(rows, keys):
            """What each shard contributes: the gradient, with an axis for the shards in front."""
            over_shards = jax.vmap(gradient, (None, 0, 0, None, None), spmd_axis_name=cut or None)
            with nn.logical_axis_rules(rules_without(cut)):
                result = over_shards(params, rows, keys, denominators, teacher)
            return jax.tree.map(along_shards, result)

        def add(total, part):
            return jax.tree.map(jnp.add, total, of_part(*part)), None

        parts = jax.tree.map(split, batch), split(keys)
        shapes = jax.eval_shape(of_part, *jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda s: along_shards(jnp.zeros(s.shape, s.dtype)), shapes)
        figures, grads = jax.lax.scan(add, zeros, parts)[0]
        figures = jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), figures)

        def summed(g):
            sent = g.astype(reduce_dtype) if cut else g
            return sent.sum(0, dtype=sent.dtype).astype(g.dtype)

        return figures, jax.tree.map(summed, grads)

    return of_batch


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulation: int,
    seed: int,
    spike_factor: float = 0.0,
    mesh: Mesh | None = None,
    reduce_dtype: str = "float32",
) -> Callable:
    """The function (state, batch, teacher) -> (state, metrics).

    An update whose loss or gradient is not finite is skipped: parameters and optimizer stay as they
    are. So is one whose gradient norm is over `spike_factor` times its running mean, unless that is
    0 or fewer than `_SPIKES_AFTER` updates were made. `teacher`: the parameters of the model that
    the task learns from; left out where there is none.
    """
    gradient = make_gradient(task, accumulation, mesh, reduce_dtype)

    def train_step(
        state: TrainState, batch, teacher=None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = row_keys(key, len(jax.tree.leaves(batch)[0]))
        denominators = task.denominators(batch)
        (loss, sums), grads = gradient(state.params, batch, keys, denominators, teacher)
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
        metrics = task.metrics(sums, denominators) | {
            "loss": loss,
            "learning_rate": schedule(applied),
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(state.params),
            "update_norm": jnp.where(good, optax.tree.norm(updates), 0.0),
            "bad_steps": state.bad_steps,
            "bad_steps_in_row": state.bad_steps_in_row,
        }
        return state, metrics

    return train_step


def shard_training(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulation: int,
    seed: int,
    mesh: Mesh,
    sharding: ShardingConfig,
    spike_factor: float = 0.0,
    deterministic: bool = False,
    reduce_dtype: str = "float32",
) -> tuple[TrainState, Callable, jax.stages.Wrapped]:
    """Training over a mesh.

    `deterministic`: of two ways to compute something on a GPU, only those that give the same bits
    every time. `reduce_dtype`: see `make_gradient`.

    Call the step inside `jax.set_mesh(mesh)` and `nn.logical_axis_rules(sharding.rules)`, but
    not `create`: flax would apply the rules while it draws.

    Returns:
      (abstract, create, step): the state as abstract arrays that say where each lies; a function
      without arguments that makes it there, never whole on one device; and the compiled training
      step, which donates the state it is given. The step of a task that learns from a teacher takes
      that one's parameters behind the batch.
    """
    init = partial(task.init, task.model)
    abstract = abstract_state(init, optimizer, mesh, sharding)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    create = jax.jit(
        lambda: nn.meta.unbox(new_state(init, optimizer, seed)), out_shardings=shardings
    )
    inputs = [shardings, batch_sharding(mesh, sharding)]
    if task.distillation:
        teacher = abstract_teacher(task.distillation.model, mesh, sharding)
        inputs.append(jax.tree.map(lambda leaf: leaf.sharding, teacher))
    step = jax.jit(
        make_train_step(
            task, optimizer, schedule, accumulation, seed, spike_factor, mesh, reduce_dtype
        ),
        in_shardings=tuple(inputs),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=_DETERMINISTIC if deterministic else None,
    )
    return abstract, create, step
