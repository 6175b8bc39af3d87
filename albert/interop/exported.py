"""Folders that `albert.export` has written, as their manifest describes them. Never imports jax."""

import dataclasses
from pathlib import Path
from typing import Any

from albert.checkpoints import CheckpointError
from albert.interop import saturation
from albert.interop.folders import read_json
from albert.runtime.digests import file_digest

MANIFEST = "manifest.json"
# What the head of SQuAD 2.0 gives: its names outside, as transformers has them of XLNet, and ours.
CONDITIONAL = {
    "start_top_log_probs": "start",
    "start_top_index": "start_index",
    "end_top_log_probs": "end",
    "end_top_index": "end_index",
    "cls_logits": "none",
}
_FIELDS: dict[str, type] = {
    "format": str,
    "heads": dict,
    "inputs": list,
    "outputs": list,
    "programs": dict,
    "fields": dict,
    "labels": list,
    "pooling": str,
    "model": dict,
    "files": dict,
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """What a folder holds.

    Attributes:
      folder: where it is.
      format: a key of `albert.export.FORMATS`.
      heads: what the program gives, keys of `albert.export.interface.HEADS`.
      inputs, outputs: names of the program's.
      programs: files below the folder by precision.
      fields: of the heads by name, such as the kind of a classifier.
      labels: names of what a classifier tells apart, in the order of its logits.
      pooling: what a sentence's vector is of, one of `albert.models.heads.POOLING`.
      model: the fields of an `AlbertConfig`.
      files: bytes and SHA-256 of every file.
      weight_bits: of int8 in ONNX; None: of another format.
    """

    folder: Path
    format: str
    heads: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    programs: dict[str, str]
    fields: dict[str, dict[str, Any]]
    labels: tuple[str, ...]
    pooling: str
    model: dict[str, Any]
    files: dict[str, dict[str, Any]]
    weight_bits: int | None

    def checked(self, name: str) -> Path:
        """A file of the folder; raises CheckpointError where it is not the one that was written."""
        path = self.folder / name
        facts = self.files.get(name, {})
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; {MANIFEST} beside it names it.")
        if file_digest(path) != [facts.get("bytes"), facts.get("sha256")]:
            raise CheckpointError(
                f"{path} is damaged or was changed: size and digest are not those in {MANIFEST}. "
                "Export the model again."
            )
        return path

    def program(self, precision: str) -> Path:
        """The file of a program, checked; raises CheckpointError also where this CPU would compute
        something else."""
        if precision in ("int8", "int4") and self.weight_bits == 8 and saturation.saturates():
            raise CheckpointError(
                f"{self.folder}: the weights of {self.programs[precision]} have 8 bits; "
                f"{saturation.WHY}. Take another precision of {', '.join(self.programs)}, or "
                "export the model again: with --weight_bits=7, the default, it runs everywhere."
            )
        return self.checked(self.programs[precision])


def is_exported(folder: Path) -> bool:
    """Whether it looks like such a folder."""
    return (folder / MANIFEST).is_file() and "format" in read_json(folder / MANIFEST)


def read(folder: Path) -> Exported:
    """Raises CheckpointError where the manifest is damaged or lacks something."""
    path = folder / MANIFEST
    values = read_json(path)
    for name, kind in _FIELDS.items():
        if not isinstance(values.get(name), kind):
            raise CheckpointError(
                f"{path} has no {name!r}: it is damaged, or of an older version. Export the model "
                "again with tools/export.py."
            )
    for name in ("vocab_size", "type_vocab_size", "max_position_embeddings"):
        if not isinstance(values["model"].get(name), int):
            raise CheckpointError(f"{path} is damaged: its model has no {name}.")
    tuples = {name: tuple(values[name]) for name in ("heads", "inputs", "outputs", "labels")}
    # Folders of before the field was there have 8 bits.
    bits = values.get("weight_bits", 8) if values["format"] == "onnx" else None
    return Exported(folder, **{name: values[name] for name in _FIELDS} | tuples, weight_bits=bits)
