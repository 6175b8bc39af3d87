"""How long saving keeps the training loop from its next step.

  python benchmarks/saving.py --config=configs/base.py --config.train.batch_size=1 \\
      --config.data.seq_length=128 --config.data.max_predictions=19 --config.model.dtype=float32

Takes --every steps and saves, --saves times, with random rows, as the loop does: verified, in the
background. Prints the share of the time that the loop waited for saving, how long a checkpoint took
until it was on disk and verified, and whether steps beside that were slower; the last line is JSON.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_CONFIG = cli.define_config("configs/base.py")
_EVERY = flags.DEFINE_integer("every", 100, "Steps between saves.", lower_bound=2)
_SAVES = flags.DEFINE_integer("saves", 3, "Saves.", lower_bound=1)


def main() -> None:
    import flax.linen as nn
    import jax

    from albert.checkpoints import manifest
    from albert.checkpoints.store import Checkpoints
    from albert.tasks.pretraining import Pretraining
    from albert.train.config import parts_of
    from albert.train.cost import state_bytes
    from albert.train.optimizers import make_optimizer
    from albert.train.progress import Progress
    from albert.train.saving import Saver
    from albert.train.sharding import batch_sharding, make_mesh, put_batch
    from albert.train.step import shard_training
    from tools.claims.measure import random_rows

    config = cli.checked(_CONFIG, needs_text=False)
    optimizer, schedule = make_optimizer(config.optimizer, config.train.num_steps)
    mesh = make_mesh(config.sharding)
    _, create, train_step = shard_training(
        Pretraining(config),
        optimizer,
        schedule,
        parts_of(config, mesh.size),
        0,
        mesh,
        config.sharding,
    )
    state = create()
    rows = put_batch(random_rows(config), batch_sharding(mesh, config.sharding))
    waited: list[float] = []  # by the loop, for each save
    until_safe: list[float] = []
    beside: list[float] = []  # seconds of steps while something was being saved
    alone: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="saving-") as name,
        jax.set_mesh(mesh),
        nn.logical_axis_rules(config.sharding.rules),
    ):
        folder = Path(name) / "checkpoints"
        checkpoints = Checkpoints(folder, keep_last=1, create=True)
        saver = Saver(checkpoints, config.train, print)
        saver.description = {"config": {}, "data": {}}
        state, metrics = train_step(state, rows)
        saver.save(1, state, Progress())  # compiles
        saver.finish()
        jax.block_until_ready(metrics)
        step, saving, begin = 1, None, time.monotonic()
        for _ in range(_SAVES.value):
            for _ in range(_EVERY.value):
                since = time.monotonic()
                state, metrics = train_step(state, rows)
                jax.block_until_ready(metrics)
                (alone if saving is None else beside).append(time.monotonic() - since)
                step += 1
                if saving and (folder / str(saving[0]) / manifest.NAME).is_file():
                    until_safe.append(time.monotonic() - saving[1])
                    saving = None
                saver.look()
            since = time.monotonic()
            saver.save(step, state, Progress())
            waited.append(time.monotonic() - since)
            saving = step, since
            print(f"step {step}: saving kept the loop for {1000 * waited[-1]:.0f} ms", flush=True)
        elapsed = time.monotonic() - begin
        saver.finish()
        checkpoints.close()
    sizes = state_bytes(config)
    facts = {
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "checkpoint_bytes": sizes["parameters"] + sizes["optimizer"],
        "wait_share": sum(waited) / elapsed,
        "wait_seconds": statistics.median(waited),
        "step_seconds": statistics.median(alone),
        "step_seconds_beside_saving": statistics.median(beside) if beside else None,
        "seconds_until_safe": statistics.median(until_safe) if until_safe else None,
    }
    print(
        f"{facts['checkpoint_bytes'] / 1e6:,.0f} MB every {_EVERY.value} steps of "
        f"{1000 * facts['step_seconds']:,.0f} ms: the loop waited for "
        f"{100 * facts['wait_share']:.2f} % of the time, "
        f"{1000 * facts['wait_seconds']:.0f} ms a save"
    )
    print(json.dumps(facts))


if __name__ == "__main__":
    cli.run(main)
