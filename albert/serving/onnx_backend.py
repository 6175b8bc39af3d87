"""A folder that `albert.export` has written as ONNX, computed by ONNX Runtime, without jax."""

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from albert.answers import ABILITIES
from albert.checkpoints import CheckpointError
from albert.interop import exported, huggingface_tokenizer
from albert.interop.exported import CONDITIONAL, Exported
from albert.runtime.digests import text_digest
from albert.serving.backend import Card, Row, Shapes, padded

PRECISIONS = ("int8", "float32", "int4")  # the first that the folder has is taken
# Scores of every piece at every place are computed for so many rows at once that they fit in this.
_SCORES_BYTES = 1 << 28


class OnnxBackend:
    """A `Backend` without programs to compile: a batch is as large and as long as its rows.

    Args:
      folder: of tools/export.py --format=onnx.
      name: what it is called on the pages.
      batches: the largest is how many rows are computed at once.
      lengths: rows up to each are computed together; the model's positions are always among them.
      top: guesses at a [MASK] at most.
      abilities: fewer than the model has; None: all.
      precision: of PRECISIONS; None: the first that is there.
      vocabulary: a .model file to use rather than the one in the folder.

    Raises:
      CheckpointError: the folder is of another format, damaged, or lacks the precision;
        onnxruntime is not installed or cannot run it.
      ValueError: a size is no whole number of at least 1, or the model has no such ability.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        batches: Iterable[int],
        lengths: Iterable[int],
        top: int,
        abilities: Sequence[str] | None = None,
        precision: str | None = None,
        vocabulary: Path | None = None,
    ):
        found = exported.read(folder)
        if found.format != "onnx":
            raise CheckpointError(
                f"{folder} holds the model as {found.format}, which is not served; give the model "
                "itself, or export it with --format=onnx."
            )
        sizes, longest = list(batches), list(lengths)
        if not sizes or min([*sizes, *longest]) < 1:
            raise ValueError(
                f"batches is {sizes} and lengths {longest}; they must be whole numbers of at least "
                "1."
            )
        tokenizer, note = _vocabulary(found, vocabulary)
        if note:
            warnings.warn(note, stacklevel=2)
        limit, vocab_size = found.model["max_position_embeddings"], found.model["vocab_size"]
        chosen = _chosen(found, precision)
        self.precision: str | None = chosen
        self._file = found.programs[chosen]
        self._session = _session(found, chosen)
        self._exported = found
        self._poolings = _poolings(found)
        has = _abilities(found)
        if unknown := sorted({*(abilities or ())} - {*has}):
            raise ValueError(
                f"The program in {folder} cannot {', '.join(unknown)}; it can "
                f"{', '.join(has) or 'nothing that is served'}. tools/export.py --heads says what "
                "it gives."
            )
        if not has:
            raise CheckpointError(
                f"{folder} gives {', '.join(found.heads)}, of which nothing is served: export it "
                "with --heads=hidden, or without --heads."
            )
        self.top = min(top, tokenizer.vocab_size if tokenizer else vocab_size)
        self.shapes = Shapes(
            tuple(sorted(set(sizes))), tuple(sorted({*(min(n, limit) for n in longest), limit}))
        )
        self.card = Card(
            name=name,
            abilities=tuple(abilities or has),
            tokenizer=tokenizer,
            no_vocabulary=note or "There is no vocabulary beside the model",
            positions=limit,
            vocab_size=vocab_size,
            type_vocab_size=found.model["type_vocab_size"],
            kind=found.fields.get("classifier", {}).get("kind", "classes"),
            labels=_labels(found),
            threshold=found.fields.get("conditional_span", {}).get("threshold", 0.0),
            poolings=tuple(self._poolings),
            pooling=found.pooling
            if found.pooling in self._poolings
            else next(iter(self._poolings), found.pooling),
        )

    def digest(self) -> str:
        parts = [self._exported.files[self._file]["sha256"]]
        if self.card.tokenizer:
            tokenizer = self.card.tokenizer
            parts += [tokenizer.fingerprint, tokenizer.lower_case, tokenizer.strip_accents]
        return text_digest(" ".join(map(str, parts)))

    def warm_up(self, on_program: Callable[[str], None]) -> None:
        """Nothing is compiled: one program serves every shape."""

    def compute(self, ability: str, rows: Sequence[Row], shape: tuple[int, int]) -> list[Any]:
        length = max(row.length for row in rows)
        at_once = len(rows)
        if ability == "fill_mask":
            at_once = max(1, _SCORES_BYTES // (4 * length * self.card.vocab_size))
        return [
            found
            for begin in range(0, len(rows), at_once)
            for found in self._computed(ability, rows[begin : begin + at_once], length)
        ]

    def _computed(self, ability: str, rows: Sequence[Row], length: int) -> list[Any]:
        arrays = padded(rows, (len(rows), length))
        given = {name: arrays[name].astype(np.int64) for name in self._exported.inputs}
        if ability == "choose":  # an option is a row here, and there a row of one question
            given = {name: array[:, None] for name, array in given.items()}
        outputs = self._exported.outputs
        found = dict(zip(outputs, self._session.run(outputs, given), strict=True))
        if ability == "fill_mask":
            return [
                _likeliest(found["logits"][at, arrays["positions"][at]], self.top)
                for at in range(len(rows))
            ]
        if ability == "encode":
            vectors = {
                pooling: made(found, arrays["attention_mask"])
                for pooling, made in self._poolings.items()
            }
            return [
                {name: np.array(v[at]) for name, v in vectors.items()} for at in range(len(rows))
            ]
        if "conditional_span" in self._exported.heads:
            beams = {ours: found[name] for name, ours in CONDITIONAL.items()}
            return [{n: np.array(v[at]) for n, v in beams.items()} for at in range(len(rows))]
        if ability == "answer":
            logits = np.stack([found["start_logits"], found["end_logits"]], axis=-1)
        else:
            logits = found["logits"]
        by_position = ability in ("tag", "answer")
        return [
            np.array(logits[at, : row.length] if by_position else logits[at])
            for at, row in enumerate(rows)
        ]


def _chosen(found: Exported, precision: str | None) -> str:
    if precision is None:
        return next((p for p in PRECISIONS if p in found.programs), next(iter(found.programs)))
    if precision not in found.programs:
        raise CheckpointError(
            f"{found.folder} has no {precision} program; it has {', '.join(found.programs)}."
        )
    return precision


def _session(found: Exported, precision: str) -> Any:
    if importlib.util.find_spec("onnxruntime") is None:
        raise CheckpointError(
            "onnxruntime is not installed: pip install onnxruntime, or -r requirements-export.txt"
        )
    import onnxruntime

    path = found.program(precision)
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class of their own that is promised
        raise CheckpointError(f"{path}: ONNX Runtime cannot run it: {error}") from error


def _vocabulary(found: Exported, vocabulary: Path | None):
    files = (huggingface_tokenizer.SENTENCEPIECE, huggingface_tokenizer.OPTIONS)
    for name in files if vocabulary is None else files[1:]:
        if name in found.files:
            found.checked(name)
    tokenizer, note = huggingface_tokenizer.read(found.folder, vocabulary)
    size = found.model["vocab_size"]
    if tokenizer is not None and tokenizer.vocab_size > size:
        raise CheckpointError(
            f"{tokenizer.path} has {tokenizer.vocab_size} pieces and the model in {found.folder} "
            f"{size}: it belongs to another model."
        )
    return tokenizer, note


def _abilities(found: Exported) -> tuple[str, ...]:
    is_choice = found.fields.get("classifier", {}).get("kind") == "choice"
    has = {
        "fill_mask": "mlm" in found.heads,
        "encode": bool(_poolings(found)),
        "classify": "classifier" in found.heads and not is_choice,
        "choose": "classifier" in found.heads and is_choice,
        "tag": "tokens" in found.heads,
        "answer": bool({"span", "conditional_span"} & {*found.heads}),
    }
    return tuple(name for name in ABILITIES if has[name])


def _labels(found: Exported) -> tuple[str, ...]:
    """As `Pretrained.label_names` has them."""
    fields = found.fields.get("classifier")
    if fields is None:
        return found.labels
    if fields.get("kind") == "number":
        return ()
    return found.labels or tuple(str(number) for number in range(fields["labels"]))


def _poolings(found: Exported) -> dict[str, Callable[[dict, np.ndarray], np.ndarray]]:
    """How vectors are made of the outputs and the mask, by their name."""
    made: dict[str, Callable[[dict, np.ndarray], np.ndarray]] = {}
    # Of states alone the pooler's output cannot be made, and another pooling was not trained.
    if "hidden" in found.heads and found.pooling != "pooled":
        made["mean"] = lambda outputs, mask: _mean(outputs["last_hidden_state"], mask)
        made["cls"] = lambda outputs, mask: outputs["last_hidden_state"][:, 0]
    if "sentence" in found.heads:
        made["unit"] = lambda outputs, mask: outputs["sentence_embedding"]
    return made


def _mean(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Of the tokens' states, [B, L, H] -> [B, H]."""
    weights = mask[:, :, None].astype(np.float32)
    return (hidden * weights).sum(1) / weights.sum(1)


def _likeliest(logits: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and int32 ids, [P, top] each and the likeliest first, of the scores [P, V]."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    shares = shifted / shifted.sum(-1, keepdims=True)
    # The largest in the order of their ids, then by size: of equal ones the first comes first.
    ids = np.sort(np.argpartition(-logits, top - 1, axis=-1)[:, :top], axis=-1)
    order = np.argsort(-np.take_along_axis(logits, ids, axis=-1), axis=-1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=-1)
    return np.take_along_axis(shares, ids, axis=-1), ids.astype(np.int32)
