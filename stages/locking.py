"""The exact versions of the packages a program needs, as the running interpreter has them (PEP 508, PEP 503)."""

import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

NEEDED = ("joblib", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "skops", "skrub")


def lock(names: Iterable[str] = NEEDED) -> str:
    """Returns the text of a lock file for pip: these packages and all they need, one `name==version` a line.

    Raises PackageNotFoundError when one of `names` is not installed.
    """
    found: dict[str, str] = {}
    waiting = [(name, True) for name in names]
    while waiting:
        name, wanted = waiting.pop()
        spelled = re.sub(r"[-_.]+", "-", name).lower()
        if spelled in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            if wanted:
                raise
            continue  # the one that asks for it runs here without
        found[spelled] = package.version
        asked = [Requirement(line) for line in package.requires or ()]
        waiting += [(each.name, False) for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})]
    lines = [f"{name}=={version}" for name, version in sorted(found.items())]
    head = f"# Python {platform.python_version()}: python -m pip install -r requirements.lock"
    return "\n".join([head, *lines]) + "\n"
