"""The page "Results explorer": published and reproduced accuracies as charts to play with and as tables.

Reads figures/*/results.csv, which nbs/results.ipynb writes. Only FSDnoisy18k, the data set of the paper, is drawn beside the published
values; any other one has a chart and an axis of its own.
"""
import re
from pathlib import Path

import pandas as pd
from bokeh.embed import components
from bokeh.layouts import column
from bokeh.models import Band, ColumnDataSource, CustomJS, HoverTool, RadioButtonGroup, Range1d, Whisker
from bokeh.plotting import figure

from acl_paper.evaluation import wilson
from acl_paper.results import COMPARABLE, PAPER_TEST_CLIPS, published_supervised

PUBLISHED, OURS = "#de8f05", "#0173b2"
SUBSETS = ["clean", "all", "noisy", "noisy_small"]
SHARES = ["published", "low", "high", "mean", "sd", "min", "max", "wilson_low", "wilson_high"]
INTRODUCTION = f"""# Results explorer

> The paper's supervised table, value by value: published, reproduced, and how far either could be off.

Pick a subset; point at a mark for its numbers. $\\alpha$ is the weight of the cross-entropy: 1 is the baseline, smaller values give the
angular loss more say. The shaded band says how far an accuracy measured on {PAPER_TEST_CLIPS} test clips could be from the same model's accuracy on
all such clips (95 % Wilson interval): two published values less than about that apart may differ by the choice of clips alone.
The tables below each chart hold the same numbers and need no JavaScript.
"""
NOTHING_YET = """
:::{note}
There are no reproduced values here yet: the chart and the table show what the paper published. `make reproduce` trains the cells of the
table, the notebook [results](results.ipynb) collects them, and the next build of this page shows them beside the published ones.
:::
"""
OTHER_DATA = """
:::{warning}
These runs are on DATASET. Their accuracies cannot be compared with the published ones, which are on FSDnoisy18k. A mark is the mean of the
seeds of a cell; its bar reaches from the lowest seed to the highest. The lines lead the eye: nothing was run between the marks.
:::
"""


def load(root: Path) -> list[pd.DataFrame]:
    "Results by data set: first FSDnoisy18k, with the published values in every row; then others, with the cells that were run."
    tables = [pd.read_csv(path) for path in sorted((root / "figures").glob("*/results.csv"))]
    comparable = [table for table in tables if table.dataset.iloc[0] == COMPARABLE]
    if not comparable:
        published = published_supervised().reset_index().melt("alpha", var_name="subset", value_name="published")
        comparable = [published.assign(n_seeds=0, dataset=COMPARABLE, synthetic=False)]
    for table in comparable:
        intervals = [wilson(round(share * PAPER_TEST_CLIPS), PAPER_TEST_CLIPS) for share in table.published]
        table["low"], table["high"] = [each.low for each in intervals], [each.high for each in intervals]
    others = [table[table.n_seeds > 0].drop(columns="published") for table in tables if table.dataset.iloc[0] != COMPARABLE]
    return comparable + [table for table in others if len(table)]


def subsets_of(table: pd.DataFrame) -> list[str]:
    "The subsets of a table, the paper's first."
    return sorted(table.subset.unique(), key=lambda name: SUBSETS.index(name) if name in SUBSETS else len(SUBSETS))


def chart(table: pd.DataFrame):
    "Accuracy (%) against alpha of one subset at a time."
    percent = table.reindex(columns=["subset", "alpha", "n_seeds", *SHARES]).sort_values("alpha")
    percent[SHARES] = percent[SHARES].astype(float) * 100
    plot = figure(height=380, sizing_mode="stretch_width", tools="pan,box_zoom,reset,save", toolbar_location="above", x_range=Range1d(-0.03, 1.05),
                  x_axis_label="α, the weight of the cross-entropy", y_axis_label=f"clip accuracy (%) on {table.dataset.iloc[0]}")
    plot.toolbar.logo = None
    plot.xaxis.ticker = [i / 10 for i in range(11)]
    subsets = subsets_of(table)
    shown, ranges = [], []
    for subset in subsets:
        rows = percent[percent.subset == subset]
        shown.append(draw_published(plot, rows.dropna(subset="published")) + draw_ours(plot, rows[rows.n_seeds > 0]))
        values = rows[["low", "high", "min", "max"]].stack()
        ranges.append([values.min() - 2, values.max() + 2])
    for item in sum(shown[1:], []): item.visible = False
    plot.y_range = Range1d(*ranges[0])
    plot.legend.border_line_color, plot.legend.location = None, "center"
    plot.add_layout(plot.legend[0], "below")
    if len(subsets) == 1: return plot
    buttons = RadioButtonGroup(labels=subsets, active=0, sizing_mode="stretch_width", name="subset")
    buttons.js_on_change("active", CustomJS(args={"shown": shown, "ranges": ranges, "y": plot.y_range}, code="""
        shown.forEach((items, i) => items.forEach(item => item.visible = i == this.active));
        [y.start, y.end] = ranges[this.active]"""))
    return column(buttons, plot, sizing_mode="stretch_width")


def draw_published(plot, rows: pd.DataFrame) -> list:
    "The published values of a subset and the band of their intervals; nothing where there are none."
    if rows.empty: return []
    source = ColumnDataSource(rows.to_dict("list"))
    band = Band(base="alpha", lower="low", upper="high", source=source, fill_color=PUBLISHED, fill_alpha=0.12, line_width=0)
    plot.add_layout(band)
    line = plot.line("alpha", "published", source=source, color=PUBLISHED, line_width=2, legend_label="published, one run")
    dots = plot.scatter("alpha", "published", source=source, color=PUBLISHED, size=8, legend_label="published, one run")
    plot.add_tools(HoverTool(renderers=[dots], tooltips=[("published", "@published{0.0} %"), ("α", "@alpha"), ("interval of the clips", "@low{0.0} to @high{0.0} %")]))
    return [band, line, dots]


def draw_ours(plot, rows: pd.DataFrame) -> list:
    "The means over seeds of a subset, from the smallest to the largest; nothing where no cell was run."
    if rows.empty: return []
    source = ColumnDataSource(rows.to_dict("list"))
    spread = Whisker(base="alpha", lower="min", upper="max", source=source, line_color=OURS, line_width=1.5)
    plot.add_layout(spread)
    line = plot.line("alpha", "mean", source=source, color=OURS, line_width=2, legend_label="here, mean of the seeds")
    marks = plot.scatter("alpha", "mean", source=source, color=OURS, marker="square", size=8, legend_label="here, mean of the seeds")
    plot.add_tools(HoverTool(renderers=[marks], tooltips=[("here", "@mean{0.0} ± @sd{0.0} %"), ("α", "@alpha"), ("seeds", "@n_seeds, from @min{0.0} to @max{0.0} %"),
                                                          ("interval of the clips", "@wilson_low{0.0} to @wilson_high{0.0} %")]))
    return [spread, line, marks]


def tables(table: pd.DataFrame) -> str:
    "A Markdown table per subset, in per cent."
    text = []
    for subset in subsets_of(table):
        rows = table[table.subset == subset].sort_values("alpha")
        columns = {"α": rows.alpha.map("{:g}".format)}
        if "published" in rows:
            columns |= {"published": rows.published.map(share), "interval of the clips": rows.apply(lambda r: interval(r.low, r.high), axis=1)}
        if (rows.n_seeds > 0).any():
            columns |= {"here, mean ± sd": rows.apply(lambda r: f"{share(r['mean'])} ± {share(r.sd)}" if r.n_seeds > 1 else share(r["mean"]), axis=1),
                        "seeds": rows.n_seeds, "from … to": rows.apply(lambda r: interval(r["min"], r["max"]), axis=1)}
            if "published" not in rows: columns["interval of the clips"] = rows.apply(lambda r: interval(r.wilson_low, r.wilson_high), axis=1)
            elif "verdict" in rows: columns["verdict"] = rows.verdict.fillna("–")
        text.append(f"### Subset `{subset}`\n\n" + pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True, stralign="right"))
    return "\n\n".join(text)


def share(value) -> str: return "–" if pd.isna(value) else f"{100 * value:.1f}"


def interval(low, high) -> str: return "–" if pd.isna(low) else f"{100 * low:.1f} … {100 * high:.1f}"


def page(root: Path) -> str:
    "The page as MyST Markdown."
    text = [INTRODUCTION]
    for table in load(root):
        dataset = table.dataset.iloc[0]
        if not (table.n_seeds > 0).any(): heading, note = f"Published, on {dataset}", NOTHING_YET
        elif dataset == COMPARABLE: heading, note = f"On {dataset}", ""
        else:
            name = dataset + (", a synthetic data set" if table.synthetic.any() else "")
            heading, note = f"On {name}", OTHER_DATA.replace("DATASET", name)
        script, markup = components(chart(table), wrap_script=False)
        identity = stable_ids(script, markup, f"{dataset}-")
        script, markup = identity(script), identity(markup)
        text += [f"## {heading}", note,
                 "```{raw} html\n<div class=\"chart\">" + markup + "</div>\n<noscript>The chart needs JavaScript; the tables below do not.</noscript>\n"
                 "<script>addEventListener(\"load\", () => {\n" + script + "\n})</script>\n```",
                 "Accuracies in per cent.\n", tables(table)]
    scripts = "```{raw} html\n" + "".join(f'<script defer src="_static/{s}.min.js"></script>\n' for s in ("bokeh", "bokeh-widgets")) + "```"
    return "\n\n".join([*text, scripts]) + "\n"


def stable_ids(script: str, markup: str, prefix: str):
    "Bokeh draws new identifiers for each document; numbers in order of appearance make two builds the same."
    pattern = r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\bp\d{4,}\b"
    numbers = {identity: f"{prefix}{number}" for number, identity in enumerate(dict.fromkeys(re.findall(pattern, script + markup)))}
    return lambda text: re.sub(pattern, lambda match: numbers[match[0]], text)
