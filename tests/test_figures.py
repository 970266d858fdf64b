import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from synthetic_runs import synthetic_problems, write_training_run
from test_tables import model_of

from vr1lib.analysis import figures
from vr1lib.analysis.runs import load_training_run


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return synthetic_problems(tmp_path_factory.mktemp("problems"), 30)


@pytest.fixture(scope="module")
def models(problems):
    cold = model_of("CI", problems, [1] * 10 + [1, 0] * 5 + [0] * 10, [1] * 10 + [3] * 10 + [6] * 10)
    return [model_of("base", problems, [1] * 30), cold, model_of("Vision-R1", problems, [1] * 25 + [0] * 5, 2)]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return load_training_run(
        "PTST", write_training_run(tmp_path_factory.mktemp("run") / "demo", [[64, 16, 20], [128, 8, 10]])
    )


def heights(axes):
    return [round(bar.get_height(), 1) for bar in axes.patches]


def overlapping(axes_list, figure):
    """Pairs of texts (labels, titles, legends' words) that lie over one another in the drawn figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = []
    for axes in axes_list:
        found = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        left, right = axes.get_xlim()
        found += [label for label in axes.get_xticklabels() if left <= label.get_position()[0] <= right]
        found += axes.get_legend().get_texts() if axes.get_legend() else []
        texts += [text for text in found if text.get_text().strip() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    return [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[i + 1 :] if box.overlaps(other)]


def test_figure_1a_cuts_our_limit_where_the_paper_cuts_its_own(models):
    # limit 128: 4K/16K and 8K/16K of it are 32 and 64; lengths 15, 45, 90
    ours, paper = figures.share_and_accuracy(models[1]).axes
    assert [label.get_text() for label in ours.get_xticklabels()] == ["0–31", "32–63", "64+"]
    assert heights(ours) == [33.3, 100, 33.3, 50, 33.3, 0]
    assert heights(paper) == [75, 41, 11, 28, 14, 7]


def test_accuracy_bars_have_the_papers_value_beside_those_it_names(models):
    (axes,) = figures.accuracy_bars(models).axes
    assert heights(axes) == [100, 50, 83.3]
    diamonds = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "D"]
    assert diamonds == [49.6, 44.5, 55.4]


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


def test_figure_1e_draws_measured_accuracy_in_percent(training):
    ours, _ = figures.progression("E", [training]).axes
    (line,) = ours.lines
    assert list(line.get_xdata())[0] == 0 and list(line.get_ydata())[0] == pytest.approx(32)


def test_what_was_not_measured_is_said(training):
    ours, _ = figures.progression("E", []).axes
    assert ours.texts[0].get_text() == "not measured in these runs"


def test_no_text_lies_over_another(models, training):
    drawn: list[Figure] = [
        figures.accuracy_bars(models),
        figures.share_and_accuracy(models[1]),
        figures.accuracy_by_length(models),
        figures.reflection_words(models),
        *(figures.progression(panel, [training]) for panel in "DEF"),
        figures.figure_1(models, [training], models[1]),
    ]
    for figure in drawn:
        assert overlapping(figure.axes, figure) == []


def test_a_role_has_one_colour_in_every_figure(models):
    alone, _ = figures.reflection_words(models[2:]).axes
    together, _ = figures.reflection_words(models).axes
    assert alone.patches[0].get_facecolor() == together.patches[6].get_facecolor()


def test_group_bars_draw_the_largest_groups(models):
    cells = {f"skill {number:02d}": {"n": number, "accuracy": 0.5, "low": 0.4, "high": 0.6} for number in range(1, 16)}
    figure = figures.group_bars([{"benchmark": "wemath", "by": {"skill": cells}}])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == 12 and names[0] == "skill 04 (n = 4)"


def test_small_multiples_draw_one_panel_a_metric(training):
    figure = figures.metric_curves(training.metrics, ["reward/mean", "kl", "eval/accuracy"])
    assert [axes.get_title() for axes in figure.axes] == ["reward/mean", "kl", "eval/accuracy", ""]
    assert [len(axes.lines) for axes in figure.axes] == [1, 0, 1, 0]  # kl is null in every row
