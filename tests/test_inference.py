"""Recordings as people have them, through the commands and from Python: formats, lengths, silence, damage, kills, and what a batch leaves behind."""
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from helpers import PEAK_BYTES, REAL_MINI, SHARED, command, environment, run, run_acl, run_papermill

from acl_paper.audio import AudioError, audio_blocks, read_audio
from acl_paper.batch import Results, acl_embed, acl_predict, as_audacity, find_recordings, predicted, prediction_line, read_results
from acl_paper.console import DatasetError
from acl_paper.data import DatasetLocation
from acl_paper.evaluation import Run, clip_outputs, outputs_of
from acl_paper.features import SSL_FEATURES, FeatureConfig
from acl_paper.inference import KEPT_BLOCKS, Classifier, Recording, segments
from acl_paper.log_mel import clip_log_mel
from acl_paper.networks import make_network
from acl_paper.patches import InputScale, Patches, Scaler, grid_patches, test_patch_starts, ClipFrames
from acl_paper.pretraining import PretrainConfig, first_networks
from acl_paper.probing import EncoderWithClassifier, ProbeConfig, origin_of
from acl_paper.runs import load_run, save_run
from acl_paper.testing import clips_to_test, predictions_of
from acl_paper.training import TrainConfig

test_patch_starts.__test__ = False
CLASSES = ["Bark", "Rain", "note"]  # the last one has the name of a column
HISTORY = pd.DataFrame({"epoch": [1], "train_loss": [1.0]})


def noise(seconds, rate=44_100, seed=0, channels=1):
    shape = round(seconds * rate) if channels == 1 else (round(seconds * rate), channels)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run folder of each kind, with random weights: what they say means nothing, but it is always the same."""
    folder = tmp_path_factory.mktemp("project") / "runs"
    torch.manual_seed(0)
    scaler = Scaler(np.linspace(-2, 1, 96), np.linspace(1, 2, 96))
    training = Run("training", make_network("paper_cnn", 3, (100, 96)), scaler, TrainConfig(subset="all"), FeatureConfig(), CLASSES, HISTORY, 1)
    settings = PretrainConfig(network="resnet18", width=4, subset="all")
    pretraining = Run("pretraining", first_networks(settings, 5, 96), InputScale(-1.0, 2.0), settings, SSL_FEATURES, list("abcde"), HISTORY, 1)
    probe = Run("probe", EncoderWithClassifier(pretraining.network.encoder, 32, 3), pretraining.scaler, ProbeConfig(subset="all"), SSL_FEATURES, CLASSES,
                HISTORY, 1, origin_of(pretraining))
    for each in (pretraining, probe, training):
        each.network.eval()
        save_run(folder / each.kind, each)
    return folder


@pytest.fixture
def recordings(tmp_path):
    """A folder of odd recordings: names of those that can be answered, of those that cannot, and of the bad ones."""
    folder = tmp_path / "recordings"
    (folder / "deeper").mkdir(parents=True)
    soundfile.write(folder / "plain.wav", noise(3), 44_100)
    soundfile.write(folder / "stereo, 8 kHz.flac", noise(2.5, 8000, channels=2), 8000)
    soundfile.write(folder / "deeper" / "Käuzchen\n.ogg", noise(4, 22_050), 22_050)
    soundfile.write(folder / "deeper" / "half a second.mp3", noise(0.5, 44_100), 44_100)
    soundfile.write(folder / "click.wav", noise(0.05), 44_100)
    soundfile.write(folder / "night.wav", np.zeros(300_000), 44_100)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("la la la")
    whole = (folder / "plain.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[:len(whole) // 2])
    (folder / "notes.txt").write_text("not a recording")
    return folder, ["plain.wav", "stereo, 8 kHz.flac", "deeper/Käuzchen\n.ogg", "deeper/half a second.mp3"], ["click.wav", "night.wav"], ["cut.wav", "empty.wav", "text.wav"]


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# From Python


def at_once(trained, path):
    """Probabilities and embedding of a recording in one piece: the definition."""
    frames = clip_log_mel(read_audio(path, trained.features.sample_rate)[0], trained.features)
    if trained.kind == "training":
        starts = torch.from_numpy(test_patch_starts(len(frames), trained.patch_frames))
        zeros = torch.zeros_like(starts)
        patches = Patches(torch.from_numpy(trained.scaler(frames)), starts, zeros, zeros, trained.patch_frames)
    else:
        zero = torch.zeros(1, dtype=torch.int64)
        patches = grid_patches(ClipFrames(torch.from_numpy(frames), zero, torch.tensor([len(frames)]), zero, zero), trained.scaler)
    outputs = clip_outputs(*outputs_of(trained.network, patches), patches)
    return (outputs.scores / outputs.n_patches)[0].numpy(), outputs.embeddings[0].numpy()


@pytest.mark.parametrize("kind", ["training", "probe"])
@pytest.mark.parametrize(("seconds", "rate", "channels"), [(0.31, 44_100, 1), (2, 44_100, 1), (29.99, 48_000, 2), (7, 8000, 1), (130, 44_100, 1)])
def test_block_by_block_is_as_at_once(runs, tmp_path, kind, seconds, rate, channels):
    """Also where the recording is longer than what is kept, and is read twice."""
    soundfile.write(tmp_path / "a.wav", noise(seconds, rate, channels=channels) + 0.01, rate)
    trained = load_run(runs / kind)
    probabilities, embedding = at_once(trained, tmp_path / "a.wav")
    heard = Classifier(trained, device="cpu").hear(tmp_path / "a.wav")
    np.testing.assert_allclose(heard.probabilities, probabilities, atol=1e-5)
    np.testing.assert_allclose(heard.embedding, embedding, atol=1e-4)
    assert (seconds == 130) == (len(list(audio_blocks(tmp_path / "a.wav", trained.features.sample_rate))) >= KEPT_BLOCKS and seconds > 95)


def test_a_waveform_is_as_its_file(runs, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(3, 48_000), 48_000, subtype="FLOAT")
    for kind in ("training", "pretraining", "probe"):
        classifier = Classifier.load(runs / kind, device="cpu")
        np.testing.assert_allclose(classifier.embed(noise(3, 48_000), sr=48_000), classifier.embed(tmp_path / "a.wav"), atol=1e-5)
    batch = np.stack([noise(3), noise(3, seed=1)])
    for several in (batch, list(batch), torch.tensor(batch)):
        assert classifier.embed(several, sr=44_100).shape == (2, 32)
    table = classifier.predict(list(batch), sr=44_100, top=2)
    assert list(table.columns) == ["file", "prediction", "probability", "prediction_2", "probability_2", "seconds", "note", "Bark", "Rain", "note (class)"]


@pytest.mark.parametrize(("waveform", "sr", "says"), [
    (noise(1), None, "give sr="), (noise(1, channels=2), 44_100, "2 channels"), (np.zeros(100, np.int16), 44_100, "int16"),
    (np.array([0.1, np.nan]), 44_100, "finite"), (np.zeros(0), 44_100, "finite"), (1e300 * np.ones(50_000), 44_100, "finite"),
    (3.3e38 * np.sign(noise(1)), 48_000, "too large to resample"), *[(noise(1), sr, "sr must be a sample rate") for sr in (0, -1, 1, np.nan, np.inf, 1e9, "44100")],
])
def test_no_waveform_is_guessed_at(runs, waveform, sr, says):
    with pytest.raises(ValueError, match=says):
        Classifier.load(runs / "training", device="cpu").predict(waveform, sr=sr)


def test_segments_by_hand():
    index = pd.IntervalIndex.from_breaks([0.0, 1, 2, 3, 5], closed="left")
    nothing = np.nan
    timeline = pd.DataFrame({"Bark": [0.6, 0.8, nothing, 0.3], "Rain": [0.4, 0.2, nothing, 0.7]}, index=index)
    assert segments(timeline).values.tolist()[0] == [0, 2, "Bark", pytest.approx(0.7)]
    assert segments(timeline)["class"].tolist() == ["Bark", "silent", "Rain"]
    assert segments(timeline, top=2, threshold=0.35).iloc[:, :3].values.tolist() == [[0, 1, "Rain"], [0, 2, "Bark"], [2, 3, "silent"], [3, 5, "Rain"]]
    assert segments(timeline.iloc[:2], threshold=0.9).empty


def test_a_run_of_other_classes_than_its_encoder_comes_back(runs):
    """An encoder that was made with five classes, a probe of three."""
    probe = load_run(runs / "probe")
    assert probe.classes == CLASSES and probe.network.classifier.out_features == 3 and probe.network.encoder.classifier.out_features == 5


# The commands


def test_one_bad_file_loses_no_other(runs, recordings):
    folder, good, unanswerable, bad = recordings
    done = run([*command("acl_predict", folder, "--run", runs / "training", "--out", folder / "heard.csv")], environ={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.returncode == 1
    rows = {os.path.relpath(row["file"], folder): row for row in rows_of(folder / "heard.csv")}
    assert sorted(rows) == sorted(good + unanswerable)
    assert all(rows[name]["prediction"] in CLASSES for name in good)
    assert all(rows[name]["prediction"] == rows[name]["Rain"] == "" for name in unanswerable)
    assert [rows[name]["note"] for name in unanswerable] == ["0.05 s repeated 40 times", "silent"]
    complaints = done.stderr.splitlines()[:-1]
    assert [line.split(": ")[1] for line in complaints] == [str(folder / name) for name in bad]
    assert "K\\xe4uzchen\\n.ogg: " in done.stdout and "night.wav: silent" in done.stdout
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("format", ["csv", "json", "jsonl"])
def test_formats_on_the_screen(runs, recordings, format):
    folder, good, _, _ = recordings
    done = run_acl("acl_predict", *[folder / name for name in good], "--run", runs / "training", "--format", format)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    if format == "csv":
        rows = list(csv.DictReader(done.stdout.splitlines(keepends=True)))
    else:
        rows = json.loads(done.stdout) if format == "json" else list(map(json.loads, lines))
    assert [row["file"] for row in rows] == [str(folder / name) for name in good]


ODD_NAMES = ["a\rb.wav", "c\nd.wav", "e\u2028f.wav", "g\x85h.wav", " i .wav", 'j"k,l.wav', "m\tn.wav", "-o.wav", "[p].wav", "~q.wav", "r\x1cs.wav", "$(t) {u} ü🐦.wav"]


@pytest.mark.parametrize(("typed", "suffix"), [(acl_predict, "csv"), (acl_predict, "json"), (acl_predict, "jsonl"), (acl_embed, "npz"), (acl_embed, "csv")])
def test_recordings_of_any_name_come_back(runs, tmp_path, capsys, typed, suffix):
    """And are known again by the next call; each has one line on the screen."""
    (tmp_path / "r").mkdir()
    soundfile.write(tmp_path / "r" / ODD_NAMES[0], noise(0.5), 44_100)
    for name in ODD_NAMES[1:]:
        os.link(tmp_path / "r" / ODD_NAMES[0], tmp_path / "r" / name)
    settings = {"paths": [str(tmp_path / "r")], "run": str(runs / "training"), "out": str(tmp_path / f"heard.{suffix}"), "device": "cpu"}
    typed(**settings)
    assert capsys.readouterr().out.count("\n") == len(ODD_NAMES)
    assert {row["file"] for row in read_results(tmp_path / f"heard.{suffix}", suffix)} == {str(tmp_path / "r" / name) for name in ODD_NAMES}
    typed(**settings, resume=True)
    assert f"{len(ODD_NAMES)} of them before" in capsys.readouterr().err


def test_a_list_of_recordings_is_taken_line_by_line(monkeypatch):
    names = [name for name in ODD_NAMES if "\n" not in name]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("\r\n".join(["", *names, ""]).encode())))
    found, complaints = find_recordings(["-"])
    assert complaints == ["~q.wav: there is no such home folder; write the whole path.", "[p].wav: nothing has such a name"][::-1]
    assert found == [name for name in names if name not in ("[p].wav", "~q.wav")]


def test_links_that_leave_the_data_are_not_tested_on(runs, tmp_path, monkeypatch):
    for label in ("Bark", "Rain"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(3):
            soundfile.write(tmp_path / "set" / label / f"{number}.wav", noise(1, seed=number), 44_100)
    shutil.move(tmp_path / "set" / "Rain" / "1.wav", tmp_path / "secret.wav")
    os.symlink(tmp_path / "secret.wav", tmp_path / "set" / "Rain" / "1.wav")
    location = DatasetLocation("set", tmp_path / "set", False)
    classifier = Classifier.load(runs / "training", device="cpu")
    clips = clips_to_test(location, CLASSES, "all")
    predictions, problems = predictions_of(classifier, location, clips, every_s=None)
    assert len(predictions) == 5 and list(problems) == ["Rain/1.wav"] and "outside of the data set's folder" in problems["Rain/1.wav"]
    monkeypatch.setenv("ACL_LINKS", str(tmp_path))
    assert len(predictions_of(classifier, location, clips, every_s=None)[0]) == 6


def test_a_name_without_letters_is_not_the_working_directory():
    assert find_recordings([""]) == ([], ["a name without letters was given"])


@pytest.mark.parametrize("name", ["settings", "content", "model", "prediction_2", "probability_7", "note (class)", "note", "file"])
def test_a_class_may_have_the_name_of_any_column(runs, tmp_path, name):
    run = load_run(runs / "training")
    run.classes = [name, f"{name} (class)", "Rain"]
    row, = predicted(Classifier(run, device="cpu"), {"model": "m", "settings": "s"}, 2, 0.0, str(written(tmp_path / "a.wav")))
    heard = Classifier(run, device="cpu").hear(tmp_path / "a.wav").probabilities
    assert [row[f"{name} (class)"], row[f"{name} (class) (class)"], row["Rain"]] == pytest.approx(heard, abs=1e-5)
    assert (row["model"], row["settings"]) == ("m", "s") and row["prediction_2"] in run.classes and prediction_line(row)


def written(path):
    soundfile.write(path, noise(1), 44_100)
    return path


def test_labels_for_audacity_are_one_line_each():
    rows = [{"start": 0, "end": 1, "class": "tab\there"}, {"start": 1, "end": 2, "class": "line\nbreak"}]
    assert as_audacity(rows) == "0.000\t1.000\ttab\\there\n1.000\t2.000\tline\\nbreak\n"


def test_more_classes_than_there_are_and_more_threads_than_recordings(runs, tmp_path, capsys):
    acl_predict([str(written(tmp_path / "a.wav"))], run=str(runs / "training"), top=10**6, jobs=10**6, out=str(tmp_path / "heard.csv"), device="cpu")
    assert [row["prediction_3"] in CLASSES for row in rows_of(tmp_path / "heard.csv")] == [True]


@pytest.mark.parametrize("damage", [
    lambda rows: [{key: value for key, value in row.items() if key != "file"} for row in rows], lambda rows: [rows[0], {"file": "b"}], lambda rows: [rows[0] | {"file": 3}],
    lambda rows: [*rows, 7], lambda rows: {"rows": rows}, lambda rows: None,
])
def test_a_damaged_file_is_not_resumed(tmp_path, damage):
    origin = {"model": "net 12345678", "settings": "top=1 threshold=0"}
    rows = [{"file": name, "probability": 0.5, **origin, "content": "-"} for name in "ab"]
    (tmp_path / "heard.json").write_text(json.dumps(damage(rows)))
    with pytest.raises(DatasetError, match="heard.json cannot be read and resumed .*; move it away"):
        Results(tmp_path / "heard.json", "json", origin, resume=True)


def test_lists_wildcards_and_what_is_not_there(runs, recordings):
    folder, good, _, _ = recordings
    listed = f"{folder}/plain.wav\n\n{folder}/click.wav\n"
    done = run([*command("acl_predict", "-", f"{folder}/**/*.mp3", folder / "missing.wav", f"{folder}/*.aiff", "--run", runs / "training", "--jobs", 2)], input=listed)
    assert [line.split(": ")[0].rpartition("/")[2] for line in done.stdout.splitlines()] == ["plain.wav", "click.wav", "half a second.mp3"]
    assert done.returncode == 1 and "missing.wav: no such file" in done.stderr and "*.aiff: nothing has such a name" in done.stderr


@pytest.mark.parametrize(("arguments", "says"), [
    (["--out", "recordings", "--format", "csv"], "is a folder"), (["--out", "recordings/plain.wav", "--format", "csv"], "is one of the recordings"), (["--out", "heard.xyz"], "give one of --format"),
    (["--format", "xls"], "must be one of table, csv"), (["--top", 0], "--top"), (["--threshold", 2], "--threshold"), (["--jobs", -1], "--jobs"), (["--resume"], "name it by --out"),
    (["--timeline", "--format", "audacity"], "of one recording"), (["--device", "abacus"], "abacus"), (["--run", "nowhere"], "nowhere is not a finished run"),
    (["--timeline", "--hop", 9, "--out", "x.csv"], "the hop must lie between"),
])
def test_refused_in_one_line(runs, recordings, tmp_path, arguments, says):
    given = arguments if "--run" in arguments else [*arguments, "--run", runs / "training"]
    done = run_acl("acl_predict", "recordings", *given, cwd=tmp_path)
    assert done.returncode != 0 and says in done.stderr and "Traceback" not in done.stderr
    assert soundfile.info(recordings[0] / "plain.wav").frames == 3 * 44_100


def test_a_destination_that_cannot_be_written_to_is_known_before_the_work(runs, recordings, tmp_path):
    (tmp_path / "file").touch()
    done = run_acl("acl_predict", recordings[0], "--run", runs / "training", "--out", tmp_path / "file" / "heard.csv")
    assert done.returncode != 0 and done.stdout == "" and "cannot take the results" in done.stderr


def test_who_reads_along_may_leave(runs, recordings):
    """As `head` does; what goes to a file is whole all the same."""
    folder, good, _, _ = recordings
    arguments = command("acl_predict", *[folder / name for name in good], "--run", runs / "training", "--out", folder / "heard.csv")
    with subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.wait(300) == 0, process.stderr.read()
    assert len(rows_of(folder / "heard.csv")) == len(good)


@pytest.fixture
def many(tmp_path):
    """Sixty recordings, together a few seconds of work."""
    folder = tmp_path / "many"
    folder.mkdir()
    soundfile.write(folder / "00.wav", noise(20), 44_100)
    for number in range(1, 60):
        os.link(folder / "00.wav", folder / f"{number:02}.wav")
    return folder


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_resumed_is_as_not_stopped(runs, many, tmp_path, how):
    arguments = command("acl_predict", many, "--run", runs / "training", "--out", tmp_path / "heard.csv", "--jobs", 1)
    with subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        seen = [process.stdout.readline() for _ in range(5)]
        process.send_signal(how)
        _, complaints = process.communicate()
    assert all(seen) and not (tmp_path / "heard.csv").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130 and complaints.strip() == "acl_predict: stopped."
    kept = (tmp_path / "heard.csv.partial").read_text().splitlines()
    assert 5 <= len(kept) < 60
    with open(tmp_path / "heard.csv.partial", "a") as file:
        file.write('[{"file": "half a li')  # as a power cut leaves it
    resumed = run([*arguments, "--resume"])
    assert resumed.returncode == 0 and len(resumed.stdout.splitlines()) == 60 - len(kept)
    rows = rows_of(tmp_path / "heard.csv")
    assert sorted(row["file"] for row in rows) == [str(many / f"{number:02}.wav") for number in range(60)]
    assert len({row["Rain"] for row in rows}) == 1 and not (tmp_path / "heard.csv.partial").exists()


def test_resume_takes_no_other_models_work(runs, recordings, tmp_path):
    folder = recordings[0]
    for format in ("csv", "json", "jsonl"):
        arguments = ("acl_predict", folder / "plain.wav", "--out", tmp_path / f"heard.{format}")
        assert run_acl(*arguments, "--run", runs / "training").returncode == 0
        before = (tmp_path / f"heard.{format}").read_bytes()
        again = run_acl(*arguments, "--run", runs / "training", "--resume")
        assert (again.returncode, again.stdout) == (0, "") and (tmp_path / f"heard.{format}").read_bytes() == before
        refused = run_acl(*arguments, "--run", runs / "probe", "--resume")
        assert refused.returncode != 0 and "leave out --resume" in refused.stderr


@pytest.mark.parametrize(("typed", "suffix"), [(acl_predict, "csv"), (acl_predict, "jsonl"), (acl_embed, "npz"), (acl_embed, "csv")])
def test_resume_hears_again_what_has_changed(runs, tmp_path, capsys, typed, suffix):
    """By content: also a file of the same size and time of change, and not one that was only touched, or is gone."""
    out, files = tmp_path / f"heard.{suffix}", [tmp_path / f"{letter}.wav" for letter in "abcd"]
    for seed, file in enumerate(files):
        soundfile.write(file, noise(2, seed=seed), 44_100)
    settings = {"paths": list(map(str, files)), "run": str(runs / "training"), "out": str(out), "resume": True, "device": "cpu"}
    typed(**settings)
    assert capsys.readouterr().err.endswith(f"heard.{suffix} has 4 rows\n")
    first, times = out.read_bytes(), files[1].stat()
    soundfile.write(files[1], noise(2, seed=9), 44_100)
    os.utime(files[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(files[2])
    files[3].unlink()
    typed(**settings)
    told = capsys.readouterr()
    assert told.out.count("\n") == 1 and told.out.startswith(f"{files[1]}: ")
    assert "4 recordings, 3 of them before, 1 changed since" in told.err and out.read_bytes() != first
    assert sorted(row["file"] for row in read_results(out, suffix)) == settings["paths"]


@pytest.mark.parametrize(("before", "now"), [
    ({}, {"top": 2}), ({}, {"threshold": 0.2}), ({}, {"timeline": True}), ({"timeline": True}, {"timeline": True, "hop": 0.5}), ({"timeline": True}, {}),
])
def test_resume_takes_no_other_settings_work(runs, tmp_path, before, now):
    """Also where all recordings are done, so that nothing would be worked on."""
    soundfile.write(tmp_path / "a.wav", noise(3), 44_100)
    call = {"paths": [str(tmp_path / "a.wav")], "run": str(runs / "training"), "out": str(tmp_path / "heard.csv"), "device": "cpu"}
    acl_predict(**call, **before)
    written = (tmp_path / "heard.csv").read_bytes()
    with pytest.raises(DatasetError, match="heard.csv was begun with the model .* and the settings .*; leave out --resume"):
        acl_predict(**call, **now, resume=True)
    assert (tmp_path / "heard.csv").read_bytes() == written


def test_resume_after_a_second_call_was_killed(tmp_path):
    """What is under way is resumed, not mixed with what was finished before: every recording has one row."""
    out, origin = tmp_path / "heard.csv", {"model": "net 12345678", "settings": "top=1 threshold=0"}
    rows = [{"file": name, "probability": 0.5, **origin, "content": "-"} for name in "abc"]
    for n_kept in (3, 2):  # the second call is killed after two
        results = Results(out, "csv", origin)
        for row in rows[:n_kept]:
            results.keep([row])
        if n_kept == 3:
            results.finish()
    resumed = Results(out, "csv", origin, resume=True)
    assert [row["file"] for row in resumed.rows] == ["a", "b"]


def test_timeline(runs, recordings, tmp_path):
    """Nine seconds of noise, nine of silence."""
    soundfile.write(tmp_path / "scene.wav", np.concatenate([noise(9), np.zeros(9 * 44_100)]), 44_100)
    done = run_acl("acl_predict", tmp_path / "scene.wav", "--run", runs / "training", "--timeline", "--out", tmp_path / "labels.txt")
    assert done.returncode == 0, done.stderr
    labels = [line.split("\t") for line in (tmp_path / "labels.txt").read_text().splitlines()]
    assert float(labels[0][0]) == 0 and labels[-1][2] == "silent" and float(labels[-1][1]) == 18
    assert 8.5 <= float(labels[-1][0]) <= 10.5 and [label[1] for label in labels[:-1]] == [label[0] for label in labels[1:]]


def test_without_a_run_it_is_the_newest(runs, recordings, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "settings.ini").write_text("[DEFAULT]\n")
    none = run_acl("acl_predict", recordings[0], cwd=project)
    assert none.returncode != 0 and "papermill nbs/train.ipynb" in none.stderr
    shutil.copytree(runs, project / "runs")
    for age, kind in enumerate(("pretraining", "probe", "training")):
        os.utime(project / "runs" / kind / "metrics.json", (time.time() - age, time.time() - age))
    found = run_acl("acl_predict", recordings[0] / "plain.wav", cwd=project)
    assert found.returncode == 0 and "model: runs/probe, the newest finished run" in found.stderr
    embedded = run_acl("acl_embed", recordings[0] / "plain.wav", cwd=project)
    assert embedded.returncode == 0 and "model: runs/pretraining" in embedded.stderr
    assert np.load(project / "embeddings.npz")["embeddings"].shape == (1, 32)


def test_an_encoder_does_not_predict(runs, recordings):
    done = run_acl("acl_predict", recordings[0], "--run", runs / "pretraining")
    assert done.returncode != 0 and "acl_probe" in done.stderr and done.stdout == ""


def test_what_only_ffmpeg_reads(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(3), 44_100)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0 ftypM4A ")
    without = run([sys.executable, "-c", "import sys\nfrom acl_paper.audio import audio_blocks\nlist(audio_blocks(sys.argv[1]))", tmp_path / "a.m4a"], environ={"PATH": "/nowhere"})
    assert "convert the file where it is installed: ffmpeg -i a.m4a a.wav" in without.stderr
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")
    subprocess.run(["ffmpeg", "-y", "-v", "error", "-i", tmp_path / "a.wav", "-c:a", "aac", "-b:a", "256k", tmp_path / "a.m4a"], check=True)
    decoded = np.concatenate(list(audio_blocks(tmp_path / "a.m4a", 22_050)))
    assert len(decoded) / 22_050 == pytest.approx(3, abs=0.1) and decoded.std() > 0.1
    content = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "cut.m4a").write_bytes(content[:len(content) // 2])
    with pytest.raises(AudioError, match="cut.m4a: ffmpeg cannot read it"):
        list(audio_blocks(tmp_path / "cut.m4a"))


PROGRAM = PEAK_BYTES + """
from acl_paper.inference import Classifier
classifier = Classifier.load(sys.argv[1], device="cpu")
for path in sys.argv[2:]:
    classifier.timeline(path)
    classifier.predict(path)
    print(peak_bytes())
"""


def test_memory_does_not_grow_with_the_length(runs, tmp_path):
    """Three hours are measured by benchmarks/recordings.py; here fifteen minutes after three. At once, a quarter of an hour would take 320 MB."""
    paths = [tmp_path / "short.wav", tmp_path / "long.wav"]
    for path, minutes in zip(paths, (3, 15)):
        with soundfile.SoundFile(path, "w", 44_100, 1, "PCM_16") as file:
            for minute in range(minutes):
                file.write(noise(60, seed=minute))
    done = run([sys.executable, "-c", PROGRAM, runs / "training", *paths])
    assert done.returncode == 0, done.stderr
    short, long = map(int, done.stdout.split())
    assert long - short < 40e6 and long < 700e6


def test_silence_within_a_recording_is_no_sound():
    recording = Recording(np.concatenate([noise(2), np.full(88_200, 0.25, np.float32)]), FeatureConfig(), sr=44_100)
    assert recording.can_be_answered and recording.is_silent(110, 190) and not recording.is_silent(90, 190)


# The published encoders

needs_weights = pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="the published weights are not beside the repository")
WEIGHTS = {"ACL_WEIGHTS": str(SHARED / "weights")}


@needs_weights
def test_a_published_encoder_embeds(recordings, tmp_path):
    done = run_acl("acl_embed", recordings[0] / "plain.wav", "--run", "published:vgg", "--out", tmp_path / "e.jsonl", environ=WEIGHTS)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "e.jsonl").read_text())
    assert len(row["embedding"]) == 512 and row["model"].startswith("published:vgg ")


def test_weights_that_are_not_there(recordings, tmp_path):
    done = run_acl("acl_embed", recordings[0], "--run", "published:crnn", cwd=tmp_path)
    assert done.returncode != 0 and "acl_download --weights" in done.stderr
    done = run_acl("acl_embed", recordings[0], "--run", "published:resnet18", cwd=tmp_path)
    assert done.returncode != 0 and "there are crnn, vgg" in done.stderr


@pytest.fixture
def sounds(tmp_path):
    """A folder per class: noise and tones."""
    for number in range(6):
        for label, sound in {"hiss": noise(1.2, seed=number), "tone": 0.4 * np.sin(np.arange(50_000) * (0.05 + 0.01 * number))}.items():
            (tmp_path / "sounds" / label).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "sounds" / label / f"{number}.wav", sound, 44_100)
    return tmp_path / "sounds"


def probed(sounds, tmp_path, *arguments):
    done = run_acl("acl_probe", sounds, *arguments, cwd=tmp_path, environ=WEIGHTS)
    return done, next(iter(sorted(tmp_path.glob("runs/sounds/pretrain/**/seed=*"))), None)


@pytest.mark.parametrize("encoder", [pytest.param("published:vgg", marks=needs_weights), "pretraining"])
def test_from_a_folder_to_a_classifier(runs, sounds, tmp_path, encoder):
    (tmp_path / "settings.ini").touch()
    done, folder = probed(sounds, tmp_path, "--run", encoder if ":" in encoder else runs / encoder)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "12 clips of 2 classes" in done.stdout and "cross-validated accuracy: 100.0 % [75.8, 100.0] (n = 12)" in done.stdout
    assert "5-fold cross-validation over all clips" in (folder / "README.md").read_text()
    predicted = run_acl("acl_predict", sounds, "--run", folder, "--format", "jsonl", environ=WEIGHTS)
    assert [json.loads(line)["prediction"] for line in predicted.stdout.splitlines()] == ["hiss"] * 6 + ["tone"] * 6


def test_a_probe_leaves_out_what_it_cannot_use(runs, sounds, tmp_path):
    (sounds / "tone" / "bad.wav").write_text("la la la")
    soundfile.write(sounds / "hiss" / "night.wav", np.zeros(44_100), 44_100)
    done, folder = probed(sounds, tmp_path, "--run", runs / "pretraining")
    assert done.returncode == 1 and "12 clips of 2 classes" in done.stdout and folder is not None
    assert "bad.wav: not a readable" in done.stderr and "night.wav: silent" in done.stderr


@pytest.mark.parametrize(("arguments", "says"), [(["--run", "nowhere"], "nowhere is not a finished run"), (["--run", "training"], "what is needed is a pretraining"),
                                                  (["--run", "pretraining", "--out", "~nosuchuser/probe"], "there is no such home folder")])
def test_a_probe_needs_an_encoder_and_a_place(runs, sounds, tmp_path, arguments, says):
    given = [runs / each if each in ("training", "pretraining") else each for each in arguments]
    done, folder = probed(sounds, tmp_path, *given)
    assert done.returncode != 0 and says in done.stderr and folder is None


@needs_weights
@pytest.mark.skipif(not REAL_MINI.is_dir(), reason="the real sounds are not beside the repository")
def test_probe_notebook_takes_a_published_encoder(tmp_path):
    """On data of other classes than the twenty that the encoder was made with."""
    arguments = ["-p", "pretrained_dir", "published:vgg", "-p", "subset", "all", "-p", "optimiser", "lbfgs", "-p", "compare_untrained", False,
                 "-p", "dataset", "real-mini", "-r", "data_dir", REAL_MINI, "-r", "features_dir", tmp_path / "features", "-r", "runs_dir", tmp_path / "runs"]
    done = run_papermill("probe", tmp_path / "out.ipynb", *arguments, environ=WEIGHTS)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = next((tmp_path / "runs" / "real-mini" / "pretrain" / "published.vgg").rglob("metrics.json")).parent
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n_test_clips"] == 40 and metrics["accuracy_low"] > 1 / 17  # better than chance; more cannot be said of 40 clips
    assert len(Classifier.load(folder, device="cpu").run.classes) == 17
