"""What transformers.js makes of an exported folder, in Node and in a browser; see .ci/run for what
it needs."""

import functools
import http.server
import json
import queue
import shutil
import subprocess
import threading

import numpy as np
import pytest

import albert
from albert.interop import formats
from albert.interop.folders import open_vocabulary
from albert.interop.weights import Weights
from models import random_weights
from runs import ROOT
from test_export import tuned
from texts import VOCABULARY

PACKAGE = "node_modules/@huggingface/transformers"
INSTALL = "npm install --no-save --ignore-scripts @huggingface/transformers@4"
TEXT, PAIR = "one [MASK] three", ("one two", "three four five")
SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_hidden_layers": 4}

ASK = """
const { env, pipeline, AutoTokenizer, AutoModelForSequenceClassification } = transformers;
env.allowRemoteModels = false; env.allowLocalModels = true; env.localModelPath = folder;
const fill = await pipeline("fill-mask", "mlm", { dtype: "fp32", device });
const guesses = await fill(text);
const tokenizer = await AutoTokenizer.from_pretrained("classes");
const kind = AutoModelForSequenceClassification;
const model = await kind.from_pretrained("classes", { dtype: "fp32", device });
const inputs = await tokenizer(pair[0], { text_pair: pair[1] });
const { logits } = await model(inputs);
const found = JSON.stringify({
  guesses, logits: Array.from(logits.data),
  ids: Array.from(inputs.input_ids.data, Number),
  types: Array.from(inputs.token_type_ids.data, Number),
});
"""
IN_NODE = """
import * as transformers from "@huggingface/transformers";
const [folder, text, pair] = JSON.parse(process.argv[2]);
const device = "cpu";
ASK
console.log(found);
"""
PAGE = """<!doctype html><meta charset="utf-8">
<script type="importmap">{"imports": {
"@huggingface/transformers": "/node_modules/@huggingface/transformers/dist/transformers.web.js",
"onnxruntime-common": "/node_modules/onnxruntime-common/dist/esm/index.js",
"onnxruntime-web/webgpu": "/node_modules/onnxruntime-web/dist/ort.all.bundle.min.mjs"}}</script>
<script type="module">
const tell = (text) => fetch("/found", { method: "POST", body: text });
try {
  const transformers = await import("@huggingface/transformers");
  const wasm = transformers.env.backends.onnx.wasm;
  wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/"; wasm.numThreads = 1;
  const [folder, text, pair] = ASKED;
  const device = "wasm";
  ASK
  await tell(found);
} catch (error) { await tell("failed: " + error.stack); }
</script>
"""
# What keeps a browser from looking for its maker's hosts.
QUIET = [
    *(
        "--headless",
        "--remote-debugging-port=0",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture
def node() -> str:
    found = shutil.which("node")
    if found is None or not (ROOT / PACKAGE).is_dir():
        pytest.skip(f"needs Node and, in {ROOT}: {INSTALL}")
    return found


def load(weights: Weights, folder):
    formats.write(weights, folder, "albert")
    return albert.load(folder)


@pytest.fixture
def models(vocabulary, tmp_path):
    """Two models, and in `tmp_path` what they exported."""
    mlm = random_weights(**SIZES)
    classes = tuned({"classifier": {"labels": 3}}, ("no", "yes", "maybe"), **SIZES)
    mlm.tokenizer = classes.tokenizer = open_vocabulary(vocabulary)
    loaded = {}
    for name, weights in (("mlm", mlm), ("classes", classes)):
        loaded[name] = load(weights, tmp_path / f"{name}-albert")
        loaded[name].export(tmp_path / name)
    return loaded


def assert_the_same(found, models):
    ours = models["mlm"].fill_mask(TEXT, top=len(found["guesses"]))[0]
    assert [guess["token"] for guess in found["guesses"]] == [guess.id for guess in ours]
    scores = [guess["score"] for guess in found["guesses"]]
    np.testing.assert_allclose(scores, [guess.probability for guess in ours], rtol=1e-4)
    inputs = models["classes"].tokenize(*PAIR)
    assert found["ids"] == inputs["input_ids"][0].tolist()
    assert found["types"] == inputs["token_type_ids"][0].tolist()
    assert 1 in found["types"]
    logits = models["classes"](**inputs).classifier_logits[0]
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5)


@pytest.mark.peers
def test_transformers_js_in_node_says_the_same(node, models, tmp_path):
    # Where Node looks for packages: beside the program, and above.
    program = ROOT / "node_modules" / ".albert-test.mjs"
    program.write_text(IN_NODE.replace("ASK", ASK))
    try:
        arguments = json.dumps([f"{tmp_path}/", TEXT, PAIR])
        done = subprocess.run(
            [node, str(program), arguments], capture_output=True, text=True, check=False
        )
    finally:
        program.unlink()
    assert done.returncode == 0, done.stderr
    assert_the_same(json.loads(done.stdout.splitlines()[-1]), models)


class Server(http.server.ThreadingHTTPServer):
    """The files of a folder, and what a page tells."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.told = queue.Queue()


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        self.server.told.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, format, *arguments):
        pass


@pytest.mark.peers
def test_transformers_js_in_a_browser_says_the_same(node, models, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    page = PAGE.replace("ASKED", json.dumps(["/", TEXT, PAIR])).replace("ASK\n", ASK)
    (tmp_path / "index.html").write_text(page)
    with Server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/index.html"
        command = [chromium, *QUIET, f"--user-data-dir={tmp_path / 'browser'}", address]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as browser:
            try:
                text = server.told.get(timeout=120)
            finally:
                browser.terminate()
        server.shutdown()
    assert text.startswith("{"), text
    assert_the_same(json.loads(text), models)
