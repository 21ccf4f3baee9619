"""Memory and speed of acl_predict on recordings of a few seconds to three hours.

    python -m benchmarks.recordings --out figures/benchmark/recordings.csv

The recordings are noise, the network has its first weights: neither changes what a block costs.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from acl_paper.console import command, write_atomically
from acl_paper.evaluation import Run
from acl_paper.features import FeatureConfig
from acl_paper.networks import make_network
from acl_paper.patches import Scaler
from acl_paper.runs import save_run
from acl_paper.training import TrainConfig

MINUTES = (0.1, 10, 60, 180)
RATE = 44_100
PROGRAM = """
import os, resource, sys
from acl_paper.batch import acl_predict
acl_predict([sys.argv[1]], run=sys.argv[2], out=sys.argv[3], timeline=len(sys.argv) > 4, device="cpu")
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(used.ru_utime + used.ru_stime, peak)
"""


def make_run(folder: Path) -> None:
    "A run folder whose network was never trained."
    network = make_network("paper_cnn", 20, (100, 96)).eval()
    scaler = Scaler(np.full(96, -2.0), np.full(96, 1.5))
    history = pd.DataFrame({"epoch": [1]})
    classes = [f"class {number}" for number in range(20)]
    save_run(folder, Run("training", network, scaler, TrainConfig(), FeatureConfig(), classes, history, 1))


def make_recording(path: Path, minutes: float) -> None:
    "Noise, written a minute at a time."
    generator = np.random.default_rng(0)
    n_left = round(60 * minutes * RATE)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        while n_left > 0:
            file.write((3000 * generator.standard_normal(min(n_left, 60 * RATE))).astype(np.int16))
            n_left -= 60 * RATE


def measure(recording: Path, run: Path, *more: str) -> tuple[float, float]:
    "CPU seconds and peak memory (MB) of a process that works through one recording."
    arguments = [recording, run, recording.with_suffix(".csv"), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, arguments)], env=environment, check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    cpu_s, peak_kb = done.stdout.splitlines()[-1].split()
    return float(cpu_s), float(peak_kb) / 1024


@command
def main(out: str = "figures/benchmark/recordings.csv"):  # the table to write
    "Measure acl_predict, with and without a timeline, on recordings of several lengths."
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        run, recording = Path(folder, "run"), Path(folder, "recording.wav")
        make_run(run)
        for minutes in MINUTES:
            make_recording(recording, minutes)
            for kind, more in {"clip": (), "timeline": ("timeline",)}.items():
                cpu_s, peak_mb = measure(recording, run, *more)
                rows.append({"minutes": minutes, "as": kind, "cpu_s": cpu_s, "peak_mb": peak_mb})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    start_s = table.groupby("as")["cpu_s"].transform("min")
    table["times_real_time"] = (60 * (table["minutes"] - MINUTES[0]) / (table["cpu_s"] - start_s)).round()
    write_atomically(out, table.round({"cpu_s": 1, "peak_mb": 0}).to_csv(index=False))


if __name__ == "__main__":
    main()
