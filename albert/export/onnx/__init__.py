"""ONNX, for ONNX Runtime and what is built on it: Optimum, transformers.js, phones, browsers."""

import dataclasses
import json
from pathlib import Path

from albert.checkpoints import CheckpointError
from albert.export.interface import INPUTS, Model, Options
from albert.interop import saturation

# Files by precision, named as transformers.js asks for them (dtype fp32, q8 and q4).
FILES = {
    "float32": "onnx/model.onnx",
    "int8": "onnx/model_quantized.onnx",
    "int4": "onnx/model_q4.onnx",
}
_DTYPES = {"float32": "fp32", "int8": "q8", "int4": "q4"}
PRECISIONS = tuple(FILES)
OPTIONS = ("fused", "per_token", "weight_bits")  # fields of `Options` that are read
PACKAGES = ("onnx", "onnxruntime")  # whose versions a folder tells


def static_lengths(model: Model, options: Options) -> None:
    """None: rows may have any length."""


def write(model: Model, folder: Path, precision: str, options: Options) -> Path:
    """Writes the graph below `folder`; the file.

    Raises CheckpointError: onnx is not installed, the graph would be too large, or this CPU cannot
    check weights of 8 bits.
    """
    _need("onnx")
    import onnx

    from albert.export.onnx.model import build
    from albert.export.onnx.products import Float32, Int4, Int8

    products: Float32 | Int8 = Float32()
    if precision in ("int8", "int4") and options.weight_bits == 8 and saturation.saturates():
        raise CheckpointError(
            f"Weights of 8 bits cannot be checked here: {saturation.WHY}. --weight_bits=7, the "
            "default, runs everywhere; to write 8, export on ARM or on x86 with VNNI."
        )
    if precision == "int8":
        products = Int8(options.weight_bits, options.per_token)
    elif precision == "int4":
        products = Int4(options.weight_bits)
    facts = {
        "precision": precision,
        "heads": ", ".join(model.heads),
        "model": json.dumps(dataclasses.asdict(model.config)),
    }
    graph = build(model, products, options.fused, facts)
    size = graph.ByteSize()
    if size >= 2**31:
        raise CheckpointError(
            f"The graph would have {size:,} bytes; an ONNX file without others beside it holds at "
            "most 2 GiB. Export it with --int8, or as stablehlo, which keeps weights in a file of "
            "their own."
        )
    path = folder / FILES[precision]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.checker.check_model(graph, full_check=not (options.fused or products.fused))
    path.write_bytes(graph.SerializeToString())
    return path


def runner(path: Path, threads: int = 0):
    """A function of the INPUTS that gives the outputs by name, by ONNX Runtime on this CPU."""
    _need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(*rows):
        feeds = {name: row.astype("int64") for name, row in zip(INPUTS, rows, strict=True)}
        return dict(zip(names, session.run(names, feeds), strict=True))

    return run


def usage(model: Model, files: dict[str, str], options: Options) -> str:
    """Lines of a README: how a program runs the graph, in Python and in JavaScript."""
    precision = next(name for name in ("int8", "int4", "float32") if name in files)
    file, dtype = files[precision], _DTYPES[precision]
    outputs = ", ".join(f"`{name}`" for name in model.outputs)
    lines = [
        f"Inputs `input_ids`, `attention_mask`, `token_type_ids`, int64; outputs {outputs}.",
        *_needs_vnni(files, options),
        "",
        "```python",
        "# pip install onnxruntime tokenizers numpy",
        "import numpy as np, onnxruntime as ort",
        "from tokenizers import Tokenizer",
        "",
        'tokenizer = Tokenizer.from_file("tokenizer.json")',
        f'session = ort.InferenceSession("{file}")',
        *_python_rows(model),
        f"{', '.join(model.outputs)}, = session.run(None, {{",
        '    "input_ids": array([r.ids for r in rows]),',
        '    "attention_mask": array([r.attention_mask for r in rows]),',
        '    "token_type_ids": array([r.type_ids for r in rows])})',
        "```",
    ]
    if calls := _javascript(model, dtype):
        lines += ["", "```javascript", "// npm install @huggingface/transformers", *calls, "```"]
    return "\n".join(lines)


def _javascript(model: Model, dtype: str) -> list[str]:
    """How transformers.js asks it; nothing where it has no way to."""
    head = model.heads[0]
    given = f'"NAME_OF_THIS_FOLDER", {{ dtype: "{dtype}" }}'
    here = 'env.allowRemoteModels = false; env.localModelPath = "..";  // where this folder is'
    if head == "classifier" and model.fields[head].get("kind") == "number":
        # The pipeline would take a softmax of the one number, which is 1.
        names = "AutoModelForSequenceClassification", "AutoTokenizer", "env"
        return [
            f'import {{ {", ".join(names)} }} from "@huggingface/transformers";',
            "",
            here,
            f"const model = await {names[0]}.from_pretrained({given});",
            f'const tokenizer = await {names[1]}.from_pretrained("NAME_OF_THIS_FOLDER");',
            'const { logits } = await model(await tokenizer("Some text."));',
            "console.log(logits.data);",
        ]
    if head not in _TASKS or model.choices or (head == "hidden" and model.pooling == "pooled"):
        return []
    name, call = _TASKS[head]
    return [
        'import { env, pipeline } from "@huggingface/transformers";',
        "",
        here,
        f'const run = await pipeline("{name}", {given});',
        f"console.log(await run({call.replace('POOLING', model.pooling)}));",
    ]


def _needs_vnni(files: dict[str, str], options: Options) -> list[str]:
    if options.weight_bits == 7 or "int8" not in files:
        return []
    return [
        f"The weights of `{files['int8']}` have 8 bits: it is right on ARM and on x86 with VNNI, "
        "and wrong on other x86, without a word.",
    ]


def _python_rows(model: Model) -> list[str]:
    if model.choices:
        return [
            'rows = tokenizer.encode_batch([("the text", "question option A"), '
            '("the text", "question option B")])',
            "array = lambda rows: np.array([rows], np.int64)",
        ]
    example = {
        "mlm": '"The capital of France is [MASK]."',
        "span": _ASKED,
        "conditional_span": _ASKED,
    }.get(model.heads[0], '"Some text."')
    return [
        f"rows = tokenizer.encode_batch([{example}])",
        "array = lambda rows: np.array(rows, np.int64)",
    ]


_ASKED = '("Who wrote it?", "It was written by Ada.")'
# Pipelines of transformers.js by the first head, and what they are called with.
_TASKS = {
    "mlm": ("fill-mask", '"The capital of France is [MASK]."'),
    "classifier": ("text-classification", '"Some text."'),
    "tokens": ("token-classification", '"Some text."'),
    "span": ("question-answering", '"Who wrote it?", "It was written by Ada."'),
    "hidden": ("feature-extraction", '"Some text.", { pooling: "POOLING", normalize: true }'),
}


def _need(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise CheckpointError(f"{package} is not installed: pip install -r requirements-export.txt")
