"""Says which checkpoints of a run are sound, without a device or the run's config.

  python tools/check_checkpoint.py runs/base

Reads every file of every checkpoint and compares it with what was written, then every array with
what was on the devices when it was saved. Leaves with 0 when the newest is sound, else with 1.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli


def main(workdir: str) -> int:
    from albert.checkpoints.store import CheckpointError, Checkpoints
    from albert.runtime.paths import place

    folder = place(workdir)
    folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        steps = checkpoints.folders()
        if not steps:
            raise CheckpointError(f"{folder} holds no checkpoint.")
        sound: list[int] = []
        for step in steps:
            begin = time.monotonic()
            found = checkpoints.problems(step)
            if not found:
                try:
                    size = checkpoints.check_arrays(step)
                except CheckpointError as error:
                    found = [str(error)]
            if found:
                print(f"step {step}: NOT SOUND", *(f"  {text}" for text in found), sep="\n")
            else:
                sound.append(step)
                print(
                    f"step {step}: sound, {size / 1e6:,.1f} MB of arrays, "
                    f"{time.monotonic() - begin:.1f} s",
                    flush=True,
                )
    if sound:
        print(f"The newest sound one is step {sound[-1]}.")
    else:
        print("None is sound.")
    return 0 if steps[-1:] == sound[-1:] else 1


if __name__ == "__main__":
    cli.run(main, "WORKDIR")
