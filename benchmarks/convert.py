"""Time and memory of converting a model between formats, each in a process of its own.

  python benchmarks/convert.py                              ALBERT-base, random weights
  python benchmarks/convert.py --config=configs/xxlarge.py --repeat=1

Makes a checkpoint with the optimizer's moments, converts it along the whole circle and prints the
median seconds and the most resident memory of `tools/convert.py`, imports included.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

ROOT = Path(__file__).resolve().parent.parent
_CONFIG = cli.define_config("configs/base.py")
_REPEAT = flags.DEFINE_integer("repeat", 3, "Conversions of each kind.", lower_bound=1)
_CIRCLE = [
    ("start", "original"),
    ("original", "albert"),
    ("albert", "huggingface"),
    ("huggingface", "back"),
    ("back", "last"),
]
# A child's ru_maxrss counts what its parent held when it was forked; its own high-water mark does
# not. Linux only; kilobytes.
_MEASURED = """
import atexit, re, runpy, sys
def high_water():
    with open("/proc/self/status") as status:
        print(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1], file=sys.stderr)
atexit.register(high_water)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_FORMAT = {"back": "albert", "last": "original"}


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import numpy as np

    from albert.interop import formats
    from albert.interop.weights import Weights, parameter_shapes

    model = cli.checked(_CONFIG, needs_text=False).model
    rng = np.random.default_rng(0)

    def random():
        return {
            path: rng.standard_normal(shape, np.float32)
            for path, shape in parameter_shapes(model).items()
        }

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        weights = Weights(model, random(), 1000, random(), random())
        formats.write(weights, work / "start", "albert")
        count = sum(value.size for value in weights.params.values())
        print(f"{count:,} parameters; median of {_REPEAT.value}")
        print(f"{'from':<12} {'to':<12} {'seconds':>8} {'MB resident':>12}")
        for source, target in _CIRCLE:
            seconds, memory = [], []
            for number in range(_REPEAT.value):
                output = work / (target if number == 0 else f"{target}-{number}")
                command = [
                    sys.executable,
                    "-c",
                    _MEASURED,
                    str(ROOT / "tools/convert.py"),
                    "--noprint_table",
                    f"--input={work / source}",
                    f"--output={output}",
                    f"--format={_FORMAT.get(target, target)}",
                ]
                begin = time.monotonic()
                done = subprocess.run(command, capture_output=True, text=True)
                seconds.append(time.monotonic() - begin)
                if done.returncode:
                    sys.exit(f"{' '.join(command)} left with {done.returncode}: {done.stderr}")
                memory.append(int(done.stderr.split()[-1]) / 1000)
            kinds = [formats.format_of(work / name) for name in (source, target)]
            print(
                f"{kinds[0]:<12} {kinds[1]:<12} {np.median(seconds):>8.1f} "
                f"{np.median(memory):>12.0f}",
                flush=True,
            )
        first = formats.read(work / "start").params
        last = formats.read(work / "last").params
        equal = all(first[path].tobytes() == last[path].tobytes() for path in first)
        print(f"Every tensor bit-equal after the circle: {equal}")


if __name__ == "__main__":
    cli.run(main)
