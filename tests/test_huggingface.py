"""Hugging Face folders: golden numbers that transformers printed, names, layouts, bad files.
What needs transformers itself is in test_transformers.py."""

import json
import re
import shutil
import warnings

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import albert
from albert.checkpoints import CheckpointError
from albert.data.tokenizer import Tokenizer
from albert.interop import formats, huggingface, huggingface_tokenizer
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


def shard(folder, parts=2):
    """Cuts model.safetensors as transformers does; returns the files' names."""
    tensors = safetensors.numpy.load_file(folder / huggingface.MODEL)
    names = sorted(tensors)
    files = [f"model-{n + 1:05}-of-{parts:05}.safetensors" for n in range(parts)]
    placed = {name: files[i * parts // len(names)] for i, name in enumerate(names)}
    for file in files:
        own = {name: tensors[name] for name, f in placed.items() if f == file}
        safetensors.numpy.save_file(own, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (folder / huggingface.INDEX).write_text(json.dumps(index))
    (folder / huggingface.MODEL).unlink()
    return files


def test_a_model_in_several_files(folder):
    whole = formats.read(folder)
    shard(folder, 3)
    assert_same(formats.read(folder), whole)


def replace_in_index(folder, before, after):
    path = folder / huggingface.INDEX
    path.write_text(path.read_text().replace(before, after))


BAD_SHARDS = {
    "one missing": (
        lambda f, files: (f / files[1]).unlink(),
        r"index\.json names 2 files, and model-00002-of-00002\.safetensors is not in .*copy it",
    ),
    "all missing": (
        lambda f, files: [(f / file).unlink() for file in files],
        r"names 2 files, and model-00001-of-00002\.safetensors, model-00002.* are not in .*"
        "copy them",
    ),
    "cut off": (
        lambda f, files: truncate(f, files[0]),
        r"model-00001-of-00002\.safetensors is damaged, cut off",
    ),
    "of another model": (
        lambda f, files: shutil.copy(f / files[0], f / files[1]),
        r"model-00002-of-00002\.safetensors is not the file that model\.safetensors\.index\.json "
        r"describes: .* The files may be of two models",
    ),
    "an index without names": (
        lambda f, files: (f / huggingface.INDEX).write_text("{}"),
        r"index\.json is damaged: its weight_map does not name a file",
    ),
    "an index of elsewhere": (
        lambda f, files: replace_in_index(f, files[0], f"../{files[0]}"),
        r"index\.json is damaged: its weight_map does not name a file beside it",
    ),
    "a cut index": (
        lambda f, files: truncate(f, huggingface.INDEX),
        r"index\.json is not a JSON file, or is cut off",
    ),
}


@pytest.mark.parametrize("kind", BAD_SHARDS)
def test_files_of_a_model_that_do_not_fit_are_named(folder, kind):
    spoil, words = BAD_SHARDS[kind]
    spoil(folder, shard(folder))
    with pytest.raises(CheckpointError, match=words):
        formats.read(folder)


@pytest.fixture(scope="module")
def only_pipeline(tmp_path_factory, vocabulary):
    """A folder with a tokenizer.json and no .model file."""
    weights = random_weights(vocab_size=96)
    weights.tokenizer = Tokenizer(vocabulary)
    folder = tmp_path_factory.mktemp("pipeline") / "hf"
    formats.write(weights, folder, "huggingface")
    (folder / huggingface_tokenizer.SENTENCEPIECE).unlink()
    return folder


@pytest.fixture
def pipeline(tmp_path, only_pipeline):
    """A copy of that folder, changed by a function of the contents of tokenizer.json."""
    folder = shutil.copytree(only_pipeline, tmp_path / "hf")

    def changed(change):
        path = folder / huggingface_tokenizer.PIPELINE
        values = json.loads(path.read_text(encoding="utf-8"))
        change(values)
        path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        return folder

    return changed


def steps(*kinds, **more):
    """Puts these in front of the normaliser's own steps."""
    new = [{"type": kind, **more} for kind in kinds]

    def change(values):
        values["normalizer"]["normalizers"] = new + values["normalizer"]["normalizers"]

    return change


def only(*kinds):
    """The normaliser's own steps of these kinds, in this order."""

    def change(values):
        own = {step["type"]: step for step in values["normalizer"]["normalizers"]}
        values["normalizer"] = {"type": "Sequence", "normalizers": [own[kind] for kind in kinds]}

    return change


def normalizer(value):
    return lambda values: values.update(normalizer=value)


def words(*kinds, **metaspace):
    def change(values):
        marks = values["pre_tokenizer"]["pretokenizers"][1] | metaspace
        known = {"Metaspace": marks}
        chosen = [known.get(kind, {"type": kind}) for kind in kinds]
        values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": chosen}

    return change


def model(**changes):
    return lambda values: values["model"].update(changes)


def token(name, **changes):
    def change(values):
        tokens = {t["content"]: t for t in values["added_tokens"]}
        values["added_tokens"] = [
            *(t for n, t in tokens.items() if n != name),
            {**tokens["[MASK]"], "content": name, **tokens.get(name, {}), **changes},
        ]

    return change


def without_token(name):
    def change(values):
        values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] != name]

    return change


def whole_commas(values):
    values["model"]["vocab"][-1] = ["7,", -3.0]


OTHER_PIPELINES = {
    "NFKC": (steps("NFKC"), "its normaliser has the step NFKC, not known here"),
    "NFC": (steps("NFC"), "the step NFC"),
    "BERT": (normalizer({"type": "BertNormalizer", "lowercase": True}), "the step BertNormalizer"),
    "Strip": (steps("Strip", strip_left=True, strip_right=True), "the step Strip"),
    "Prepend": (steps("Prepend", prepend="_"), "the step Prepend"),
    "Replace": (
        steps("Replace", pattern={"String": "a"}, content="b"),
        "its normaliser replaces 'a' by 'b'",
    ),
    "Replace by a pattern": (
        steps("Replace", pattern={"Regex": "\\d"}, content="0"),
        r"its normaliser replaces '.*d' by '0'",
    ),
    "nested": (
        normalizer(
            {
                "type": "Sequence",
                "normalizers": [{"type": "Sequence", "normalizers": [{"type": "NFD"}]}],
            }
        ),
        "the step NFD",
    ),
    "another order": (
        only("Lowercase", "NFKD", "StripAccents"),
        "the steps Lowercase, NFKD, StripAccents; known here is the order NFKD",
    ),
    "twice": (steps("NFKD"), "the steps NFKD, NFKD, .* each at most once"),
    "NFKD alone": (only("NFKD", "Lowercase"), "the step NFKD alone"),
    "StripAccents alone": (only("StripAccents", "Lowercase"), "the step StripAccents alone"),
    "WordPiece": (
        model(type="WordPiece", vocab={"[PAD]": 0}),
        "it is a WordPiece model and not a SentencePiece unigram",
    ),
    "BPE": (model(type="BPE", vocab={"a": 0}, merges=[]), "it is a BPE model"),
    "bytes": (model(byte_fallback=True), r"spells unknown letters in bytes \(byte_fallback\)"),
    "another unknown": (model(unk_id=0), "its unk_id is 0; ALBERT's is 1"),
    "no unknown": (model(unk_id=None), "its unk_id is None"),
    "never a mark": (
        words("WhitespaceSplit", "Metaspace", prepend_scheme="never"),
        "Metaspace has replacement '\u2581', prepend_scheme never and split True",
    ),
    "first mark": (words("WhitespaceSplit", "Metaspace", prepend_scheme="first"), "scheme first"),
    "another mark": (words("WhitespaceSplit", "Metaspace", replacement="_"), "replacement '_'"),
    "unsplit": (words("WhitespaceSplit", "Metaspace", split=False), "split False"),
    "spaces kept": (words("Metaspace"), "its pre-tokeniser is Metaspace; known here is White"),
    "no marks": (words("WhitespaceSplit"), "its pre-tokeniser is WhitespaceSplit; known here"),
    "digits": (words("WhitespaceSplit", "Digits", "Metaspace"), "has the step Digits, not known"),
    "no words": (
        lambda values: values.update(pre_tokenizer=None),
        "its pre-tokeniser is absent; known here",
    ),
    "a new token": (token("<ent>", id=96), "the token '<ent>' was added to its pieces"),
    "a special piece": (
        lambda values: token(values["model"]["vocab"][9][0], id=9)(values),
        "is cut out of a text before any other",
    ),
    "a piece of its own": (
        lambda values: token(values["model"]["vocab"][9][0], id=9, special=False)(values),
        "is cut out of a text before any other",
    ),
    "a whole word": (token("[MASK]", single_word=True), r"token '\[MASK\]' is found as a whole"),
    "a normalised token": (token("[MASK]", normalized=True), "in normalised text only"),
    "no mask": (without_token("[MASK]"), r"\[MASK\] in a text is no token of its own there"),
    "commas": (whole_commas, "it keeps pieces such as '7,' whole, which ALBERT cuts in two"),
    "other ends": (
        lambda values: values["post_processor"].update(single=[]),
        "its post-processor TemplateProcessing does not put",
    ),
    "other names": (
        lambda values: (
            values["model"]["vocab"][0].__setitem__(0, "[PAD]"),
            without_token("<pad>")(values),
        ),
        r"is not an ALBERT vocabulary: there is no <pad>; id 0 is '\[PAD\]'",
    ),
}


@pytest.mark.parametrize("kind", OTHER_PIPELINES)
def test_a_pipeline_that_gives_other_ids_is_refused_by_name(pipeline, kind):
    change, reason = OTHER_PIPELINES[kind]
    weights = formats.read(pipeline(change))
    assert weights.tokenizer is None
    assert re.search(
        rf"no vocabulary here: .*tokenizer\.json.*{reason}", weights.vocabulary_note
    ), weights.vocabulary_note


def test_a_model_without_a_vocabulary_says_why(pipeline):
    folder = pipeline(steps("NFKC"))
    with pytest.warns(UserWarning, match=r"no vocabulary here: .*tokenizer\.json.*step NFKC"):
        model = albert.load(folder)
    assert model.tokenizer is None
    assert model([[2, 5, 3]]).last_hidden_state.shape == (1, 3, 16)
    with pytest.raises(ValueError, match=r"step NFKC.*; load it with albert\.load\(PATH, tok"):
        model.encode(["a river"])


def test_another_vocabulary_can_be_named_beside_such_a_pipeline(pipeline, vocabulary):
    folder = pipeline(OTHER_PIPELINES["WordPiece"][0])
    assert albert.load(folder, tokenizer=vocabulary).tokenizer.vocab_size == 96


def uncompiled(vocabulary, *flags):
    """The same pieces without SentencePiece's own normalisation."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto.FromString(vocabulary.read_bytes())
    model.normalizer_spec.precompiled_charsmap = b""
    return Tokenizer(vocabulary, *flags, model.SerializeToString())


SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
KNOWN_PIPELINES = {
    "ours": (lambda values: None, (True, True)),
    "no normaliser": (normalizer(None), (False, False)),
    "one step": (normalizer({"type": "Lowercase"}), (True, False)),
    "only case": (only("Lowercase", "Precompiled"), (True, False)),
    "only accents": (only("NFKD", "StripAccents"), (False, True)),
    "no post-processor": (lambda values: values.update(post_processor=None), (True, True)),
    "of BERT": (
        lambda values: values.update(
            post_processor={"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
        ),
        (True, True),
    ),
    "no decoder": (lambda values: values.update(decoder=None), (True, True)),
    "a mask takes the space before": (token("[MASK]", lstrip=True), (True, True)),
    "one space of several": (
        lambda values: values["normalizer"]["normalizers"].append(SPACES),
        (True, True),
    ),
}
SENTENCES = [
    "The ancient river moves slowly, 1920, 7.",
    "Caf\u00e9 \u00c9T\u00c9 under  the\u00a0bridge",
    "\uff22\uff4f and \u212b \u4eba (x)",
    "a [MASK] river [SEP] [MASK]",
]


@pytest.mark.parametrize("kind", KNOWN_PIPELINES)
def test_a_pipeline_that_is_known_gives_the_ids_of_its_pieces(pipeline, vocabulary, kind):
    change, flags = KNOWN_PIPELINES[kind]
    weights = formats.read(pipeline(change))
    found = weights.tokenizer
    assert not weights.vocabulary_note
    assert (found.lower_case, found.strip_accents) == flags
    with_charsmap = kind not in ("no normaliser", "one step", "only accents")
    expected = Tokenizer(vocabulary, *flags) if with_charsmap else uncompiled(vocabulary, *flags)
    for text in SENTENCES:
        assert found.encode(text) == expected.encode(text)
        assert found.encode_special(text) == expected.encode_special(text)


@pytest.mark.peers
@pytest.mark.parametrize("kind", KNOWN_PIPELINES)
def test_a_pipeline_that_is_known_gives_the_ids_of_tokenizers(pipeline, kind):
    tokenizers = pytest.importorskip("tokenizers")
    folder = pipeline(KNOWN_PIPELINES[kind][0])
    theirs = tokenizers.Tokenizer.from_file(str(folder / huggingface_tokenizer.PIPELINE))
    ours = formats.read(folder).tokenizer
    for text in SENTENCES:
        assert ours.encode_special(text) == theirs.encode(text, add_special_tokens=False).ids


def test_what_transformers_makes_of_a_model_file_is_read_as_that(pipeline, vocabulary):
    """As AlbertTokenizer writes it; see test_transformers.py for its doing so."""

    def change(values):
        quotes = [
            {"type": "Replace", "pattern": {"String": q}, "content": '"'} for q in ("``", "''")
        ]
        values["normalizer"]["normalizers"] = quotes + values["normalizer"]["normalizers"]
        for number in range(5, 13):  # the pieces that are symbols of their own
            token(values["model"]["vocab"][number][0], id=number, special=False)(values)

    folder = pipeline(change)
    with pytest.warns(UserWarning, match="was made by transformers of a SentencePiece model"):
        found = albert.load(folder).tokenizer
    expected = Tokenizer(vocabulary)
    for text in [*SENTENCES, "a (small) ``river'' of 1920, 7."]:
        assert found.encode(text) == expected.encode(text)


def test_a_tokenizer_json_that_is_damaged_is_told(pipeline):
    folder = pipeline(lambda values: values["model"].pop("vocab"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read: it is damaged"):
        formats.read(folder)


def test_a_vocabulary_of_another_kind_leaves_the_weights(folder):
    (folder / "vocab.txt").write_text("[PAD]\n")
    with pytest.warns(UserWarning, match=r"vocab\.txt is not one of SentencePiece"):
        assert albert.load(folder).tokenizer is None


def test_tokens_that_were_added_are_named(tmp_path, vocabulary):
    weights = random_weights(vocab_size=98)
    weights.tokenizer = Tokenizer(vocabulary)
    formats.write(weights, tmp_path / "hf", "huggingface")
    path = tmp_path / "hf" / huggingface_tokenizer.PIPELINE
    values = json.loads(path.read_text(encoding="utf-8"))
    token("<ent>", id=96)(values)
    path.write_text(json.dumps(values))
    (tmp_path / "hf" / "added_tokens.json").write_text(json.dumps({"<rel>": 97}))
    with pytest.warns(UserWarning, match=r"last 2 are no piece.*added .*: <ent>, <rel>\."):
        model = albert.load(tmp_path / "hf")
    assert model.tokenizer.vocab_size == 96


CASES = {
    "model_hf": (600, 600, ""),
    "hf_folders/sharded": (600, 600, ""),
    "hf_folders/padded_vocab": (608, 600, "the last 8 are no piece"),
    "hf_folders/wordpiece_json": (600, None, "it is a WordPiece model"),
    "hf_folders/nfkc": (600, None, "the step NFKC"),
}


@pytest.mark.parametrize("name", CASES)
def test_folders_that_were_reported(shared, name):
    rows, pieces, note = CASES[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = albert.load(shared / "cases" / name)
    assert [note in str(w.message) for w in caught] == ([True] if note else [])
    assert model.params["embeddings"]["word_embeddings"].shape == (rows, 16)
    assert (model.tokenizer.vocab_size if model.tokenizer else None) == pieces
    assert model([[2, 5, 3]], output_mlm_logits=True).mlm_logits.shape == (1, 3, rows)
