import json
import pickle

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from albert.data.tokenizer import (
    CLS,
    SEP,
    SPECIAL,
    OtherVocabularyError,
    Tokenizer,
    VocabularyError,
    normalise,
    starts_word,
)
from albert.data.vocabulary import train_vocabulary


def test_released_pieces_and_ids(shared):
    tokenizer = Tokenizer(shared / "data/vocab/30k-clean.model")
    for entry in json.loads((shared / "golden/tokenization_original.json").read_text()):
        assert tokenizer.encode(entry["text"]) == entry["ids"]
        assert tokenizer.tokenize(entry["text"]) == entry["tokens"]


def test_ids_with_special_pieces_pairs_and_accents(shared):
    path = shared / "data/vocab/30k-clean.model"
    for entry in json.loads((shared / "golden/tokenization.json").read_text()):
        tokenizer = Tokenizer(path, strip_accents=not entry.get("keep_accents", False))
        if "ids" in entry:
            assert tokenizer.encode(entry["text"]) == entry["ids"]
            continue
        texts = entry["pair"] if "pair" in entry else [entry["text"]]
        ids, types = tokenizer.encode_pair(*texts)
        assert ids == entry["ids_with_cls_sep"]
        assert types == entry.get("token_type_ids", [0] * len(ids))


def test_special_pieces_are_plain_text_where_a_model_learns(tokenizer):
    assert 4 not in tokenizer.encode("a [MASK] river")
    assert tokenizer.encode_special("a [MASK] river").count(4) == 1
    assert tokenizer.encode_special("[CLS]<pad>") == [2, 0]
    text = "The ancient river moves slowly, 1920, 7."
    assert "".join(tokenizer.tokenize(text)) == "\u2581" + text.lower().replace(" ", "\u2581")


@given(st.integers(0, 30), st.none() | st.integers(0, 30), st.integers(5, 80))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pairs_lose_the_end_of_the_longer(tokenizer, first, second, limit):
    texts = [" ".join(["river"] * n) for n in (first, second) if n is not None]
    a, b = (*map(tokenizer.encode, texts), [])[:2]
    room = limit - 2 - len(texts) + 1
    if len(a) + len(b) > room:
        if second is None:
            a = a[:room]
        else:
            keep_b = min(len(b), max(room - len(a), room - room // 2))
            a, b = a[: room - keep_b], b[:keep_b]
    ids, types = tokenizer.encode_pair(*texts, max_length=limit)
    assert ids == [CLS, *a, SEP] + ([] if second is None else [*b, SEP])
    assert types == [0] * (len(a) + 2) + ([] if second is None else [1] * (len(b) + 1))


def test_no_room_is_told(tokenizer):
    with pytest.raises(ValueError, match="max_length 4 leaves no room"):
        tokenizer.encode_pair("a", "b", max_length=4)


def test_normalise():
    assert normalise("  A\tCafé \n ÉTÉ ", True, True) == "a cafe ete"
    assert normalise("Café", False, True) == "Cafe"
    assert normalise("Café", True, False) == "café"


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("\u2581the", True),
        ("ing", False),
        ("\u00fcber", False),
        ("\u0438\u043d\u0433", False),
        (",", True),
        ("7", True),
        ("[SEP]", True),
        ("\u2581", True),
        ("\u4eba", True),
        ("\u3042\u308b", True),
        ("\u0e01", True),
        ("\U0001f600", True),
        ("n't", True),
        ("\u093f", False),
    ],
)
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


def test_a_tokenizer_travels_between_processes(tokenizer, tmp_path):
    # Where the file is not, or not the same.
    moved = tmp_path / "moved.model"
    tokenizer.save(moved)
    packed = pickle.dumps(Tokenizer(moved))
    moved.unlink()
    again = pickle.loads(packed)
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
            sentence_iterator=iter(["a b c d e f g"] * 20),
            model_writer=file,
            vocab_size=12,
            minloglevel=2,
        )
    with pytest.raises(
        VocabularyError,
        match=r"plain\.model is not an ALBERT vocabulary: there is no <pad>; id 0 is",
    ):
        Tokenizer(tmp_path / "plain.model")


@pytest.mark.parametrize(
    ("pieces", "unknown", "words"),
    [
        # Other names, as of BERT: SentencePiece gives the id of what is unknown for any name.
        (
            ["<pad>", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            1,
            "there is no <unk>; id 1 is '\\[UNK\\]'",
        ),
        (
            ["<unk>", "<pad>", "[CLS]", "[SEP]", "[MASK]"],
            0,
            "<pad> has id 1 and not 0; <unk> has id 0",
        ),
        (["<pad>", "<unk>"], 1, "there is no \\[CLS\\], and no id 2"),
        (
            ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "?"],
            5,
            "<unk> is an ordinary piece; what is unknown becomes '\\?', id 5",
        ),
    ],
)
def test_what_is_wrong_with_special_pieces_is_said_truly(pieces, unknown, words, tmp_path):
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    for number, piece in enumerate(pieces):
        entry = model.pieces.add(piece=piece, score=0.0)
        if number == unknown:
            entry.type = proto.ModelProto.SentencePiece.UNKNOWN
    model.trainer_spec.unk_id = unknown
    model.trainer_spec.unk_piece = pieces[unknown]
    with pytest.raises(OtherVocabularyError, match=words) as caught:
        Tokenizer(tmp_path / "other.model", serialized=model.SerializeToString())
    for name, number in SPECIAL.items():
        assert f"{name} has id {number} and not {number}" not in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([5, -100], r"id 1 \(the first is 0\) is -100; the vocabulary has ids 0 to 95"),
        ([96], r"id 0 .* is 96; the vocabulary has"),
        ([5.0], r"is 5\.0, of type float; it must be a whole number"),
        (["5"], "is '5', of type str"),
        ("56", "ids is '56'; it must be a list"),
        (5, "ids is 5; it must be a list"),
        ([[5, 6]], r"is \[5, 6\], of type list"),
    ],
)
def test_ids_that_are_not_of_the_vocabulary_are_refused(tokenizer, ids, words):
    for function in (tokenizer.decode, tokenizer.pieces):
        with pytest.raises(ValueError, match=words):
            function(ids)


def test_what_is_no_text_is_refused(tokenizer):
    for wrong in (None, 5, b"a river", float("nan"), ["a"]):
        for function in (tokenizer.encode, tokenizer.tokenize, tokenizer.encode_special):
            with pytest.raises(ValueError, match="a text must be a str"):
                function(wrong)
    with pytest.raises(ValueError, match="takes several texts"):
        tokenizer.encode_batch("a river")


def test_too_little_text_for_a_vocabulary(tmp_path):
    with pytest.raises(VocabularyError, match="could not train 5000 pieces"):
        train_vocabulary(["a b c"] * 5, 5000, tmp_path / "x.model", True, True)
    assert not (tmp_path / "x.model").exists()
