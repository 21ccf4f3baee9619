"""The table through a real Slurm: `python -m pytest tests/slurm/check_slurm.py` (see README.md; not part of `make test`)."""
import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import BIN, command, copy_of_repository, environment, run  # noqa: E402

from acl_paper.mini import MiniConfig, make_mini# noqa: E402

CLUSTER = Path(__file__).with_name("cluster.sh")
GRID = {"alphas": "1 0.5", "subsets": "clean noisy", "epochs": 2, "profile": "profiles/slurm", "jobs": 4}
CELLS = [f"{subset}/alpha={alpha}" for subset in ("clean", "noisy") for alpha in ("1.0", "0.5")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the repository with a tiny mini data set, and a cluster as long as the tests last."""
    up = subprocess.run([CLUSTER, "up"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if up.returncode:
        pytest.fail(up.stderr)
    copy = copy_of_repository(tmp_path_factory.mktemp("slurm"))
    make_mini(copy / "data" / "mini", MiniConfig(clean_per_class=3, noisy_per_class=2, noisy_small_per_class=1, test_per_class=1), n_jobs=1, every_s=None)
    yield copy
    subprocess.run([CLUSTER, "down"], check=True)


def call(project, **settings):
    words = [f"--{name}={value}" for name, value in (GRID | settings).items()]
    return dict(args=command("acl_reproduce", *words), cwd=project, env=environment(PYTHONPATH=str(project)))


def reproduce(project, **settings):
    """Run the driver to its end; on this small node, a cell gets one processor."""
    more = settings.pop("more", "") + " --set-threads train=1 features=2 --latency-wait 10"
    done = subprocess.run(**call(project, more=more, **settings), capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stderr


def slurm_jobs():
    """What Slurm says of every job so far: number -> its fields."""
    text = run(["scontrol", "-o", "show", "jobs"]).stdout
    jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines() if "JobId=" in line]
    return {job["JobId"]: job for job in jobs}


def test_1_a_driver_is_killed_while_its_jobs_run_and_the_next_one_finishes_the_table(project):
    driver = subprocess.Popen(**call(project, seeds="0", more="--set-threads train=1 features=2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    logs = [project / "runs/mini" / cell / "seed=0/train.log" for cell in CELLS]
    end = time.monotonic() + 200
    while not any(log.is_file() for log in logs):
        assert driver.poll() is None and time.monotonic() < end, "no cell was started"
        time.sleep(0.2)
    driver.kill()
    driver.wait()
    left_running = [job for job in slurm_jobs().values() if job["JobState"] in ("RUNNING", "PENDING")]
    assert left_running, "Slurm's jobs should have outlived the driver"
    reproduce(project, seeds="0")
    for cell in CELLS:
        assert (project / "runs/mini" / cell / "seed=0/metrics.json").is_file()
    assert (project / "figures/mini/results.csv").is_file()


def test_2_each_cell_was_a_job_of_its_own_with_a_gpu(project):
    jobs = slurm_jobs()
    trained = {number: job for number, job in jobs.items() if "train" in job.get("Comment", "")}
    assert len(trained) >= 4
    finished = [job for job in trained.values() if job["JobState"] == "COMPLETED"]
    assert len(finished) >= 4
    assert all("gpu" in job.get("TresPerJob", "") + job.get("TRES", "") + job.get("TresPerNode", "") for job in trained.values()), trained


def test_3_what_is_done_is_not_done_again(project):
    before = set(slurm_jobs())
    assert "Nothing to be done" in reproduce(project, seeds="0")
    assert set(slurm_jobs()) == before


def test_4_several_cells_share_the_gpu_of_one_job(project):
    before = set(slurm_jobs())
    inner = "acl_reproduce --alphas '1 0.5' --subsets 'clean noisy' --seeds '0 1' --epochs 2 --jobs 2 --cells_per_gpu 2"
    job = ["sbatch", "--wait", "--gpus=1", "--cpus-per-task=2", "--mem=8G", "--output=job.log", "--wrap", f"CUDA_VISIBLE_DEVICES=0 {BIN}/{inner}"]  # Slurm says this itself where the GPU is a real one
    done = run(job, cwd=project, environ={"PYTHONPATH": str(project)}, timeout=550)
    assert done.returncode == 0, (project / "job.log").read_text()[-3000:]
    assert len(set(slurm_jobs()) - before) == 1
    times = []
    for cell in CELLS:
        folder = project / "runs/mini" / cell / "seed=1"
        assert (folder / "metrics.json").is_file()
        ran = nbformat.read(folder / "train.ipynb", 4).metadata["papermill"]
        times += [(ran["start_time"], 1), (ran["end_time"], -1)]
    at_once = list(itertools.accumulate(change for _, change in sorted(times)))
    assert max(at_once) == 2
    assert "gpu0=1" in (project / "job.log").read_text()  # each took a share of the job's card
