import numpy as np
import pytest
from drawn import overlapping, widths
from synthetic_runs import model_of, synthetic_problems

from vr1lib.analysis import model_figures
from vr1lib.analysis.comparisons import compare_all

LONG = "our own model with a third stage and a name that is far too long"
SKILLS = ("algebraic reasoning", "numeric commonsense", "statistical reasoning", "geometry reasoning")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return synthetic_problems(tmp_path_factory.mktemp("problems"), 30)


def cell(accuracy, n=30):
    return {"n": n, "accuracy": accuracy, "low": max(0, accuracy - 0.1), "high": min(1, accuracy + 0.1)}


def skilled(label, problems, groups, right=15, **row):
    by = {"skill": {name: cell(value) for name, value in groups.items()}, "source": {"one": cell(0.5)}}
    return model_of(label, problems, [1] * right + [0] * (30 - right), [1, 2, 3] * 10, by=by, **row)


@pytest.fixture(scope="module")
def models(problems):
    labels = ("base", "CI", "Vision-R1", "Zero", "Long", LONG, "Qwen2.5-VL-72B-Instruct-AWQ")
    return [
        skilled(
            label, problems, {skill: 0.1 * place + 0.1 * at for at, skill in enumerate(SKILLS)}, right=8 + 3 * place
        )
        for place, label in enumerate(labels)
    ]


def words_of(axes):
    return [text.get_text() for text in axes.texts]


def test_bins_are_the_same_for_all_and_say_how_many_they_hold(problems):
    short = model_of("base", problems, [1] * 30, [1] * 20 + [2] * 10)  # 15 and 30 tokens
    long = model_of("CI", problems, [1] * 10 + [0] * 20, [1] * 10 + [4] * 20)  # 15 and 60 tokens
    curves, counts = model_figures.accuracy_by_bins([short, long], edges=[0, 20, 40]).axes
    assert [label.get_text() for label in curves.get_xticklabels()] == ["0–\n19", "20–\n39", "40+"]
    assert words_of(counts) == ["20", "10", "–", "10", "–", "20"]
    heights = [np.array(line.get_ydata(), float) for line in curves.lines if line.get_marker() in "os"]
    np.testing.assert_equal(heights, [[100, 100, np.nan], [100, np.nan, 0]])  # an empty bin is a gap


def test_without_edges_bins_are_round(models):
    curves, _ = model_figures.accuracy_by_bins(models).axes
    labels = [label.get_text() for label in curves.get_xticklabels()]
    assert labels[0].startswith("0–") and labels[-1].endswith("0+") and len(labels) <= 6


def test_kinds_with_one_group_are_not_offered(models):
    assert model_figures.group_kinds(models) == [("shapeworld", "skill")]
    assert model_figures.group_kinds([]) == []


def test_a_radar_closes_on_itself_and_bars_take_over_where_it_cannot_be_read(models):
    (radar,) = model_figures.skills(models[:3], "shapeworld", "skill").axes
    assert radar.name == "polar"
    assert list(radar.lines[1].get_ydata()) == pytest.approx([10, 20, 30, 40, 10])
    (alone,) = model_figures.skills(models[:1], "shapeworld", "skill").axes
    assert alone.name == "rectilinear" and widths(alone) == [0, 10, 20, 30]
    nothing = model_figures.skills(models, "shapeworld", "grade")
    assert words_of(nothing.axes[0]) == ["no model has shapeworld by grade, or they share no group"]


def test_skills_compare_only_groups_that_all_models_have(problems):
    one = skilled("base", problems, {"a": 0.1, "b": 0.2, "c": 0.3})
    other = skilled("CI", problems, {"b": 0.5, "a": 0.4})
    (axes,) = model_figures.skills([one, other], "shapeworld", "skill").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (n\u00a0=\u00a030)", "b (n\u00a0=\u00a030)"]
    assert widths(axes) == [10, 20, 40, 50]


def test_of_many_groups_the_largest_are_drawn_and_the_title_says_so(problems):
    by = {"skill": {f"skill {n:02d}": cell(0.5, n) for n in range(1, 31)}}
    model = model_of("base", problems, [1] * 30, by=by)
    (axes,) = model_figures.skills([model, model], "shapeworld", "skill").axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == 12 and names[0].startswith("skill 19") and "the 12 largest of 30" in axes.get_title()


def spoilt(label, problems, control, accuracy, of):
    model = model_of(label, problems, [0] * 30, control=control, **cell(accuracy))
    model.scores["model"] = of
    return model


def test_controls_join_the_runs_of_one_model(problems):
    choosing = [problem.model_copy(update={"choices": ["a", "b", "c", "d"]}) for problem in problems]
    runs = [
        spoilt("CI, blank", choosing, "blank_pictures", 0.3, "models/ci"),
        spoilt("CI", choosing, "none", 0.7, "models/ci"),
        spoilt("other", choosing, "none", 0.9, "models/other"),
    ]
    figure = model_figures.controls(runs)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["CI"]  # the other has no control
    assert widths(axes) == [70, 30]
    chance = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert list(chance.get_xdata()) == [25, 25]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["pictures and options as they are", "blank pictures", "guessing among the options"]


def test_without_a_control_the_figure_says_so(models):
    assert not model_figures.has_controls(models)
    assert "no run of these has a control" in words_of(model_figures.controls(models).axes[0])[0].replace("\n", " ")


def test_problems_without_options_cannot_be_guessed(problems):
    half = [
        problem.model_copy(update={"choices": ["a", "b"] if at < 15 else None}) for at, problem in enumerate(problems)
    ]
    assert model_figures.guessing([model_of("CI", half, [1] * 30)], "shapeworld") == 0.25
    free = [problem.model_copy(update={"choices": None}) for problem in problems]
    assert model_figures.guessing([model_of("CI", free, [1] * 30)], "shapeworld") is None


def test_pairs_turn_towards_their_baseline(models):
    pairs = compare_all(models[:3])  # 8, 11 and 14 of 30 right
    (axes,) = model_figures.paired_differences(pairs).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["CI − base", "Vision-R1 − base", "Vision-R1 − CI"]
    assert words_of(axes) == ["+10.0  (n = 30)", "+20.0  (n = 30)", "+10.0  (n = 30)"]
    (axes,) = model_figures.paired_differences(pairs, baseline="CI").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["base", "Vision-R1"]
    assert words_of(axes) == ["−10.0  (n = 30)", "+10.0  (n = 30)"]


def test_only_decided_differences_are_filled(problems):
    models = [model_of("base", problems, [0] * 30), model_of("CI", problems, [1] * 2 + [0] * 28)]
    models.append(model_of("Vision-R1", problems, [1] * 30))
    (axes,) = model_figures.paired_differences(compare_all(models)).axes
    fills = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"]
    assert fills == ["white", "black", "black"]


def arm(name, accuracy, sampled=390_000):
    row = {"arm": name, "start": "cold start", "schedule": "64 × 16 × 30, then 128 × 8 × 20"}
    row |= {"accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05, "mean_length_tokens": 48.4}
    return row | {"tokens_sampled": sampled, "token_budget": 400_000, "seeds": [{"accuracy": accuracy + 0.02}]}


def test_the_board_shows_accuracy_length_seeds_and_budget():
    accuracy, length = model_figures.ablation_board([arm("CI", 0.4, sampled=0), arm("PTST", 0.8)]).axes
    assert widths(accuracy) == [40, 80] and widths(length) == [48.4, 48.4]
    seeds = [list(line.get_xdata()) for line in accuracy.lines if line.get_marker() == "o"]
    assert seeds == [[pytest.approx(42)], [pytest.approx(82)]]
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    assert "budget" not in names[0] and names[1].endswith("98 % of 400,000 tokens")


def test_nothing_to_draw_is_said():
    for figure in (
        model_figures.accuracy_by_bins([]),
        model_figures.paired_differences([]),
        model_figures.ablation_board([]),
    ):
        assert len(words_of(figure.axes[0])) == 1


def test_no_text_lies_over_another(models, problems):
    controls = ("none", "blank_pictures", "shuffled_pictures", "shuffled_options")
    runs = [spoilt(model.label, problems, kind, 0.5, model.label) for model in models for kind in controls]
    arms = [arm(model.label, 0.1 * place + 0.1) for place, model in enumerate(models)]
    drawn = [model_figures.controls(runs), model_figures.ablation_board(arms), model_figures.ablation_board(arms[:1])]
    drawn += [model_figures.paired_differences(compare_all(models), baseline) for baseline in (None, "CI")]
    for many in (models[:1], models[:3], models):
        drawn += [model_figures.accuracy_by_bins(many), model_figures.skills(many, "shapeworld", "skill")]
    for figure in drawn:
        assert overlapping(figure) == []
