"""The filter of system calls: its tables agree with the headers and every jump lands inside."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common import seccomp
from tests.terminals import PYTHON

pytestmark = pytest.mark.skipif(not Path(PYTHON).exists(), reason="the attacks are written in Python")


def test_tables_agree_with_the_headers() -> None:
    """The numbers of this machine's architecture are those its headers name."""
    headers = [Path("/usr/include/asm-generic/unistd.h"), *Path("/usr/include").glob("*/asm/unistd_64.h")]
    columns = {header: int("generic" in str(header)) for header in headers if header.exists()}
    if not columns:
        pytest.skip("no kernel headers")
    for header, column in columns.items():
        named = dict(_numbers(header))
        for calls in (*(calls for calls, _ in seccomp.DENIED), seccomp.NETWORK):
            for name, numbers in calls.items():
                if name in named:
                    assert numbers[column] == named[name], name


def _numbers(header: Path) -> Iterator[tuple[str, int]]:
    for line in header.read_text().splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == "#define" and words[1].startswith("__NR") and words[2].isdigit():
            yield words[1].removeprefix("__NR3264_").removeprefix("__NR_"), int(words[2])


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("network", [False, True])
def test_every_jump_of_the_filter_lands_inside(machine: str, network: bool) -> None:
    code = list(struct.iter_unpack("=HBBI", seccomp.program(machine, network)))
    assert len(code) < 4096
    for position, (operation, yes, no, _) in enumerate(code):
        if operation & 7 == 5:
            assert position + 1 + max(yes, no) < len(code)
    assert code[-1][0] & 7 == 6


def test_other_machines_are_refused() -> None:
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program("riscv64", False)
