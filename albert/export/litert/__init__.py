"""LiteRT (once TensorFlow Lite), for phones and small computers: a file whose shapes are fixed."""

import dataclasses
from pathlib import Path

import numpy as np

from albert.checkpoints import CheckpointError
from albert.export.interface import HEADS, INPUTS, Model, Options

FILES = {"float32": "model.tflite", "int8": "model_int8.tflite"}
PRECISIONS = tuple(FILES)
OPTIONS = ("lengths", "batch")  # fields of `Options` that are read
PACKAGES = ("ai-edge-litert", "flatbuffers")
# Of signatures, where nobody asks for others.
_LENGTHS = (32, 128, 512)
_MOST_BYTES = 2**31  # offsets in a file have 32 bits, one of them for the sign
_SHORTEST = 3  # [CLS], a piece and [SEP]


def static_lengths(model: Model, options: Options) -> tuple[int, ...]:
    """The lengths that rows may have, each with a signature of its own.

    Raises CheckpointError: they are not such of the model, or the model is none of this format.
    """
    limit = model.config.max_position_embeddings
    found = options.lengths or (*(n for n in _LENGTHS if n < limit), limit)
    said = ",".join(map(str, found))
    if found[0] < _SHORTEST or sorted({*found}) != list(found):
        raise CheckpointError(
            f"lengths is {said}; they must be from {_SHORTEST} on, each over the one before."
        )
    if found[-1] > limit:
        raise CheckpointError(
            f"lengths is {said}; the model has {limit} positions, so no row is longer than that."
        )
    if options.batch < 1:
        raise CheckpointError(f"batch is {options.batch}; a call has at least one row.")
    if model.choices:
        raise CheckpointError(
            "This model chooses among options, whose number a litert file would fix: export it as "
            "onnx or stablehlo, or its states with --heads=hidden."
        )
    if model.config.positions != "learned":
        raise CheckpointError(
            f"This model's positions are {model.config.positions}, which litert does not hold: "
            "export it as onnx or stablehlo."
        )
    if "conditional_span" in model.heads:
        raise CheckpointError(
            "The head of SQuAD 2.0 follows the likeliest starts, which litert does not hold: "
            "export the model as onnx or stablehlo, or its states with --heads=hidden."
        )
    if model.exit is not None and model.exit.rule != "depth":
        raise CheckpointError(
            "litert holds an exit at a fixed depth, such as depth:6; for one that looks at the "
            "answers export the model as onnx or stablehlo."
        )
    return found


def write(model: Model, folder: Path, precision: str, options: Options) -> Path:
    """Writes the file below `folder`; the file.

    Raises CheckpointError: ai-edge-litert is not installed, the format cannot hold the model, or
    the file would be too large.
    """
    found = static_lengths(model, options)
    _need()
    from albert.export.litert.model import build

    file = build(model, precision == "int8", options.batch, found)
    if file.room >= _MOST_BYTES:
        raise CheckpointError(
            f"The file would have {file.room:,} bytes, and one of LiteRT holds less than 2 GiB. "
            "Export it with --int8, or as stablehlo."
        )
    facts = {
        "precision": precision,
        "heads": list(model.heads),
        "model": dataclasses.asdict(model.config),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILES[precision]
    path.write_bytes(file.written(facts))
    return path


def runner(path: Path, threads: int | None = None):
    """A function of the INPUTS that gives the outputs by name, by LiteRT on this CPU.

    Rows are padded to the next length that the file has, and computed as many at a time as it
    takes; threads: of the interpreter, None leaves it to that.
    """
    _need()
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    calls = {
        int(key.rpartition("_")[2]): interpreter.get_signature_runner(key)
        for key in interpreter.get_signature_list()
    }
    shape = next(iter(calls.values())).get_input_details()[INPUTS[0]]["shape"]
    batch = int(shape[0])

    def run(*rows: np.ndarray) -> dict[str, np.ndarray]:
        count, length = rows[0].shape
        if length > max(calls):
            raise CheckpointError(f"{path} has no length of {length}; its longest: {max(calls)}.")
        padded_to = min(n for n in calls if n >= length)
        spare = -count % batch, padded_to - length
        padded = [np.pad(row, [(0, n) for n in spare]).astype(np.int32) for row in rows]
        parts = []
        for first in range(0, count, batch):
            part = [row[first : first + batch] for row in padded]
            parts.append(calls[padded_to](**dict(zip(INPUTS, part, strict=True))))
        whole = {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
        return {
            name: value[:, :length] if _is_of_places(name, value) else value
            for name, value in whole.items()
        }

    return run


def _is_of_places(name: str, value: np.ndarray) -> bool:
    """Whether an output has something for every place of a row."""
    return value.ndim == 3 or name in HEADS["span"].outputs


def usage(model: Model, files: dict[str, str], options: Options) -> str:
    """Lines of a README: how a program runs the file."""
    found = static_lengths(model, options)
    outputs = ", ".join(f"`{name}`" for name in model.outputs)
    keys = ", ".join(f"`length_{n}`" for n in found)
    text = {
        "mlm": '"The capital of France is [MASK]."',
        "span": '"Who wrote it?", "It was written by Ada."',
    }.get(model.heads[0], '"Some text."')
    rows = "a row" if options.batch == 1 else f"{options.batch} rows"
    times = "" if options.batch == 1 else f" * {options.batch}"
    return "\n".join(
        [
            f"Signatures {keys}, each for {rows} of that length; inputs "
            f"{', '.join(f'`{name}`' for name in INPUTS)}, int32 [{options.batch}, L]; outputs "
            f"{outputs}. Take the shortest that has room for the text, and pad it with 0.",
            "",
            "```python",
            "# pip install ai-edge-litert tokenizers numpy",
            "import numpy as np",
            "from ai_edge_litert.interpreter import Interpreter",
            "from tokenizers import Tokenizer",
            "",
            'tokenizer = Tokenizer.from_file("tokenizer.json")',
            f"tokenizer.enable_truncation({found[-1]})",
            f"row = tokenizer.encode({text})",
            f"length = min(n for n in {found} if n >= len(row.ids))",
            "def padded(ids):",
            f"    return np.array([ids + [0] * (length - len(ids))]{times}, np.int32)",
            f'interpreter = Interpreter("{files.get("int8") or files["float32"]}")',
            'run = interpreter.get_signature_runner(f"length_{length}")',
            "outputs = run(input_ids=padded(row.ids), token_type_ids=padded(row.type_ids),",
            "              attention_mask=padded(row.attention_mask))",
            "```",
        ]
    )


def _need() -> None:
    import importlib.util

    for package in ("ai_edge_litert", "flatbuffers"):
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise CheckpointError(
                f"{name} is not installed: pip install -r requirements-litert.txt"
            )
