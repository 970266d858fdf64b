import json

import pytest
from PIL import Image
from synthetic_runs import completion_of

from vr1lib.analysis.statistics import accuracy_interval
from vr1lib.benchmarks import generation, mathvision, protocol, shapeworld, wemath
from vr1lib.data.shapeworld import make_problems
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import load_vlm
from vr1lib.records import ColdRow, Completion, Problem, RequestError, write_jsonl

GREEDY = protocol.Sampling(temperature=0.0, top_p=1.0, max_completion_tokens=6, seed=0)


@pytest.fixture
def problems(tmp_path):
    return make_problems(tmp_path, "test", 12)


@pytest.fixture
def test_file(tmp_path, problems):
    write_jsonl(tmp_path / "test.jsonl", problems)
    return tmp_path / "test.jsonl"


def problem_like(problem: Problem, **changes) -> Problem:
    return problem.model_copy(update=changes)


def cold_row(problem: Problem) -> ColdRow:
    texts = dict.fromkeys(("pseudo_cot", "description", "reasoning", "response"), "text")
    return ColdRow(**problem.model_dump(), **texts, calls=[])


def test_every_row_is_scored_or_left_out_with_a_reason(tmp_path, test_file, problems):
    write_jsonl(tmp_path / "rl.jsonl", problems[:3])
    write_jsonl(tmp_path / "cold.jsonl", [cold_row(problems[3])])
    trained_on = protocol.TrainedOn([tmp_path / "rl.jsonl", tmp_path / "cold.jsonl"])
    selection = protocol.select("shapeworld", data=test_file, trained_on=trained_on, limit=5)
    assert protocol.reject_counts(selection.rejects) == {
        "trained on: in rl.jsonl": 3,
        "above limit = 5": 3,
        "trained on: in cold.jsonl": 1,
    }
    assert len(selection.problems) == 5
    assert {problem.meta["benchmark"] for problem in selection.problems} == {"shapeworld"}


def test_limit_takes_problems_evenly_over_the_file(test_file, problems):
    selection = protocol.select("shapeworld", data=test_file, limit=4)
    assert [problem.id for problem in selection.problems] == [problems[index].id for index in (0, 3, 6, 9)]


def test_a_renamed_copy_of_a_trained_row_is_found_by_its_content(tmp_path, test_file, problems):
    copy = problem_like(problems[0], id="another-name", question=f" {problems[0].question}\n", meta={})
    write_jsonl(tmp_path / "rl.jsonl", [copy])
    trained_on = protocol.TrainedOn([tmp_path / "rl.jsonl"])
    assert trained_on.reason(problems[0]) == "trained on: same question and pictures in rl.jsonl"
    assert trained_on.reason(problems[1]) is None


def test_another_step_of_a_trained_problem_is_left_out(tmp_path, problems):
    first, second = (
        problem_like(problem, id=f"wemath-8-2steps_{step}", meta={"group": "wemath-8"})
        for step, problem in enumerate(problems[:2], start=1)
    )
    write_jsonl(tmp_path / "rl.jsonl", [first])
    assert "another step" in protocol.TrainedOn([tmp_path / "rl.jsonl"]).reason(second)


def test_nothing_left_to_score_is_an_error_that_says_why(test_file):
    with pytest.raises(RequestError, match=r"shapeworld: no problem is left \(trained on: in test.jsonl: 12\)"):
        protocol.select("shapeworld", data=test_file, trained_on=protocol.TrainedOn([test_file]))


def test_wrong_requests_are_named(tmp_path):
    with pytest.raises(RequestError, match="'chess' is unknown; known are mathvista, mathverse"):
        protocol.select("chess")
    with pytest.raises(RequestError, match="needs 'data'"):
        protocol.select("shapeworld")
    with pytest.raises(RequestError, match="ends in .jsonl"):
        protocol.select("shapeworld", data=tmp_path)
    with pytest.raises(RequestError, match="needs 'data_root'"):
        protocol.select("wemath")
    with pytest.raises(RequestError, match="exclude: .*no.jsonl: no such file"):
        protocol.TrainedOn([tmp_path / "no.jsonl"])


def test_excluded_file_with_a_broken_line_names_the_line(tmp_path):
    (tmp_path / "rl.jsonl").write_text('{"id": "1"\n')
    with pytest.raises(RequestError, match="rl.jsonl, line 1"):
        protocol.TrainedOn([tmp_path / "rl.jsonl"])


def test_score_counts_by_group(problems):
    for problem in problems:
        problem.meta["benchmark"] = "shapeworld"
    graded = [completion_of(problem, right=index < 9, passes=2) for index, problem in enumerate(problems)]
    graded[11] = completion_of(problems[11], right=False, passes=4, finish="length")
    selection = protocol.Selection("shapeworld", problems, [])
    row = protocol.score(
        selection, graded, accuracy_interval, sampling=GREEDY, image_spec="image", prompt_spec="prompt"
    )
    assert (row["n"], row["accuracy"]) == (12, 0.75)
    assert 0.4 < row["low"] < 0.75 < row["high"] <= 1
    assert row["mean_length_tokens"] == (11 * 30 + 60) / 12
    assert row["truncated"] == pytest.approx(1 / 12) and row["well_formed"] == pytest.approx(11 / 12)
    assert sum(cell["n"] for cell in row["by"]["family"].values()) == 12
    assert set(row["by"]["grid"]) == {"2×2", "3×3"}
    assert row["sampling"]["max_completion_tokens"] == 6 and row["image_spec"] == "image"
    assert row["report"]["overall"]["correct"] == 9 and row["report"]["overall"]["low"] == row["low"]
    assert "pass_at_k" not in row


def score_row(problems, graded, **more):
    selection = protocol.Selection("shapeworld", problems, [])
    about = {"sampling": GREEDY, "image_spec": "image", "prompt_spec": "prompt", **more}
    return protocol.score(selection, graded, accuracy_interval, **about)


def test_several_samples_count_by_problem(problems):
    """Three problems: all right, one of four right, none right."""
    rights = [(True,) * 4, (False, True, False, False), (False,) * 4]
    graded = [
        completion_of(problem, right=right, passes=1).model_copy(update={"sample": sample})
        for problem, verdicts in zip(problems, rights)
        for sample, right in enumerate(verdicts)
    ]
    for problem in problems:
        problem.meta["benchmark"] = "shapeworld"
    row = score_row(problems[:3], graded)
    assert (row["n"], row["samples"], row["accuracy"]) == (3, 4, pytest.approx(1.25 / 3))
    assert row["pass_at_k"] == {"1": pytest.approx(1.25 / 3), "2": pytest.approx(1.5 / 3), "4": pytest.approx(2 / 3)}
    assert row["majority_at_k"] == {"1": pytest.approx(1 / 3), "2": pytest.approx(1 / 3), "4": pytest.approx(1 / 3)}
    assert row["report"]["overall"]["correct"] == 1, "the report counts first samples"
    assert sum(cell["n"] for cell in row["by"]["family"].values()) == 3


def test_what_a_control_left_as_it_was_is_counted(problems):
    for problem, done in zip(problems, ({"not_applied": "no choices"}, {"not_applied": "no choices"}, {"order": "BA"})):
        problem.meta["control"] = {"name": "shuffled_options", **done}
    graded = [completion_of(problem, right=True, passes=1) for problem in problems]
    row = score_row(problems, graded, control="shuffled_options")
    assert (row["control"], row["control_not_applied"], row["n"]) == ("shuffled_options", {"no choices": 2}, 12)
    assert "control_not_applied" not in score_row(problems, graded)


def test_verdicts_of_another_protocol_replace_the_rewards(problems):
    graded = [completion_of(problem, right=False, passes=1) for problem in problems[:4]]
    row = score_row(problems[:4], graded, protocol="authors", verdicts=[True, True, True, False], tries=5)
    assert (row["protocol"], row["accuracy"], row["tries"], row["reward"]) == ("authors", 0.75, 5, "hard")
    assert row["report"]["overall"]["correct"] == 3


def test_shards_are_disjoint_and_together_the_whole(problems):
    parts = []
    for number in (1, 2, 3):
        selection = protocol.Selection("shapeworld", list(problems[:11]), [])
        protocol.keep_shard(selection, f"{number}/3")
        assert protocol.reject_counts(selection.rejects) == {f"not in shard {number}/3": 11 - len(selection.problems)}
        parts.append([problem.id for problem in selection.problems])
    assert parts[1] == [problem.id for problem in problems[1:11:3]]
    assert sorted(sum(parts, [])) == sorted(problem.id for problem in problems[:11])


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "13/13"])
def test_no_such_shard(problems, shard):
    with pytest.raises(RequestError, match=r"i from 1 to n"):
        protocol.keep_shard(protocol.Selection("shapeworld", problems, []), shard)


def test_the_benchmarks_own_tolerance_decides_the_strict_verdict(problems):
    chart = problem_like(problems[0], answer="100", choices=None, meta={"benchmark": "chartqa", "type": "human"})
    completion = completion_of(problems[0], right=False, passes=1).model_dump(include=Completion.model_fields.keys())
    near, far = (
        Completion(**{**completion, "text": f"<think> a bar </think><answer> {answer} </answer>"})
        for answer in ("104", "106")
    )
    verdicts = [protocol.grade_strictly(each, chart) for each in (near, far)]
    assert [(row.reward, row.answer_ok, row.reason) for row in verdicts] == [
        (1.0, True, "chartqa's rule: equal"),
        (0.0, False, "chartqa's rule: not equal"),
    ]
    exact = problem_like(chart, meta={"benchmark": "shapeworld"})
    assert protocol.grade_strictly(near, exact).reward == 0


def test_what_comes_near_a_training_row_is_no_part_of_the_clean_score(tmp_path, problems):
    write_jsonl(tmp_path / "rl.jsonl", [problem_like(problems[0], id="another-name"), problems[3]])
    whole = protocol.Selection("shapeworld", list(problems), [])
    part = protocol.clean_part(whole, [tmp_path / "rl.jsonl"])
    gone = {reject.id for reject in part.rejects}
    assert {problems[0].id, problems[3].id} <= gone and len(part.problems) == len(problems) - len(gone)
    assert set(protocol.reject_counts(part.rejects)) == {"near a training row"}
    assert len(whole.problems) == len(problems) and not whole.rejects


def test_a_completion_of_another_problem_is_never_scored(problems):
    graded = [completion_of(problem, right=True, passes=1) for problem in problems[::-1]]
    selection = protocol.Selection("shapeworld", problems, [])
    with pytest.raises(AssertionError, match="met problem"):
        protocol.score(selection, graded, accuracy_interval, sampling=GREEDY, image_spec="", prompt_spec="")


def test_real_rows_load_with_their_groups(tmp_path):
    for name in ("wemath", "mathvision"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 30)).save(tmp_path / name / "1.png")
    row = {"ID": "2steps_8", "key": "2steps_1", "question": "How far?", "option": "A. 1;B. 2", "answer": "B"}
    row |= {"image_path": "1.png", "knowledge concept": "Circles"}
    (tmp_path / "wemath/testmini.json").write_text(json.dumps([row, {"ID": "2steps_9"}]))
    row = {"id": "7", "question": "How many?\n<image1>", "options": [], "answer": "60", "level": 2, "subject": "logic"}
    (tmp_path / "mathvision/test.jsonl").write_text(json.dumps({**row, "image": "1.png"}) + "\n")

    loaded = wemath.load(data_root=tmp_path)
    assert len(loaded.problems) == 1 and len(loaded.rejects) == 1
    assert wemath.groups(loaded.problems[0]) == {"task": ["2steps_1"], "skill": ["Circles"]}
    (problem,) = mathvision.load(data_root=tmp_path).problems
    assert mathvision.groups(problem) == {"level": ["2"], "skill": ["logic"], "answer": ["free answer"]}


def test_drawn_problems_are_of_the_test_split(tmp_path):
    path = shapeworld.draw(tmp_path, 5, seed=3)
    loaded = shapeworld.load(path)
    assert [problem.split for problem in loaded.problems] == ["test"] * 5


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_vlm(folder, 0, ["How many red?"] * 50, hidden_size=64, layers=2)
    return load_vlm(folder)


def test_pictures_that_cannot_be_shown_are_counted_not_fatal(tmp_path, problems, vlm):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    Image.new("RGB", (1, 400)).save(tmp_path / "strip.png")
    selection = protocol.Selection(
        "shapeworld",
        [
            problems[0],
            problem_like(problems[1], images=[str(broken)]),
            problem_like(problems[2], images=[str(tmp_path / "strip.png")]),
            problem_like(problems[3], question="<image> and <image>"),
        ],
        [],
    )
    generation.leave_out_unreadable(selection, vlm)
    assert [problem.id for problem in selection.problems] == [problems[0].id]
    assert protocol.reject_counts(selection.rejects) == {"cannot be shown": 3}
    assert "broken.png" in selection.rejects[0].detail
