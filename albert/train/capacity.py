"""Whether a config fits the memory of some devices, and how long it takes them; touches none.

In closed form, a little over what compilers of TPUs and an H100 said (docs/results.md); where a
program hardly fits they also find ways to keep less. Evaluation, which keeps nothing for a backward
pass, is not counted.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax

from albert.models import attention
from albert.models.attention import candidates
from albert.models.config import DTYPES, REMAT_POLICIES
from albert.models.cost import Layout
from albert.models.encoder import Albert, abstract_params
from albert.tasks import find_task
from albert.train.chips import CHIPS, Chip, Devices
from albert.train.compiler import ask
from albert.train.config import Config, check_devices, parts_of, rows_at_once
from albert.train.cost import activation_bytes_per_row, flops_per_row, in_bfloat16, state_bytes
from albert.train.optimizers import make_optimizer
from albert.train.phases import phases_of
from albert.train.sharding import bytes_of_a_device
from albert.train.step import new_state

# From a hidden size on: the share of the peak that matrix products of this size reach on an H100,
# and the MFU that the compiler's program for one predicts (docs/results.md); none has run it.
_ON_AN_H100 = ((4096, 0.75, 0.61), (2048, 0.71, 0.51), (1024, 0.65, 0.38), (0, 0.61, 0.31))
_MUCH = 0.2  # of the memory, for what is held whatever the rows
_LANES = {"tpu": 128}  # by backend; see `Layout`


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a device has to hold.

    Attributes:
      memory: bytes of a device that programs get.
      held: what -> bytes, whatever the number of rows.
      per_row: bytes that a row takes while it is computed; see `activation_bytes_per_row`.
      rows: of a device in a batch.
      at_once: of these, as the config says.
    """

    memory: float
    held: dict[str, int]
    per_row: int
    rows: int
    at_once: int

    @property
    def needed(self) -> int:
        """Bytes on a device, at the peak of a step."""
        return sum(self.held.values()) + self.at_once * self.per_row

    @property
    def fits(self) -> bool:
        return self.needed <= self.memory

    @property
    def most_at_once(self) -> int:
        """Rows that a device can compute at once; 0: not even one."""
        return max(0, math.floor((self.memory - sum(self.held.values())) / self.per_row))

    @property
    def microbatch(self) -> int:
        """The largest `train.microbatch` that fits and divides a device's rows; 0: there is none.
        Summing up over parts takes memory of its own."""
        most = self.most_at_once
        if most < self.rows and self.at_once == self.rows:
            gradients = self.held["gradients"]
            most = math.floor((self.memory - sum(self.held.values()) - gradients) / self.per_row)
        return max((n for n in range(1, min(most, self.rows) + 1) if self.rows % n == 0), default=0)


def fits_of(
    config: Config,
    number: int,
    memory: float,
    backend: str,
    kernel: str,
    teacher: Albert | None = None,
) -> dict[str, Fit]:
    """What a config asks of each of so many devices: with its own remat policy, the first, and
    with those that keep less.

    Args:
      memory: bytes of a device that programs get.
      backend: "cpu", "gpu" or "tpu".
      kernel: of attention.
      teacher: the model that `config.distillation` names, as the run computes it.

    Raises ConfigError when so many devices cannot share the batch.
    """
    config = in_bfloat16(config)
    sharding, rows = config.sharding, rows_at_once(config, number)
    held = _held(config, number, teacher)
    layout = Layout(
        _LANES.get(backend, 1), sharding.shares("heads", number), sharding.shares("mlp", number)
    )
    vocabulary = sharding.shares("vocab", number)
    sizes = teacher.config if teacher else None

    def fit(remat: str) -> Fit:
        changed = with_remat(config, remat)
        per_row = activation_bytes_per_row(changed, sizes, kernel, layout, vocabulary)
        return Fit(memory, held, per_row, rows * parts_of(config, number), rows)

    names = list(REMAT_POLICIES)
    return {remat: fit(remat) for remat in names[names.index(config.model.remat) :]}


def _held(config: Config, number: int, teacher: Albert | None) -> dict[str, int]:
    """What each device holds whatever the number of rows, in bytes."""
    task = find_task(config.task)
    model = task.make_model(config)
    optimizer, _ = make_optimizer(config.optimizer, config.train.num_steps, task.kept(config))
    state = jax.eval_shape(lambda: new_state(partial(task.init, model), optimizer, 0))
    on_device = partial(bytes_of_a_device, config=config.sharding, num_devices=number)
    parameters = on_device(state.params)
    # As rows meet it: whole along the axes that rows are cut along.
    in_use = on_device(state.params, whole="batch")
    held = {"parameters": parameters, "optimizer": on_device(state.opt_state)}
    # Of the part that is computed, and of those before it.
    held["gradients"] = in_use * (1 if parts_of(config, number) == 1 else 2)
    item = DTYPES[config.model.dtype](0).dtype.itemsize
    if item < 4 or in_use > parameters:
        held["parameters in use"] = in_use * item // 4
    if teacher is not None:
        params = abstract_params(teacher)
        held["teacher"] = on_device(params) + on_device(params, whole="batch") * item // 4
    return held


def with_remat(config: Config, remat: str) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))


def _largest(fits: dict[str, Fit]) -> tuple[str, int] | None:
    """The first remat policy with which some rows fit, and its microbatch."""
    return next(((remat, of.microbatch) for remat, of in fits.items() if of.microbatch), None)


def fitting(config: Config, devices: Devices) -> Config:
    """The config as it is where it fits, else with the microbatch that does, and with the first
    remat policy that lets some rows fit; as it is where nothing helps."""
    fits = plan(config, devices).fits
    found = _largest(fits)
    if fits[config.model.remat].fits or found is None:
        return config
    remat, rows = found
    train = dataclasses.replace(config.train, microbatch=rows, accumulation=1)
    return dataclasses.replace(with_remat(config, remat), train=train)


def remedy(config: Config, fits: dict[str, Fit]) -> str:
    """What to do where a step is too large, by what `fits_of` gives; a sentence."""
    own = next(iter(fits))
    found = _largest(fits)
    if fits[own].fits and (fewer := _fewer(fits[own])):
        found = own, fewer
    if found is None:
        return (
            f"Not one row fits, with model.remat={next(reversed(fits))} neither: hold weights in "
            "pieces with --config.sharding.fsdp=-1 --config.sharding.data=1, cut them further with "
            "--config.sharding.tensor, or take a device with more memory."
        )
    remat, rows = found
    flags = [f"--config.train.microbatch={rows}"]
    if config.train.accumulation > 1:
        flags.append("--config.train.accumulation=1")
    if remat != own:
        flags.insert(0, f"--config.model.remat={remat}")
    of = fits[remat]
    text = f"Set {' '.join(flags)}: {rows} of the {of.rows} rows of a device at once, at most"
    if sum(of.held.values()) > _MUCH * of.memory:
        text += "; or hold weights in pieces with --config.sharding.fsdp"
    return f"{text}."


def _fewer(of: Fit) -> int:
    """The next smaller number of rows at once; 0: there is none."""
    return max((n for n in range(1, of.at_once) if of.rows % n == 0), default=0)


def memory_line(of: Fit) -> str:
    """What a device has to hold, in words."""
    parts = [f"{name} {size / 1e9:.3g}" for name, size in of.held.items()]
    return (
        f"{of.needed / 1e9:.3g} GB on a device that gives programs {of.memory / 1e9:.3g}: "
        f"{', '.join(parts)}, and {of.at_once} rows at once of {of.per_row / 1e9:.3g} each"
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config on devices that are not here."""

    devices: Devices
    kernel: str  # of attention
    fits: dict[str, Fit]  # of `fits_of`
    remedy: str  # where it does not fit, or not in truth
    parts: int
    mfu: float
    mfu_is: str  # where it comes from
    step_seconds: float  # at that MFU
    tokens_per_second: float
    days: float
    sent_bytes: int  # of the gradient, that each device sends and receives in a step
    sent_seconds: float  # at least, at the links' rate
    checkpoint_bytes: int
    workdir_bytes: int  # checkpoints that are kept, and one that is being written
    phase: str = ""  # which of the run's, where it has some
    compiler: dict | None = None  # what it says, see `compiler.ask`; None: it was not asked

    @property
    def fit(self) -> Fit:
        """Of the config as it is."""
        return next(iter(self.fits.values()))

    @property
    def problem(self) -> str | None:
        """What is wrong where it does not fit, and what to do; the compiler knows best."""
        verdict = (self.compiler or {}).get("fits", self.fit.fits)
        if verdict:
            return None
        if self.fit.fits:
            return (
                f"the compiler finds no room on {self.devices} for this config, which by "
                f"arithmetic needs {memory_line(self.fit)}. {self.remedy}"
            )
        where = f"{self.phase}: " if self.phase else ""
        return (
            f"{where}this config asks for more memory than each of {self.devices} has: "
            f"{memory_line(self.fit)}. {self.remedy}"
        )

    def facts(self) -> dict:
        """Every figure, JSON-serialisable."""
        own = self.fit
        facts = dataclasses.asdict(self) | {
            "devices": self.devices.number,
            "device": self.devices.name,
            "memory_bytes": own.memory,
            "held_bytes": own.held,
            "bytes_per_row": own.per_row,
            "needed_bytes": own.needed,
            "fits": own.fits,
            "rows_of_a_device": own.rows,
            "rows_at_once": own.at_once,
        }
        facts["problem"] = self.problem
        del facts["remedy"]
        facts["rows_that_fit"] = {remat: of.most_at_once for remat, of in self.fits.items()}
        facts["microbatch"] = {remat: of.microbatch for remat, of in self.fits.items()}
        return facts

    def lines(self) -> list[str]:
        """The same for a person."""
        own, chip = self.fit, self.devices.chip
        memory, share = chip.available
        told = [
            f"On {self.devices}, planned by arithmetic, not measured"
            + (f"; {self.phase}" if self.phase else ""),
            f"  {'memory of a device, GB':<28}{memory / 1e9:>13.2f}"
            + (f"  ({share})" * bool(share)),
            f"  {'attention kernel':<28}{self.kernel:>13}",
        ]
        told += [f"  {f'{name}, GB':<28}{size / 1e9:>13.3f}" for name, size in own.held.items()]
        told += [
            f"  {'a row, GB':<28}{own.per_row / 1e9:>13.3f}",
            f"  {'rows of a device':<28}{own.rows:>13,}",
            f"  {'rows at once':<28}{own.at_once:>13,}  (parts of a batch: {self.parts})",
            f"  {'needed, GB':<28}{own.needed / 1e9:>13.2f}  "
            f"({'fits' if own.fits else 'does not fit'})",
        ]
        if self.compiler:
            said = self.compiler.get("missing", "it does not fit")
            if "peak" in self.compiler:
                said = f"it fits, {self.compiler['peak'] / 1e9:.2f} GB"
            told.append(f"  {'the compiler':<28}{said:>13}")
        for remat, of in self.fits.items():
            best = f"largest microbatch: {of.microbatch}" if of.microbatch else "too few"
            name = f"rows that fit, remat {remat}"
            told.append(f"  {name:<28}{of.most_at_once:>13,}  ({best})")
        told += [
            f"  {'MFU, assumed':<28}{self.mfu:>13.2f}  ({self.mfu_is})",
            f"  {'tokens per second':<28}{self.tokens_per_second:>13,.0f}",
            f"  {'seconds of a step':<28}{self.step_seconds:>13.4g}",
            f"  {'of which sending, at least':<28}{self.sent_seconds:>13.4g}  "
            f"({self.sent_bytes / 1e6:,.1f} MB of gradient, links of {chip.links / 1e9:,.0f} GB/s)",
            f"  {'days':<28}{self.days:>13.2f}",
            f"  {'a checkpoint, GB':<28}{self.checkpoint_bytes / 1e9:>13.3f}",
            f"  {'checkpoints at most, GB':<28}{self.workdir_bytes / 1e9:>13.3f}",
        ]
        return told


def asked(config: Config, planned: Plan, say: Callable[[str], None]) -> Plan:
    """The plan with what the compiler says of it; raises ConfigError where it cannot be asked."""
    return dataclasses.replace(planned, compiler=ask(config, planned.devices, planned.kernel, say))


def products_share(hidden_size: int) -> float:
    """The share of its peak at which an H100 computes matrix products of this size."""
    return next(share for size, share, _ in _ON_AN_H100 if hidden_size >= size)


def assumed_mfu(hidden_size: int, chip: Chip) -> float:
    """Model FLOPs over a chip's peak, as long as none is measured: products at the share of the
    peak that they reach on an H100, and behind them what is moved there, at this chip's bandwidth.
    Small models reach less."""
    share = products_share(hidden_size)
    on_an_h100 = next(mfu for size, _, mfu in _ON_AN_H100 if hidden_size >= size)
    # In the time that the operations take at the peak.
    moving = 1 / on_an_h100 - 1 / share
    h100 = CHIPS["h100"]
    moving *= (chip.flops / chip.reached) / (h100.flops / h100.reached)
    return 1 / (1 / share + moving)


def plans(
    config: Config, devices: Devices, mfu: float | None = None, teacher: Albert | None = None
) -> list[Plan]:
    """As `plan`, for each phase of a run."""
    return [
        dataclasses.replace(
            plan(phase.config, devices, mfu, teacher, phase.end - phase.first),
            phase=str(phase) if config.phases else "",
        )
        for phase in phases_of(config)
    ]


def plan(
    config: Config,
    devices: Devices,
    mfu: float | None = None,
    teacher: Albert | None = None,
    steps: int | None = None,
) -> Plan:
    """A config on devices that are not here, without its phases.

    Args:
      steps: how long it runs; None: `train.num_steps`.
      mfu: model FLOPs over the devices' peak; None: see `assumed_mfu`.
      teacher: the model that `config.distillation` names, as the run computes it.

    Raises ConfigError when these devices cannot share the batch or the parameters, or lack the
    attention kernel.
    """
    config = in_bfloat16(config)
    task, chip, number = find_task(config.task), devices.chip, devices.number

    def there(use):
        return use._replace(backend=chip.backend, capability=chip.capability)

    check_devices(config, task.abstract_params(task.make_model(config)), number, there)
    use = task.attention_use(config)
    kernel = candidates(config.model.attention)[0]
    if use is not None:
        kernel, _ = attention.choose(config.model.attention, there(use))
    memory, _ = chip.available

    fits = fits_of(config, number, memory, chip.backend, kernel, teacher)
    of = next(iter(fits.values()))
    if mfu is not None:
        source = "as given"
    else:
        mfu = assumed_mfu(config.model.hidden_size, chip)
        source = "from an H100's program and this chip's bandwidth; not measured"
        if config.model.remat == "full":
            mfu *= 3 / 4  # a forward pass more, a third of the operations
    per_row = flops_per_row(config, teacher.config if teacher else None)
    train = config.train
    seconds = train.batch_size * per_row / (mfu * chip.flops * number)
    tokens = train.batch_size * task.tokens_per_row(config)
    # A ring sends nearly everything twice, in one direction.
    shards = config.sharding.shares("batch", number)
    item = DTYPES[train.reduce_dtype](0).dtype.itemsize
    gradient = of.held["gradients"] // (1 if of.at_once == of.rows else 2)
    sent = round(2 * (shards - 1) / shards * gradient * item / 4)
    whole = state_bytes(config)
    checkpoint = whole["parameters"] + whole["optimizer"]
    return Plan(
        devices,
        kernel,
        fits,
        remedy(config, fits),
        of.rows // of.at_once,
        mfu,
        source,
        seconds,
        tokens / seconds,
        seconds * (train.num_steps if steps is None else steps) / 86400,
        sent,
        sent / (chip.links / 2),
        checkpoint,
        (train.keep_last + train.keep_best + 1) * checkpoint,
    )
