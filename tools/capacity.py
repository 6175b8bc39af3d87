"""A table of configs on devices that are not here: what fits, in which parts, and how long it is.

  python tools/capacity.py --devices=v5e:256,v6e:64,h100:8 \\
      --configs=configs/base.py,configs/large.py,configs/xlarge.py,configs/xxlarge.py
  python tools/capacity.py --devices=v5e:256 --configs=configs/base.py --ask_compiler

Planned, not measured: memory in closed form (albert/train/capacity.py) and, with --ask_compiler, by
the compiler of TPUs too, minutes for each; times at --mfu or at one assumed by the model's width. A
config that does not fit is given the microbatch that does, or the remat policy. Prints Markdown.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_CONFIGS = flags.DEFINE_list("configs", ["configs/base.py"], "Config files.")
_DEVICES = flags.DEFINE_list("devices", ["v5e:256"], "Devices, as train.py --devices has them.")
_MFU = flags.DEFINE_float(
    "mfu",
    None,
    "Model FLOPs over the devices' peak. Default: assumed by the model's width.",
    lower_bound=0.01,
    upper_bound=1.0,
)
_ASK_COMPILER = flags.DEFINE_bool("ask_compiler", False, "Ask the TPU's compiler where it can be.")
_COLUMNS = (
    "config",
    "devices",
    "rows of a device",
    "remat",
    "microbatch",
    "rows that fit",
    "GB needed",
    "by the compiler",
    "of GB",
    "MFU assumed, %",
    "tokens/s",
    "s a step",
    "of it sending",
    "days",
    "a checkpoint, GB",
    "all of them",
)


def main() -> None:
    from albert.runtime.console import tell
    from albert.runtime.fields import ConfigError
    from albert.train.capacity import asked, fitting, plan
    from albert.train.chips import read_devices
    from albert.train.compiler import can_be_asked
    from albert.train.config_files import read_config
    from albert.train.phases import phases_of

    devices = [read_devices(text) for text in _DEVICES.value]
    paths = _with_arguments(_CONFIGS.value)
    configs = [(path, read_config(path, {}, needs_text=False)) for path in paths]
    if taught := [path for path, config in configs if config.distillation.teacher]:
        raise ConfigError(
            [
                f"{path} has a teacher, which is not counted here: ask train.py --config={path} "
                "--describe --devices"
                for path in taught
            ]
        )
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}", flush=True)
    for path, config in configs:
        name = path.rpartition("/")[2].replace(".py", "", 1)
        for of in devices:
            for phase in phases_of(config):
                changed = fitting(phase.config, of)
                planned = plan(changed, of, _MFU.value, steps=phase.end - phase.first)
                if _ASK_COMPILER.value and can_be_asked(of):
                    planned = asked(changed, planned, lambda text: tell(text, sys.stderr))
                row = f"{name}, {phase}" if config.phases else name
                cells = [row, str(of), *_cells(changed.model.remat, planned)]
                print(f"| {' | '.join(cells)} |", flush=True)


def _with_arguments(texts: list[str]) -> list[str]:
    """Configs of a list in which the commas of their arguments have parted them."""
    found: list[str] = []
    for text in texts:
        if found and ".py" not in text:
            found[-1] += f",{text}"
        else:
            found.append(text)
    return found


def _cells(remat: str, planned) -> list[str]:
    """The columns behind config and devices."""
    own, said = planned.fit, ""
    if planned.compiler is not None:
        said = planned.compiler.get("missing", "does not fit")
        if "peak" in planned.compiler:
            said = f"{planned.compiler['peak'] / 1e9:.2f}"
    return [
        str(own.rows),
        remat,
        f"{own.at_once}",
        str(own.most_at_once),
        f"{own.needed / 1e9:.2f}",
        said,
        f"{own.memory / 1e9:.1f}",
        f"{100 * planned.mfu:.0f}",
        f"{planned.tokens_per_second:,.0f}",
        f"{planned.step_seconds:.3g}",
        f"{planned.sent_seconds:.2g}",
        f"{planned.days:.2f}",
        f"{planned.checkpoint_bytes / 1e9:.2f}",
        f"{planned.workdir_bytes / 1e9:.1f}",
    ]


if __name__ == "__main__":
    cli.run(main)
