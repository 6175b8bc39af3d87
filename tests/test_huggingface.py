"""Hugging Face folders: golden numbers that transformers printed, names, layouts, bad files.
What needs transformers itself is in test_transformers.py."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import albert
from albert.checkpoints import CheckpointError
from albert.data.tokenizer import Tokenizer
from albert.interop import formats, huggingface
from models import assert_same, random_weights
from original import GOLDEN

FOLDER = GOLDEN / "huggingface"
MAPPING = "albert.encoder.embedding_hidden_mapping_in"


@pytest.fixture(scope="module")
def io():
    with np.load(FOLDER / "io.npz") as file:
        return dict(file)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_equality_with_transformers(io):
    model = albert.load(FOLDER)
    output = model(
        io["input_ids"], io["attention_mask"], io["token_type_ids"], output_mlm_logits=True
    )
    for name, ours in [
        ("prediction_logits", output.mlm_logits),
        ("sop_logits", output.sop_logits),
        ("last_hidden_state", output.last_hidden_state),
    ]:
        np.testing.assert_allclose(ours, io[name], atol=2e-5, rtol=0, err_msg=name)
    masked = io["labels"] != -100
    mlm = -log_softmax(output.mlm_logits)[masked, io["labels"][masked]].mean()
    sop = -log_softmax(output.sop_logits)[np.arange(4), io["sentence_order_label"]].mean()
    assert abs(mlm + sop - io["loss"]) < 2e-5


CHANGES = [
    {},
    {"sharing": "none", "inner_group_num": 2, "hidden_act": "relu"},
    {"embedding_size": 16, "hidden_act": "gelu_erf"},
    {"embedding_size": 16, "map_equal_embeddings": True},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_what_is_written_reads_bit_equal(changes, tmp_path):
    weights = random_weights(**changes)
    names = formats.write(weights, tmp_path / "hf", "huggingface")
    again = formats.read(tmp_path / "hf")
    assert_same(again, weights)
    assert not again.missing
    assert not again.left_over
    assert again.names == names
    assert len(set(names.values())) == len(weights.params)


def test_equal_embeddings_get_an_identity_there(tmp_path):
    formats.write(random_weights(embedding_size=16), tmp_path / "hf", "huggingface")
    tensors = safetensors.numpy.load_file(tmp_path / "hf" / huggingface.MODEL)
    np.testing.assert_array_equal(tensors[f"{MAPPING}.weight"], np.eye(16))
    assert not tensors[f"{MAPPING}.bias"].any()


@pytest.mark.parametrize(
    ("lacking", "architecture"),
    [
        ([], "AlbertForPreTraining"),
        (["sop_head"], "AlbertForMaskedLM"),
        (["pooler", "sop_head"], "AlbertForMaskedLM"),
        (["pooler", "mlm_head", "sop_head"], "AlbertModel"),
    ],
)
def test_missing_heads_are_reported_and_stay_missing(lacking, architecture, tmp_path):
    weights = random_weights(lacking=lacking)
    formats.write(weights, tmp_path / "hf", "huggingface")
    again = formats.read(tmp_path / "hf")
    assert again.missing == lacking
    named = json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"]
    assert named == [architecture]
    assert_same(again, weights)


def change_tensors(folder, change):
    """Rewrites model.safetensors after `change(tensors)`."""
    tensors = safetensors.numpy.load_file(folder / huggingface.MODEL)
    tensors = {k: np.array(v) for k, v in tensors.items()}
    tensors = change(tensors) or tensors
    safetensors.numpy.save_file(tensors, folder / huggingface.MODEL, {"format": "pt"})


@pytest.fixture
def folder(tmp_path):
    formats.write(random_weights(), tmp_path / "hf", "huggingface")
    return tmp_path / "hf"


def test_an_encoder_saved_alone(folder):
    def bare(tensors):
        return {
            name.removeprefix("albert."): value
            for name, value in tensors.items()
            if name.startswith("albert.")
        }

    change_tensors(folder, bare)
    weights = formats.read(folder)
    assert weights.missing == ["mlm_head", "sop_head"]
    assert not weights.left_over
    assert weights.names["pooler/bias"] == "pooler.bias"


def test_tensors_that_are_no_part_of_the_model_are_left_over(folder):
    def more(tensors):
        tensors["classifier.weight"] = np.ones((3, 16), np.float32)
        tensors["albert.embeddings.position_ids"] = np.arange(12)[None]
        word = tensors["albert.embeddings.word_embeddings.weight"]
        tensors["predictions.decoder.weight"] = word.copy()
        tensors["predictions.decoder.bias"] = tensors["predictions.bias"].copy()

    change_tensors(folder, more)
    assert formats.read(folder).left_over == ["classifier.weight"]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_widths_become_float32(folder, dtype):
    before = formats.read(folder)
    change_tensors(folder, lambda tensors: {k: v.astype(dtype) for k, v in tensors.items()})
    after = formats.read(folder)
    for path, value in after.params.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, before.params[path].astype(dtype).astype(np.float32))
    assert after.notes == [f"{np.dtype(dtype).name} became float32"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gelu_new", "gelu"),
        ("gelu_pytorch_tanh", "gelu"),
        ("gelu_fast", "gelu"),
        ("gelu", "gelu_erf"),
        ("relu", "relu"),
    ],
)
def test_activations_are_translated(folder, theirs, ours):
    change_config(folder, hidden_act=theirs)
    assert formats.read(folder).config.hidden_act == ours


def change_config(folder, **changes):
    path = folder / huggingface.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(folder, name=huggingface.MODEL):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def wrong_decoder(tensors):
    word = tensors["albert.embeddings.word_embeddings.weight"]
    tensors["predictions.decoder.weight"] = word + 1


BAD = {
    "truncated": (truncate, r"model\.safetensors is damaged, cut off, not safetensors"),
    "foreign file": (
        lambda f: (f / huggingface.MODEL).write_text("hello"),
        r"model\.safetensors is damaged, cut off, not safetensors",
    ),
    "no weights": (lambda f: (f / huggingface.MODEL).unlink(), r"There is no model\.safetensors"),
    "old weights": (
        lambda f: (f / huggingface.MODEL).rename(f / "pytorch_model.bin"),
        r"Load pytorch_model\.bin with transformers and save it again",
    ),
    "other model": (
        lambda f: change_config(f, model_type="bert"),
        r"config\.json describes a model of type 'bert', not albert",
    ),
    "cut config": (
        lambda f: truncate(f, huggingface.CONFIG),
        r"config\.json is not a JSON file, or is cut off",
    ),
    "unknown activation": (
        lambda f: change_config(f, hidden_act="swish"),
        r"config\.json: hidden_act is 'swish'; known here are gelu_new",
    ),
    "epsilon": (
        lambda f: change_config(f, layer_norm_eps=1e-5),
        r"config\.json: layer_norm_eps is 1e-05; ALBERT's is 1e-12",
    ),
    "positions": (
        lambda f: change_config(f, position_embedding_type="relative_key"),
        r"position_embedding_type is 'relative_key'",
    ),
    "text for a number": (
        lambda f: change_config(f, hidden_size="16"),
        r"config\.json: hidden_size is '16'; it must be a whole number",
    ),
    "several activations": (
        lambda f: change_config(f, hidden_act=["gelu"]),
        r"config\.json: hidden_act is \['gelu'\]; known here are",
    ),
    "yes for a number": (
        lambda f: change_config(f, vocab_size=True),
        r"config\.json: vocab_size is True; it must be a whole number",
    ),
    "a giant": (
        lambda f: change_config(f, vocab_size=10**400),
        r"config\.json: vocab_size is 10+; it must be a whole number",
    ),
    "whole numbers": (
        lambda f: change_tensors(f, lambda t: {k: v.astype(np.int32) for k, v in t.items()}),
        r"model\.safetensors: albert\.\S+ is of type int32; it must be float32, bfloat16",
    ),
    "a type NumPy lacks": (
        lambda f: change_tensors(
            f, lambda t: {k: v.astype(ml_dtypes.float8_e4m3fn) for k, v in t.items()}
        ),
        r"model\.safetensors is damaged, cut off, not safetensors or of a type that NumPy lacks",
    ),
    "impossible": (
        lambda f: change_config(f, num_attention_heads=3),
        r"config\.json: hidden_size 16 is not a multiple of num_attention_heads 3",
    ),
    "other shape": (
        lambda f: change_config(f, intermediate_size=48),
        r"model\.safetensors does not fit .*config\.json: \S*ffn.bias has shape \[32\] and should "
        r"have \[48\]",
    ),
    "missing tensor": (
        lambda f: change_tensors(f, lambda t: {k: v for k, v in t.items() if "key.bias" not in k}),
        r"model\.safetensors lacks 1 of the 32 variables .*attention\.key\.bias",
    ),
    "half a head": (
        lambda f: change_tensors(
            f, lambda t: {k: v for k, v in t.items() if k[:5] != "predi" or k == "predictions.bias"}
        ),
        r"lacks 4 of the 32 variables .*predictions\.",
    ),
    "another model's tensors": (
        lambda f: change_tensors(f, lambda t: {f"bert.{k}": v for k, v in t.items()}),
        r"It is not an ALBERT checkpoint, or not the one of that config",
    ),
    "untied": (
        lambda f: change_tensors(f, wrong_decoder),
        r"predictions\.decoder\.weight is not albert\.embeddings\.word_embeddings\.weight",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_folders_are_told_in_a_sentence(folder, kind):
    spoil, words = BAD[kind]
    spoil(folder)
    with pytest.raises(CheckpointError, match=words):
        formats.read(folder)


def test_the_vocabulary_travels(tmp_path, vocabulary):
    weights = random_weights(vocab_size=96)
    weights.tokenizer = Tokenizer(vocabulary, lower_case=False, strip_accents=False)
    formats.write(weights, tmp_path / "hf", "huggingface")
    again = formats.read(tmp_path / "hf").tokenizer
    assert again.fingerprint == weights.tokenizer.fingerprint
    assert (again.lower_case, again.strip_accents) == (False, False)
    shutil.copy(FOLDER / "config.json", tmp_path / "hf" / "config.json")
    with pytest.raises(CheckpointError, match=r"does not fit"):
        formats.read(tmp_path / "hf")


def test_a_vocabulary_of_another_size(tmp_path, vocabulary):
    weights = random_weights()
    weights.tokenizer = Tokenizer(vocabulary)
    formats.write(weights, tmp_path / "hf", "huggingface")
    with pytest.raises(
        CheckpointError,
        match=r"spiece\.model has 96 pieces and the model in .*hf 50: it belongs to another",
    ):
        formats.read(tmp_path / "hf")
