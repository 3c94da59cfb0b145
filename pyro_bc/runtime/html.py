"""Small pieces of HTML, all text in them escaped: how results show themselves in a notebook, and on a report's page."""

import math
from collections.abc import Iterable, Sequence

from .markup import Markup, joined, markup

# Size of a picture and the margin in which its axes are named.
_WIDTH, _HEIGHT, _MARGIN = 360, 220, 36

# What is drawn with.
_LINE, _SOFT = "#1f77b4", "#8c959f"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table of text."""
    lines = [joined(markup("<th>{name}</th>", name=name) for name in head)]
    lines += [joined(markup("<td>{cell}</td>", cell=cell) for cell in cells) for cells in rows]
    body = joined((markup("<tr>{cells}</tr>", cells=cells) for cells in lines), "\n")
    return markup("<table>\n{body}\n</table>", body=body)


def paragraph(text: str) -> Markup:
    """A paragraph of text."""
    return markup("<p>{text}</p>", text=text)


def picture(
    points: Sequence[tuple[float, float]],
    x_name: str,
    y_name: str,
    *,
    chosen: tuple[float, float] | None = None,
    level: float | None = None,
    is_joined: bool = False,
    logarithmic: bool = False,
) -> Markup:
    """Points against each other as SVG; those that are not finite are left out.

    :param chosen: a point with a ring around it.
    :param level: of a grey line.
    :param is_joined: whether a line joins the points.
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

    parts = [
        markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" font-size="10">\n'
            '<rect width="{w}" height="{h}" fill="white"/>',
            w=_WIDTH, h=_HEIGHT,
        )
    ]  # fmt: skip
    if level is not None:
        (x1, y1), (x2, _) = at(left, level), at(right, level)
        parts.append(
            markup(
                '<line x1="{x1}" y1="{y}" x2="{x2}" y2="{y}" stroke="{colour}"/>',
                x1=f"{x1:.1f}", x2=f"{x2:.1f}", y=f"{y1:.1f}", colour=_SOFT,
            )
        )  # fmt: skip
    if is_joined:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in drawn))
        parts.append(markup('<polyline points="{path}" fill="none" stroke="{colour}"/>', path=path, colour=_LINE))
    circle = '<circle cx="{x}" cy="{y}" r="{r}" fill="{fill}" stroke="{stroke}"/>'
    marks = [(point, 2, _LINE, "none") for point in drawn] + [(point, 6, "none", "black") for point in ring]
    for point, radius, fill, stroke in marks:
        x, y = at(*point)
        parts.append(markup(circle, x=f"{x:.1f}", y=f"{y:.1f}", r=radius, fill=fill, stroke=stroke))
    first, last = (f"{10**end if logarithmic else end:,.4g}" for end in (left, right))
    bottom = _HEIGHT - _MARGIN + 14
    for x, y, anchor, text in (
        (_MARGIN, bottom, "start", first),
        (_WIDTH / 2, bottom, "middle", x_name),
        (_WIDTH - _MARGIN, bottom, "end", last),
        (_MARGIN - 4, _HEIGHT - _MARGIN, "end", f"{low:.3g}"),
        (_MARGIN - 4, _MARGIN, "end", f"{high:.3g}"),
        (_MARGIN, _MARGIN - 14, "start", y_name),
    ):
        parts.append(
            markup('<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>', x=f"{x:.0f}", y=y, anchor=anchor,
                   text=text)
        )  # fmt: skip
    return joined([*parts, markup("</svg>")], "\n")
