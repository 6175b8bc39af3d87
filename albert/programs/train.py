"""Pretrains ALBERT, or fine-tunes it on a task.

  python train.py                                      quickstart: no data needed, 2 CPU cores
  python train.py --config=configs/base.py:tiny        any config, shrunk to under a minute
  python train.py --config=configs/base.py --describe  what a run costs, without running it
  python train.py --config=configs/base.py --describe --devices=v5e:256   and whether it fits there
  python train.py --config=configs/base.py --workdir=runs/base \\
      --config.data.train_sources="('wiki/*.txt.gz', 'books/')" \\
      --config.data.tokenizer=30k-clean.model
  python train.py --config=configs/finetune/glue.py:mrpc --config.init_from=runs/base \\
      --config.data.path=glue_data/MRPC --workdir=runs/mrpc

A run that was stopped resumes from its newest checkpoint when the same command is given again.
configs/default.py lists every field of a config with its meaning.
"""

from absl import flags

from albert import cli
from albert.runtime.signals import StopSignals

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of checkpoints and logs, here or on gs://. Default: runs/ and the config's name.",
)
_DESCRIBE = flags.DEFINE_bool(
    "describe", False, "Print the config, its parameters, FLOPs and memory, and stop."
)
_DEVICES = flags.DEFINE_string(
    "devices",
    None,
    "With --describe: devices that need not be here, as NAME:NUMBER, such as v5e:256 or h100:8. "
    "Says by arithmetic how many rows fit, in which parts, and how long the run takes; leaves with "
    "2 where the config does not fit. albert/train/chips.py has the names.",
)
_MFU = flags.DEFINE_float(
    "mfu",
    None,
    "With --devices: model FLOPs over the devices' peak. Default: assumed by the model's width.",
    lower_bound=0.01,
    upper_bound=1.0,
)
_ASK_COMPILER = flags.DEFINE_bool(
    "ask_compiler",
    False,
    "With --devices: ask the TPU's compiler too whether the step fits. Takes minutes and libtpu.",
)
_PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "FROM:TO: trace these steps, counted from 1, by jax's profiler into WORKDIR/profile. A handful "
    "behind the first ones is enough.",
)
_CACHE = flags.DEFINE_string(
    "compile_cache",
    None,
    "Folder, here or on gs://, in which compiled programs are kept for the next start. Whoever can "
    "write there can run code in the job.",
)
_PROCESSES = cli.Processes()


def main() -> None:
    with StopSignals() as stop:
        with stop.immediately():
            _check_flags()
            config = cli.checked(_CONFIG, needs_text=not _DESCRIBE.value)
            if _DESCRIBE.value:
                _describe(config)
                return
            profile = _profiled(_PROFILE.value)
            _PROCESSES.join()
            from albert.runtime.paths import place
            from albert.train.loop import train

            if _CACHE.value:
                import jax

                jax.config.update("jax_compilation_cache_dir", str(place(_CACHE.value)))
        stop.install()  # jax takes SIGTERM when processes join
        with _PROCESSES.ending_alone():
            workdir = place(_WORKDIR.value or f"runs/{cli.config_name()}")
            train(config, workdir, stop, profile=profile)


def _check_flags() -> None:
    """Raises ConfigError for a flag that goes with another, which is not there."""
    from albert.runtime.fields import ConfigError

    problems = []
    if _DEVICES.value is not None and not _DESCRIBE.value:
        problems.append("--devices is of --describe; a run takes the devices that are there")
    if _DEVICES.value is None and (_MFU.value is not None or _ASK_COMPILER.value):
        problems.append("--mfu and --ask_compiler are of --describe --devices=NAME:NUMBER")
    if problems:
        raise ConfigError(problems)


def _describe(config) -> None:
    """Prints what a run costs; raises ConfigError where it does not fit those of --devices."""
    from albert.train.cost import print_description
    from albert.train.init_from import read_start
    from albert.train.teacher import read_teacher

    if config.init_model and config.init_from:
        config, _ = read_start(config)
    teacher = read_teacher(config) if config.distillation.teacher else None
    if _DEVICES.value is None:
        print_description(config, teacher)
        return
    from albert.runtime.console import tell
    from albert.runtime.fields import ConfigError
    from albert.train.capacity import asked, plans
    from albert.train.chips import read_devices
    from albert.train.phases import phases_of
    from albert.train.teacher import teacher_model

    model = teacher_model(config, teacher) if teacher else None
    planned = plans(config, read_devices(_DEVICES.value), _MFU.value, model)
    if _ASK_COMPILER.value:
        phases = phases_of(config)
        planned = [asked(of.config, one, tell) for of, one in zip(phases, planned, strict=True)]
    lines = [line for one in planned for line in [*one.lines(), ""]]
    print_description(config, teacher, lines, [one.facts() for one in planned])
    if problems := [one.problem for one in planned if one.problem]:
        raise ConfigError(problems)


def _profiled(text: str | None) -> tuple[int, int] | None:
    """The steps that --profile names; raises ConfigError."""
    from albert.runtime.fields import ConfigError

    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError([f"--profile is {text!r}; it must be FROM:TO, such as 100:104"])
    return int(first), int(last)


def run() -> None:
    """The program: `python train.py`, or `albert-train` where the package is installed."""
    cli.run(main, doc=__doc__)
