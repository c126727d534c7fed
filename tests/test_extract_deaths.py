"""What becomes of a document whose parser fails, is killed, hangs or stays; and of what parsers are forked from."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.researcher.documents import Outline, Text, Unreadable
from services.researcher.extract import parsers as module
from services.researcher.extract.kept import Kept, key_of
from services.researcher.extract.parsers import ROOT, Parsers
from services.researcher.extract.reading import document, documents
from services.researcher.watch import Cancelled, OutOfTime, Watch
from tests import attacked as attacks
from tests.attacked import ATTACK, alone, at_work, children, do, do_all, ended, gone, idle, usual

attacked = attacks.attacked  # a fixture


def test_an_interpreter_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unreadable, match="cannot be started"):
        document("a.html", "", b"<p>", Parsers(), Watch(60))


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
    assert watch.elapsed() < 20 and idle(attacked)
    with pytest.raises(OutOfTime):
        list(documents("a.html", b"time.sleep(1000)", attacked, Watch(0.5)))
    assert idle(attacked)


def test_what_parsers_are_forked_from_may_be_killed_between_documents() -> None:
    parsers = Parsers()
    for number in range(3):
        assert document("a.html", "", f"<p>{number}".encode(), parsers, Watch(30)).text == str(number)
        (pid,) = parsers.pids
        os.kill(pid, signal.SIGKILL)
    parsers.close()
    assert not Path(f"/proc/{pid}").exists(), "no zombie stays"


def test_what_parsers_are_forked_from_may_be_killed_in_the_middle(attacked: Parsers) -> None:
    """Once is not noticed; if it happens again the document is a gap, and one that may be tried again."""
    found: list[tuple[str, Text | Unreadable]] = []
    reading = threading.Thread(target=lambda: found.extend(do_all(attacked, b"time.sleep(1000)", Watch(60))))
    reading.start()
    for _ in range(2):
        pid = at_work(attacked)
        os.kill(attacked.pids[0], signal.SIGKILL)
        assert gone(pid), "a parser does not outlive what it was forked from"
    reading.join(60)
    ((_, gap),) = found
    assert isinstance(gap, Unreadable) and "from outside" in str(gap) and not gap.lasting
    assert do(attacked, "answer = 1") == "1"


def test_a_parser_that_is_killed_is_a_gap_and_the_next_document_is_read(attacked: Parsers) -> None:
    found: list[tuple[str, Text | Unreadable]] = []
    reading = threading.Thread(target=lambda: found.extend(do_all(attacked, b"time.sleep(1000)", Watch(60))))
    reading.start()
    os.kill(at_work(attacked), signal.SIGKILL)
    reading.join(60)
    assert isinstance(found[0][1], Unreadable)
    assert do(attacked, "answer = 1") == "1"


def test_after_a_break_in_parsers_are_forked_from_another_process(attacked: Parsers) -> None:
    """All that are forked from one are laid out alike in memory: a second try must not profit from the first."""
    assert do(attacked, "answer = 1") == "1"
    (first,) = attacked.pids
    assert do(attacked, "answer = 2") == "2" and attacked.pids == [first]
    do_all(attacked, b"ctypes.string_at(0)", Watch(60))
    assert do(attacked, "answer = 3") == "3" and attacked.pids != [first] and gone(first)


SERVICE = """
import sys; sys.path.insert(0, sys.argv[1])
from services.researcher.extract.parsers import Parsers
from services.researcher.watch import Watch
parsers = Parsers(sys.argv[2])
for head, _ in parsers.parse({"name": "a.html", "wanted": None, "after": 0}, b"answer = 1", Watch(60)): pass
print(*parsers.pids, flush=True)
for _ in parsers.parse({"name": "a.html", "wanted": None, "after": 0}, b"time.sleep(1000)", Watch(600)): pass
"""


def test_all_end_with_a_service_that_is_killed() -> None:
    service = subprocess.Popen([sys.executable, "-c", SERVICE, ROOT, ATTACK], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    origin = int(service.stdout.readline())
    end = time.monotonic() + 20
    listed = Path(f"/proc/{origin}/task/{origin}/children")
    while not (found := listed.read_text().split()) and time.monotonic() < end:
        time.sleep(0.01)
    service.kill()
    service.communicate()
    assert found and gone(int(found[0])) and gone(origin)


RESTING = """
import sys; sys.path.insert(0, sys.argv[1])
from services.researcher.extract import forking, worker
forking.IDLE_S = 0.05
worker.main()
"""


@pytest.mark.parametrize("how", [usual, alone])
def test_without_work_all_end_and_the_next_document_does_not_notice(how: Callable[[Parsers, str], str]) -> None:
    parsers = Parsers(RESTING)
    for number in range(3):
        assert how(parsers, f"<p>{number}") == str(number)
        for pid in parsers.pids:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    parsers.close()


def test_two_parsers_serve_many_threads() -> None:
    parsers = Parsers()
    texts: list[str] = []
    ids: set[int] = set()
    most: list[int] = []

    def read(number: int) -> None:
        for turn in range(10):
            text = usual(parsers, f"<p>{number} {turn}")
            assert text == f"{number} {turn}"
            texts.append(text)
            ids.update(parsers.pids)
            most.append(len(children(parsers)))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One that has answered may not have ended yet when the next begins.
    assert len(texts) == 80 and len(ids) == 1 and 0 < max(most) <= 2 * module.PROCESSES
    parsers.close()
    assert parsers.pids == []


def started(script: str) -> str:
    """A parser that says it is ready, and then does what it likes."""
    return f"""
import os, struct, sys, time, json
sys.path.insert(0, sys.argv[1])
from services.researcher.extract import forking
def send(head, body=b""):
    text = json.dumps(head).encode()
    os.write(1, struct.pack(">IQ", len(text), len(body)) + text + body)
def answer():
    send({{"missing": []}})
    {script}
forking.serve(answer)
"""


DEAF = started("time.sleep(1000)")


LARGE = b"x" * 2_000_000  # more than a pipe holds


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


def test_a_parser_that_closes_its_output_and_stays_is_replaced(attacked: Parsers) -> None:
    end = "worker._send({'kind': 'end'}); os.close(1); time.sleep(1000)"
    assert list(documents("a.html", end.encode(), attacked, Watch(60))) == []
    texts: list[str] = []
    work = threading.Thread(target=lambda: texts.append(do(attacked, "answer = 1")), daemon=True)
    work.start()
    work.join(20)
    assert texts == ["1"]


def test_a_parser_that_ends_as_soon_as_it_is_ready_is_not_started_for_ever() -> None:
    for script in ("sys.exit()", "os.close(0); os.close(1)"):
        parsers = Parsers(started(script))
        with pytest.raises(Unreadable):
            document("a.html", "", LARGE, parsers, Watch(60))
        parsers.close()


def test_the_same_bytes_are_not_parsed_again(attacked: Parsers) -> None:
    page = "answer = os.getpid()"
    first = alone(attacked, page)
    assert alone(attacked, page) == first
    other = {document(name, "", page.encode(), attacked, Watch(60)).text for name in ("b.html", "a.pdf")}
    other |= {alone(attacked, f"{page} "), usual(attacked, page)}
    assert first not in other and len(other) == 4, "another name or other bytes, and what is read for the index"


def test_what_is_kept_is_bounded() -> None:
    kept = Kept()
    texts = [Text("x" * 900_000, str(number), Outline([]), ()) for number in range(6)]
    for number, text in enumerate(texts):
        kept.put(key_of(str(number), "", b""), text)
        assert kept.get(key_of("0", "", b"")) is texts[0], "what is wanted stays"
    assert [kept.get(key_of(str(number), "", b"")) is not None for number in range(6)] == [
        True,
        *[False] * 2,
        *[True] * 3,
    ]
    kept.put(key_of("large", "", b""), Text("x" * 5_000_000, "", Outline([]), ()))
    assert kept.get(key_of("large", "", b"")) is None and kept.get(key_of("5", "", b"")) is texts[5]


def test_what_is_not_read_to_its_end_is_read_again(attacked: Parsers) -> None:
    cut = "answer = os.getpid(); worker._tell(parts.Part('', answer)); worker._tell(parts.Trouble('', 'late', True))"
    cut = cut.replace("parts.Part('', answer)", "parts.Part('', str(answer))")
    assert alone(attacked, cut) != alone(attacked, cut)


def test_a_process_that_stays_after_its_answer_is_ended(attacked: Parsers) -> None:
    do_all(attacked, b"worker._send({'kind': 'end'}); time.sleep(1000)", Watch(60))
    assert idle(attacked)


def test_a_document_costs_little_more_than_its_parsing() -> None:
    parsers = Parsers()
    alone(parsers, "<p>first")
    origin = Path(f"/proc/{parsers.pids[0]}/stat")

    def spent() -> int:
        return sum(map(int, origin.read_text().rpartition(")")[2].split()[11:15]))  # clock ticks, with its children

    before = spent()
    for number in range(40):
        alone(parsers, f"<p>{number}")
    assert idle(parsers)
    each = (spent() - before) / os.sysconf("SC_CLK_TCK") / 40
    parsers.close()
    assert each < 0.05, "CPU seconds; a parser that starts from nothing takes 0.2 and more"


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
