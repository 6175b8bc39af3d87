"""The vocabulary files of a Hugging Face folder: spiece.model, tokenizer.json,
tokenizer_config.json."""

import base64
import importlib
import json
from pathlib import Path
from typing import Any

from albert.checkpoints import CheckpointError
from albert.data.tokenizer import (
    CLS,
    PAD,
    SEP,
    SPECIAL,
    UNK,
    WORD_MARK,
    OtherVocabularyError,
    Tokenizer,
    VocabularyError,
    ends_in_digit_comma,
)
from albert.interop.folders import open_vocabulary, read_json

SENTENCEPIECE, PIPELINE, OPTIONS = "spiece.model", "tokenizer.json", "tokenizer_config.json"
ADDED = "added_tokens.json"  # of older versions
# Less likely than any other way to cut a word.
_NEVER = -1000.0
# Steps of a normaliser that transformers puts around those of an ALBERT vocabulary.
_QUOTES = tuple(
    {"type": "Replace", "pattern": {"String": quotes}, "content": '"'} for quotes in ("``", "''")
)
_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
_FIRST = [
    {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}},
    {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
]
_SECOND = [
    {"Sequence": {"id": "B", "type_id": 1}},
    {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
]
_POST_PROCESSOR = {
    "type": "TemplateProcessing",
    "single": _FIRST,
    "pair": _FIRST + _SECOND,
    "special_tokens": {
        name: {"id": name, "ids": [number], "tokens": [name]}
        for name, number in (("[CLS]", CLS), ("[SEP]", SEP))
    },
}


class _UnknownPipelineError(ValueError):
    """A tokenizer.json that gives other ids than any vocabulary here; says which part does."""


def read(folder: Path, vocabulary: Path | None = None) -> tuple[Tokenizer | None, str]:
    """The vocabulary of a folder, or that .model file with the folder's options.

    A tokenizer.json is read where its ids are those of a SentencePiece model behind the
    normalisation of a `Tokenizer`. That which transformers makes of ALBERT's own .model file is
    read as that file, whose ids the model has learned, and which it does not keep to everywhere.

    Returns:
      The tokenizer, None where there is none or none that can be used, and why, or what is
      particular to it, as a sentence; empty where there is nothing to say.

    Raises CheckpointError when a file is damaged, or a named vocabulary not of ALBERT's kind.
    """
    options = read_json(folder / OPTIONS) if (folder / OPTIONS).is_file() else {}
    flags = bool(options.get("do_lower_case", True)), not options.get("keep_accents", False)
    if vocabulary:
        return open_vocabulary(vocabulary, *flags), ""
    try:
        if (folder / SENTENCEPIECE).is_file():
            tokenizer = Tokenizer(folder / SENTENCEPIECE, *flags)
            return tokenizer, _note_added(folder, tokenizer)
        # From version 5 on transformers saves no SentencePiece file.
        if (folder / PIPELINE).is_file():
            return _read_pipeline(folder / PIPELINE)
    except OtherVocabularyError as error:
        return None, f"The model has no vocabulary here: {error.reason}"
    except _UnknownPipelineError as error:
        return None, f"The model has no vocabulary here: {error}."
    except VocabularyError as error:
        raise CheckpointError(str(error)) from error
    others = [
        name for name in ("vocab.txt", "vocab.json", "merges.txt") if (folder / name).is_file()
    ]
    if others:
        return None, (
            f"The model has no vocabulary here: {folder / others[0]} is not one of SentencePiece."
        )
    return None, ""


def _note_added(folder: Path, tokenizer: Tokenizer) -> str:
    """A sentence about tokens that were added to the vocabulary in other files of the folder."""
    known = set(tokenizer.pieces(range(tokenizer.vocab_size)))
    added: set[str] = set()
    if (folder / ADDED).is_file():
        added |= set(map(str, read_json(folder / ADDED)))
    if (folder / PIPELINE).is_file():
        tokens = read_json(folder / PIPELINE).get("added_tokens")
        for token in tokens if isinstance(tokens, list) else []:
            if isinstance(token, dict):
                added.add(str(token.get("content")))
    if more := sorted(added - known):
        shown = ", ".join(more[:5]) + (f" and {len(more) - 5} more" if len(more) > 5 else "")
        return (
            f"Tokens were added to the vocabulary of {folder}, which are read as plain text here: "
            f"{shown}."
        )
    return ""


def _read_pipeline(path: Path) -> tuple[Tokenizer, str]:
    """A tokenizer.json as a vocabulary, and what is particular to it.

    Raises _UnknownPipelineError when a part of it is not known here, OtherVocabularyError when it
    is not ALBERT's vocabulary, CheckpointError when it is damaged.
    """
    values = read_json(path)
    try:
        _check_model(values["model"])
        lower_case, strip_accents, charsmap = _normalizer(values.get("normalizer"))
        _check_tokens(values)
        _check_words(values)
        _check_post_processor(values.get("post_processor"))
        model = _sentencepiece_model(values, charsmap)
    except _UnknownPipelineError as error:
        raise _UnknownPipelineError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: it is damaged or not a tokenizer.json ({error!r}). Remove it "
            "to load the model without a vocabulary."
        ) from error
    note = (
        f"{path} was made by transformers of a SentencePiece model. Ids here are those of that "
        "model, as the released program has them; transformers replaces `` and '' first, cuts out "
        "some signs before words are marked and keeps a comma with the digits before it."
    )
    tokenizer = Tokenizer(path, lower_case, strip_accents, model)
    return tokenizer, note if _is_of_transformers(values) else ""


def _is_of_transformers(values: dict) -> bool:
    """Whether it is what transformers makes of ALBERT's .model file."""
    steps = _steps(values.get("normalizer"), "normalizers")
    return all(quotes in steps for quotes in _QUOTES)


def _steps(value: Any, inside: str) -> list[dict]:
    """A step or a sequence of steps as a list; null is none."""
    if value is None:
        return []
    if value["type"] == "Sequence":
        return [step for inner in value[inside] for step in _steps(inner, inside)]
    return [value]


def _normalizer(value: Any) -> tuple[bool, bool, bytes]:
    """Whether it lowers the case and strips accents, and the compiled normalisation behind that.

    Raises _UnknownPipelineError for anything that a `Tokenizer` does not do in the same order.
    """
    steps = _steps(value, "normalizers")
    steps = [step for step in steps if step not in (*_QUOTES, _SPACES)]
    kinds = [step["type"] for step in steps]
    known = ["NFKD", "StripAccents", "Lowercase", "Precompiled"]
    for kind, step in zip(kinds, steps, strict=True):
        if kind == "Replace":
            pattern = next(iter(step["pattern"].values()))
            raise _UnknownPipelineError(
                f"its normaliser replaces {pattern!r} by {step['content']!r}, which is not known "
                "here"
            )
        if kind not in known:
            raise _UnknownPipelineError(f"its normaliser has the step {kind}, not known here")
    if kinds != [kind for kind in known if kind in kinds]:
        raise _UnknownPipelineError(
            f"its normaliser has the steps {', '.join(kinds)}; known here is the order "
            f"{', '.join(known)}, each at most once"
        )
    if ("NFKD" in kinds) != ("StripAccents" in kinds):
        raise _UnknownPipelineError(
            f"its normaliser has the step {'NFKD' if 'NFKD' in kinds else 'StripAccents'} alone; "
            "known here are NFKD and StripAccents together"
        )
    charsmap = b""
    if "Precompiled" in kinds:
        charsmap = base64.b64decode(steps[-1]["precompiled_charsmap"], validate=True)
    return "Lowercase" in kinds, "StripAccents" in kinds, charsmap


def _check_model(model: dict) -> None:
    kind = model.get("type", "Unigram" if "unk_id" in model else "unknown")
    if kind != "Unigram":
        raise _UnknownPipelineError(f"it is a {kind} model and not a SentencePiece unigram")
    if model.get("byte_fallback"):
        raise _UnknownPipelineError("it spells unknown letters in bytes (byte_fallback)")
    if model.get("unk_id") != UNK:
        raise _UnknownPipelineError(f"its unk_id is {model.get('unk_id')}; ALBERT's is {UNK}")


def _check_words(values: dict) -> None:
    """What makes words of a normalised text."""
    words = _steps(values.get("pre_tokenizer"), "pretokenizers")
    for step in words:
        if step["type"] not in ("WhitespaceSplit", "Metaspace"):
            raise _UnknownPipelineError(
                f"its pre-tokeniser has the step {step['type']}, not known here"
            )
        if step["type"] == "Metaspace":
            prefix = "always" if step.get("add_prefix_space") else "never"  # of older versions
            scheme, split = step.get("prepend_scheme", prefix), step.get("split", True)
            if (step["replacement"], scheme, split) != (WORD_MARK, "always", True):
                raise _UnknownPipelineError(
                    f"its pre-tokeniser Metaspace has replacement {step['replacement']!r}, "
                    f"prepend_scheme {scheme} and split {split}; known here are {WORD_MARK!r}, "
                    "always and True"
                )
    kinds = [step["type"] for step in words]
    if kinds != ["WhitespaceSplit", "Metaspace"]:
        raise _UnknownPipelineError(
            f"its pre-tokeniser is {', '.join(kinds) or 'absent'}; known here is WhitespaceSplit "
            "with Metaspace"
        )
    if _is_of_transformers(values):
        return
    for piece, score in values["model"]["vocab"]:
        if ends_in_digit_comma(piece) and score > _NEVER:
            raise _UnknownPipelineError(
                f"it keeps pieces such as {piece!r} whole, which ALBERT cuts in two"
            )


def _check_tokens(values: dict) -> None:
    """The tokens that are found in a text before it is normalised."""
    pieces = [piece for piece, _ in values["model"]["vocab"]]
    added = {token["content"]: token for token in values["added_tokens"]}
    for name, token in added.items():
        if token["id"] >= len(pieces) or pieces[token["id"]] != name:
            raise _UnknownPipelineError(f"the token {name!r} was added to its pieces")
        if token.get("single_word") or (token["special"] and token.get("normalized")):
            raise _UnknownPipelineError(
                f"its token {name!r} is found as a whole word or in normalised text only"
            )
        # Found in any text, which a `Tokenizer` does with the special pieces of ALBERT alone.
        if name not in SPECIAL and (token["special"] or not _is_of_transformers(values)):
            raise _UnknownPipelineError(f"its piece {name!r} is cut out of a text before any other")
    for name, number in SPECIAL.items():
        if pieces[number : number + 1] == [name] and name not in added:
            raise _UnknownPipelineError(f"{name} in a text is no token of its own there")


def _check_post_processor(value: Any) -> None:
    if value is None or value == _POST_PROCESSOR:
        return
    ends = {"type": "BertProcessing", "sep": ["[SEP]", SEP], "cls": ["[CLS]", CLS]}
    if value == ends:
        return
    raise _UnknownPipelineError(
        f"its post-processor {value['type']} does not put [CLS] in front and [SEP] behind each text"
    )


def write(
    tokenizer: Tokenizer, max_length: int, folder: Path, named: str = "PreTrainedTokenizerFast"
) -> None:
    """Writes the vocabulary so that `AutoTokenizer` gives the ids that `tokenizer` gives.

    `named`: the class that the tokenizer.json is said to be of. transformers (Python) takes the
    file as it is for PreTrainedTokenizerFast alone: AlbertTokenizer makes a pipeline of its own,
    which reads `` and '' as ". transformers.js takes it as it is for every class, and gives token
    types for AlbertTokenizer and not for PreTrainedTokenizerFast.
    """
    tokenizer.save(folder / SENTENCEPIECE)
    proto = _proto()
    model = proto.ModelProto.FromString((folder / SENTENCEPIECE).read_bytes())
    special = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
    }
    options = {
        "tokenizer_class": "AlbertTokenizer",
        "do_lower_case": tokenizer.lower_case,
        "keep_accents": not tokenizer.strip_accents,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        **special,
    }
    if model.trainer_spec.model_type == proto.TrainerSpec.UNIGRAM:
        options["tokenizer_class"] = named
        pipeline = _pipeline(tokenizer, model)
        (folder / PIPELINE).write_text(json.dumps(pipeline, ensure_ascii=False), encoding="utf-8")
    (folder / OPTIONS).write_text(json.dumps(options, indent=2) + "\n")


def _pipeline(tokenizer: Tokenizer, model) -> dict:
    """The contents of a tokenizer.json.

    Pieces that are always cut out of a text need no mark: their score of 0 beats any other way to
    cut. Those that end in a digit and a comma, which the released program cuts again, are given a
    score that loses to any other.
    """
    steps: list[dict] = []
    if tokenizer.strip_accents:
        steps += [{"type": "NFKD"}, {"type": "StripAccents"}]
    if tokenizer.lower_case:
        steps.append({"type": "Lowercase"})
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        text = base64.b64encode(charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": text})
    marks = {
        "type": "Metaspace",
        "replacement": WORD_MARK,
        "prepend_scheme": "always",
        "split": True,
    }
    words = {"type": "WhitespaceSplit"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name, number in SPECIAL.items()
        ],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, marks]},
        "post_processor": _POST_PROCESSOR,
        "decoder": marks,
        "model": {
            "type": "Unigram",
            "unk_id": UNK,
            "vocab": [
                [p.piece, _NEVER if ends_in_digit_comma(p.piece) else p.score] for p in model.pieces
            ],
            "byte_fallback": False,
        },
    }


def _sentencepiece_model(values: dict, charsmap: bytes) -> bytes:
    """The SentencePiece model that a tokenizer.json was made from.

    It holds all of it: pieces and scores, which of them are special, and the compiled
    normalisation.
    """
    proto = _proto()
    model = proto.ModelProto()
    kind = proto.ModelProto.SentencePiece
    added = {token["id"]: token["special"] for token in values["added_tokens"]}
    for number, (piece, score) in enumerate(values["model"]["vocab"]):
        entry = model.pieces.add(piece=piece, score=score)
        if number == UNK:
            entry.type = kind.UNKNOWN
        elif number in added:
            special = added[number] or piece in SPECIAL
            entry.type = kind.CONTROL if special else kind.USER_DEFINED
    model.normalizer_spec.precompiled_charsmap = charsmap
    trainer = model.trainer_spec
    trainer.model_type = proto.TrainerSpec.UNIGRAM
    trainer.vocab_size = len(model.pieces)
    trainer.unk_id, trainer.pad_id, trainer.bos_id, trainer.eos_id = UNK, PAD, -1, -1
    trainer.pad_piece = "<pad>"
    return model.SerializeToString()


def _proto():
    return importlib.import_module("sentencepiece.sentencepiece_model_pb2")
