"""SQuAD's windows, answers and scores, equal to those of the released program and of the official
scripts."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.core import meta
from hypothesis import given, settings
from hypothesis import strategies as st

import albert
from albert.checkpoints.store import CheckpointError, Checkpoints
from albert.data.labelled import alignment
from albert.data.labelled.alignment import align
from albert.data.labelled.squad import Options, make_windows
from albert.data.sources.base import SourceError
from albert.data.tokenizer import WORD_MARK, Tokenizer, normalise
from albert.interop import formats
from albert.models.encoder import Albert
from albert.runtime.fields import ConfigError
from albert.tasks import squad
from albert.tasks.squad import Squad
from albert.train.config import check
from albert.train.evaluate import Options as EvaluationOptions
from albert.train.evaluate import evaluate_run
from albert.train.loop import train
from albert.train.phases import phases_of
from albert.train.resume_check import describe_run
from configs.finetune import squad as squad_config
from exports import assert_its_program_is_judged_alike
from faults import killed_at
from finetuning import (
    ENCODER,
    FIELDS,
    GOLDEN,
    check_devices,
    check_updates,
    compiled,
    encoder_variables,
    golden_run,
    tree_of,
)
from runs import ROOT, assert_bit_equal, final_params, records, run_together
from tools.squad import answer_together

OWN, PREDICTIONS = GOLDEN / "squad_own_text", GOLDEN / "squad_predictions"
FEATURES = json.loads((OWN / "features.json").read_text())
WINDOW = (
    "input_ids",
    "input_mask",
    "segment_ids",
    "p_mask",
    "tok_start_to_orig_index",
    "tok_end_to_orig_index",
    "token_is_max_context",
    "paragraph_len",
)
TARGETS = ("start_position", "end_position", "is_impossible")
KOREAN = "ownA032"  # that program leaves it out


@pytest.fixture(scope="module")
def released_tokenizer(shared):
    return Tokenizer(shared / "data" / "vocab" / "30k-clean.model")


def own_features(name, tokenizer, **more):
    """(questions, windows) of the made-up articles by the options of a golden file."""
    options = FEATURES[name]
    questions = squad.read(OWN / f"{name.split('_')[0]}.json")
    return questions, squad.features(
        questions,
        tokenizer,
        options["max_seq_length"],
        options["doc_stride"],
        options["max_query_length"],
        **more,
    )


def rows_of(question_ids, example_index, doc_span_index):
    keys = [question_ids[number] for number in example_index.tolist()]
    return {
        (key, int(place)): row
        for row, (key, place) in enumerate(zip(keys, doc_span_index, strict=True))
    }


@pytest.mark.parametrize("name", FEATURES)
def test_windows_are_the_released_programs(name, released_tokenizer, capsys):
    questions, ours = own_features(name, released_tokenizer, training=True)
    assert "leaves their questions out: 1." in capsys.readouterr().out
    mine = rows_of([q.id for q in questions], ours["example_index"], ours["doc_span_index"])
    with np.load(OWN / f"features_{name}.npz") as golden:
        theirs = rows_of(
            FEATURES[name]["qas_id"], golden["example_index"], golden["doc_span_index"]
        )
        assert {key for key, _ in mine.keys() - theirs.keys()} == {KOREAN}
        assert theirs.keys() <= mine.keys()
        ours_at = [mine[key] for key in theirs]
        golden_at = list(theirs.values())
        for field in WINDOW:
            expected = golden[field][golden_at]
            np.testing.assert_array_equal(ours[field][ours_at], expected, err_msg=field)
        for field in TARGETS:
            expected = golden[f"train/{field}"][golden_at]
            np.testing.assert_array_equal(ours[field][ours_at], expected, err_msg=field)


def test_a_text_that_cannot_be_aligned_is_kept(released_tokenizer):
    """Every answer of the Korean paragraph comes back from its pieces."""
    (question,) = [q for q in squad.read(OWN / "v1.json") if q.id == KOREAN]
    found = align(question.context, released_tokenizer)
    assert found.way == "surfaces"
    assert (np.diff(found.starts) >= 0).all()
    text, start = question.answers[0]
    first, last = found.pieces_of(start, start + len(text) - 1)
    covered = question.context[found.starts[first] : found.ends[last] + 1]
    assert text in covered
    assert len(covered) <= len(text) + 4


LETTERS = (
    "ab A.,1 \t\u00a0\u3000\u1e9e\ufb01\u00bd\u00b4\u0301\u200b\ufeff\u2581\u0130\uac00\u00e9\x1e"
)


@given(st.text(LETTERS, max_size=24))
@settings(deadline=None, max_examples=300)
def test_every_piece_lies_where_its_text_is(tokenizer, text):
    """Whatever SentencePiece drops in front, behind and between."""
    found = align(text, tokenizer, exactly=False)
    assert (found.starts >= 0).all()
    assert (found.ends < max(len(text), 1)).all()
    if found.way != "surfaces":
        return
    whole = normalise(text, True, True)
    ids, spans = tokenizer.spans(whole)
    assert ids == found.ids.tolist()
    for (begin, end), first, last in zip(spans, found.starts, found.ends, strict=True):
        assert whole[begin:end].strip() in normalise(text[first : last + 1], True, True)


@pytest.mark.parametrize("version", ["v1.1", "v2.0"])
def test_windows_of_real_files_are_the_released_programs(version, shared, released_tokenizer):
    folder = shared / "golden" / "finetuning" / "squad_real"
    golden = json.loads((folder / "whole_files.json").read_text())[f"smoke-eval-{version}.json"]
    questions = squad.read(shared / "data" / "squad" / f"smoke-eval-{version}.json")
    ours = squad.features(questions, released_tokenizer, training=True)
    assert len(questions) == golden["questions"]
    assert len(ours["input_ids"]) == golden["windows"]
    inside = ours["tok_start_to_orig_index"] >= 0
    found = {
        **{name: ours[name] for name in ("input_ids", "segment_ids", "input_mask", "p_mask")},
        **{name: ours[name] for name in TARGETS},
        "tok_start_to_orig_index": ours["tok_start_to_orig_index"][inside],
        "tok_end_to_orig_index": ours["tok_end_to_orig_index"][inside],
    }
    for name, values in found.items():
        assert zlib.crc32(values.astype("<i4").tobytes()) == golden["crc32"][name], name


def test_offsets_come_to_the_same_as_the_subsequence(shared, released_tokenizer):
    """Of real paragraphs, and of whatever stands between their words."""
    questions = squad.read(shared / "data" / "squad" / "smoke-eval-v1.1.json")
    texts = list(dict.fromkeys(question.context for question in questions))[::6]
    texts += ["  The river\t\tmoves \u00a0 slowly. ", "ﬁne ½ café, 1,250, ΑΣ.", "a\u2009b\u3000c"]
    compared = 0
    for text in texts:
        found = align(text, released_tokenizer)
        if found.way != "offsets":
            continue
        pieces = released_tokenizer.tokenize(text)
        spelled = "".join(pieces).replace(WORD_MARK, " ")
        partners = alignment._subsequence(text, spelled, released_tokenizer)
        if partners is None:  # a fifth of it is white space: the released program leaves it out
            continue
        again = alignment._aligned(
            found.ids, alignment._lengths(pieces), partners, len(text), "subsequence"
        )
        np.testing.assert_array_equal(found.starts, again.starts, err_msg=text)
        np.testing.assert_array_equal(found.ends, again.ends, err_msg=text)
        compared += 1
    assert compared > 40


def arrays_of(name):
    with np.load(PREDICTIONS / f"{name}.npz") as file:
        return dict(file)


def written(name):
    return json.loads((PREDICTIONS / f"{name}.json").read_text())


def golden_windows(name, tokenizer):
    """(questions, windows) without the one that the released program leaves out."""
    questions, windows = own_features(name, tokenizer)
    kept = [number for number, q in enumerate(questions) if q.id != KOREAN]
    rows = np.isin(windows["example_index"], kept)
    windows = {field: values[rows] for field, values in windows.items()}
    windows["example_index"] = np.searchsorted(kept, windows["example_index"])
    return [questions[number] for number in kept], windows


def assert_same_answers(ours, theirs):
    for key, expected in theirs.items():
        assert [a["text"] for a in ours[key]] == [a["text"] for a in expected], key
        for a, b in zip(ours[key], expected, strict=True):
            for name in ("probability", "start_log_prob", "end_log_prob"):
                assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), key


def logits_of(name):
    arrays = arrays_of(name)
    return arrays["start_logits"], arrays["end_logits"]


def test_answers_of_version_1(released_tokenizer):
    all_questions = squad.read(OWN / "v1.json")
    questions, windows = golden_windows("v1_L96", released_tokenizer)
    golden = written("predictions")["v1"]
    answers = squad.answers_v1(questions, windows, [logits_of("v1_logits")])
    assert_same_answers(answers, {q.id: written("v1_nbest")[q.id] for q in questions})
    theirs = written("v1_predictions")
    predictions = squad.texts(answers)
    assert predictions == {key: theirs[key] for key in predictions}
    # What it leaves out counts as answered wrongly there: here nobody answers it in this test.
    assert squad.score(all_questions, predictions) == pytest.approx(golden["scores"], abs=1e-9)
    few = squad.answers_v1(questions, windows, [logits_of("v1_logits")], 3, 4)
    theirs = written("v1_predictions_n3_len4")
    assert squad.texts(few) == {key: theirs[key] for key in predictions}
    scores = squad.score(all_questions, squad.texts(few))
    assert scores == pytest.approx(golden["scores_n3_len4"], abs=1e-9)


def test_answers_of_version_2_and_thresholds(released_tokenizer):
    all_questions = squad.read(OWN / "v2.json")
    questions, windows = golden_windows("v2_L96", released_tokenizer)
    answers, odds = squad.answers_v2(questions, windows, [arrays_of("v2_beams")])
    assert_same_answers(answers, {q.id: written("v2_nbest")[q.id] for q in questions})
    predictions = squad.texts(answers)
    theirs = written("v2_predictions_without_threshold")
    assert predictions == {key: theirs[key] for key in predictions}
    plain = written("v2_plain_null_odds")
    assert odds == pytest.approx({key: plain[key] for key in odds}, abs=1e-6)
    for case, golden in written("predictions")["v2"]["cases"].items():
        shift = golden["shift_of_cls_logits"]
        shifted = {key: value + shift for key, value in plain.items()}
        scored = golden.get("questions_scored")
        chosen = [q for q in all_questions if scored is None or q.id in scored]
        given = {q.id: theirs[q.id] for q in chosen}
        of_chosen = {q.id: shifted[q.id] for q in chosen}
        found = squad.score(chosen, given, of_chosen)
        for name, value in golden["best_thresholds_on_unthresholded"].items():
            assert found[name] == pytest.approx(value, abs=1e-6), (case, name)
        if scored is None:
            threshold = found["best_f1_thresh"]
            judged = squad.score(chosen, given, of_chosen, threshold)
            expected = golden["official_scores_with_rule_greater_than"]
            for name, value in expected.items():
                assert judged[name] == pytest.approx(value, abs=1e-9), (case, name)
            ours = squad.with_threshold(given, of_chosen, threshold)
            assert squad.score(chosen, ours)["f1"] == pytest.approx(expected["f1"], abs=1e-9)


def test_ensembles_of_two_checkpoints(released_tokenizer):
    questions, windows = golden_windows("v1_L96", released_tokenizer)
    logits = [logits_of("v1_logits"), logits_of("v1_logits_second")]
    predictions = squad.texts(squad.answers_v1(questions, windows, logits))
    theirs = written("v1_ensemble_predictions")
    assert predictions == {key: theirs[key] for key in predictions}
    scores = squad.score(squad.read(OWN / "v1.json"), predictions)
    assert scores == pytest.approx(written("ensemble")["v1"], abs=1e-9)

    questions, windows = golden_windows("v2_L96", released_tokenizer)
    beams = [arrays_of("v2_beams"), arrays_of("v2_beams_second")]
    answers, odds = squad.answers_v2(questions, windows, beams)
    theirs = written("v2_ensemble_predictions_without_threshold")
    assert squad.texts(answers) == {q.id: theirs[q.id] for q in questions}
    golden_odds = written("v2_ensemble_null_odds")
    assert odds == pytest.approx({key: golden_odds[key] for key in odds}, abs=1e-6)


def test_scores_of_published_predictions(shared):
    golden = json.loads((GOLDEN / "metrics" / "squad.json").read_text())["results"]
    assert len(golden) == 4
    for name, expected in golden.items():
        folder = shared / "data" / "squad"
        questions = squad.read(folder / f"dev-v{name.split('_')[0][1:]}.rebuilt.json")
        predictions = json.loads((folder / "predictions" / name).read_text())
        found = squad.score(questions, predictions)
        assert found == pytest.approx({key: expected[key] for key in found}, abs=1e-8)
        if "exact_match" in expected:
            continue
        odds = {}
        for key, text in predictions.items():
            digest = hashlib.md5(f"golden{key}".encode()).hexdigest()[:8]
            odds[key] = int(digest, 16) / 2**32 * (0.5 if text else 1)
        found = squad.score(questions, predictions, odds)
        for field in ("best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"):
            assert found[field] == pytest.approx(expected[field], abs=1e-8), field
        for threshold in (0.3, 0.6):
            found = squad.score(questions, predictions, odds, threshold)
            for field, value in expected[f"at_{threshold}"].items():
                assert found[field] == pytest.approx(value, abs=1e-8), field


def span_task(version):
    """The pure functions of the task."""
    task = squad.Squad.__new__(squad.Squad)
    head = squad._head(version)
    fields = {"dropout": 0.0} if version == "2.0" else {}
    task.model, task._has_none = Albert(ENCODER, (head,), {head: fields}), version == "2.0"
    return task


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_three_steps_are_the_released_programs(version):
    task = span_task(version)
    run, arrays = golden_run("squad", f"v{version[0]}")
    heads = {head: dict(task.model.head_fields[head]) for head in task.model.heads}
    head = {n.removeprefix("head/"): v for n, v in arrays.items() if n.startswith("head/")}
    params = tree_of(encoder_variables() | head, heads)
    batch = {ours: arrays[f"in/{theirs}"] for theirs, ours in FIELDS.items()}
    for ours, theirs in (("start_position", "start_positions"), ("end_position", "end_positions")):
        batch[ours] = arrays[f"in/{theirs}"]
    batch |= {"is_impossible": arrays["in/is_impossible"], "weights": np.ones(6, np.float32)}

    found = compiled(lambda p: task._outputs(p, batch))(params)
    if version == "1.1":
        for name in ("start", "end"):
            golden = arrays[f"out/{name}_log_prob"]  # they are logits
            np.testing.assert_allclose(found[name], golden, atol=2e-5, err_msg=name)
    else:
        for ours, theirs in (("start", "start_top"), ("end", "end_top")):
            golden = arrays[f"out/{theirs}_index"]
            np.testing.assert_array_equal(found[f"{ours}_index"], golden)
            golden = arrays[f"out/{theirs}_log_probs"]
            np.testing.assert_allclose(found[ours], golden, atol=2e-5, rtol=2e-5)
        np.testing.assert_allclose(found["none"], arrays["out/cls_logits"], atol=2e-5)
        given = compiled(lambda p: task._outputs(p, batch, None, batch["start_position"]))(params)
        masked = arrays["in/p_mask"] > 0
        for name in ("start", "end"):
            golden = arrays[f"out/{name}_log_probs"]
            np.testing.assert_allclose(given[name][~masked], golden[~masked], atol=2e-5, rtol=2e-5)
            assert (given[name][masked] < -1e29).all()

    def loss_of(params):
        sums, denominators = task.sums(params, batch, None), task.denominators(batch)
        return task.loss(sums, denominators)

    check_updates(loss_of, params, run, arrays, heads, task.unused(None))


def test_words_without_meaning_and_answers_without_words():
    assert squad.normalised("The  U.S.A., an   Apple!") == "usa apple"
    assert squad.f1("the", "a", both_empty=1.0) == 1.0
    assert squad.f1("the", "a", both_empty=0.0) == 0.0
    assert squad.f1("a river", "", both_empty=1.0) == 0.0
    assert squad.f1("old stone bridge", "stone bridge", both_empty=0.0) == pytest.approx(0.8)


def dataset(**changes):
    entry = {"id": "q1", "question": "Who?", "answers": [{"text": "Tom", "answer_start": 0}]}
    return {"data": [{"paragraphs": [{"context": "Tom ran.", "qas": [entry | changes]}]}]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON in UTF-8"),
        (b"\xff\xfe", "is not JSON in UTF-8"),
        ('{"data": 3}', "is not of SQuAD's form"),
        ('{"version": "1.1"}', "there is no 'data'"),
        ('{"data": []}', "holds no questions"),
        (dataset(question=None), "question q1: question is None, not a text"),
        (dataset(answers=[{"text": "Tom"}]), "there is no 'answer_start'"),
        (dataset(answers=[{"text": "Tom", "answer_start": 7}]), "question q1: answer_start is 7"),
        (dataset(answers=[{"text": "Ann", "answer_start": 0}]), "'Ann' does not occur in its"),
        (dataset(question="Who \ud83d?"), "question q1: question has half a surrogate pair at"),
        ("[" * 100_000, "is not JSON in UTF-8"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path, content, words):
    path = tmp_path / "x.json"
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SourceError) as told:
        squad.read(path)
    assert words in str(told.value)
    assert str(path) in str(told.value)


def test_questions_that_cannot_be_learned_are_named(tokenizer):
    question = squad.Question("q1", "who", "the river", (), False)
    with pytest.raises(SourceError, match="question q1: there is no answer to learn"):
        squad.features([question], tokenizer, training=True)
    with pytest.raises(SourceError, match="question q1: its paragraph has no text"):
        squad.features([question._replace(context=" ")], tokenizer)
    with pytest.raises(ValueError, match="leaves no room behind a question of 64"):
        squad.features([question], tokenizer, seq_length=64)
    found = squad.features([question], tokenizer)
    assert found["input_ids"].shape == (1, 384)


def write_dataset(path, version, count=40, seed=0):
    """Made-up paragraphs and questions; of 2.0 every third has no answer."""
    rng = np.random.default_rng(seed)
    paragraphs = []
    for number in range(count):
        words = rng.choice(["river", "letter", "garden", "wheel", "captain"], 24).tolist()
        context = f"The {' '.join(words)}. A teacher carries it."
        answer = words[int(rng.integers(24))]
        entry = {"id": f"q{number}", "question": f"What {answer} is it?"}
        entry["answers"] = [{"text": answer, "answer_start": context.index(answer)}]
        if version == "2.0":
            entry["is_impossible"] = number % 3 == 0
            entry["answers"] = [] if entry["is_impossible"] else entry["answers"]
        paragraphs.append({"context": context, "qas": [entry]})
    path.write_text(json.dumps({"version": version, "data": [{"paragraphs": paragraphs}]}))
    return path


def test_the_first_questions_are_judged_where_rows_are_few(configured, tokenizer):
    config = configured("1.1")
    config.data.doc_stride, config.data.max_question, config.data.seq_length = 4, 16, 32
    whole = Squad.prepare(
        check(config), Path("nowhere"), None, formats.read(Path(config.init_from))
    )
    counts = np.bincount(whole._dev_windows.example)
    assert len(counts) == 12
    assert counts.min() > 1
    config.train.eval_rows = int(counts[:5].sum()) + 1
    task = Squad.prepare(check(config), Path("nowhere"), None, formats.read(Path(config.init_from)))
    (dev,) = task.evaluations
    assert dev.num_rows == counts[:5].sum()
    assert "dev: judged by the first 5 of 12 questions (train.eval_rows)." in task.opening
    assert task.description()["held_out"] == whole.description()["held_out"]


def test_a_question_without_an_answer_judges_nothing(configured):
    config = configured("1.1")
    content = json.loads(Path(config.data.dev).read_text())
    content["data"][0]["paragraphs"][3]["qas"][0]["answers"] = []
    Path(config.data.dev).write_text(json.dumps(content))
    with pytest.raises(SourceError, match=r"dev\.json, question q3: there is no answer to judge"):
        Squad.prepare(check(config), Path("nowhere"), None, formats.read(Path(config.init_from)))


@pytest.fixture
def configured(run, tmp_path):
    """A function from a version to a config that fine-tunes the tiny run on made-up questions."""

    def make(version):
        config = squad_config.get_config(f"{version},tiny")
        config.init_from = str(run)
        config.data.train = str(write_dataset(tmp_path / "train.json", version))
        config.data.dev = str(write_dataset(tmp_path / "dev.json", version, 12, seed=1))
        config.data.folder = str(tmp_path / "prepared")
        config.data.workers = 0
        config.train.num_steps, config.optimizer.warmup_steps = 10, 1
        config.train.eval_every = config.train.checkpoint_every = 5
        config.optimizer.learning_rate = 1e-3
        return config

    return make


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_a_run_is_trained_killed_evaluated_loaded_and_asked(
    version, configured, run, tmp_path, capsys
):
    config = configured(version)
    whole = train(check(config), tmp_path / "whole")
    assert "training questions in" in capsys.readouterr().out
    assert_its_program_is_judged_alike(tmp_path / "whole", tmp_path / "onnx")
    with pytest.raises(MemoryError):
        train(check(config), tmp_path / "parts", watch=killed_at("log", 8))
    train(check(config), tmp_path / "parts")
    assert_bit_equal(final_params(tmp_path / "parts", 10), final_params(tmp_path / "whole", 10))
    # What no gradient reaches stays as it was.
    start, end = (formats.read(path).params for path in (run, tmp_path / "whole"))
    np.testing.assert_array_equal(start["pooler/kernel"], end["pooler/kernel"])
    assert not np.array_equal(
        start["embeddings/word_embeddings"], end["embeddings/word_embeddings"]
    )

    evaluate_run(tmp_path / "whole", "latest", EvaluationOptions())
    folder = tmp_path / "whole" / "predictions_10"
    predictions = json.loads((folder / "predictions.json").read_text())
    questions = squad.read(config.data.dev)
    found = squad.score(questions, predictions)
    figures = whole.figures["dev"]
    first = "exact" if version == "2.0" else "exact_match"
    assert found["f1"] / 100 == pytest.approx(figures["f1"])
    assert found[first] / 100 == pytest.approx(figures[first])

    model = albert.load(tmp_path / "whole" / "checkpoints" / "10")
    if version == "2.0":
        assert model.heads["conditional_span"]["threshold"] == figures["threshold"]
    for question in questions:
        answer = model.answer(question.question, question.context, 30, 24, 12)
        if answer.text is None:
            assert predictions[question.id] == ""
        else:
            assert answer.text == question.context[answer.start : answer.end]
            assert answer.text == predictions[question.id]
    if version == "1.1":
        model.save(tmp_path / "hf", "huggingface")
        again = albert.load(tmp_path / "hf")
        assert again.answer("Who?", "A letter.") == model.answer("Who?", "A letter.")
    else:
        with pytest.raises(CheckpointError, match=r"no head for SQuAD 2\.0"):
            model.save(tmp_path / "hf", "huggingface")
    model.save(tmp_path / "saved")
    again = albert.load(tmp_path / "saved")
    assert again.answer("Who?", "A letter.") == model.answer("Who?", "A letter.")


@pytest.mark.slow
def test_any_devices_and_processes_fine_tune_and_answer_alike(configured, tmp_path):
    config = configured("2.0")
    names = "train", "dev", "folder", "workers"
    changes = {f"data.{name}": config.data[name] for name in names} | {
        "init_from": config.init_from,
        "optimizer.learning_rate": 1e-3,
    }
    alone, *others = check_devices("configs/finetune/squad.py:2.0,tiny", changes, tmp_path)
    for workdir in others:
        for a, b in zip(records(workdir, "dev"), records(alone, "dev"), strict=True):
            assert a["f1"] == pytest.approx(b["f1"], abs=0.1)
            assert a["threshold"] == pytest.approx(b["threshold"], abs=0.05)
    # One checkpoint, by one process and by two: the same answers to the letter.
    written = []
    for processes in (1, 2):
        workdir = tmp_path / f"by-{processes}"
        shutil.copytree(alone, workdir)
        run_together([sys.executable, "eval.py", f"--workdir={workdir}"], processes)
        (folder,) = workdir.glob("predictions_*")
        written.append({path.name: path.read_text() for path in folder.iterdir()})
    assert written[0].keys() == {"predictions.json", "nbest.json", "null_odds.json"}
    assert written[1] == written[0]


@pytest.fixture
def squad_run(tiny, tokenizer, tmp_path):
    """A function from a name, a config and a seed to a run as training leaves it, of random
    weights. Its first checkpoint is its best. Without a seed there are no weights."""

    def make(name, values, seed=None):
        config = dataclasses.replace(check(values), model=check(tiny).model)
        task = squad.Squad.to_evaluate(config, tokenizer, None)
        draw = jax.jit(lambda key: meta.unbox(task.init(task.model, key)))
        folder = tmp_path / name
        with contextlib.closing(Checkpoints(folder / "checkpoints", 1, 1, True)) as checkpoints:
            for step, loss in ((1, -0.5), (2, -0.25)):
                params = {"none": np.zeros(1, np.float32)}
                if seed is not None:
                    params = draw(jax.random.key(10 * seed + step))
                checkpoints.save(step, params, None, describe_run(phases_of(config)[0], task), loss)
            checkpoints.wait()
        tokenizer.save(folder / "tokenizer.model")
        return folder, task

    return make


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_runs_answer_together(version, configured, squad_run, tmp_path, capsys):
    """By the mean of what the model of each gives of every window."""
    config = configured(version)
    first, task = squad_run("first", config, seed=0)
    second, _ = squad_run("second", config, seed=1)
    answer_together([first, second], None, tmp_path / "both")
    printed = capsys.readouterr().out
    assert f"dev by {first} at step 1" in printed
    assert "dev by all 2 together" in printed

    questions, data = squad.read(config.data.dev), config.data
    windows = squad.features(
        questions, task.tokenizer, data.seq_length, data.doc_stride, data.max_question
    )
    rows = {ours: windows[theirs] for theirs, ours in FIELDS.items()}
    outputs_of = jax.jit(lambda params: task._outputs(params, rows))
    outputs = [jax.device_get(outputs_of(final_params(path, 1))) for path in (first, second)]
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "both").iterdir()}
    if version == "1.1":
        logits = [(each["start"], each["end"]) for each in outputs]
        answers = squad.answers_v1(questions, windows, logits)
        predictions = squad.texts(answers)
    else:
        names = {
            "start_top_index": "start_index",
            "start_top_log_probs": "start",
            "end_top_index": "end_index",
            "end_top_log_probs": "end",
            "cls_logits": "none",
        }
        beams = [{theirs: each[ours] for theirs, ours in names.items()} for each in outputs]
        answers, odds = squad.answers_v2(questions, windows, beams)
        assert found["null_odds"] == pytest.approx(odds, abs=1e-5)
        threshold = found["scores"]["ensemble"]["threshold"]
        predictions = squad.with_threshold(squad.texts(answers), odds, threshold)
    assert_same_answers(found["nbest"], answers)
    assert found["predictions"] == predictions
    f1 = found["scores"]["ensemble"]["f1"]
    assert f1 == pytest.approx(squad.score(questions, predictions)["f1"] / 100)

    # Of one run twice, what eval.py says of it.
    answer_together([second, second], config.data.dev, tmp_path / "twice")
    evaluate_run(second, None, EvaluationOptions())
    drawn = {"1.1": {"dev_reliability"}, "2.0": {"dev_thresholds", "dev_null_odds"}}[version]
    assert {path.stem for path in (second / "pictures_1").iterdir()} == drawn
    for path in (second / "predictions_1").iterdir():
        assert (tmp_path / "twice" / path.name).read_text() == path.read_text()
    twice = json.loads((tmp_path / "twice" / "scores.json").read_text())
    alone = json.loads((second / "eval_1.json").read_text())
    assert twice["runs"] == [{"run": str(second), "step": 1, **twice["ensemble"]}] * 2
    assert twice["ensemble"].items() <= alone.items()
    assert twice["runs"][0] == found["scores"]["runs"][1]


def test_runs_that_do_not_belong_together_are_told(configured, squad_run, run, tmp_path):
    config = configured("2.0")
    one, _ = squad_run("one", config)
    config.data.dev = config.data.train
    asked, _ = squad_run("asked", config)
    config.data.doc_stride, config.data.seq_length = 16, 48
    other, _ = squad_run("other", config)
    with pytest.raises(ConfigError) as told:
        answer_together([one, asked, other], None, tmp_path / "out")
    lines = str(told.value)
    assert f"data.doc_stride is 16 in {other} and 24 in {one}" in lines
    assert f"data.seq_length is 48 in {other} and 64 in {one}" in lines
    with pytest.raises(ConfigError, match=r"data\.dev of .*asked, .*has other questions .*--dev"):
        answer_together([one, asked], None, tmp_path / "out")
    with pytest.raises(ConfigError, match="is not a run of the task squad"):
        answer_together([one, run], None, tmp_path / "out")
    (asked / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"SHA-256 of tokenizer\.model is e3b0.* in .*asked and"):
        answer_together([one, asked], None, tmp_path / "out")
    command = [sys.executable, "tools/squad.py", f"--runs={tmp_path}/o*", "--output=out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"data.doc_stride is 16 in {other} and 24 in {one}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_answered_is_told(run, configured, tmp_path):
    with pytest.raises(ValueError, match="was not fine-tuned to answer questions"):
        albert.load(run).answer("Who?", "A letter.")
    config = configured("2.0")
    config.data.version = "1.1"
    config.data.dev, config.data.max_question = "", 100
    with pytest.raises(ConfigError) as told:
        check(config)
    for words in (
        "data.dev is empty; name SQuAD's dev-v1.1.json",
        "data.dropout is 0.1; the head of version 1.1 has none",
        "there is no room for a paragraph",
    ):
        assert words in str(told.value)
    with pytest.raises(SourceError, match=r"is of version 2\.0, whose questions may have no"):
        squad._read(config.data.train, "1.1")
    with pytest.raises(ValueError, match=r"it is 1\.1 or 2\.0"):
        squad_config.get_config("3.0")


def test_many_questions_are_made_into_windows_by_several_processes(
    tokenizer, tmp_path, monkeypatch
):
    questions = squad.read(write_dataset(tmp_path / "x.json", "2.0", 50))
    options = Options(32, 8, 6, True)
    alone = make_windows(questions, tokenizer, options)
    monkeypatch.setattr("albert.data.labelled.squad._CHUNK", 11)
    together = make_windows(questions, tokenizer, options, workers=2)
    for name, value in vars(alone).items():
        np.testing.assert_array_equal(getattr(together, name), value, err_msg=name)
