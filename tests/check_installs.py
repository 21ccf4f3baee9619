"""What settings.ini claims of Pythons and versions, tried in fresh environments. Apart from `make test`: make test-installs [ONLY="3.13 and lowest"]

For every Python that is named there, where a `python3.13` and so on is on the PATH, and three sets of versions: the pinned ones of constraints.txt,
the lowest of every requirement, and the newest that pip finds. Every case takes some minutes and, where pip picks the CUDA build of PyTorch, 7 GB of
disk; its environment is removed before the next one is made. The extra `slurm` is tried with pinned versions in tests/slurm.
"""
import configparser
import json
import re
import shutil

import pytest
from helpers import ROOT, copy_of_repository, run

from acl_paper.mini import MiniConfig, make_mini

settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
settings.read(ROOT / "settings.ini")
SETTINGS = settings["DEFAULT"]
REQUIREMENTS = [each for key, line in SETTINGS.items() if key.endswith("requirements") for each in line.split()]
CASES = [(python, versions) for python in SETTINGS["pythons"].split() for versions in ("pinned", "lowest", "newest")]


def lowest(requirement):
    """The constraint to the lowest version that a requirement allows."""
    name, version = re.match(r"([\w-]+)[>=]=([\w.]+)", requirement).groups()
    return f"{name}=={version}"


class Environment:
    """A virtual environment outside of the repository, with a copy of the repository beside it."""

    def __init__(self, folder, python, versions):
        self.folder, self.copy, self.bin = folder, copy_of_repository(folder), folder / "venv" / "bin"
        constraints = folder / "constraints.txt"
        constraints.write_text({
            "pinned": (ROOT / "constraints.txt").read_text(),
            "lowest": "\n".join(map(lowest, REQUIREMENTS)),
            "newest": "",
        }[versions])
        self.install = ["pip", "install", "--quiet", "--no-compile", "-c", constraints]
        assert run([python, "-m", "venv", folder / "venv"]).returncode == 0

    def __call__(self, name, *arguments, cwd=None, fails=False):
        """Run one of its commands to its end; what it said."""
        environ = {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "", "PATH": f"{self.bin}:/usr/bin:/bin"}
        done = run([self.bin / name, *map(str, arguments)], cwd=cwd or self.folder, timeout=1800, environ=environ)
        assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stderr if fails else done.stdout

    def packages(self):
        return {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"] for each in json.loads(self("pip", "list", "--format", "json"))}


@pytest.fixture(scope="module", params=CASES, ids=[" ".join(case) for case in CASES])
def case(request):
    python, versions = request.param
    if not shutil.which(f"python{python}"):
        pytest.skip(f"there is no python{python} on the PATH")
    return f"python{python}", versions


@pytest.fixture
def with_torch(case, tmp_path_factory):
    """Nothing but torch and what it needs."""
    environment = Environment(tmp_path_factory.mktemp("torch"), *case)
    environment(*environment.install, "torch")
    yield environment
    shutil.rmtree(environment.folder)


def test_the_loss_asks_for_torch_only(with_torch):
    before = set(with_torch.packages())
    with_torch("pip", "install", "--quiet", "--no-deps", with_torch.copy)
    assert set(with_torch.packages()) - before == {"acl-paper"} and "numpy" not in before
    code = """
import torch
from acl_paper.losses import AngularContrastiveLoss
embedding, logits, labels = torch.randn(64, 48, requires_grad=True), torch.randn(64, 20), torch.randint(20, (64,))
loss = AngularContrastiveLoss(alpha=0.5)(embedding, labels, logits)
loss.backward()
print(loss.item() > 0, bool(embedding.grad.isfinite().all()), bool(embedding.grad.any()))
"""
    assert with_torch("python", "-c", code).split() == ["True"] * 3


@pytest.fixture(scope="module")
def plain(case, tmp_path_factory):
    """`pip install .`, with small synthetic recordings beside it."""
    environment = Environment(tmp_path_factory.mktemp("plain"), *case)
    environment(*environment.install, environment.copy)
    make_mini(environment.folder / "mini", MiniConfig(clean_per_class=4, noisy_per_class=12, noisy_small_per_class=8, test_per_class=2), n_jobs=1, every_s=None)
    yield environment
    shutil.rmtree(environment.folder)


def test_a_plain_install(plain):
    """Whole, with what was asked for by name, and without what only the extras bring."""
    assert "No broken requirements" in plain("pip", "check")
    packages = plain.packages()
    assert {"torch", "librosa", "h5py", "pandas", "matplotlib", "seaborn", "papermill", "jupyterlab"} <= set(packages)
    assert {"snakemake", "sphinx", "bokeh", "nbdev", "pytest", "ruff"} & set(packages) == set()
    assert plain("jupyter", "lab", "--version").strip() == packages["jupyterlab"]


def test_the_papermill_command_in_any_folder(plain):
    """As a user types it; the package is the installed one."""
    work = plain.folder / "work"
    work.mkdir()
    plain("papermill", plain.copy / "nbs" / "train.ipynb", "out.ipynb", "-p", "alpha", "0.5", "-p", "subset", "clean", "-p", "epochs", 1, "-r", "dataset", "mini", "-r", "data_dir", plain.folder / "mini", cwd=work)
    [metrics] = work.rglob("metrics.json")
    assert 0 <= json.loads(metrics.read_text())["accuracy"] <= 1


def test_a_missing_extra_is_one_line_with_the_command(plain):
    told = plain("acl_reproduce", cwd=plain.copy, fails=True)
    assert told.strip().count("\n") == 0 and "-m pip install" in told and "'.[workflow]'" in told


@pytest.fixture(scope="module")
def full(plain):
    """What `make test` installs, on top of it."""
    plain(*plain.install, f"{plain.copy}[test]")
    return plain


def test_nothing_is_broken_with_the_extras(full):
    assert "No broken requirements" in full("pip", "check")


def test_exactness(full):
    assert " passed" in full("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_exactness.py", cwd=full.copy)


def test_a_model_for_other_programs(full):
    """What the extra `export` brings."""
    assert " passed" in full("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_export.py", "-k", "paper_cnn", cwd=full.copy)


def test_the_loss_in_another_library(full):
    """What the extra `metric` brings."""
    assert "Success." in full("nbdev_test", "--path", "nbs/03b_metric_learning.ipynb", cwd=full.copy)


def test_a_notebook_of_the_package(full):
    assert "Success." in full("nbdev_test", "--path", "nbs/02_losses.ipynb", cwd=full.copy)


def test_the_workflow_can_be_planned(full):
    assert "train" in full("acl_reproduce", "--more=-n", "--dataset", "mini", cwd=full.copy)


def test_the_site_is_built(full):
    full("python", "docs/build.py", cwd=full.copy)
    assert (full.copy / "_build" / "html" / "index.html").is_file()
