import json
import pickle

import pytest
import sentencepiece

from albert.data.tokenizer import (
    SPECIAL,
    UNK,
    Tokenizer,
    VocabularyError,
    normalise,
    starts_word,
)
from albert.data.vocabulary import train_vocabulary


def test_released_pieces_and_ids(shared):
    tokenizer = Tokenizer(shared / "data/vocab/30k-clean.model")
    for entry in json.loads((shared / "golden/tokenization_original.json").read_text()):
        ids = tokenizer.encode(entry["text"])
        assert ids == entry["ids"]
        # A piece outside the vocabulary reads <unk> here and as it was written there.
        pieces = [o if i == UNK else p for i, p, o in zip(
            ids, tokenizer.pieces(ids), entry["tokens"], strict=True)]  # fmt: skip
        assert pieces == entry["tokens"]


def test_normalise():
    assert normalise("  A\tCafé \n ÉTÉ ", True, True) == "a cafe ete"
    assert normalise("Café", False, True) == "Cafe"
    assert normalise("Café", True, False) == "café"


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("\u2581the", True), ("ing", False), ("\u00fcber", False), ("\u0438\u043d\u0433", False),
        (",", True), ("7", True), ("[SEP]", True), ("\u2581", True), ("\u4eba", True),
        ("\u3042\u308b", True), ("\u0e01", True), ("\U0001f600", True), ("n't", True),
        ("\u093f", False),
    ],
)  # fmt: skip
def test_words_start_where_a_reader_sees_them(piece, expected):
    assert starts_word(piece) is expected


def test_for_lower_case_english_it_is_the_released_rule(shared):
    tokenizer = Tokenizer(shared / "data/vocab/30k-clean.model")
    for piece, ours in zip(tokenizer.pieces(range(30000)), tokenizer.starts_word, strict=True):
        released = piece.startswith(("\u2581", "<")) or any(not "a" <= c <= "z" for c in piece)
        if piece.isascii() or piece.startswith("\u2581"):
            assert ours == released, piece


def test_trained_vocabulary_has_the_released_layout(tokenizer):
    assert tokenizer.pieces(range(5)) == list(SPECIAL)
    assert tokenizer.pieces(range(5, 13)) == ["(", ")", '"', "-", ".", "\u2013", "\u00a3", "\u20ac"]
    text = "The ancient river moves slowly."
    assert tokenizer.decode(tokenizer.encode(text)) == text.lower()
    assert tokenizer.encode("") == []


def test_a_comma_behind_a_digit_stands_alone(tokenizer):
    ids = tokenizer.encode("in 1920, 7.")
    assert not any(len(p) > 1 and p[-1] == "," and p[-2].isdigit() for p in tokenizer.pieces(ids))
    assert "," in tokenizer.pieces(ids)


def test_a_tokenizer_travels_between_processes(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("a quiet village") == tokenizer.encode("a quiet village")
    assert again.fingerprint == tokenizer.fingerprint


def test_unusable_vocabularies_are_named(tmp_path):
    with pytest.raises(VocabularyError, match=r"no vocabulary file .*missing"):
        Tokenizer(tmp_path / "missing.model")
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"not a model")
    with pytest.raises(VocabularyError, match=r"broken\.model is not a SentencePiece model"):
        Tokenizer(broken)
    with open(tmp_path / "plain.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d e f g"] * 20), model_writer=file, vocab_size=12,
            minloglevel=2,
        )  # fmt: skip
    with pytest.raises(
        VocabularyError, match=r"plain\.model is not an ALBERT vocabulary: <pad> has id"
    ):
        Tokenizer(tmp_path / "plain.model")


def test_too_little_text_for_a_vocabulary(tmp_path):
    with pytest.raises(VocabularyError, match="could not train 5000 pieces"):
        train_vocabulary(["a b c"] * 5, 5000, tmp_path / "x.model", True, True)
    assert not (tmp_path / "x.model").exists()
