"""What results show of themselves is well-formed, and no text of a user's is markup."""

import math
from xml.etree import ElementTree

import pytest

from pyro_bc.runtime.html import paragraph, picture, table

HOSTILE = '<script>alert("x")</script> & <b>'
SVG = "{http://www.w3.org/2000/svg}"


def test_text_is_escaped_everywhere():
    for made in (
        table([HOSTILE], [[HOSTILE], [1]]), paragraph(HOSTILE), picture([(1.0, 2.0)], HOSTILE, HOSTILE),
    ):  # fmt: skip
        assert "<script" not in made and "<b>" not in made
        assert HOSTILE in "".join(ElementTree.fromstring(made).itertext())


@pytest.mark.parametrize("logarithmic", [False, True])
def test_points_lie_in_the_picture_in_their_order(logarithmic):
    points = [(10.0, 4.0), (100.0, 2.0), (1000.0, 1.0), (500.0, math.nan), (0.0, math.inf)]
    made = picture(points, "bytes", "error", chosen=(100.0, 2.0), level=0.5, is_joined=True, logarithmic=logarithmic)
    found = ElementTree.fromstring(made)
    places = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in found.iter(f"{SVG}circle")]
    *dots, ring = places
    assert len(dots) == 3 and ring == dots[1]
    assert all(0 < x < 360 and 0 < y < 220 for x, y in places)
    xs, ys = zip(*dots, strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys)  # SVG counts downwards: less error is lower
    if logarithmic:
        assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])
    assert float(next(found.iter(f"{SVG}line")).get("y1")) > max(ys)


def test_a_picture_of_nothing_says_so():
    assert "nothing to draw" in picture([(1.0, math.nan)], "x", "y")
    assert picture([(3.0, 3.0)], "x", "y").count("<circle") == 1
