"""Times the training step of a config on whatever devices are here.

  python benchmarks/step_time.py --config=configs/base.py --config.train.batch_size=64
  python benchmarks/step_time.py --config=configs/base.py --config.train.batch_size=8 \\
      --config.data.seq_length=128 --config.data.max_predictions=20 \\
      --config.model.dtype=float32 --peer                  # the row of two CPU cores

Rows are random tokens without padding, cut into data.packing examples each if that is not 0; the
peer has them whole. Prints the median of --repeats steps and one JSON line.
--peer times Hugging Face's AlbertForPreTraining in PyTorch on the same shapes, a step of ours and
a step of theirs in turn (pip install torch transformers).
"""

import json
import statistics
import sys
import time
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_CONFIG = cli.define_config("configs/base.py")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed steps.", lower_bound=5)
_PEER = flags.DEFINE_bool("peer", False, "Time Hugging Face ALBERT in PyTorch as well.")


def our_step(config, batch):
    """A function that runs one step and waits for it, and the seconds its first call took."""
    import flax.linen as nn
    import jax

    from albert.tasks.pretraining import Pretraining
    from albert.train.optimizers import make_optimizer
    from albert.train.sharding import batch_sharding, make_mesh, put_batch
    from albert.train.step import shard_training

    optimizer, schedule = make_optimizer(config.optimizer, config.train.num_steps)
    mesh = make_mesh(config.sharding)
    _, create, step_function = shard_training(
        Pretraining(config),
        optimizer,
        schedule,
        config.train.accumulation,
        0,
        mesh,
        config.sharding,
    )
    rows = put_batch(batch, batch_sharding(mesh, config.sharding))
    state = create()

    def step():
        nonlocal state
        with jax.set_mesh(mesh), nn.logical_axis_rules(config.sharding.rules):
            state, metrics = step_function(state, rows)
        jax.block_until_ready((state, metrics))

    start = time.perf_counter()
    step()
    return step, time.perf_counter() - start


def peer_step(config, batch):
    import torch
    import transformers

    from albert.interop.weights import released_groups

    model_config = config.model
    peer = transformers.AlbertForPreTraining(
        transformers.AlbertConfig(
            vocab_size=model_config.vocab_size,
            embedding_size=model_config.embedding_size,
            hidden_size=model_config.hidden_size,
            num_hidden_layers=model_config.num_hidden_layers,
            num_hidden_groups=released_groups(model_config, "The peer"),
            inner_group_num=model_config.inner_group_num,
            num_attention_heads=model_config.num_attention_heads,
            intermediate_size=model_config.intermediate_size,
            hidden_dropout_prob=model_config.hidden_dropout_prob,
            attention_probs_dropout_prob=model_config.attention_probs_dropout_prob,
            max_position_embeddings=model_config.max_position_embeddings,
        )
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, model_config.dtype)
    peer = peer.to(device).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4)
    labels = torch.full(batch["input_ids"].shape, -100)
    labels.scatter_(
        1,
        torch.tensor(batch["mlm_positions"], dtype=torch.long),
        torch.tensor(batch["mlm_labels"], dtype=torch.long),
    )
    inputs = {
        "input_ids": torch.tensor(batch["input_ids"], dtype=torch.long),
        "attention_mask": torch.tensor(batch["attention_mask"], dtype=torch.long),
        "token_type_ids": torch.tensor(batch["token_type_ids"], dtype=torch.long),
        "labels": labels,
        "sentence_order_label": torch.tensor(batch["sop_labels"], dtype=torch.long),
    }
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    run = torch.compile(peer) if device == "cuda" else peer

    def step():
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = run(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    return step


def main() -> None:
    import jax

    from albert.models.config import DTYPES
    from albert.tasks.pretraining import flops_per_token
    from albert.train.hardware import peak_flops
    from tools.claims.measure import random_rows

    config = cli.checked(_CONFIG, needs_text=False)
    ours, first_call = our_step(config, random_rows(config, config.data.packing))
    steps = {"albert": ours}
    if _PEER.value:
        steps["huggingface"] = peer_step(config, random_rows(config))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_REPEATS.value):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    tokens = config.train.batch_size * config.data.seq_length
    peak, origin = peak_flops(DTYPES[config.model.dtype])
    flops = tokens * flops_per_token(
        config.model, config.data.seq_length, config.data.max_predictions
    )
    facts = {
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "first_call_seconds": first_call,
        "peak": origin,
    }
    for name, seconds in times.items():
        median = statistics.median(seconds)
        facts[name] = {
            "step_seconds": median,
            "fastest": min(seconds),
            "slowest": max(seconds),
            "tokens_per_second": tokens / median,
            "mfu": flops / median / (peak * jax.device_count()),
        }
        print(
            f"{name:<12} {1000 * median:9.1f} ms a step ({1000 * min(seconds):.1f} to "
            f"{1000 * max(seconds):.1f})  {tokens / median:10.0f} tokens/s  "
            f"MFU {100 * facts[name]['mfu']:.1f} %"
        )
    if _PEER.value:
        ratio = facts["albert"]["tokens_per_second"] / facts["huggingface"]["tokens_per_second"]
        facts["ratio"] = ratio
        print(f"{ratio:.2f} times the peer")
    print(json.dumps(facts))


if __name__ == "__main__":
    cli.run(main)
