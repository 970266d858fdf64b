"""Views with something to move: what they say, what they show without a front end, and that controls change them."""

import builtins
import json
import os

import pytest
import yaml

from vr1lib.analysis.runs import read_completions
from vr1lib.data.shapeworld import make_problems
from vr1lib.data.sources import Reject
from vr1lib.records import ColdRow, Completion, TeacherCall, write_jsonl
from vr1lib.reward import grade_completion
from vr1lib.workbench import explore, widgets
from vr1lib.workbench.widgets import Choice, Number, show

VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, in order."""
    import IPython.display

    found = []
    monkeypatch.setattr(IPython.display, "display", lambda item, **_: found.append(item))
    return found


@pytest.fixture
def front_end(monkeypatch):
    monkeypatch.setattr(widgets, "front_end", lambda: True)


def parts_of(bundle):
    """The controls by their labels, and the HTML below them, of a displayed widget."""
    from ipywidgets.widgets.widget import _instances

    grid, page = _instances[bundle[VIEW]["model_id"]].children
    return {control.description: control for control in grid.children}, page


def completion(problem, sample, right, step=1, cut=False, text=None, tokens=10):
    text = text or f"<think> It is so. </think><answer> Final Answer:{problem.answer if right else 99} </answer>"
    row = Completion(
        problem_id=problem.id,
        sample=sample,
        step=step,
        stage=0,
        text=text,
        tokens=tokens,
        finish="length" if cut else "stop",
        logprob=-1.0,
    )
    return grade_completion(row, problem)


def cold_row(problem, reasoning):
    calls = [
        TeacherCall(purpose=purpose, model="R1", prompt_sha256="0", prompt_tokens=1, completion_tokens=1, seconds=0.0)
        for purpose in ("pseudo_cot", "description", "reasoning")
    ]
    response = f"<think> {reasoning} </think><answer> Final Answer:{problem.answer} </answer>"
    texts = {"pseudo_cot": "A caption.", "description": "Two rows.", "reasoning": reasoning, "response": response}
    return ColdRow(**problem.model_dump(), **texts, calls=calls)


def test_without_a_front_end_the_first_state_is_html_and_ipywidgets_stays_out(shown, monkeypatch):
    real = builtins.__import__

    def refusing(name, *rest, **more):
        assert not name.startswith("ipywidgets")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    show(lambda n: f"<b>{n}</b>", {"n": Number("n", 7)})
    (page,) = shown
    assert "<b>7</b>" in page.data


def test_controls_change_the_view_and_its_first_state_travels_with_it(shown, front_end):
    show(lambda n: f"<b>{n}</b>", {"n": Number("n", 7, lowest=1)})
    (bundle,) = shown
    controls, page = parts_of(bundle)
    assert "<b>7</b>" in bundle["text/html"] and "<b>7</b>" in page.value
    controls["n"].value = 9
    assert "<b>9</b>" in page.value
    controls["n"].value = -5
    assert "<b>1</b>" in page.value, "below the lowest"


def test_a_list_follows_the_control_before_it(shown, front_end):
    of = {"a": [("x", 1), ("y", 2)], "b": [("z", 3)]}
    controls = {
        "letter": Choice("letter", lambda _: [("a", "a"), ("b", "b")], "a"),
        "number": Choice("number", lambda values: of[values["letter"]], 2),
    }
    show(lambda letter, number: f"<b>{letter}{number}</b>", controls)
    made, page = parts_of(shown[0])
    assert "<b>a2</b>" in page.value
    made["letter"].value = "b"
    assert "<b>b3</b>" in page.value and made["number"].options == (("z", 3),)


# A group of completions.


@pytest.fixture
def problems(tmp_path):
    return make_problems(tmp_path, "rl", 3)


def write_group_run(folder, groups):
    folder.mkdir(exist_ok=True)
    rows = [
        completion(problem, sample, right, step)
        for step, problem, rights in groups
        for sample, right in enumerate(rights)
    ]
    write_jsonl(folder / "completions.jsonl", rows)
    return read_completions(folder / "completions.jsonl")


def test_advantages_are_those_of_the_group(problems, tmp_path):
    rows = write_group_run(tmp_path / "run", [(1, problems[0], [True, True, False, False])])
    page = explore.group_html(rows, {problems[0].id: problems[0]}, normalise_by_std=True)
    assert page.count("+0.87") == page.count("-0.87") == 2  # 0.5 / sqrt(1/3)
    assert "mean reward 0.50, std 0.58" in page and page.index("+0.87") < page.index("-0.87")
    assert page.count("+0.50") == 0 < explore.group_html(rows, {}, normalise_by_std=False).count("+0.50")


def test_a_group_of_equal_rewards_is_said_to_teach_nothing(problems, tmp_path):
    rows = write_group_run(tmp_path / "run", [(1, problems[0], [True, True])])
    assert "nothing is learnt" in explore.group_html(rows, {}, True)
    (alone,) = write_group_run(tmp_path / "one", [(1, problems[0], [True])])
    assert "std 0;" in explore.group_html([alone], {}, True)


def test_the_same_problem_drawn_twice_in_a_step_is_two_groups(problems, tmp_path):
    drawn = [(1, problems[0], [True, False]), (1, problems[0], [False, False]), (2, problems[1], [True, True])]
    groups = explore.groups_of(write_group_run(tmp_path / "run", drawn))
    assert {key: len(group) for key, group in groups.items()} == {(1, 0): 2, (1, 1): 2, (2, 0): 2}


def test_a_problem_of_another_step_can_be_picked(problems, tmp_path, shown, front_end):
    write_group_run(tmp_path / "run", [(1, problems[0], [True, True]), (2, problems[1], [True, False])])
    explore.show_groups(tmp_path / "run", problems)
    controls, page = parts_of(shown[0])
    assert controls["step"].value == 2 and "step 2," in page.value, "the half right group comes first"
    controls["step"].value = 1
    assert "step 1," in page.value and "(2 of 2 right)" in controls["problem"].options[0][0]


def test_what_a_model_wrote_cannot_become_html(problems):
    row = completion(problems[0], 0, True, text="<script>alert(1)</script> Wait, no.")
    page = explore.completion_html(row, 0.5, 1.0)
    assert "<script>" not in page and "&lt;script&gt;" in page and "<mark>Wait</mark>" in page


# PTST's stages.


def test_budget_and_time_are_worked_out():
    pace = explore.Pace(tokens_per_second=1000, lengths=(32, float("inf")), seen_in="a run")
    page = explore.schedule_html([(64, 16, 30), (128, 8, 20)], 10, pace)
    assert page.count("<td>1,024</td>") == 2 and "equal in every stage" in page
    assert pace.mean_length(64) == 48 and pace.mean_length(128) == 80
    # at most 30 × 10 × 1024 + 20 × 10 × 1024 tokens = 512 s; about 3/4 of the first and 5/8 of the second
    assert "about 5 min 58 s, at most 8 min 32 s" in page
    assert "not equal: the last stage's is 0.5 times" in explore.schedule_html([(64, 16, 30), (128, 4, 20)], 10, None)
    assert [explore.in_minutes(seconds) for seconds in (59, 660, 26_000)] == ["59 s", "11 min", "7 h 13 min"]
    assert "No stage" in explore.schedule_html([], 10, pace)


def test_stages_are_moved_and_one_without_steps_is_left_out(shown, front_end):
    explore.show_schedule([[64, 16, 30], [128, 8, 20]], 10, None)
    controls, page = parts_of(shown[0])
    assert page.value.count("<tr><td>") == 2 and "run this cell again" in page.value
    (third,) = [control for label, control in controls.items() if label == "stage 3: tokens"]
    assert third.value == 256
    controls["stage 2: tokens"].value = 256
    assert "256 × 8" in page.value and "not equal" in page.value
    from ipywidgets.widgets.widget import _instances

    steps = [
        each for each in _instances[shown[0][VIEW]["model_id"]].children[0].children if each.description == "steps"
    ]
    steps[1].value = 0
    assert page.value.count("<tr><td>") == 1 and "equal in every stage" in page.value


def test_pace_comes_from_the_newest_run_of_the_same_model(problems, tmp_path):
    def run(name, model, age, rates):
        write_group_run(tmp_path / name, [(1, problems[0], [True, False])])
        given = {"model": model, "stages": [[64, 16, 3]], "prompts_per_step": 2}
        (tmp_path / name / "params.yaml").write_text(yaml.safe_dump(given))
        rows = [{"step": step, "tokens_per_second": rate} for step, rate in enumerate(rates)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
        return tmp_path / name

    run("old", "m", 2, [5.0])
    run("other", "n", 0, [7.0])
    rehearsed = run("rehearsed", "m", 0, [])
    assert explore.newest_pace(tmp_path, "m").tokens_per_second == 5.0, "a run that has not begun is passed over"
    (rehearsed / "preflight.json").write_text(json.dumps({"seconds": {"rollout": 3.0, "update": 1.0}}))
    os.utime(rehearsed, (1000, 1000))
    pace = explore.newest_pace(tmp_path, "m")
    assert (pace.tokens_per_second, pace.lengths) == (2 * 64 * 16 / 4, ()) and "rehearsal" in pace.seen_in
    run("new", "m", 1, [10.0, 30.0, 20.0])
    os.utime(rehearsed, (900, 900))
    pace = explore.newest_pace(tmp_path, "m")
    assert (pace.tokens_per_second, list(pace.lengths), pace.seen_in) == (20.0, [10, 10], "new, 3 steps")
    assert explore.newest_pace(tmp_path, "x") is None


# One row of modality bridging.


def test_each_step_shows_who_saw_what(problems, shown, front_end):
    row = cold_row(problems[0], "The description says two. Wait, let me check. It is so.")
    explore.show_bridging([row], [], problems, True, first=row)
    controls, page = parts_of(shown[0])
    pages = []
    for step in range(6):
        controls["step"].value = step
        pages.append(page.value)
    assert "<img" in pages[1] and "<img" in pages[2] and "no picture" in pages[3] and "<img" not in pages[3]
    assert "A caption." in pages[1] and "Two rows." in pages[2] and "<mark>Wait</mark>" in pages[3]
    assert "<ins>" in pages[4] and "image shows" in pages[4].replace("<ins>", "").replace("</ins>", "")
    assert "Final Answer" in pages[5]
    assert all(text in shown[0]["text/html"] for text in ("A caption.", "Two rows.", "Final Answer")), "all of it"


def test_a_reject_says_where_it_fell(problems, shown, front_end):
    row = cold_row(problems[0], "It is so.")
    fallen = Reject(id=problems[1].id, source="shapeworld", step="answer", reason="wrong final answer", detail="7")
    elsewhere = Reject(id="row 3", source="file", step="source", reason="no picture", detail="")
    explore.show_bridging([row], [fallen, elsewhere], problems, True, first=row)
    controls, page = parts_of(shown[0])
    assert len(controls["problem"].options) == 2
    controls["problem"].value = 1
    controls["step"].value = 4
    assert "wrong final answer" in page.value and "<pre>7</pre>" in page.value
    controls["step"].value = 5
    assert "did not come so far" in page.value
    controls["step"].value = 2
    assert "passed" in page.value
