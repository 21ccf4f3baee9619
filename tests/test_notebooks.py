"""The notebooks as source: they run, the package is what they export, and they are stored as they should be."""
import ast
import configparser
import json
import os
import re
import subprocess
import sys
import time
from importlib import metadata

import nbformat
import pytest
from helpers import ROOT, command, contents, copy_of_repository, environment, run

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
NAMES = [path.name for path in NOTEBOOKS]


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def is_skipped(path):
    """Whether nbdev_test leaves the notebook out: papermill runs it, with parameters."""
    return any(re.search(r"^skip_exec: *true$", source(cell), re.M) for cell in cells(path, "raw"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository for commands that write; its own package comes first."""
    return copy_of_repository(tmp_path_factory.mktemp("copy"))


def nbdev(name, *arguments, cwd):
    done = run(command(name, *arguments), cwd=cwd, timeout=600, environ={"PYTHONPATH": str(cwd)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_nbdev_test(copy):
    """Every notebook runs to its end, leaves no file behind and no process that is waited for.

    nbdev_test says Success also when it found nothing to run, so the notebooks are counted.
    """
    before, lines = contents(copy), []
    arguments = command("nbdev_test", "--do_print", "--n_workers", 2)
    with subprocess.Popen(arguments, cwd=copy, env=environment(PYTHONPATH=str(copy)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            lines.append(line)
            if "- Completed" in line:
                last_completed = time.monotonic()
    waited_s = time.monotonic() - last_completed
    told = "".join(lines)
    assert process.returncode == 0 and "Success." in told, told
    completed = re.findall(r"- Completed .*?([^/\\]+\.ipynb)", told)
    expected = [path.name for path in NOTEBOOKS if not is_skipped(path)]
    assert sorted(completed) == expected and len(expected) >= 7
    after = contents(copy)
    assert sorted(after) == sorted(before) and after == before
    assert waited_s < 60


def test_nbdev_export_changes_nothing(copy):
    before = contents(copy)
    assert len([name for name in before if name.startswith("acl_paper")]) >= 9
    nbdev("nbdev_export", cwd=copy)
    after = contents(copy)
    assert sorted(after) == sorted(before)
    assert [name for name in before if after[name] != before[name]] == []


def test_nbdev_export_makes_all_of_the_package(copy):
    """Without the exported modules there would be no difference to see above if nothing was exported."""
    removed = {path.name: path.read_text() for path in (copy / "acl_paper").glob("*.py") if path.name not in ("__init__.py", "_modidx.py")}
    for name in removed:
        (copy / "acl_paper" / name).unlink()
    done = run(command("nbdev_export"), cwd=copy)  # here the installed package must serve: the copy's own is gone
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name: path.read_text() for path in (copy / "acl_paper").glob("*.py") if path.name in removed} == removed


def test_nbdev_clean_changes_nothing(copy):
    """What is committed is clean already; in particular the tag by which papermill finds the parameters stays."""
    before = contents(copy / "nbs")
    nbdev("nbdev_clean", cwd=copy)
    after = contents(copy / "nbs")
    assert sorted(after) == sorted(before)
    assert [name for name in before if after[name] != before[name]] == []
    assert [source(cell).startswith("alpha = ") for cell in cells(copy / "nbs" / "train.ipynb") if "parameters" in cell["metadata"].get("tags", [])] == [True]


def test_nbdev_clean_keeps_the_parameters_tag_but_cleans(copy):
    """A notebook as an editor leaves it: execution counts and the editor's metadata go, the tag stays."""
    path = copy / "nbs" / "train.ipynb"
    stored = path.read_text()
    notebook = json.loads(stored)
    for count, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        cell["execution_count"], cell["metadata"]["collapsed"] = count, True
    path.write_text(json.dumps(notebook))
    nbdev("nbdev_clean", cwd=copy)
    assert path.read_text() == stored


MODULES = sorted(path.stem for path in (ROOT / "acl_paper").glob("*.py") if not path.stem.startswith("_"))


def all_statement_lines(path):
    """The lines of a module's `__all__`, which nbdev writes as long as it likes."""
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return range(statement.lineno, statement.end_lineno + 1)
    return range(0)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_links_to_notebooks_lead_to_one(path):
    text = "".join(source(cell) for cell in cells(path, "markdown"))
    missing = [link for link in re.findall(r"\]\(([^)#:]+\.ipynb)", text) if not (path.parent / link).is_file()]
    assert missing == []


@pytest.mark.parametrize("module", MODULES)
def test_ruff_finds_nothing(module):
    """pycodestyle, pyflakes and the order of imports, by docs/ruff.toml."""
    path = ROOT / "acl_paper" / f"{module}.py"
    done = run(command("ruff", "check", "--no-cache", "--config", ROOT / "docs" / "ruff.toml", "--output-format", "json", path))
    assert done.returncode in (0, 1), done.stderr
    generated = all_statement_lines(path)
    found = [f"{module}.py:{f['location']['row']}: {f['code']} {f['message']}" for f in json.loads(done.stdout)
             if not (f["code"] == "E501" and f["location"]["row"] in generated)]
    assert found == [], "\n".join(found)


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def brought_by(requirements):
    """The names of all packages that come with some requirements; of one that is not installed, the name alone."""
    from packaging.requirements import Requirement

    brought, waiting, seen = set(), [Requirement(text) for text in requirements], set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonical(requirement.name), tuple(sorted(requirement.extras))
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        brought.add(name)
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for each in map(Requirement, needed):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(each)
    return brought


def test_constraints_name_what_the_requirements_bring():
    """No package more, none that is installed from a folder, and each with its exact version."""
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini")
    requirements = [each for key, line in settings["DEFAULT"].items() if key.endswith("requirements") for each in line.split()]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    named = {canonical(line.split("==")[0]) for line in lines}
    brought = brought_by(requirements)
    unread = {name for name in named if name.startswith("snakemake-executor-plugin-slurm")}  # an extra: not installed everywhere
    assert sorted(named - brought - unread) == []
    assert "ruff" in named and "acl-paper" not in named

    folders = {}
    for package in metadata.distributions():
        address = json.loads(package.read_text("direct_url.json") or "{}")
        if "dir_info" in address:
            folders[canonical(package.name)] = address["url"]
    assert sorted(named & {*folders}) == []
    assert sorted(brought & {*folders}) == []


COLAB = [path for path in NOTEBOOKS if "colab-badge.svg" in path.read_text()]


def test_colab_badges_lead_to_their_notebooks():
    """At the repository that settings.ini names; the README links to the same ones."""
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini")
    address = "https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/".format_map(settings["DEFAULT"])
    assert {"02_losses.ipynb", "01_motivation.ipynb"} <= {path.name for path in COLAB}
    for path in COLAB:
        links = re.findall(r"\]\((https://colab[^)]+\.ipynb)\)", "\n".join(source(cell) for cell in cells(path, "markdown")))
        assert links == [f"{address}nbs/{path.name}"]
    opened = [f"nbs/{path.name}" for path in COLAB] + ["docs/colab.ipynb"]
    assert sorted(re.findall(r"\]\((https://colab[^)]+)\)", (ROOT / "README.md").read_text())) == sorted(address + name for name in opened)


def test_training_on_colab_gives_papermill_what_train_has():
    """A notebook of its own runs `train.ipynb` there, so that the latter opens with its title and nothing else."""
    text = "\n".join(source(cell) for cell in cells(ROOT / "docs" / "colab.ipynb"))
    asked = dict(re.findall(r"-p (\w+) \{(\w+)\}", text))
    known = next(source(cell) for cell in cells(ROOT / "nbs" / "train.ipynb") if "parameters" in cell["metadata"].get("tags", []))
    assert asked == {"alpha": "alpha", "subset": "subset"} and all(re.search(rf"^{name} = ", known, re.M) for name in asked)


EXPERIMENTS = [path for path in NOTEBOOKS if is_skipped(path)]


def lines_of_code(text):
    """How many lines of a cell hold code: not docstrings, empty lines, or what nbdev reads."""
    lines = [line for line in text.splitlines() if not line.startswith("#|")]
    documented = set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(line.strip()) and i not in documented for i, line in enumerate(lines, 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_exported_cells_fit_a_screen(path):
    exported = [cell for cell in cells(path) if source(cell).startswith("#| export")]
    assert {cell["id"]: n for cell in exported if (n := lines_of_code(source(cell))) > 30} == {}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=[path.name for path in EXPERIMENTS])
def test_experiments_open_with_their_title(path):
    """And every line of them is whole on a screen of 1,440 pixels."""
    everything = json.loads(path.read_text())["cells"]
    assert source(everything[0]).startswith("# ")
    shown = [line for cell in cells(path) for line in source(cell).splitlines()]
    assert [line for line in shown if len(line) > 110 or line.startswith("#| hide")] == []


@pytest.mark.parametrize("path", COLAB, ids=[path.name for path in COLAB])
def test_first_cells_install_only_what_is_missing(path, tmp_path, monkeypatch):
    """Here the package is there: no command is run (`get_ipython` is not even known to plain Python), no file made, no folder changed."""
    monkeypatch.chdir(tmp_path)
    first = [source(cell) for cell in cells(path)[:2]]
    assert all(code.startswith("#| hide\n") for code in first) and "pip" in first[1]
    namespace = {}
    for code in first:
        exec(code, namespace)
    assert os.getcwd() == str(tmp_path) and list(tmp_path.iterdir()) == []
    namespace["find_spec"] = lambda name: None  # as where it is missing
    with pytest.raises(NameError, match="get_ipython"):
        exec(first[1], namespace)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
class TestNotebook:
    def test_is_valid(self, path):
        """By the format's own schema, with a unique id for every cell, and for the kernel that is there wherever this is installed."""
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        assert notebook.nbformat == 4 and notebook.nbformat_minor >= 5
        nbformat.validate(notebook)
        ids = [cell["id"] for cell in notebook.cells]
        assert len(set(ids)) == len(ids)
        assert notebook.metadata.kernelspec.name == "python3"

    def test_has_no_errors_in_its_outputs(self, path):
        outputs = [output for cell in cells(path) for output in cell["outputs"]]
        assert [output["ename"] for output in outputs if output["output_type"] == "error"] == []

    def test_outputs_are_the_same_on_every_machine(self, path):
        """No folder of the machine it ran on, no address in memory."""
        told = "\n".join(json.dumps(output.get("text", output.get("data", {}).get("text/plain", ""))) for cell in cells(path) for output in cell["outputs"])
        assert re.findall(r"(?<![\w.])/(?:tmp|home|root|work|Users|private|var)/\S*|\bat 0x[0-9a-f]+", told) == []

    def test_imports_stand_alone(self, path):
        """nbdev executes a cell with imports when it builds the documentation: with anything else in it, that would run too, without what it needs."""
        for cell in cells(path):
            code = "\n".join(line for line in source(cell).splitlines() if not line.startswith(("%", "!")))
            statements = ast.parse(code).body
            imports = [isinstance(statement, (ast.Import, ast.ImportFrom)) for statement in statements]
            assert all(imports) or not any(imports), f"{path.name}, cell {cell['id']} mixes imports with other code:\n{source(cell)}"

    def test_begins_as_a_notebook_here_does(self, path):
        """A title and a line that says what the reader gets."""
        first = source(cells(path, "markdown")[0])
        assert re.match(r"# \S.*\n\n> \S", first), first


@pytest.mark.long
def test_a_change_of_a_module_is_noticed(tmp_path):
    """The script that breaks one line at a time runs, and knows a test that fails from one that passes."""
    done = run([sys.executable, "tests/mutate.py", "--modules", "patches", "--count", "2", "--out", tmp_path / "mutation.csv"], timeout=900)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^patches: [12] of 2 caught$", done.stdout, re.M), done.stdout
