"""Writes a model as a folder that other programs run: ONNX or StableHLO, checked before it is kept.

  python tools/export.py --input=runs/base --output=base-onnx --format=onnx
  python tools/export.py --input=runs/sst2 --output=sst2-onnx --format=onnx --int8 --float32
  python tools/export.py --input=runs/base --output=vectors --format=onnx --heads=sentence --int8
  python tools/export.py --input=runs/sst2 --output=sst2-quick --format=onnx --exit=patience:2
  python tools/export.py --input=runs/base --output=base-hlo --format=stablehlo

The input is anything that albert.load takes. Without --heads the program gives what the model was
trained for: scores of pieces after pretraining, of labels, tokens or answers after fine-tuning. The
folder holds the graph, tokenizer.json, config.json, a README that says how to run it, and
manifest.json with sizes, digests and what the check found. transformers.js and Optimum open the
ONNX folders as they are. ONNX needs: pip install -r requirements-export.txt
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
    "format", None, ["onnx", "stablehlo"], "Format to write.", required=True
)
_HEADS = flags.DEFINE_list(
    "heads",
    [],
    "What the program gives: hidden, sentence (a vector of length 1 for each text), mlm, sop, "
    "classifier, tokens, span. Default: what the model was trained for.",
)
_FLOAT32 = flags.DEFINE_bool("float32", None, "A float32 file. Default: yes, if --int8 is not set.")
_INT8 = flags.DEFINE_bool("int8", False, "A file with int8 weights, a quarter of the size. ONNX.")
_FUSED = flags.DEFINE_bool("fused", False, "Use operators that ONNX Runtime alone has.")
_PER_TOKEN = flags.DEFINE_bool(
    "per_token", False, "int8: a scale of activations for each token. Nearer, and slower."
)
_WEIGHT_BITS = flags.DEFINE_integer(
    "weight_bits", 8, "int8: 7 for x86 without VNNI, where products of 8 bits saturate."
)
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
    "least_cosine", 0.999, "int8 is refused when its states are less like the model's."
)


def main() -> None:
    # The program that is written does not depend on it, and no accelerator is taken from a run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from albert.checkpoints import CheckpointError
    from albert.export import check, export
    from albert.interop import formats

    def place(text: str | None) -> Path | None:
        return Path(text).expanduser() if text else None

    output = Path(_OUTPUT.value).expanduser()
    weights = formats.read(Path(_INPUT.value).expanduser(), vocabulary=place(_TOKENIZER.value))
    wanted = {"float32": not _INT8.value if _FLOAT32.value is None else _FLOAT32.value}
    wanted["int8"] = _INT8.value
    precisions = [name for name, is_wanted in wanted.items() if is_wanted]
    if not precisions:
        raise CheckpointError("Nothing is asked for: set --float32 or --int8.")
    print(f"Writing and checking {_FORMAT.value}, {' and '.join(precisions)}...", flush=True)
    manifest = export(
        weights,
        output,
        _FORMAT.value,
        [head for head in _HEADS.value if head],
        precisions,
        fused=_FUSED.value,
        per_token=_PER_TOKEN.value,
        weight_bits=_WEIGHT_BITS.value,
        exit=_EXIT.value,
        check_text=place(_CHECK_TEXT.value),
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
