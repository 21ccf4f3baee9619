"""The rooms of the house: a module imports only from notebooks with a lower number, and nothing that it need not."""
import ast
import re
import sys

import pytest
from helpers import ROOT, run

PACKAGE = ROOT / "acl_paper"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))
LONGEST = 390  # lines of a module that hold code: without docstrings, comments and empty lines
UNLIMITED = {"mini"}  # its length is that of its sounds


NOTEBOOKS = sorted(path.stem for path in (ROOT / "nbs").glob("[0-9][0-9]*_*.ipynb"))


def number(module):
    """The place of the notebook that a module is exported from, by its file name: that is the order of imports."""
    head = (PACKAGE / f"{module}.py").read_text().split("__all__")[0]
    return NOTEBOOKS.index(re.search(r"File to edit: \.\./nbs/(\d\d\w+)\.ipynb", head)[1])


def imports_of(module):
    """Pairs (module of this package, imported name or None), wherever in the file they stand: at the top or in a function."""
    found = []
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[1], None) for alias in node.names if alias.name.startswith("acl_paper.")]
        elif isinstance(node, ast.ImportFrom):
            inside = node.level > 0 or (node.module or "").split(".")[0] == "acl_paper"
            if not inside:
                continue
            assert node.level < 2, f"{module} imports from outside the package"
            name = (node.module or "").removeprefix("acl_paper").removeprefix(".")
            found += [(name, alias.name) if name else (alias.name, None) for alias in node.names]
    return found


NUMBERS = {module: number(module) for module in MODULES}
IMPORTS = {module: imports_of(module) for module in MODULES}


def test_every_notebook_makes_one_module():
    assert len(MODULES) >= 19
    assert len(set(NUMBERS.values())) == len(MODULES)
    assert {other for other, _ in IMPORTS["training"]} >= {"patches", "losses", "networks"}  # imports are found at all
    assert [module for module in MODULES if NOTEBOOKS[NUMBERS[module]].partition("_")[2] != module] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    """Also those inside a function."""
    upward = [f"{module} ({NUMBERS[module]}) imports {other} ({NUMBERS[other]})" for other, _ in IMPORTS[module]
              if other in NUMBERS and NUMBERS[other] >= NUMBERS[module]]
    assert upward == []


def test_imports_go_in_no_circle():
    """True of itself while all point downwards; this one says which modules are in the circle."""
    needs = {module: {other for other, _ in IMPORTS[module] if other in NUMBERS} for module in MODULES}
    while needs:
        free = {module for module, others in needs.items() if not others & needs.keys()}
        assert free, f"a circle of imports among {sorted(needs)}"
        needs = {module: others for module, others in needs.items() if module not in free}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_private_is_imported(module):
    assert [f"{other}.{name}" for other, name in IMPORTS[module] if (name or other).startswith("_")] == []


def lengths(module):
    """All lines of a module, and those that hold code."""
    text = (PACKAGE / f"{module}.py").read_text()
    lines, documented = text.splitlines(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    code = [line for number, line in enumerate(lines, 1) if number not in documented and line.strip() and not line.strip().startswith("#")]
    return len(lines), len(code)


def test_modules_are_short(capsys):
    table = {module: lengths(module) for module in MODULES}
    with capsys.disabled():
        print("\n    module             lines  code")
        for module in sorted(MODULES, key=NUMBERS.get):
            room = NOTEBOOKS[NUMBERS[module]].partition("_")[0]
            print(f"{room:3} {module:18} {table[module][0]:5} {table[module][1]:5}")
    assert {module: code for module, (_, code) in table.items() if code > LONGEST and module not in UNLIMITED} == {}


def loaded_by(statement):
    """The packages that are loaded after a statement, in a fresh process."""
    done = run([sys.executable, "-c", f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"],
               environ={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


REQUIREMENTS = {"torch", "numpy", "numba", "pandas", "scipy", "sklearn", "h5py", "librosa", "soundfile", "soxr", "pooch", "requests", "filelock",
                "joblib", "tqdm", "safetensors", "matplotlib", "seaborn", "tabulate", "fastcore", "papermill", "ipykernel", "jupyterlab",
                "ipywidgets", "snakemake", "psutil"}


def test_the_losses_need_torch_and_nothing_else():
    alone = loaded_by("import torch, torch.nn.functional, torch.autograd.functional, torch.hub")
    loaded = loaded_by("import acl_paper.losses")
    assert "torch" in loaded
    assert (loaded - alone) & REQUIREMENTS == set()
    assert IMPORTS["losses"] == []


@pytest.mark.parametrize(("module", "left_out"), [
    ("training", {"librosa", "soundfile", "numba", "matplotlib", "seaborn", "snakemake"}),
    ("pretraining", {"librosa", "matplotlib", "seaborn", "snakemake"}),
    ("probing", {"librosa", "matplotlib", "seaborn", "snakemake"}),
    ("drawing", {"librosa", "seaborn", "sklearn"}),
    ("workflow", {"torch", "librosa", "matplotlib", "seaborn"}),
])
def test_what_a_module_does_not_load(module, left_out):
    assert loaded_by(f"import acl_paper.{module}") & left_out == set()
