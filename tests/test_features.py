"""Feature extraction as a user meets it: killed, on a full disk, with bad files, started twice, on large data sets."""
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import PEAK_BYTES, command, environment, make_data_set, run, run_acl, write_tables

from acl_paper.data import audio_path, load_clips
from acl_paper.audio import read_audio
from acl_paper.features import FeatureConfig, extract_features, open_feature_store
from acl_paper.log_mel import log_mel, normalise_and_repeat

STORE = f"{FeatureConfig().digest}.h5"


def acl_features(root, features_dir, *options):
    """The words of the command; the first is its name."""
    return ["acl_features", "--dataset", "clips", "--data_dir", root, "--features_dir", features_dir, *options]


def store_path(features_dir):
    return Path(features_dir) / "clips" / STORE


def groups(features_dir):
    """Finished groups of clips of an extraction that is not complete: path -> time of change."""
    found = {}
    try:
        for path in Path(f"{store_path(features_dir)}.groups").rglob("*.zip"):
            found[path.name] = path.stat().st_mtime_ns
    except FileNotFoundError:  # removed while being listed: the extraction is complete
        pass
    return found


def same_store(one, other):
    return one.clips.equals(other.clips) and np.array_equal(one.frames, other.frames)


@pytest.fixture(scope="module")
def clips_300(tmp_path_factory):
    """300 clips of 2.0 to 2.6 s, in five groups, and the features from one undisturbed extraction."""
    root = make_data_set(tmp_path_factory.mktemp("data") / "set", 299, 2.0)
    store = extract_features(root, tmp_path_factory.mktemp("undisturbed") / "x.h5", report_every_s=None)
    return root, store


def test_killed_and_run_again(tmp_path):
    root = make_data_set(tmp_path / "set", 299, 5.0)
    arguments = command(*acl_features(root, tmp_path / "f", "--jobs", 1))
    process = subprocess.Popen(arguments, env=environment(), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not groups(tmp_path / "f") and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was killed, it had not ended by itself
    kept = groups(tmp_path / "f")
    assert 0 < len(kept) < 5 and not store_path(tmp_path / "f").exists()

    seen = {}  # all times of change that any group's file ever has while the second call runs
    with open(tmp_path / "log", "w") as log:
        again = subprocess.Popen(arguments, env=environment(), cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
        while again.poll() is None:
            for name, changed in groups(tmp_path / "f").items():
                seen.setdefault(name, set()).add(changed)
            time.sleep(0.005)
    text = (tmp_path / "log").read_text()
    assert again.returncode == 0, text
    assert all(seen[name] == {changed} for name, changed in kept.items())  # what was done is not done again
    assert re.search(r"300/300 clips  [\d.]+ clips/s", text) and "\r" not in text
    assert sorted(p.name for p in store_path(tmp_path / "f").parent.iterdir() if p.suffix != ".lock") == [STORE]
    undisturbed = extract_features(root, tmp_path / "undisturbed.h5", report_every_s=None)
    store = open_feature_store(store_path(tmp_path / "f"))
    assert same_store(store, undisturbed)
    for clip in (0, 63, 64, 130, 255, 298, 299):  # and every clip's frames are its own
        split, fname = store.clips.split[clip], store.clips.fname[clip]
        assert np.abs(store[clip] - log_mel(normalise_and_repeat(read_audio(audio_path(root, split, fname))[0]))).max() < 1e-6  # the last bit, of values up to 16


@contextmanager
def small_disk(folder, megabytes):
    """A folder on a disk of its own, or None where this user may not make one."""
    folder.mkdir()
    size = f"size={megabytes}m"
    mounted = hasattr(os, "geteuid") and os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


def no_large_files(megabytes):
    """What a full disk is without the right to mount one: no file may grow beyond this size."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes << 20, resource.RLIM_INFINITY))


@pytest.mark.parametrize(("disk_mb", "file_mb"), [(6, 1), (16, 8)], ids=["while extracting", "while writing the store"])
def test_full_disk(clips_300, tmp_path, disk_mb, file_mb):
    """The clips' features take 13 MB in five groups of at most 2.8 MB, and then once more as the store."""
    root, undisturbed = clips_300
    with small_disk(tmp_path / "disk", disk_mb) as disk:
        features_dir = (disk or tmp_path / "no_disk") / "features"
        failed = run(command(*acl_features(root, features_dir)), cwd=tmp_path, preexec_fn=None if disk else no_large_files(file_mb))
        assert failed.returncode == 1
        assert not store_path(features_dir).exists()
        whole = len(groups(features_dir))
        assert whole == 5 if disk_mb == 16 else whole < 5
        for path in Path(f"{store_path(features_dir)}.groups").rglob("*.zip"):
            with zipfile.ZipFile(path) as group:
                n_frames = json.loads(group.read("table.json"))["n_frames"]
                assert group.testzip() is None and group.getinfo("frames").file_size == sum(n_frames) * 96 * 4 > 0  # a final name means complete
        if disk:
            assert failed.stderr.startswith("acl_features: ")  # no traceback
            assert f"The disk of {store_path(features_dir).parent} is full" in " ".join(failed.stderr.split())  # what, and where
            assert "resumes" in failed.stderr  # what to do: make room, and run the same command
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        done = run_acl(*acl_features(root, features_dir), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        store = open_feature_store(store_path(features_dir))
        assert same_store(store, undisturbed)
        assert sorted(p.name for p in store.path.parent.iterdir() if p.suffix != ".lock") == [STORE]
        del store  # or its disk is in use


@pytest.fixture
def bad_clips(tmp_path):
    """Three good clips, a stereo one at 22.05 kHz, and five bad ones; -> folder, reasons by name."""
    root, rng = tmp_path / "set", np.random.default_rng(0)
    good = ["10.wav", "20.wav", "90.wav"]
    bad = {"30.wav": "no such file", "40.wav": "empty", "50.wav": "cut short", "60.wav": "not a readable audio file", "70.wav": "not a readable audio file"}
    write_tables(root, sorted([*good, *bad, "80.wav"]), ["10.wav"])
    for folder in ("FSDnoisy18k.audio_train", "FSDnoisy18k.audio_test"):
        (root / folder).mkdir()
    sound = {name: rng.uniform(-0.5, 0.5, 60_000) for name in good}
    for name, samples in sound.items():
        soundfile.write(audio_path(root, "train", name), samples, 44_100)
    soundfile.write(audio_path(root, "test", "10.wav"), sound["10.wav"], 44_100)
    soundfile.write(audio_path(root, "train", "80.wav"), rng.uniform(-0.5, 0.5, (50_000, 2)), 22_050)
    audio_path(root, "train", "40.wav").touch()
    audio_path(root, "train", "50.wav").write_bytes(audio_path(root, "train", "10.wav").read_bytes()[:50_000])
    audio_path(root, "train", "60.wav").write_text("This is not audio.\n" * 100)
    audio_path(root, "train", "70.wav").write_bytes(audio_path(root, "train", "10.wav").read_bytes()[:20])  # within the header
    return root, bad


def test_bad_clips(bad_clips, tmp_path):
    root, bad = bad_clips
    failed = run_acl(*acl_features(root, tmp_path / "f"), cwd=tmp_path)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    listed = dict(re.findall(r"^  train/(\S+): (.+)$", failed.stderr, re.M))
    assert set(listed) == set(bad)  # each bad file, and no good one
    for name, reason in bad.items():
        assert reason in listed[name]
    assert "--skip_bad" in failed.stderr  # what to do
    assert not store_path(tmp_path / "f").exists() and len(groups(tmp_path / "f")) == 1  # the others are extracted and kept

    done = run_acl(*acl_features(root, tmp_path / "f", "--skip_bad"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 channels mixed down") == done.stderr.count("resampled from 22050 Hz") == 1
    assert "5 clip(s) left out" in done.stderr
    store, clips = open_feature_store(store_path(tmp_path / "f")), load_clips(root)
    out = store.clips.n_frames == 0
    assert set(clips.fname[out]) == set(bad)
    assert [bad[name] in problem for name, problem in zip(clips.fname[out], store.clips.problem[out])] == [True] * 5
    assert (store.clips.problem[~out] == "").all() and np.array_equal(store[0], store[len(clips) - 1])  # 10.wav in both parts
    assert len(store[int(clips.index[clips.fname == "80.wav"][0])]) == 1 + 100_000 // 882  # 50,000 samples at half the rate


def test_mended_clips(bad_clips, tmp_path):
    """A file that was put right is read, also where its size stays the same, and is not left out of the store for what it was."""
    root, bad = bad_clips
    assert run_acl(*acl_features(root, tmp_path / "f"), cwd=tmp_path).returncode == 1
    sound = audio_path(root, "train", "20.wav").read_bytes()
    for name in bad:
        audio_path(root, "train", name).write_bytes(sound)
    audio_path(root, "train", "60.wav").write_bytes(b"?" * len(sound))
    failed = run_acl(*acl_features(root, tmp_path / "f"), cwd=tmp_path)
    assert failed.returncode == 1 and re.findall(r"^  train/(\S+):", failed.stderr, re.M) == ["60.wav"]
    audio_path(root, "train", "60.wav").write_bytes(sound)
    done = run_acl(*acl_features(root, tmp_path / "f"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    store = open_feature_store(store_path(tmp_path / "f"))
    assert (store.clips.n_frames > 0).all()
    numbers = {name: np.flatnonzero((store.clips.fname == name) & (store.clips.split == "train"))[0] for name in ("20.wav", "30.wav", "60.wav")}
    assert np.array_equal(store[numbers["30.wav"]], store[numbers["20.wav"]]) and np.array_equal(store[numbers["60.wav"]], store[numbers["20.wav"]])


def test_two_processes_make_one_store(clips_300, tmp_path):
    root, undisturbed = clips_300
    both = [subprocess.Popen(command(*acl_features(root, tmp_path / "f", "--jobs", 1)), env=environment(), cwd=tmp_path, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    texts = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert sorted("clips/s" in text for text in texts) == [False, True]  # one extracts, the other waits for it
    assert sorted(text.startswith("waiting: ") for text in texts) == [False, True]
    assert all("300 clips" in text for text in texts)
    assert same_store(open_feature_store(store_path(tmp_path / "f")), undisturbed)


MEASURE = PEAK_BYTES + """
import json
from acl_paper.features import extract_features
store = extract_features(sys.argv[1], sys.argv[2], n_jobs=2, report_every_s=None)
print(json.dumps([peak_bytes() / 1e6, store.frames.nbytes / 1e6]))
"""


def test_peak_memory_does_not_grow_with_the_data_set(tmp_path):
    """Four times the clips: their frames take 39 MB more and their samples 360 MB more. Measured: 0 to 4 MB more at the peak."""
    peaks, sizes = [], []
    for n_train in (127, 511):
        root = make_data_set(tmp_path / f"set{n_train}", n_train, 5.0)
        done = run([sys.executable, "-c", MEASURE, root, tmp_path / f"{n_train}.h5"], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        peak, size = json.loads(done.stdout)
        peaks.append(peak)
        sizes.append(size)
    assert sizes[1] - sizes[0] > 35
    assert peaks[1] - peaks[0] < 15


def test_size_of_the_store(clips_300):
    """50 frames a second of 96 float32 values are 69.1 MB an hour; one more frame a clip and the table of clips come to that."""
    _, store = clips_300
    hours = store.clips.duration_s.sum() / 3600
    frames = (50 * 3600 * hours + len(store.clips)) * 96 * 4
    assert 0.99 * frames < store.path.stat().st_size < 1.01 * frames + 50_000


WITHOUT = """
import sys
class Blocker:  # as if these were not installed
    def find_spec(self, name, path=None, target=None):
        if name in {without!r}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
import {modules}
"""


@pytest.mark.parametrize(("modules", "without"), [
    ("acl_paper.training, acl_paper.evaluation", ["librosa", "soundfile", "soxr"]),
    ("acl_paper.features, acl_paper.mini", ["torch", "librosa", "soundfile"]),
], ids=["training needs no audio libraries", "extraction needs no torch"])
def test_modules_do_without(modules, without):
    """A machine that only trains may have no audio libraries, and extraction does not wait for torch."""
    done = run([sys.executable, "-c", WITHOUT.format(modules=modules, without=without)])
    assert done.returncode == 0, done.stderr
