"""What the compilers of accelerators make of a config's training step, without the accelerator.

  python tools/compiled.py --config=configs/base.py --target=h100,v5e \\
      --config.train.batch_size=32 --config.data.seq_length=512

Prints for each target: bytes of memory, bytes moved and kept for each token and layer, products in
float32, collectives, and the MFU that follows; the last line is one JSON object. Rows are shared by
16 chips of a TPU, as config.sharding arranges them, and are all on one H100. A compilation takes
one to four minutes on two CPU cores.

The prediction: products at the rate that chips reach, and behind one another all that other
instructions read and write, at the bandwidth that they reach:
    seconds = operations / (share * peak FLOP/s) + bytes beside products / reached bytes/s
    MFU = model operations / (peak FLOP/s * seconds)
The share of the peak is 0.61 at hidden size 768, 0.65 at 1024, 0.71 at 2048 and 0.75 at 4096, which
is what products of these sizes reach on an H100; of other chips it is a guess.
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_CONFIG = cli.define_config("configs/base.py")
_TARGET = flags.DEFINE_list("target", ["h100"], "Of h100, h100x8, h200, v5e, v5p, v6e.")
_TEXT = flags.DEFINE_string("text", "", "A folder that the optimised programs are written to.")


def devices_in(target) -> int:
    return 16 if target.platform == "tpu" else int(target.topology.rpartition("x")[2])


def predicted_mfu(
    target, answer: dict, hidden: int, model_flops: float, recomputed: float = 0.0
) -> float:
    """Of one device, by the formula above; operations in FLOP for one device."""
    from albert.train.capacity import products_share

    seconds = (model_flops + recomputed) / (products_share(hidden) * target.flops)
    seconds += answer["moved_beside_products"] / target.reached
    return model_flops / (target.flops * seconds)


def main() -> int:
    from albert.models.cost import encoder_flops
    from albert.runtime.fields import ConfigError
    from albert.tasks.pretraining import Pretraining
    from albert.train.cost import in_bfloat16
    from tools.compilers.targets import TARGETS, compile_for

    unknown = [name for name in _TARGET.value if name not in TARGETS]
    if unknown:
        raise ConfigError(
            [f"--target names {name!r}; there is {', '.join(TARGETS)}" for name in unknown]
        )
    config = in_bfloat16(cli.checked(_CONFIG, needs_text=False))
    problems = [
        f"{name} is set: {what}"
        for name, what, is_set in (
            ("task", "only pretraining is compiled here", config.task != "pretraining"),
            (
                "distillation.teacher",
                "its part of a step is not compiled here",
                config.distillation.teacher,
            ),
            ("phases", "give the fields of one, and --config.phases='()'", config.phases),
        )
        if is_set
    ]
    if problems:
        raise ConfigError(problems)
    length, depth = config.data.seq_length, config.model.depth
    found = {}
    for name in _TARGET.value:
        target = TARGETS[name]
        of = config
        if of.model.attention == "auto":
            model = dataclasses.replace(of.model, attention=target.attention)
            of = dataclasses.replace(of, model=model)
        text = ""
        if _TEXT.value:
            Path(_TEXT.value).mkdir(parents=True, exist_ok=True)
            text = str(Path(_TEXT.value).resolve() / f"{name}.txt")
        print(f"{name}: compiling, some minutes", flush=True)
        answer = compile_for(name, dataclasses.asdict(of), text)
        if not answer.get("fits"):
            print(f"{name}: {answer.get('missing', 'it does not fit the memory')}")
            found[name] = answer
            continue
        rows = config.train.batch_size / devices_in(target)
        tokens = rows * length
        # A third of a layer's operations is its forward pass.
        again = encoder_flops(of.model, length) * tokens / 3 if of.model.remat == "full" else 0.0
        answer["predicted_mfu"] = predicted_mfu(
            target, answer, of.model.hidden_size, rows * Pretraining.flops_per_row(of), again
        )
        for figure in ("moved_in_layers", "kept"):
            answer[f"{figure}_per_token_and_layer"] = answer[figure] / tokens / depth
        found[name] = answer
        sent = ", ".join(
            f"{of_kind['number']} {kind} of {of_kind['bytes'] / 1e6:.1f} MB"
            for kind, of_kind in answer["exchanged"].items()
        )
        print(
            f"{name}: {tokens:,.0f} tokens on a device; temporaries "
            f"{answer['temporaries'] / 1e9:.2f} GB; for each token and layer "
            f"{answer['moved_in_layers_per_token_and_layer'] / 1e3:.1f} KB moved, "
            f"{answer['kept_per_token_and_layer'] / 1e3:.2f} KB kept; "
            f"{answer['fused_attention']} calls of fused attention; "
            f"{len(answer['float32_products'])} of {answer['products']} products in float32; "
            f"sent: {sent or 'nothing'}, in loops {len(answer['exchanged_in_loops']) or 'none'}; "
            f"predicted MFU {100 * answer['predicted_mfu']:.0f} %"
        )
    print(json.dumps(found))
    return 2 if any("missing" in answer for answer in found.values()) else 0


if __name__ == "__main__":
    cli.run(main)
