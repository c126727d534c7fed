"""What holds a parser process, shown by attacks from inside, and that no document has a say in another."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.common import landlock
from services.researcher.documents import Unreadable
from services.researcher.extract.parsers import ROOT, Parsers
from services.researcher.extract.reading import document, documents
from services.researcher.watch import Watch
from tests import attacked as attacks
from tests.attacked import ATTACK, alone, at_work, do, do_all, ended, gone, idle

attacked = attacks.attacked  # a fixture


@pytest.fixture(scope="module")
def shared() -> Iterator[Parsers]:
    """For documents that leave nothing behind, as each has a process of its own."""
    parsers = Parsers(ATTACK)
    yield parsers
    parsers.close()


def test_the_attack_works_where_nothing_holds_it() -> None:
    assert ATTACKS["read a file"] and Path("/etc/passwd").read_text(), "what is denied below can be done here"
    os.close(os.open("/", os.O_RDONLY))
    subprocess.run(["/bin/true"], check=True)


ATTACKS = {
    "read a file": "answer = open('/etc/passwd').read()",
    "list a folder": "answer = os.listdir('/')",
    "look at a file": "answer = os.stat('/etc/passwd')",
    "write a file": "answer = open('/tmp/parser-was-here', 'w')",
    "connect": "answer = socket.create_connection(('127.0.0.1', 9))",
    "a socket": "answer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "a pair of sockets": "answer = socket.socketpair()",
    "fork": "answer = os.fork()",
    "run a program": "answer = subprocess.run(['/bin/true'])",
    "become a program": "answer = os.execv('/bin/true', ['true'])",
    "kill the service": "answer = os.kill(os.getppid(), 9)",
    "look into the service": "answer = open(f'/proc/{os.getppid()}/environ').read()",
    "raise its limits": "answer = resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "run new code": "answer = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
    "hide in memory": "answer = os.memfd_create('x')",
    "another user": "answer = os.setuid(1)",
    "a pipe": "answer = os.pipe()",
}


@pytest.mark.parametrize("what", ATTACKS)
def test_a_parser_cannot(shared: Parsers, what: str) -> None:
    assert do(shared, ATTACKS[what]) in ("PermissionError", "OSError", "ValueError")


def test_a_parser_has_nothing_of_the_service(attacked: Parsers) -> None:
    assert do(attacked, "answer = dict(os.environ)") in ("{}", "{'LC_CTYPE': 'C.UTF-8'}")
    assert (
        do(
            attacked,
            "answer = []\nfor fd in range(3, 99):\n  try: answer.append(os.lseek(fd, 0, 1))\n  except OSError: pass",
        )
        == "[]"
    )
    assert idle(attacked)
    watch = Watch(60)
    work = threading.Thread(target=lambda: ended(attacked, lambda: do_all(attacked, b"time.sleep(1000)", watch)))
    work.start()
    pid = at_work(attacked)
    try:
        (origin,) = attacked.pids
        for each in (pid, origin):
            assert Path(f"/proc/{each}/environ").read_bytes() == b""
            assert Path(f"/proc/{each}/cwd").resolve() == Path("/")
        assert sorted(each.name for each in Path(f"/proc/{pid}/fd").iterdir()) == ["0", "1", "2"]
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    finally:
        watch.cancel()
        work.join()


@pytest.mark.skipif(not landlock.abi(), reason="a kernel without Landlock")
@pytest.mark.parametrize(
    "away", ["seccomp.install_computing = lambda: None", "landlock.build = lambda *a, **k: 9; landlock.restrict = id"]
)
def test_each_lock_alone_keeps_files_closed(away: str) -> None:
    """With the limits and one layer taken away, the other holds."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from services.researcher.extract import sandbox\n"
        "from services.common import landlock, seccomp; sandbox.resource.setrlimit = lambda *_: None\n"
        f"{away}\nprint(sandbox.enter())\n"
        "try: open('/etc/passwd')\nexcept OSError as error: print(type(error).__name__)"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code, ROOT], capture_output=True, text=True, env={}, check=False)
    assert run.stdout.split() == ["[]", "PermissionError"], run.stderr


WITHOUT = """
import sys, errno; sys.path.insert(0, sys.argv[1])
from services.common import landlock, seccomp
landlock.abi = lambda: 0
def missing(): raise OSError(errno.ENOSYS, "")
seccomp.install_computing = missing
from services.researcher.extract.worker import main; main()
"""


def test_where_the_kernel_has_no_locks_it_is_said_once_and_documents_are_read(caplog: pytest.LogCaptureFixture) -> None:
    parsers = Parsers(WITHOUT)
    with caplog.at_level(logging.WARNING):
        for number in range(2):
            assert alone(parsers, f"<p>words {number}") == f"words {number}"
            os.kill(parsers.pids[0], signal.SIGKILL)  # another starts, and finds the same
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "Landlock" in said[0] and "seccomp" in said[1], said
    parsers.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs all of these tests as one")
def test_an_ordinary_user_is_held_as_well() -> None:
    # What is imported is imported first: the interpreter may lie where that user cannot read.
    drop = "worker.members.prepare(); os.setgroups([]); os.setgid(65534); os.setuid(65534); worker.main(attack)"
    parsers = Parsers(ATTACK.replace("worker.main(attack)", drop))
    for what in ("read a file", "a socket", "fork", "kill the service"):
        assert do(parsers, ATTACKS[what]) in ("PermissionError", "OSError")
    assert int(do(parsers, "answer = os.getpid()")) != parsers.pids[0]
    parsers.close()


# From now on the parser answers every document with a forged text.
TAKE_OVER = """
def forge(read, head, data):
    worker._tell(parts.Part("", "forged"))
    worker._send({"kind": "end"})
worker._answer = forge
"""


def test_no_document_has_a_say_in_another(attacked: Parsers) -> None:
    do(attacked, TAKE_OVER)
    assert do(attacked, "answer = 1") == "1"
    for number in range(3):
        assert document("a.html", "", f"answer = {number}".encode(), attacked, Watch(60)).text == str(number)
        assert alone(attacked, f"{TAKE_OVER}# {number}") == "None", "nor in one like it"


def test_each_document_has_a_process_of_its_own_that_ends_with_it(attacked: Parsers) -> None:
    ids = {int(alone(attacked, f"answer = os.getpid()  # {number}")) for number in range(5)}
    ids |= {int(do(attacked, "answer = os.getpid()")) for _ in range(5)}
    assert len(ids) == 10 and all(gone(pid) for pid in ids)
    (origin,) = attacked.pids
    attacked.close()
    assert attacked.pids == [] and not Path(f"/proc/{origin}").exists()
    assert document("a.html", "", b"answer = 1", attacked, Watch(60)).text == "1", "after a close too"
    assert attacked.pids == [], "and nothing is left behind"


LIES: list[Callable[[], str]] = [
    lambda: "worker._send({'kind': 'part', 'member': '', 'title': '', 'headings': [[0, 9, 1]], 'places': []}, b'abc')",
    lambda: (
        "worker._send({'kind': 'part', 'member': '', 'title': '', 'headings': [], 'places': [[9, 0, '', 0, '']]}, b'')"
    ),
    lambda: "worker._send({'kind': 'part', 'member': '', 'title': '', 'headings': 7, 'places': []}, b'abc')",
    lambda: "worker._send({'kind': 'part', 'member': '', 'title': '', 'headings': [], 'places': []}, b'\\xff')",
    lambda: "worker._send({'kind': 'nonsense', 'member': ''})",
]


@pytest.mark.parametrize("lie", range(len(LIES)))
def test_answers_that_do_not_hold_together_are_refused(attacked: Parsers, lie: int) -> None:
    found = list(documents("a.html", LIES[lie]().encode(), attacked, Watch(60)))
    assert len(found) == 1 and isinstance(found[0][1], Unreadable) and "no answer" in str(found[0][1])
    assert do(attacked, "answer = 1") == "1"
