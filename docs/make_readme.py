"""Make README.md from nbs/index.ipynb: python docs/make_readme.py. Code is left out, outputs stay, links are the repository's."""
import os, re
from pathlib import Path

from nbconvert import MarkdownExporter

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


def main():
    text, pictures = readme()
    for name, content in {"README.md": text.encode(), **pictures}.items():
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(content)
        os.replace(part, path)


if __name__ == "__main__": main()
