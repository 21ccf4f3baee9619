"""Files changed by chance: each is taken for what it is or refused in an error that names it. Nothing wrong passes for right.

How much is tried, and from which seed on, is said in chance.py.
"""
import dataclasses
import hashlib
import json
import shutil
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import works
from chance import ODD_VALUES, ROUNDS, SEED, Outcomes, chance, changed, changed_values, rounds
from helpers import PEAK_BYTES, contents, run
from papermill.translators import PythonTranslator
from test_hard_features import SMALL, WHOLE, encoded, extract, groups_of, make_set, small  # noqa: F401

from acl_paper.console import DatasetError, can_name_folder
from acl_paper.data import load_clips, locate_dataset, table_fingerprint
from acl_paper.download import FSDNOISY18K_MD5, download_fsdnoisy18k, read_checksums
from acl_paper.mini import make_mini
from acl_paper.pretraining import PretrainConfig
from acl_paper.probing import ProbeConfig
from acl_paper.results import collect_runs
from acl_paper.runs import check_parameters, load_predictions, load_run
from acl_paper.training import Checkpoint, TrainConfig, Training
from acl_paper.workflow import differences

READ_ALL = PEAK_BYTES + """
import json
from pathlib import Path
import numpy as np
from acl_paper.audio import AudioError, read_audio
told = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try: samples, _ = read_audio(path, 48_000)
    except AudioError as error:
        assert path.name in str(error) and "\\n" not in str(error), error
        told[path.name] = "refused"
    except Exception as error: told[path.name] = f"{type(error).__name__}: {error}"
    else: told[path.name] = "read" if samples.dtype == np.float32 and samples.ndim == 1 and len(samples) and np.isfinite(samples).all() else "wrong"
print(json.dumps([told, peak_bytes() / 1e9]))
"""


def test_audio_changed_by_chance(tmp_path, tried):
    """A damaged audio file is read as finite samples or refused by name, in less than 1 GB of memory; one that was cut short is refused.

    In a process of its own: a decoder may crash.
    """
    cuts = set()
    for i in range(rounds(600)):
        dice = chance("audio", i)
        suffix = dice.choice(list(WHOLE))
        content, what = changed(encoded(suffix), dice)
        name = f"{i:05}.{suffix}"
        (tmp_path / name).write_bytes(content)
        if what == "cut" and len(content) < len(encoded(suffix)) - 1:
            cuts.add(name)
    done = run([sys.executable, "-c", READ_ALL, tmp_path], timeout=300 * max(ROUNDS, 1))
    assert done.returncode == 0, f"seed {SEED}: {done.stderr[-2000:]}"
    told, gigabytes = json.loads(done.stdout)
    wrong = {name: what for name, what in told.items() if what not in ("read", "refused") or (what == "read" and name in cuts)}
    refused = list(told.values()).count("refused")
    tried("audio files", right=len(told) - refused - len(wrong), refused=refused, wrong=len(wrong))
    assert wrong == {}, f"seed {SEED}"
    assert gigabytes < 1, f"seed {SEED}"


def own_table():
    lines = [f'a/{i}.wav,{"Rain" if i % 2 else "Wörter, viele"!r},{"test" if i % 5 == 0 else "train"},{i % 2},x y,g{i}'.replace("'", '"') for i in range(20)]
    return "\n".join(["path,label,split,verified,subset,group", *lines, ""]).encode()


def fsdnoisy18k_table():
    lines = [f'{i}.wav,{"Rain" if i % 2 else "Wörter, viele"!r},/m/{i % 2},{i % 2},{i % 3 % 2}'.replace("'", '"') for i in range(20)]
    return "\n".join(["fname,label,aso_id,manually_verified,noisy_small", *lines, ""]).encode()


def test_tables_changed_by_chance(tmp_path, tried):
    """A damaged table of clips is taken with every clip once and inside of the folder, or refused in an error that names it."""
    def is_right(clips):
        inside = clips.path.is_unique and not any(path.startswith("/") or ".." in path.split("/") for path in clips.path) and (clips.label != "").all()
        return inside and set(clips.split) <= {"train", "test"} and isinstance(table_fingerprint(clips), str)

    outcomes = Outcomes(DatasetError)
    for i in range(rounds(400)):
        dice, root = chance("tables", i), tmp_path / str(i)
        root.mkdir()
        if dice.random() < 0.5:
            (root / "clips.csv").write_bytes(changed(own_table(), dice)[0])
        else:
            (root / "FSDnoisy18k.meta").mkdir()
            (root / "FSDnoisy18k.meta/train.csv").write_bytes(changed(fsdnoisy18k_table(), dice)[0])
            (root / "FSDnoisy18k.meta/test.csv").write_text("fname,label,aso_id\n1.wav,Rain,/m/1\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes.add(i, lambda: load_clips(root), names=[root], is_right=is_right)
    outcomes.report(tried, "tables of clips")


OPEN_ALL = """
import json, sys
from pathlib import Path
import numpy as np
from acl_paper.features import FeatureConfig, FeatureStoreError, open_feature_store
config = FeatureConfig(**json.loads(sys.argv[2]))
right, told = open_feature_store(sys.argv[3], config), {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try: store = open_feature_store(path, config)
    except FeatureStoreError as error:
        assert str(path) in str(error), error
        told[path.name] = "refused"
    except Exception as error: told[path.name] = f"{type(error).__name__}: {error}"
    else: told[path.name] = "same" if np.array_equal(store.frames, right.frames) and store.clips.equals(right.clips) else "other"
print(json.dumps(told))
"""


def test_stores_changed_by_chance(small, tmp_path, tried):
    """A damaged feature store is opened with exactly what was written, or refused by name."""
    _, store = small
    content = store.path.read_bytes()
    for i in range(rounds(400)):
        (tmp_path / f"{i:05}.h5").write_bytes(changed(content, chance("stores", i))[0])
    done = run([sys.executable, "-c", OPEN_ALL, tmp_path, json.dumps(SMALL.__dict__), store.path], timeout=300 * max(ROUNDS, 1))
    assert done.returncode == 0, f"seed {SEED}: {done.stderr[-2000:]}"
    told = json.loads(done.stdout)
    wrong = {name: what for name, what in told.items() if what not in ("same", "refused")}
    refused = list(told.values()).count("refused")
    tried("feature stores", right=len(told) - refused - len(wrong), refused=refused, wrong=len(wrong))
    assert wrong == {}, f"seed {SEED}"


def test_groups_changed_by_chance(tmp_path, monkeypatch, tried):
    """An extraction that finds a damaged group of clips ends with the same store."""
    root = make_set(tmp_path / "set")
    right = extract(root, tmp_path / "right.h5", config=SMALL)
    n_right, wrong = 0, []
    for i in range(rounds(40)):
        with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
            stopped.setattr("acl_paper.features.assemble_store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            extract(root, tmp_path / "x.h5", config=SMALL)
        (group,) = groups_of(tmp_path / "x.h5")
        group.write_bytes(changed(group.read_bytes(), chance("groups", i))[0])
        store = extract(root, tmp_path / "x.h5", config=SMALL)
        same = np.array_equal(store.frames, right.frames) and store.clips.equals(right.clips)
        n_right += same
        wrong += [] if same else [i]
        store.path.unlink()
    tried("groups of clips", right=n_right, wrong=len(wrong))
    assert wrong == [], f"seed {SEED}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of runs with one in it, that run, and what `everything` reads of it."""
    runs = tmp_path_factory.mktemp("runs")
    folder = runs / "set" / "clean" / "alpha=0.5" / "seed=0"
    works.train(folder)
    return runs, folder, everything(runs, folder)


def everything(runs, folder):
    """What there is to read of a run, in the ways in which it is read."""
    loaded, row = load_run(folder), collect_runs(runs, "set").iloc[0]
    weights = {name: value.tolist() for name, value in loaded.network.state_dict().items()}
    scaler = [loaded.scaler.mean.tolist(), loaded.scaler.scale.tolist()]
    tables = [loaded.history.to_csv(), load_predictions(folder).to_csv()]
    if different := differences(folder, {"settings": {"alpha": 0.5, "epochs": 3}}):
        raise DatasetError(*different)  # `make reproduce` makes it again
    return [weights, scaler, tables, loaded.settings, loaded.features, loaded.classes, loaded.best_epoch, loaded.kind,
            row.drop(["folder", "config"]).to_dict(), row.config]


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "history.csv", "predictions.csv", "model.safetensors"])
def test_run_folders_changed_by_chance(trained, tmp_path, tried, name):
    """A damaged run is read as it was written, or refused in an error that names its file."""
    runs, folder, right = trained
    outcomes = Outcomes(ValueError, FileNotFoundError)
    for i in range(rounds(30)):
        dice, copy = chance("runs", name, i), tmp_path / str(i)
        shutil.copytree(runs, copy)
        file = copy / folder.relative_to(runs) / name
        if name.endswith(".json") and dice.random() < 0.5:
            file.write_text(json.dumps(changed_values(json.loads(file.read_text()), dice)))
        else:
            file.write_bytes(changed(file.read_bytes(), dice)[0])
        outcomes.add(i, lambda: everything(copy, file.parent), names=[copy], is_right=lambda found: found == right)
        shutil.rmtree(copy)
    outcomes.report(tried, f"runs with another {name}")



@pytest.mark.parametrize("kind", ["training", "pretraining", "probe"])
def test_runs_of_the_first_edition_changed_by_chance(tmp_path, tried, kind):
    """A damaged run of version 0.1.0, which has no checksums, is read or refused in an error that names its folder."""
    original = Path(__file__).parent / "first_edition" / kind
    names = [path.name for path in original.iterdir() if path.suffix in (".json", ".csv", ".safetensors")]
    outcomes = Outcomes(ValueError, FileNotFoundError)
    for i in range(rounds(30)):
        dice, folder = chance("first edition", kind, i), tmp_path / str(i)
        file = shutil.copytree(original, folder) / dice.choice(names)
        if file.suffix == ".json" and dice.random() < 0.8:
            file.write_text(json.dumps(changed_values(json.loads(file.read_text()), dice)))
        else:
            file.write_bytes(changed(file.read_bytes(), dice)[0])
        outcomes.add((i, file.name), lambda: (load_run(folder), differences(folder, {"settings": {"alpha": 0.3}})), names=[folder], is_right=bool)
        shutil.rmtree(folder)
    outcomes.report(tried, f"{kind} of 0.1.0")


def test_checkpoints_changed_by_chance(tmp_path, tried):
    """A training resumes from a damaged checkpoint as from the whole one, or moves it aside and says so by name."""
    split, config = works.random_split(), TrainConfig(epochs=3, batch_size=8, patch_frames=20)
    path, training = tmp_path / "checkpoint.pt", Training(split, config)
    training.step(torch.arange(8))
    Checkpoint(path, training).save(at_once=True)
    content, right = path.read_bytes(), as_lists(training.state())

    def resumed():
        other = Training(split, config)
        with warnings.catch_warnings(record=True) as told:
            if not Checkpoint(path, other).load():
                raise DatasetError(told[0].message)
        return as_lists(other.state())

    outcomes = Outcomes(ValueError)
    for i in range(rounds(30)):
        path.write_bytes(changed(content, chance("checkpoints", i))[0])
        outcomes.add(i, resumed, names=[path], is_right=lambda found: found == right)
    outcomes.report(tried, "checkpoints")


def as_lists(state):
    """A state that can be compared: tensors as lists, NaN as text."""
    if isinstance(state, torch.Tensor):
        return as_lists(state.tolist())
    if isinstance(state, dict):
        return {name: as_lists(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return list(map(as_lists, state))
    return "nan" if state != state else state


def zip_file(path, dice):
    """An archive as the data set's are: folders, stored and compressed files, names with accents."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("FSDnoisy18k.doc/", b"")
        for i in range(6):
            how = dice.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
            archive.writestr(f"FSDnoisy18k.doc/sub/Wörter {i}.txt", dice.randbytes(dice.randrange(300)), how)
    return path.read_bytes()


def test_archives_changed_by_chance(tmp_path, tried):
    """Of a damaged archive the files it was made of are unpacked, each whole and inside of its folder, or it is refused by name."""
    outcomes = Outcomes(DatasetError)
    for i in range(rounds(150)):
        dice, folder = chance("archives", i), tmp_path / str(i)
        (folder / "set").mkdir(parents=True)
        path = folder / "set" / "FSDnoisy18k.doc.zip"
        content = zip_file(path, dice)
        with zipfile.ZipFile(path) as archive:
            right = {name.removeprefix("FSDnoisy18k.doc/"): archive.read(name) for name in archive.namelist() if name[-1] != "/"}
        path.write_bytes(changed(content, dice)[0])

        def unpacked():
            md5 = hashlib.md5(path.read_bytes()).hexdigest()  # a list made from the damaged file, else the sum refuses it
            download_fsdnoisy18k(folder / "set", parts=["doc"], base_url="http://127.0.0.1:9", md5s={"doc": md5}, retries=0, say=lambda line: None)
            return contents(folder / "set/FSDnoisy18k.doc")

        outcomes.add(i, unpacked, names=[path], is_right=lambda found: found == right)
        outside = [p.name for p in folder.rglob("*") if p.is_file() and "FSDnoisy18k.doc" not in str(p) and p.suffix != ".lock"]
        outcomes.wrong += [(i, "outside", outside)] if outside else []
    outcomes.report(tried, "archives")


DESCRIPTION = {"name": "my-data", "synthetic": False, "about": "recordings", "version": 2, "seed": 0}


def test_descriptions_changed_by_chance(tmp_path, tried):
    """A damaged dataset.json gives a name that can stand in a path, or is refused in an error that names it."""
    root = make_set(tmp_path / "set")
    outcomes = Outcomes(DatasetError)
    for i in range(rounds(400)):
        dice, path = chance("descriptions", i), root / "dataset.json"
        if dice.random() < 0.5:
            path.write_text(json.dumps(changed_values(DESCRIPTION, dice)))
        else:
            path.write_bytes(changed(json.dumps(DESCRIPTION, indent=1).encode(), dice)[0])
        outcomes.add(i, lambda: locate_dataset("auto", root), names=[root], is_right=lambda found: can_name_folder(found.name))
        outcomes.add(i, lambda: make_mini(root, every_s=None), names=[root], is_right=lambda _: False)  # it is none
    outcomes.report(tried, "descriptions of data sets")


def test_lists_of_checksums_changed_by_chance(tmp_path, tried):
    """A damaged list of checksums is read line by line, or refused in an error that names it."""
    outcomes, path = Outcomes(DatasetError), tmp_path / "MD5SUMS"
    for i in range(rounds(200)):
        dice = chance("sums", i)
        lines = [f"{dice.randbytes(16).hex()}  FSDnoisy18k.{part}.zip\n" for part in FSDNOISY18K_MD5]
        path.write_bytes(changed("".join(lines).encode(), dice)[0])
        outcomes.add(i, lambda: read_checksums(path), names=[path], is_right=lambda sums: all(isinstance(sum_, str) for sum_ in sums.values()))
    outcomes.report(tried, "lists of checksums")


@pytest.mark.parametrize("settings", [TrainConfig, PretrainConfig, ProbeConfig], ids=lambda kind: kind.__name__)
def test_settings_by_chance(settings, tried):
    """Settings, as papermill passes them, are taken as they were given or refused in an error that names one of them."""
    outcomes, names = Outcomes(ValueError, ImportError), [field.name for field in dataclasses.fields(settings)]
    for i in range(rounds(300)):
        dice = chance("settings", settings.__name__, i)
        given = {name: dice.choice(ODD_VALUES) for name in dice.sample(names, dice.randrange(1, 3))}
        outcomes.add((i, given), lambda: settings(**given), names=given, is_right=lambda made: comes_back(made, given))
    outcomes.report(tried, settings.__name__)


def comes_back(made, given):
    """Whether settings are what was given, and stay so when they are written down."""
    stored = json.loads(json.dumps(dataclasses.asdict(made)))
    asked = {name: value for name, value in given.items() if value not in (None, {})}  # these stand for the usual values
    return type(made)(**stored) == made and all(stored[name] == value for name, value in asked.items())


def test_papermill_parameters_by_chance(tried):
    """Parameters of a notebook are taken where it has all of them, else refused in an error that names one that it has not."""
    defaults = "\n".join(f"{field.name} = None" for field in dataclasses.fields(TrainConfig))
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    outcomes = Outcomes(ValueError)
    for i in range(rounds(300)):
        dice = chance("parameters", i)
        names = [mistyped(dice.choice(known), dice) if dice.random() < 0.5 else dice.choice(known) for _ in range(dice.randrange(1, 4))]
        unknown = [name for name in names if name not in known]
        cell = PythonTranslator.codify({name: dice.choice(ODD_VALUES) for name in names})
        outcomes.add((i, names), lambda: check_parameters([defaults, cell]), names=unknown or ["never"], is_right=lambda _: not unknown)
    outcomes.report(tried, "parameters of papermill")


def mistyped(name, dice):
    """A name with two letters exchanged, one left out, or in capitals."""
    at = dice.randrange(len(name) - 1)
    return dice.choice([name[:at] + name[at + 1] + name[at] + name[at + 2:], name[:at] + name[at + 1:], name.upper()]).lstrip("_") or "x"
