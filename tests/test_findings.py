import pytest
from synthetic_runs import synthetic_problems
from test_tables import model_of

from vr1lib.analysis import findings as say
from vr1lib.analysis.runs import TrainingRun
from vr1lib.analysis.statistics import Interval


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return synthetic_problems(tmp_path_factory.mktemp("problems"), 60)


def run_of(lengths_by_stage):
    rows, step = [{"step": 0, "stage": 0}], 0
    for stage, lengths in enumerate(lengths_by_stage):
        for length in lengths:
            step += 1
            rows.append({"step": step, "stage": stage, "length/mean": length})
    return TrainingRun("PTST", "runs/ptst", rows, [])


def by_claim(found, words):
    (finding,) = [finding for finding in found if words in finding.claim]
    return finding


def test_the_verdict_follows_the_interval():
    assert say.verdict(Interval(0.1, 0.05, 0.15, 9), expected=1) == "as in the paper"
    assert say.verdict(Interval(-0.1, -0.15, -0.05, 9), expected=1) == "the opposite of the paper"
    assert say.verdict(Interval(0.1, -0.01, 0.2, 9), expected=1) == "undecided"


def test_a_lift_is_told_with_its_points_and_interval(problems):
    cold = model_of("CI", problems, [1] * 20 + [0] * 40, lengths=4)
    final = model_of("Vision-R1", problems, [1] * 50 + [0] * 10, lengths=2)
    lift = by_claim(say.findings([cold, final], []), "lifts")
    assert lift.verdict == "as in the paper"
    assert "Vision-R1 is above CI: +50.0 points (95 % interval +3" in lift.ours
    assert "problems only Vision-R1 solves: 30, only CI: 0" in lift.ours
    shorter = by_claim(say.findings([cold, final], []), "more briefly")
    assert shorter.verdict == "as in the paper" and "60.0 → 30.0 tokens, −30.0 tokens" in shorter.ours


def test_ending_below_the_base_is_the_opposite_of_the_paper(problems):
    base = model_of("base", problems, [1] * 55 + [0] * 5)
    final = model_of("Vision-R1", problems, [1] * 30 + [0] * 30)
    found = by_claim(say.findings([base, final], []), "above the base")
    assert found.verdict == "the opposite of the paper" and "Vision-R1 is below base: −41.7 points" in found.ours
    assert by_claim(say.findings([final, base], []), "above the base").verdict == found.verdict  # order tells nothing


def test_a_fall_is_told_as_a_fall(problems):
    cold = model_of("CI", problems, [1] * 50 + [0] * 10)
    final = model_of("Vision-R1", problems, [1] * 20 + [0] * 40)
    lift = by_claim(say.findings([cold, final], []), "lifts")
    assert lift.verdict == "the opposite of the paper"
    assert "Vision-R1 is below CI: −50.0 points" in lift.ours


def test_no_difference_is_undecided(problems):
    cold, final = model_of("CI", problems, [1, 0] * 30), model_of("Vision-R1", problems, [0, 1] * 30)
    lift = by_claim(say.findings([cold, final], []), "lifts")
    assert lift.verdict == "undecided" and "is not told apart from" in lift.ours


def test_a_handful_of_problems_decides_nothing(problems):
    # 4 against 0: the bootstrap excludes zero, the exact test does not (p = 2 / 16)
    cold, final = model_of("CI", problems, [1] * 60), model_of("Vision-R1", problems, [1] * 56 + [0] * 4)
    lift = by_claim(say.findings([cold, final], []), "lifts")
    assert lift.verdict == "undecided" and "p = 0.125" in lift.ours and "is not told apart from" in lift.ours


def test_missing_runs_leave_a_finding_untested(problems):
    found = say.findings([model_of("mine", problems, [1] * 60)], [])
    assert {finding.verdict for finding in found} == {"not tested"}
    assert "No runs labelled base and CI" in found[0].ours


def test_overthinking_is_told_by_thirds(problems):
    cold = model_of("CI", problems, [1] * 20 + [1, 0] * 10 + [0] * 20, [1] * 20 + [3] * 20 + [6] * 20)
    found = say.overthinking(cold)
    assert found.verdict == "as in the paper"
    assert (
        "100.0 % at 15–44 tokens (n = 20), 50.0 % at 45–89 tokens (n = 20), 0.0 % at 90 tokens (n = 20)" in found.ours
    )
    assert "−100.0 points" in found.ours


def test_longer_and_more_right_is_the_opposite_of_overthinking(problems):
    cold = model_of("CI", problems, [0] * 20 + [1, 0] * 10 + [1] * 20, [1] * 20 + [3] * 20 + [6] * 20)
    assert say.overthinking(cold).verdict == "the opposite of the paper"


def test_equally_long_completions_decide_nothing(problems):
    assert say.overthinking(model_of("CI", problems, [1, 0] * 30, 2)).verdict == "undecided"


def test_harder_problems_that_take_longer_are_no_overthinking(problems):
    # small grids: short and right; large grids: long and wrong. Within a size, length says nothing.
    sizes = [len(problem.meta["scene"]["grid"]) for problem in problems]
    right = [size == 2 for size in sizes]
    lengths = [2 * size + index % 2 for index, size in enumerate(sizes)]
    model = model_of("CI", problems, right, lengths)
    assert say.overthinking(model).verdict == "as in the paper"  # as the paper counts
    assert say.longer_half_within_kinds(model).mean == 0
    assert "Within problems of one kind, longer half against shorter: +0.0 points" in say.overthinking(model).ours


def test_stages_that_shorten_and_lengthen_are_seen():
    shorten, grow = say.stages_shorten_then_lengthen(run_of([[70, 68, 60, 50, 42, 40], [40, 44, 48, 52, 55, 56]]))
    assert (shorten.verdict, grow.verdict) == ("as in the paper", "as in the paper")
    assert "end of stage 1 against its first steps (2 steps each): −28.0 tokens" in shorten.ours
    shorten, grow = say.stages_shorten_then_lengthen(run_of([[40, 42, 50, 60, 68, 70], [70, 69, 68, 60, 52, 51]]))
    assert {shorten.verdict, grow.verdict} == {"the opposite of the paper"}


def test_stages_too_short_to_tell_give_no_finding():
    assert say.stages_shorten_then_lengthen(run_of([[70, 60], [50, 40]])) == []


def test_reflection_that_training_removes_is_told(problems):
    base, cold = model_of("base", problems, [1] * 60, 1), model_of("CI", problems, [1] * 60, 5)
    gone = say.reflection_survives(base, cold, model_of("Vision-R1", problems, [1] * 60, 1))
    assert gone.verdict == "the opposite of the paper"
    assert "CI 200 / 0 / 0" in gone.ours and "training removed 100 %" in gone.ours
    kept = say.reflection_survives(base, cold, model_of("Vision-R1", problems, [1] * 60, 3))
    assert kept.verdict == "as in the paper" and "Vision-R1 100 / 0 / 0" in kept.ours


def test_words_are_counted_per_50_completions(problems):
    model = model_of("CI", problems[:10], [1] * 10, 3)
    assert say.words_per_50(model) == {"Wait": 100, "Hmm": 0, "Alternatively": 0}
    assert list(say.words_each(model)) == [2] * 10


def test_the_headline_is_the_last_model_against_the_one_before(problems):
    models = [model_of("CI", problems, [0] * 60), model_of("Vision-R1", problems, [1] * 60)]
    assert say.headline(models).startswith("Vision-R1 is above CI: +100.0 points")
    assert say.headline(models[:1]).startswith("CI is right on 0.0 %")
    assert "No run of ours" in say.headline([])


def test_long_and_zero_are_set_against_the_final_model(problems):
    long = model_of("Long", problems, [1] * 20 + [0] * 40)
    zero = model_of("Vision-R1-Zero", problems, [1] * 55 + [0] * 5)
    found = say.findings([long, zero, model_of("Vision-R1", problems, [1] * 40 + [0] * 20)], [])
    assert by_claim(found, "full length from the start").verdict == "as in the paper"
    assert by_claim(found, "RL alone").verdict == "the opposite of the paper"


def test_the_reward_over_training_is_told_with_its_direction():
    def run(rewards):
        return TrainingRun(
            "PTST", "runs/ptst", [{"step": 1 + at, "reward/mean": r} for at, r in enumerate(rewards)], []
        )

    (risen,) = say.reward_rises(run([0.2, 0.25, 0.3, 0.25, 0.4, 0.5, 0.6, 0.55, 0.6, 0.65]))
    assert (
        risen.verdict == "as in the paper" and "PTST: 0.250 → 0.600, last against first 4 steps: +0.350" in risen.ours
    )
    (fallen,) = say.reward_rises(run([0.6, 0.65, 0.6, 0.65, 0.2, 0.25, 0.2, 0.25]))
    assert fallen.verdict == "the opposite of the paper"
    assert say.reward_rises(run([0.1, 0.9])) == []
