"""What a drawn figure shows: bars, and texts that lie over one another or out of the picture."""

from matplotlib.backends.backend_agg import FigureCanvasAgg


def heights(axes):
    return [round(float(bar.get_height()), 1) for bar in axes.patches]


def widths(axes):
    return [round(float(bar.get_width()), 1) for bar in axes.patches]


def shown(figure):
    """Every text of the figure with its box in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
        texts += labels_inside(axes.get_xticklabels(), axes.get_xlim(), 0) + labels_inside(
            axes.get_yticklabels(), axes.get_ylim(), 1
        )
    visible = [text for text in texts if text.get_text().strip() and text.get_visible()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in visible]


def labels_inside(labels, limits, which):
    return [label for label in labels if min(limits) <= label.get_position()[which] <= max(limits)]


def overlapping(figure):
    """Pairs of texts that lie over one another."""
    boxes = shown(figure)
    return [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[i + 1 :] if box.overlaps(other)]
