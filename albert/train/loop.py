"""Training, whatever the task: from a config to a finished run."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax

from albert.checkpoints.agreement import agreed
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
from albert.train.config import (
    Config,
    check_here,
    in_steps,
    parts_of,
    rows_at_once,
    with_dtype,
)
from albert.train.divergence import Rollbacks, report
from albert.train.evaluate import Evaluator, report_text, sample_lines, write_report
from albert.train.goodput import Clock, account, read
from albert.train.init_from import read_start, resumed, start_state
from albert.train.log import RunLog
from albert.train.out_of_memory import explained
from albert.train.phases import Phase, make_phased_optimizer, phase_at, phases_of
from albert.train.processes import host_line
from albert.train.profile import Profile
from albert.train.progress import Progress
from albert.train.resume_check import check_same_run, check_version, describe_run
from albert.train.saving import Saver, restore
from albert.train.sharding import batch_sharding, local_rows, make_mesh, put_batch
from albert.train.step import TrainState, abstract_state, shard_training
from albert.train.stopping import StopQuestion
from albert.train.teacher import learn_from, opening_line, read_teacher, teacher_params
from albert.train.workdir import NoLock, claim, lock
from albert.train.writers import check_writers
from albert.train.writers.jsonl import last_logged_step

_EXAMPLES_SHOWN = 5
TIMES = "time.jsonl"  # where the time went; see goodput.py
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
    profile: tuple[int, int] | None = None,
) -> Outcome:
    """Trains until `num_steps`, resuming from the newest sound checkpoint in `workdir` if there is
    one.

    Args:
      config: checked, as `albert.config` gives it.
      workdir: folder of checkpoints and logs; made if it is not there.
      stop: signals that were taken already. By default they are taken here, for as long as it runs.
      on_evaluation: called with (step, evaluation, figures) after each one.
      watch: called in front of every phase; see `Watch`.
      profile: the first and the last step, counted from 1, that are traced by jax's profiler into
        the workdir.

    Raises:
      ConfigError: the devices cannot share the batch or the parameters, or the teacher cannot teach
        this task, or a writer of its figures cannot be used here.
      CheckpointError: no checkpoint is sound, or what `config.init_from` or
        `config.distillation.teacher` names cannot be read.
      SourceError, VocabularyError: the text or the vocabulary cannot be used.
      RunError: the workdir belongs to other data or another job, or training diverged.
      Preempted: by SIGTERM or SIGINT, with everything saved.
    """
    workdir = place(workdir) if isinstance(workdir, str) else workdir
    check_writers(config.train.writers, workdir)
    say = tell if jax.process_index() == 0 else lambda text: None
    clock = Clock(workdir / TIMES if jax.process_index() == 0 else None, say)
    watch = _both(clock.phase, watch)
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
                check_here(config, kind.abstract_params(model))
                if (
                    not config.train.epochs
                    and saved is not None
                    and _is_finished(config, workdir, saved)
                ):
                    return _finished(config, kind, model, workdir, checkpoints, saved, say)
                teacher = read_teacher(config) if config.distillation.teacher else None
                watch("prepare", 0)
                begun = start.step if start and config.init_optimizer else None
                reached = saved or begun or 0
                prepare = partial(_prepared, config, reached, workdir, info, start)
                tasks = agreed(prepare)
                assert tasks[0].rows is not None
                config = in_steps(config, tasks[0].rows.rows_per_epoch)
                if saved is not None and _is_finished(config, workdir, saved):
                    return _finished(config, kind, model, workdir, checkpoints, saved, say)
                phases = phases_of(config)[-len(tasks) :]  # the one that is reached, and the others
                if teacher is not None:
                    for phase, task in zip(phases, tasks, strict=True):
                        learn_from(teacher, phase.config, task, jax.device_count())
                if info is not None:
                    check_same_run(info, phases[0], tasks[0], workdir, say)
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
        parts = list(zip(phases, tasks, strict=True))
        run = Run(parts, workdir, checkpoints, held, stop, say, on_evaluation, watch, clock)
        if profile is not None:
            run.profile = Profile(*profile, workdir, say)
        memory = explained(workdir, lambda: (run.config, run.task, clock.kind))
        with memory, run.set_up(saved, start, teacher):
            while True:
                # The order is fixed. What is saved has been evaluated, and a batch is drawn only
                # when its step will be taken.
                run.stop_if_asked()
                run.evaluate()
                run.save()
                if run.is_over:
                    break
                run.begin_phase()
                batch = run.next_batch()
                run.take_step(batch)
            run.report()
        return Outcome(workdir, run.step, run.state, run.progress.evaluated)


class Run:
    """A run between two steps: `step` of them are taken, `state` is what came of them, and
    `progress` what is evaluated and logged of it. `phase`, `config` and `task` are those of the
    last step that was taken."""

    state: TrainState
    step: int
    profile: Profile | None = None

    def __init__(
        self,
        phases: Sequence[tuple[Phase, Task]],
        workdir: Path,
        checkpoints: Checkpoints,
        held: WorkdirLock | NoLock,
        stop: StopSignals,
        say: Callable[[str], None],
        on_evaluation: Callable[[int, str, dict[str, float]], None] | None,
        watch: Watch,
        clock: Clock,
    ):
        self._phases = list(phases)  # the one that is reached, and those behind it
        self.phase, self.task = self._phases[0]
        self.config, self.workdir = self.phase.config, workdir
        self._checkpoints, self._lock, self._stop = checkpoints, held, stop
        self._say, self._on_evaluation, self._watch = say, on_evaluation, watch
        self._clock = clock
        self.progress = Progress()

    @property
    def is_over(self) -> bool:
        return self.step >= self.config.train.num_steps

    @property
    def ends_phase(self) -> bool:
        """Whether the phase, or the whole run, ends with the last step that was taken."""
        return self.step >= self.phase.end

    @contextlib.contextmanager
    def set_up(
        self, saved: int | None, start: Weights | None, teacher: Weights | None
    ) -> Iterator[None]:
        """Makes or restores the state, and opens everything that the steps need.

        Args:
          saved: the checkpoint to resume from; None: there is none.
          start: the model of `config.init_from`, in a run's first start.
          teacher: that of `config.distillation`, at every start.
        """
        config, task, say = self.config, self.task, self._say
        self._optimizer = make_phased_optimizer(config, task.kept(config))
        self._mesh = mesh = make_mesh(config.sharding)
        self._rows_sharding = batch_sharding(mesh, config.sharding)
        # Outside of the mesh, as flax would apply the rules while it draws.
        of_phases = [self._sharded(*of) for of in self._phases]
        self._abstract, create, _ = of_phases[0]
        self._train_steps = [step for *_, step in of_phases]
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
        # What the step takes beside state and batch.
        self._teacher: tuple = ()
        if teacher is not None and task.distillation is not None:
            say(opening_line(config, task, teacher))
            of_teacher = task.distillation.model, teacher, mesh, config.sharding
            self._teacher = (teacher_params(*of_teacher),)
            teacher.params = {}  # they are on the devices now
        self.step = self._first_step = int(self.state.step)
        self._resumed = saved is not None
        self._clock.opened(self.step)
        if self.profile:
            self.profile.opened(self.step)
        if jax.process_index() == 0 and task.tokenizer:
            # Only now, so that a run that cannot be resumed changes nothing.
            task.tokenizer.save(self.workdir / VOCABULARY)
        self._saver = Saver(self._checkpoints, config.train, say)
        self._saver.step = self.step
        self._rolls_back = config.train.on_divergence == "rollback"
        self._rollbacks = Rollbacks(self._checkpoints, say)
        self._question = StopQuestion(self._stop, mesh)
        with (
            jax.set_mesh(mesh),
            nn.logical_axis_rules(config.sharding.rules),
            contextlib.closing(Watchdog(config.train.stall_seconds)) as self._watchdog,
            contextlib.closing(
                RunLog(config, self.workdir, self.step, self.progress, say, self._clock)
            ) as self._log,
            contextlib.ExitStack() as self._of_phase,
        ):
            self._enter()
            try:
                yield
            finally:
                self._clock.mark(self.step)
                if self.profile:
                    self.profile.close()

    def _sharded(self, phase: Phase, task: Task) -> tuple[TrainState, Callable, jax.stages.Wrapped]:
        """The state as abstract arrays, what creates it, and the step of a phase."""
        config, train = phase.config, phase.config.train
        return shard_training(
            task,
            *self._optimizer,
            parts_of(config, self._mesh.size),
            config.seed,
            self._mesh,
            config.sharding,
            train.spike_factor,
            train.deterministic,
            train.reduce_dtype,
        )

    def _enter(self) -> None:
        """Goes on to the next phase: opens its rows, its evaluations, its log."""
        self.phase, self.task = self._phases.pop(0)
        self._train_step = self._train_steps.pop(0)
        self.config = self.phase.config
        config, task, phase, say = self.config, self.task, self.phase, self._say
        train = config.train
        description = describe_run(phase, task)
        if jax.process_index() == 0:
            (self.workdir / "config.json").write_text(json.dumps(description, indent=1))
        self._saver.description = description
        of = self._mesh, config.sharding, train.eval_batch_size
        self._evaluators = [Evaluator(e, *of) for e in task.evaluations]
        rows = local_rows(self._rows_sharding, train.batch_size)
        tell(host_line(self._mesh, rows, train.batch_size, self._abstract))
        assert task.rows is not None
        self._source = BatchSource(
            task.rows, train.batch_size, rows, phase.end, phase.first, phase.first_row
        )
        if use := task.attention_use(config):
            name, why = attention.choose(config.model.attention, attention.here(use))
            say(f"Attention: {name}, since {why}.")
        for line in task.opening:
            say(line)
        if train.microbatch:
            size = self._mesh.size
            parts, each = parts_of(config, size), rows_at_once(config, size)
            say(f"Parts of a batch: {parts}, of {each} rows on a device.")
        steps, epoch = phase.end - phase.first, task.rows.rows_per_epoch
        say(
            f"Compiling; then steps {self.step + 1} to {phase.end}"
            f"{f' of {train.num_steps}' if phase.end < train.num_steps else ''}: "
            f"{steps * train.batch_size / epoch:.3g} epochs of {epoch:,} rows, with "
            f"{config.optimizer.warmup_steps} steps of warm-up."
        )
        self._compiles_at = self.step
        self._clock.compiles()
        self._log.enter(phase, task)
        batches = iterate(self._source, self.step, task.workers)
        self._batches = self._of_phase.enter_context(contextlib.closing(batches))

    # The phases of a step, in their order.

    def stop_if_asked(self) -> None:
        """Ends the run where that was asked for, or where it cannot go on; everything is saved."""
        self._watch("stop", self.step)
        if self._due() or self.ends_phase:
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
        loss = self._loss()
        if self._saver.is_due(self.step, loss, self.ends_phase):
            self._watch("save", self.step)
            self._watchdog.now("saving", f"saving step {self.step}")
            self._log.flush()
            if self._log.divergence and not self.is_over:
                return  # which is dealt with in front of the next step
            self._saver.save(self.step, self.state, self.progress, loss)
        if self.is_over:
            self._saver.save_now(self.step, self.state, self.progress, loss)
            self._watchdog.rest()

    def begin_phase(self) -> None:
        """Goes over to the next phase where one ends; it is evaluated and saved."""
        if not self.ends_phase:
            return
        self._of_phase.close()
        self._say(f"Step {self.step} ends a phase. Now {self._phases[0][0]}.")
        self._enter()

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
        kind = "compiling" if self.step == self._compiles_at else "step"
        self._watchdog.now(kind, f"step {self.step + 1}")
        with self.profile.step(self.step + 1) if self.profile else contextlib.nullcontext():
            self.state, metrics = self._train_step(self.state, batch, *self._teacher)
        self.step += 1
        if self.profile:
            self.profile.after(self.step, self.state)
        self.progress.evaluated = {}
        self._watch("log", self.step)
        self._log.step(self.step, metrics, self._waited)
        if self.step % self.config.train.log_every == 0:
            self._clock.mark(self.step)

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
        self._clock.mark(self.step)
        if of := account(read(self.workdir / TIMES)):
            self._say(f"{of}.")
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
            or (self.ends_phase and self.step > 0)
            or (
                self.step > 0
                and self.step % (evaluator.evaluation.every or self.config.train.eval_every) == 0
            )
        ]

    def _loss(self) -> float | None:
        """By which the best checkpoints are kept: those of the last phase, since the held-out rows
        of others are not the same."""
        is_last = self.phase.end >= self.config.train.num_steps
        return self.task.best.loss(self.progress.evaluated) if is_last else None

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
            self._clock.phase("save", self.step)
            self._saver.finish()
            self._saver.save_now(self.step, self.state, self.progress, self._loss())
        raise error


def _both(first: Watch, second: Watch | None) -> Watch:
    def watch(phase: str, step: int) -> None:
        first(phase, step)
        if second:
            second(phase, step)

    return watch


def _prepared(
    config: Config, step: int, workdir: Path, info: dict | None, start: Weights | None
) -> list[Task]:
    """The task of the phase that so many steps reach, and of each one behind it: so what is wrong
    with the rows of a later phase is known before the first step."""
    kind, phases = find_task(config.task), phases_of(config)
    tasks = []
    for phase in phases[phase_at(phases, step).number :]:
        tasks.append(kind.prepare(phase.config, workdir, info, start))
        check_task(tasks[-1])
    return tasks


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
    optimizer, _ = make_phased_optimizer(config, kind.kept(config))
    abstract = abstract_state(
        partial(kind.init, model),
        optimizer,
        make_mesh(config.sharding),
        config.sharding,
    )
    progress = Progress.from_json(checkpoints.info(saved))
    return Outcome(workdir, saved, restore(checkpoints, saved, abstract), progress.evaluated)
