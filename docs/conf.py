"""Sphinx settings of the documentation site. `make docs` builds it; every warning is an error."""

import re

from gjwm import __version__

project = "gjwm"
author = "the gjwm authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"gjwm {version}"
html_static_path = ["assets"]
html_extra_path = ["study.csv", "study-latents.csv", "study/estimators.csv", "online.csv"]
html_show_sphinx = False
smartquotes = False

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

SECTION = re.compile(r"^(Args|Arguments|Returns|Yields|Raises|Shapes?|Example|Examples|Note):\s*$")
LITERAL = re.compile(r"(``.+?``|`[^`]+`)")


def plain_text_as_rst(text: str) -> str:
    """Inline code in single quotes, and no other markup: `|z|`, `x*` and `a_` are mathematics."""
    parts = LITERAL.split(text)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"``{part.strip('`')}``"
        else:
            parts[i] = re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part)
    return "".join(parts)


def rst_from_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Our docstrings are plain text with Google sections and indented formulas; make them RST."""
    out: list[str] = []
    section, literal, doctest = None, False, False
    for line in lines:
        blank, indented = not line.strip(), line.startswith(" ")
        if header := SECTION.match(line):
            section, literal = header.group(1), False
        elif section and not blank and not indented:
            section = None
        after_blank = not out or not out[-1].strip()
        if line.lstrip().startswith(">>>"):
            doctest = True
        elif blank:
            doctest = False
        if blank or doctest:
            out.append(line)
            continue
        if literal and not indented:
            literal = False
        if section and indented:  # one level: entries at 4, their other lines at 8
            entry = not line.startswith("     ") or section in ("Returns", "Yields")
            line = ("    " if entry else "        ") + line.lstrip()
        elif indented and not literal:
            if after_blank and not is_list(out):
                out += ["::", ""]
                literal = True
            elif not is_list(out):
                line = line.lstrip()  # a continuation line
        if literal:
            out.append(line)
            continue
        bullet = re.match(r"\s*([*-]|\d+\.) ", line)
        start = bullet.group() if bullet else ""
        out.append(start + plain_text_as_rst(line[len(start) :]))
    lines[:] = out


def is_list(lines: list[str]) -> bool:
    """Whether the last unindented line begins a list item."""
    last = next((line for line in reversed(lines) if line and not line.startswith(" ")), "")
    return bool(re.match(r"([*-]|\d+\.) ", last))


def setup(app) -> None:
    app.connect("autodoc-process-docstring", rst_from_docstring, priority=100)  # before napoleon
