"""Serves a model by HTTP: fill-mask, classify, answer, choose, tag and embed, whichever it has.

  python tools/serve.py --model=runs/base
  python tools/serve.py --model=runs/reviews --port=9000 --batches=1,2,4,8,16,32
  python tools/serve.py --model=reviews-onnx
  python tools/serve.py --model=runs/vectors --index=books-index
  ALBERT_TOKEN=$(openssl rand -hex 24) python tools/serve.py --model=runs/base --host=0.0.0.0

Needs pip install -r requirements-serve.txt. The model is anything that albert.load takes. Programs
for every size in --batches and --lengths are compiled first; then the port opens, and nothing is
compiled any more. Or it is a folder of tools/export.py --format=onnx, which ONNX Runtime computes
(pip install onnxruntime): nothing is compiled, and the port is open in a second or two.
http://127.0.0.1:8000 says what the model can do, with a command for each thing; /docs has every
field and a form; /openapi.json the schema; /metrics is for Prometheus.

Without a token only this machine is answered. Requests that come together are computed together:
one waits at most --window_ms for others. What does not fit into the queue is refused with 429 and
the time to come again. SIGTERM and Ctrl-C answer what has come, and leave with 0. docs/serving.md
says more.
"""

import importlib.util
import os
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_MODEL = flags.DEFINE_string(
    "model", None, "Anything that albert.load takes, or an ONNX folder.", required=True
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "SentencePiece .model file. Default: the one beside the model."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16"], "Of activations. Default: float32."
)
_PRECISION = flags.DEFINE_enum(
    "precision",
    None,
    ["int8", "float32", "int4"],
    "Of an ONNX folder: which file. Default: int8 where it is there.",
)
_INDEX = flags.DEFINE_string(
    "index", None, "An index of tools/search_index.py, to be searched at /search."
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Whose address to listen on; 0.0.0.0: on all. Others need a token."
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port; 0: any that is free.", lower_bound=0, upper_bound=65535
)
_TOKEN = flags.DEFINE_string(
    "token",
    None,
    "Requests must bear it. Default: the variable ALBERT_TOKEN, which other users of this machine "
    "do not see.",
)
_ABILITIES = flags.DEFINE_list(
    "abilities", None, "Of fill_mask, encode, classify, choose, tag, answer. Default: all it has."
)
_BATCHES = flags.DEFINE_list(
    "batches", ["1", "2", "4", "8", "16"], "Sizes of batches that programs are compiled for."
)
_LENGTHS = flags.DEFINE_list(
    "lengths",
    ["32", "64", "128", "256", "512"],
    "Lengths of rows that programs are compiled for; the model's positions are always among them.",
)
_WINDOW = flags.DEFINE_float(
    "window_ms", 5.0, "How long a request waits for others.", lower_bound=0
)
_QUEUE = flags.DEFINE_integer("queue", 256, "Rows that may wait.", lower_bound=1)
_BODY = flags.DEFINE_integer("body_bytes", 2**20, "Of a request at most.", lower_bound=1)
_TEXTS = flags.DEFINE_integer("texts", 64, "Of a request at most.", lower_bound=1)
_CHARACTERS = flags.DEFINE_integer("characters", 20_000, "Of a text at most.", lower_bound=1)
_TOP = flags.DEFINE_integer("top", 50, "Guesses at a [MASK] at most.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 30.0, "That a request may take.", lower_bound=0.1)
_NEEDED = ("fastapi", "uvicorn", "pydantic", "prometheus_client")


def whole_numbers(name: str, values: list[str]) -> list[int]:
    """Of a flag; raises ConfigError."""
    from albert.runtime.fields import ConfigError

    if not values or not all(value.isdecimal() and int(value) for value in values):
        raise ConfigError(
            [f"--{name}: {','.join(values)!r} must be whole numbers of at least 1, as in 1,4,16"]
        )
    return [int(value) for value in values]


def main() -> None:
    from albert.runtime.console import tell
    from albert.runtime.fields import ConfigError

    if lacking := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            [f"{', '.join(lacking)} must be installed: pip install -r requirements-serve.txt"]
        )
    from albert.serving import server
    from albert.serving.guard import is_loopback

    token = _TOKEN.value if _TOKEN.value is not None else os.environ.get("ALBERT_TOKEN")
    problems = []
    if token is not None and (
        not token.isascii() or not token.isprintable() or not token or token != token.strip()
    ):
        problems.append(
            "--token: it must be of ASCII letters, not empty, and without spaces at its ends"
        )
    if token is None and not is_loopback(_HOST.value):
        problems.append(
            f"--host: {_HOST.value} is reached by other machines, so requests must bear a token: "
            "set the variable ALBERT_TOKEN, or --token"
        )
    if problems:
        raise ConfigError(problems)
    batches = whole_numbers("batches", _BATCHES.value)
    lengths = whole_numbers("lengths", _LENGTHS.value)
    port = server.claim(_HOST.value, _PORT.value)

    from albert.serving.abilities import Limits
    from albert.serving.app import make_app
    from albert.serving.loading import open_backend

    limits = Limits(
        body_bytes=_BODY.value,
        texts=_TEXTS.value,
        characters=_CHARACTERS.value,
        top=_TOP.value,
        queue=_QUEUE.value,
        seconds=_SECONDS.value,
    )
    backend = open_backend(
        _MODEL.value,
        batches,
        lengths,
        limits.top,
        _ABILITIES.value,
        _TOKENIZER.value,
        _DTYPE.value,
        _PRECISION.value,
    )
    index = None
    if _INDEX.value is not None:
        from albert.search.index import Index

        index = Index(Path(_INDEX.value).expanduser())
    app = make_app(backend, limits, _WINDOW.value / 1000, token, index)
    tell(f"{_MODEL.value}: {', '.join(backend.card.abilities)}")
    if index is not None:
        tell(f"{_INDEX.value}: {len(index):,} sentences, asked at /search")
    backend.warm_up(lambda line: tell(f"  compiled {line}"))
    host = f"[{_HOST.value}]" if ":" in _HOST.value else _HOST.value
    address = f"http://{host}:{port.getsockname()[1]}"
    server.run(
        app,
        port,
        _SECONDS.value,
        lambda: tell(f"{address} says what can be asked. Ctrl-C stops."),
    )
    tell("Stopped.")


if __name__ == "__main__":
    cli.run(main)
