"""Every notebook from top to bottom in a fresh kernel, slow cells too, as "Run All Cells" does. Apart from `make test`: make test-notebooks.

`make test` runs the same cells, but for those marked slow, with nbdev_test, and those that papermill runs in their own tests.
"""
import nbformat
import pytest
from helpers import ROOT, command, copy_of_repository, run

from acl_paper.mini import MiniConfig, make_mini

# Those with parameters, in the order in which they need each other's runs; small values, and the mini data set beside them has 360 clips.
PAPERMILL = {
    "train": ["-p", "epochs", 2],
    "results": [],
    "pretrain": ["-p", "epochs", 2, "-p", "width", 8],
    "probe": ["-p", "epochs", 2],
    "results_selfsupervised": [],
}
OTHERS = sorted({path.stem for path in (ROOT / "nbs").glob("*.ipynb")} - set(PAPERMILL))


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy, as after a clone; its own package comes first."""
    return copy_of_repository(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="module")
def with_data(tmp_path_factory):
    """Another, where the runs of the notebooks with parameters go."""
    copy = copy_of_repository(tmp_path_factory.mktemp("with-data"))
    make_mini(copy / "data" / "mini", MiniConfig(clean_per_class=4, noisy_per_class=12, noisy_small_per_class=8, test_per_class=2), n_jobs=1, every_s=None)
    return copy


def assert_ran(path):
    """All cells, in order, without an error."""
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [output.ename for cell in code for output in cell.outputs if output.output_type == "error"] == []


@pytest.mark.parametrize("name", OTHERS)
def test_nbconvert(repository, tmp_path, name):
    arguments = command("jupyter", "nbconvert", "--execute", "--to", "notebook", "--ExecutePreprocessor.timeout=1800", "--output-dir", tmp_path, f"nbs/{name}.ipynb")
    done = run(arguments, cwd=repository, timeout=1800, environ={"PYTHONPATH": str(repository)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert_ran(tmp_path / f"{name}.ipynb")


@pytest.mark.parametrize("name", PAPERMILL)
def test_papermill(with_data, name):
    arguments = command("papermill", f"nbs/{name}.ipynb", f"{name}.ipynb", "-k", "python3", "-r", "dataset", "mini", *PAPERMILL[name], "--no-progress-bar")
    done = run(arguments, cwd=with_data, timeout=900, environ={"PYTHONPATH": str(with_data)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert_ran(with_data / f"{name}.ipynb")


def test_those_that_papermill_runs_say_so():
    """`skip_exec` keeps nbdev_test and `make notebooks` away from them."""
    skipped = [path.stem for path in (ROOT / "nbs").glob("*.ipynb") if any(cell.cell_type == "raw" and "skip_exec: true" in cell.source for cell in nbformat.read(path, 4).cells)]
    assert sorted(skipped) == sorted(PAPERMILL)
