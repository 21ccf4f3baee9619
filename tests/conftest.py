"""One thread a process; the order of the files; what the tests by chance tried, in a file where `ACL_TRIED` names one (`make test-all`)."""
import csv
import datetime
import io
import os
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}  # read when torch is imported; a test that needs two threads asks for them

import pytest
from chance import SEED

from acl_paper.console import write_atomically
from acl_paper.runs import software_versions

ROWS = []
VERSIONS = ", ".join(f"{name} {version}" for name, version in software_versions().items())
COLUMNS = ("what", "seed", "n", "right", "refused", "wrong", "promise", "date", "versions")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes more than its share of `make test`; in `make test-all`")


LONG_FILES = ("workflow", "notebooks", "inference", "hard_workflow", "benchmark", "train", "selfsupervised")  # from the longest


def pytest_collection_modifyitems(items):
    """The longest files first, so that both workers of `make test` end at about the same time."""
    rank = {f"test_{name}": place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture
def tried(request):
    """`tried("audio files", right=200, refused=400, wrong=0)` is a line at the end and a row of the file; the promise is the first line of the test's text."""
    def note(what, *, right=0, refused=0, wrong=0):
        promise = request.function.__doc__.strip().splitlines()[0]
        n, today = right + refused + wrong, datetime.date.today().isoformat()
        request.node.user_properties.append(("tried", [what, SEED, n, right, refused, wrong, promise, today, VERSIONS]))

    return note


def pytest_runtest_logreport(report):
    """Reports come from the processes of pytest-xdist too."""
    if report.when == "call":
        ROWS.extend(row for name, row in report.user_properties if name == "tried")
        if "ACL_TRIED" in os.environ:
            write_rows(Path(os.environ["ACL_TRIED"]))


def pytest_terminal_summary(terminalreporter):
    """What was tried, with its seed."""
    for what, seed, n, right, refused, wrong, *_ in ROWS:
        terminalreporter.write_line(f"{what}: seed {seed}, {n} tried, {right} right, {refused} refused, {wrong} wrong")


def write_rows(path):
    """All rows of this run so far: the file says what one run tried."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *ROWS])
    write_atomically(path, text.getvalue())
