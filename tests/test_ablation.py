"""The ablation board from a sweep's folder: arms, intervals, what is said, and where it differs from the paper."""

import json

import pytest
import yaml

from vr1lib.analysis import ablation
from vr1lib.records import Graded, RequestError, write_jsonl

BASE, CI = "outputs/00_base_model/demo/model", "outputs/20_cold_sft/demo/model"
PTST, SHORT, LONG = ((52, 16, 30), (104, 8, 20)), ((52, 16, 50),), ((208, 4, 50),)
PROBLEMS = 40


def answers(step, right, tokens):
    """The first `right` of the problems right, in so many tokens each; the last of them cut."""
    return [
        Graded(
            problem_id=f"p{number}", sample=0, step=step, stage=0, text="", tokens=tokens, logprob=-1.0,
            finish="length" if number == PROBLEMS - 1 else "stop", reward=float(number < right),
            format_ok=True, answer_ok=number < right, extracted=None, reason="",
        )
        for number in range(PROBLEMS)
    ]  # fmt: skip


def make_sweep(root, arms, unfinished=()):
    """A finished sweep: {(model, stages): (right by seed, tokens)}; step 0 is 36 right from base and 20 from CI."""
    points = []
    for (model, stages), (rights, tokens) in arms.items():
        for seed, right in enumerate(rights):
            stages = [list(stage) for stage in stages]
            values = {"model": model, "seed": seed, "stages": stages}
            name = f"abl-{len(points)}"
            run = root / "outputs/30_ptst_grpo" / name
            run.mkdir(parents=True)
            (run / "params.yaml").write_text(yaml.safe_dump({"seed": seed, "prompts_per_step": 2, "stages": stages}))
            start = answers(0, 36 if model == BASE else 20, 50)
            write_jsonl(run / "evaluation.jsonl", [*start, *answers(30, 0, 1), *answers(50, right, tokens)])
            steps = [(stage, group) for stage, (_, group, count) in enumerate(stages) for _ in range(count)]
            metrics = [{"step": 0, "stage": 0}]
            metrics += [{"step": n, "stage": s, "length/mean": 10.0} for n, (s, _) in enumerate(steps, start=1)]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
            status = "failed" if name in unfinished else "finished"
            points.append({"name": name, "values": values, "run": f"outputs/30_ptst_grpo/{name}", "status": status})
    folder = root / "outputs/sweeps/abl"
    folder.mkdir(parents=True)
    (folder / "points.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return folder


ARMS = {
    (BASE, SHORT): ([36, 37, 35], 50),
    (BASE, PTST): ([36, 36, 36], 52),
    (CI, SHORT): ([30, 31, 32], 48),
    (CI, PTST): ([33, 34, 32], 49),
    (CI, LONG): ([21, 15, 24], 120),
}


def test_rows_are_the_papers_arms_with_step_0_as_base_and_ci(tmp_path):
    folder = make_sweep(tmp_path, ARMS)
    assert ablation.is_ablation(folder)
    rows = {row["arm"]: row for row in ablation.board_rows(folder)}
    assert list(rows) == ["base", "Zero", "Zero+PTST", "CI", "CI+short", "Long", "Vision-R1"]
    ptst = rows["Vision-R1"]
    assert (ptst["start"], ptst["schedule"], ptst["n"]) == ("CI", "52 × 16 → 104 × 8", PROBLEMS)
    assert ptst["accuracy"] == pytest.approx(33 / 40) and ptst["low"] < 33 / 40 < ptst["high"]
    assert [seed["accuracy"] for seed in ptst["seeds"]] == [33 / 40, 34 / 40, 32 / 40]
    assert (ptst["mean_length_tokens"], ptst["truncated"]) == (49, pytest.approx(1 / 40))
    assert ptst["token_budget"] == 2 * 832 * 50
    assert ptst["tokens_sampled"] == 10 * 2 * (30 * 16 + 20 * 8)
    assert (rows["CI"]["accuracy"], rows["CI"]["schedule"], rows["CI"]["token_budget"]) == (0.5, "step 0", None)
    assert len(rows["base"]["seeds"]) == len(rows["CI"]["seeds"]) == 3  # not once for every schedule


def test_intervals_resample_problems_and_not_answers(tmp_path):
    rows = {row["arm"]: row for row in ablation.board_rows(make_sweep(tmp_path, {(CI, PTST): ([20] * 3, 9)}))}
    one = make_sweep(tmp_path / "one", {(CI, PTST): ([20], 9)})
    alone = {row["arm"]: row for row in ablation.board_rows(one)}
    assert rows["Vision-R1"]["high"] == alone["Vision-R1"]["high"]  # three like seeds are no more problems


def test_words_say_what_the_numbers_say_also_where_the_paper_differs(tmp_path):
    said = ablation.in_words(ablation.board_rows(make_sweep(tmp_path, ARMS)))
    by_start = {sentence.split(" is ")[0].split(":")[0]: sentence for sentence in said}
    lifted = next(sentence for sentence in said if sentence.startswith("Vision-R1 is above CI"))
    assert "by 32.5 points" in lifted and "by seed +32.5, +35.0, +30.0" in lifted
    assert "in the paper +10.9 (55.4 against 44.5), the same way" in lifted
    assert "undecided, the interval holds 0: +0.0 points" in by_start["Zero and base"]
    assert "undecided" in by_start["Long and CI"]
    contrary = next(sentence for sentence in said if "Vision-R1" in sentence and "Zero" in sentence)
    assert contrary.startswith("Vision-R1 is below Zero by 7.5") and "the other way round" in contrary
    assert all("second-hand from v4" in sentence for sentence in said if "CI+short" in sentence and "paper" in sentence)
    assert any("the same 83,200 tokens" in sentence for sentence in said)
    assert "hard reward (our choice)" in said[-1]


def test_a_difference_that_one_seed_contradicts_is_undecided(tmp_path):
    arms = {(CI, PTST): ([40, 40, 19], 9), (CI, SHORT): ([20, 20, 20], 9)}
    said = ablation.in_words(ablation.board_rows(make_sweep(tmp_path, arms)))
    assert any(sentence.startswith("Vision-R1 and CI+short: undecided, the seeds disagree") for sentence in said)


def test_points_that_have_not_finished_are_named_and_unequal_budgets_said(tmp_path):
    arms = {(CI, PTST): ([30, 30], 9), (CI, ((52, 4, 50),)): ([30, 30], 9)}
    said = ablation.in_words(ablation.board_rows(make_sweep(tmp_path, arms, unfinished=["abl-1"])))
    assert any(sentence == "Not finished, and not counted: abl-1." for sentence in said)
    assert any("Budgets are not equal" in sentence and "20,800" in sentence for sentence in said)
    alone = make_sweep(tmp_path / "none", {(CI, PTST): ([30], 9)}, unfinished=["abl-0"])
    with pytest.raises(RequestError, match="no point has finished"):
        ablation.board_rows(alone)
    with pytest.raises(RequestError, match="points.jsonl: cannot be read"):
        ablation.board_rows(tmp_path / "nowhere")


def test_other_sweeps_are_no_ablation(tmp_path):
    folder = make_sweep(tmp_path, {(CI, PTST): ([30], 9), (CI, SHORT): ([30], 9)})
    assert not ablation.is_ablation(folder)  # one start


def test_board_is_written_as_table_words_and_figure(tmp_path):
    folder = make_sweep(tmp_path, ARMS)
    text = ablation.write_board(folder)
    assert (folder / "board.md").read_text() == text and "**90.0 (" in text.replace("\\", "")
    assert "- Vision-R1 is above CI" in text and "<sup>b</sup>" in text
    assert (folder / "board.csv").read_text().count("\n") == 1 + 7 + 2
    assert r"\begin{tabular}" in (folder / "board.tex").read_text()
    assert (folder / "board.png").stat().st_size > 20_000 and "<svg" in (folder / "board.svg").read_text()
