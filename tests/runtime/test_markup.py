"""What is no markup by its type is escaped wherever it is put."""

import pytest

from pyro_bc.runtime.markup import Markup, joined, markup


def test_text_is_escaped_and_markup_is_not():
    cell = markup("<td>{text}</td>", text="<b> & \"'")
    assert cell == "<td>&lt;b&gt; &amp; &quot;&#x27;</td>" and isinstance(cell, Markup)
    assert markup("<tr>{cell}{number}</tr>", cell=cell, number=3) == f"<tr>{cell}3</tr>"
    assert joined([cell, cell], "\n") == f"{cell}\n{cell}"


def test_what_looks_like_a_place_in_text_is_text():
    assert markup("<p>{text}</p>", text="{other}") == "<p>{other}</p>"


def test_text_cannot_be_joined_to_markup():
    for text in ("<b>", str(markup("<b>")), markup("<b>") + "<script>"):
        with pytest.raises(TypeError, match="only markup"):
            joined([markup("<p>"), text])
