"""How near two ways of computing one training are: a recorded step and an ordinary one, and two runs alike.

    python -m benchmarks.exactness --device cuda --out exactness.json

On a CPU nothing is recorded and both differences are zero; on a GPU cuDNN chooses its algorithm by a race.
"""
import json
import tempfile
import time
from pathlib import Path

import torch

from acl_paper.console import command, write_atomically
from acl_paper.data import load_clips
from acl_paper.evaluation import choose_device, tuned
from acl_paper.losses import AngularContrastiveLoss
from acl_paper.networks import PaperCNN, placed
from acl_paper.patches import Split, make_split
from acl_paper.training import TrainConfig, TrainingStep, fit, optimiser_of
from benchmarks.rehearsal import make_rehearsal

PRECISIONS = ("float32", "tf32", "bfloat16")


def some_steps(
    split: Split, precision: str, *, record: bool, n_steps: int = 20, batch_size: int = 64
) -> dict:
    """Train on the first patches of a split from the same weights, without dropout; the rate falls half-way.

    Parameters
    ----------
    split : Split
        On the device to train on.
    precision : {"float32", "tf32", "bfloat16"}
        What the network runs in.
    record : bool
        Whether a GPU may record the step.
    n_steps, batch_size : int
        Steps, and patches in each.

    Returns
    -------
    dict
        `losses`, the sums of the total, first and angular loss over all steps, and `step_s`, the seconds of a
        step in the second half.
    """
    device = split.train.starts.device
    torch.manual_seed(0)
    network = placed(PaperCNN(len(split.classes), dropout=0.0), device).train()
    optimiser = optimiser_of(TrainConfig(), network.parameters(), device)
    step = TrainingStep(
        network, split.train, AngularContrastiveLoss(0.5), optimiser, precision=precision, record=record
    )
    order = torch.arange(n_steps * batch_size, device=device) % len(split.train)
    half = n_steps // 2
    with tuned(precision):
        for number, rows in enumerate(order.split(batch_size)):
            if number == half:
                _lower_rate(optimiser)
                _wait_for(device)
                start = time.perf_counter()
            step(rows)
        _wait_for(device)
    return {"losses": step.losses.tolist(), "step_s": (time.perf_counter() - start) / (n_steps - half)}


def _lower_rate(optimiser):
    for group in optimiser.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(1e-4)
        else:
            group["lr"] = 1e-4


def _wait_for(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def recorded_and_ordinary(split: Split, **sizes: int) -> dict:
    """By precision, `some_steps` of a recorded and of an ordinary step, and how far their losses are apart.

    Parameters
    ----------
    split : Split
        On the device to train on.
    **sizes : int
        `n_steps` and `batch_size` of `some_steps`.

    Returns
    -------
    dict
        By precision, `recorded`, `ordinary`, and `difference`, the largest relative one of the three losses.
    """
    told = {}
    for precision in PRECISIONS:
        recorded = some_steps(split, precision, record=True, **sizes)
        ordinary = some_steps(split, precision, record=False, **sizes)
        pairs = zip(recorded["losses"], ordinary["losses"])
        difference = max(abs(a - b) / abs(b) for a, b in pairs)
        told[precision] = {"recorded": recorded, "ordinary": ordinary, "difference": difference}
    return told


def two_runs_alike(split: Split, device: str, **settings) -> dict:
    """Train twice with one seed.

    Parameters
    ----------
    split : Split
        What is trained on.
    device : str
        Where.
    **settings
        Of `TrainConfig`.

    Returns
    -------
    dict
        `epochs`; `weights`, the length of the difference of all weights over that of the weights; and
        `validation_accuracy` of both after the last epoch.
    """
    config = TrainConfig(keep="last", **settings)
    runs = [fit(split, config, device=device, report_every_s=None) for _ in range(2)]
    first, second = (torch.cat([w.flatten().double() for w in run.network.parameters()]) for run in runs)
    return {
        "epochs": config.epochs,
        "weights": ((first - second).norm() / first.norm()).item(),
        "validation_accuracy": [run.history.validation_accuracy.iloc[-1] for run in runs],
    }


@command
def main(
    device: str = "cpu",  # cpu or cuda
    scale: float = 0.05,  # of the rehearsal that is trained on
    epochs: int = 5,  # of the two runs alike
    steps: int = 20,  # recorded, and ordinary
    batch_size: int = 64,  # of all trainings
    out: str = None,  # JSON file to write
):
    "Compare recorded steps with ordinary ones, and two trainings alike; no data are needed."
    try:
        on = choose_device(device)
    except ValueError as error:
        raise SystemExit(f"benchmarks.exactness: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        store = make_rehearsal(f"{folder}/rehearsal", f"{folder}/features", scale=scale)
        split = make_split(store, load_clips(f"{folder}/rehearsal"), TrainConfig(subset="clean"))
        steps_apart = recorded_and_ordinary(split.to(on), n_steps=steps, batch_size=batch_size)
        runs_apart = two_runs_alike(split, device, epochs=epochs, batch_size=batch_size)
    result = {"recorded and ordinary": steps_apart, "two runs alike": runs_apart}
    text = json.dumps(result, indent=1)
    if out:
        write_atomically(Path(out), text + "\n")
    print(text)


if __name__ == "__main__":
    main()
