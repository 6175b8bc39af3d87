"""StableHLO by `jax.export`: one program for CPU, CUDA and TPU, its weights in a file beside it.

A program that runs it needs jax and safetensors, and neither flax nor this package.
"""

import json
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from albert.export.interface import INPUTS, Model, Options, function
from albert.models.heads import BEAMS

PROGRAM, WEIGHTS = "model.stablehlo", "model.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")
FILES = {"float32": PROGRAM}
PRECISIONS = tuple(FILES)
OPTIONS: tuple[str, ...] = ()  # fields of `Options` that are read
PACKAGES: tuple[str, ...] = ()  # beside jax


def static_lengths(model: Model, options: Options) -> None:
    """None: rows may have any length."""


def write(model: Model, folder: Path, precision: str, options: Options) -> Path:
    """Writes program and weights; the program. Batch and length are free, up to the model's
    positions, and from as many on as an answer of SQuAD 2.0 has beams."""
    del precision, options  # there is one, and none
    names = "b, c, l" if model.choices else "b, l"
    limit = model.config.max_position_embeddings
    constraints = [f"l <= {limit}"]
    if _shortest(model) > 1:
        constraints.append(f"l >= {_shortest(model)}")
    rows = jax.ShapeDtypeStruct(
        jax.export.symbolic_shape(names, constraints=constraints), jnp.int32
    )
    params = {path: np.asarray(value, np.float32) for path, value in model.params.items()}
    shapes = {path: jax.ShapeDtypeStruct(p.shape, p.dtype) for path, p in params.items()}
    compute = function(model)

    def program(weights, input_ids, attention_mask, token_type_ids):
        tree = unflatten_dict(weights, sep="/")
        return compute(tree, input_ids, attention_mask, token_type_ids)

    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(shapes, rows, rows, rows)
    path = folder / PROGRAM
    path.write_bytes(exported.serialize())
    # Not save_file, whose files nobody but their owner may read.
    facts = {"model": json.dumps({"heads": list(model.heads), "outputs": list(model.outputs)})}
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save(params, metadata=facts))
    return path


def _shortest(model: Model) -> int:
    """Tokens that a row must have."""
    return BEAMS if "conditional_span" in model.heads else 1


def runner(path: Path):
    """A function of the INPUTS that gives the outputs by name, by jax on what it runs on here."""
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    weights = jax.device_put(safetensors.numpy.load_file(path.with_name(WEIGHTS)))
    # Traced once for each shape.
    call = jax.jit(exported.call)

    def run(*rows):
        outputs = call(weights, *(row.astype(np.int32) for row in rows))
        return {name: np.asarray(value) for name, value in outputs.items()}

    return run


def usage(model: Model, files: dict[str, str], options: Options) -> str:
    """Lines of a README: how a program runs it."""
    del files, options
    shape = "[B, C, L]" if model.choices else "[B, L]"
    shortest = _shortest(model)
    row = [2, *range(10, 8 + max(shortest, 3)), 3]
    example = f"[[{row}, {row}]]" if model.choices else f"[{row}]"
    outputs = ", ".join(f"`{name}`" for name in model.outputs)
    return "\n".join(
        [
            f"Inputs {', '.join(f'`{name}`' for name in INPUTS)}, int32 {shape}, L from "
            f"{shortest} to {model.config.max_position_embeddings}; outputs {outputs}.",
            "",
            "```python",
            "# pip install jax safetensors tokenizers",
            "import jax, numpy as np, safetensors.numpy",
            "import jax.export",
            "",
            f'program = jax.export.deserialize(bytearray(open("{PROGRAM}", "rb").read()))',
            f'weights = jax.device_put(safetensors.numpy.load_file("{WEIGHTS}"))',
            "run = jax.jit(program.call)",
            f"ids = np.array({example}, np.int32)  # of tokenizers' Tokenizer, from tokenizer.json",
            "outputs = run(weights, ids, np.ones_like(ids), np.zeros_like(ids))",
            "```",
        ]
    )
