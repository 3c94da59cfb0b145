"""What can go wrong, as exceptions that say what to do about it.

Every error that a user can cause derives from :class:`PyroBCError`; the command line turns it into one
line on standard error and exit code 2.
"""

import re

# What Pyro adds to a ValueError that is raised within a model.
_ADDED = re.compile(r"\n *Trace Shapes:.*", re.DOTALL)

# Characters of one message: what a file holds may be quoted in it, however long it is.
_LONGEST = 8000


def printable(text: str) -> str:
    r"""One line of text in which nothing makes a terminal do anything: what cannot be seen is written as in Python.

    Text that is in a file, a path or data may hold sequences that move the cursor, change colours or the order of
    writing, or end the line.

    >>> print(printable("red \x1b[31m, and a second\nline"))
    red \x1b[31m, and a second\nline
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class PyroBCError(Exception):
    """Base class of the errors that a user of ``pyro_bc`` can cause and mend; what it quotes is :func:`printable`.

    :param is_everywhere: whether it is raised on every process of a run on several, so that one is enough to say it.
    """

    is_everywhere = False

    def __str__(self) -> str:
        text = printable(_ADDED.sub("", super().__str__()))
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


class ImproperPriorError(PyroBCError, NotImplementedError):
    """A density without a normaliser was asked for a sample."""


class UnsupportedSiteError(PyroBCError, ValueError):
    """A latent site whose support no factorised family covers."""


class UnsupportedNetworkError(PyroBCError, ValueError):
    """A network that contains a module or an operation that cannot be compressed."""


class NonFiniteLossError(PyroBCError, ArithmeticError):
    """The loss, or what it is made of, became NaN or infinite during training."""


class EmptyNetworkError(PyroBCError, ValueError):
    """Pruning left a layer without a single weight."""


class CheckpointError(PyroBCError, ValueError):
    """A checkpoint that is missing, damaged, or belongs to another run."""


class OutputError(PyroBCError, OSError):
    """A file that could not be written: no space, no permission."""


class CompressedFileError(PyroBCError, ValueError):
    """A file that is not a readable ``.pbc`` file."""


class ExcessError(PyroBCError, ValueError):
    """A network from a file that takes more work or memory than the limits allow."""


class DataError(PyroBCError, ValueError):
    """A data set that is unknown, missing or damaged."""


class UsageError(PyroBCError, ValueError):
    """An argument outside of what is allowed."""


class LostProcessError(PyroBCError, RuntimeError):
    """A process of a run on several does not answer any more."""


class ExportError(PyroBCError):
    """A network could not be written in another format."""
