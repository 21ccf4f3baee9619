"""What writes a file: on a full disk, after a power cut, beside other writers, and where the file is none."""
import errno
import io
import json
import os
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pandas as pd
import pytest
import torch
import works
from helpers import contents
from test_hard_features import make_set
from test_runs import made, trained  # noqa: F401

from acl_paper import features
from acl_paper.batch import KEPT, Results, Screen, _show, check_destination
from acl_paper.console import DatasetError, make_folder, write_atomically
from acl_paper.folders import one_writer, save_tables
from acl_paper.report import _check_tables, write_report
from acl_paper.runs import load_predictions, load_run, save_run
from acl_paper.training import Checkpoint
from acl_paper.workflow import differences

DAMAGE = {"empty": lambda content: b"", "half": lambda content: content[:len(content) // 2], "zeros": lambda content: bytes(len(content))}


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


# Results of acl_predict and acl_embed

ORIGIN = {"model": "m 0123", "settings": "top=1"}


def a_row(name):
    return {"file": name, **ORIGIN, "content": "1-0"}


def test_two_writers_of_one_file_of_results_wait_for_each_other(tmp_path, capsys):
    """Both end well: the second one begins when the first one's file is there, and nothing is left beside it."""
    out, held = tmp_path / "x.csv", threading.Event()

    def second():
        with one_writer(out, KEPT):
            results = Results(out, "csv", ORIGIN, resume=True)
            assert [row["file"] for row in results.rows] == ["a.wav"]
            results.keep([a_row("b.wav")])
            results.finish()

    thread = threading.Thread(target=second)
    with one_writer(out, KEPT):
        results = Results(out, "csv", ORIGIN)
        thread.start()
        results.keep([a_row("a.wav")])
        while "x.csv is written by another process" not in capsys.readouterr().err:
            held.wait(0.01)
        results.finish()
    thread.join()
    assert out.read_text().splitlines()[1:] == ["a.wav,m 0123,top=1,1-0", "b.wav,m 0123,top=1,1-0"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_a_full_disk_keeps_the_results_so_far(tmp_path):
    with pytest.raises(DatasetError, match=f"The disk of {tmp_path} is full.*kept beside it.*--resume"), one_writer(tmp_path / "x.csv", KEPT):
        Results(tmp_path / "x.csv", "csv", ORIGIN).keep([a_row("a.wav")])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert Results(tmp_path / "x.csv", "csv", ORIGIN, resume=True).rows == [a_row("a.wav")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("is_kept", [False, True])
def test_where_the_screen_goes_to_a_full_disk(monkeypatch, capsys, is_kept):
    monkeypatch.setattr("sys.stdout", open("/dev/full", "w"))
    ended = None
    try:
        _show(Screen("jsonl", str), [a_row("a.wav")], is_kept=is_kept)
    except SystemExit as stopped:
        ended = stopped.code
    assert "standard output: No space left on device" in capsys.readouterr().err and ended == (None if is_kept else 1)


@pytest.mark.parametrize("out", ["/dev/null", "a pipe"])
def test_a_device_is_not_replaced_by_a_file(tmp_path, out):
    out = Path(out) if out[0] == "/" else tmp_path / out
    if out.parent == tmp_path:
        os.mkfifo(out)
    for refuse in (lambda: check_destination(out, []), lambda: write_atomically(out, "text")):
        with pytest.raises(DatasetError, match="is no file that could be replaced"):
            refuse()
    assert not out.is_file()


# Features where there are no locks

def test_two_extractions_without_locks(tmp_path, monkeypatch):
    """The faster one has put the groups together and removed them when the other one looks for them."""
    root = make_set(tmp_path / "set")
    monkeypatch.setattr("filelock.FileLock.acquire", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    real, calls = features._read_tables, []

    def read_tables(groups):
        calls.append(groups)
        if len(calls) == 1:
            works.extract(tmp_path, root)
        return real(groups)

    monkeypatch.setattr(features, "_read_tables", read_tables)
    works.extract(tmp_path, root)
    assert len(calls) == 3 and sorted(path.name for path in tmp_path.iterdir()) == ["set", "x.h5"]


def test_a_full_disk_is_named_by_mini(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("acl_paper.mini._write_tables", full)
    with pytest.raises(DatasetError, match=f"The disk of {tmp_path} is full"):
        works.mini(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Tables of results

def test_a_table_that_was_cut_at_a_line_is_named_by_the_report(tmp_path):
    """And a writer that is stopped between two tables leaves no tables of two origins that pass for one."""
    sources = {"dataset": "x", "synthetic": False, "runs": ["a"], "configuration": {}, "versions": ["{}"], "made_with": {}}
    tables = {"results": pd.DataFrame({"subset": ["clean", "all"], "n_seeds": [1, 1]}), "verdicts": pd.DataFrame({"verdict": ["agrees"]})}
    folder = make_folder(tmp_path / "x", "tables")
    save_tables(folder / "sources.json", sources, **tables)
    _check_tables(folder, json.loads((folder / "sources.json").read_text()))
    (folder / "results.csv").write_text("subset,n_seeds\nclean,1\n")
    with pytest.raises(DatasetError, match=r"results.csv is damaged .*; make it again: make results"):
        write_report(folder)
    with mock.patch("os.replace", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        save_tables(folder / "sources.json", sources, **tables)
    assert not (folder / "sources.json").exists()


def test_a_missing_file_of_a_run_is_named(made):
    (made / "predictions.csv").unlink()
    with pytest.raises(FileNotFoundError, match="there is no .*predictions.csv; make the run again"):
        load_predictions(made)
