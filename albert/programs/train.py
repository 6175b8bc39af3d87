"""Pretrains ALBERT, or fine-tunes it on a task.

  python train.py                                      quickstart: no data needed, 2 CPU cores
  python train.py --config=configs/base.py:tiny        any config, shrunk to under a minute
  python train.py --config=configs/base.py --describe  what a run costs, without running it
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
_DISTRIBUTED = cli.define_distributed()
_HEARTBEAT = cli.define_heartbeat()


def main() -> None:
    with StopSignals() as stop:
        with stop.immediately():
            config = cli.checked(_CONFIG, needs_text=not _DESCRIBE.value)
            if _DESCRIBE.value:
                from albert.train.cost import print_description
                from albert.train.init_from import read_start

                if config.init_model and config.init_from:
                    config, _ = read_start(config)
                print_description(config)
                return
            if _DISTRIBUTED.value:
                from albert.train.sharding import join_processes

                join_processes(_HEARTBEAT.value)
            from albert.runtime.paths import place
            from albert.train.loop import train
        stop.install()  # jax takes SIGTERM when processes join
        with cli.ending_alone(_DISTRIBUTED.value, _HEARTBEAT.value):
            train(config, place(_WORKDIR.value or f"runs/{cli.config_name()}"), stop)


def run() -> None:
    """The program: `python train.py`, or `albert-train` where the package is installed."""
    cli.run(main, doc=__doc__)
