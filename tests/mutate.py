"""A test of the tests: break one line of a module at a time, and see whether a test fails.

    python tests/mutate.py                              # tests/mutation.csv, some twenty minutes on one core
    python tests/mutate.py --modules losses --seed 1    # other lines of one module

In a copy of the repository an operator, a number, a condition or a statement is changed, in the module and in the
notebook that exports it, as in the notebook the functions under test are its own. The notebook is run first, which
holds most of the tests; if nothing fails there, the fast test files of that module are. The lines are drawn at
random with a seed. A change that alters nothing that could be observed is noted as such by hand in the table;
notes are kept when it is made again.
"""
import argparse
import ast
import copy
import csv
import importlib
import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
from pathlib import Path

from helpers import ROOT, copy_of_repository, forget_package

NOTEBOOKS = {
    "losses": "02_losses",
    "log_mel": "08b_log_mel",
    "features": "08c_features",
    "patches": "09_patches",
    "evaluation": "12_evaluation",
}
TESTS = {  # of some modules, those that take seconds
    "losses": ["tests/test_hard_losses.py"],
    "patches": ["tests/test_devices.py"],
    "evaluation": ["tests/test_devices.py"],
}
COLUMNS = ["module", "function", "before", "after", "caught_by", "note"]
TIMEOUT_S = 300
OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
}


def chunks_of(module_text):
    """The code of each exported cell by its id, as nbdev marks it in the module."""
    found = re.split(r"^# %% \S+ #(\w+)\n", module_text, flags=re.M)
    return dict(zip(found[1::2], found[2::2]))


def changed(node):
    """The node in which something is changed, or None where nothing is."""
    node = copy.deepcopy(node)
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in OTHER:
        node.op = OTHER[type(node.op)]()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER:
        node.ops[0] = OTHER[type(node.ops[0])]()
    elif isinstance(node, ast.UnaryOp):
        return node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value += 1
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.Pass()
    elif isinstance(node, ast.Call) and node.keywords:
        node.keywords.pop()
    else:
        return None
    return node


def places(tree):
    """Where something can be changed: the function, the node's parent, and the place in it."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    told = []
    for function in functions:
        for parent in (node for statement in function.body for node in ast.walk(statement)):
            if isinstance(parent, ast.Raise | ast.JoinedStr):
                continue
            for field, value in ast.iter_fields(parent):
                if field in ("annotation", "returns", "decorator_list", "args") and isinstance(parent, ast.FunctionDef | ast.AnnAssign | ast.arg):
                    continue
                nodes = value if isinstance(value, list) else [value]
                told += [(function, parent, field, i if isinstance(value, list) else None)
                         for i, node in enumerate(nodes) if isinstance(node, ast.AST) and changed(node) is not None]
    return told


def is_in_error(tree, node):
    """Whether a node is part of an error's text."""
    return any(node in ast.walk(raised) for raised in ast.walk(tree) if isinstance(raised, ast.Raise | ast.JoinedStr))


def mutants(module, seed, count):
    """Some changes of a module: the cell, its changed code, and a row of the table each. No two are on one line."""
    text = (ROOT / f"acl_paper/{module}.py").read_text()
    found = []
    for cell, code in chunks_of(text).items():
        for number in range(len(places(ast.parse(code)))):
            tree = ast.parse(code)
            function, parent, field, i = places(tree)[number]
            node = getattr(parent, field) if i is None else getattr(parent, field)[i]
            if is_in_error(tree, node):
                continue
            new, line = changed(node), (cell, node.lineno)
            row = {"module": module, "function": function.name, "before": ast.unparse(node), "after": ast.unparse(new)}
            if i is None:
                setattr(parent, field, new)
            else:
                getattr(parent, field)[i] = new
            found.append((line, cell, ast.unparse(ast.fix_missing_locations(tree)), row))
    random.Random(seed).shuffle(found)
    one_per_line = {line: rest for line, *rest in reversed(found)}
    chosen = list(one_per_line.values())
    random.Random(seed).shuffle(chosen)
    return chosen[:count]


def run_notebook(place, module):
    """Whether the tests in a notebook fail, as nbdev_test runs them."""
    from nbdev.test import test_nb

    passed, _ = test_nb(place / "nbs" / f"{NOTEBOOKS[module]}.ipynb", skip_flags=["slow"], basepath=place)
    return not passed


def run_tests(place, module):
    """Whether one of the fast test files fails."""
    import pytest

    files = TESTS.get(module, [])
    return bool(files) and pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files]) != 0


def fails(place, module, run):
    """Whether tests fail in a process of its own, in which everything but the package is imported already."""
    process = multiprocessing.get_context("fork").Process(target=_in_child, args=(place, module, run))
    process.start()
    process.join(TIMEOUT_S)
    process.kill()
    process.join()
    return process.exitcode != 0


def _in_child(place, module, run):
    os.chdir(place)
    os.environ["PYTHONPATH"] = str(place)
    forget_package()
    del sys.modules["helpers"]  # which says where the repository is
    sys.path[:] = [str(place), str(place / "tests"), *(path for path in sys.path if not path.startswith(str(ROOT / "tests")))]
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os._exit(int(run(place, module)))


def put_in(place, module, cell, code):
    """Put changed code into the module and into the cell that it is exported from."""
    path = place / f"acl_paper/{module}.py"
    path.write_text(path.read_text().replace(chunks_of(path.read_text())[cell], code + "\n\n"))
    path = place / "nbs" / f"{NOTEBOOKS[module]}.ipynb"
    notebook = json.loads(path.read_text())
    [found] = [one for one in notebook["cells"] if one["id"] == cell]
    found["source"] = found["source"][0] + code
    path.write_text(json.dumps(notebook))


def caught_by(place, module, cell, code):
    """What noticed the change: the notebook, the test files, or nothing."""
    files = [place / f"acl_paper/{module}.py", place / "nbs" / f"{NOTEBOOKS[module]}.ipynb"]
    before = [file.read_text() for file in files]
    put_in(place, module, cell, code)
    try:
        return next((name for name, run in RUNS.items() if fails(place, module, run)), "")
    finally:
        for file, text in zip(files, before):
            file.write_text(text)


RUNS = {"notebook": run_notebook, "tests": run_tests}


def preload():
    """Import what the notebooks import, but not the package, so that a forked process need not."""
    for name in ("fastcore.test", "h5py", "librosa", "matplotlib.pyplot", "nbdev.test", "numba", "pandas", "pytest", "scipy.stats", "sklearn.metrics"):
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)


def known_notes(path):
    """The notes that were made by hand, by change."""
    if not path.is_file():
        return {}
    with open(path, newline="") as file:
        return {tuple(row[name] for name in COLUMNS[:4]): row["note"] for row in csv.DictReader(file)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", choices=NOTEBOOKS, default=list(NOTEBOOKS))
    parser.add_argument("--count", type=int, default=20, help="changes of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "tests/mutation.csv")
    options = parser.parse_args()
    notes, rows = known_notes(options.out), []
    preload()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        place = copy_of_repository(folder)
        for module in options.modules:
            if any(fails(place, module, run) for run in RUNS.values()):
                raise SystemExit(f"the tests of {module} fail without any change")
            for cell, code, row in mutants(module, options.seed, options.count):
                row["caught_by"] = caught_by(place, module, cell, code)
                row["note"] = notes.get(tuple(row[name] for name in COLUMNS[:4]), "")
                rows.append(row)
                print(f"{module} {row['function']}: {row['before']} -> {row['after']}: {row['caught_by'] or 'SURVIVES'}", flush=True)
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for module in options.modules:
        counted = [row for row in rows if row["module"] == module and not row["note"].startswith("equivalent")]
        print(f"{module}: {sum(row['caught_by'] != '' for row in counted)} of {len(counted)} caught")


if __name__ == "__main__":
    main()
