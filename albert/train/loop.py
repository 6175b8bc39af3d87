"""Training, whatever the task: from a config to a finished run."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax

from albert.checkpoints.store import Checkpoints
from albert.data.loader import BatchSource, iterate
from albert.interop.weights import Weights
from albert.interop.workdir import BEST_REPORT, VOCABULARY, is_run
from albert.models import attention
from albert.runtime import RunError
from albert.runtime.console import tell
from albert.runtime.lock import WorkdirLock
from albert.runtime.paths import place
from albert.runtime.signals import Preempted, StopNow, StopSignals
from albert.runtime.watchdog import Watchdog
from albert.tasks import check_task, find_task
from albert.tasks.base import Batch, Task
from albert.train.config import Config, check_devices, in_steps, with_dtype
from albert.train.divergence import Rollbacks, report
from albert.train.evaluate import Evaluator, report_text, sample_lines, write_report
from albert.train.init_from import read_start, resumed, start_state
from albert.train.log import RunLog
from albert.train.log_files import last_logged_step
from albert.train.optimizers import make_optimizer
from albert.train.progress import Progress
from albert.train.resume_check import check_same_run, check_version, describe_run
from albert.train.saving import Saver, restore
from albert.train.sharding import batch_sharding, local_rows, make_mesh, put_batch
from albert.train.step import TrainState, abstract_state, shard_training
from albert.train.stopping import StopQuestion
from albert.train.workdir import NoLock, claim, lock

_EXAMPLES_SHOWN = 5
_ADVICE = (
    "Lower optimizer.learning_rate, or lengthen optimizer.warmup_steps, and start again in another "
    "--workdir; or go on behind these rows with --config.train.on_divergence=rollback."
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `train` came to.

    Attributes:
      workdir: with checkpoints, logs and vocabulary.
      step: steps taken.
      state: after the last step, on the devices.
      figures: evaluation -> figures of that state.
    """

    workdir: Path
    step: int
    state: TrainState
    figures: dict[str, dict[str, float]]


# Called in front of a phase of the loop: (phase, steps taken so far). The phases of a step are
# "stop", "evaluate", "save", "batch", "step" and "log", in this order; in front of the first comes
# "prepare", behind the last "report".
Watch = Callable[[str, int], None]


def train(
    config: Config,
    workdir: Path | str,
    stop: StopSignals | None = None,
    *,
    on_evaluation: Callable[[int, str, dict[str, float]], None] | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Trains until `num_steps`, resuming from the newest sound checkpoint in `workdir` if there is
    one.

    Args:
      config: checked, as `albert.config` gives it.
      workdir: folder of checkpoints and logs; made if it is not there.
      stop: signals that were taken already. By default they are taken here, for as long as it runs.
      on_evaluation: called with (step, evaluation, figures) after each one.
      watch: called in front of every phase; see `Watch`.

    Raises:
      ConfigError: the devices cannot share the batch or the parameters.
      CheckpointError: no checkpoint is sound, or what `config.init_from` names cannot be read.
      SourceError, VocabularyError: the text or the vocabulary cannot be used.
      RunError: the workdir belongs to other data or another job, or training diverged.
      Preempted: by SIGTERM or SIGINT, with everything saved.
    """
    workdir = place(workdir) if isinstance(workdir, str) else workdir
    watch = watch or (lambda phase, step: None)
    say = tell if jax.process_index() == 0 else lambda text: None
    kind = find_task(config.task)
    with contextlib.ExitStack() as stack:
        if stop is None:
            stop = stack.enter_context(StopSignals())
        try:
            with stop.immediately():
                claim(workdir)
                held = stack.enter_context(contextlib.closing(lock(workdir, say)))
                # Closing waits for what is being saved, however the run ends.
                keep = config.train.keep_last, config.train.keep_best
                checkpoints = stack.enter_context(
                    contextlib.closing(Checkpoints(workdir / "checkpoints", *keep, create=True))
                )
                saved = checkpoints.newest_sound(say)
                info = None if saved is None else _description(checkpoints, saved, workdir)
                start = None
                if info is not None:
                    config = resumed(config, info)
                elif config.init_from:
                    config, start = read_start(config)
                config = with_dtype(config, info, say)
                model = kind.make_model(config, info)
                check_devices(config, kind.abstract_params(model), jax.device_count())
                if (
                    not config.train.epochs
                    and saved is not None
                    and _is_finished(config, workdir, saved)
                ):
                    return _finished(config, kind, model, workdir, checkpoints, saved, say)
                watch("prepare", 0)
                task = kind.prepare(config, workdir, info, start)
                check_task(task)
                assert task.rows is not None
                config = in_steps(config, task.rows.rows_per_epoch)
                if saved is not None and _is_finished(config, workdir, saved):
                    return _finished(config, kind, model, workdir, checkpoints, saved, say)
                if info is not None:
                    check_same_run(info, config, task, workdir, say)
                elif (logged := last_logged_step(workdir)) > 0:
                    say(
                        f"Warning: the logs in {workdir} go to step {logged}, and there is no "
                        "checkpoint: beginning again at the first step."
                    )
        except StopNow:
            raise Preempted(
                f"Stopped by {stop.asked} before the first step; what was prepared is kept. The "
                "same command resumes it.",
                alone=True,
            ) from None
        run = Run(config, task, workdir, checkpoints, held, stop, say, on_evaluation, watch)
        with run.set_up(saved, start):
            while True:
                # The order is fixed. What is saved has been evaluated, and a batch is drawn only
                # when its step will be taken.
                run.stop_if_asked()
                run.evaluate()
                run.save()
                if run.is_over:
                    break
                batch = run.next_batch()
                run.take_step(batch)
            run.report()
        return Outcome(workdir, run.step, run.state, run.progress.evaluated)


class Run:
    """A run between two steps: `step` of them are taken, `state` is what came of them, and
    `progress` what is evaluated and logged of it."""

    state: TrainState
    step: int

    def __init__(
        self,
        config: Config,
        task: Task,
        workdir: Path,
        checkpoints: Checkpoints,
        held: WorkdirLock | NoLock,
        stop: StopSignals,
        say: Callable[[str], None],
        on_evaluation: Callable[[int, str, dict[str, float]], None] | None,
        watch: Watch,
    ):
        self.config, self.task, self.workdir = config, task, workdir
        self._checkpoints, self._lock, self._stop = checkpoints, held, stop
        self._say, self._on_evaluation, self._watch = say, on_evaluation, watch
        self.progress = Progress()
        self._description = describe_run(config, task)

    @property
    def is_over(self) -> bool:
        return self.step >= self.config.train.num_steps

    @contextlib.contextmanager
    def set_up(self, saved: int | None, start: Weights | None) -> Iterator[None]:
        """Makes or restores the state, and opens everything that the steps need.

        Args:
          saved: the checkpoint to resume from; None: there is none.
          start: the model of `config.init_from`, in a run's first start.
        """
        config, task, say = self.config, self.task, self._say
        optimizer, schedule = make_optimizer(
            config.optimizer, config.train.num_steps, task.kept(config)
        )
        self._mesh = mesh = make_mesh(config.sharding)
        self._rows_sharding = batch_sharding(mesh, config.sharding)
        self._abstract, create, self._train_step = shard_training(
            task,
            optimizer,
            schedule,
            config.train.accumulation,
            config.seed,
            mesh,
            config.sharding,
            config.train.spike_factor,
            config.train.deterministic,
            config.train.reduce_dtype,
        )
        if saved is not None:
            say(f"Resuming from the checkpoint of step {saved} in {self.workdir}.")
            self.state = restore(self._checkpoints, saved, self._abstract)
            self.progress = Progress.from_json(self._checkpoints.info(saved))
        else:
            self.state = create()
            if start:
                self.state, told = start_state(config, start, self.state, task.left_out(start))
                say(told)
                start.params, start.mu, start.nu = {}, None, None  # they are on the devices now
        self.step = self._first_step = int(self.state.step)
        self._resumed = saved is not None
        if jax.process_index() == 0:
            # Only now, so that a run that cannot be resumed changes nothing.
            if task.tokenizer:
                task.tokenizer.save(self.workdir / VOCABULARY)
            (self.workdir / "config.json").write_text(json.dumps(self._description, indent=1))
        with (
            jax.set_mesh(mesh),
            nn.logical_axis_rules(config.sharding.rules),
            contextlib.closing(Watchdog(config.train.stall_seconds)) as self._watchdog,
        ):
            size = config.train.eval_batch_size
            self._evaluators = [Evaluator(e, mesh, config.sharding, size) for e in task.evaluations]
            rows = local_rows(self._rows_sharding, config.train.batch_size)
            assert task.rows is not None
            self._source = BatchSource(
                task.rows, config.train.batch_size, rows, config.train.num_steps
            )
            if use := task.attention_use(config):
                name, why = attention.choose(config.model.attention, attention.here(use))
                say(f"Attention: {name}, since {why}.")
            for line in task.opening:
                say(line)
            steps, epoch = config.train.num_steps, task.rows.rows_per_epoch
            say(
                f"Compiling; then steps {self.step + 1} to {steps}: "
                f"{steps * config.train.batch_size / epoch:.3g} epochs of {epoch:,} rows, with "
                f"{config.optimizer.warmup_steps} steps of warm-up."
            )
            self._saver = Saver(self._checkpoints, self._description, config.train, say)
            self._saver.step = self.step
            self._rolls_back = config.train.on_divergence == "rollback"
            self._rollbacks = Rollbacks(self._checkpoints, say)
            self._question = StopQuestion(self._stop, mesh)
            with (
                contextlib.closing(
                    RunLog(config, task, self.workdir, self.step, self.progress, say)
                ) as self._log,
                contextlib.closing(iterate(self._source, self.step, task.workers)) as self._batches,
            ):
                yield

    # The phases of a step, in their order.

    def stop_if_asked(self) -> None:
        """Ends the run where that was asked for, or where it cannot go on; everything is saved."""
        self._watch("stop", self.step)
        if self._due():
            self._log.flush()
        self._saver.look()
        if self._log.divergence:
            self._saver.finish()
            steps = self._checkpoints.steps()
            told = report(self.workdir, self._source, self._log.divergence, steps)
            if not self._rolls_back:
                raise RunError(f"{told}\n{_ADVICE}")
            self.state = self._rollbacks.roll_back(self.step, self._abstract, told)
            self._log.rolled_back()
            self._saver.save(self.step, self.state, self.progress)
        if self._lock.lost:
            raise RunError(f"Another job has taken {self.workdir} over: this one ends.")
        if self._question.any() and not self.is_over:
            self._save_and_raise(self._preempted())

    def evaluate(self) -> None:
        """Makes the evaluations that are due and not made yet, and logs them."""
        for evaluator in self._due():
            name = evaluator.evaluation.name
            if name in self.progress.evaluated:
                continue  # when this state was saved
            self._watch("evaluate", self.step)
            self._watchdog.now("evaluation", f"the evaluation {name} at step {self.step}")
            try:
                with self._interruptible():
                    figures = evaluator.figures(self.state.params)
            except StopNow:
                self._save_and_raise(self._preempted())
            self._log.evaluated(self.step, evaluator.evaluation, figures)
            self.progress.evaluated[name] = figures
            self._saver.is_outdated(self.step)
            if self._on_evaluation:
                self._on_evaluation(self.step, name, figures)

    def save(self) -> None:
        """Saves the state where that is due; the last one is on disk when this returns."""
        loss = self.task.best.loss(self.progress.evaluated)
        if self._saver.is_due(self.step, loss):
            self._watch("save", self.step)
            self._watchdog.now("saving", f"saving step {self.step}")
            self._log.flush()
            if self._log.divergence and not self.is_over:
                return  # which is dealt with in front of the next step
            self._saver.save(self.step, self.state, self.progress, loss)
        if self.is_over:
            self._saver.save_now(self.step, self.state, self.progress, loss)
            self._watchdog.rest()

    def next_batch(self) -> Batch:
        """This step's rows, on the devices; ends the run where they cannot be made."""
        self._watch("batch", self.step)
        self._watchdog.now("data", f"making the batch of step {self.step + 1}")
        begin = time.monotonic()
        try:
            with self._interruptible():
                rows = next(self._batches)
        except StopNow:
            self._save_and_raise(self._preempted())
        except Exception as error:  # whatever a source, a worker or Grain raises
            self._save_and_raise(
                RunError(f"The batch of step {self.step + 1} could not be made: {error}")
            )
        batch = put_batch(rows, self._rows_sharding)
        self._waited = time.monotonic() - begin
        return batch

    def take_step(self, batch: Batch) -> None:
        """One update, and its metrics to the log, which does not wait for them."""
        self._watch("step", self.step)
        kind = "compiling" if self.step == self._first_step else "step"
        self._watchdog.now(kind, f"step {self.step + 1}")
        self.state, metrics = self._train_step(self.state, batch)
        self.step += 1
        self.progress.evaluated = {}
        self._watch("log", self.step)
        self._log.step(self.step, metrics, self._waited)

    def report(self) -> None:
        """Prints and writes what the run came to."""
        self._watch("report", self.step)
        size = self.config.train.eval_batch_size
        lines = sample_lines(
            self.task.samples,
            self.state.params,
            self._mesh,
            self.config.sharding,
            size,
            _EXAMPLES_SHOWN,
        )
        figures = self.progress.evaluated
        best = self._best()
        if jax.process_index() == 0:
            if best:
                write_report(self.workdir / BEST_REPORT, *best, [])
            write_report(self.workdir / f"eval_{self.step}.json", self.step, figures, lines)
        self._say(report_text(f"at step {self.step}", self.task, figures, lines))
        if best:
            self._say(report_text(f"at step {best[0]}, the best", self.task, best[1], []))
        self._say(
            f"Checkpoints, logs and vocabulary are in {self.workdir}. Look at the curves with:\n"
            f"  {Path(sys.executable).parent / 'tensorboard'} --logdir {self.workdir}"
        )

    # What the phases need.

    def _due(self) -> list[Evaluator]:
        return [
            evaluator
            for evaluator in self._evaluators
            if self.is_over
            or (
                self.step > 0
                and self.step % (evaluator.evaluation.every or self.config.train.eval_every) == 0
            )
        ]

    def _best(self) -> tuple[int, dict[str, dict[str, float]]] | None:
        """(step, figures) of the checkpoint that stands for the run, where that is its best."""
        ranked = self._checkpoints.from_the_best() if self.task.serves_best else []
        if not ranked:
            return None
        return ranked[0], Progress.from_json(self._checkpoints.info(ranked[0])).evaluated

    def _interruptible(self) -> contextlib.AbstractContextManager:
        """Where waiting may end at once by a signal; of several processes none may end alone."""
        return self._stop.immediately() if jax.process_count() == 1 else contextlib.nullcontext()

    def _preempted(self) -> Preempted:
        by = self._stop.asked or "a signal to another process"
        if self.step == self._first_step and not self._resumed:
            return Preempted(
                f"Stopped by {by} before the first step. The same command begins again."
            )
        return Preempted(
            f"Stopped by {by} at step {self.step}, which is saved. The same command resumes it."
        )

    def _save_and_raise(self, error: Exception) -> None:
        """Ends the run with the state of this step on disk."""
        alone = jax.process_count() > 1 and not isinstance(error, Preempted)
        if self.step > self._first_step and not alone:  # saving takes all processes
            self._log.flush()
            self._saver.finish()
            loss = self.task.best.loss(self.progress.evaluated)
            self._saver.save_now(self.step, self.state, self.progress, loss)
        raise error


def _is_finished(config: Config, workdir: Path, saved: int) -> bool:
    done = workdir / f"eval_{saved}.json"
    return saved > config.train.num_steps or (saved == config.train.num_steps and done.is_file())


def _description(checkpoints: Checkpoints, saved: int, workdir: Path) -> dict:
    """What the checkpoint says of its run; raises RunError where it is none of this version."""
    info = checkpoints.info(saved)
    if not is_run(info):
        raise RunError(
            f"{workdir} holds a model and not a run. Start from it in another --workdir with "
            f"--config.init_from={workdir}, and --config.init_optimizer to go on with its "
            "optimizer and step."
        )
    check_version(info, workdir)
    return info


def _finished(
    config: Config,
    kind: type[Task],
    model: nn.Module,
    workdir: Path,
    checkpoints: Checkpoints,
    saved: int,
    say: Callable[[str], None],
) -> Outcome:
    """What a run came to that was finished before."""
    length = "epochs" if config.train.epochs else "num_steps"
    say(
        f"{workdir} is finished: it has a checkpoint of step {saved} of "
        f"{config.train.num_steps}. Raise train.{length} or choose another --workdir."
    )
    optimizer, _ = make_optimizer(config.optimizer, config.train.num_steps, kind.kept(config))
    abstract = abstract_state(
        partial(kind.init, model),
        optimizer,
        make_mesh(config.sharding),
        config.sharding,
    )
    progress = Progress.from_json(checkpoints.info(saved))
    return Outcome(workdir, saved, restore(checkpoints, saved, abstract), progress.evaluated)
