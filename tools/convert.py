"""Converts a model between this project, Hugging Face and the released TensorFlow program.

  python tools/convert.py --input=runs/base --output=base-hf --format=huggingface
  python tools/convert.py --input=albert_base/model.ckpt-best --output=base --format=albert \\
      --tokenizer=albert_base/30k-clean.model
  python tools/convert.py --input=albert_base --output=again --format=original --noprint_table
  python tools/convert.py --input=runs/sandwich --output=hf --format=huggingface --sharing=none

The input is a workdir or one checkpoint of it, here or on gs://, a Hugging Face folder, or the
prefix or folder of a TensorFlow checkpoint. One process converts what many have written. Prints
what went where, what was missing and what was left over. The optimizer's moments and step go along
between workdirs and TensorFlow checkpoints. Reading and writing the latter needs TensorFlow: pip
install -r requirements-original.txt
"""

import os
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_INPUT = flags.DEFINE_string("input", None, "Model to read.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must not be there.", required=True)
_FORMAT = flags.DEFINE_enum(
    "format", None, ["albert", "huggingface", "original"], "Format to write.", required=True
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "SentencePiece .model file. Default: the one beside the input."
)
_SHARING = flags.DEFINE_string(
    "sharing",
    None,
    "Put the layers together anew under this model.sharing, without per_layer_norm and lora_rank: "
    "none writes every layer out; others take the mean of the layers that share.",
)
_TABLE = flags.DEFINE_bool("print_table", True, "Print a line for every tensor.")


def reshared(weights):
    """The model with --sharing; its moments stay behind."""
    import dataclasses

    from albert.interop.reshare import reshare
    from albert.runtime.fields import ConfigError

    config = dataclasses.replace(
        weights.config, sharing=_SHARING.value, per_layer_norm=False, lora_rank=0
    )
    if problems := config.problems():
        raise ConfigError([f"model.{text}" for text in problems])
    return reshare(weights, config)


def main() -> None:
    # Names and layouts only: no accelerator is needed, or taken from a run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from albert.interop import formats
    from albert.interop.folders import check_new
    from albert.runtime.fields import ConfigError
    from albert.runtime.paths import is_remote, place
    from albert.runtime.signals import StopSignals

    if is_remote(output := place(_OUTPUT.value)):
        raise ConfigError(
            [f"--output is {output}; a model is written to a folder of this machine: copy it then"]
        )
    check_new(output)
    weights = formats.read(
        place(_INPUT.value),
        with_moments=_FORMAT.value != "huggingface",
        vocabulary=place(_TOKENIZER.value) if _TOKENIZER.value else None,
    )
    if _SHARING.value is not None:
        weights = reshared(weights)
    with StopSignals() as stop, stop.immediately():  # and nothing half-written stays
        written = formats.write(weights, output, _FORMAT.value)
    rows = [
        (weights.names.get(path, "-"), written.get(path, "-"), "x".join(map(str, value.shape)))
        for path, value in weights.params.items()
    ]
    if _TABLE.value:
        first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
        print(f"{'read':<{first}}  {'written':<{second}}  shape here")
        for name, other, shape in rows:
            print(f"{name:<{first}}  {other:<{second}}  {shape}")
    numbers = sum(value.size for value in weights.params.values())
    print(f"{len(rows)} tensors, {numbers:,} numbers.")
    print(f"Missing: {', '.join(weights.missing) or 'nothing'}.")
    print(f"Left over: {', '.join(weights.left_over) or 'nothing'}.")
    for note in weights.notes:
        print(f"Note: {note}.")
    moments = "with" if weights.mu is not None and _FORMAT.value != "huggingface" else "without"
    step = "unknown" if weights.step is None else weights.step
    print(f"Step {step}, {moments} the optimizer's moments.")
    print(f"Vocabulary: {weights.tokenizer.path if weights.tokenizer else 'none was found'}.")
    print(f"Written to {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)
