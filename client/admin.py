"""`conductor admin`: hands over to the service's own administration, which works on the store and needs no Conductor.

The client imports nothing of the services, so it starts them as anybody would, as a program.
"""

import contextlib
import subprocess
import sys
from collections.abc import Sequence

MODULE = "services.conductor.admin"


def administer(arguments: Sequence[str]) -> int:
    """Runs one command of the administration; returns its exit code."""
    # -P: a folder named `services` where the command is typed must not be taken for ours.
    with subprocess.Popen([sys.executable, "-P", "-m", MODULE, *arguments]) as process:
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # the terminal interrupts both; the child cleans up and ends
                return process.wait()
