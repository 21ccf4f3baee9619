"""The page "Hard to break": what the long tests tried, how often, and what came of it.

Reads figures/robustness/tried.csv, which `make test-all` writes.
"""
from pathlib import Path

import pandas as pd

PAGE = """# Hard to break

> What was done to this code and to its files to break it, how often, and what came of it.

Files are damaged by chance, inputs are drawn at random, and work is killed at random moments. Each of these has a promise that must hold every time. What came of a
try is *right* when the promise held and the result is what it should be, *refused* when an error says what is wrong and names the file or setting, and *wrong* when
it is another result without a word, an error that names nothing, or a crash. Every kill is one try: the work was ended by SIGKILL somewhere, done again from there,
and must leave what it leaves undisturbed.

**{n:,} tries, {wrong:,} wrong**, on {date} with the seed {seed}: {versions}.

{table}

`make test` tries a part of this in a minute. `make test-all` tries it for an hour and writes the file that this page is made from,
[tried.csv](figures/robustness/tried.csv); it begins from the date as seed, or from `FUZZ_SEED`, and takes `FUZZ_ROUNDS` times as many tries as `make test`. Whatever
fails names its seed, and fails again with it: `ACL_FUZZ_SEED=... python -m pytest tests/test_fuzz.py`.
"""


def rows(tried: pd.DataFrame) -> str:
    "The table in Markdown."
    lines = ["| what | promise | tried | right | refused | wrong |", "|---|---|---:|---:|---:|---:|"]
    for row in tried.itertuples():
        promise = row.promise.replace("|", "\\|")
        lines.append(f"| {row.what} | {promise} | {row.n:,} | {row.right:,} | {row.refused:,} | {row.wrong:,} |")
    return "\n".join(lines)


def page(root: Path) -> str:
    "The page, in Markdown."
    tried = pd.read_csv(root / "figures" / "robustness" / "tried.csv")
    first = tried.iloc[0]
    return PAGE.format(n=tried.n.sum(), wrong=tried.wrong.sum(), date=first.date, seed=first.seed, versions=first.versions, table=rows(tried))
