"""This package's way timed against the released code's way, section by section; no data are needed.

    python -m benchmarks.run --device cpu --size mini --repeats 5 --out figures/benchmark/cpu.json
    python -m benchmarks.run --device cuda --size fsdnoisy18k --repeats 5 --out figures/benchmark/cuda.json

On a CPU a turn of training is eight steps; on a GPU it is 200, and 20 steps for the reference way.
"""
import json
import tempfile
from pathlib import Path

from acl_paper.console import command, write_atomically
from acl_paper.evaluation import choose_device
from acl_paper.runs import software_versions
from benchmarks.ladder import LADDER, prepare_steps
from benchmarks.rehearsal import make_rehearsal
from benchmarks.supervised import (
    prepare_evaluation,
    prepare_features,
    prepare_preparation,
    prepare_training,
)
from benchmarks.tables import benchmark_table
from benchmarks.timing import machine, summarise, take_turns

SIZES = {"tiny": 0.002, "mini": 0.05, "fsdnoisy18k": 1.0}  # scale of the rehearsal
SECTIONS = ("features", "preparation", "training", "validation", "evaluation")  # there is also "ladder"


def run_benchmark(
    *,
    device: str = "cpu",
    scale: float = 0.05,
    repeats: int = 5,
    n_steps: int = 8,
    n_clips: int = 40,
    n_threads: int = 1,
    sections: tuple[str, ...] = SECTIONS,
) -> dict:
    """Time this package's way against the reference way.

    Parameters
    ----------
    device : str
        "cpu" or "cuda", for training and evaluation.
    scale : float
        Size of the rehearsal; 1 is FSDnoisy18k's.
    repeats : int
        Rounds that count.
    n_steps : int
        Steps of 64 in a turn of training. The reference way does 20 at most.
    n_clips : int
        Clips of nine seconds in a turn of extraction.
    n_threads : int
        Of PyTorch on the CPU.
    sections : tuple of str
        Some of `SECTIONS`, or "ladder".

    Returns
    -------
    dict
        `machine`, `versions`, `settings`, and `sections`: of each one its `unit` and, by way, what
        `summarise` tells, in seconds per unit.
    """
    on = str(choose_device(device))
    timed = {}
    with tempfile.TemporaryDirectory() as folder:
        data_dir = f"{folder}/rehearsal"
        store = make_rehearsal(data_dir, f"{folder}/features", scale=scale)
        plans = _plans((data_dir, str(store.path)), on, n_steps, n_clips)
        for name in sections:
            unit, ways = plans[name]
            times = take_turns(ways, repeats=repeats, n_threads=n_threads)
            timed[name] = {"unit": unit, "ways": summarise(times)}
    settings = {
        "device": on,
        "scale": scale,
        "repeats": repeats,
        "steps_a_turn": n_steps,
        "clips_a_turn": n_clips,
        "threads": n_threads,
    }
    return {"machine": machine(), "versions": software_versions(), "settings": settings, "sections": timed}


def _plans(data, device, n_steps, n_clips):
    "By section its unit, and its ways as `take_turns` asks for them."
    either = ("reference", "ours")
    precisions = ["reference", "float32", "bfloat16"]
    if device != "cpu":
        precisions.append("tf32")

    def training(validate):
        return {way: (prepare_training, (way, *data, n_steps, validate, device)) for way in precisions}

    features = {way: (prepare_features, (way, n_clips)) for way in either}
    preparation = {way: (prepare_preparation, (way, *data)) for way in either}
    evaluation = {way: (prepare_evaluation, (way, *data, device)) for way in ("reference", "float32")}
    ladder = {way: (prepare_steps, (way, n_steps)) for way in LADDER}
    return {
        "features": ("hour of audio", features),
        "preparation": ("training patch", preparation),
        "training": ("step of 64 patches", training(False)),
        "validation": ("step of 64 patches and its share of validation", training(True)),
        "evaluation": ("test clip", evaluation),
        "ladder": ("step of 64 patches", ladder),
    }


@command
def main(
    device: str = "cpu",  # cpu or cuda
    size: str = "mini",  # mini or fsdnoisy18k; tiny to try the command
    repeats: int = 5,  # rounds that count
    threads: int = 1,  # threads on the CPU
    sections: str = " ".join(SECTIONS),  # some of these, or ladder
    out: str = None,  # JSON file to write
):
    "Time features, preparation, training and evaluation against the released code's way; no data are needed."
    chosen = tuple(sections.split())
    choices = (*SECTIONS, "ladder")
    for name in chosen:
        if name not in choices:
            raise SystemExit(f"benchmarks.run: --sections must be some of {', '.join(choices)}, got {name!r}")
    if size not in SIZES:
        raise SystemExit(f"benchmarks.run: --size must be one of {', '.join(SIZES)}, got {size!r}")
    try:
        n_steps = 8 if choose_device(device).type == "cpu" else 200
    except ValueError as error:
        raise SystemExit(f"benchmarks.run: {error}") from None
    result = run_benchmark(
        device=device, scale=SIZES[size], repeats=repeats, n_steps=n_steps, n_threads=threads, sections=chosen
    )
    if out:
        write_atomically(Path(out), json.dumps(result, indent=1) + "\n")
    print(benchmark_table(result).to_string())


if __name__ == "__main__":
    main()
