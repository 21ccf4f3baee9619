"""What the benchmarks found, as a table and as a figure."""
import pandas as pd

UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
PRECISIONS = ("float32", "bfloat16", "tf32")


def way_name(section: str, way: str) -> str:
    """What a way is called in tables and figures."""
    if section == "ladder" or way not in ("ours", *PRECISIONS):
        return way
    return "this package" if way == "ours" else f"this package, {way}"


def benchmark_table(result: dict) -> pd.DataFrame:
    """Time per unit, and how many times faster than the reference way.

    Parameters
    ----------
    result : dict
        From `run_benchmark`, `pretraining_study`, or a file that holds what they returned.

    Returns
    -------
    DataFrame
        One row per section and way; each number is a median of the rounds with their range in brackets.
    """
    rows = []
    for name, section in result["sections"].items():
        for way, times in section["ways"].items():
            rows.append(
                {
                    "section": name,
                    "way": way_name(name, way),
                    "for a": section["unit"],
                    "CPU time": _time(times["cpu_s"]),
                    "wall time": _time(times["wall_s"]),
                    "faster (CPU)": _with_range(times["cpu_s_gain"], 2),
                    "faster (wall)": _with_range(times["wall_s_gain"], 2),
                }
            )
    return pd.DataFrame(rows).set_index(["section", "way"])


def _with_range(spread, digits, unit=""):
    median, low, high = (f"{spread[name]:.{digits}g}" for name in ("median", "low", "high"))
    return f"{median}{unit} [{low}, {high}]"


def _time(spread):
    "In the largest unit of which the median has one."
    unit = next((unit for unit, seconds in UNITS.items() if spread["median"] >= seconds), "µs")
    return _with_range({name: value / UNITS[unit] for name, value in spread.items()}, 3, f" {unit}")


def plot_benchmark(result: dict, ax, *, kind: str = "cpu_s") -> None:
    """Bars of how many times faster than the reference way: medians, also as numbers, with lines from least to greatest.

    Parameters
    ----------
    result : dict
        See `benchmark_table`.
    ax : Axes
        Of matplotlib.
    kind : str
        "cpu_s" or "wall_s".
    """
    bars = []
    for name, section in result["sections"].items():
        ways = {way: times for way, times in section["ways"].items() if way != "reference"}
        for way, times in ways.items():
            gain = times[f"{kind}_gain"]
            label = name if len(ways) == 1 else f"{name}, {way}"
            bars.append((f"{label}: {gain['median']:.1f}", gain))
    bars.reverse()
    for height, (_, gain) in enumerate(bars):
        ax.barh(height, gain["median"], color="C0", height=0.7)
        ax.plot([gain["low"], gain["high"]], [height, height], color="k", lw=1)
    ax.axvline(1, color="0.4", lw=0.8)
    ax.set_yticks(range(len(bars)), [label for label, _ in bars])
    clock = "CPU" if kind == "cpu_s" else "wall"
    ax.set_xlabel(f"times faster than the reference way ({clock} time)")
