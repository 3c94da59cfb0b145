"""How the pages are built: ``sphinx-build -W --keep-going -n -b html docs docs/_build``."""

import argparse
import re
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyro_bc.app.cli import parser

project = "pyro_bc"
author = "the authors of pyro_bc"
copyright = "the authors of pyro_bc, under the MIT license"
try:
    release = version_of("pyro-bc")
except PackageNotFoundError:  # built from a folder that is not installed
    release = ""

# No intersphinx: a build must not need the network.
extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax"]
html_theme = "furo"
html_title = "pyro_bc"
exclude_patterns = ["_build"]

autodoc_default_options = {"members": True, "member-order": "bysource"}
# A method without a docstring says nothing; torch's own would be printed for every ``forward`` otherwise.
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

# Other packages, whose pages are not linked, and a type variable.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|pyro|numpy|np|matplotlib|pathlib|os|collections\.abc|argparse)\..*"),
    ("py:.*", "Tensor|Axes|Batch|pyro_bc.runtime.processes.T"),
]


class CommandOptions(SphinxDirective):
    """``.. command-options::`` lists what :func:`pyro_bc.app.cli.parser` takes, so that the page keeps up."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the page's source stays the same when the parser changes
        (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
        summaries = {choice.dest: choice.help for choice in commands._choices_actions}
        lines: list[str] = []
        for name, command in commands.choices.items():
            lines += [command.prog, "-" * len(command.prog), "", f".. program:: {command.prog}", ""]
            lines += [_plain(summaries[name] or ""), ""]
            for action in command._actions:
                if action.dest != "help":
                    lines += _option(action, command._get_formatter()._expand_help(action) if action.help else "")
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _option(action: argparse.Action, text: str) -> list[str]:
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    spellings = [f"{spelling} {value}" if action.nargs != 0 else spelling for spelling in action.option_strings]
    notes = [_plain(text)] if text else []
    if action.required and action.option_strings:
        notes.append("required")
    if action.default not in (None, False, [], argparse.SUPPRESS):
        notes.append(f"default ``{action.default}``")
    return [f".. option:: {', '.join(spellings) or value}", "", f"   {'; '.join(notes)}", ""]


def _plain(text: str) -> str:
    """A help text with nothing in it that would be markup on a page."""
    return re.sub(r"([\\*|`_])", r"\\\1", text)


def _by_last_part(app: Sphinx, env: Any, node: nodes.Element, content: nodes.Element) -> nodes.Element | None:
    """What a docstring names by its module (``pyro_bc.graph.read.read_graph``) is shown as the package exports it."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or node["reftype"] == "mod" or node.get("refspecific"):
        return None
    parts = target.split(".")
    if len(parts) > 1 and parts[0] != "pyro_bc" and not parts[0][:1].isupper():
        return None  # of another package
    # A method is named with its class, which begins with a capital.
    kept = 2 if len(parts) > 1 and parts[-2][:1].isupper() else 1
    node["refspecific"] = True
    domain = env.get_domain("py")
    name = ".".join(parts[-kept:])
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, content)


def setup(app: Sphinx) -> None:
    app.add_directive("command-options", CommandOptions)
    app.connect("missing-reference", _by_last_part)
