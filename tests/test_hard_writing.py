"""What writes a file: on a full disk, after a power cut, beside other writers, and where the file is none."""
import errno
import io
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import works
from helpers import contents

from acl_paper.console import DatasetError, make_folder
from acl_paper.runs import load_run, save_run
from acl_paper.training import Checkpoint
from acl_paper.workflow import differences

DAMAGE = {"empty": lambda content: b"", "half": lambda content: content[:len(content) // 2], "zeros": lambda content: bytes(len(content))}


@pytest.fixture(scope="module")
def run_of_today(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    works.train(folder)
    return folder


@pytest.fixture
def made(run_of_today, tmp_path):
    return shutil.copytree(run_of_today, tmp_path / "run")


# A run and a full disk

@pytest.mark.parametrize("n_files", [0, 3])
def test_a_run_is_kept_where_its_disk_is_full(made, monkeypatch, n_files):
    """The old run stays as it was, and the new one is where temporary files go."""
    trained, before = load_run(made), contents(made)
    disk = made.resolve().parent
    real = Path.write_bytes

    def write_bytes(path, content):
        if disk in path.parents and len(list(path.parent.glob(".*.part"))) >= n_files:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(DatasetError, match="No space left on device.*kept in") as caught:
        save_run(made, trained)
    assert contents(made) == before
    spare = re.search("kept in (.+): make room", str(caught.value))[1]
    assert (Path(spare) / "model.safetensors").read_bytes() == before["model.safetensors"]
    load_run(spare)
    shutil.rmtree(spare)


def test_a_full_disk_is_known_before_the_work(tmp_path, monkeypatch):
    """It would still take an empty file."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "wb", buffering=0))
    with pytest.raises(DatasetError, match="cannot take the runs: No space left"):
        make_folder(tmp_path / "runs", "the runs")


# A power cut

@pytest.mark.parametrize("name", ["config.json", "history.csv", "model.safetensors", "predictions.csv", "embeddings.npy"])
def test_a_run_of_which_a_file_is_damaged_is_made_again(made, name):
    assert differences(made, {"settings": {}}) == []
    content = (made / name).read_bytes()
    for damage in DAMAGE.values():
        (made / name).write_bytes(damage(content))
        assert name in differences(made, {"settings": {}})[0]
    (made / name).unlink()
    assert name in differences(made, {"settings": {}})[0]


def test_a_model_card_may_be_edited(made):
    (made / "README.md").write_text("My best run.\n")
    assert differences(made, {"settings": {}}) == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_stops_no_training(tmp_path, damage):
    """It is moved aside, and the training starts anew."""
    content = io.BytesIO()
    torch.save({"identity": {}, "state": torch.zeros(10)}, content)
    (tmp_path / "checkpoint.pt").write_bytes(DAMAGE[damage](content.getvalue()))
    with pytest.warns(UserWarning, match="checkpoint.pt is damaged .* the training starts anew"):
        assert not Checkpoint(tmp_path / "checkpoint.pt", SimpleNamespace(identity={})).load()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt.damaged"]
