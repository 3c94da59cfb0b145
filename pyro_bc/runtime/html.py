"""Small pieces of HTML, all text in them escaped: how results show themselves in a notebook, and on a report's page."""

import html
import math
from collections.abc import Iterable, Sequence

# Size of a picture and the margin in which its axes are named.
_WIDTH, _HEIGHT, _MARGIN = 360, 220, 36

# What is drawn with.
_LINE, _SOFT = "#1f77b4", "#8c959f"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of text."""
    lines = ["<table>", "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + "</tr>"]
    for cells in rows:
        lines.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{html.escape(text)}</p>"


def picture(
    points: Sequence[tuple[float, float]],
    x_name: str,
    y_name: str,
    *,
    chosen: tuple[float, float] | None = None,
    level: float | None = None,
    joined: bool = False,
    logarithmic: bool = False,
) -> str:
    """Points against each other as SVG; those that are not finite are left out.

    :param chosen: a point with a ring around it.
    :param level: of a grey line.
    :param joined: whether a line joins the points.
    :param logarithmic: whether the horizontal axis is, of positive numbers.
    """
    scale = math.log10 if logarithmic else float
    drawn = [(scale(x), y) for x, y in points if math.isfinite(y) and (x > 0 or not logarithmic)]
    if not drawn:
        return paragraph("nothing to draw")
    ring = [] if chosen is None else [(scale(chosen[0]), chosen[1])]
    left, right = min(x for x, _ in drawn), max(x for x, _ in drawn)
    heights = [y for _, y in drawn] + ([] if level is None else [level])
    low, high = min(heights), max(heights)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / ((right - left) or 1)
        up = (y - low) / ((high - low) or 1)
        return _MARGIN + across * (_WIDTH - 2 * _MARGIN), _HEIGHT - _MARGIN - up * (_HEIGHT - 2 * _MARGIN)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-size="10">']
    parts.append(f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>')
    if level is not None:
        (x1, y1), (x2, _) = at(left, level), at(right, level)
        parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y1:.1f}" stroke="{_SOFT}"/>')
    if joined:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in drawn))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_LINE}"/>')
    for x, y in (at(*point) for point in drawn):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{_LINE}"/>')
    for x, y in (at(*point) for point in ring):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="black"/>')
    first, last = (f"{10**end if logarithmic else end:,.4g}" for end in (left, right))
    bottom = _HEIGHT - _MARGIN + 14
    for x, anchor, text in (
        (_MARGIN, "start", first), (_WIDTH / 2, "middle", x_name), (_WIDTH - _MARGIN, "end", last),
    ):  # fmt: skip
        parts.append(f'<text x="{x:.0f}" y="{bottom}" text-anchor="{anchor}">{html.escape(text)}</text>')
    for y, text in ((_HEIGHT - _MARGIN, f"{low:.3g}"), (_MARGIN, f"{high:.3g}")):
        parts.append(f'<text x="{_MARGIN - 4}" y="{y}" text-anchor="end">{html.escape(text)}</text>')
    parts.append(f'<text x="{_MARGIN}" y="{_MARGIN - 14}">{html.escape(y_name)}</text>')
    return "\n".join([*parts, "</svg>"])
