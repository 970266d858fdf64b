import json

import pytest
import torch
from PIL import Image
from synthetic_runs import completion_of

from vr1lib.analysis.statistics import accuracy_interval
from vr1lib.benchmarks import mathvision, protocol, shapeworld, wemath
from vr1lib.data.shapeworld import make_problems
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import load_vlm
from vr1lib.records import ColdRow, Problem, RequestError, write_jsonl

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
    with pytest.raises(RequestError, match="'chess' is unknown; known are shapeworld, wemath, mathvision"):
        protocol.select("chess")
    with pytest.raises(RequestError, match="needs 'data'"):
        protocol.select("shapeworld")
    with pytest.raises(RequestError, match="ends in .jsonl"):
        protocol.select("shapeworld", data=tmp_path)
    with pytest.raises(RequestError, match="needs 'data_root'"):
        protocol.select("wemath")
    with pytest.raises(RequestError, match="no.jsonl: cannot be read"):
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
    protocol.leave_out_unreadable(selection, vlm)
    assert [problem.id for problem in selection.problems] == [problems[0].id]
    assert protocol.reject_counts(selection.rejects) == {"cannot be shown": 3}
    assert "broken.png" in selection.rejects[0].detail


def test_answers_come_in_order_one_a_problem_whatever_the_batch(problems, vlm):
    finished = []
    alone = protocol.answer_and_grade(vlm, problems[:5], GREEDY, 1)
    together = protocol.answer_and_grade(vlm, problems[:5], GREEDY, 4, finished.append)
    assert [row.problem_id for row in together] == [problem.id for problem in problems[:5]]
    assert [row.text for row in together] == [row.text for row in alone]
    assert sum(finished) == 5
    assert all(row.tokens <= 6 and row.reward == 0 for row in together)


def test_the_seed_decides_sampled_answers(problems, vlm):
    def texts(seed):
        sampling = protocol.Sampling(temperature=1.0, top_p=0.9, max_completion_tokens=6, seed=seed)
        torch.manual_seed(seed + 100)  # the global state must not matter
        return [row.text for row in protocol.answer_and_grade(vlm, problems[:3], sampling, 2)]

    assert texts(1) == texts(1) != texts(2)
