"""Exported models against the package: every network and kind of run, recordings of any length and level, the command."""
import functools
import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, run, run_acl

from acl_paper import patches as cut
from acl_paper.console import DatasetError
from acl_paper.evaluation import Run, clip_outputs, outputs_of
from acl_paper.export import AudioModel, AudioTimeline, LogMel, acl_export, export_onnx, exported_program
from acl_paper.inference import Classifier
from acl_paper.log_mel import SSL_FEATURES, FeatureConfig, clip_log_mel
from acl_paper.networks import make_network
from acl_paper.patches import InputScale, Patches, Scaler
from acl_paper.pretraining import PretrainConfig, first_networks
from acl_paper.probing import EncoderWithClassifier, ProbeConfig
from acl_paper.runs import save_run
from acl_paper.training import TrainConfig

CLASSES = ["Bark", "Meow", "Slam"]
needs_onnx = pytest.mark.skipif(not (find_spec("onnxscript") and find_spec("onnxruntime")), reason="the extra `export` is not installed")


def settled(network, patch_frames, n_mels):
    """A network whose batch norms have seen something, so that folding them away is seen too."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, 1, patch_frames, n_mels) + 0.3)
    return network.eval()


def supervised(name):
    torch.manual_seed(0)
    settings = TrainConfig(network=name, network_settings={"width": 8} if name == "resnet18" else {})
    network = settled(make_network(name, len(CLASSES), (100, 96), **settings.network_settings), 100, 96)
    scaler = Scaler(np.linspace(-2, 1, 96), np.linspace(0.5, 2, 96))
    return Run("training", network, scaler, settings, FeatureConfig(), CLASSES, pd.DataFrame({"epoch": [1]}), 1)


def pretrained(name="resnet18"):
    torch.manual_seed(0)
    settings = PretrainConfig(network=name, width=8)
    network = settled(first_networks(settings, len(CLASSES), 96, None), 101, 96)
    return Run("pretraining", network, InputScale(-1.2, 1.7), settings, SSL_FEATURES, CLASSES, pd.DataFrame({"epoch": [1]}), 1)


def probe():
    before = pretrained()
    encoder = before.network.encoder
    network = EncoderWithClassifier(encoder, 64, len(CLASSES)).eval()
    return Run("probe", network, before.scaler, ProbeConfig(), SSL_FEATURES, CLASSES, before.history, 1, {"patch_frames": 101})


RUNS = {
    "paper_cnn": lambda: supervised("paper_cnn"),
    "resnet18": lambda: supervised("resnet18"),
    "vgg": lambda: supervised("vgg"),
    "crnn": lambda: supervised("crnn"),
    "pretrained": pretrained,
    "probe": probe,
}


def by_the_package(run, waveform):
    """Probabilities and embedding of a recording, as of a test clip."""
    frames = np.asarray(run.scaler(clip_log_mel(waveform, run.features)), np.float32)
    starts = torch.from_numpy(cut.test_patch_starts(len(frames), run.patch_frames))
    one_clip = torch.zeros_like(starts)
    patches = Patches(torch.from_numpy(frames), starts, one_clip, one_clip, run.patch_frames)
    outputs = clip_outputs(*outputs_of(run.network, patches), patches)
    return (outputs.scores / outputs.n_patches[:, None])[0].numpy(), outputs.embeddings[0].numpy()


def recordings(rate):
    """Of any length and level."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(11 * rate).astype(np.float32)
    tone = np.sin(np.arange(3 * rate) * 2 * np.pi * 440 / rate).astype(np.float32)
    half_silent = np.concatenate([tone, np.zeros(2 * rate, np.float32)])
    return {
        "11 s": 0.1 * noise, "two seconds": noise[:2 * rate], "a sample less": noise[:2 * rate - 1], "50 ms": noise[:rate // 20],
        "one sample": noise[:1], "silence": np.zeros(3 * rate, np.float32), "a tone": tone, "half silent": half_silent,
        "an offset": 0.01 * noise[:3 * rate] + 0.5, "loud": 30 * noise[:4 * rate], "hardly there": 1e-6 * noise[:4 * rate],
        "16 bit": (noise[:4 * rate] * 2000).astype(np.int16).astype(np.float32) / 32768,
    }


@functools.cache
def run_of(name):
    return RUNS[name]()


@functools.cache
def answers_of_the_package(name):
    run = run_of(name)
    return {recording: by_the_package(run, waveform) for recording, waveform in recordings(run.features.sample_rate).items()}


def check(run_name, answer, at_most):
    expected = answers_of_the_package(run_name)
    for name, waveform in recordings(run_of(run_name).features.sample_rate).items():
        told = answer(waveform)
        for ours, theirs in zip(told, expected[name][-len(told):], strict=True):
            assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < at_most, name


def as_numpy(values):
    values = values if isinstance(values, (tuple, list)) else [values]
    return [np.asarray(value)[0] for value in values]


@pytest.mark.parametrize("config", [FeatureConfig(), SSL_FEATURES, FeatureConfig(n_fft=1024, win_length=801, hop_length=300, n_mels=40)])
def test_frames_are_the_packages(config):
    for name, waveform in recordings(config.sample_rate).items():
        expected = clip_log_mel(waveform, config)
        frames = LogMel(config)(torch.from_numpy(waveform)[None])[0].numpy()
        assert frames.shape == expected.shape and np.abs(frames - expected).max() < 1e-5, name


def test_frames_of_a_batch_are_those_of_each():
    waveforms = torch.randn(3, 100_000) * torch.tensor([[1.0], [0.01], [5.0]])
    torch.testing.assert_close(LogMel()(waveforms), torch.cat([LogMel()(one[None]) for one in waveforms]))


EXPORTED = [pytest.param(name, marks=pytest.mark.long if name == "vgg" else []) for name in RUNS]


@pytest.mark.parametrize("name", RUNS)
def test_the_module_is_the_package(name):
    run = run_of(name)
    model = AudioModel(run)
    with torch.inference_mode():
        check(name, lambda waveform: as_numpy(model(torch.from_numpy(waveform)[None])), 1e-5)


@pytest.mark.parametrize("name", EXPORTED)
def test_a_program_of_torch_export(name, tmp_path):
    run = run_of(name)
    torch.export.save(exported_program(AudioModel(run)), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.inference_mode():
        check(name, lambda waveform: as_numpy(program(torch.from_numpy(waveform)[None])), 1e-5)


@needs_onnx
@pytest.mark.parametrize("name", EXPORTED)
def test_a_model_of_onnxruntime(name, tmp_path):
    import onnxruntime

    run = run_of(name)
    model = AudioModel(run) if name == "pretrained" else AudioTimeline(run)
    export_onnx(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    assert outputs == (["embedding"] if name == "pretrained" else ["probabilities", "embedding", "timeline", "log_mel"])
    assert session.get_modelmeta().custom_metadata_map["sample_rate"] == str(run.features.sample_rate)
    check(name, lambda waveform: as_numpy(session.run(outputs[:2], {"waveform": waveform[None]})), 1e-4)
    if name != "pretrained":
        check_timeline(run, lambda waveform: session.run(["timeline", "log_mel"], {"waveform": waveform[None]}), 1e-4)


def check_timeline(run, answer, at_most):
    """Against `Classifier.timeline`, which leaves out what is silent."""
    classifier = Classifier(run)
    for name, waveform in recordings(run.features.sample_rate).items():
        expected = classifier.timeline(waveform, run.features.sample_rate).to_numpy()
        timeline, frames = answer(waveform)
        assert timeline.shape[1:] == expected.shape, name
        assert not (np.abs(timeline[0] - expected) > at_most).any(), name
        assert np.abs(frames[0] - clip_log_mel(waveform, run.features)).max() < at_most, name


@pytest.mark.parametrize("name", ["paper_cnn", "probe"])
def test_a_timeline_is_the_packages(name):
    run = run_of(name)
    model = AudioTimeline(run)
    assert model.known["timeline_hop"] == {"paper_cnn": "50", "probe": "100"}[name]
    with torch.inference_mode():
        check_timeline(run, lambda waveform: [values.numpy() for values in model(torch.from_numpy(waveform)[None])[2:]], 1e-5)


def test_patches_of_a_timeline_leave_no_gaps():
    assert AudioTimeline(supervised("paper_cnn"), hop_s=9).timeline_hop == 100


def test_an_encoder_has_no_timeline():
    with pytest.raises(DatasetError, match="knows no classes"):
        AudioTimeline(pretrained())


# The command

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    trained = supervised("paper_cnn")
    trained.history = pd.DataFrame({"epoch": [1], "train_loss": [1.0]})
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, trained)
    return folder


ALONE = """
import sys, torch
model = torch.export.load(sys.argv[1]).module()
probabilities, embedding = model(torch.zeros(1, 70_000))
print(probabilities.shape[1], embedding.shape[1], "acl_paper" in sys.modules)
"""


def test_a_program_needs_torch_alone(folder, tmp_path):
    said = run_acl("acl_export", folder, "--pt2", "model.pt2", cwd=tmp_path, environ={"PYTHONPATH": str(ROOT)})
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("model.pt2: ") and said.stdout.endswith(" MB, waveforms at 44,100 Hz, 3 classes\n")
    told = run([sys.executable, "-c", ALONE, "model.pt2"], cwd=tmp_path, environ={"PYTHONPATH": ""})
    assert told.stdout.split() == ["3", "48", "False"], told.stderr


@needs_onnx
def test_the_command_writes_onnx(folder, tmp_path):
    said = run_acl("acl_export", folder, "--onnx", "model.onnx", cwd=tmp_path, environ={"PYTHONPATH": str(ROOT)})
    assert said.returncode == 0 and said.stderr == "", said.stderr
    assert said.stdout.startswith("model.onnx: ")
    assert str(ROOT).encode() not in (tmp_path / "model.onnx").read_bytes(), "a path of this machine"


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere", "--onnx", "model.onnx"], "acl_export: nowhere is not a finished run"),
    ([], "acl_export: say what to write"),
    (["--pt2", "no/such/folder/model.pt2"], "acl_export: "),
])
def test_errors_are_one_line(arguments, message, folder, tmp_path):
    arguments = arguments if arguments[:1] == ["nowhere"] else [folder, *arguments]
    said = run_acl("acl_export", *arguments, cwd=tmp_path, environ={"PYTHONPATH": str(ROOT)})
    assert said.returncode != 0 and said.stdout == ""
    assert said.stderr.startswith(message) and said.stderr.count("\n") == 1


@pytest.mark.parametrize(("arguments", "message"), [
    ({"onnx": "a folder"}, "a folder is a folder"), ({"pt2": "a folder"}, "a folder is a folder"), ({"pt2": "~nosuchuser/m.pt2"}, "there is no such home folder"),
    ({"onnx": "same", "pt2": "same"}, "give two names"), ({"pt2": "/proc/m.pt2"}, "/proc cannot take the model"), ({"pt2": "a file/m.pt2"}, "its folder is not there"),
    ({"run": "~nosuchuser/run", "pt2": "m.pt2"}, "there is no such home folder"), ({"run": "a file", "pt2": "m.pt2"}, "a file is not a finished run"),
])
def test_destinations_are_checked_before_the_work(arguments, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a file").touch()
    with pytest.raises(DatasetError, match=message):
        acl_export(**{"run": str(folder)} | arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file", "a folder"]


def test_without_the_extra_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(Exception, match=r"ONNX needs onnx: pip install '.\[export\]'"):
        export_onnx(AudioModel(supervised("paper_cnn")), tmp_path / "model.onnx")
