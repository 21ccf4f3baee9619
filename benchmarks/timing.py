"""Several ways of doing one thing, timed in turns, each in a process of its own; and on what machine."""
import atexit
import multiprocessing
import os
import platform
import resource
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pandas as pd
import torch

KINDS = ("wall_s", "cpu_s")


def take_turns(
    ways: dict[str, tuple[Callable, tuple]], *, repeats: int = 5, n_threads: int = 1
) -> pd.DataFrame:
    """Time several ways of doing something, in turn.

    Parameters
    ----------
    ways : dict
        By name, a function and its arguments that prepare and return the function to be timed. That one takes
        nothing and returns how much it did, ``{"units": 8}``, with `wall_s` or `cpu_s` where it knows better.
        Each way lives in a new process, which imports the function by its name: it has to be a module's.
    repeats : int
        Rounds. One more comes first and is not counted.
    n_threads : int
        Of PyTorch, in each process.

    Returns
    -------
    DataFrame
        One row per round and way: `round`, `way`, `wall_s`, `cpu_s`, in seconds per unit.

    Raises
    ------
    RuntimeError
        if one of the ways fails; its own error is printed.
    """
    context = multiprocessing.get_context("spawn")
    pipes = {}
    processes = []
    rows = []
    try:
        for name, (make, arguments) in ways.items():
            pipes[name], theirs = context.Pipe()
            # not a daemon: those may not start a data loader's workers
            process = context.Process(target=_work, args=(theirs, make, arguments, n_threads))
            process.start()
            processes.append(process)
            theirs.close()
        for pipe in pipes.values():
            pipe.recv()  # ready
        for number in range(repeats + 1):
            for name, pipe in pipes.items():
                pipe.send(True)
                rows.append({"round": number, "way": name} | pipe.recv())
    except EOFError:
        raise RuntimeError(f"one of {', '.join(ways)} failed; its own error is printed above") from None
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return pd.DataFrame([row for row in rows if row["round"] > 0])


def _work(pipe, make, arguments, n_threads):
    "The life of a process that does one way: prepare, then do a turn each time it is asked."
    torch.set_num_threads(n_threads)
    warnings.simplefilter("ignore")
    turn = make(*arguments)
    pipe.send("ready")
    while pipe.recv():
        cpu = time.process_time()
        wall = time.perf_counter()
        told = turn()
        took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu} | told
        units = took.pop("units")
        pipe.send({kind: seconds / units for kind, seconds in took.items()})


def summarise(times: pd.DataFrame) -> dict:
    """Median, least and greatest of each way's times and of its gains over the reference way.

    Parameters
    ----------
    times : DataFrame
        As `take_turns` returns them, with a way called "reference".

    Returns
    -------
    dict
        By way, `wall_s`, `cpu_s`, `wall_s_gain` and `cpu_s_gain`, each with `median`, `low` and `high`. A
        gain is the reference way's time divided by this way's in the same round: so many times faster it was.
    """
    table = times.set_index(["round", "way"])[list(KINDS)].unstack("way")
    summary = {}
    for way in times.way.unique():
        summary[way] = {kind: _spread(table[kind][way]) for kind in KINDS}
        for kind in KINDS:
            summary[way][f"{kind}_gain"] = _spread(table[kind]["reference"] / table[kind][way])
    return summary


def _spread(values):
    return {"median": float(values.median()), "low": float(values.min()), "high": float(values.max())}


def cpu_seconds(*, own: bool = True) -> float:
    """CPU time of this process and of those of its children that have ended.

    Parameters
    ----------
    own : bool
        False: the children's alone.
    """
    who = [resource.RUSAGE_CHILDREN]
    if own:
        who.append(resource.RUSAGE_SELF)
    used = [resource.getrusage(one) for one in who]
    return sum(one.ru_utime + one.ru_stime for one in used)


def stay_in(context: AbstractContextManager) -> None:
    """Enter a context and stay in it until the process ends.

    Examples
    --------
    >>> stay_in(tuned("float32"))  # from here on, memory is kept as `fit` keeps it while it trains
    """
    stack = ExitStack()
    stack.enter_context(context)
    atexit.register(stack.close)


def machine() -> dict:
    """What the numbers are taken on.

    Returns
    -------
    dict
        `processor`, `processors`, `instructions` (those that PyTorch uses) and `system`; with a GPU, also
        `gpu`, `cuda` and `cudnn`.
    """
    about = {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
    }
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
        about["cuda"] = torch.version.cuda
        about["cudnn"] = torch.backends.cudnn.version()
    return about


def _processor():
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()
