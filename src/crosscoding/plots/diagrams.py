"""Draws the diagrams of Figures 1 and 13: the graphical model of a VAE, and the framework."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from crosscoding.plots.style import COLOURS, new_figure

_OBSERVED, _FREE, _FITTED = "0.8", "white", "#FBE3B4"
_RADIUS = 0.42

Point = tuple[float, float]


def graphical_model() -> Figure:
    """The model, z above evidence and query, and beside it the cross-coder's approximation."""
    figure = new_figure(7.6, 3.6)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for axes, title in (
        (left, "The model: p(z) p(x|z) p(y|z)"),
        (right, "The approximation: q(ε) δ(z − XCoder(ε)) p(y|z)"),
    ):
        _empty(axes, (0, 5), (0, 5), title)
    _node(left, (2.5, 3.4), "z", _FREE)
    _node(left, (1.3, 1.2), "x", _OBSERVED)
    _node(left, (3.7, 1.2), "y", _FREE)
    _arrow(left, (2.5, 3.4), (1.3, 1.2))
    _arrow(left, (2.5, 3.4), (3.7, 1.2))
    left.text(1.3, 0.45, "evidence", ha="center", fontsize=9)
    left.text(3.7, 0.45, "query", ha="center", fontsize=9)
    _node(right, (0.9, 3.4), "ε", _FREE)
    _node(right, (3.1, 3.4), "z", _FITTED)
    _node(right, (3.1, 1.2), "y", _FREE)
    _arrow(right, (0.9, 3.4), (3.1, 3.4))
    _arrow(right, (3.1, 3.4), (3.1, 1.2))
    right.text(2.0, 3.6, "XCoder$_ψ$", ha="center", fontsize=9)
    right.text(3.3, 2.3, "decoder,\nas it was trained", va="center", fontsize=9)
    right.text(0.9, 2.6, "N(0, I)", ha="center", fontsize=9)
    right.text(3.1, 0.45, "query", ha="center", fontsize=9)
    return figure


def framework() -> Figure:
    """The way from a trained VAE and evidence to answers: what is fixed, fitted, and returned."""
    figure = new_figure(9.6, 3.9)
    axes = _empty(figure.add_subplot(), (0, 12), (0, 5), "Cross-coding")
    boxes = {
        "noise": ((0.2, 2.9), "noise\nε ~ N(0, I)", _FREE),
        "xcoder": ((2.75, 2.9), "XCoder$_ψ$\nGVI, NF or FCN", _FITTED),
        "z": ((5.3, 2.9), "z ~ q(z|x)", _FREE),
        "decoder": ((7.85, 2.9), "decoder\np(t|z), trained", _OBSERVED),
        "answer": ((10.0, 2.9), "", _FREE),
        "evidence": ((7.85, 0.5), "evidence x\nany split", _OBSERVED),
        "bound": ((4.1, 0.5), "C-ELBO =\nE[log p(z, x) + log |det ∇XCoder|]\n+ H[q(ε)]", _FREE),
    }
    for name, (corner, text, shade) in boxes.items():
        if name != "answer":
            _box(axes, corner, text, shade, 3.2 if name == "bound" else 1.8)
    axes.text(10.35, 3.5, "p(y|x) ≈\n$\\frac{1}{M}$ Σ p(y|z$_m$)", va="center", fontsize=10)
    for start, end in [((2.0, 3.5), (2.7, 3.5)), ((4.55, 3.5), (5.25, 3.5))]:
        _line(axes, start, end)
    _line(axes, (7.1, 3.5), (7.8, 3.5))
    _line(axes, (9.65, 3.5), (10.25, 3.5))
    _line(axes, (8.4, 2.85), (7.1, 1.75))
    _line(axes, (7.8, 1.1), (7.35, 1.1))
    _line(axes, (6.2, 2.85), (6.2, 1.75))
    _line(axes, (4.05, 1.1), (3.65, 2.85), COLOURS["GVI"], "arc3,rad=-0.35")
    axes.text(2.0, 1.6, "gradients with respect\nto ψ: Algorithm 1", ha="center", fontsize=9)
    return figure


def _empty(axes: Axes, x: Point, y: Point, title: str) -> Axes:
    axes.set_xlim(x)
    axes.set_ylim(y)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.text(sum(x) / 2, y[1], title, ha="center", va="top", fontsize=10)
    return axes


def _node(axes: Axes, at: Point, text: str, shade: str) -> None:
    axes.add_patch(Circle(at, _RADIUS, facecolor=shade, edgecolor="black", zorder=2))
    axes.text(*at, text, ha="center", va="center", fontsize=13, style="italic", zorder=3)


def _box(axes: Axes, corner: Point, text: str, shade: str, width: float) -> None:
    style = "round,pad=0,rounding_size=0.15"
    patch = FancyBboxPatch(corner, width, 1.2, boxstyle=style, facecolor=shade, edgecolor="black")
    axes.add_patch(patch)
    middle = corner[0] + width / 2, corner[1] + 0.6
    axes.text(*middle, text, ha="center", va="center", fontsize=9)


def _arrow(axes: Axes, start: Point, end: Point) -> None:
    """An arrow between two nodes, from edge to edge."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx**2 + dy**2) ** 0.5
    share = _RADIUS / length
    first = start[0] + share * dx, start[1] + share * dy
    last = end[0] - share * dx, end[1] - share * dy
    _line(axes, first, last)


def _line(
    axes: Axes, start: Point, end: Point, colour: str = "black", bend: str = "arc3,rad=0"
) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.2, "connectionstyle": bend}
    axes.annotate("", end, start, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
