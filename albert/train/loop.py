"""The pretraining loop."""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

from albert.checkpoints.store import Checkpoints
from albert.data.loader import BatchSource, iterate
from albert.data.pretraining.prepare import PreparedData, open_tokenizer, prepare
from albert.data.sources.base import SourceError
from albert.interop.weights import Weights
from albert.interop.workdir import is_run
from albert.models.encoder import Albert, abstract_params
from albert.runtime import RunError
from albert.runtime.console import tell
from albert.runtime.lock import WorkdirLock
from albert.runtime.paths import is_remote
from albert.runtime.signals import Preempted, StopNow, StopSignals
from albert.runtime.watchdog import Watchdog
from albert.train.config import Config, check_devices
from albert.train.divergence import Rollbacks, report
from albert.train.evaluate import Evaluator, format_table, write_report
from albert.train.init_from import describe_start, read_start, start_state
from albert.train.log import RunLog
from albert.train.log_files import last_logged_step
from albert.train.optimizers import make_optimizer
from albert.train.resume_check import check_same_run, describe_run
from albert.train.saving import FIGURES, Saver, restore
from albert.train.sharding import batch_sharding, local_rows, make_mesh, put_batch
from albert.train.step import on_mesh
from albert.train.stopping import StopQuestion

_EXAMPLES_SHOWN = 5


def train(config: Config, workdir: Path, stop: StopSignals | None = None) -> None:
    """Trains until `num_steps`, going on from the newest sound checkpoint in `workdir` if there is
    one.

    Args:
      config: checked.
      workdir: folder of checkpoints and logs; made if it is not there.
      stop: signals that were taken already. By default they are taken here, for as long as it runs.

    Raises:
      ConfigError: the devices cannot share the batch or the parameters.
      CheckpointError: no checkpoint is sound, or what `config.init_from` names cannot be read.
      SourceError, VocabularyError: the text or the vocabulary cannot be used.
      RunError: the workdir belongs to other data or another job, or training diverged.
      Preempted: by SIGTERM or SIGINT, with everything saved.
    """
    say = tell if jax.process_index() == 0 else lambda text: None
    with contextlib.ExitStack() as stack:
        if stop is None:
            stop = stack.enter_context(StopSignals())
        try:
            with stop.immediately():
                _claim(workdir)
                check_devices(config, abstract_params(Albert(config.model)), jax.device_count())
                lock = stack.enter_context(contextlib.closing(_lock(workdir, say)))
                # Closing waits for what is being saved, however the run ends.
                checkpoints = stack.enter_context(
                    contextlib.closing(
                        Checkpoints(
                            workdir / "checkpoints",
                            config.train.keep_last,
                            config.train.keep_best,
                            create=True,
                        )
                    )
                )
                saved = checkpoints.newest_sound(say)
                if saved is not None and not is_run(checkpoints.info(saved)):
                    raise RunError(
                        f"{workdir} holds a model and not a run. Start from it in another "
                        f"--workdir with --config.init_from={workdir}, and "
                        "--config.init_optimizer to go on with its optimiser and step."
                    )
                if saved is not None and _is_finished(config, workdir, saved):
                    say(
                        f"{workdir} is finished: it has a checkpoint of step {saved} of "
                        f"{config.train.num_steps}. Raise train.num_steps or choose another "
                        "--workdir."
                    )
                    return
                start = read_start(config) if config.init_from and saved is None else None
                data = _prepare(config, workdir, saved, start)
                if saved is not None:
                    check_same_run(checkpoints.info(saved), config, data, workdir, say)
                elif (logged := last_logged_step(workdir)) > 0:
                    say(
                        f"Warning: the logs in {workdir} go to step {logged}, and there is no "
                        "checkpoint: beginning again at the first step."
                    )
        except StopNow:
            raise Preempted(
                f"Stopped by {stop.asked} before the first step; what was prepared is kept. The "
                "same command goes on.",
                alone=True,
            ) from None
        _run(config, workdir, data, checkpoints, saved, start, lock, stop, say)


def _is_finished(config: Config, workdir: Path, saved: int) -> bool:
    done = workdir / f"eval_{saved}.json"
    return saved > config.train.num_steps or (saved == config.train.num_steps and done.is_file())


def _prepare(
    config: Config, workdir: Path, saved: int | None, start: Weights | None
) -> PreparedData:
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
    return data


def _run(
    config: Config,
    workdir: Path,
    data: PreparedData,
    checkpoints: Checkpoints,
    saved: int | None,
    start: Weights | None,
    lock: "WorkdirLock | _NoLock",
    stop: StopSignals,
    say: Callable[[str], None],
) -> None:
    """Sets up the devices, takes every step that is left, and reports."""
    description = describe_run(config, data)
    model = Albert(config.model)
    optimizer, schedule = make_optimizer(config.optimizer, config.train.num_steps)
    mesh = make_mesh(config.sharding)
    rows_sharding = batch_sharding(mesh, config.sharding)
    abstract, create, train_step = on_mesh(
        model,
        optimizer,
        schedule,
        config.train.accumulation,
        config.seed,
        mesh,
        config.sharding,
        config.train.spike_factor,
    )
    evaluated = False  # whether what is there now was, when it was saved
    figures: list[dict] = []  # of steps that were not logged when it was saved
    if saved is not None:
        say(f"Going on from the checkpoint of step {saved} in {workdir}.")
        state = restore(checkpoints, saved, abstract)
        info = checkpoints.info(saved)
        evaluated, figures = "loss" in info, info[FIGURES]
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
            model,
            mesh,
            config.sharding,
            data.valid,
            config.train.eval_rows,
            config.train.eval_batch_size,
        )
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
        say(f"Compiling; then steps {first_step + 1} to {config.train.num_steps}.")
        saver = Saver(checkpoints, description, config.train, say)
        saver.step = first_step
        rolls_back = config.train.on_divergence == "rollback"
        rollbacks = Rollbacks(checkpoints, say)
        question = StopQuestion(stop, mesh)
        with (
            contextlib.closing(Watchdog(config.train.stall_seconds)) as watchdog,
            contextlib.closing(
                RunLog(
                    config, workdir, first_step, evaluated, figures, data.train.rows_per_epoch, say
                )
            ) as log,
            contextlib.closing(iterate(source, first_step, config.data.workers)) as batches,
        ):

            def preempted() -> Preempted:
                by = stop.asked or "a signal to another process"
                if step == first_step and saved is None:
                    return Preempted(
                        f"Stopped by {by} before the first step. The same command begins again."
                    )
                return Preempted(
                    f"Stopped by {by} at step {step}, which is saved. The same command goes on."
                )

            def save_and_raise(error: Exception) -> None:
                """Ends the run with the state of this step on disk."""
                alone = jax.process_count() > 1 and not isinstance(error, Preempted)
                if step > first_step and not alone:  # saving takes all processes
                    log.flush()
                    saver.finish()
                    saver.save_now(step, state, log.figures, result.get("loss"))
                raise error

            for step in range(first_step, config.train.num_steps + 1):
                # The order is fixed: stop, evaluate, save, next batch, step, log. What is saved has
                # been evaluated, and a batch is drawn only when its step will be taken.
                is_last = step == config.train.num_steps
                due = (step > 0 and step % config.train.eval_every == 0) or is_last
                result: dict[str, float] = {}
                if due:
                    log.flush()

                # Stop.
                saver.look()
                if log.divergence:
                    saver.finish()
                    told = report(workdir, source, log.divergence, checkpoints.steps())
                    if not rolls_back:
                        raise RunError(f"{told}\n{_ADVICE}")
                    state = rollbacks.roll_back(step, abstract, told)
                    log.rolled_back()
                    saver.save(step, state, log.figures)
                if lock.lost:
                    raise RunError(f"Another job has taken {workdir} over: this one ends.")
                if question.any() and not is_last:
                    save_and_raise(preempted())

                # Evaluate.
                if due and not (step == first_step and evaluated and not is_last):
                    watchdog.now("evaluation", f"the evaluation at step {step}")
                    try:
                        with stop.immediately() if jax.process_count() == 1 else _nothing():
                            result = evaluator.figures(state.params)
                    except StopNow:
                        save_and_raise(preempted())
                    if not (step == first_step and evaluated):  # logged before it was saved
                        log.evaluated(step, result)

                # Save.
                if saver.is_due(step, result.get("loss")):
                    watchdog.now("saving", f"saving step {step}")
                    log.flush()
                    saver.save(step, state, log.figures, result.get("loss"))
                if is_last:
                    saver.save_now(step, state, log.figures, result.get("loss"))
                    break

                # Next batch.
                watchdog.now("data", f"making the batch of step {step + 1}")
                begin = time.monotonic()
                try:
                    with stop.immediately() if jax.process_count() == 1 else _nothing():
                        rows = next(batches)
                except StopNow:
                    save_and_raise(preempted())
                except Exception as error:  # whatever a source, a worker or Grain raises
                    save_and_raise(
                        RunError(f"The batch of step {step + 1} could not be made: {error}")
                    )
                batch = put_batch(rows, rows_sharding)
                waited = time.monotonic() - begin

                # Step.
                first = step == first_step
                watchdog.now("compiling" if first else "step", f"step {step + 1}")
                state, metrics = train_step(state, batch)

                # Log.
                log.step(step + 1, metrics, waited)
            watchdog.rest()

        examples = evaluator.filled_masks(state.params, _EXAMPLES_SHOWN)
    if jax.process_index() == 0:
        write_report(workdir / f"eval_{step}.json", step, result, examples)
    say(format_table(f"at step {step}", result))
    say("Masks filled in, [right] or [guess, was: truth]:")
    say("\n".join(f"  {line}" for line in examples))
    say(
        f"Checkpoints, logs and vocabulary are in {workdir}. Look at the curves with:\n"
        f"  {Path(sys.executable).parent / 'tensorboard'} --logdir {workdir}"
    )


_ADVICE = (
    "Lower optimizer.learning_rate, or lengthen optimizer.warmup_steps, and start again in another "
    "--workdir; or go on behind these rows with --config.train.on_divergence=rollback."
)


_nothing = contextlib.nullcontext


def _claim(workdir: Path) -> None:
    """Finds out at once whether the workdir can be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".write-test-{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # of the file system, or of whatever the library of a store raises
        if not isinstance(error, OSError) and not is_remote(workdir):
            raise
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"Cannot write to the workdir {workdir}: {reason}. Choose another --workdir."
        ) from error


class _NoLock:
    """That of the processes that leave it to the first."""

    lost = False

    def close(self) -> None:
        pass


def _lock(workdir: Path, say: Callable[[str], None]) -> WorkdirLock | _NoLock:
    """The first process takes the workdir for all; raises RunError on all when it cannot."""
    lock: WorkdirLock | _NoLock = _NoLock()
    error: RunError | None = None
    if jax.process_index() == 0:
        try:
            lock = WorkdirLock(workdir, say)
        except RunError as taken:
            error = taken
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.array(bool(error))):
        raise error or RunError(f"Another job works in {workdir}; the first process tells which.")
    if error:
        raise error
    return lock
