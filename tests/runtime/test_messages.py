"""What errors quote does nothing to a terminal, whoever wrote it."""

import unicodedata

import pytest

import pyro_bc.errors
from pyro_bc.errors import CompressedFileError, OutputError, PyroBCError, printable
from pyro_bc.runtime.messages import first_line

EVIL = "\x1b[31mred\x1b]0;title\x07\r\n\t\x9b\x7f\u202e\u2066\u200b\ud800 ü → 火"


def test_everything_that_is_no_sign_is_spelled():
    text = printable(EVIL)
    assert not [c for c in text if unicodedata.category(c)[0] == "C"] and text.endswith(" ü → 火")
    assert text.startswith("\\x1b[31mred\\x1b]0;title\\x07\\r\\n\\t\\x9b\\x7f\\u202e")
    assert printable(text) == text


@pytest.mark.parametrize("kind", [kind for kind in vars(pyro_bc.errors).values() if isinstance(kind, type)])
def test_every_error_of_ours_spells_what_it_quotes(kind):
    if issubclass(kind, PyroBCError):
        assert str(kind(f"'{EVIL}' is no file")) == f"'{printable(EVIL)}' is no file"
        assert len(str(kind("x" * 100_000))) < 10_000


def test_the_first_line_of_anothers_error_is_spelled_too():
    assert first_line(ValueError("\x1b[31mno\nmore")) == "\\x1b[31mno"
    assert str(OutputError("a", "b")) and str(CompressedFileError()) == ""
