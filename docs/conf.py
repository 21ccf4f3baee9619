"""Sphinx settings of the site; docs/build.py lays out the source that is read here."""
import re, sys
from configparser import ConfigParser
from importlib.metadata import files
from pathlib import Path

from docutils import nodes
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(ROOT / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project = author = settings["lib_name"]
project_copyright = settings["copyright"]
version = release = settings["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "numpydoc", "sphinx_copybutton"]

nb_execution_mode = "off"  # the committed outputs are shown
nb_ipywidgets_js = {}  # would be fetched from elsewhere
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables that a notebook displays
nb_code_prompt_show, nb_code_prompt_hide = "Imports", "Imports"
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath", "linkify", "tasklist"]
myst_linkify_fuzzy_links = False
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a notebook may go from # to ###
smartquotes = False

add_module_names = False
default_role = "py:obj"  # single backticks in docstrings
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autosummary_generate = False
numpydoc_show_class_members = False
python_display_short_literal_types = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
viewcode_line_numbers = True

exclude_patterns = ["notebooks"]  # for download

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"source_repository": "", "navigation_with_keys": True,
                      "light_css_variables": {"color-brand-primary": "#0b5c8c", "color-brand-content": "#0b5c8c", "color-brand-visited": "#5b4a8a"},
                      "dark_css_variables": {"color-brand-primary": "#6cb8e6", "color-brand-content": "#6cb8e6", "color-brand-visited": "#b3a1e6"}}
pygments_style, pygments_dark_style = "tango", "github-dark"
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. |\$ ", True
copybutton_selector = "div.highlight pre, .cell_input pre"

# MathJax in one file, SVG output, from a package: nothing is fetched while viewing
MATHJAX = next(f for f in files("sphinx-mathjax-offline") if f.name == "tex-svg.js").locate()
mathjax_path = "tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}


def copy_scripts(app):
    "The scripts that come from packages, into the site."
    import bokeh
    static, scripts = Path(app.outdir) / "_static", Path(bokeh.__file__).parent / "server" / "static" / "js"
    static.mkdir(parents=True, exist_ok=True)
    for script in (MATHJAX, scripts / "bokeh.min.js", scripts / "bokeh-widgets.min.js"):
        (static / script.name).write_bytes(script.read_bytes())


def escape_docstring(app, what, name, obj, options, lines):
    "Docstrings are plain text: `*`, `|` and a trailing `_` have no meaning of their own outside backticks and examples."
    example = False
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or example and bool(line.strip())
        if not example: lines[i] = "".join(part if part.startswith("`") else re.sub(r"([*|]|\\(?!\w))|(?<=\w)_(?!\w)", lambda m: "\\" + m[0], part) for part in re.split(r"(`+[^`]*`+)", line))


def document_command(app, what, name, obj, options, lines):
    "A console command has a comment beside each parameter instead of a section of its docstring."
    if what != "function" or "Parameters" in lines: return
    from fastcore.docments import docments
    described = {k: v for k, v in docments(obj).items() if v and k != "return"}
    if described: lines += ["", "Parameters", "----------", *(f"{k} : {' '.join(v.split())}" for k, v in described.items()), ""]


def skip_member(app, what, name, obj, skip, options):
    "Fields of named tuples have no docstring of their own (`Alias for field number 0`); the class's says what they are."
    return True if type(obj).__name__ == "_tuplegetter" else None


def link_names(app, doctree, docname):
    "Code in running text that names a public object or a module of the package becomes a link to its page."
    objects, short = app.env.domains["py"].objects, {}
    for full, entry in objects.items():
        parts = full.split(".")
        for start in range(1, len(parts)): short.setdefault(".".join(parts[start:]), set()).add(full)
    for literal in list(doctree.findall(nodes.literal)):
        parent = literal.parent
        if any(isinstance(a, (nodes.reference, nodes.title)) for a in (parent, parent.parent)): continue
        text = literal.astext().removesuffix("()")
        found = {text} if text in objects else short.get(text, set())
        # short lower-case words (`mask`, `spread`) are more often a variable than the function of that name
        if len(found) != 1 or not re.search(r"[_.A-Z]", text): continue
        full = next(iter(found))
        entry = objects[full]
        literal.replace_self(make_refnode(app.builder, docname, entry.docname, entry.node_id, literal.deepcopy(), full))


def setup(app):
    app.connect("builder-inited", copy_scripts)
    app.connect("autodoc-process-docstring", document_command, priority=90)
    app.connect("autodoc-process-docstring", escape_docstring, priority=100)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("doctree-resolved", link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
