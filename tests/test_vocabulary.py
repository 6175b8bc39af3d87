"""What vocabularies are trained on, what they do not know, and what helps where none comes out."""

import dataclasses
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert.data.pretraining.prepare import prepare
from albert.data.sources.parse import parse_source
from albert.data.tokenizer import UNK, Tokenizer, VocabularyError
from albert.data.vocabulary import cut_for_training, prepare_vocabulary, train_vocabulary
from albert.train.config import check
from conftest import VOCABULARY, write_text
from rows import read_corpus

THAI = [chr(c) for c in range(0x0E01, 0x0E2F)]
THAI_MARKS = ["\u0e34", "\u0e35", "\u0e48", "\u0e49"]


def thai(rng, letters):
    return "".join(
        rng.choice(THAI) + (rng.choice(THAI_MARKS) if rng.random() < 0.3 else "")
        for _ in range(letters)
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["a", " ", "\u0e01", "\u0e01\u0e34", "\u0e01\u0e34\u0e48", "\U0001f600"]
            ),
            st.integers(1, 3000),
        ),
        max_size=8,
    )
)
@settings(deadline=None, max_examples=40)
def test_long_sentences_are_cut_and_nothing_is_lost(runs):
    text = " ".join("".join(c * n for c, n in runs).split())
    pieces = list(cut_for_training(text))
    assert all(len(piece.encode()) <= 4192 for piece in pieces)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert not any(unicodedata.category(piece[0])[0] == "M" for piece in pieces if piece)
    assert len(list(cut_for_training("a" + "\u0e34" * 10_000))) == 8  # marks of nothing


def test_a_vocabulary_learns_from_lines_of_any_length(tmp_path, capfd):
    """SentencePiece leaves out what is longer than 4,192 bytes: all that is Thai here."""
    rng = np.random.default_rng(0)
    latin = write_text(tmp_path / "latin.txt", 60).read_text()
    path = tmp_path / "mixed.txt"
    path.write_text("\n\n".join([thai(rng, 1700) for _ in range(25)]) + "\n\n" + latin)
    source = parse_source(str(path), "text")
    model = prepare_vocabulary(
        [source], 150, "th", True, False, 0, 0.0, 0.99995, 0.01, tmp_path / "out"
    )
    tokenizer = Tokenizer(model, True, False)
    assert set(THAI) <= set("".join(tokenizer.pieces(range(tokenizer.vocab_size))))
    assert UNK not in tokenizer.encode(thai(rng, 200))
    assert re.search(
        r"25 sentences of over 4192 bytes, \d\d\.\d% of the characters", capfd.readouterr().err
    )


def test_a_sentence_with_the_character_that_sentencepiece_keeps_is_learned_from(tmp_path):
    sentences = [f"{word} \u2585 {word}" for word in ("xylophone", "quartz")] * 50
    train_vocabulary(sentences, 28, tmp_path / "x.model", True, True, 1.0)
    assert UNK not in Tokenizer(tmp_path / "x.model").encode("xylophone quartz")


def chinese(lines):
    """Lines of 600 common characters, some of them in words, and 200 that come once."""
    characters = [chr(0x4E00 + i) for i in range(600)] * 20 + [chr(0x6E00 + i) for i in range(200)]
    shuffled = "".join(np.random.default_rng(0).permutation(characters))
    words = ["".join(characters[i : i + 3]) for i in range(0, 600, 3)]
    written = "".join(np.random.default_rng(1).permutation(words * 10))
    text = shuffled + written
    return [text[first : first + 30] for first in range(0, len(text), 30)][:lines]


def test_too_many_characters_are_told_with_what_helps(tmp_path):
    sentences = chinese(None)
    with pytest.raises(VocabularyError, match=r"Raise model\.vocab_size to more than") as error:
        train_vocabulary(sentences, 700, tmp_path / "x.model", True, False, 0.9995)
    words = str(error.value)
    assert "use more text" not in words
    more = int(re.search(r"to more than (\d+)", words)[1])
    lower = float(re.search(r"lower data.character_coverage to ([0-9.]+)\.", words)[1])
    assert more > 790
    assert 0.98 <= lower < 0.9995
    # Both help.
    train_vocabulary(sentences, more + 1, tmp_path / "more.model", True, False, 0.9995)
    unknown = train_vocabulary(sentences, 700, tmp_path / "lower.model", True, False, lower)
    assert 0 < unknown < 1.2 * (1 - lower)
    # Fewer pieces than any coverage that SentencePiece takes would do for.
    with pytest.raises(VocabularyError, match=r"Raise model\.vocab_size to more than \d+\.$"):
        train_vocabulary(sentences, 300, tmp_path / "x.model", True, False, 0.9995)


def test_too_little_text_is_told_with_what_helps(tmp_path):
    sentences = chinese(20)
    with pytest.raises(VocabularyError, match="use more text") as error:
        train_vocabulary(sentences, 5000, tmp_path / "x.model", True, False, 0.9995)
    most = int(re.search(r"Lower model.vocab_size to (\d+)", str(error.value))[1])
    train_vocabulary(sentences, most, tmp_path / "most.model", True, False, 0.9995)
    with pytest.raises(VocabularyError, match="holds anything to learn from"):
        train_vocabulary(["", "  "], 100, tmp_path / "x.model", True, True)


def test_a_vocabulary_that_does_not_know_its_text_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(chinese(None)))
    source = parse_source(str(path), "text")
    with pytest.raises(VocabularyError, match=r"characters that it was trained on are unknown"):
        prepare_vocabulary([source], 640, "zh", True, False, 0, 0.0, 0.98, 0.005, tmp_path / "out")


def test_unknown_characters_are_counted_as_characters(tmp_path, tokenizer, capfd):
    """In pieces a whole line is one <unk>."""
    rng = np.random.default_rng(0)
    lines = ["a river moves slowly", thai(rng, 500), "water (1920)"]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    corpus = read_corpus(tmp_path / "a.txt", tokenizer, tmp_path)
    ids = corpus.read(0, corpus.num_sentences)
    assert (ids == UNK).mean() < 0.1
    manifest = corpus.manifest
    assert manifest["characters"] == sum(map(len, lines))
    assert manifest["unknown_characters"] == pytest.approx(len(lines[1]), abs=2)


def test_text_that_the_vocabulary_does_not_know_stops_or_is_told(tiny, tmp_path, tokenizer, capfd):
    rng = np.random.default_rng(0)
    path = write_text(tmp_path / "a.txt", 60)
    path.write_text(f"{path.read_text()}\n\n{thai(rng, len(path.read_text()) // 4)}\n")
    tiny.data.train_sources = (str(path),)
    tiny.data.folder = str(tmp_path / "prepared")
    data = check(tiny).data
    with pytest.raises(VocabularyError, match=r"a\.txt: \d\d\.\d% of the characters are unknown"):
        prepare(data, VOCABULARY, 0)
    capfd.readouterr()
    prepare(dataclasses.replace(data, max_unknown_share=0.5), VOCABULARY, 0)
    assert re.search(r"Warning: .*a\.txt: \d\d\.\d% of the characters", capfd.readouterr().err)
