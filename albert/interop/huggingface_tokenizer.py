"""The vocabulary files of a Hugging Face folder: spiece.model, tokenizer.json,
tokenizer_config.json."""

import base64
import importlib
import json
from pathlib import Path

from albert.checkpoints.store import CheckpointError
from albert.data.tokenizer import (
    CLS,
    PAD,
    SEP,
    SPECIAL,
    UNK,
    WORD_MARK,
    Tokenizer,
    VocabularyError,
    ends_in_digit_comma,
)
from albert.interop.weights import open_vocabulary, read_json

SENTENCEPIECE, PIPELINE, OPTIONS = "spiece.model", "tokenizer.json", "tokenizer_config.json"
# Less likely than any other way to cut a word.
_NEVER = -1000.0


def read(folder: Path, vocabulary: Path | None = None) -> Tokenizer | None:
    """The vocabulary of a folder, or that .model file with the folder's options; None without.

    Raises CheckpointError when a file is damaged or not a vocabulary of ALBERT's kind.
    """
    if vocabulary or (folder / SENTENCEPIECE).is_file():
        path = folder / OPTIONS
        options = read_json(path) if path.is_file() else {}
        return open_vocabulary(
            vocabulary or folder / SENTENCEPIECE,
            lower_case=bool(options.get("do_lower_case", True)),
            strip_accents=not options.get("keep_accents", False),
        )
    # From version 5 on transformers saves no SentencePiece file.
    path = folder / PIPELINE
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        steps = [step["type"] for step in values["normalizer"]["normalizers"]]
        model = _sentencepiece_model(values)
        return Tokenizer(path, "Lowercase" in steps, "StripAccents" in steps, model)
    except VocabularyError as error:
        raise CheckpointError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: it is damaged or not a SentencePiece unigram ({error!r})."
        ) from error


def write(tokenizer: Tokenizer, max_length: int, folder: Path) -> None:
    """Writes the vocabulary so that `AutoTokenizer` gives the ids that `tokenizer` gives."""
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
        # The class for ALBERT would make a pipeline of its own, with other ids.
        options["tokenizer_class"] = "PreTrainedTokenizerFast"
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
    cls, sep = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]"))
    first = [cls, {"Sequence": {"id": "A", "type_id": 0}}, sep]
    second = [
        {"Sequence": {"id": "B", "type_id": 1}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
    ]
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
        "post_processor": {
            "type": "TemplateProcessing",
            "single": first,
            "pair": first + second,
            "special_tokens": {
                name: {"id": name, "ids": [number], "tokens": [name]}
                for name, number in (("[CLS]", CLS), ("[SEP]", SEP))
            },
        },
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


def _sentencepiece_model(values: dict) -> bytes:
    """The SentencePiece model that a tokenizer.json was made from.

    It holds all of it: pieces and scores, which of them are special, and the compiled
    normalisation.
    """
    if values["model"]["type"] != "Unigram":
        raise ValueError(f"it is a {values['model']['type']}")
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
    for step in values["normalizer"]["normalizers"]:
        if step["type"] == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
            model.normalizer_spec.precompiled_charsmap = charsmap
    trainer = model.trainer_spec
    trainer.model_type = proto.TrainerSpec.UNIGRAM
    trainer.vocab_size = len(model.pieces)
    trainer.unk_id, trainer.pad_id, trainer.bos_id, trainer.eos_id = UNK, PAD, -1, -1
    trainer.pad_piece = "<pad>"
    return model.SerializeToString()


def _proto():
    return importlib.import_module("sentencepiece.sentencepiece_model_pb2")
