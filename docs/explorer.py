"""The page "Results explorer": published and reproduced accuracies as a chart to play with and as tables.

Reads figures/**/results.csv, which nbs/results.ipynb writes; without one, the published table alone.
"""
import re
from pathlib import Path

import pandas as pd
from bokeh.embed import components
from bokeh.layouts import column
from bokeh.models import Band, ColumnDataSource, CustomJS, HoverTool, RadioButtonGroup, Range1d, Whisker
from bokeh.plotting import figure

PUBLISHED, OURS, GREY = "#de8f05", "#0173b2", "#6b7280"
SUBSETS = ["clean", "all", "noisy", "noisy_small"]
INTRODUCTION = """# Results explorer

> The paper's supervised table, value by value: published, reproduced, and how far either could be off.

Pick a subset; point at a mark for its numbers. $\\alpha$ is the weight of the cross-entropy: 1 is the baseline, smaller values give the
angular loss more say. The shaded band says how far an accuracy measured on {n} test clips could be from the same model's accuracy on all
such clips (95 % Wilson interval): two published values less than about that apart may differ by the choice of clips alone.
The tables below hold the same numbers and need no JavaScript.
"""
NOTHING_YET = """
:::{note}
There are no reproduced values here yet: the chart and the table show what the paper published. `make reproduce` trains the cells of the
table, the notebook [results](results.ipynb) collects them, and the next build of this page shows them beside the published ones.
:::
"""
SYNTHETIC = """
:::{warning}
These runs are on **DATASET, a synthetic data set**. They show that the whole chain works. Their accuracies cannot be compared with the
published ones, which are on FSDnoisy18k and stand here for orientation only.
:::
"""


def wilson(p: pd.Series, n: int) -> tuple[pd.Series, pd.Series]:
    "95 % Wilson interval of a share `p` of `n`."
    z = 1.959964
    centre, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2))**0.5
    return centre - half, centre + half


def load(root: Path) -> list[pd.DataFrame]:
    "Results by data set, real ones first; the published table alone where there are none."
    found = [pd.read_csv(path) for path in sorted((root / "figures").rglob("results.csv"))]
    found = [table for table in found if (table.n_seeds > 0).any()]
    if found: return sorted(found, key=lambda table: bool(table.synthetic.any()))
    published = pd.read_csv(root / "acl_paper" / "published" / "published_supervised.csv")
    return [published.melt("alpha", var_name="subset", value_name="published").assign(n_seeds=0, dataset="FSDnoisy18k", synthetic=False)]


def chart(table: pd.DataFrame, n_clips: int):
    "Accuracy against alpha of one subset at a time."
    percent = table.reindex(columns=["subset", "alpha", "n_seeds", "published", "mean", "sd", "min", "max", "wilson_low", "wilson_high"]).copy()
    percent["low"], percent["high"] = wilson(percent.published, n_clips)
    shares = ["published", "low", "high", "mean", "sd", "min", "max", "wilson_low", "wilson_high"]
    percent[shares] = percent[shares].astype(float) * 100
    subsets = [s for s in SUBSETS if s in set(percent.subset)]
    parts = {s: percent[percent.subset == s].drop(columns="subset").sort_values("alpha") for s in subsets}
    theirs = {s: ColumnDataSource(rows.dropna(subset="published").to_dict("list")) for s, rows in parts.items()}
    ours = {s: ColumnDataSource(rows[rows.n_seeds > 0].to_dict("list")) for s, rows in parts.items()}

    plot = figure(height=380, sizing_mode="stretch_width", tools="pan,box_zoom,reset,save", toolbar_location="above", x_range=Range1d(-0.03, 1.05),
                  x_axis_label="α, the weight of the cross-entropy", y_axis_label="clip accuracy (%)")
    ranges = [[values.min() - 2, values.max() + 2] for values in (parts[s][["low", "high", "min", "max"]].stack() for s in subsets)]
    plot.y_range = Range1d(*ranges[0])
    plot.toolbar.logo = None
    plot.xaxis.ticker = [i / 10 for i in range(11)]
    shown = {}
    for subset in subsets:
        band = Band(base="alpha", lower="low", upper="high", source=theirs[subset], fill_color=PUBLISHED, fill_alpha=0.12, line_width=0)
        plot.add_layout(band)
        line = plot.line("alpha", "published", source=theirs[subset], color=PUBLISHED, line_width=2, legend_label="published, one run")
        dots = plot.scatter("alpha", "published", source=theirs[subset], color=PUBLISHED, size=8, legend_label="published, one run")
        plot.add_tools(HoverTool(renderers=[dots], tooltips=[("published", "@published{0.0} %"), ("α", "@alpha"), ("interval of the clips", "@low{0.0} to @high{0.0} %")]))
        shown[subset] = [band, line, dots]
        if ours[subset].data["alpha"]:
            name = f"here: {table.dataset.iloc[0]}{' (synthetic)' if table.synthetic.any() else ''}, mean of the seeds"
            spread = Whisker(base="alpha", lower="min", upper="max", source=ours[subset], line_color=OURS, line_width=1.5)
            plot.add_layout(spread)
            line = plot.line("alpha", "mean", source=ours[subset], color=OURS, line_width=2, legend_label=name)
            marks = plot.scatter("alpha", "mean", source=ours[subset], color=OURS, marker="square", size=8, legend_label=name)
            plot.add_tools(HoverTool(renderers=[marks], tooltips=[("here", "@mean{0.0} ± @sd{0.0} %"), ("α", "@alpha"), ("seeds", "@n_seeds, from @min{0.0} to @max{0.0} %"),
                                                                  ("interval of the clips", "@wilson_low{0.0} to @wilson_high{0.0} %")]))
            shown[subset] += [spread, line, marks]
    for subset in subsets[1:]:
        for item in shown[subset]: item.visible = False
    plot.legend.border_line_color, plot.legend.orientation, plot.legend.location = None, "vertical", "center"
    plot.add_layout(plot.legend[0], "below")
    buttons = RadioButtonGroup(labels=subsets, active=0, sizing_mode="stretch_width", name="subset")
    buttons.js_on_change("active", CustomJS(args={"shown": list(shown.values()), "ranges": ranges, "y": plot.y_range}, code="""
        shown.forEach((items, i) => items.forEach(item => item.visible = i == this.active));
        [y.start, y.end] = ranges[this.active]"""))
    return column(buttons, plot, sizing_mode="stretch_width")


def tables(table: pd.DataFrame, n_clips: int) -> str:
    "A Markdown table a subset."
    text = []
    for subset in [s for s in SUBSETS if s in set(table.subset)]:
        rows = table[table.subset == subset].sort_values("alpha")
        low, high = wilson(rows.published.astype(float), n_clips)
        columns = {"α": rows.alpha.map("{:g}".format), "published": rows.published.map(share), "interval of the clips": [interval(*pair) for pair in zip(low, high)]}
        if (table.n_seeds > 0).any():
            columns |= {"here, mean ± sd": [f"{share(r['mean'])} ± {share(r.sd)}" if r.n_seeds > 1 else share(r["mean"]) for _, r in rows.iterrows()],
                        "seeds": rows.n_seeds.astype(int), "from … to": [interval(r["min"], r["max"]) for _, r in rows.iterrows()]}
            if "verdict" in rows and not rows.synthetic.any(): columns["verdict"] = rows.verdict.fillna("–")
        frame = pd.DataFrame({k: list(v) for k, v in columns.items()})
        line = lambda cells: "| " + " | ".join(str(c) for c in cells) + " |"
        text.append("\n".join([f"### Subset `{subset}`\n", line(frame.columns), line("--:" for _ in frame), *map(line, frame.itertuples(index=False))]))
    return "\n\n".join(text)


def share(value) -> str: return "–" if pd.isna(value) else f"{100 * value:.1f}"


def interval(low, high) -> str: return "–" if pd.isna(low) else f"{100 * low:.1f} … {100 * high:.1f}"


def page(root: Path) -> str:
    "The page as MyST Markdown."
    n_clips = 947  # FSDnoisy18k's test set, on which the published values are
    found = load(root)
    text = [INTRODUCTION.format(n=n_clips)]
    for table in found:
        dataset, synthetic, ran = table.dataset.iloc[0], bool(table.synthetic.any()), bool((table.n_seeds > 0).any())
        script, markup = components(chart(table, n_clips), wrap_script=False)
        identity = stable_ids(script, markup, f"{dataset}-")
        script, markup = identity(script), identity(markup)
        text += [f"## {'On ' + dataset if ran else 'Published, on FSDnoisy18k'}{' (synthetic)' if synthetic else ''}",
                 SYNTHETIC.replace("DATASET", dataset) if synthetic else "" if ran else NOTHING_YET,
                 "```{raw} html\n<div class=\"chart\">" + markup + "</div>\n<noscript>The chart needs JavaScript; the tables below do not.</noscript>\n"
                 "<script>addEventListener(\"load\", () => {\n" + script + "\n})</script>\n```",
                 "Accuracies in per cent.\n", tables(table, n_clips)]
    scripts = "```{raw} html\n" + "".join(f'<script defer src="_static/{s}.min.js"></script>\n' for s in ("bokeh", "bokeh-widgets")) + "```"
    return "\n\n".join([*text, scripts]) + "\n"


def stable_ids(script: str, markup: str, prefix: str):
    "Bokeh draws new identifiers for each document; numbers in order of appearance make two builds the same."
    pattern = r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\bp\d{4,}\b"
    numbers = {identity: f"{prefix}{number}" for number, identity in enumerate(dict.fromkeys(re.findall(pattern, script + markup)))}
    return lambda text: re.sub(pattern, lambda match: numbers[match[0]], text)
