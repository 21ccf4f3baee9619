"""Ctrl-C at every console command, from its first import on: one line, the status of a command that was stopped, and no traceback."""
import configparser
import signal
import sys

import pytest
from helpers import ROOT, run, run_acl

settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
settings.read(ROOT / "settings.ini")
COMMANDS = dict(line.split("=") for line in settings["DEFAULT"]["console_scripts"].split())

PRESS = """
import os, signal, sys

class CtrlC:
    "Presses it at the {n}th import after the command has been started."
    n = {n}
    has_begun = False

    def find_spec(self, name, *_):
        self.has_begun = self.has_begun or name.startswith("acl_paper.") and name != "acl_paper.commands"
        self.n -= self.has_begun
        if self.n == 0:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
"""


def press(name, n, *arguments, **options):
    """Start a command as the script does that pip writes, and press Ctrl-C at the nth import."""
    module, function = COMMANDS[name].split(":")
    script = f"{PRESS.format(n=n)}\nfrom {module} import {function}\nsys.argv[0] = {name!r}\nsys.exit({function}())"
    return run([sys.executable, "-c", script, *arguments], environ={"PYTHONPATH": str(ROOT)}, **options)


@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_while_a_command_is_imported(name, n, tmp_path):
    done = press(name, n, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"\n{name}: stopped.\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_where_a_library_would_catch_it(tmp_path):
    """An exception in the midst of an import may end as another one, or nowhere at all."""
    (tmp_path / "fastcore.py").write_text("import os, signal\ntry: os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException: pass\n")
    script = "import sys\nsys.path.insert(0, '.')\nfrom acl_paper.commands import acl_mini\nacl_mini()"
    done = run([sys.executable, "-c", script], cwd=tmp_path, environ={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (130, "\nacl_mini: stopped.\n")


def test_ctrl_c_is_not_for_a_command_behind_an_ampersand(tmp_path):
    """A shell lets its background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = press("acl_mini", 1, "--help", cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == 0 and "synthetic mini data set" in done.stdout and done.stderr == ""


def test_every_command_explains_itself(tmp_path):
    """By --help, through the entry point that settings.ini names."""
    for name, entry_point in COMMANDS.items():
        assert entry_point == f"acl_paper.commands:{name}"  # which is what is run here
        done = run_acl(name, "--help", cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.startswith(f"usage: {name} [-h]"), done.stderr
