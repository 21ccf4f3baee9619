"""Build the site from the notebooks: python docs/build.py [OUTPUT [WORK]], by default _build/html and _build.

Nothing is executed. The notebooks, with their committed outputs, the project pages and one page a module are laid out in
WORK/src; Sphinx reads them there. Only files that changed are written, so that a second build takes seconds.
"""
import ast, io, re, sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import numpy as np
import soundfile
from execnb.nbio import read_nb
from nbdev.process import NBProcessor
from nbdev.processors import filter_stream_, hide_, hide_line, rm_header_dash, strip_ansi

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
import explorer
import keep_executed
import robustness
import try_it
from acl_paper import mini

settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(ROOT / "settings.ini", encoding="utf-8")
REPOSITORY, BRANCH = "https://github.com/{user}/{repo}".format_map(settings["DEFAULT"]), settings["DEFAULT"]["branch"]
BADGE = re.compile(r"\[!\[Open in Colab\]\(\S+\)\]\((\S+)\)")

# The order in which a newcomer reads. A notebook that is not named here comes last in its section.
WORKFLOW = ["train", "test", "pretrain", "probe", "results", "results_selfsupervised", "change_it"]
STUDIES = ["uniformity_tolerance", "audit", "loss_comparison", "benchmark"]

# Where the pages of earlier versions are now
MOVED = {
    "motivation": "01_motivation", "04_losses": "02_losses", "04b_robust_losses": "03_robust_losses", "13_robust_losses": "03_robust_losses",
    "00_data": "05_data", "01_mini": "07_mini", "02_features": "08b_log_mel", "08_features": "08c_features", "03_model": "10_networks", "09_encoders": "10_networks",
    "08_augment": "11_augment", "06_evaluation": "12_evaluation", "05_training": "13_training", "10_selfsupervised": "14_pretraining",
    "11_embedding_quality": "16_embedding_quality", "07_results": "18_results", "12_inference": "20_inference", "19_inference": "20_inference",
    "14_workflow": "21_workflow", "20_workflow": "21_workflow", "20b_export": "20c_export", "api/model": "api/networks", "api/encoders": "api/networks",
    "api/selfsupervised": "api/pretraining", "api/benchmark": "benchmark",
}

# Quarto's cell options, which nbdev_docs honours too, as MyST-NB's cell tags
OPTIONS = {("echo", "false"): "remove-input", ("output", "false"): "remove-output", ("include", "false"): "remove-cell",
           ("code-fold", "true"): "hide-input"}
DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*\|\s*([\w-]+)(?::\s*(\S+))?.*\n?", re.MULTILINE)


def sections() -> dict[str, list[str]]:
    "Notebook names by section of the table of contents."
    names = sorted(p.stem for p in (ROOT / "nbs").glob("*.ipynb") if p.stem != "index" and p.stem[0] not in "._")
    ranked = lambda chosen, order: sorted(chosen, key=lambda n: order.index(n) if n in order else len(order))
    steps = [n for n in names if n[:2].isdigit()]
    return {"The paper, step by step": steps,
            "Run it": ranked([n for n in names if n in WORKFLOW], WORKFLOW) + ["explorer", "try_it"],
            "Studies": ranked([n for n in names if n not in WORKFLOW + steps], STUDIES)}


def relink(text: str, folder: str) -> str:
    "Links of a file in `folder` of the repository, as links of the site; pictures from elsewhere become their alternative text."
    text = re.sub(r"!\[([^\]]*)\]\(https?:[^)]*\)", r"\1", text)  # a badge would be fetched from its host

    def target(match):
        before, link, after = match.groups()
        if re.match(r"[a-z]+:|#", link): return match[0]
        path, _, fragment = link.partition("#")
        found = next((p for p in ((ROOT / folder / path).resolve(), (ROOT / path).resolve()) if p.exists() and p.is_relative_to(ROOT)), None)
        if found is None: return match[0]  # Sphinx says what is wrong with it
        inside = found.relative_to(ROOT)
        if inside.parent == Path("nbs") and inside.suffix == ".ipynb": new = inside.name
        elif inside.name in PROJECT_PAGES: new = PROJECT_PAGES[inside.name]
        elif inside.as_posix() in MADE_PAGES: new = MADE_PAGES[inside.as_posix()]
        elif inside.suffix in (".png", ".svg", ".jpg", ".gif"):
            new = f"_images_of_pages/{inside.name}"
            put(new, found.read_bytes())
        else: new = f"{REPOSITORY}/{'tree' if found.is_dir() else 'blob'}/{BRANCH}/{inside}"
        return before + new + ("#" + fragment if fragment else "") + after

    return re.sub(r"(\]\(<?|(?:src|href)=\")([^)\s\">]+)(>?[\s)]|\")", target, text)


SOURCE = ROOT / "_build" / "src"  # where `put` writes
MADE_PAGES = {"docs/robustness.py": "robustness.md", "docs/try_it.py": "try_it.md"}  # by what makes them
PROJECT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.ipynb"}
written: set[Path] = set()


def put(name: str, content: str | bytes):
    "Write a file of the site's source, only when it differs."
    path, content = SOURCE / name, content.encode() if isinstance(content, str) else content
    written.add(path)
    if path.exists() and path.read_bytes() == content: return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def executed(path: Path):
    "The notebook, with the outputs that were kept if it is one that papermill runs."
    notebook = read_nb(path)
    if (kept := keep_executed.kept(path.stem)) is None: return notebook
    outputs = {cell.id: cell.outputs for cell in read_nb(kept).cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs = outputs.get(cell.id, [])
    return notebook


def origin(path: Path) -> str:
    "How the outputs that were kept came to be; empty for other notebooks."
    if (kept := keep_executed.kept(path.stem)) is None: return ""
    about = nbformat.read(kept, 4).metadata.executed
    made = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    given = ", ".join(f"`{name}={value}`" for name, value in about.parameters.items())
    return f""":::{{note}}
Executed on {about.on} by `make reproduce` on the **synthetic mini data set**, which says nothing about accuracies on FSDnoisy18k.
Parameters given: {given}. Versions: {made}.
:::"""


def site_notebook(path: Path) -> nbformat.NotebookNode:
    "A notebook as the site shows it: nbdev's directives obeyed and removed, no raw cells, links of the site."
    processor = NBProcessor(nb=executed(path), procs=[strip_ansi, hide_line, filter_stream_, rm_header_dash, hide_], rm_directives=False)
    processor.process()
    cells = []
    for cell in processor.nb.cells:
        if not cell.get("source") or cell.cell_type == "raw" or BADGE.fullmatch(cell.source): continue  # the badge becomes a link of the banner
        if cell.cell_type == "code":
            options = DIRECTIVE.findall(cell.source)
            cell.source = DIRECTIVE.sub("", cell.source).strip("\n")
            cell.metadata.tags = [*cell.metadata.get("tags", []), *(OPTIONS[o] for o in options if o in OPTIONS)]
            if not cell.source: continue
            if imports_only(cell):  # folded, and several in a row as one
                if cells and cells[-1].cell_type == "code" and imports_only(cells[-1]):
                    cells[-1].source += "\n" + cell.source
                    continue
                cell.metadata.tags.append("hide-input")
        else: cell.source = relink(cell.source, "nbs")
        cells.append(cell)
        if path.stem == "07_mini" and (sounds := players(cell)): cells.append(nbformat.v4.new_markdown_cell(sounds))
    cells = [{key: value for key, value in cell.items() if not key.endswith("_")} for cell in cells]  # without nbdev's notes
    notebook = nbformat.from_dict({**processor.nb, "cells": cells})
    notebook.metadata.pop("widgets", None)
    return nbformat.from_dict({k: v for k, v in notebook.items() if not k.endswith("_")})


def imports_only(cell) -> bool:
    try: statements = ast.parse(cell.source).body
    except SyntaxError: return False  # shell commands and magics
    return bool(statements) and all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in statements)


def players(cell) -> str:
    "A player for each sound model that a figure of the mini data set's notebook draws: one clip, as the set has it."
    models = {model.__name__: name for name, (_, model) in mini.MINI_CLASSES.items()} | {model.__name__: name for name, model in mini.STRANGERS.items()}
    if not any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])): return ""
    named = [node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name) and node.id in models]
    html = []
    for model in dict.fromkeys(named):
        sound, file = models[model], f"sounds/{model}.mp3"
        compressed = io.BytesIO()
        clip = mini.make_clip(np.random.default_rng(0), [sound], n_samples=2 * mini.SAMPLE_RATE)
        soundfile.write(compressed, clip, mini.SAMPLE_RATE, format="MP3", compression_level=0.8)
        put(f"extra/{file}", compressed.getvalue())
        label = sound.replace("_", " ")
        html.append(f'<figure class="sound"><figcaption>{label}</figcaption><audio controls preload="none" src="{file}" aria-label="{label}"></audio></figure>')
    return "```{raw} html\n" + "\n".join(html) + "\n```" if html else ""


def banner(path: Path) -> str:
    "Where the page comes from: the notebook to download or to open in Colab, the module it makes."
    text = path.read_text(encoding="utf-8")
    module, badge = re.search(r"#\| default_exp (\w+)", text), BADGE.search(text)
    links = [f"{{download}}`Notebook <notebooks/{path.name}>`"]
    if module and (ROOT / "acl_paper" / f"{module[1]}.py").exists(): links.append(f"[API: `acl_paper.{module[1]}`](api/{module[1]}.rst)")
    if badge: links.insert(1, f"[Open in Colab]({badge[1]})")
    return ":::{container} banner\n" + " · ".join(links) + "\n:::"


def stage_notebook(path: Path):
    notebook = site_notebook(path)
    if path.stem == "index":
        notebook.cells.append(nbformat.v4.new_markdown_cell(table_of_contents(), id="contents"))
    elif notebook.cells and (heading := re.match(r"# .*\n", notebook.cells[0].source)):
        first = notebook.cells[0]
        first.source = "\n".join([heading[0], banner(path), origin(path), ""]) + first.source[heading.end():]
        put(f"notebooks/{path.name}", path.read_bytes())
    put(path.name, nbformat.writes(notebook))


def table_of_contents() -> str:
    label = lambda name: name if not name[:2].isdigit() else f"{name.split('_')[0]} · {title(name)} <{name}>"
    tree = lambda caption, names: f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(map(label, names)) + "\n```\n"
    parts = [tree(caption, names) for caption, names in sections().items() if names]
    return "\n".join([*parts, tree("Reference", ["api/index"]), tree("Project", ["contributing", "robustness", "changelog", f"Repository <{REPOSITORY}>"])])


def title(name: str) -> str:
    "The heading of a notebook."
    return next(c.source for c in nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4).cells if c.cell_type == "markdown").splitlines()[0].lstrip("# ")


def stage_api():
    "One page a module, in the order of the notebooks that make them."
    makers = {match[1]: path.stem for path in sorted((ROOT / "nbs").glob("*.ipynb"))
              if (match := re.search(r"#\| default_exp (\w+)", path.read_text(encoding="utf-8")))}
    modules = {m: ROOT / "acl_paper" / f"{m}.py" for m in makers if (ROOT / "acl_paper" / f"{m}.py").exists()}
    rows = []
    for module, path in modules.items():
        text = path.read_text(encoding="utf-8")
        put(f"api/{module}.rst", module_page(f"acl_paper.{module}", makers[module], text))
        rows.append(f"| [`acl_paper.{module}`]({module}.rst) | {ast.get_docstring(ast.parse(text)) or ''} | [{makers[module]}](../{makers[module]}.ipynb) |")
    put("api/index.md", "# API reference\n\n> Every public function and class, a page a module. Modules import only from the ones above them.\n\n"
        "| module | what it is for | notebook |\n|---|---|---|\n" + "\n".join(rows) + "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(modules) + "\n```\n")


def module_page(name: str, maker: str, text: str) -> str:
    "Summary, constants and the documented functions and classes of a module, as reStructuredText."
    tree, lines = ast.parse(text), text.splitlines()
    assigned = {n.targets[0].id: n for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}
    public = ast.literal_eval(assigned["__all__"].value) if "__all__" in assigned else []
    documented = {n.name: "class" if isinstance(n, ast.ClassDef) else "function" for n in tree.body
                  if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(n)}
    names = [n for n in public if n in documented]
    page = [name, "=" * len(name), "", f".. automodule:: {name}", "", f"Made by the notebook :doc:`/{maker}`, which explains and tests it.", "",
            ".. autosummary::", "   :nosignatures:", "", *(f"   {n}" for n in names), ""]
    for n in names: page += [f".. auto{documented[n]}:: {n}", *(["   :members:"] if documented[n] == "class" else []), ""]
    for constant in (n for n in public if n in assigned):
        value, comment = ast.unparse(assigned[constant].value), lines[assigned[constant].end_lineno - 1].partition("  # ")[2]
        page += [f".. py:data:: {constant}", *([f"   :value: {value}"] if len(value) < 80 else []), "", f"   {comment}".rstrip(), ""]
    return "\n".join(page)


def stage():
    "Lay out the whole source of the site and drop what no longer belongs to it."
    written.clear()
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        if path.stem[0] not in "._": stage_notebook(path)
    stage_api()
    put("explorer.md", explorer.page(ROOT))
    put("try_it.md", try_it.PAGE)
    for name, content in try_it.files(ROOT).items(): put(f"extra/{name}", content)
    put("robustness.md", relink(robustness.page(ROOT), "."))
    for page, name in PROJECT_PAGES.items():
        if name.endswith(".md"): put(name, relink((ROOT / page).read_text(encoding="utf-8"), "."))
    for path in SOURCE.rglob("*"):
        if path.is_file() and path not in written: path.unlink()


def redirect(output: Path):
    "Pages at the old addresses, which lead to the new ones."
    for old, new in MOVED.items():
        target = "../" * old.count("/") + f"{new}.html"
        (output / f"{old}.html").write_text(f'''<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{old} has moved</title><link rel="canonical" href="{target}">
<meta http-equiv="refresh" content="0; url={target}"></head>
<body><main><h1>Moved</h1><p>This page is now <a href="{target}">{new}</a>.</p></main></body></html>
''', encoding="utf-8")


def main(output: Path, work: Path) -> int:
    global SOURCE
    from sphinx.cmd.build import main as sphinx
    SOURCE = work / "src"
    stage()
    status = sphinx(["-q", "-W", "--keep-going", "-j", "2", "-c", str(ROOT / "docs"), "-d", str(work / "doctrees"),
                     "-D", f"html_extra_path={SOURCE / 'extra'}", str(SOURCE), str(output)])
    if status == 0: redirect(output)
    return status


if __name__ == "__main__":
    output, work = (Path(argument).resolve() for argument in [*sys.argv[1:], *[ROOT / "_build" / "html", ROOT / "_build"][len(sys.argv) - 1:]])
    status = main(output, work)
    if status == 0: print(f"Open {output / 'index.html'}")
    sys.exit(status)
