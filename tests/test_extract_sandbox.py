"""What holds a parser process, shown by attacks from inside; and what becomes of a document whose parser fails."""

import contextlib
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
from services.researcher.documents import Text, Unreadable
from services.researcher.extract import parsers as module
from services.researcher.extract.parsers import ROOT, Parsers
from services.researcher.extract.reading import document, documents
from services.researcher.watch import Cancelled, OutOfTime, Watch

# A parser that does what the document says, Python, and answers with what came of it.
ATTACK = """
import sys; sys.path.insert(0, sys.argv[1])
from services.researcher.extract import worker, parts
import ctypes, mmap, os, resource, signal, socket, subprocess, time
def attack(name, data, bounds):
    seen = {}
    try:
        exec(data.decode(), globals(), seen)
        answer = repr(seen.get("answer"))
    except (OSError, ValueError) as error:  # ValueError: of setrlimit
        answer = type(error).__name__
    yield parts.Part("", answer)
worker.main(attack)
"""


@pytest.fixture
def attacked() -> Iterator[Parsers]:
    parsers = Parsers(ATTACK)
    yield parsers
    parsers.close()


def do(parsers: Parsers, code: str) -> str:
    ((_, found),) = documents("a.html", code.encode(), parsers, Watch(60))
    assert isinstance(found, Text), found
    return found.text


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
def test_a_parser_cannot(attacked: Parsers, what: str) -> None:
    assert do(attacked, ATTACKS[what]) in ("PermissionError", "OSError", "ValueError")


def test_a_parser_has_nothing_of_the_service(attacked: Parsers) -> None:
    assert do(attacked, "answer = dict(os.environ)") in ("{}", "{'LC_CTYPE': 'C.UTF-8'}")
    assert (
        do(
            attacked,
            "answer = []\nfor fd in range(3, 99):\n  try: answer.append(os.lseek(fd, 0, 1))\n  except OSError: pass",
        )
        == "[]"
    )
    (pid,) = attacked.pids
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    assert sorted(each.name for each in Path(f"/proc/{pid}/fd").iterdir()) == ["0", "1", "2"]
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    assert Path(f"/proc/{pid}/cwd").resolve() == Path("/")


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
        for _ in range(2):
            assert document("a.html", "", b"<p>words", parsers, Watch(60)).text == "words"
            os.kill(parsers.pids[0], signal.SIGKILL)
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
    assert do(parsers, "answer = os.getpid()") == str(parsers.pids[0])
    parsers.close()


def test_an_interpreter_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unreadable, match="cannot be started"):
        document("a.html", "", b"<p>", Parsers(), Watch(60))


# Deaths


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("signal.setitimer(signal.ITIMER_PROF, 0.1)\nwhile True: pass", "CPU time"),
        ("x = b'x' * 2**34", "memory"),
        ("x = []\nwhile True: x.append(bytes(2**26))", "memory"),
        ("ctypes.string_at(0)", "breaks it"),
        ("os._exit(0)", "breaks it"),
        ("os.write(1, b'x' * 100)", "no answer"),
        ("os.write(1, b'\\0\\0\\0\\2' + bytes(8) + b'[]')", "no answer"),
        ("os.write(1, b'\\0\\0\\0\\2' + bytes(8) + b'{}')", "no answer"),
    ],
)
def test_a_parser_that_fails_is_named_and_replaced(attacked: Parsers, code: str, words: str) -> None:
    found = list(documents("a.html", code.encode(), attacked, Watch(100)))
    assert any(isinstance(each, Unreadable) and words in str(each) for _, each in found), found
    assert do(attacked, "answer = 1") == "1"


def test_a_parser_that_hangs_is_ended(attacked: Parsers, monkeypatch: pytest.MonkeyPatch) -> None:
    assert do(attacked, "answer = 1") == "1"
    monkeypatch.setattr(module, "SILENCE_S", 1)
    ((_, found),) = documents("a.html", b"time.sleep(1000)", attacked, Watch(60))
    assert isinstance(found, Unreadable) and "or said nothing" in str(found)


def test_time_and_cancel_end_a_parser_at_once(attacked: Parsers) -> None:
    watch = Watch(60)
    threading.Timer(1, watch.cancel).start()
    with pytest.raises(Cancelled):
        list(documents("a.html", b"time.sleep(1000)", attacked, watch))
    assert watch.elapsed() < 20 and attacked.pids == []
    with pytest.raises(OutOfTime):
        list(documents("a.html", b"time.sleep(1000)", attacked, Watch(0.5)))
    assert attacked.pids == []


def test_a_killed_parser_is_started_again() -> None:
    parsers = Parsers()
    assert document("a.html", "", b"<p>one", parsers, Watch(30)).text == "one"
    os.kill(parsers.pids[0], signal.SIGKILL)
    for _ in range(2):
        with contextlib.suppress(Unreadable):  # it may die in the middle of the first
            document("a.html", "", b"<p>two", parsers, Watch(30))
    assert document("a.html", "", b"<p>three", parsers, Watch(30)).text == "three"
    parsers.close()


RESTING = """
import sys; sys.path.insert(0, sys.argv[1])
from services.researcher.extract import worker
worker.IDLE_S = 0.05
worker.main()
"""


def usual(parsers: Parsers, page: str) -> str:
    """Reads a page as one of many, not alone."""
    ((_, found),) = documents("a.html", page.encode(), parsers, Watch(60))
    assert isinstance(found, Text), found
    return found.text


def alone(parsers: Parsers, page: str) -> str:
    """Reads a page as it is read to check a quote."""
    return document("a.html", "", page.encode(), parsers, Watch(60)).text


@pytest.mark.parametrize("how", [usual, alone])
def test_an_idle_parser_ends_and_the_next_document_does_not_notice(how: Callable[[Parsers, str], str]) -> None:
    parsers = Parsers(RESTING)
    for number in range(3):
        assert how(parsers, f"<p>{number}") == str(number)
        (pid,) = parsers.pids
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    parsers.close()


def test_two_parsers_serve_many_threads() -> None:
    parsers = Parsers()
    texts: list[str] = []
    ids: set[int] = set()

    def read(number: int) -> None:
        for turn in range(10):
            text = usual(parsers, f"<p>{number} {turn}")
            assert text == f"{number} {turn}"
            texts.append(text)
            ids.update(parsers.pids)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 80 and len(ids) <= module.PROCESSES
    parsers.close()
    assert parsers.pids == []


# A parser that was taken over


def started(script: str) -> str:
    """A parser that says it is ready, and then does what it likes."""
    return f"""
import os, struct, sys, time, json
def send(head, body=b""):
    text = json.dumps(head).encode()
    os.write(1, struct.pack(">IQ", len(text), len(body)) + text + body)
send({{"missing": []}})
{script}
"""


DEAF = started("time.sleep(1000)")
LARGE = b"x" * 2_000_000  # more than a pipe holds


def ended(parsers: Parsers, work: Callable[[], object]) -> BaseException | None:
    """What a thread that works ends with; it must end."""
    problem: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # whatever it is, it is looked at below
            problem.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    assert parsers.pids == []
    return problem[0] if problem else None


def test_a_parser_that_does_not_read_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    parsers = Parsers(DEAF)
    watch = Watch(60)
    threading.Timer(1, watch.cancel).start()
    assert isinstance(ended(parsers, lambda: list(documents("a.html", LARGE, parsers, watch))), Cancelled)
    late = ended(parsers, lambda: list(documents("a.html", LARGE, parsers, Watch(0.5))))
    assert isinstance(late, OutOfTime)
    monkeypatch.setattr(module, "SILENCE_S", 1)
    found: list[object] = []
    assert ended(parsers, lambda: found.extend(documents("a.html", LARGE, parsers, Watch(60)))) is None
    assert "took nothing in" in str(found)


def test_a_parser_that_stops_reading_after_a_document_is_ended(attacked: Parsers) -> None:
    end = "worker._send({'kind': 'end'}); time.sleep(1000)"
    assert list(documents("a.html", end.encode(), attacked, Watch(60))) == []
    watch = Watch(60)
    threading.Timer(1, watch.cancel).start()
    assert isinstance(ended(attacked, lambda: list(documents("a.html", LARGE, attacked, watch))), Cancelled)
    assert do(attacked, "answer = 1") == "1"


def test_a_parser_that_closes_its_output_and_stays_is_replaced(attacked: Parsers) -> None:
    end = "worker._send({'kind': 'end'}); os.close(1); time.sleep(1000)"
    assert list(documents("a.html", end.encode(), attacked, Watch(60))) == []
    texts: list[str] = []
    work = threading.Thread(target=lambda: texts.append(do(attacked, "answer = 1")), daemon=True)
    work.start()
    work.join(20)
    assert texts == ["1"]


def test_a_parser_that_ends_as_soon_as_it_is_ready_is_not_started_for_ever() -> None:
    parsers = Parsers(started("sys.exit()"))
    with pytest.raises(Unreadable):
        document("a.html", "", LARGE, parsers, Watch(60))


# From now on the parser answers every document with a forged text.
TAKE_OVER = """
def forge(read, head, data):
    worker._tell(parts.Part("", "forged"))
    worker._send({"kind": "end"})
worker._answer = forge
"""


def test_what_is_read_alone_cannot_be_forged_by_another_document(attacked: Parsers) -> None:
    do(attacked, TAKE_OVER)
    assert do(attacked, "answer = 1") == "forged", "the next one, as docs/security.md says"
    for number in range(3):
        assert document("a.html", "", f"answer = {number}".encode(), attacked, Watch(60)).text == str(number)
        assert document("a.html", "", TAKE_OVER.encode(), attacked, Watch(60)).text == "None", "nor by another like it"


def test_a_parser_that_read_alone_is_gone_and_the_next_waits(attacked: Parsers) -> None:
    first = document("a.html", "", b"answer = os.getpid()", attacked, Watch(60)).text
    (waiting,) = attacked.pids
    assert not Path(f"/proc/{first}").exists() and str(waiting) != first
    assert document("a.html", "", b"answer = os.getpid()", attacked, Watch(60)).text == str(waiting)
    attacked.close()
    assert attacked.pids == [] and not Path(f"/proc/{waiting}").exists()
    assert document("a.html", "", b"answer = 1", attacked, Watch(60)).text == "1", "after a close too"
    assert attacked.pids == [], "and nothing is left behind"


def test_an_answer_that_is_left_early_frees_its_parser() -> None:
    parsers = Parsers()
    for _ in range(4):
        found = documents("a.html", b"<p>words", parsers, Watch(60))
        next(found)
        found.close()  # type: ignore[attr-defined]
    assert document("a.html", "", b"<p>words", parsers, Watch(60)).text == "words"
    parsers.close()


def test_a_parser_that_does_not_start_is_named() -> None:
    parsers = Parsers("raise SystemExit(1)")
    with pytest.raises(Unreadable, match="does not start"):
        document("a.html", "", b"<p>", parsers, Watch(60))


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
