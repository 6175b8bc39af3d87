"""A model in a form that other programs run: one folder with all that they need.

A format is a file or a folder beside this one, with FILES, PRECISIONS, OPTIONS, PACKAGES,
`static_lengths`, `write`, `runner` and `usage`, and a line in FORMATS.
"""

import dataclasses
import json
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from albert.checkpoints import CheckpointError
from albert.export import check, litert, onnx, stablehlo
from albert.export.interface import EXIT_DEPTH, HEADS, INPUTS, Model, Options, asked
from albert.interop import huggingface, huggingface_tokenizer
from albert.interop.exported import MANIFEST
from albert.interop.folders import check_new, new_folder
from albert.interop.weights import Weights
from albert.runtime.digests import file_digest
from albert.runtime.paths import is_remote

FORMATS: dict[str, ModuleType] = {"onnx": onnx, "stablehlo": stablehlo, "litert": litert}
# What the mean cosine of the states of a rounded model with those of the model must be at least.
LEAST_COSINE = {"int8": 0.999, "int4": 0.95}
_OF_INT8 = ("per_token", "weight_bits")


def export(
    weights: Weights,
    path: Path,
    format: str,
    heads: Sequence[str] = (),
    precisions: Sequence[str] = ("float32",),
    *,
    fused: bool = False,
    per_token: bool = False,
    weight_bits: int = 7,
    lengths: Sequence[int] = (),
    batch: int = 1,
    exit: str | None = None,
    check_text: Path | None = None,
    least_cosine: float | None = None,
) -> dict[str, Any]:
    """Writes a model as a new folder for other programs, checked, whole or not at all.

    Args:
      weights: of `formats.read`.
      path: the folder; must not be there yet.
      format: a key of FORMATS.
      heads: what the program gives, keys of HEADS; none: what the model was trained for.
      precisions: of the format's PRECISIONS, one file for each.
      fused, per_token, weight_bits, lengths, batch: see `albert.export.interface.Options`.
      exit: when a row leaves, such as "patience:3" (`albert.models.exits`), of a model that was
        fine-tuned with data.exits; None: behind the last layer.
      check_text: a text file to check with; None: the language reference of Python.
      least_cosine: what int8 and int4 are refused below (`Report.cosine`); None: LEAST_COSINE.

    Returns:
      The manifest: what is in the folder, with sizes, digests and what the checks found.

    Raises CheckpointError: the folder is there, the format cannot hold the model, a package is not
    installed, or the program that was written does not compute what the model does.
    """
    if format not in FORMATS:
        raise CheckpointError(f"There is no format {format!r}; there is {', '.join(FORMATS)}.")
    if is_remote(path):
        raise CheckpointError(f"{path}: models are written to this machine; copy it there.")
    kind = FORMATS[format]
    options = Options(fused, per_token, weight_bits, tuple(lengths), batch)
    _check_asked(kind, format, precisions, options)
    check_new(path)
    model = asked(weights, tuple(heads), exit)
    static = kind.static_lengths(model, options)
    calls = check.batches(model, weights.tokenizer, check.sample(check_text), static)
    with new_folder(path) as folder:
        files, checks = {}, {}
        for precision in precisions:
            file = kind.write(model, folder, precision, options)
            name = files[precision] = str(file.relative_to(folder))
            report = check.compare(model, kind.runner(file), calls)
            checks[name] = {precision: dataclasses.asdict(report)}
            if precision == "float32":
                wanted = f"difference of at most {check.FLOAT32_DIFFERENCE:.0e}."
                _refuse(file, report.difference > check.FLOAT32_DIFFERENCE, report, wanted)
            else:
                states = _of_states(weights, folder, kind, precision, options, calls)
                checks[name]["states"] = dataclasses.asdict(states)
                least = LEAST_COSINE[precision] if least_cosine is None else least_cosine
                wanted = f"cosine of at least {least}."
                if precision == "int8" and "per_token" in kind.OPTIONS and not per_token:
                    wanted += " With per_token (--per_token) it comes nearer, and is slower."
                _refuse(file, states.cosine < least, states, wanted)
        _beside(weights, model, folder)
        manifest = {
            "format": format,
            "heads": {head: HEADS[head].says for head in model.heads},
            "inputs": list(INPUTS),
            "outputs": list(model.outputs),
            "programs": files,
            "fields": {head: dict(model.fields.get(head, {})) for head in model.heads},
            "labels": list(weights.labels),
            "pooling": model.pooling,
            "exit": exit,
            "weight_bits": options.weight_bits if "weight_bits" in kind.OPTIONS else None,
            "shapes": None if static is None else {"batch": batch, "lengths": list(static)},
            "parameters": int(sum(value.size for value in model.params.values())),
            "checks": checks,
            "made_by": _versions(kind),
            "model": dataclasses.asdict(model.config),
        }
        has_pipeline = (folder / huggingface_tokenizer.PIPELINE).is_file()
        readme = _readme(path.name, weights, model, kind, options, files, manifest, has_pipeline)
        (folder / "README.md").write_text(readme)
        manifest["files"] = {
            str(file.relative_to(folder)): dict(
                zip(("bytes", "sha256"), file_digest(file), strict=True)
            )
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _check_asked(
    kind: ModuleType, format: str, precisions: Sequence[str], options: Options
) -> None:
    """Raises CheckpointError where the format does not have it, or nothing would read an option."""
    if wrong := [p for p in precisions if p not in kind.PRECISIONS]:
        raise CheckpointError(
            f"{format} has no precision {wrong[0]!r}; it has {', '.join(kind.PRECISIONS)}."
        )
    if unread := [name for name in options.set if name not in kind.OPTIONS]:
        raise CheckpointError(
            f"{format} has no {unread[0]}; it has {', '.join(kind.OPTIONS) or 'no options'}."
        )
    of_int8 = [name for name in options.set if name in _OF_INT8]
    if of_int8 and "int8" not in precisions:
        raise CheckpointError(f"{of_int8[0]} is an option of int8, which is not asked for.")
    if options.weight_bits not in (7, 8):
        raise CheckpointError(f"weight_bits is {options.weight_bits}; int8 weights have 7 or 8.")


def _of_states(
    weights: Weights,
    folder: Path,
    kind: ModuleType,
    precision: str,
    options: Options,
    calls: Sequence[Sequence[np.ndarray]],
) -> check.Report:
    """How near a program's states are to the model's, whatever its heads make of them."""
    states = asked(weights, ("hidden",))
    rows = [[row.reshape(-1, row.shape[-1]) for row in call] for call in calls]
    beside = folder / ".states"
    file = kind.write(states, beside, precision, options)
    report = check.compare(states, kind.runner(file), rows)
    shutil.rmtree(beside)
    return report


def _refuse(file: Path, wrong: bool, report: check.Report, wanted: str) -> None:
    if wrong:
        raise CheckpointError(
            f"{file.name} does not compute what the model does, so it is not kept: {report}; "
            f"wanted is a {wanted}"
        )


def _beside(weights: Weights, model: Model, folder: Path) -> None:
    """Config and vocabulary, as transformers.js and Optimum look for them."""
    values = huggingface.config_json(
        weights, None if HEADS[model.heads[0]].parts else "AlbertModel"
    )
    (folder / huggingface.CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    if weights.tokenizer is not None:
        limit = model.config.max_position_embeddings
        huggingface_tokenizer.write(weights.tokenizer, limit, folder, named="AlbertTokenizer")


def _readme(
    name: str,
    weights: Weights,
    model: Model,
    kind: ModuleType,
    options: Options,
    files: dict[str, str],
    manifest: dict[str, Any],
    has_pipeline: bool,
) -> str:
    lines = [f"# {name}", ""]
    config = model.config
    lines += [
        f"An ALBERT of {manifest['parameters']:,} parameters, {config.depth} layers of width "
        f"{config.hidden_size}, sharing {config.sharing!r}, as {manifest['format']}. It gives "
        + "; ".join(f"{head}: {says}" for head, says in manifest["heads"].items())
        + ".",
        "",
        kind.usage(model, files, options),
        "",
    ]
    if model.exit is not None:
        lines += [
            f"A row leaves early, by {model.exit}: `{EXIT_DEPTH}` says after how many of the "
            f"{config.depth} layers. A call runs until its slowest row has left, so quick answers "
            "come of calls with one row.",
            "",
        ]
    if weights.labels:
        lines += [f"Labels, in the order of the logits: {', '.join(weights.labels)}.", ""]
    if weights.tokenizer is None:
        lines += ["The model had no vocabulary beside it, so there is no tokenizer.json here.", ""]
    elif not has_pipeline:
        lines += [
            "The vocabulary is not of SentencePiece's unigram kind, of which alone a "
            "tokenizer.json can be made: read text with sentencepiece and `spiece.model`.",
            "",
        ]
    else:
        lines += [
            "`tokenizer.json` gives the ids that the model was trained with. transformers (Python) "
            "makes a tokenizer of its own from it, which reads two backticks or two apostrophes as "
            'a `"`; take `tokenizers.Tokenizer.from_file` as above.',
            "",
        ]
    lines.append("Checked against the model in JAX:")
    for file, checks in manifest["checks"].items():
        for what, report in checks.items():
            lines.append(f"- `{file}`, {what}: {check.Report(**report)}")
    return "\n".join([*lines, "", "Sizes and digests of all files: `manifest.json`.", ""])


def _versions(kind: ModuleType) -> dict[str, str]:
    packages = ("jax", "flax", "numpy", *kind.PACKAGES)
    found = {package: metadata.version(package) for package in packages}
    return found | {"python": platform.python_version()}
