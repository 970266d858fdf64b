from types import SimpleNamespace

import pytest
from drawn import heights, overlapping, widths
from matplotlib.figure import Figure
from synthetic_runs import model_of, synthetic_problems, write_training_run

from vr1lib.analysis import figures
from vr1lib.analysis.drawing import STYLES, styles_of
from vr1lib.analysis.runs import load_training_run
from vr1lib.workbench.tracking import Run

LONG = "our own model with a third stage and a name that is far too long"


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return synthetic_problems(tmp_path_factory.mktemp("problems"), 30)


@pytest.fixture(scope="module")
def models(problems):
    cold = model_of("CI", problems, [1] * 10 + [1, 0] * 5 + [0] * 10, [1] * 10 + [3] * 10 + [6] * 10)
    return [model_of("base", problems, [1] * 30), cold, model_of("Vision-R1", problems, [1] * 25 + [0] * 5, 2)]


@pytest.fixture(scope="module")
def seven(models, problems):
    names = ("Zero", "Long", LONG, "Qwen2.5-VL-72B-Instruct-AWQ")
    return [*models, *(model_of(name, problems, [1, 0] * 15, [1, 2, 3] * 10) for name in names)]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return load_training_run(
        "PTST", write_training_run(tmp_path_factory.mktemp("run") / "demo", [[64, 16, 20], [128, 8, 10]])
    )


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return load_training_run(LONG, write_training_run(tmp_path_factory.mktemp("run") / "demo", [[128, 8, 50]]))


def test_figure_1a_cuts_our_limit_where_the_paper_cuts_its_own(models):
    # limit 128: 4K/16K and 8K/16K of it are 32 and 64; lengths 15, 45, 90
    ours, paper = figures.share_and_accuracy(models[1]).axes
    assert [label.get_text() for label in ours.get_xticklabels()] == ["0–31", "32–63", "64+"]
    assert heights(ours) == [33.3, 100, 33.3, 50, 33.3, 0]
    assert heights(paper) == [75, 41, 11, 28, 14, 7]


def test_accuracy_bars_have_the_papers_value_beside_those_it_names(models):
    (axes,) = figures.accuracy_bars(models).axes
    assert widths(axes) == [100, 50, 83.3]
    diamonds = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    assert diamonds == [49.6, 44.5, 55.4]


def test_figure_1b_is_mathvista_where_all_have_it(problems):
    halves = lambda index: "mathvista" if index < 10 else "shapeworld"  # noqa: E731
    both = model_of("CI", problems, [1] * 5 + [0] * 25, benchmark=halves)
    ours, paper = figures.benchmark_bars([both]).axes
    assert ours.get_title() == "Ours: MathVista" and widths(ours) == [50]
    assert [60 + width for width in widths(paper)] == [73.5, 63.8, 71.9, 73.5, 73.9]
    other = model_of("base", problems, [1] * 30)
    ours, _ = figures.benchmark_bars([both, other]).axes
    assert ours.get_title() == "Ours: mean over mathvista, shapeworld" and widths(ours) == [25, 100]


def test_figure_1c_counts_words_beside_the_papers(models):
    ours, paper = figures.reflection_words(models).axes
    assert heights(ours)[:9] == [0, 0, 0, 116.7, 0, 0, 50, 0, 0]  # (0·10 + 2·10 + 5·10) · 50/30 and 1 · 50
    assert 699 in heights(paper) and 340 in heights(paper)


@pytest.mark.parametrize("panel", "DEF")
def test_progressions_shade_our_stages_and_the_papers(panel, training):
    ours, paper = figures.progression(panel, [training]).axes
    assert [text.get_text().split(":")[0] for text in ours.texts] == ["stage 1", "stage 2"]
    assert [text.get_text().split(":")[0] for text in paper.texts] == ["stage 1", "stage 2", "optional 3"]
    assert {"Zero", "Long", "Vision-R1"} <= set(paper.get_legend_handles_labels()[1])


def test_unlike_stages_are_not_passed_off_as_everybodys(training, single):
    ours, _ = figures.progression("F", [single, training]).axes
    assert ours.get_title().endswith("(shaded: stages of PTST)")
    assert ours.get_xlim()[1] >= 50  # the longer run is not cut
    ours, _ = figures.progression("F", [training, training]).axes
    assert "shaded" not in ours.get_title()


def test_figure_1e_draws_measured_accuracy_in_percent(training):
    ours, _ = figures.progression("E", [training]).axes
    measured = next(line for line in ours.lines if line.get_label() == "held-out problems")
    assert list(measured.get_xdata())[0] == 0 and list(measured.get_ydata())[0] == pytest.approx(32)


def test_what_was_not_measured_is_said(training):
    ours, _ = figures.progression("E", []).axes
    assert ours.texts[0].get_text() == "not measured in these runs"
    for figure in (figures.accuracy_bars([]), figures.accuracy_by_length([]), figures.reflection_words([])):
        assert [text.get_text() for text in figure.axes[0].texts] == ["no scored model"]


def test_no_text_lies_over_another(models, seven, training, single):
    drawn: list[Figure] = [
        figures.share_and_accuracy(models[1]),
        figures.figure_1(models, [training], models[1]),
        figures.figure_1(seven, [training, single], seven[5]),
        figures.figure_1([], [], None),
        *(figures.progression("D", runs) for runs in ([training], [single, training])),
    ]
    for many in (models, seven):
        drawn += [figures.accuracy_bars(many), figures.accuracy_by_length(many)]
        drawn += [figures.benchmark_bars(many), figures.reflection_words(many)]
    for figure in drawn:
        assert overlapping(figure) == []


def test_a_role_has_one_look_in_every_figure(models):
    alone, _ = figures.reflection_words(models[2:]).axes
    together, _ = figures.reflection_words(models).axes
    assert alone.patches[0].get_facecolor() == together.patches[6].get_facecolor()


def test_eight_models_look_different_without_their_colours():
    styles = styles_of(["CI", "Qwen2.5-VL-7B", "Qwen2.5-VL-3B", "mine", "Vision-R1", "a", "b", "c"])
    assert styles[0] == STYLES[1] and styles[4] == STYLES[2]
    for what in ("marker", "line", "colour"):
        assert len({str(getattr(style, what)) for style in styles}) == 8
    assert len(styles_of(list("abcdefghij"))) == 10


def test_group_bars_draw_the_largest_groups(models):
    cells = {f"skill {number:02d}": {"n": number, "accuracy": 0.5, "low": 0.4, "high": 0.6} for number in range(1, 16)}
    figure = figures.group_bars([{"benchmark": "wemath", "by": {"skill": cells}}])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == 12 and names[0] == "skill 04 (n = 4)"


def test_small_multiples_draw_one_panel_a_metric(training):
    figure = figures.metric_curves(training.metrics, ["reward/mean", "kl", "eval/accuracy"])
    assert [axes.get_title() for axes in figure.axes] == ["reward/mean", "kl", "eval/accuracy", ""]
    assert [len(axes.lines) for axes in figure.axes] == [1, 0, 1, 0]  # kl is null in every row


def test_a_saved_figure_is_a_png_and_the_same_svg_every_time(training, tmp_path):
    run = SimpleNamespace(folder=tmp_path, board=SimpleNamespace(log_figure=lambda name, path: None))
    saved = []
    for _ in range(2):
        path = Run.save_figure(run, figures.metric_curves(training.metrics, ["loss"]), "loss")
        saved.append(path.with_suffix(".svg").read_bytes())
    assert path == tmp_path / "figures" / "loss.png" and path.read_bytes().startswith(b"\x89PNG")
    assert saved[0] == saved[1] and b"<dc:date>" not in saved[0]
    assert b">step</text>" in saved[0]  # words stay words, to be searched and edited
