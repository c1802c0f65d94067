"""Ctrl-C while modules are being imported, at the start or later: quiet, and 130 as the shell expects."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]

STRUCK = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.{usual})  # whatever a background shell made of it
class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == "{at}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Strike())
sys.argv = ["baseload", *{arguments}]
from {module} import run
run()
"""


def struck(
    at: str, *arguments: str, module: str = "baseload.cli.__main__", usual: str = "default_int_handler"
) -> subprocess.CompletedProcess[str]:
    """The command, struck at the import of the module `at`."""
    code = STRUCK.format(module=module, at=at, arguments=arguments, usual=usual)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_ctrl_c_during_the_imports_is_quiet() -> None:
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["baseload"]
    module, function = entry.split(":")
    assert function == "run"
    done = struck("baseload.cli.screen", "version", module=module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_during_a_commands_own_imports_is_quiet() -> None:
    done = struck("jaxlib.xla_client", "models", "warm")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_elsewhere_it_is_an_interrupt_like_any_other() -> None:
    code = "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from baseload.cli import main, __main__ as entry\n"
    code += "main.run = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
    code += "try:\n    entry.run()\nexcept KeyboardInterrupt:\n    print('caught')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "caught\n", "")


def test_where_ctrl_c_is_ignored_it_stays_so() -> None:
    done = struck("baseload.cli.screen", "version", usual="SIG_IGN")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("baseload ")
