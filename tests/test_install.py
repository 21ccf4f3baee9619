"""What is installed: the requirements of settings.ini against what the package imports, and what is said where an extra is missing.

Fresh environments are made and tried by tests/check_installs.py.
"""
import ast
import configparser
import re
import sys

import pytest
from helpers import ROOT

from acl_paper import workflow

settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
settings.read(ROOT / "settings.ini")
SETTINGS = settings["DEFAULT"]

ASKED_FOR = {"jupyterlab", "ipykernel", "ipywidgets"}  # imported by notebooks or by nothing here: what a reader opens the notebooks with
FOR_PANDAS = {"tabulate"}  # DataFrame.to_markdown
DISTRIBUTIONS = {"sklearn": "scikit-learn", "pytorch_metric_learning": "pytorch-metric-learning"}  # where it has another name than what is imported
EXTRAS = {"workflow", "metric", "export"}  # of which a module imports something
FOR_EXPORT = {"onnxruntime"}  # what runs an exported model


def names(line):
    return {re.match(r"[\w-]+", each)[0] for each in line.split()}


def imported(path):
    """Packages that a module imports, wherever in the file that stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return {DISTRIBUTIONS.get(name, name) for name in found - sys.stdlib_module_names - {"acl_paper"}}


def test_a_plain_install_is_what_the_package_imports_and_what_opens_notebooks():
    """But for what the extras bring: Snakemake, which acl_reproduce imports when it is run, and the library that acl_paper.metric_learning is for."""
    needed = set().union(*(imported(path) for path in (ROOT / "acl_paper").glob("*.py")))
    optional = set().union(*(names(SETTINGS[f"{extra}_requirements"]) for extra in EXTRAS))
    assert needed | FOR_EXPORT >= optional
    assert names(SETTINGS["requirements"]) == needed - optional | ASKED_FOR | FOR_PANDAS


def test_only_its_own_module_needs_the_metric_learning_library():
    needing = [path.stem for path in (ROOT / "acl_paper").glob("*.py") if "pytorch-metric-learning" in imported(path)]
    assert needing == ["metric_learning"]


def test_every_requirement_has_a_lowest_version():
    """Else it could not be tried (tests/check_installs.py)."""
    requirements = [each for key, line in SETTINGS.items() if key.endswith("requirements") for each in line.split()]
    assert [each for each in requirements if not re.match(r"[\w-]+[>=]=[\d.]+", each)] == []


def test_the_pythons_that_are_claimed_are_those_that_github_tries():
    pythons = SETTINGS["pythons"].split()
    assert pythons[0] == SETTINGS["min_python"]
    [tried] = re.findall(r"python-version: \[(.+)\]", (ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert re.findall(r"[\d.]+", tried) == pythons


@pytest.mark.parametrize(("profile", "missing", "extra"), [
    (None, "snakemake", "workflow"),
    ("profiles/slurm", "snakemake_executor_plugin_slurm", "slurm"),
])
def test_a_missing_extra_is_one_line_with_the_command(profile, missing, extra, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else True)
    with pytest.raises(SystemExit) as told:
        workflow.acl_reproduce(profile=profile)
    line = str(told.value)
    assert "\n" not in line and line.startswith("acl_reproduce: ") and line.endswith(f"-m pip install -c constraints.txt -e '.[{extra}]'")
