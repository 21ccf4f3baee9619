"""Sphinx settings of the site; docs/build.py lays out the source that is read here."""
import html, itertools, re, sys, textwrap
from configparser import ConfigParser
from importlib.metadata import files
from pathlib import Path

from docutils import nodes
from pygments.formatters import HtmlFormatter
from sphinx.highlighting import PygmentsBridge
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
viewcode_follow_imported_members = False  # they would bring pages of Python's own library

exclude_patterns = ["notebooks", "extra"]  # for download, and copied as they are

html_theme = "furo"
html_title = project
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"source_repository": "", "navigation_with_keys": True,
                      "light_css_variables": {"color-brand-primary": "#0b5c8c", "color-brand-content": "#0b5c8c", "color-brand-visited": "#5b4a8a"},
                      "dark_css_variables": {"color-brand-primary": "#6cb8e6", "color-brand-content": "#6cb8e6", "color-brand-visited": "#b3a1e6"}}
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"  # every colour at 7:1 or more
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. |\$ ", True
copybutton_selector = "div.highlight pre:not(.cell_output pre)"

# MathJax in one file, SVG output, from a package: nothing is fetched while viewing
MATHJAX = next(f for f in files("sphinx-mathjax-offline") if f.name == "tex-svg.js").locate()
mathjax_path = "tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}


# What runs a model on the page "Try it": onnxruntime-web, from npm (Makefile); without it that page says what is missing
RUNTIME = ROOT / "_build" / "onnxruntime-web" / "node_modules" / "onnxruntime-web" / "dist"
RUNTIME_FILES = ["ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]


def copy_scripts(app):
    "The scripts that come from packages, into the site."
    import bokeh
    static, scripts = Path(app.outdir) / "_static", Path(bokeh.__file__).parent / "server" / "static" / "js"
    static.mkdir(parents=True, exist_ok=True)
    for script in (MATHJAX, scripts / "bokeh.min.js", scripts / "bokeh-widgets.min.js"):
        (static / script.name).write_bytes(script.read_bytes())
    if RUNTIME.exists():
        (static / "onnxruntime-web").mkdir(exist_ok=True)
        for name in RUNTIME_FILES: (static / "onnxruntime-web" / name).write_bytes((RUNTIME / name).read_bytes())


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


class CodeLines(HtmlFormatter):
    "Each line of code in a span of its own, which knows its indentation: one too long for the page goes on below it."

    def wrap(self, source):
        return super().wrap((is_code, self.span(line) if is_code else line) for is_code, line in source)

    def span(self, line: str) -> str:
        text = html.unescape(re.sub(r"<[^>]+>", "", line))
        indentation = len(text) - len(text.lstrip(" "))
        return f'<span class="line" style="--indentation: {indentation}ch">{line.rstrip(chr(10))}</span>\n'


PygmentsBridge.html_formatter = CodeLines


def readable(tex: str) -> str:
    "A formula in plain characters, for places that show text only; most names in TeX are names in HTML too."
    tex = re.sub(r"\\(log|exp|cos|sin|arccos|max|min)\b", r"\1", tex)
    text = html.unescape(re.sub(r"\\([A-Za-z]+)", r"&\1;", tex))
    return re.sub(r"&\w+;|[\\{}$]", "", text).strip()


def plain_text(node: nodes.Node, longest: int = 300) -> str:
    "The text of a part of a page on one line, with readable formulas, cut between two words."
    copy = node.deepcopy()
    for formula in list(copy.findall(nodes.math)):
        formula.parent.replace(formula, nodes.Text(readable(formula.astext())))
    return textwrap.shorten(copy.astext(), longest, placeholder=" …")


def describe_figures(app, doctree):
    "The alternative text of a notebook's figure: the paragraph below it, else the one above it, else the heading."
    for cell in doctree.findall(lambda node: isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"):
        images = [image for image in cell.findall(nodes.image) if "alt" not in image]
        place, siblings = cell.parent.index(cell), cell.parent.children
        below = itertools.takewhile(lambda node: not isinstance(node, nodes.section), siblings[place:])
        candidates = [node for part in (below, siblings[place::-1]) for node in part if isinstance(node, (nodes.paragraph, nodes.title))]
        for image in images: image["alt"] = plain_text(candidates[0])


def describe_page(app, pagename, templatename, context, doctree):
    "What a search engine shows of a page: a title of its own and, under it, the first quotation or paragraph."
    if pagename.startswith("_modules/acl_paper/"): context["title"] = f"Source of {context['title']}"
    first = next((node for kind in (nodes.block_quote, nodes.paragraph) for node in (doctree.findall(kind) if doctree else ())), None)
    text = plain_text(first, 160) if first else settings["description"]
    context["metatags"] = context.get("metatags", "") + f'<meta name="description" content="{html.escape(text)}">'


def mend_markup(app, pagename, templatename, context, doctree):
    "What Sphinx, Furo and MyST-NB write and screen readers cannot make sense of."
    context["furo_navigation_tree"] = context["furo_navigation_tree"].replace('role="heading"', 'role="heading" aria-level="2"')
    if "body" not in context: return
    body = context["body"].replace(' aria-label="Toggle hidden content"', "")
    parameters = re.compile(r"<dl>\n((?:<dd>.*</dd>\n)+)</dl>\s*")  # of a long signature: a list of definitions without terms
    as_spans = lambda found: '<span class="parameters">\n' + found[1].replace("<dd>", "<span>").replace("</dd>", "</span>") + "</span>"
    context["body"] = parameters.sub(as_spans, body)


def setup(app):
    app.connect("builder-inited", copy_scripts)
    app.connect("autodoc-process-docstring", document_command, priority=90)
    app.connect("autodoc-process-docstring", escape_docstring, priority=100)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("doctree-read", describe_figures)
    app.connect("doctree-resolved", link_names)
    app.connect("html-page-context", describe_page)
    app.connect("html-page-context", mend_markup, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
