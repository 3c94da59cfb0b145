"""HTML in which text stays text: what is not markup by its type is escaped wherever it is put into markup."""

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import LiteralString


class Markup(str):
    """HTML that is right as it stands; :func:`markup` and :func:`joined` make it."""


def markup(template: "LiteralString", **parts: Any) -> Markup:
    """A piece of HTML with something in each of its places.

    :param template: written in the program, never read from anywhere, with places as in ``str.format``.
    :param parts: by the names of the places: :class:`Markup` goes in as it is, the text of anything else escaped.

    >>> markup("<td>{cell}</td>", cell="a < b")
    '<td>a &lt; b</td>'
    """
    own = {name: part if isinstance(part, Markup) else html.escape(str(part)) for name, part in parts.items()}
    return Markup(template.format(**own))


def joined(parts: Iterable[Markup], between: "LiteralString" = "") -> Markup:
    """Several pieces of HTML as one.

    :raises TypeError: where one of them is plain text.
    """
    pieces = list(parts)
    for piece in pieces:
        if not isinstance(piece, Markup):
            raise TypeError("only markup can be joined to markup")
    return Markup(between.join(pieces))
