"""What transformers.js makes of an exported folder, in Node; see .ci/run for what it needs."""

import json
import shutil
import subprocess

import numpy as np
import pytest

import albert
from albert.interop import formats
from albert.interop.weights import Weights, open_vocabulary
from models import random_weights
from runs import ROOT
from test_export import tuned
from texts import VOCABULARY

PACKAGE = "node_modules/@huggingface/transformers"
INSTALL = "npm install --no-save --ignore-scripts @huggingface/transformers@4"
TEXT, PAIR = "one [MASK] three", ("one two", "three four five")
SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_hidden_layers": 4}

PROGRAM = """
import {
  env, pipeline, AutoTokenizer, AutoModelForSequenceClassification
} from "@huggingface/transformers";
const [folder, text, pair] = JSON.parse(process.argv[2]);
env.allowRemoteModels = false; env.localModelPath = folder;
const fill = await pipeline("fill-mask", "mlm", { dtype: "fp32" });
const guesses = await fill(text);
const tokenizer = await AutoTokenizer.from_pretrained("classes");
const kind = AutoModelForSequenceClassification;
const model = await kind.from_pretrained("classes", { dtype: "fp32" });
const inputs = await tokenizer(pair[0], { text_pair: pair[1] });
const { logits } = await model(inputs);
console.log(JSON.stringify({
  guesses, logits: Array.from(logits.data),
  ids: Array.from(inputs.input_ids.data, Number),
  types: Array.from(inputs.token_type_ids.data, Number),
}));
"""


@pytest.fixture
def node() -> str:
    found = shutil.which("node")
    if found is None or not (ROOT / PACKAGE).is_dir():
        pytest.skip(f"needs Node and, in {ROOT}: {INSTALL}")
    return found


def load(weights: Weights, folder):
    formats.write(weights, folder, "albert")
    return albert.load(folder)


@pytest.mark.peers
def test_transformers_js_says_the_same(node, vocabulary, tmp_path):
    mlm = random_weights(**SIZES)
    classes = tuned({"classifier": {"labels": 3}}, ("no", "yes", "maybe"), **SIZES)
    mlm.tokenizer = classes.tokenizer = open_vocabulary(vocabulary)
    models = {}
    for name, weights in (("mlm", mlm), ("classes", classes)):
        models[name] = load(weights, tmp_path / f"{name}-albert")
        models[name].export(tmp_path / name)
    # Where Node looks for packages: beside the program, and above.
    program = ROOT / "node_modules" / ".albert-test.mjs"
    program.write_text(PROGRAM)
    try:
        arguments = json.dumps([f"{tmp_path}/", TEXT, PAIR])
        done = subprocess.run(
            [node, str(program), arguments], capture_output=True, text=True, check=False
        )
    finally:
        program.unlink()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
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
