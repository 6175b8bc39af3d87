"""The pretraining loop."""

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

from albert.checkpoint import Checkpoints
from albert.config import Config, check_devices
from albert.cost import flops_per_token
from albert.data.pipeline import BatchSource, iterate
from albert.data.prepare import PreparedData, changed_corpora, open_tokenizer, prepare
from albert.data.reading import SourceError
from albert.evaluation import Evaluator, format_table, write_report
from albert.init_from import describe_start, read_start, start_state
from albert.interop.weights import Weights
from albert.interop.workdir import is_run
from albert.metrics import MetricWriter, format_count, format_seconds, peak_flops
from albert.model import Albert, abstract_params
from albert.model_config import DTYPES
from albert.optimiser import make_optimizer
from albert.sharding import batch_sharding, local_rows, make_mesh, put_batch
from albert.train_step import TrainState, on_mesh

# Steps whose figures may still be on the device: the host runs ahead by so many, not more.
_STEPS_AHEAD = 2
_EXAMPLES_SHOWN = 5


class RunError(RuntimeError):
    """The run cannot go on; says why and what to do."""


def train(config: Config, workdir: Path) -> None:
    """Trains until `num_steps`, going on from the newest checkpoint in `workdir` if there is one.

    Raises:
      ConfigError: the devices cannot share the batch or the parameters.
      CheckpointError: a checkpoint, or what `config.init_from` names, cannot be read.
      SourceError, VocabularyError: the text or the vocabulary cannot be used.
      RunError: the workdir belongs to other data, or training diverged.
    """
    say = print_progress if jax.process_index() == 0 else lambda text: None
    _claim(workdir)
    check_devices(config, abstract_params(Albert(config.model)), jax.device_count())
    # Closing waits for what is being saved, however the run ends.
    with contextlib.closing(
        Checkpoints(
            workdir / "checkpoints", config.train.keep_last, config.train.keep_best, create=True
        )
    ) as checkpoints:
        saved = max(checkpoints.steps(), default=None)
        if saved is not None and not is_run(checkpoints.info(saved)):
            raise RunError(
                f"{workdir} holds a model and not a run. Start from it in another --workdir with "
                f"--config.init_from={workdir}, and --config.init_optimizer to go on with its "
                "optimiser and step."
            )
        if saved is not None and saved >= config.train.num_steps:
            say(
                f"{workdir} is finished: it has a checkpoint of step {saved} of "
                f"{config.train.num_steps}. Raise train.num_steps or choose another --workdir."
            )
            return
        start = read_start(config) if config.init_from and saved is None else None
        tokenizer = start.tokenizer if start else None
        if config.data.tokenizer:
            tokenizer = None
        elif config.init_from and saved is not None:
            tokenizer = open_tokenizer(
                workdir / "tokenizer.model", config.data, config.model.vocab_size
            )
        data = prepare(config.data, config.model.vocab_size, config.seed, tokenizer)
        if data.train.rows_per_epoch < config.train.batch_size:
            raise SourceError(
                f"The training text is too small: it gives {data.train.rows_per_epoch} rows of up "
                f"to {config.data.seq_length} tokens, fewer than one batch of "
                f"{config.train.batch_size}. Add text or lower train.batch_size."
            )
        if saved is not None:
            _check_same_run(checkpoints.info(saved), config, data, workdir, say)
        _run(config, workdir, data, checkpoints, saved, start, say)


def _run(
    config: Config,
    workdir: Path,
    data: PreparedData,
    checkpoints: Checkpoints,
    saved: int | None,
    start: Weights | None,
    say: Callable[[str], None],
) -> None:
    """Sets up the devices, takes every step that is left, and reports."""
    description = {"config": dataclasses.asdict(config), "data": data.identity}
    model = Albert(config.model)
    optimizer, schedule = make_optimizer(config.optimizer, config.train.num_steps)
    mesh = make_mesh(config.sharding)
    rows_sharding = batch_sharding(mesh, config.sharding)
    state, create, train_step = on_mesh(
        model, optimizer, schedule, config.train.accumulation, config.seed, mesh, config.sharding
    )
    if saved is not None:
        say(f"Going on from the checkpoint of step {saved} in {workdir}.")
        state = _restore(checkpoints, saved, state)
    else:
        state = create()
        if start:
            say(describe_start(config, start))
            state = start_state(config, start, state)
            start.params, start.mu, start.nu = {}, None, None  # they are on the devices now
    first_step = int(state.step)
    if jax.process_index() == 0:
        # Only now, so that a run that cannot go on changes nothing.
        data.tokenizer.save(workdir / "tokenizer.model")
        (workdir / "config.json").write_text(json.dumps(description, indent=1))
    with jax.set_mesh(mesh), nn.logical_axis_rules(config.sharding.rules):
        evaluator = Evaluator(
            model, mesh, config.sharding, data.valid,
            config.train.eval_rows, config.train.eval_batch_size,
        )  # fmt: skip
        source = BatchSource(
            data.train,
            config.train.batch_size,
            local_rows(rows_sharding, config.train.batch_size),
            config.train.num_steps,
        )
        say(
            f"{data.train.rows_per_epoch:,} rows an epoch, "
            f"{100 * data.train.padding():.1f} % of their positions padding."
        )
        best_loss = math.inf
        last_save = time.monotonic()
        say(f"Compiling; then steps {first_step + 1} to {config.train.num_steps}.")
        with (
            contextlib.closing(
                _Log(config, workdir, first_step, data.train.rows_per_epoch, checkpoints, say)
            ) as log,
            contextlib.closing(iterate(source, first_step, config.data.workers)) as batches,
        ):
            for step in range(first_step, config.train.num_steps + 1):
                # The order is fixed: evaluate, save, next batch, step, log. What is saved has been
                # evaluated, and a batch is drawn only when its step will be taken.
                is_last = step == config.train.num_steps

                # Evaluate.
                result: dict[str, float] = {}
                if step > first_step and (step % config.train.eval_every == 0 or is_last):
                    log.flush()
                    result = evaluator.figures(state.params)
                    log.evaluated(step, result)

                # Save.
                improved = bool(result) and result["loss"] < best_loss
                best_loss = min(best_loss, result["loss"]) if result else best_loss
                if step > first_step and (
                    is_last
                    or step % config.train.checkpoint_every == 0
                    or (improved and config.train.keep_best > 0)
                    or (step % config.train.log_every == 0 and _minutes_passed(config, last_save))
                ):
                    log.flush()
                    checkpoints.save(
                        step, *_split(state), description, result["loss"] if result else None
                    )
                    last_save = time.monotonic()
                if is_last:
                    break

                # Next batch.
                wait_begin = time.monotonic()
                batch = put_batch(next(batches), rows_sharding)
                waited = time.monotonic() - wait_begin

                # Step.
                state, metrics = train_step(state, batch)

                # Log.
                log.step(step + 1, metrics, waited)

        examples = evaluator.filled_masks(state.params, _EXAMPLES_SHOWN)
    checkpoints.wait()
    if jax.process_index() == 0:
        write_report(workdir / f"eval_{step}.json", step, result, examples)
    say(format_table(f"at step {step}", result))
    say("Masks filled in, [right] or [guess, was: truth]:")
    say("\n".join(f"  {line}" for line in examples))
    say(f"Checkpoints, logs and vocabulary are in {workdir}. Look at the curves with:\n"
        f"  {Path(sys.executable).parent / 'tensorboard'} --logdir {workdir}")  # fmt: skip


def print_progress(text: str) -> None:
    print(text, flush=True)


def _claim(workdir: Path) -> None:
    """Finds out at once whether the workdir can be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".write-test-{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"Cannot write to the workdir {workdir}: {error.strerror}. Choose another --workdir."
        ) from error


def _check_same_run(
    saved: dict, config: Config, data: PreparedData, workdir: Path, say: Callable[[str], None]
) -> None:
    """Refuses to go on with another model or other rows; tells of any other change."""
    now = json.loads(json.dumps({"config": dataclasses.asdict(config), "data": data.identity}))

    def changes(name: str, before: dict, after: dict) -> list[str]:
        return [
            f"  {name}.{field}: {before.get(field)} -> {after.get(field)}"
            for field in sorted(before.keys() | after.keys())
            if before.get(field) != after.get(field)
        ]

    refused = changes("data", saved["data"], now["data"])
    refused += changed_corpora(config.data, saved["data"]["train"], data.train)
    told: list[str] = []
    for section, fields in now["config"].items():
        if section in ("seed", "data", "init_from", "init_optimizer"):
            continue  # the identity of the data tells, and where a run started is past
        for line in changes(section, saved["config"][section], fields):
            field = line.split(":")[0].strip()
            matters = section == "model" and field not in ("model.dtype", "model.remat")
            # A row's number is step * batch_size + its place in the batch.
            (refused if matters or field == "train.batch_size" else told).append(line)
    if refused:
        raise RunError(
            f"The checkpoints in {workdir} come from another run:\n"
            + "\n".join(refused)
            + "\nGo back to these values, or start a new run in another --workdir."
        )
    if told:
        say("Changed since the checkpoint was written:\n" + "\n".join(told))


def _split(state: TrainState) -> tuple[dict, dict]:
    """Parameters, which evaluation reads alone, and the rest."""
    training = dict(vars(state))
    return training.pop("params"), training


def _restore(checkpoints: Checkpoints, step: int, state: TrainState) -> TrainState:
    params, training = checkpoints.restore(step, *_split(state))
    return TrainState(params=params, **training)


def _minutes_passed(config: Config, last_save: float) -> bool:
    """Whether a save by time is due; one process decides for all."""
    if not config.train.checkpoint_minutes:
        return False
    due = time.monotonic() - last_save >= 60 * config.train.checkpoint_minutes
    if jax.process_count() > 1:
        due = multihost_utils.broadcast_one_to_all(np.array(due))
    return bool(due)


class _Log:
    """Collects the figures of every step without making the device wait for the host."""

    def __init__(self, config, workdir, first_step, rows_per_epoch, checkpoints, say):
        self._config = config
        self._checkpoints = checkpoints
        self._say = say
        self._rows_per_epoch = rows_per_epoch
        self._writer = MetricWriter(workdir, first_step) if jax.process_index() == 0 else None
        peak, origin = peak_flops(DTYPES[config.model.dtype])
        say(f"{jax.device_count()} x {jax.devices()[0].device_kind}; MFU counts against "
            f"{format_count(peak)}FLOP/s each ({origin}).")  # fmt: skip
        tokens = config.train.batch_size * config.data.seq_length
        self._flops_per_step = tokens * flops_per_token(
            config.model, config.data.seq_length, config.data.max_predictions
        )
        self._peak = peak * jax.device_count()
        self._pending: deque = deque()
        self._done: list[dict[str, float]] = []  # figures of the steps since the last line
        # When the last step was finished; None before the first and after a pause, so that
        # compiling, evaluating and saving count for no step.
        self._since: float | None = None
        self._elapsed, self._timed_steps, self._waited = 0.0, 0, 0.0

    def step(self, step: int, metrics, waited: float) -> None:
        """Takes the figures of a step that was just started."""
        self._pending.append((step, metrics))
        self._waited += waited if self._since is not None else 0.0
        while len(self._pending) > _STEPS_AHEAD:
            self._collect()

    def flush(self) -> None:
        """Waits for every step that was started, and stops the clock until the next."""
        while self._pending:
            self._collect()
        self._since = None

    def _collect(self) -> None:
        step, metrics = self._pending.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        if values["bad_steps_in_row"] >= self._config.train.max_bad_steps:
            self._stop(step, values)
        self._done.append(values)
        if self._since is not None:
            self._elapsed += now - self._since
            self._timed_steps += 1
        self._since = now
        if step % self._config.train.log_every == 0 or step == self._config.train.num_steps:
            self._write(step)

    def _write(self, step: int) -> None:
        config = self._config
        last = self._done[-1]
        means = ["loss", "mlm_loss", "mlm_accuracy", "grad_norm", "update_norm"]
        if config.data.sentence_objective != "none":
            means += ["sop_loss", "sop_accuracy"]
        # Steps that were skipped have no figures worth a mean; bad_steps tells of them.
        finite = [v for v in self._done if math.isfinite(v["loss"] + v["grad_norm"])]
        values = {n: float(np.mean([v[n] for v in finite])) for n in means} if finite else {}
        values |= {n: last[n] for n in ("learning_rate", "param_norm", "bad_steps")}
        values["epoch"] = step * config.train.batch_size / self._rows_per_epoch
        line = f"step {step}/{config.train.num_steps}  "
        line += (
            f"loss {values['loss']:.3f}  "
            f"mlm {values['mlm_loss']:.3f} ({100 * values['mlm_accuracy']:.1f} %)"
            if finite
            else "loss not finite"
        )
        if finite and "sop_loss" in values:
            line += f"  sop {values['sop_loss']:.3f} ({100 * values['sop_accuracy']:.1f} %)"
        if self._timed_steps:
            seconds = self._elapsed / self._timed_steps
            real = float(np.mean([v["real_tokens"] for v in self._done]))
            values |= {
                "step_seconds": seconds,
                "rows_per_second": config.train.batch_size / seconds,
                "real_tokens_per_second": real / seconds,
                "padded_tokens_per_second": config.train.batch_size * config.data.seq_length
                / seconds,
                "mfu": self._flops_per_step / seconds / self._peak,
                "data_wait_share": min(self._waited / self._elapsed, 1.0),
            }  # fmt: skip
            left = seconds * (config.train.num_steps - step)
            line += (f"  {format_count(values['real_tokens_per_second'])} tokens/s  "
                     f"waiting for data {100 * values['data_wait_share']:.0f} %  "
                     f"ETA {format_seconds(left)}")  # fmt: skip
        if last["bad_steps"]:
            line += f"  skipped {last['bad_steps']:.0f}"
        if self._writer:
            self._writer.write(step, "train", values)
        self._say(line)
        self._done, self._elapsed, self._timed_steps, self._waited = [], 0.0, 0, 0.0

    def evaluated(self, step: int, result: dict[str, float]) -> None:
        if self._writer:
            self._writer.write(step, "valid", result)
        line = (
            f"step {step}  held-out: mlm {result['mlm_loss']:.3f} "
            f"({100 * result['mlm_accuracy']:.1f} %), unigram entropy "
            f"{result['unigram_entropy']:.3f}"
        )
        if "sop_loss" in result:
            line += f"; sop {result['sop_loss']:.3f} ({100 * result['sop_accuracy']:.1f} %)"
        self._say(line)

    def _stop(self, step: int, values: dict[str, float]):
        self._checkpoints.wait()
        good = max(self._checkpoints.steps(), default=None)
        raise RunError(
            f"Training diverged: loss or gradient was not finite in "
            f"{values['bad_steps_in_row']:.0f} steps in a row, the last of them step {step}. "
            + (f"The last good checkpoint is step {good}. " if good else "There is no checkpoint. ")
            + "Lower optimizer.learning_rate, or lengthen optimizer.warmup_steps, and start again "
            "in another --workdir."
        )

    def close(self) -> None:
        if self._writer:
            self._writer.close()
