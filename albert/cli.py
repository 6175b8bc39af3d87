"""What the command-line programs share: the config flag, and errors as sentences.

Importing this costs little, so that `--help` is quick; jax is imported when a program starts.
"""

import contextlib
import errno
import importlib.util
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from albert.runtime.console import print_any_letter, tell
from albert.runtime.signals import EXIT_CODE, Preempted, StopNow
from albert.train.config_files import find_config

_bad_overrides: list[str] = []
_overridden: list[str] = []  # fields
_MARGIN = 10  # seconds from a missed heartbeat to what jax says of it
# Of a large job that was preempted the machines come back one after the other: in the five minutes
# that jax waits by itself some have not started yet, and the start fails for all.
_JOIN_SECONDS = 1800
_GOOGLE = "0x1ae0"  # the maker of a PCI device
# Whoever sets one of these knows of a TPU, or wants jax to look for one.
_TPU_VARIABLES = ("JAX_FORCE_TPU_INIT", "TPU_LIBRARY_PATH", "TPU_NAME", "TPU_WORKER_ID")


def set_environment() -> None:
    """What programs set for the libraries that they import, where the user has not.

    Call it before jax is imported.
    """
    # Stores are read by fsspec's libraries, whether TensorFlow is installed or not.
    os.environ.setdefault("EPATH_USE_TF", "false")
    if has_only_an_idle_tpu_library(os.environ, Path("/")):
        os.environ["JAX_PLATFORMS"] = "cpu"


def has_only_an_idle_tpu_library(environment: Mapping[str, str], root: Path) -> bool:
    """Whether libtpu is all that jax could use beside the CPU, and no TPU is there: it would look
    for one all the same, and print pages on hosts that it does not find.

    Args:
      environment: variables; any that speaks of platforms or TPUs is a reason to let jax look.
      root: of the file system in which devices are looked for.
    """
    if any(environment.get(name) for name in ("JAX_PLATFORMS", *_TPU_VARIABLES)):
        return False
    if importlib.util.find_spec("libtpu") is None:
        return False
    if metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("jax_plugins"):
        return False  # of CUDA, ROCm and others: jax chooses
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    chips = [
        *(root / "dev").glob("accel*"),
        *(root / "dev/vfio").glob("[0-9]*"),
        *(path for path in vendors if path.read_text().strip() == _GOOGLE),
    ]
    return not chips


def define_config(default: str = "configs/quickstart.py"):
    """The flag --config, and with it --config.SECTION.FIELD for every field."""
    set_environment()
    sys.argv = [_with_config_found(argument) for argument in sys.argv]
    # ml_collections reads the overrides from sys.argv, here, and stops at the first mistake.
    if any(argument.lstrip("-").startswith(("config.", "noconfig.")) for argument in sys.argv):
        from albert.train.config import split_overrides

        names = (argument.lstrip("-").partition("=")[0] for argument in sys.argv)
        names = (name.removeprefix("no") for name in names)
        _overridden.extend(
            name.removeprefix("config.") for name in names if name.startswith("config.")
        )
        sys.argv, problems = split_overrides(sys.argv)
        _bad_overrides.extend(problems)
    return config_flags.DEFINE_config_file(
        "config",
        find_config(default),
        "Config file, with an optional argument behind a colon, such as configs/base.py:v1 or "
        "configs/base.py:tiny. Set any field with --config.SECTION.FIELD=VALUE; "
        "configs/default.py says what each one means.",
    )


def _with_config_found(argument: str) -> str:
    """--config=configs/NAME.py with the file that it names from any working folder."""
    flag, equals, path = argument.partition("=")
    if flag in ("--config", "-config") and equals:
        return f"{flag}={find_config(path)}"
    # Also behind a space: no other argument begins so.
    return find_config(argument) if argument.startswith("configs/") else argument


def checked(holder, needs_text: bool = True):
    """The typed config behind the flag; raises ConfigError with everything that is wrong."""
    from albert.runtime.fields import ConfigError
    from albert.train.config import check

    try:
        config = check(holder.value, needs_text)
    except OSError as error:  # ml_collections keeps a failure to load until the first access
        raise ConfigError([*_bad_overrides, str(error)]) from error
    except ConfigError as error:
        raise ConfigError([*_bad_overrides, *error.problems]) from error
    if _bad_overrides:
        raise ConfigError(_bad_overrides)
    return config


def overrides(holder) -> dict[str, object]:
    """The fields that the command line sets, as SECTION.FIELD, with their values; raises
    ConfigError for those that cannot be."""
    from albert.runtime.fields import ConfigError

    if _bad_overrides:
        raise ConfigError(_bad_overrides)
    found: dict[str, object] = {}
    for name in _overridden:
        value = holder.value
        for part in name.split("."):
            value = value[part]
        found[name] = value
    return found


def config_name(holder_name: str = "config") -> str:
    """The config's name for a folder: "base-tiny" for configs/base.py:tiny."""
    path, _, argument = config_flags.get_config_filename(flags.FLAGS[holder_name]).partition(":")
    name = os.path.splitext(os.path.basename(path))[0]
    return "-".join([name, *argument.split(",")]) if argument else name


class Processes:
    """What the flags say of a program that is one of several processes."""

    def __init__(self):
        self._distributed = flags.DEFINE_bool(
            "distributed",
            bool(os.environ.get("JAX_COORDINATOR_ADDRESS")),
            "Run as one of several processes. Cloud TPUs and Slurm need nothing else; elsewhere "
            "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, which also turns "
            "this on.",
        )
        self._heartbeat = flags.DEFINE_integer(
            "heartbeat_seconds",
            100,
            "After so long without a sign of one process all others end.",
            lower_bound=1,
        )
        self._join_seconds = flags.DEFINE_integer(
            "initialization_timeout",
            _JOIN_SECONDS,
            "Seconds to wait at the start for the other processes. The machines of a large job "
            "come back one after the other when it was preempted.",
            lower_bound=1,
        )
        self._devices = flags.DEFINE_string(
            "local_device_ids",
            None,
            "GPUs of this process, such as 0,1,2,3, counted from 0 among those that it sees. "
            "Default: all; under Slurm GPU n for task n of a node, or all for the only one.",
        )

    @property
    def are_several(self) -> bool:
        return self._distributed.value

    def join(self) -> None:
        """Joins the others where there are any; raises ConfigError. Call it in front of whatever
        touches a device."""
        from albert.runtime.fields import ConfigError

        text = self._devices.value
        devices = None if text is None else text.split(",")
        if devices and not (all(map(str.isdecimal, devices)) and len({*devices}) == len(devices)):
            raise ConfigError([f"--local_device_ids is {text!r}; it must be numbers: 0,1,2,3"])
        if devices and not self.are_several:
            raise ConfigError(
                [
                    "--local_device_ids is for one of several processes (--distributed); a process "
                    "that is alone takes what CUDA_VISIBLE_DEVICES names"
                ]
            )
        if self.are_several:
            from albert.train.processes import join_processes

            ids = [int(device) for device in devices] if devices else None
            join_processes(self._heartbeat.value, self._join_seconds.value, ids)

    @contextlib.contextmanager
    def ending_alone(self):
        """Inside, an error of one of several processes ends that process at once. Leaving as usual
        waits for the others, who may be waiting for this one."""
        try:
            yield
        except Exception as error:
            if not self.are_several or (isinstance(error, Preempted) and not error.alone):
                raise
            traceback.print_exception(error, limit=-1)
            if not isinstance(error, (Preempted, *matters_of_use())):
                # Of jax, most likely, whose collectives break when another process is gone: it soon
                # ends this one as well, with an error that names the other.
                time.sleep(self._heartbeat.value + _MARGIN)
            os._exit(EXIT_CODE if isinstance(error, Preempted) else 2)


def run(main: Callable[..., int | None], argument: str = "", doc: str | None = None) -> None:
    """Runs a program: 0 when done, 2 and a sentence when what it was given is wrong, 75 when it was
    asked to stop and can go on.

    Args:
      main: its return value, if any, is the exit code.
      argument: what it is called with, such as "WORKDIR"; by default with nothing.
      doc: what --help says first; by default the docstring of the script that was started.
    """
    if doc:
        sys.modules["__main__"].__doc__ = doc
    set_environment()
    print_any_letter()
    app.run(lambda argv: _main(main, argv, argument), flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # absl puts the whole traceback of a config file that fails into its message.
        text = str(error).strip().splitlines()[-1]
    except BrokenPipeError:  # of --help, as behind a `| head`
        sys.exit(0)
    except Exception as error:
        text = f"the config file fails with {type(error).__name__}: {error}"
    print("\n".join([*_bad_overrides, f"{text}\nSee --help."]), file=sys.stderr)
    sys.exit(2)


def _main(main: Callable[..., int | None], argv: list[str], argument: str) -> int:
    if argument and len(argv) != 2:
        print(f"Name one {argument}. See --help.", file=sys.stderr)
        return 2
    if len(argv) > 1 and not argument:
        print(f"Not understood: {' '.join(argv[1:])}. See --help.", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)  # libraries tell of their own doings
    warnings.showwarning = lambda message, *_, **__: tell(f"Warning: {message}", sys.stderr)
    try:
        code = main(*argv[1:]) or 0
        if sys.stdout is not None:  # as it is where a shell closed it
            sys.stdout.flush()
        return code
    except StopNow:
        tell("Stopped before anything was done.", sys.stderr)
        return EXIT_CODE
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE  # as other programs in front of a `| head`
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # no file to name: not a matter of what the user gave
        tell(f"{error.filename or 'Writing'}: {error.strerror}", sys.stderr)
        return 2
    except Exception as error:
        if isinstance(error, Preempted):
            tell(str(error), sys.stderr)
            return EXIT_CODE
        if not isinstance(error, matters_of_use()):
            raise
        tell(f"{type(error).__name__}: {error}", sys.stderr)
        return 2


def _nobody_reads() -> bool:
    """Whether what standard output goes to has ended; then what is left to print is dropped."""
    if sys.stdout is None:
        return False
    asked = select.poll()
    asked.register(sys.stdout, 0)  # tells of errors alone
    if not asked.poll(0):
        return False  # another pipe, such as one to a process of this program
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def matters_of_use() -> tuple[type[Exception], ...]:
    """Errors whose message is for the user; imported when one is there to be told."""
    from albert.checkpoints import CheckpointError
    from albert.data.cache import StoreError
    from albert.data.sources.base import SourceError
    from albert.data.tokenizer import VocabularyError
    from albert.runtime import RunError
    from albert.runtime.fields import ConfigError
    from albert.runtime.paths import PlaceError
    from albert.search import SearchError

    return (
        CheckpointError,
        ConfigError,
        PlaceError,
        RunError,
        SearchError,
        SourceError,
        StoreError,
        VocabularyError,
    )
