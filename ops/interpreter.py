"""The Python that runs the programs of stages: one that commands of the Terminal can reach.

As an ordinary user that is the Python that runs this. Started as root, the Terminal gives each command a user of its
own, who may not enter, say, root's home: where our Python lives there, another one of the same version takes its place,
in a small environment that lends it what is installed for ours.
"""

import os
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PLACES = ("/usr/local/bin", "/usr/bin")
TIMEOUT_S = 60


def environment(folder: Path) -> tuple[Path, Path]:
    """Returns prefix and base prefix of a Python for commands (sys.prefix, sys.base_prefix).

    Args:
        folder: where an environment is made if one is needed.
    """
    ours = Path(sys.prefix), Path(sys.base_prefix)
    if os.geteuid() or all(_open_to_others(path) for path in ours):
        return ours
    for base in _others():
        if _made(folder, base):
            return folder, base.parent.parent
    return ours  # a stage is then refused with what is missing


def _open_to_others(path: Path) -> bool:
    """Tells whether any user may enter a folder."""
    return all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents))


def _others() -> Iterator[Path]:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"  # what is compiled fits no other version
    for place in PLACES:
        python = Path(place, name)
        if python.exists() and _open_to_others(python.resolve().parent):
            yield python


def _made(folder: Path, base: Path) -> bool:
    """Makes an environment of another Python that finds what is installed for ours."""
    made = subprocess.run(
        [base, "-m", "venv", "--without-pip", folder], capture_output=True, timeout=TIMEOUT_S, check=False
    )
    if made.returncode:
        return False
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    ours = sysconfig.get_paths()["purelib"]
    # A line that begins with `import` is run at start: so also what is installed editable is found.
    (packages / "lent.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    return True
