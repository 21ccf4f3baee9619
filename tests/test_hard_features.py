"""Damaged audio, tables and stores: whatever is wrong with one file is said of that file, and nothing wrong passes for right.

In test_fuzz.py such files are damaged by chance.
"""
import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from helpers import PEAK_BYTES, command, environment, run, run_acl

from acl_paper.audio import AudioError, audio_blocks, read_audio
from acl_paper.console import DatasetError
from acl_paper.data import class_names, load_clips, table_fingerprint
from acl_paper.features import BadClipsError, FeatureConfig, FeatureStoreError, extract_features, open_feature_store
from acl_paper.fingerprints import first_edition_fingerprint, source_fingerprint
from acl_paper.log_mel import mel_filters
from acl_paper.own_data import clips_csv
from acl_paper.patches import ClipFrames, SplitConfig, fit_input_scale, make_split
from acl_paper.text import read_rows

STORE = f"{FeatureConfig().digest}.h5"
SMALL = FeatureConfig(sample_rate=8000, min_duration_s=0.1, n_fft=256, win_length=200, hop_length=100, n_mels=8, fmax_hz=4000.0)


def noise(seconds=0.5, rate=44_100, seed=0, channels=1):
    return np.clip(0.3 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels)), -1, 1).squeeze()


def make_set(root, names=("a/1.wav", "a/2.wav", "3.wav", "4.wav", "5.wav"), labels=("Rain", "Wind")):
    """A data set of half-second sounds in a clips.csv, the last clip of which is the test clip."""
    root.mkdir(parents=True)
    lines = []
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, noise(seed=i), 44_100)
        lines.append(f"{name},{labels[i % len(labels)]},{'train' if i + 1 < len(names) else 'test'}")
    (root / "clips.csv").write_text("\n".join(["path,label,split", *lines]) + "\n", encoding="utf-8")
    return root


def extract(root, path, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return extract_features(root, path, report_every_s=None, **settings)


def replace_audio(path, samples):
    """Other audio in a file, with its size and its time of change kept where they can be."""
    before = os.stat(path)
    soundfile.write(path, samples, 44_100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# What a result was made from


@pytest.mark.parametrize("name", ["a/1.wav", "3.wav"], ids=["in a folder", "beside the table"])
@pytest.mark.parametrize("seconds", [0.5, 5.0], ids=["same size and time", "ten times the length"])
def test_replaced_audio_is_noticed(tmp_path, name, seconds):
    root = make_set(tmp_path / "set")
    before = extract(root, tmp_path / "x.h5")
    replace_audio(root / name, noise(seconds, seed=9))
    with pytest.raises(FeatureStoreError, match=f"made from other audio files .{name}.") as caught:
        extract(root, tmp_path / "x.h5")
    assert "Delete it" in str(caught.value)
    assert source_fingerprint(root, load_clips(root)) != before.source


def test_a_copy_of_the_data_is_the_same_data(tmp_path):
    """Other times of change, the same content: the store is used as it is."""
    root = make_set(tmp_path / "set")
    before = extract(root, tmp_path / "x.h5")
    other = shutil.copytree(root, tmp_path / "other", copy_function=shutil.copyfile)
    os.utime(other / "3.wav", (1, 1))
    assert extract(other, tmp_path / "x.h5").source == before.source


def test_corrected_labels_are_noticed(tmp_path):
    root = make_set(tmp_path / "set")
    before = table_fingerprint(load_clips(root))
    table = (root / "clips.csv").read_text()
    (root / "clips.csv").write_text(table.replace("3.wav,Rain", "3.wav,Wind"))
    assert table_fingerprint(load_clips(root)) != before
    (root / "clips.csv").write_text(table.replace("\n", ",yes\n").replace("split,yes", "split,licence"))
    assert table_fingerprint(load_clips(root)) == before


def as_first_edition(path, root):
    """The store as it was written then: no seal, names and sizes for a fingerprint."""
    with h5py.File(path) as now, h5py.File(f"{path}.then", "w") as then:
        for name in ("frames", "clips"):
            now.copy(name, then)
        del then["clips/content"]
        then.attrs.update(now.attrs, source=first_edition_fingerprint(root, load_clips(root)))
    os.replace(f"{path}.then", path)


def with_column(name, values):
    def change(file):
        del file["clips"][name]
        file["clips"][name] = values
    return change


def linked_elsewhere(name):
    def change(file):
        file.copy(name, "elsewhere")
        del file[name]
        file[name] = h5py.ExternalLink(file.filename + ".other", name)
    return change


def with_bomb(file):
    """A column of 8 GB in some kilobytes."""
    del file["clips/offset"]
    file["clips"].create_dataset("offset", (10**9,), "i8", chunks=(10**6,), compression="gzip")


CHANGES = {
    "a bomb": with_bomb, "frames elsewhere": linked_elsewhere("frames"), "clips elsewhere": linked_elsewhere("clips"),
    "a split that is none": with_column("split", ["x"] * 5), "names that are numbers": with_column("fname", np.arange(5.0)), "one name five times": with_column("fname", ["1.wav"] * 5),
    "negative durations": with_column("duration_s", np.full(5, -1.0)), "durations of text": with_column("duration_s", ["1"] * 5), "no column": with_column("offset", 3),
    "no source": lambda file: file.attrs.update(source=5), "a setting twice": lambda file: file.attrs.update(config=file.attrs["config"].replace("{", '{"n_mels": 3, ', 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_store_of_the_first_edition_that_holds_what_none_did_is_refused(tmp_path, change, small_first_edition):
    """It has no seal by which that would be seen."""
    for suffix in ("", ".other"):
        shutil.copy(small_first_edition, tmp_path / f"x.h5{suffix}")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        change(file)
    with pytest.raises(FeatureStoreError, match="x.h5 is damaged"):
        open_feature_store(tmp_path / "x.h5", SMALL)


@pytest.fixture(scope="module")
def small_first_edition(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    root = make_set(folder / "set")
    extract(root, folder / "x.h5", config=SMALL)
    as_first_edition(folder / "x.h5", root)
    return folder / "x.h5"


def test_a_store_of_the_first_edition_opens_and_goes_out_of_date(tmp_path):
    root = make_set(tmp_path / "set")
    new = extract(root, tmp_path / "x.h5")
    as_first_edition(tmp_path / "x.h5", root)
    old = extract(root, tmp_path / "x.h5")
    assert np.array_equal(old.frames, new.frames) and old.source == new.source and old.clips.equals(new.clips)
    soundfile.write(root / "3.wav", noise(0.6), 44_100)
    with pytest.raises(FeatureStoreError, match="other audio files"):
        extract(root, tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["frames"][2, 3] = np.nan
    with pytest.raises(FeatureStoreError, match="damaged"):
        open_feature_store(tmp_path / "x.h5")


# Files that are not whole

WHOLE = {  # kind and subtype by suffix
    "wav": ("WAV", "PCM_16"), "float.wav": ("WAV", "FLOAT"), "ext.wav": ("WAVEX", "PCM_24"), "gsm.wav": ("WAV", "GSM610"), "ima.wav": ("WAV", "IMA_ADPCM"),
    "g721.wav": ("WAV", "G721_32"), "rf64.wav": ("RF64", "PCM_16"), "w64": ("W64", "PCM_16"), "aiff": ("AIFF", "PCM_16"), "float.aiff": ("AIFF", "FLOAT"),
    "au": ("AU", "PCM_16"), "g721.au": ("AU", "G721_32"), "caf": ("CAF", "PCM_16"), "alac.caf": ("CAF", "ALAC_16"), "svx": ("SVX", "PCM_16"),
    "nist": ("NIST", "PCM_16"), "flac": ("FLAC", "PCM_24"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
}


@functools.cache
def encoded(suffix):
    """Half a second of noise in a file of that kind."""
    kind, subtype = WHOLE[suffix]
    path = Path("/dev/shm" if os.path.isdir("/dev/shm") else ".") / f"acl-{os.getpid()}.{suffix}"
    soundfile.write(path, noise(rate=48_000), 48_000, format=kind, subtype=subtype)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.mark.parametrize("suffix", WHOLE)
def test_a_file_that_was_cut_short_is_refused(suffix, tmp_path):
    path, content = tmp_path / f"x.{suffix}", encoded(suffix)
    path.write_bytes(content)
    samples, _ = read_audio(path, 48_000)
    assert 24_000 <= len(samples) < 27_000  # kinds of fixed blocks fill up the last one
    for n in (1, 2, 3, 100, 1000, len(content) // 2, len(content) * 9 // 10):
        path.write_bytes(content[:-n])
        if n == 1 and suffix == "gsm.wav":  # its last byte fills up an odd number of them
            assert np.array_equal(read_audio(path, 48_000)[0][:24_000], samples[:24_000])
            continue
        with pytest.raises(AudioError, match=path.name):
            read_audio(path, 48_000)


def test_lengths_that_are_not_stated(tmp_path):
    """As from a pipe: the writer could not go back to the header, the file is read to its end."""
    for suffix, at, field in (("wav", 40, b"\xff" * 4), ("au", 8, b"\xff" * 4)):
        content = bytearray(encoded(suffix))
        content[at:at + 4] = field
        (tmp_path / f"x.{suffix}").write_bytes(content)
        assert len(read_audio(tmp_path / f"x.{suffix}", 48_000)[0]) == 24_000


def test_mp3_without_the_number_of_its_frames_is_not_read_in_part(tmp_path):
    """Of variable bit rate and without the frame that says how many there are, libsndfile would read a fraction."""
    path = tmp_path / "x.mp3"
    soundfile.write(path, noise(6), 44_100)
    content = path.read_bytes()
    path.write_bytes(content[417:])  # 128 kbit/s at 44.1 kHz
    assert soundfile.info(path).frames < 200_000
    with pytest.raises(AudioError, match="does not state its length"):
        read_audio(path)


def test_what_is_not_all_of_a_file_is_not_read_for_all(tmp_path):
    """A FLAC file with a frame less, for which the decoder gives silence; Ogg streams one after the other, of which it reads the first."""
    path = tmp_path / "x.flac"
    soundfile.write(path, noise(1), 44_100, subtype="PCM_16")
    content = path.read_bytes()
    third, fourth = [found.start() for found in re.finditer(rb"\xff\xf8\xc9\x08", content)][3:5]
    path.write_bytes(content[:third] + content[fourth:])
    with pytest.raises(AudioError, match="x.flac: .*(checksum|decoder)"):
        read_audio(path)
    for suffix in ("ogg", "opus"):
        (tmp_path / f"x.{suffix}").write_bytes(2 * encoded(suffix))
        with pytest.raises(AudioError, match="several streams"):
            read_audio(tmp_path / f"x.{suffix}", 48_000)


@pytest.mark.parametrize("rate", [1, 50, 99, 2_000_000])
def test_no_sound_has_such_a_rate(rate, tmp_path):
    """Of an hour at 1 Hz there would be 159 million samples."""
    soundfile.write(tmp_path / "x.wav", np.zeros(3600), rate)
    with pytest.raises(AudioError, match="x.wav: (its sample rate of|3600 s in 1 channels at 1 Hz)"):
        read_audio(tmp_path / "x.wav")
    with pytest.raises(AudioError, match="its sample rate of"):
        next(audio_blocks(tmp_path / "x.wav"))


def test_finite_after_every_conversion(tmp_path):
    for name, samples, rate in (("mixed", np.full((44_100, 2), 3.3e38), 44_100), ("resampled", 3.3e38 * noise(), 22_050), ("nan", noise() * np.nan, 44_100)):
        soundfile.write(tmp_path / f"{name}.wav", samples, rate, subtype="FLOAT")
        with pytest.raises(AudioError, match=f"{name}.wav: .*not finite"):
            read_audio(tmp_path / f"{name}.wav")
    soundfile.write(tmp_path / "double.wav", 1e300 * noise(), 44_100, subtype="DOUBLE")
    with pytest.raises(AudioError, match="not finite"):
        read_audio(tmp_path / "double.wav")
    root = make_set(tmp_path / "set")
    soundfile.write(root / "3.wav", 3.3e38 * noise(), 44_100, subtype="FLOAT")  # nothing is lost here
    store = extract(root, tmp_path / "x.h5")
    assert np.isfinite(store.frames).all() and (store.clips.problem == "").all()


# One bad file does not take the others with it


def bad_files(root):
    """Files that cannot be used, by name, each bad in its own way; none of them is large."""
    def flac(name, length):
        soundfile.write(root / name, noise(), 44_100)
        content = bytearray((root / name).read_bytes())
        content[21] = content[21] & 0xF0 | length >> 32
        content[22:26] = (length & 0xFFFFFFFF).to_bytes(4, "big")
        (root / name).write_bytes(content)

    flac("unknown.flac", 0)
    flac("absurd.flac", 2**36 - 1)
    flac("twice.flac", 44_100)
    soundfile.write(root / "sample.wav", np.zeros(1), 192_000)
    soundfile.write(root / "slow.wav", noise(12_000, 1), 1)
    soundfile.write(root / "fast.wav", noise(), 2_000_000_000)
    soundfile.write(root / "day.flac", np.zeros(86_400, np.int16), 1)
    os.symlink("nowhere", root / "link.wav")
    os.symlink("loop.wav", root / "loop.wav")
    os.mkfifo(root / "pipe.wav")
    (root / "folder.wav").mkdir()
    (root / "empty.wav").touch()
    (root / "text.raw").write_text("not audio")
    return ["unknown.flac", "absurd.flac", "twice.flac", "sample.wav", "slow.wav", "fast.wav", "day.flac", "link.wav", "loop.wav", "pipe.wav",
            "folder.wav", "empty.wav", "text.raw", "missing.wav", "n" * 300 + ".wav", "nul\0.wav"]


BOUNDED = PEAK_BYTES + """
import json, warnings
from acl_paper.features import BadClipsError, extract_features
warnings.simplefilter("ignore")
problems = {}
try: extract_features(sys.argv[1], sys.argv[2], n_jobs=2, report_every_s=None)
except BadClipsError as error: problems, text = error.problems, str(error)
store = extract_features(sys.argv[1], sys.argv[2], n_jobs=2, report_every_s=None, skip_bad=True)
print(json.dumps([problems, text, list(store.clips.fname[store.clips.problem == ""]), peak_bytes() / 1e9]))
"""


def test_every_bad_file_is_named_and_the_others_are_extracted(tmp_path):
    """And none of them takes a gigabyte, or minutes."""
    root = make_set(tmp_path / "set")
    bad = bad_files(root)
    with open(root / "clips.csv", "a") as table:
        table.writelines(f"{name},Rain,train\n" for name in bad)
    done = run([sys.executable, "-c", BOUNDED, root, tmp_path / "x.h5"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    problems, text, good, gigabytes = json.loads(done.stdout)
    shown = {name.replace("\0", "\\0") for name in bad}
    assert set(problems) == shown and all(problems.values()) and text.count("\n") == len(bad) + 2
    assert good == ["a/1.wav", "a/2.wav", "3.wav", "4.wav", "5.wav"]
    assert gigabytes < 1


def test_a_file_of_a_name_that_is_no_text(tmp_path):
    """In a folder per class no table needs to name it. It is shown with an escape, also where only ASCII can be printed."""
    for label in ("Rain", "Wind"):
        make_set(tmp_path / "set" / label, [f"{i}.wav" for i in range(5)])
        (tmp_path / "set" / label / "clips.csv").unlink()
    os.rename(tmp_path / "set/Rain/0.wav", tmp_path / "set/Rain" / os.fsdecode(b"caf\xe9.wav"))
    arguments = command("acl_features", "--data_dir", tmp_path / "set", "--dataset", "x", "--features_dir", tmp_path / "f")
    failed = run(arguments, environ={"PYTHONIOENCODING": "ascii"})
    assert failed.returncode == 1 and "  Rain/caf\\udce9.wav: its name is not text in UTF-8: rename it\n" in failed.stderr
    assert "Traceback" not in failed.stderr
    done = run([*arguments, "--skip_bad"], environ={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "10 clips" in done.stdout
    store = open_feature_store(tmp_path / "f/x" / STORE)
    assert store.clips.fname[store.clips.problem != ""].tolist() == ["Rain/caf\\udce9.wav"]


def test_nothing_but_bad_files_makes_no_store(tmp_path):
    root = make_set(tmp_path / "set")
    for path in root.rglob("*.wav"):
        path.write_bytes(b"RIFF")
    with pytest.raises(BadClipsError, match="5 audio file"):
        extract(root, tmp_path / "x.h5", skip_bad=True)


def test_files_that_no_clip_needs_do_not_matter(tmp_path):
    root = make_set(tmp_path / "set")
    os.symlink("nowhere", root / ".#notes.txt")
    os.symlink("nowhere", root / "a/unused.wav")
    assert len(extract(root, tmp_path / "x.h5").clips) == 5


def test_files_of_several_blocks_take_bounded_memory(tmp_path):
    """Half an hour of two channels at 48 kHz: 700 MB as floats, and none of its copies is made. On the disk it is a hole."""
    soundfile.write(tmp_path / "long.wav", np.zeros((1, 2), np.int16), 48_000)
    n_bytes = 1800 * 48_000 * 4
    with open(tmp_path / "long.wav", "rb+") as file:
        file.seek(4)
        file.write((36 + n_bytes).to_bytes(4, "little"))
        file.seek(40)
        file.write(n_bytes.to_bytes(4, "little"))
        file.truncate(44 + n_bytes)
    code = PEAK_BYTES + "from acl_paper.audio import read_audio; print(len(read_audio(sys.argv[1])[0]), peak_bytes() / 1e9)"
    done = run([sys.executable, "-c", code, tmp_path / "long.wav"])
    assert done.returncode == 0, done.stderr
    n_samples, gigabytes = map(float, done.stdout.split())
    assert n_samples == 1800 * 44_100 and gigabytes < 0.7


# Names from outside


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/secret.wav", "a/../../secret.wav", "..\\secret.wav", "C:/secret.wav"])
@pytest.mark.parametrize("layout", ["own", "FSDnoisy18k"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name, layout):
    root = make_set(tmp_path / "set")
    soundfile.write(tmp_path / "secret.wav", noise(), 44_100)
    if layout == "own":
        (root / "clips.csv").write_text(f"path,label,split\n3.wav,Rain,train\n{name},Rain,test\n")
    else:
        (root / "FSDnoisy18k.meta").mkdir()
        (root / "FSDnoisy18k.meta/train.csv").write_text(f"fname,label,aso_id,manually_verified,noisy_small\n{name},Rain,/m/1,1,0\n")
        (root / "FSDnoisy18k.meta/test.csv").write_text("fname,label,aso_id\n1.wav,Rain,/m/1\n")
    with pytest.raises(DatasetError, match="leads out of the data set's folder"):
        load_clips(root)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_that_leave_the_folder_are_refused_unless_allowed(tmp_path, monkeypatch, kind):
    root = make_set(tmp_path / "set")
    outside = tmp_path / "outside"
    outside.mkdir()
    place = root / "a" if kind == "folder" else root / "3.wav"
    shutil.move(place, outside / place.name)
    os.symlink(outside / place.name, place)
    os.symlink("3.wav" if kind == "folder" else "4.wav", root / "inside.wav")  # a link within the folder is as good as its file
    with open(root / "clips.csv", "a") as table:
        table.write("inside.wav,Rain,train\n")
    with pytest.raises(BadClipsError) as caught:
        extract(root, tmp_path / "x.h5")
    assert set(caught.value.problems) == ({"a/1.wav", "a/2.wav"} if kind == "folder" else {"3.wav"})
    assert all("outside of the data set's folder" in why and "ACL_LINKS=" in why for why in caught.value.problems.values())
    monkeypatch.setenv("ACL_LINKS", os.pathsep.join(["/nowhere", str(outside)]))
    store = extract(root, tmp_path / "x.h5")
    assert (store.clips.problem == "").all()


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_names_with_accents_match_in_both_spellings(tmp_path, on_disk):
    in_table = {"NFC": "NFD", "NFD": "NFC"}[on_disk]
    names = ["Vögel/Grünfink.wav", "Straße/ñandú.wav", "雨/猫🐈.wav"]
    root = make_set(tmp_path / "set", [unicodedata.normalize(on_disk, name) for name in names], labels=["Vögel"])
    (root / "clips.csv").write_text(unicodedata.normalize(in_table, (root / "clips.csv").read_text(encoding="utf-8")), encoding="utf-8")
    store = extract(root, tmp_path / "x.h5")
    assert (store.clips.n_frames > 0).all()
    again = extract(root, tmp_path / "x.h5")  # a finished store can be opened
    assert np.array_equal(again.frames, store.frames)
    assert [unicodedata.normalize("NFC", name) for name in again.clips.fname] == names
    assert set(load_clips(root).label) == {"Vögel"}


def test_labels_come_back_as_they_went(tmp_path):
    """None of these words means a missing value, a column or a part of the table."""
    labels = ["None", "NA", "null", "nan", "truth", "prediction", "fname", "label", "True", "1e5", "007", "-"]
    lines = [f"{label}{i}.wav,{label},{split}" for label in labels for i, split in enumerate(("train", "train", "test"))]
    (tmp_path / "clips.csv").write_text("path,label,split\n" + "\n".join(lines) + "\nBark.wav,Bark ,train\nBark2.wav,\u00a0Bark,test\n")
    with pytest.warns(UserWarning, match="blanks around labels are left out: 'Bark ', '\\\\xa0Bark'"):
        clips = load_clips(tmp_path)
    assert sorted(set(clips.label)) == sorted([*labels, "Bark"])
    assert clips.label[:3 * len(labels)].tolist() == [label for label in labels for _ in range(3)]


@pytest.mark.parametrize("ends", ["\u200b", "\ufeff", "\u00ad", "\u2060", "\u3000", "\t", " \u200f \n", "\u202e", "\u2066"])
def test_what_cannot_be_seen_at_the_ends_of_a_label_makes_no_class(tmp_path, ends):
    (tmp_path / "clips.csv").write_text(f'path,label,split\n1.wav,Bark,train\n2.wav,"Bark{ends}",train\n3.wav,"{ends}Bark",test\n', encoding="utf-8")
    with pytest.warns(UserWarning, match="blanks around labels are left out"):
        assert class_names(load_clips(tmp_path)) == ["Bark"]


@pytest.mark.parametrize("other", ["D\u200bog bark", "Dog\u00a0bark", "Dog  bark", "Dog bar\u00adk", "\u202bDog \u202cbark", "Dog bark\ufe0f", "Mo\u200b\u0308we"])
def test_labels_that_look_alike_are_refused_by_name(tmp_path, other):
    """Two classes that nobody can tell apart would be learnt."""
    label = "Möwe" if "we" in other else "Dog bark"
    (tmp_path / "clips.csv").write_text(f"path,label,split\n1.wav,{label},train\n2.wav,x{other},train\n3.wav,x{label},test\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="write labels that look alike in one way: ") as caught:
        load_clips(tmp_path)
    assert ascii("x" + label) in str(caught.value) and str(caught.value).isprintable()


def test_composed_and_decomposed_labels_are_one_class_and_groups_one_group(tmp_path):
    rows = ["1.wav,Möwe,train,Jörg", "2.wav,Mo\u0308we,test,Jo\u0308rg\u200b"]
    (tmp_path / "clips.csv").write_text("\n".join(["\ufeffpath,label\u200b,split,group", *rows, ""]), encoding="utf-8")
    clips = load_clips(tmp_path)
    assert class_names(clips) == ["Möwe"] and set(clips.group) == {"Jörg"}


def test_a_file_is_found_by_what_is_seen_of_its_name(tmp_path):
    """And is listed once: two names that look alike are one clip on two sides."""
    for name in ("1.wav", "Mo\u0308\u200bwe.wav"):
        (tmp_path / name).touch()
    table = "path,label,split\n\ufeff1.wav\u200b,Rain,train\nMö\u00adwe.wav,Rain,test\n"
    (tmp_path / "clips.csv").write_text(table, encoding="utf-8")
    assert load_clips(tmp_path).path.tolist() == ["1.wav", "Mo\u0308\u200bwe.wav"]
    (tmp_path / "clips.csv").write_text(table + "Möwe.wav,Rain,train\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="lists 1 clips more than once: Möwe.wav"):
        load_clips(tmp_path)


@pytest.mark.parametrize("label", ["Bark\0", "\0", "\u200b\u200b", "\u034f"])
def test_labels_that_cannot_be_shown_are_refused(tmp_path, label):
    (tmp_path / "clips.csv").write_text(f"path,label,split\n1.wav,Bark,train\n2.wav,{label},train\n3.wav,Bark,test\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="rename labels that are empty or not text in UTF-8|line 3 has no label"):
        load_clips(tmp_path)


def test_a_name_with_a_colon_is_no_drive(tmp_path):
    (tmp_path / "clips.csv").write_text("path,label,split\n1:30.wav,Rain,train\n2.wav,Rain,test\n")
    assert load_clips(tmp_path).path.tolist() == ["1:30.wav", "2.wav"]


def test_groups_are_part_of_what_a_result_depends_on(tmp_path):
    """They decide which clips are validated on."""
    lines = [f"{i}.wav,{'Rain' if i % 2 else 'Wind'},{'test' if i < 2 else 'train'},g{i}" for i in range(12)]
    (tmp_path / "clips.csv").write_text("\n".join(["path,label,split,group", *lines, ""]))
    before = table_fingerprint(load_clips(tmp_path))
    (tmp_path / "clips.csv").write_text("\n".join(["path,label,split,group", *lines, ""]).replace("g5", "g6"))
    assert table_fingerprint(load_clips(tmp_path)) != before


HOSTILE = ["a\rb.wav", "c\nd.wav", 'e"f,g.wav', " h.wav", "i\u2028j.wav", "k\tl\\m.wav", "-n.wav", "$(o).wav", "{p}.wav", "1:30.wav"]


def test_tables_written_of_any_names_come_back(tmp_path):
    clips = pd.DataFrame({"path": HOSTILE, "label": [name[:-4] for name in HOSTILE], "split": "train"})
    (tmp_path / "x.csv").write_bytes(clips_csv(clips, with_split=True).encode())
    assert list(read_rows(tmp_path / "x.csv")[1].values()) == clips.values.tolist()


def test_what_is_left_out_for_its_name_keeps_none_from_training(tmp_path):
    """NUL and bytes that are no text stand in the store as escapes, accents in one spelling."""
    names = [unicodedata.normalize("NFD", f"Vögel {i}.wav") for i in range(12)]
    root = make_set(tmp_path / "set", names)
    with open(root / "clips.csv", "a", encoding="utf-8") as table:
        table.write("nul\0.wav,Rain,train\n")
    store = extract(root, tmp_path / "x.h5", config=SMALL, skip_bad=True)
    clips = load_clips(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = make_split(store, clips, SplitConfig(subset="all", patch_frames=5))
    assert len(split.test) and {*split.train.clips.tolist(), *split.validation.clips.tolist(), *split.test.clips.tolist()} == {*range(12)}


def test_nothing_but_silence_has_a_scale(small):
    frames = torch.full((40, 8), -15.0)
    numbers = torch.arange(2)
    assert fit_input_scale(ClipFrames(frames, 20 * numbers, torch.tensor([20, 20]), numbers, numbers)).scale == 1.0


@pytest.mark.parametrize(("name", "value"), [("n_fft", 10**9), ("n_mels", 10**6), ("sample_rate", 10**9), ("min_duration_s", 1e9), ("min_duration_s", -1.0),
                                             ("log_offset", 0.0), ("peak_offset", 0.0), ("log_offset", -1.0), ("hop_length", 0),
                                             ("log_offset", 1e290), ("peak_offset", 1e299), ("hop_length", 3000), ("hop_length", 2**70), ("sample_rate", 1), ("min_duration_s", 600.5),
                                             ("window", "nosuch"), ("window", "kaiser"), ("window", "")])
def test_settings_of_features_that_would_take_all_memory_or_give_no_numbers(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        FeatureConfig(**{name: value})


@pytest.mark.parametrize("settings", [dict(n_mels=1024), dict(fmin_hz=1000.0, fmax_hz=1000.001), dict(n_fft=3, win_length=3, hop_length=1)])
def test_a_band_without_a_frequency_is_refused(tmp_path, settings):
    """It would be constant, of which only a warning of librosa's speaks."""
    for call in (mel_filters, lambda config: extract(make_set(tmp_path / "set"), tmp_path / "x.h5", config=config)):
        with pytest.raises(ValueError, match=r"n_mels is \d+, but \d+ of these mel filters hold no frequency"):
            call(FeatureConfig(**settings))


def test_a_recording_of_too_many_frames_is_that_clips_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("acl_paper.log_mel.MOST_VALUES", 20_000)
    root = make_set(tmp_path / "set")
    soundfile.write(root / "3.wav", noise(5), 44_100)
    with pytest.raises(BadClipsError, match="3.wav: its 251 frames of 96 bands are too much for the memory: a larger hop_length than 882 is needed") as caught:
        extract(root, tmp_path / "x.h5")
    assert list(caught.value.problems) == ["3.wav"]


# A store is whole or it is refused


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A data set and its store."""
    folder = tmp_path_factory.mktemp("small")
    root = make_set(folder / "set")
    return root, extract(root, folder / "x.h5", config=SMALL)


def put(name, make):
    """A change of a store: other values in the place of a dataset."""
    def change(file):
        values = make(file[name][()])
        del file[name]
        file[name] = values
    return change


def in_pieces(file):
    values = file["frames"][()]
    del file["frames"]
    file.create_dataset("frames", data=values, chunks=(10, values.shape[1]))


def flip(file):
    file["frames"][5, 3] += 1e-3


CHANGES = {
    "float64": put("frames", lambda frames: frames.astype("f8")), "big-endian": put("frames", lambda frames: frames.astype(">f4")),
    "half of the bands": put("frames", lambda frames: frames[:, :4]), "too few frames": put("frames", lambda frames: frames[:-3]),
    "too many frames": put("frames", lambda frames: np.repeat(frames, 2, axis=0)), "one column": put("frames", lambda frames: frames[:, 0]),
    "compressed": in_pieces, "a flipped value": flip, "integers": put("frames", lambda frames: frames.astype("i4")),
    "negative lengths": put("clips/n_frames", lambda n: -n), "lengths in floats": put("clips/n_frames", lambda n: n + 0.5),
    "offsets beyond the end": put("clips/offset", lambda offset: offset + 10**9), "equal offsets": put("clips/offset", lambda offset: offset * 0),
    "lengths exchanged": put("clips/n_frames", lambda n: n[::-1] + np.array([1, -1, 0, 0, 0])), "one clip less": put("clips/fname", lambda names: names[:-1]),
    "other names": put("clips/fname", lambda names: names[::-1]), "durations": put("clips/duration_s", lambda seconds: seconds * np.nan),
    "no table": lambda file: file.pop("clips"), "no frames": lambda file: file.pop("frames"), "no settings": lambda file: file.attrs.pop("config"),
    "settings that are no JSON": lambda file: file.attrs.update(config="{"),
}


@pytest.mark.parametrize("first_edition", [False, True], ids=["", "first edition"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_store_is_refused(small, tmp_path, change, first_edition):
    """The first edition's has no checksums: there, values and names that were exchanged cannot be seen."""
    if first_edition and change in ("a flipped value", "other names"):
        pytest.skip("the first edition has no checksum")
    root, store = small
    path = Path(shutil.copy(store.path, tmp_path / "x.h5"))
    if first_edition:
        as_first_edition(path, root)
    with h5py.File(path, "r+") as file:
        CHANGES[change](file)
    with pytest.raises(FeatureStoreError, match="x.h5") as caught:
        open_feature_store(path, SMALL)
    assert "Delete it" in str(caught.value)


def test_a_store_of_other_clips_is_refused(small, tmp_path):
    root, store = small
    other = shutil.copytree(root, tmp_path / "set")
    (other / "clips.csv").write_text((root / "clips.csv").read_text().replace("4.wav", "6.wav"))
    os.rename(other / "4.wav", other / "6.wav")
    shutil.copy(store.path, tmp_path / "x.h5")
    with pytest.raises(FeatureStoreError, match="made from other clips"):
        extract(other, tmp_path / "x.h5", config=SMALL)


# After a power cut, and beside other processes


def groups_of(path):
    return sorted(Path(f"{path}.groups").rglob("*.zip"))


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:len(content) // 2], lambda content: content[:-1],
                                    lambda content: bytes(len(content)), lambda content: content[:3000] + b"\xff" + content[3001:]],
                         ids=["empty", "half", "one byte less", "zeros", "a flipped byte"])
def test_damaged_groups_are_made_again(tmp_path, damage):
    root = make_set(tmp_path / "set", [f"{i}.wav" for i in range(70)])
    shutil.move(root / "69.wav", tmp_path)
    with pytest.raises(BadClipsError):  # the first of two groups is kept
        extract(root, tmp_path / "x.h5")
    shutil.move(tmp_path / "69.wav", root)
    first = groups_of(tmp_path / "x.h5")[0]
    first.write_bytes(damage(first.read_bytes()))
    store = extract(root, tmp_path / "x.h5")
    assert np.array_equal(store.frames, extract(root, tmp_path / "y.h5").frames) and groups_of(tmp_path / "x.h5") == []


def test_a_store_left_empty_is_made_again(tmp_path):
    root = make_set(tmp_path / "set")
    (tmp_path / "x.h5").touch()
    assert len(extract(root, tmp_path / "x.h5").clips) == 5


def test_files_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *arguments, name=name, real=real: (order.append(name), real(*arguments))[1])
    extract(make_set(tmp_path / "set"), tmp_path / "x.h5")
    assert order == ["fsync", "replace", "fsync"] * 2  # a group and the store, each with its folder


def test_what_a_killed_call_leaves_is_swept(tmp_path):
    """Killed while it writes the store: nothing of that is there after the next call."""
    root = make_set(tmp_path / "set")
    code = "import os, acl_paper.features as store; store._copy_frames = lambda *_: os.kill(os.getpid(), 9); store.extract_features({!r}, {!r})"
    killed = run([sys.executable, "-c", code.format(str(root), str(tmp_path / "x.h5"))])
    assert killed.returncode == -signal.SIGKILL and any(path.suffix == ".part" for path in tmp_path.iterdir())
    (tmp_path / "x.h5.part").touch()  # as the first edition named it
    extract(root, tmp_path / "x.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "x.h5", "x.h5.lock"]


AS_A_USER = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


@pytest.mark.skipif(bool(AS_A_USER) and not shutil.which("setpriv"), reason="root may write anywhere, and cannot give up that right here")
def test_a_finished_store_needs_no_right_to_write_and_no_lock(tmp_path):
    root = make_set(tmp_path / "set")
    features = ["--dataset", "set", "--data_dir", root, "--features_dir", tmp_path / "f"]
    assert run_acl("acl_features", *features).returncode == 0
    folder = tmp_path / "f/set"
    next(folder.glob("*.lock")).unlink()
    folder.chmod(0o555)
    (folder / STORE).chmod(0o444)
    done = run([*AS_A_USER, *command("acl_features", *features)])
    assert done.returncode == 0 and "5 clips" in done.stdout, done.stderr
    (folder / STORE).chmod(0)
    refused = run([*AS_A_USER, *command("acl_features", *features)])
    assert refused.returncode == 1 and "may not be read" in refused.stderr and "elete" not in refused.stderr
    (folder / STORE).unlink()
    refused = run([*AS_A_USER, *command("acl_features", *features)])
    folder.chmod(0o755)
    assert refused.returncode == 1 and f"{folder} cannot take the features: Permission denied" in refused.stderr


def test_a_store_that_another_program_has_open(tmp_path):
    root = make_set(tmp_path / "set")
    store = extract(root, tmp_path / "x.h5")
    code = f"import h5py, time; file = h5py.File({str(tmp_path / 'x.h5')!r}, 'r+'); print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        assert np.array_equal(open_feature_store(tmp_path / "x.h5").frames, store.frames)
        other.kill()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    monkeypatch.setattr("filelock.FileLock.acquire", lambda *_, **__: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with pytest.warns(UserWarning, match="has no locks"):
        store = extract_features(make_set(tmp_path / "set"), tmp_path / "x.h5", report_every_s=None)
    assert len(store.clips) == 5


def test_who_waits_says_for_what(tmp_path):
    root = make_set(tmp_path / "set", [f"{i}.wav" for i in range(200)])
    arguments = command("acl_features", "--dataset", "set", "--data_dir", root, "--features_dir", tmp_path / "f", "--jobs", 1)
    both = [subprocess.Popen(arguments, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    waited = [f"{STORE} is made by another process, which holds" in text for text in told]
    assert sorted(waited) == [False, True] or "clips/s" not in told[waited.index(False) - 1], told


# The command, and where it runs


@pytest.mark.parametrize(("arguments", "told"), [
    (["--jobs", "-1"], "--jobs must be a whole number from 1, not -1"),
    (["--jobs", "0"], "--jobs must be a whole number from 1, not 0"),
    (["--data_dir", "~nosuchuser/set"], "~nosuchuser/set: there is no such home folder"),
    (["--features_dir", "~nosuchuser/f"], "~nosuchuser/f: there is no such home folder"),
    (["--features_dir", "set/clips.csv"], "cannot take the features: Not a directory"),
    (["--data_dir", "nowhere"], "nowhere, which is not a folder"),
])
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, arguments, told):
    make_set(tmp_path / "set")
    done = run_acl("acl_features", "--dataset", "set", "--data_dir", "set", *arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("acl_features: ") and told in done.stderr and done.stderr.count("\n") == 1


def test_ctrl_c_ends_in_one_line(tmp_path):
    root = make_set(tmp_path / "set", [f"{i}.wav" for i in range(300)])
    arguments = command("acl_features", "--dataset", "set", "--data_dir", root, "--features_dir", tmp_path / "f", "--jobs", 1)
    process = subprocess.Popen(arguments, env=environment(), text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not groups_of(tmp_path / "f/set" / STORE):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and told.strip() == "acl_features: stopped."
    assert run(arguments).returncode == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not say which cores a process may use")
def test_the_cores_that_are_allowed():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from acl_paper.fingerprints import usable_cores; print(usable_cores())"
    assert run([sys.executable, "-c", code]).stdout.split() == ["1"]


def test_nothing_here_needs_a_module_of_unix():
    code = "import sys; sys.modules['fcntl'] = None; import acl_paper.features, acl_paper.download, acl_paper.mini; print('fine')"
    done = run([sys.executable, "-c", code])
    assert done.stdout == "fine\n", done.stderr
