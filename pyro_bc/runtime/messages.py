"""What other libraries' errors say, in the words of ours."""

from ..errors import printable


def first_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its class where it says nothing."""
    return printable(next(iter(str(error).strip().splitlines()), type(error).__name__))
