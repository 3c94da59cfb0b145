"""What other libraries' errors say, in the words of ours."""

from ..errors import printable


def first_line(error: BaseException | str) -> str:
    """What an error says, in one line, the second where the first announces it; its class where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, KeyError):  # which says the key alone
        lines[0] = f"KeyError: {lines[0]}"
    return printable(" ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")]))
