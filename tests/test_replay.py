import json
import subprocess
import sys

import pytest
from synthetic_runs import completion_of, synthetic_problems, write_benchmark_run, write_manifest

from vr1lib.analysis.completions import load_saved
from vr1lib.analysis.replay import kind_of, replay, replay_command
from vr1lib.records import Problem, RequestError, write_jsonl

UNCLOSED = "<think> a look </think> The answer is {}."  # not well formed, though a reader finds the answer


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return synthetic_problems(tmp_path_factory.mktemp("problems"), 6)


def training_folder(folder, problems, groups, stage_of=lambda place: 0, reward="hard"):
    """A run of 30_ptst_grpo whose groups hold the given completions: "right", "wrong" or a text of its own."""
    rows = []
    for place, (problem, group) in enumerate(zip(problems, groups)):
        for sample, said in enumerate(group):
            row = completion_of(problem, said == "right", 1)
            if said not in ("right", "wrong"):
                verdict = {"reward": 0.0, "format_ok": False, "answer_ok": False, "reason": "format: no <answer>"}
                row = row.model_copy(update={"text": said.format(problem.answer), "extracted": None, **verdict})
            rows.append(row.model_copy(update={"sample": sample, "step": place + 1, "stage": stage_of(place)}))
    folder.mkdir(parents=True)
    write_jsonl(folder / "completions.jsonl", rows)
    folder.joinpath("params.yaml").write_text(f"reward: {reward}\n")
    write_manifest(folder, "30_ptst_grpo")
    return folder


@pytest.fixture
def run(tmp_path, problems):
    """Three groups: one teaches anyway, one is all wrong but once well formed, one is all right."""
    groups = [["right", "wrong", UNCLOSED], ["wrong", UNCLOSED, UNCLOSED], ["right", "right", "right"]]
    folder = training_folder(
        tmp_path / "outputs/30_ptst_grpo/demo", problems, groups, stage_of=lambda place: place // 2
    )
    data = tmp_path / "outputs/10_data_building/demo"
    write_jsonl(folder / "problems.jsonl", [problem.model_copy(update={"images": []}) for problem in problems])
    data.mkdir(parents=True)
    (folder / "problems.jsonl").rename(data / "test.jsonl")  # the manifest names it as an input
    return folder


def test_the_same_grader_changes_nothing(run):
    same = replay(load_saved(run))
    assert (same["n"], same["unchanged"], same["changed_rows"], same["moves"]) == (9, 9, [], [])
    assert same["mean_reward_before"] == same["mean_reward_after"] == pytest.approx(4 / 9)
    assert same["groups"]["teaching_before"] == same["groups"]["teaching_after"] == 1
    assert same["groups"]["sign_changed_share"] == 0


def test_half_a_point_for_the_format_makes_an_all_wrong_group_teach(run):
    half = replay(load_saved(run), reward="format_plus_result")
    assert (half["higher"], half["lower"], half["unchanged"]) == (2, 0, 7)
    assert half["mean_reward_after"] == pytest.approx(5 / 9)
    groups = half["groups"]
    assert (groups["teaching_before"], groups["teaching_after"]) == (1, 2)
    assert (groups["begin_to_teach"], groups["stop_teaching"]) == (1, 0)
    # group 1: rewards 1, .5, 0 around .5: the second goes from − to 0; group 2: .5, 0, 0: from 0 to +, −, −
    assert groups["sign_changed_share"] == pytest.approx(4 / 9) and groups["sign_reversed_share"] == 0
    assert half["moves"] == [{"from": 0.0, "to": 0.5, "count": 2, "reasons": {"number: … ≠ … → number: … ≠ …": 2}}]
    assert [stage["n"] for stage in half["by_stage"]] == [6, 3]
    assert half["by_stage"][1]["groups"]["teaching_after"] == 0


def test_an_advantage_that_turns_is_counted(tmp_path, problems):
    group = [UNCLOSED, UNCLOSED, UNCLOSED, "wrong", "right"]  # the wrong one: 0 below a mean of 0.2, ½ above one of 0.3
    folder = training_folder(tmp_path / "30_ptst_grpo/turn", problems, [group])
    write_jsonl(tmp_path / "golds.jsonl", [problem.model_copy(update={"images": []}) for problem in problems])
    groups = replay(load_saved(folder, tmp_path / "golds.jsonl"), reward="format_plus_result")["groups"]
    assert groups["sign_reversed_share"] == groups["sign_changed_share"] == pytest.approx(1 / 5)


def test_the_benchmarks_own_reading_lets_the_format_go(run):
    official = replay(load_saved(run), protocol="official")
    (move,) = official["moves"]
    assert (move["from"], move["to"], move["count"]) == (0.0, 1.0, 3)
    assert move["reasons"] == {"format: no <answer> → rules, right": 3}
    assert replay(load_saved(run), protocol="strict")["unchanged"] == 9
    row = official["changed_rows"][0]
    assert row["read_as"] == row["gold"] and row["tail"].endswith(f"The answer is {row['gold']}.")
    assert (row["step"], row["stage"], row["sample"]) == (1, 0, 2)


def test_a_problem_of_no_benchmark_is_read_by_our_grader(tmp_path):
    option = Problem(id="p", images=[], question="?", answer="B", choices=["cat", "dog"], source="mine", split="rl")
    number = Problem(id="q", images=[], question="?", answer="3.5", source="mine", split="rl")
    text = [
        completion_of(problem, False, 1).model_copy(update={"text": "So the answer is {}."})
        for problem in (option, number)
    ]
    rows = [row.model_copy(update={"text": f"So the answer is {said}."}) for row, said in zip(text, ("(B)", "3.5"))]
    write_jsonl(tmp_path / "completions.jsonl", rows)
    write_jsonl(tmp_path / "golds.jsonl", [option, number])
    found = replay(load_saved(tmp_path / "completions.jsonl", tmp_path / "golds.jsonl"), protocol="authors")
    assert found["higher"] == 2 and found["groups"] is None


def test_missing_problems_are_counted_and_named(tmp_path, problems):
    folder = training_folder(tmp_path / "outputs/30_ptst_grpo/lost", problems, [["right"], ["wrong"]])
    with pytest.raises(RequestError, match="completions.jsonl: 2 of its problems are not found.*--problems"):
        replay(load_saved(folder))


def test_two_ways_to_grade_at_once_are_refused(run):
    with pytest.raises(RequestError, match="--reward and --protocol"):
        replay(load_saved(run), reward="hard", protocol="strict")


def test_the_command_prints_words_or_json_and_writes_all_changes(run, tmp_path, capsys):
    assert replay_command(run, reward="format_plus_result", out=str(tmp_path / "changes.json")) == 0
    said = capsys.readouterr().out
    assert "9 completions, reward hard → reward format_plus_result" in said
    assert "groups that teach 1 → 2 of 3 (1 begin, 0 stop)" in said and "stage 2: 3 completions" in said
    assert len(json.loads((tmp_path / "changes.json").read_text())["changed_rows"]) == 2
    replay_command(run, as_json=True)
    assert json.loads(capsys.readouterr().out)["unchanged"] == 9
    with pytest.raises(RequestError, match="--out .*cannot be written"):
        replay_command(run, out=str(tmp_path / "none/changes.json"))


def test_without_a_choice_a_run_is_graded_under_its_own_reward(tmp_path, problems, capsys):
    folder = training_folder(tmp_path / "30_ptst_grpo/zero", problems, [["wrong"]], reward="format_plus_result")
    write_jsonl(tmp_path / "golds.jsonl", [problem.model_copy(update={"images": []}) for problem in problems])
    replay_command(folder, problems=str(tmp_path / "golds.jsonl"), as_json=True)
    assert json.loads(capsys.readouterr().out)["grader"] == "reward format_plus_result"


def test_a_benchmark_run_brings_its_own_problems_and_protocol(tmp_path, problems, capsys):
    folder = write_benchmark_run(tmp_path / "40_benchmark/CI", "CI", problems, right=0.5, passes=3)
    replay_command(folder, as_json=True)
    again = json.loads(capsys.readouterr().out)
    assert (again["before"], again["grader"]) == ("protocol strict", "protocol strict")
    assert again["unchanged"] == len(problems)


def test_reasons_lose_the_values_they_compared():
    assert kind_of("number: 2 ≠ 3") == "number: … ≠ …" and kind_of("number: 2.0 = 2") == "number: … = …"
    assert kind_of("option B, gold C") == kind_of("option B is 'a cat'") == "option …"
    assert kind_of("unreadable: not 10") == "unreadable: not …" and kind_of("text: not two\nlines") == "text: not …"
    assert kind_of("format: no <answer>") == "format: no <answer>" and kind_of("same text") == "same text"


def test_the_module_imports_without_torch():
    code = "import sys, vr1lib.analysis.replay; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
