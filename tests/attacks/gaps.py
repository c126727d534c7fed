"""What is known to get out, where, and why. What is not named here must be contained everywhere.

The list may say too much on some machine, never too little: an attack that is named here and contained fails no test.
"""

from dataclasses import dataclass

from tests.attacks.settings import Setting


@dataclass(frozen=True, slots=True)
class Gap:
    """Attacks that get out for one reason."""

    attacks: tuple[str, ...]
    reason: str
    tiers: tuple[str, ...] = ("strong", "standard")
    same_user: bool = False  # only where commands run as the service's own user


GAPS = (
    Gap(
        ("read_stat", "read_stat_by_symlink", "read_existence"),
        "Landlock does not cover stat(2): whether a file exists, its size, mode and times can be seen.",
        tiers=("standard",),
    ),
    Gap(
        (
            "read_own_by_mode",
            "write_chmod",
            "write_chmod_by_link",
            "write_fchmodat2",
            "write_chown",
            "write_utime",
            "write_utime_by_descriptor",
            "touch_inputs",
        ),
        "Landlock does not cover chmod(2), chown(2) and utime(2): the files of one's own user can be changed so.",
        tiers=("standard",),
        same_user=True,
    ),
    Gap(
        ("work_lock",),
        "POSIX semaphores need /dev/shm, which is closed: Python's multiprocessing.Lock fails.",
        tiers=("standard",),
    ),
    Gap(
        ("memory_socket_buffers", "memory_pipes"),
        "What waits in sockets and pipes is the kernel's memory and no process's: only a control group counts it.",
    ),
)


def gap(attack: str, setting: Setting, tier: str) -> Gap | None:
    """Returns why an attack may get out, None when it must be contained."""
    for each in GAPS:
        if attack in each.attacks and tier in each.tiers and not (each.same_user and setting.root):
            return each
    return None
