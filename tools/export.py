"""Writes a model as a folder that other programs run: ONNX, StableHLO or LiteRT, checked before it
is kept.

  python tools/export.py --input=runs/base --output=base-onnx --format=onnx
  python tools/export.py --input=runs/sst2 --output=sst2-onnx --format=onnx --int8 --float32
  python tools/export.py --input=runs/base --output=vectors --format=onnx --heads=sentence --int8
  python tools/export.py --input=runs/sst2 --output=sst2-quick --format=onnx --exit=patience:2
  python tools/export.py --input=runs/base --output=base-hlo --format=stablehlo
  python tools/export.py --input=runs/sst2 --output=sst2-phone --format=litert --int8 --lengths=64

The input is anything that albert.load takes. Without --heads the program gives what the model was
trained for: scores of pieces after pretraining, of labels, tokens or answers after fine-tuning. The
folder holds the program, tokenizer.json, config.json, a README that says how to run it, and
manifest.json with sizes, digests and what the check found. transformers.js and Optimum open the
ONNX folders as they are. ONNX needs: pip install -r requirements-export.txt
LiteRT needs: pip install -r requirements-litert.txt
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
    "format", None, ["onnx", "stablehlo", "litert"], "Format to write.", required=True
)
_HEADS = flags.DEFINE_list(
    "heads",
    [],
    "What the program gives: hidden, sentence (a vector of length 1 for each text), mlm, sop, "
    "classifier, tokens, span. Default: what the model was trained for.",
)
_FLOAT32 = flags.DEFINE_bool(
    "float32", None, "A float32 file. Default: yes, if no other is asked for."
)
_INT8 = flags.DEFINE_bool("int8", False, "A file with int8 weights, a quarter of the size.")
_INT4 = flags.DEFINE_bool(
    "int4", False, "A file with layers in 4 bits: small, no faster, further from the model. ONNX."
)
_FUSED = flags.DEFINE_bool("fused", False, "Use operators that ONNX Runtime alone has.")
_PER_TOKEN = flags.DEFINE_bool(
    "per_token", False, "int8: a scale of activations for each token. Nearer, and slower."
)
_WEIGHT_BITS = flags.DEFINE_integer(
    "weight_bits",
    7,
    "int8: 8 is a little nearer to the model, on ARM and on x86 with VNNI alone: elsewhere sums of "
    "two products saturate, and what comes out is wrong.",
)
_DEPTH = flags.DEFINE_integer(
    "depth",
    None,
    "End behind so many layers: of a model that was trained with model.least_depth. Default: all.",
    lower_bound=1,
)
_LENGTHS = flags.DEFINE_list(
    "lengths",
    [],
    "litert: lengths that rows may have, from the shortest on; others are padded. Default: 32, 128 "
    "and 512 as far as the model has positions, and all of these.",
)
_BATCH = flags.DEFINE_integer("batch", 1, "litert: rows of a call.")
_EXIT = flags.DEFINE_string(
    "exit",
    None,
    "Leave early: patience:K, confidence:P or depth:D, of a model that was fine-tuned with "
    "data.exits. The program then gives exit_depth too, the layers that each row took.",
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "SentencePiece .model file. Default: the one beside the input."
)
_CHECK_TEXT = flags.DEFINE_string(
    "check_text", None, "Text file to check with. Default: Python's language reference."
)
_LEAST_COSINE = flags.DEFINE_float(
    "least_cosine",
    None,
    "A rounded model is refused when its states are less like the model's. Default: int8 0.999, "
    "int4 0.95.",
)


def main() -> None:
    # The program that is written does not depend on it, and no accelerator is taken from a run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from albert.checkpoints import CheckpointError
    from albert.export import check, export
    from albert.interop import formats
    from albert.interop.reshare import first_layers
    from albert.runtime.paths import place
    from albert.runtime.signals import StopSignals

    output = Path(_OUTPUT.value).expanduser()
    vocabulary = place(_TOKENIZER.value) if _TOKENIZER.value else None
    weights = formats.read(place(_INPUT.value), vocabulary=vocabulary)
    if _DEPTH.value is not None:
        weights = first_layers(weights, _DEPTH.value)
    wanted = {
        "float32": not (_INT8.value or _INT4.value) if _FLOAT32.value is None else _FLOAT32.value
    }
    wanted |= {"int8": _INT8.value, "int4": _INT4.value}
    precisions = [name for name, is_wanted in wanted.items() if is_wanted]
    if not precisions:
        raise CheckpointError("Nothing is asked for: set --float32, --int8 or --int4.")
    if wrong := [text for text in _LENGTHS.value if not text.strip().isdecimal()]:
        raise CheckpointError(f"--lengths: {wrong[0]!r} is no number; such as 32,128.")
    lengths = [int(text) for text in _LENGTHS.value]
    print(f"Writing and checking {_FORMAT.value}, {' and '.join(precisions)}...", flush=True)
    with StopSignals() as stop, stop.immediately():  # and nothing half-written stays
        manifest = export(
            weights,
            output,
            _FORMAT.value,
            [head for head in _HEADS.value if head],
            precisions,
            fused=_FUSED.value,
            per_token=_PER_TOKEN.value,
            weight_bits=_WEIGHT_BITS.value,
            lengths=lengths,
            batch=_BATCH.value,
            exit=_EXIT.value,
            check_text=Path(_CHECK_TEXT.value).expanduser() if _CHECK_TEXT.value else None,
            least_cosine=_LEAST_COSINE.value,
        )
    for name, facts in manifest["files"].items():
        print(f"{facts['bytes']:>12,}  {name}")
    for name, checks in manifest["checks"].items():
        for what, report in checks.items():
            print(f"{name}, {what}: {check.Report(**report)}")
    for note in filter(None, [*weights.notes, weights.vocabulary_note]):
        print(f"Note: {note}")
    print(f"Written to {_OUTPUT.value}; its README.md says how to run it.")


if __name__ == "__main__":
    cli.run(main)
