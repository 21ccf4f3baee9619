"""The package's metadata, all of it read from settings.ini (where nbdev reads its own settings too)."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
readme = here / "README.md"


def requirements(*names):
    """Those of settings.ini by the names before `_requirements`."""
    return [each for name in names for each in cfg[f"{name}_requirements"].split()]


extras = {
    "demo": [],  # a plain install is enough
    "workflow": requirements("workflow"),
    "slurm": requirements("workflow", "slurm"),
    "metric": requirements("metric"),
    "export": requirements("export"),
    "docs": requirements("nbdev", "docs", "metric"),
    "test": requirements("nbdev", "docs", "metric", "export", "workflow", "test"),
    "dev": requirements("nbdev", "docs", "metric", "export", "workflow", "test", "slurm"),
}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    classifiers=[f"Programming Language :: Python :: {version}" for version in cfg["pythons"].split()],
    packages=find_packages(include=["acl_paper", "acl_paper.*"]),
    package_data={"acl_paper": ["*.mplstyle", "published/*"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
        "papermill.engine": ["acl = acl_paper.workflow:CellEngine"],
    },
    zip_safe=False,
)
