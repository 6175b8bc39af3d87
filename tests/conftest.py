"""Eight simulated devices, a small text with its vocabulary, and tiny configs."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling: half of it is optimising what then runs for a moment.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    # Of eight devices on two busy cores one may not come to its turn within 40 s, the default.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600 "
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
)

os.environ["PYTHONFAULTHANDLER"] = "1"  # for runs.printed_by

# Many tests build the same step, some of them in processes of their own: compile it once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit the folder of their parent
    _cache = tempfile.TemporaryDirectory(prefix="albert-test-cache-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from pathlib import Path

import pytest

from albert.data.tokenizer import Tokenizer
from albert.data.vocabulary import train_vocabulary
from albert.train.config import check
from albert.train.loop import train
from configs import base
from rows import read_corpus
from texts import VOCABULARY, write_text

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the shared test data, which is not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "small.txt", 300)


@pytest.fixture(scope="session")
def vocabulary(text) -> Path:
    path = text.with_name("small.model")
    train_vocabulary(text.read_text().splitlines(), VOCABULARY, path, True, True)
    return path


@pytest.fixture(scope="session")
def tokenizer(vocabulary) -> Tokenizer:
    return Tokenizer(vocabulary)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def corpus(text, tokenizer, prepared):
    return read_corpus(text, tokenizer, prepared)


@pytest.fixture
def tiny(text, vocabulary, prepared):
    """A ConfigDict that trains on the small text; change it, then `check` it."""
    config = base.get_config("v1,tiny")
    config.model.vocab_size = VOCABULARY
    config.data.train_sources = (str(text),)
    config.data.max_documents = 0
    config.data.tokenizer = str(vocabulary)
    config.data.folder = str(prepared)
    config.data.seq_length = 32
    config.data.max_predictions = 6
    config.optimizer.warmup_steps = 2
    config.train.num_steps = 8
    config.train.log_every = 2
    config.train.eval_every = 4
    config.train.eval_rows = 40
    config.train.checkpoint_every = 4
    return config


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def run(tiny, finished, capsys) -> Path:
    """A finished run of 8 steps with checkpoints of steps 4 and 8; made once, to be read only."""
    if not (finished / "config.json").exists():
        train(check(tiny), finished)
        (finished / "printed.txt").write_text(capsys.readouterr().out)
    return finished
