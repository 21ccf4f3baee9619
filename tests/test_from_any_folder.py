"""What is read and written from a working directory that is in no project: said in one line, with absolute paths, and nothing lies anywhere else."""
import json

import pytest
from helpers import ROOT, run_acl

from acl_paper.mini import MiniConfig, make_mini

TINY = MiniConfig(clean_per_class=1, noisy_per_class=1, noisy_small_per_class=1, test_per_class=1)


def test_a_command_says_where_it_writes(tmp_path):
    make_mini(tmp_path / "set", TINY, n_jobs=1, every_s=None)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    done = run_acl("acl_features", "--data_dir", tmp_path / "set", cwd=elsewhere)
    told = [line for line in done.stderr.splitlines() if "no project" in line]
    assert done.returncode == 0 and len(told) == 1, done.stderr
    assert all(str(elsewhere / name) in told[0] for name in ("data", "runs", "figures"))
    assert [path.name for path in elsewhere.iterdir()] == ["data"] and len(list(elsewhere.glob("data/features/*/*.h5"))) == 1


def test_where_all_is_named_nothing_is_said(tmp_path):
    make_mini(tmp_path / "set", TINY, n_jobs=1, every_s=None)
    done = run_acl("acl_features", "--data_dir", tmp_path / "set", "--features_dir", tmp_path / "features", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["train", "pretrain", "probe", "results", "results_selfsupervised"])
def test_a_notebook_asks_where_to_write_as_commands_do(name):
    """So that its output has the line, too."""
    cells = json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert 'project_folder("runs")' in code and "project_root()" not in code
