"""What several test files use: where things are, how commands are run, and small data sets made on the spot."""
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import matplotlib
import numpy as np
import soundfile
from ipykernel import kernelapp
from jupyter_client import launcher

from acl_paper.log_mel import clip_log_mel

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"  # there where the project is developed, not on a user's machine
REFERENCE = SHARED / "reference"
REAL_MINI = SHARED / "data" / "real-mini"
BIN = Path(sys.executable).parent  # not resolved: in a virtual environment the commands lie beside the link


def environment(**changes):
    """The environment of a child process: one thread, and nothing that points to another data set."""
    kept = {name: value for name, value in os.environ.items() if name not in ("ACL_DATA", "IN_TEST", "MPLBACKEND")}
    return kept | {"OMP_NUM_THREADS": "1"} | changes


def command(name, *arguments):
    return [str(BIN / name), *map(str, arguments)]


def run(arguments, *, cwd=ROOT, timeout=300, **options):
    """Run a command to its end; what it printed and what it complained of are in `stdout` and `stderr`."""
    environ = environment(**options.pop("environ", {}))
    return subprocess.run(arguments, cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout, **options)


FORKS = multiprocessing.get_context("forkserver")  # a process that has the imports behind it, computes nothing, and is forked for each command
FORKS.set_forkserver_preload([*(f"acl_paper.{module}" for module in ("batch", "quick_probe", "export", "testing", "report", "own_data", "features", "probing")),
                              "sklearn.linear_model", "sklearn.neighbors", "librosa", "soundfile", "scipy.signal", "scipy.stats", "seaborn",
                              "snakemake.cli", "papermill.__main__", "ipykernel.ipkernel"])
ONE_AT_A_TIME = threading.Lock()


def run_acl(name, *arguments, cwd=ROOT, timeout=300, environ={}):
    """Like `run`, for a command of this package, without the three CPU seconds that its imports take. PYTHONPATH may name a copy of it.

    That each command starts by itself, and what it imports, is for `test_ctrl_c.py`, `test_rooms.py` and `test_install.py`.
    """
    with ONE_AT_A_TIME, mock.patch.dict(os.environ, environment(), clear=True):
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / stream for stream in ("out", "err"))
        process = FORKS.Process(target=as_command, args=(name, [*map(str, arguments)], cwd, environment(**environ), out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired([name, *arguments], timeout)
        return subprocess.CompletedProcess([name, *arguments], process.exitcode, out.read_text(), err.read_text())


def run_papermill(notebook, out, *arguments, **options):
    """`papermill` on a notebook of the repository, likewise; and its kernel, a process of its own as for everyone, is forked too.

    Kernels as Jupyter starts them are those of the workflow, and of `finished` in `test_train.py`.
    """
    return run_acl("papermill", ROOT / "nbs" / f"{notebook}.ipynb", out, *arguments, "--no-progress-bar", "--log-output", **options)


def as_command(name, arguments, cwd, environ, out, err):
    """In the forked process: what a shell would start."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = [name, *arguments]
    if "PYTHONPATH" in environ:
        sys.path.insert(0, environ["PYTHONPATH"])
        forget_package()
    if name == "papermill":
        launcher.Popen = kernel_to_be()
    getattr(import_module("papermill.__main__" if name == "papermill" else "acl_paper.commands"), name)()


def forget_package():
    """The next import takes the package from where `sys.path` says now."""
    for module in [module for module in sys.modules if module.partition(".")[0] == "acl_paper"]:
        del sys.modules[module]


def kernel_to_be():
    """Fork a process, while nothing but imports happened in this one, that becomes a Jupyter kernel when it is told how.

    Returns what tells it, to stand in the place of `Popen`.
    """
    ours, theirs = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.setsid()
        try:
            become_kernel(*theirs.recv())
        except EOFError:  # no kernel was asked for
            pass
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(0)
    theirs.close()

    class Told(subprocess.Popen):
        def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *_):
            ours.send((args, cwd, env))
            self.pid, self._child_created = pid, True

    return Told


def become_kernel(words, cwd, environ):
    os.chdir(cwd or ".")
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = words[words.index("ipykernel_launcher"):]
    sys.modules.pop("matplotlib_inline.backend_inline", None)  # to be imported where there is a shell
    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    kernelapp.launch_new_instance()


PEAK_BYTES = """
import resource, sys

def peak_bytes():
    "The most memory that this process held. getrusage would count what the process that started it held, too."
    if sys.platform == "linux":
        return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""


def copy_of_repository(folder):
    """A copy of the repository in `folder`, without what git ignores, and with the shared folder beside it where there is one."""
    copy = Path(folder) / "repository"
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split() if not line.startswith(("!", "runs"))]
    by_name = shutil.ignore_patterns(".git", *ignored)
    clip_log_mel(np.zeros(1000, np.float32))  # compiled now, for all copies

    def left_out(path, names):
        if Path(path) == ROOT / "acl_paper":
            return []  # nor what Python and numba have compiled
        return {*by_name(path, names), *([name for name in names if name != "README.md"] if Path(path) == ROOT / "runs" else [])}

    shutil.copytree(ROOT, copy, ignore=left_out)
    if SHARED.is_dir():
        (Path(folder) / "shared").symlink_to(SHARED)
    return copy


def contents(folder):
    """Relative path -> bytes of every file, leaving out Python's caches."""
    paths = [p for p in Path(folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def write_tables(root, train, test, labels=("Piano", "Rain", "Wind")):
    """The two clip tables of a data set whose clips have the given names; labels in turn, all of them checked by people."""
    (root / "FSDnoisy18k.meta").mkdir(parents=True)
    rows = [f"{name},{labels[i % len(labels)]},/m/{i % len(labels)}" for i, name in enumerate(train)]
    table = "fname,label,aso_id,manually_verified,noisy_small\n" + "".join(f"{row},1,0\n" for row in rows)
    (root / "FSDnoisy18k.meta" / "train.csv").write_text(table)
    (root / "FSDnoisy18k.meta" / "test.csv").write_text("fname,label,aso_id\n" + "".join(f"{name},{labels[0]},/m/0\n" for name in test))


def make_data_set(root, n_train, duration_s, n_sounds=7):
    """A data set of `n_train` training clips and one test clip: links to few different sounds, so that it takes little disk.

    The number of sounds does not divide 64, so that no two groups of 64 clips are alike.
    """
    root, rng = Path(root), np.random.default_rng(0)
    sounds = []
    for folder in ("FSDnoisy18k.audio_train", "FSDnoisy18k.audio_test", "sounds"):
        (root / folder).mkdir(parents=True)
    for i in range(n_sounds):
        samples = rng.uniform(-0.5, 0.5, round(44_100 * (duration_s + i / 10)))
        sounds.append(root / "sounds" / f"{i}.wav")
        soundfile.write(sounds[-1], samples, 44_100, subtype="PCM_16")
    train = [f"{1000 + i}.wav" for i in range(n_train)]
    for i, name in enumerate(train):
        os.link(sounds[i % n_sounds], root / "FSDnoisy18k.audio_train" / name)
    os.link(sounds[0], root / "FSDnoisy18k.audio_test" / "1.wav")
    write_tables(root, train, ["1.wav"])
    return root
