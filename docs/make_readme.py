"""Make README.md from nbs/index.ipynb: python docs/make_readme.py. Code is left out, outputs stay, links are the repository's.

The drawings of nbs/00_overview.ipynb, which the README shows too, are written to figures/overview.
"""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

from acl_paper.console import write_atomically

ROOT = Path(__file__).resolve().parents[1]


def from_the_root(text: str) -> str:
    "Links of a file in nbs/ as links of a file in the repository's root."
    def target(match):
        link = match[2]
        if re.match(r"[a-z]+:|#|nbs/", link): return match[0]
        return match[1] + (link.removeprefix("../") if link.startswith("../") else f"nbs/{link}" if re.match(r"\w+\.ipynb\b", link) else link)
    return re.sub(r"(\]\(<?|(?:src|href)=\")([^)\s\">]+)", target, text)


def readme() -> tuple[str, dict[str, bytes]]:
    "The text, and the pictures of outputs by path."
    exporter = MarkdownExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    text, resources = exporter.from_filename(str(ROOT / "nbs" / "index.ipynb"), resources={"output_files_dir": "README_files"})
    return from_the_root(text).strip() + "\n", resources.get("outputs") or {}


def drawings() -> dict[str, bytes]:
    "The vector graphics among the outputs of the overview, by path; each is named by the label of its cell."
    found = {}
    for cell in nbformat.read(ROOT / "nbs" / "00_overview.ipynb", 4).cells:
        for output in cell.get("outputs", []):
            graphic = output.get("data", {}).get("image/svg+xml")
            if graphic: found[f"figures/overview/{re.search(r'#[|] label: fig-(.+)', cell.source)[1]}.svg"] = graphic.encode()
    return found


def main():
    text, pictures = readme()
    for name, content in {"README.md": text.encode(), **pictures, **drawings()}.items():
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, content)


if __name__ == "__main__": main()
