"""Sentences of paragraphs, and the languages that they can be in.

sentencex takes any string for a language, and one that it does not know for English without a
word; it has no list to ask. The codes below are those of sentencex 1.0.32. Never imports jax.
"""

import difflib

import sentencex

# Languages with abbreviations and sentence ends of their own, and those that borrow another's.
_RULES = frozenset(
    """
    am ar bg bn ca da de el en es fi fr gu hi hy it ja kk kn ml mr my nl pa pl pt ru sk ta te uk

    aae ab acm aeb aeb-arab als alt an anp apc arn arq ary arz ast atj av avk awa ay ba bar bci blk
    bm bpy bxr cbk-zam ce co cs csb cv de-at de-ch de-formal dsb dua egl eml es-formal ext fit fon
    frc frp frr fur gcf gcr gl gld gn gsw guc hke hrx hsb ht hyw inh jut kaa kab kbp kea kjh kjp
    kk-arab kk-cn kk-cyrl kk-kz kk-latn kk-tr kl koi krc krl ksh ksw kum kv lad lb lbe lez li lij
    lld lmo ln lua mag mai mdf mg mhr mnw mrj mwl myv nah nap nds nds-nl nl-informal oc olo os pcd
    pdc pdt pfl pms pnt pt-br qu qug rgn rm roa-tara rue rut sa sah scn sdc ses sg shy shy-latn sjd
    sli smn srn sro stq sty szl tcy tet tt tt-cyrl ty tyv udm vec vls vmf vmw vot wa wls wo xal
    """.split()  # noqa: SIM905
)
# Others: split where a mark of any script ends a sentence, with the abbreviations of English.
_GENERAL = frozenset(
    """
    aa ae af ak as az ban be be-tarask bh bi bo br bs ch ckb cr cu cy dv dz ee en-ca en-gb eo et eu
    fa ff fil fj fo fy ga gan gd gv ha hak he ho hr hu hz ia id ie ig ii ik io is iu jv ka kg ki kj
    km ko kr ks ku ku-latn kw ky la lg lo lt lu lv lzh mh mi mk mn ms mt na nan nb nd ne ng nn no nr
    nv ny oj om or pi pnb ps rn ro rw sc sd se sh si skr sl sm sn so sq sr sr-cyrl sr-latn ss st su
    sv sw tg th ti tk tl tn to tr ts tw ug ur uz ve vi vo wuu xh yi yo yue za zh zh-cn zh-hans
    zh-hant zh-hk zh-tw zu
    """.split()  # noqa: SIM905
)
# What is written for a code: countries, three letters, names.
_MEANT = {
    wrong: code
    for code, *names in map(
        str.split,
        (
            "ar ara arabic",
            "cs cz ces cze czech",
            "da dk dan danish",
            "de deu ger german deutsch",
            "el gr ell gre greek",
            "en eng us gb english",
            "es spa spanish",
            "fa fas per persian",
            "fr fra fre french",
            "he iw heb hebrew",
            "hi hin hindi",
            "id in ind indonesian",
            "it ita italian",
            "ja jp jpn japanese",
            "ko kor korean",
            "nl nld dut dutch",
            "pl pol polish",
            "pt por portuguese",
            "ru rus russian",
            "sv swe swedish",
            "th tha thai",
            "tr tur turkish",
            "uk ua ukr ukrainian",
            "vi vn vie vietnamese",
            "zh cn zho chi cmn chinese",
        ),
    )
    for wrong in names
}


def split_sentences(document: list[str], paragraphs: bool, language: str) -> list[str]:
    """The sentences of a document of a source; those of paragraphs as sentencex finds them.

    White space becomes single spaces first: sentencex panics at some that are not ASCII, as in
    "Plan B<no-break space>. Then".
    """
    if not paragraphs:
        return document
    return [s for text in document for s in sentencex.segment(language, " ".join(text.split()))]


def language_problem(language: str) -> str | None:
    """A sentence when `language` is no code that sentencex splits by, with the nearest one."""
    known = _RULES | _GENERAL
    if language in known:
        return None
    code = language.strip().lower().replace("_", "-")
    guesses = (code, _MEANT.get(code), code.partition("-")[0])
    guess = next((g for g in guesses if g in known), None)
    close = [guess] if guess else difflib.get_close_matches(code, sorted(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "give an ISO 639 code such as 'en' or 'zh'"
    return f"{language!r} is no language that sentences can be split in; {hint}"
