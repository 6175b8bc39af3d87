"""Words and sentences in many scripts, with vocabularies that are trained here."""

# ruff: noqa: RUF001

import re
import unicodedata
from typing import NamedTuple

import pytest
import sentencepiece
import sentencex
from hypothesis import given, settings
from hypothesis import strategies as st

from albert.data.sentences import _GENERAL, _RULES, language_problem, split_sentences
from albert.data.tokenizer import WORD_MARK, Tokenizer, normalise, starts_word
from albert.data.vocabulary import train_vocabulary


class Script(NamedTuple):
    lower_case: bool
    strip_accents: bool
    spaces: bool
    sentences: list[str]


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


SCRIPTS = {
    "en": Script(
        True,
        True,
        True,
        lines("""
The old river moves slowly through the valley.
Dr. Smith saw it, e.g. from the bridge, and was glad.
Where does the water come from?
Nobody in the village could say!
The teacher asked the children to draw the mountains and the river.
They walked home in the rain, singing (quietly) all the way.
"""),
    ),
    "de": Script(
        False,
        False,
        True,
        lines("""
Die Größe der Brücke überraschte alle Gäste aus Österreich.
Dr. Müller mag Bücher, z. B. Märchen und Erzählungen.
Woher kommt das Wasser im Fluß?
Niemand im Dorf wußte es!
„Wir gehen über die Straße nach Hause“ sagte die Köchin.
Die Donaudampfschiffahrtsgesellschaft fährt seit Jahren nicht mehr.
"""),
    ),
    "fr": Script(
        True,
        False,
        True,
        lines("""
L’été dernier nous avons mangé près de l’église.
Où êtes-vous allés hier ?
Le garçon a reçu une lettre de sa grand-mère.
C’est là que naît la rivière !
Les élèves étudient l’histoire du château.
Aujourd’hui il pleut sur la forêt et sur la plage.
"""),
    ),
    "vi": Script(
        True,
        False,
        True,
        lines("""
Tôi sống ở một thành phố lớn bên bờ sông.
Bạn đã đi đâu vào buổi sáng?
Mẹ tôi nấu phở rất ngon!
Chúng tôi đọc sách trong thư viện của trường.
Những đứa trẻ đang chơi dưới gốc cây.
Ngày mai trời sẽ nắng và ấm hơn hôm nay.
"""),
    ),
    "tr": Script(
        False,
        False,
        True,
        lines("""
İstanbul’un ışıkları geceleri çok güzel.
Dün akşam nereye gittiniz?
Annem bize sıcak çorba pişirdi!
Çocuklar ağacın altında oynuyorlar.
Öğretmen öğrencilere eski bir öykü anlattı.
Yarın hava bugünden daha güneşli olacak.
"""),
    ),
    "el": Script(
        True,
        False,
        True,
        lines("""
Το παλιό ποτάμι κυλά αργά μέσα στην κοιλάδα.
Ο κ. Παπαδόπουλος ήρθε χθες στο χωριό.
Η δασκάλα μίλησε στα παιδιά για τη θάλασσα.
Κανείς δεν ήξερε την απάντηση!
Τα βουνά είναι ψηλά και όμορφα.
Αύριο θα γυρίσουμε όλοι στο σπίτι.
"""),
    ),
    "ru": Script(
        True,
        False,
        True,
        lines("""
Мой чай уже остыл, и ёж ушёл в лес.
А. С. Пушкин родился в Москве на ул. Немецкой.
Куда течёт эта широкая река?
Никто в деревне этого не знал!
Учительница попросила детей нарисовать горы и реку.
«Какой чудесный день» сказал мой младший брат.
"""),
    ),
    "uk": Script(
        True,
        False,
        True,
        lines("""
Моя сім’я живе біля річки в старому місті.
Чому ти не з’їв свій обід?
П’ять яблук лежать на подвір’ї!
Їжак сховався під ґанком нашої хати.
Він жив на вул. Шевченка багато років.
Діти співали українські пісні увесь вечір.
"""),
    ),
    "ar": Script(
        True,
        False,
        True,
        lines("""
ذهب الوَلَدُ إلى المدرسة في الصباح.
هل أنت بخير يا صديقي؟
مُحَمَّدٌ رسم صورة جميلة للنهر!
كتبت المعلمة الدرس على اللوح، ثم جلست.
كان البيت القديم قريبا من الجامـــعة الكبيرة.
سنعود غدا إلى القرية مع آبائنا.
"""),
    ),
    "fa": Script(
        True,
        False,
        True,
        lines("""
من به خانه‌ی پدرم رفتم.
آیا شما می‌خواهید با ما بیایید؟
کتاب‌های زیادی در این کتابخانه هست!
بچه‌ها در باغ بازی می‌کنند.
هوا امروز خیلی خوب است، اما فردا سرد می‌شود.
رودخانه آرام از میان دره می‌گذرد.
"""),
    ),
    "he": Script(
        True,
        False,
        True,
        lines("""
הילד הלך אל בית הספר בבוקר.
לאן אתה הולך עכשיו?
שָׁלוֹם לכולם אמרה המורה!
ד״ר כהן גר בתל אביב ליד הים.
הילדים ציירו את ההר ואת הנהר.
מחר נחזור הביתה עם כל המשפחה.
"""),
    ),
    "hi": Script(
        True,
        False,
        True,
        lines("""
राम हिन्दी की किताब पढ़ता है।
क्या तुम कल मेरे साथ बाज़ार चलोगे?
लड़का और लड़की ज़ोर से हँसे!
गाँव के पास एक पुरानी नदी बहती है।
शिक्षक ने बच्चों को पर्वत का चित्र बनाने को कहा।
हम सब शाम को घर लौट आएँगे।
"""),
    ),
    "ko": Script(
        True,
        False,
        True,
        lines("""
오늘은 날씨가 아주 좋습니다.
어디에서 그 책을 읽었습니까?
아이들이 나무 아래에서 놀고 있어요!
선생님은 학생들에게 옛날이야기를 들려주셨습니다.
강물은 천천히 바다로 흘러갑니다.
내일은 가족과 함께 집으로 돌아갈 것입니다.
"""),
    ),
    "zh": Script(
        True,
        False,
        False,
        lines("""
今天天气很好，我们去公园散步。
你昨天晚上去哪里了？
妈妈做的菜真好吃！
老师让学生们画一座山和一条河。
他说：“明天我们一起回家。”
村子旁边有一条古老的河流。
"""),
    ),
    "ja": Script(
        True,
        False,
        False,
        lines("""
今日はとても天気がいいです。
昨日の夜、どこへ行きましたか？
母が作ったケーキはおいしい！
先生は子どもたちに山と川の絵を描かせた。
「明日、一緒に家へ帰りましょう。」
ガラスのコップがテーブルから落ちて、パリンと割れた。
"""),
    ),
    "th": Script(
        True,
        False,
        False,
        lines("""
วันนี้อากาศดีมากเราจึงไปเดินเล่นที่สวน
เมื่อคืนนี้คุณไปที่ไหนมา
แม่ทำอาหารอร่อยที่สุดในโลก
ครูให้เด็กวาดรูปภูเขาและแม่น้ำ
พรุ่งนี้เราจะกลับบ้านด้วยกัน
น้ำในแม่น้ำไหลช้าลงสู่ทะเล
"""),
    ),
}
MARKS = ".,!?;:()\"'«»„“”—–\u060c\u061f\u0964\u3001\u3002\u300c\u300d-"
SPACED = [language for language, script in SCRIPTS.items() if script.spaces]
UNSPACED = [language for language, script in SCRIPTS.items() if not script.spaces]
# One character each, so that they become pieces of their own.
EMOJI = "👨 👩 👧 👍 🏽 🏿 ❤ \ufe0f \u20e3 \u200d 🇩 🇪 🏴 \U000e0067 \U000e007f"
LOOSE = "á é \u0301 か き \u3099 \u200b \u2060 \u00ad ’ · 人 口 1 2 १ २ a b c"


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory):
    """A tokenizer of each language, and of all of them with emoji as 'mixed'."""
    folder = tmp_path_factory.mktemp("scripts")

    def train(name, sentences, lower_case, strip_accents, extra):
        folded = "".join(normalise(s, lower_case, strip_accents) for s in sentences)
        size = len(set(normalised(folded)) - set('().-"')) + 13 + extra
        path = folder / f"{name}.model"
        train_vocabulary(sentences * 3, size, path, lower_case, strip_accents, 1.0)
        return Tokenizer(path, lower_case, strip_accents)

    made = {
        name: train(name, script.sentences, script.lower_case, script.strip_accents, 0)
        for name, script in SCRIPTS.items()
    }
    everything = [s for script in SCRIPTS.values() for s in script.sentences]
    made["mixed"] = train("mixed", [*everything, EMOJI, LOOSE], False, False, 250)
    return made


def normalised(text: str) -> str:
    return sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc").normalize(text)


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The pieces of a text, joined into words as masking joins them."""
    pieces, starts = tokenizer.tokenize(text), tokenizer.starts_word[tokenizer.encode(text)]
    assert len(pieces) == len(starts)
    groups: list[str] = []
    for piece, start in zip(pieces, starts, strict=True):
        if start or not groups:
            groups.append(piece)
        else:
            groups[-1] += piece
    return groups


def shown(groups: list[str]) -> list[str]:
    """Words without their word marks, and without those that are nothing else."""
    return [word for group in groups if (word := group.removeprefix(WORD_MARK))]


@pytest.mark.parametrize("language", SPACED)
@pytest.mark.parametrize("trained_on", ["itself", "mixed"])
def test_words_of_scripts_with_spaces_stand_between_spaces(vocabularies, language, trained_on):
    tokenizer = vocabularies[language if trained_on == "itself" else "mixed"]
    marks = re.escape(MARKS)
    in_parts = 0
    for sentence in SCRIPTS[language].sentences:
        text = normalised(normalise(sentence, tokenizer.lower_case, tokenizer.strip_accents))
        expected = re.findall(f"[{marks}]?[^{WORD_MARK}{marks}]+|[{marks}]", text)
        assert shown(words(tokenizer, sentence)) == expected
        in_parts += len(tokenizer.encode(sentence)) > len(expected)
    assert in_parts


@pytest.mark.parametrize("language", UNSPACED)
@pytest.mark.parametrize("trained_on", ["itself", "mixed"])
def test_pieces_of_scripts_without_spaces_are_words(vocabularies, language, trained_on):
    tokenizer = vocabularies[language if trained_on == "itself" else "mixed"]
    for sentence in SCRIPTS[language].sentences:
        pieces = tokenizer.tokenize(sentence)
        alone = [p for p in pieces if not unicodedata.category(p[0]).startswith("M")]
        assert len(words(tokenizer, sentence)) == len(alone)
        assert "".join(pieces) == normalised(sentence)


@pytest.mark.parametrize("language", [name for name in SCRIPTS if name != "en"])
def test_the_recipe_of_a_language_keeps_its_letters(vocabularies, language):
    tokenizer, script = vocabularies[language], SCRIPTS[language]
    for sentence in script.sentences:
        text = sentence.lower() if script.lower_case else sentence
        assert tokenizer.decode(tokenizer.encode(sentence)) == normalised(text).replace(
            WORD_MARK, " "
        ).removeprefix(" ")


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("Größe", "große"),
        ("мой ёж", "мои еж"),
        ("हिन्दी", "हिनदी"),
        ("ज़रा", "जरा"),
        ("がパ", "かハ"),
        ("น้ำ ที่", "นํา ที"),
        ("مُحَمَّد آمن", "محمد امن"),
        ("phở", "pho"),
        ("한국어", "한국어"),
        ("天气", "天气"),
    ],
)
def test_what_strip_accents_does_to_other_languages(text, stripped):
    assert normalised(normalise(text, True, True)) == normalised(stripped)
    assert normalised(normalise(text, True, False)) == normalised(text.lower())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("👍🏽 👍", ["👍🏽", "👍"]),
        ("❤️ 1️⃣ 2⃣", ["❤️", "1️⃣", "2⃣"]),
        # A piece does not know what stands before it: of a family or a flag each part is a word.
        ("👨‍👩‍👧", ["👨‍", "👩‍", "👧"]),
        ("🇩🇪", ["🇩", "🇪"]),
        ("🏴\U000e0067\U000e007f", ["🏴\U000e0067\U000e007f"]),
        ("12 १२", ["1", "2", "१", "२"]),
        ("人口1", ["人", "口", "1"]),
        ("ab人", ["ab", "人"]),
        ("か\u3099 き\u3099", ["が", "ぎ"]),
        ("a\u00adb ab’c a·b", ["a\u00adb", "ab’c", "a·b"]),
        ("می‌شود", ["می", "شود"]),  # to SentencePiece a ZWNJ is a space
    ],
)
def test_emoji_digits_and_mixed_text(vocabularies, text, expected):
    assert shown(words(vocabularies["mixed"], text)) == expected


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("\u200d👧", False),
        ("\ufe0f\u20e3", False),
        ("🏽", False),
        ("👍🏽", True),
        ("\u0640", False),
        ("\u064f", False),
        ("\u094d", False),
        ("\u0e49", False),
        ("\u0e31น", False),
        ("\u103b", False),
        ("\u0f71", False),
        ("\u3099", False),
        ("\u200c", False),
        ("\u00ad", False),
        ("’", False),
        ("’є", False),
        ("‘", True),
        ("々", True),
        ("ー", True),
        ("ｱ", True),
        ("ㄅ", True),
        ("ກ", True),
        ("ក", True),
        ("က", True),
        ("ཀ", True),
        ("国", True),
        ("한", False),
        ("ᄒ", False),
        ("\u0661", True),
        ("،", True),
        ("।", True),
        ("。", True),
        ("\u2581\u200d", True),
        ("a人", True),
    ],
)
def test_pieces_that_begin_a_word(piece, expected):
    assert starts_word(piece) is expected


_CHARACTERS = sorted({c for script in SCRIPTS.values() for s in script.sentences for c in s})
_BASES = st.sampled_from([c for c in _CHARACTERS if not unicodedata.category(c).startswith("M")])
_TAILS = st.text(
    st.sampled_from(
        [c for c in _CHARACTERS if unicodedata.category(c).startswith("M")]
        + ["\u0301", "\u3099", "\ufe0f", "\u20e3", "\u200d", "🏽"]
    ),
    max_size=3,
)


@given(st.lists(st.tuples(_BASES, _TAILS), max_size=20))
@settings(deadline=None, max_examples=200)
def test_words_join_back_to_the_text_and_part_no_mark_from_its_base(vocabularies, clusters):
    text = "".join(base + marks for base, marks in clusters)
    groups = words(vocabularies["mixed"], text)
    assert "".join(groups) == normalised(normalise(text, False, False))
    for group in groups[1:]:
        assert not unicodedata.category(group[0]).startswith("M")
        assert group[0] not in "\u200d🏽"


@pytest.mark.parametrize("language", [name for name in SCRIPTS if name != "th"])
def test_sentences_are_found(language):
    script = SCRIPTS[language]
    text = (" " if script.spaces else "").join(script.sentences)
    assert [s.strip() for s in split_sentences([text], True, language)] == script.sentences


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("hi", ["वह पढ़ता है॥", "फिर सो गया।"]),
        ("ur", ["یہ ایک کتاب ہے۔", "کیا آپ ٹھیک ہیں؟"]),
        ("my", ["ကျွန်တော်သွားသည်။", "သင်လာမလား။"]),
        ("am", ["ሰላም ነው።", "እንዴት ነህ?"]),
        ("hy", ["Ես գնացի տուն։", "Լավ եմ։"]),
        ("th", ["คุณไปไหน?", "ฉันไปตลาด!"]),
        ("en", ["Wow!!!", "😀 Great.", "Ok 👍🏽."]),
    ],
)
def test_sentence_ends_of_other_scripts(language, sentences):
    found = split_sentences([" ".join(sentences)], True, language)
    assert [s.strip() for s in found] == sentences


def test_sentences_given_one_per_line_are_left_alone():
    assert split_sentences(["A. B. C"], False, "en") == ["A. B. C"]


def test_white_space_that_sentencex_panics_at():
    text = "Take plan B\u00a0. Then go.\u3000Well\u2028 then."
    found = split_sentences([text], True, "en")
    assert "".join(found) == " ".join(text.split())
    assert found[1:] == ["Then go. ", "Well then."]


@given(
    st.sampled_from(sorted(SCRIPTS)),
    st.text(st.sampled_from([*_CHARACTERS, *"AB.!?。… \u00a0\u3000\u2028\t\n\r😀🏽\u200d\ufe0f"])),
)
@settings(deadline=None, max_examples=500)
def test_no_character_is_lost_in_splitting(language, text):
    assert "".join(split_sentences([text], True, language)) == " ".join(text.split())


def test_every_language_of_the_readme_is_known():
    for language in (*SCRIPTS, "zh-hant", "sv", "km", "de-at", "arz", "yue"):
        assert language_problem(language) is None


@pytest.mark.parametrize(
    ("language", "near"),
    [
        ("jp", "ja"),
        ("cn", "zh"),
        ("de-DE", "de"),
        ("pt_PT", "pt"),
        ("zh-Hans", "zh-hans"),
        ("EN", "en"),
        ("german", "de"),
        ("deu", "de"),
        ("zh_TW", "zh-tw"),
    ],
)
def test_a_wrong_language_is_told_with_the_right_one(language, near):
    problem = language_problem(language)
    assert problem == (
        f"{language!r} is no language that sentences can be split in; did you mean {near!r}?"
    )


@pytest.mark.parametrize("language", ["xx", "", "klingon"])
def test_a_language_like_no_other_is_told(language):
    assert "give an ISO 639 code" in language_problem(language)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("de", "Er kam am 3. Oktober."),
        ("ru", "Он жил на ул. Ленина."),
        ("ce", "Он жил на ул. Ленина."),
        ("mk", "Он жил на ул. Ленина."),
        ("ko", "가. 나."),
    ],
)
def test_the_lists_say_what_sentencex_does(language, text):
    own = sentencex.segment(language, text) != sentencex.segment("no such language", text)
    assert own == (language in _RULES)
    assert own != (language in _GENERAL)
