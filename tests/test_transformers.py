"""Hugging Face transformers itself, with PyTorch on CPU, on both sides of what is exchanged."""

import json
import shutil
import warnings

import numpy as np
import pytest

from albert.data.tokenizer import Tokenizer
from albert.inference import Pretrained
from albert.interop import formats
from models import random_weights

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # theirs
]
TEXTS = [
    "The ancient river moves slowly and the scientist writes a letter.",
    "Café musicians often question the small theory, never the answer.",
    "a bright garden beside the village.",
]


@pytest.fixture(scope="module")
def peer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers
    torch.manual_seed(0)
    return transformers, torch


def rows(vocab, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.ones((3, 11), int)
    mask[0, 6:] = 0
    return rng.integers(5, vocab, (3, 11)), mask, rng.integers(0, 2, (3, 11))


def outputs(torch, model, ids, mask, types):
    model.eval()
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            token_type_ids=torch.tensor(types),
            output_hidden_states=True,
        )


def close(ours, theirs, name):
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5, rtol=1e-5, err_msg=name)


CHANGES = [
    {},
    {"sharing": "none", "inner_group_num": 2, "hidden_act": "relu"},
    {"embedding_size": 16, "hidden_act": "gelu_erf"},
    {"embedding_size": 16, "map_equal_embeddings": True},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_what_we_save_gives_equal_outputs_there(peer, changes, tmp_path):
    transformers, torch = peer
    weights = random_weights(**changes)
    formats.write(weights, tmp_path / "hf", "huggingface")
    model, info = transformers.AlbertForPreTraining.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    batch = rows(50)
    theirs = outputs(torch, model, *batch)
    pooled = outputs(torch, model.albert, *batch).pooler_output
    ours = Pretrained(weights)(*batch, output_hidden_states=True, output_mlm_logits=True)
    close(ours.mlm_logits, theirs.prediction_logits, "prediction_logits")
    close(ours.sop_logits, theirs.sop_logits, "sop_logits")
    close(ours.pooled_output, pooled, "pooler_output")
    for step, state in enumerate(theirs.hidden_states):
        close(ours.hidden_states[step], state, f"hidden state {step}")


SIZES = {
    "vocab_size": 60,
    "embedding_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "initializer_range": 0.2,
}


@pytest.mark.parametrize(
    ("kind", "missing", "changes"),
    [
        ("AlbertForPreTraining", [], {}),
        ("AlbertForPreTraining", [], {"hidden_act": "gelu", "sharing": "groups:2"}),
        ("AlbertForPreTraining", [], {"embedding_size": 16, "hidden_act": "relu"}),
        ("AlbertForMaskedLM", ["pooler", "sop_head"], {"inner_group_num": 2}),
        ("AlbertModel", ["mlm_head", "sop_head"], {}),
        ("AlbertForSequenceClassification", ["mlm_head", "sop_head"], {}),
    ],
)
def test_what_it_saves_gives_equal_outputs_here(peer, kind, missing, changes, tmp_path):
    transformers, torch = peer
    config = transformers.AlbertConfig(**{**SIZES, **changes})
    model = getattr(transformers, kind)(config)
    with torch.no_grad():  # its biases are 0 and would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "hf")
    weights = formats.read(tmp_path / "hf")
    assert weights.missing == missing
    assert all(name.startswith("classifier") for name in weights.left_over)
    batch = rows(60)
    theirs = outputs(torch, model, *batch)
    ours = Pretrained(weights)(*batch, output_hidden_states=True, output_mlm_logits=True)
    for step, state in enumerate(theirs.hidden_states):
        close(ours.hidden_states[step], state, f"hidden state {step}")
    if "mlm_head" not in missing:
        logits = theirs.prediction_logits if "sop_head" not in missing else theirs.logits
        close(ours.mlm_logits, logits, "mlm logits")
    if "sop_head" not in missing:
        close(ours.sop_logits, theirs.sop_logits, "sop logits")
    if "pooler" not in missing:
        encoder = model if kind == "AlbertModel" else model.albert
        close(ours.pooled_output, outputs(torch, encoder, *batch).pooler_output, "pooled")


@pytest.mark.parametrize("flags", [(True, True), (False, False)])
@pytest.mark.parametrize("kind", ["AutoTokenizer", "AlbertTokenizer"])
def test_the_vocabulary_gives_equal_ids_in_both_directions(peer, kind, flags, tmp_path, vocabulary):
    transformers, _ = peer
    weights = random_weights(vocab_size=96)
    weights.tokenizer = Tokenizer(vocabulary, *flags)
    formats.write(weights, tmp_path / "hf", "huggingface")
    theirs = getattr(transformers, kind).from_pretrained(tmp_path / "hf")
    for text in TEXTS:
        found = theirs(text, TEXTS[0])
        ids, types = weights.tokenizer.encode_pair(text, TEXTS[0])
        assert found["input_ids"] == ids
        assert found["token_type_ids"] == types
    # It writes a tokenizer.json and no SentencePiece file.
    shutil.rmtree(tmp_path / "hf")
    formats.write(random_weights(vocab_size=96), tmp_path / "hf", "huggingface")
    theirs.save_pretrained(tmp_path / "hf")
    assert not (tmp_path / "hf" / "spiece.model").exists()
    again = formats.read(tmp_path / "hf").tokenizer
    assert (again.lower_case, again.strip_accents) == flags
    for text in [*TEXTS, "\u4eba (x)"]:
        assert again.encode(text) == weights.tokenizer.encode(text)


def test_the_released_vocabulary_in_transformers(peer, shared, tmp_path):
    transformers, _ = peer
    weights = random_weights(vocab_size=30000, embedding_size=2)
    weights.tokenizer = Tokenizer(shared / "data/vocab/30k-clean.model")
    formats.write(weights, tmp_path / "hf", "huggingface")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    golden = json.loads((shared / "golden/tokenization_original.json").read_text())
    for entry in golden:
        assert theirs(entry["text"], add_special_tokens=False)["input_ids"] == entry["ids"]
    lines = (shared / "data/corpus/valid_2mb.txt").read_text().splitlines()[:3000]
    for line in lines:
        ids = theirs(line, add_special_tokens=False)["input_ids"]
        assert ids == weights.tokenizer.encode(line)
    text = "Test sentence with [MASK]."
    assert theirs(text)["input_ids"] == weights.tokenizer.encode_pair(text)[0]


@pytest.mark.parametrize("source", ["spiece.model", "tokenizer.json"])
def test_the_released_vocabulary_survives_transformers(peer, shared, tmp_path, source):
    """Read by transformers from either file, saved as it does, and read here again."""
    transformers, _ = peer
    weights = random_weights(vocab_size=30000, embedding_size=2)
    weights.tokenizer = Tokenizer(shared / "data/vocab/30k-clean.model")
    formats.write(weights, tmp_path / "hf", "huggingface")
    for name in {"spiece.model", "tokenizer.json"} - {source}:
        (tmp_path / "hf" / name).unlink()
    theirs = transformers.AlbertTokenizer.from_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / source).unlink()
    theirs.save_pretrained(tmp_path / "hf")
    assert not (tmp_path / "hf" / "spiece.model").exists()
    again = formats.read(tmp_path / "hf").tokenizer
    for entry in json.loads((shared / "golden/tokenization_original.json").read_text()):
        assert again.encode(entry["text"]) == entry["ids"]
        assert again.tokenize(entry["text"]) == entry["tokens"]


def classifier_weights(kind, labels=3):
    heads = {"classifier": {"labels": labels, "dropout": 0.1, "kind": kind}}
    weights = random_weights()
    rng = np.random.default_rng(5)
    weights.params = {k: v for k, v in weights.params.items() if "_head/" not in k} | {
        "classifier_head/kernel": rng.normal(size=(16, labels)).astype(np.float32),
        "classifier_head/bias": rng.normal(size=labels).astype(np.float32),
    }
    weights.heads = heads
    return weights


@pytest.mark.parametrize("kind", ["classes", "number", "several", "choice"])
def test_a_classifier_goes_there_and_back(peer, kind, tmp_path):
    """Equal logits in its class for each kind, its labels by name, and the same when read again."""
    transformers, torch = peer
    weights = classifier_weights(kind, 1 if kind in ("number", "choice") else 3)
    if kind in ("classes", "several"):
        weights.labels = ("contradiction", "entailment", "neutral")
    formats.write(weights, tmp_path / "ours", "huggingface")
    name = "MultipleChoice" if kind == "choice" else "SequenceClassification"
    model, told = getattr(transformers, f"AlbertFor{name}").from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    ids, mask, types = rows(50)
    ours = Pretrained(weights)(ids, mask, types)
    grouped = [x[None] for x in (ids, mask, types)] if kind == "choice" else [ids, mask, types]
    theirs = outputs(torch, model, *grouped).logits
    close(ours.classifier_logits.reshape(theirs.shape), theirs, "logits")
    if weights.labels:
        assert model.config.id2label == dict(enumerate(weights.labels))
    model.save_pretrained(tmp_path / "theirs")
    again = formats.read(tmp_path / "theirs")
    assert again.labels == weights.labels
    assert again.heads["classifier"]["kind"] == kind
    close(Pretrained(again)(ids, mask, types).classifier_logits.reshape(theirs.shape), theirs, "")


def test_a_span_model_goes_there_and_back(peer, tmp_path):
    transformers, torch = peer
    weights = classifier_weights("classes", 2)
    weights.heads = {"span": {}}
    for leaf in ("kernel", "bias"):
        weights.params[f"span_head/{leaf}"] = weights.params.pop(f"classifier_head/{leaf}")
    formats.write(weights, tmp_path / "ours", "huggingface")
    model = transformers.AlbertForQuestionAnswering.from_pretrained(tmp_path / "ours")
    ids, mask, types = rows(50)
    theirs = outputs(torch, model, ids, mask, types)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    ours = np.asarray(Pretrained(weights)._span_outputs(Pretrained(weights).params, batch))
    close(ours[..., 0], theirs.start_logits, "start")
    close(ours[..., 1], theirs.end_logits, "end")
    model.save_pretrained(tmp_path / "theirs")
    again = formats.read(tmp_path / "theirs")
    assert again.heads == {"span": {}}
    np.testing.assert_array_equal(
        again.params["span_head/kernel"], weights.params["span_head/kernel"]
    )


def test_a_model_of_tokens_goes_there_and_back(peer, tmp_path):
    transformers, torch = peer
    weights = classifier_weights("classes", 3)
    weights.heads, weights.labels = {"tokens": {"labels": 3, "dropout": 0.1}}, ("B-X", "I-X", "O")
    for leaf in ("kernel", "bias"):
        weights.params[f"tokens_head/{leaf}"] = weights.params.pop(f"classifier_head/{leaf}")
    formats.write(weights, tmp_path / "ours", "huggingface")
    model = transformers.AlbertForTokenClassification.from_pretrained(tmp_path / "ours")
    ids, mask, types = rows(50)
    theirs = outputs(torch, model, ids, mask, types)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    ours = Pretrained(weights)
    close(np.asarray(ours._token_logits(ours.params, batch)), theirs.logits, "logits")
    assert model.config.id2label == {0: "B-X", 1: "I-X", 2: "O"}
    model.save_pretrained(tmp_path / "theirs")
    again = formats.read(tmp_path / "theirs")
    assert again.heads == weights.heads
    assert again.labels == weights.labels
