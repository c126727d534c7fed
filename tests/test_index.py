"""The index of a collection: only what changed is read, whoever dies when, and what is there can be searched."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

import apsw
import pytest
from conductor.v1 import researcher_pb2

from services.common.errors import Reason, Refusal
from services.researcher.documents import Document, Original, Outline, SourceKind, Text
from services.researcher.folder import FolderSource
from services.researcher.index import collection, lexical, store, update
from services.researcher.index.memory import MemoryIndex
from services.researcher.protocol import Inquiry, Limits
from services.researcher.watch import Cancelled, OutOfTime, Watch
from tests.collections_at_hand import Notebook, check, folder_source, found, opened, uris, write_corpus

INDEXER = """
import sys
from pathlib import Path
from services.researcher.index import update
from services.researcher.watch import Watch
from tests.collections_at_hand import folder_source
update.BATCH_CHARS = 20_000
with folder_source(Path(sys.argv[1]), Path(sys.argv[2])) as source:
    print("ready", flush=True)
    source.index(Watch(60), lambda told: None)
    print("done", flush=True)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    return folder


def indexer(root: Path, home: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", INDEXER, str(root), str(home)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])


# Only what changed


def test_only_what_changed_is_read_again(root: Path, tmp_path: Path) -> None:
    paths = write_corpus(root, 20)
    with folder_source(root, tmp_path / "home") as source:
        view, notes = opened(source)
        assert (view.documents, len(notes.documents), view.complete) == (20, 20, True)
        assert notes.said == ["Reading docs: 20 documents, 20 of them new or changed."]
        view.close()
        paths[3].write_text("The gearbox needs oil.")
        paths[4].unlink()
        paths[5].rename(root / "renamed.md")
        view, notes = opened(source)
        assert [each.uri for each in notes.documents] == ["docs/part0/3.md", "docs/renamed.md"]
        assert view.documents == 19
        assert [each.document.uri for each in found(view, "gearbox oil")] == ["docs/part0/3.md"]
        assert view.counts(["own1x4", "own1x3", "own1x5"]) == {"own1x4": 0, "own1x3": 0, "own1x5": 1}
        view.close()
        assert len(check(source)) == 19


def test_another_process_finds_the_index(root: Path, tmp_path: Path) -> None:
    write_corpus(root, 10)
    with folder_source(root, tmp_path / "home") as first:
        first.index(Watch(60), lambda told: None)
    with folder_source(root, tmp_path / "home") as second:
        view, notes = opened(second)
        assert not notes.documents and view.documents == 10
        view.close()


def test_a_file_touched_but_the_same_is_not_indexed_again(root: Path, tmp_path: Path) -> None:
    (path,) = write_corpus(root, 1)
    with folder_source(root, tmp_path / "home") as source:
        opened(source)[0].close()
        os.utime(path, (1, 1))  # a clock set back, too
        view, notes = opened(source)
        assert not notes.documents and view.documents == 1
        view.close()


def test_a_change_that_keeps_size_and_times_is_seen(root: Path, tmp_path: Path) -> None:
    """Two writes within one tick of the clock: the stamp of the first is that of the second."""
    path = root / "a.txt"
    with folder_source(root, tmp_path / "home") as source:
        for word in ("alpha", "bravo", "gamma", "delta"):
            path.write_text(f"The word is {word}.")
            assert uris(source, word) == ["docs/a.txt"]


def test_a_stamp_too_young_is_not_trusted(root: Path, tmp_path: Path) -> None:
    path = root / "a.txt"
    path.write_text("Pump.")
    with folder_source(root, tmp_path / "home") as source:
        young = source._origin.read("a.txt", Watch(9)).stamp
        deadline = time.monotonic() + 9
        while source._origin.read("a.txt", Watch(9)).stamp is None:
            assert time.monotonic() < deadline
        assert young is None or time.time_ns() - path.stat().st_ctime_ns > 50_000_000


def test_what_is_the_same_is_the_same_whatever_came_before(root: Path, tmp_path: Path) -> None:
    paths = write_corpus(root, 30)
    question = "word5 word70 own1x7 document"
    with folder_source(root, tmp_path / "old") as old:
        for path in paths[:10]:
            opened(old)[0].close()
            path.write_text("Something else for a while.")
        opened(old)[0].close()
        write_corpus(root, 30)
        before = uris(old, question, limit=100)
    with folder_source(root, tmp_path / "new") as new:
        after = uris(new, question, limit=100)
        assert after[0] == before[0] == "docs/part0/7.md"
        assert sorted(after) == sorted(before)


def test_an_empty_folder_and_an_empty_document(root: Path, tmp_path: Path) -> None:
    with folder_source(root, tmp_path / "home") as source:
        view, _ = opened(source)
        assert (view.documents, view.passages, found(view, "anything"), view.counts(["x"])) == (0, 0, [], {"x": 0})
        view.close()
        (root / "empty.md").write_text("")
        view, _ = opened(source)
        assert (view.documents, view.passages, view.complete) == (1, 0, True)
        view.close()


# Whoever dies when


def test_killed_at_any_instant_it_goes_on(root: Path, tmp_path: Path) -> None:
    """Six indexers are killed, each a little later; none leaves half a batch behind, and the last one ends."""
    write_corpus(root, 150)
    home = tmp_path / "home"
    for attempt in range(6):
        for number in range(attempt * 20, attempt * 20 + 10):  # some work is left for every one of them
            (root / f"part{number // 50}" / f"{number}.md").write_text(f"Own words {attempt} own9x{number}. " * 30)
        process = indexer(root, home)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.02 * attempt)  # the instant, not a condition
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    process = indexer(root, home)
    out, _ = process.communicate(timeout=60)
    assert b"done" in out
    with folder_source(root, home) as source, folder_source(root, tmp_path / "fresh") as fresh:
        assert check(source) == check(fresh)


def test_killed_between_word_index_and_catalogue(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(root, 10)

    class Died(BaseException):
        pass

    def die(*_: object) -> None:
        raise Died

    with folder_source(root, tmp_path / "home") as source:
        with monkeypatch.context() as patch:
            patch.setattr(update.Catalogue, "bury", die)
            with pytest.raises(Died):
                source.index(Watch(60), lambda told: None)
        assert len(check(source)) == 10, "what only the word index had is out of it, and the numbers are given again"


def test_two_processes_at_once(root: Path, tmp_path: Path) -> None:
    write_corpus(root, 120)
    processes = [indexer(root, tmp_path / "home") for _ in range(3)]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert out.endswith(b"done\n") and process.returncode == 0
    with folder_source(root, tmp_path / "home") as source:
        assert len(check(source)) == 120


def test_readers_see_whole_batches_while_others_write(root: Path, tmp_path: Path) -> None:
    """A reader who asks all the while finds each document that does not change every time."""
    paths = write_corpus(root, 40)
    home = tmp_path / "home"
    failures: list[str] = []
    with folder_source(root, home) as source, folder_source(root, home, rescan=0.001) as other:
        opened(source)[0].close()
        ended = threading.Event()

        def read() -> None:
            while not ended.is_set():
                snapshot = source._store.snapshot()
                there = snapshot.words.search(_terms("own1x7"), (), 5)
                if not snapshot.catalogue.passages([each.number for each in there], "docs"):
                    failures.append("the document was not there")
                snapshot.close()

        reader = threading.Thread(target=read)
        reader.start()
        for turn in range(12):
            for path in paths[20:]:
                path.write_text(f"Turn {turn}.")
            opened(other)[0].close()
        ended.set()
        reader.join()
        assert not failures
        check(source)


def test_a_reader_who_was_overtaken_looks_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it stands between catalogue and word index, another takes documents out."""
    paths = write_corpus(root, 40)
    with folder_source(root, tmp_path / "home") as source, folder_source(root, tmp_path / "home") as other:
        opened(source)[0].close()
        real = store.Reader
        turns: list[int] = []

        def overtaken(*arguments: object) -> object:
            if not turns:
                turns.append(1)
                for path in paths[:3]:
                    path.unlink()
                    opened(other)[0].close()
            return real(*arguments)  # type: ignore[arg-type]

        source._store._reader = None
        monkeypatch.setattr(store, "Reader", overtaken)
        snapshot = source._store.snapshot()
        assert snapshot.words.held == snapshot.totals.passages == 37
        snapshot.close()


def _terms(*stems: str) -> list:  # type: ignore[type-arg]
    from services.researcher.protocol import Term

    return [Term(stem, stem, 1.0, True) for stem in stems]


def test_who_waits_for_another_uses_what_is_there(root: Path, tmp_path: Path) -> None:
    paths = write_corpus(root, 5)
    with folder_source(root, tmp_path / "home") as source, folder_source(root, tmp_path / "home") as other:
        opened(source)[0].close()
        paths[0].write_text("New words.")
        with other._store.writing(Watch(60)):
            view, notes = opened(source, seconds=0.5)
        assert view.documents == 5 and not view.complete
        assert "may be behind" in notes.spent["wall_time"]
        view.close()
        assert uris(source, "new words") == ["docs/part0/0.md"]


def test_cancel_keeps_what_is_done(root: Path, tmp_path: Path) -> None:
    write_corpus(root, 30)
    with folder_source(root, tmp_path / "home") as source:
        watch = Watch(60)
        notes = Notebook()

        def read(document: Document) -> None:
            notes.documents.append(document)
            if len(notes.documents) == 10:
                watch.cancel()

        notes.read = read  # type: ignore[method-assign]
        with pytest.raises(Cancelled):
            source.open(Inquiry("", (), (), Limits(10**6, 10**9, 0)), watch, notes)
        view, after = opened(source)
        assert (len(after.documents), view.documents) == (20, 30)
        view.close()


def test_time_that_runs_out_leaves_a_view(root: Path, tmp_path: Path) -> None:
    write_corpus(root, 10)
    with folder_source(root, tmp_path / "home") as source:
        view, notes = opened(source, seconds=1e-9)
        assert not view.complete and "wall_time" in notes.spent
        view.close()
        view, _ = opened(source)
        assert view.complete and view.documents == 10
        view.close()


def test_limits_of_what_is_read_anew(root: Path, tmp_path: Path) -> None:
    paths = write_corpus(root, 10, words=20)
    with folder_source(root, tmp_path / "home") as source:
        view, notes = opened(source, limits=Limits(4, 10**9, 0))
        assert (view.documents, view.complete) == (4, False) and "max_documents" in notes.spent
        view.close()
        paths[4].write_text("x" * 10_000)
        view, notes = opened(source, limits=Limits(100, 9_000, 0))
        assert (view.documents, view.complete) == (9, False) and "max_bytes" in notes.spent
        view.close()


@pytest.mark.parametrize("cut", ["budget", "time", "cancel", "cancel at once"])
def test_a_sync_that_was_cut_short_is_not_the_whole(root: Path, tmp_path: Path, cut: str) -> None:
    """Nothing changes behind it: the next one goes on all the same."""
    write_corpus(root, 3)
    with folder_source(root, tmp_path / "home") as source:
        opened(source)[0].close()
        write_corpus(root, 12)
        _cut_short(source, cut)
        if cut != "cancel at once":  # nothing was written
            assert source._store.whole() is None
        for _ in range(2):
            view, _ = opened(source)
            assert (view.documents, view.complete) == (12, True)
            view.close()
        assert source._store.whole() is not None


def _cut_short(source: FolderSource, cut: str) -> None:
    notes = Notebook()

    def read(document: Document) -> None:
        notes.documents.append(document)
        if len(notes.documents) == 3 and cut != "budget":
            raise Cancelled if cut == "cancel" else OutOfTime

    def say(message: str) -> None:
        if cut == "cancel at once":
            raise Cancelled

    notes.read, notes.say = read, say  # type: ignore[method-assign]
    inquiry = Inquiry("", (), (), Limits(3 if cut == "budget" else 100, 10**9, 0))
    with pytest.raises(Cancelled) if cut.startswith("cancel") else nullcontext():
        view = source.open(inquiry, Watch(60), notes)
        assert not view.complete and 3 <= view.documents < 12
        view.close()


# Replicas


@pytest.mark.parametrize("by_another", ["dropped", "begun anew", "begun anew and still held"])
def test_an_index_another_took_away_is_not_an_empty_one(root: Path, tmp_path: Path, by_another: str) -> None:
    write_corpus(root, 5)
    home = tmp_path / "home"
    with folder_source(root, home) as source, folder_source(root, home) as other, ExitStack() as held:
        opened(source)[0].close()
        if by_another == "dropped":
            other.drop()
        else:
            held.enter_context(other._store.writing(Watch(9)))
            other._store.clear()
            other._store.folder.mkdir()
            update.Update(other._store).close()
        if by_another == "begun anew and still held":
            view, notes = opened(source, seconds=0.5)
            assert not view.complete and "wall_time" in notes.spent
            view.close()
        held.close()
        view, notes = opened(source)
        assert (view.documents, view.complete, notes.gaps) == (5, True, {})
        view.close()


def test_another_cut_short_is_seen(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a change on another machine gives no sign on this one."""
    write_corpus(root, 5)
    home = tmp_path / "home"
    with folder_source(root, home) as source, folder_source(root, home) as other:
        opened(source)[0].close()
        monkeypatch.setattr(source._origin, "changed", lambda: False)
        write_corpus(root, 10)
        view, _ = opened(other, limits=Limits(2, 10**9, 0))
        assert not view.complete
        view.close()
        view, _ = opened(source)
        assert (view.documents, view.complete) == (10, True)
        view.close()


def test_an_index_taken_away_behind_the_sync(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another builds it anew, and has not ended, between this one's sync and its look."""
    write_corpus(root, 10)
    home = tmp_path / "home"
    with folder_source(root, home) as source, folder_source(root, home) as other:
        real = source._store.snapshot
        turns: list[int] = []

        def late() -> store.Snapshot:
            turns.append(1)
            if len(turns) == 1:
                other.drop()
                opened(other, limits=Limits(1, 10**9, 0))[0].close()
            return real()

        monkeypatch.setattr(source._store, "snapshot", late)
        view, _ = opened(source)
        assert (view.documents, view.complete) == (10, True)
        view.close()


def test_damage_seen_by_two_is_built_anew_once(root: Path, tmp_path: Path) -> None:
    write_corpus(root, 10)
    home = tmp_path / "home"
    with folder_source(root, home) as source, folder_source(root, home) as other:
        views = [opened(each)[0] for each in (source, other)]
        for view in views:
            view._damage(lexical.Damaged("it is"))  # type: ignore[attr-defined]
            view.close()
        ids = []
        for each in (source, other, source):
            view, _ = opened(each)
            assert view.documents == 10
            view.close()
            ids.append(each._store.whole())
        assert ids[0] == ids[1] == ids[2] is not None


# What is damaged, and what is full


@pytest.mark.parametrize(
    "damage", ["catalogue", "truncated words", "garbage words", "no words", "empty words", "another version"]
)
def test_a_damaged_index_is_built_anew(root: Path, tmp_path: Path, damage: str) -> None:
    write_corpus(root, 20)
    home = tmp_path / "home"
    _indexed(root, home)
    folder = home / "index" / "docs"
    _damage(folder, damage)
    with folder_source(root, home) as source:
        view, _ = opened(source)
        assert [each.document.uri for each in found(view, "own1x7")] == ["docs/part0/7.md"]
        assert view.documents == 20
        view.close()
        assert len(check(source)) == 20


def _indexed(root: Path, home: Path) -> None:
    """Indexes until the next sync has nothing to write: whoever writes meets damage by that."""
    deadline = time.monotonic() + 20
    with folder_source(root, home, rescan=0.0001) as source:
        said = [""]
        while not said[-1].endswith(" 0 of them new or changed."):
            assert time.monotonic() < deadline
            view, notes = opened(source)
            view.close()
            said += notes.said


def test_damage_met_when_it_is_opened_is_mended_at_once(root: Path, tmp_path: Path) -> None:
    """Nothing changed, so that it is a reader who meets it."""
    write_corpus(root, 5)
    _indexed(root, tmp_path / "home")
    with folder_source(root, tmp_path / "home") as source:
        opened(source)[0].close()
        _damage(tmp_path / "home" / "index" / "docs", "empty words")
        source._store._reader = source._store._opened = None
        view, notes = opened(source)
        assert (view.documents, view.complete, notes.gaps) == (5, True, {})
        view.close()


def test_an_index_that_stays_damaged_is_a_gap(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(root, 5)
    with folder_source(root, tmp_path / "home") as source:

        def damaged() -> store.Snapshot:
            raise lexical.Damaged("it is")

        with monkeypatch.context() as patch:
            patch.setattr(source._store, "snapshot", damaged)
            view, notes = opened(source)
            assert (view.documents, view.complete) == (0, False)
            assert "cannot be opened" in notes.gaps["docs"][1]
            view.close()
        view, notes = opened(source)
        assert (view.documents, view.complete, notes.gaps) == (5, True, {})
        view.close()


def _damage(folder: Path, damage: str) -> None:
    (words,) = folder.glob("words-*")
    if damage == "catalogue":
        path = folder / "catalogue.db"
        path.write_bytes(b"\0" * path.stat().st_size)
    elif damage == "another version":
        database = apsw.Connection(str(folder / "catalogue.db"))
        database.execute("update facts set value = '99/1' where name = 'form'")
        database.close()
    elif damage == "empty words":
        for path in words.iterdir():
            if path.name != "meta.json" and not path.name.startswith("."):
                _put(path, b"")
    elif damage == "no words":
        shutil.rmtree(words)
    else:
        for path in words.iterdir():
            if path.suffix in (".idx", ".term", ".fast", ".json"):
                data = path.read_bytes()
                _put(path, data[: len(data) // 2] if damage == "truncated words" else os.urandom(len(data)))


def _put(path: Path, data: bytes) -> None:
    """Puts another file in the place of one: who has the old one mapped into memory must not meet its end (SIGBUS)."""
    other = path.with_name(f".{path.name}")
    other.write_bytes(data)
    other.replace(path)


def test_a_full_disk_is_told_and_what_was_there_is_searched(root: Path, tmp_path: Path) -> None:
    """The limit of a file's size stands for a full disk: both end a write (EFBIG, ENOSPC)."""
    write_corpus(root, 5)
    home = tmp_path / "home"
    with folder_source(root, home) as source:
        opened(source)[0].close()
    write_corpus(root, 400, words=400)
    script = FULL.replace("MOST", str(200_000))
    command = [sys.executable, "-c", script, str(root), str(home)]
    done = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[1], timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    with folder_source(root, home) as source:
        assert len(check(source)) == 400


FULL = """
import resource, signal, sys
from pathlib import Path
from services.common.errors import Reason, Refusal
from services.researcher.watch import Watch
from tests.collections_at_hand import folder_source, found, opened
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (MOST, MOST))
with folder_source(Path(sys.argv[1]), Path(sys.argv[2])) as source:
    view, notes = opened(source)
    assert not view.complete and view.documents == 5, view.documents
    assert "Make space" in notes.gaps["docs"][1], notes.gaps
    assert len(found(view, "own1x3")) == 1
    view.close()
    try:
        source.index(Watch(60), lambda told: None)
    except Refusal as refusal:
        assert refusal.error.reason == Reason.ERROR_REASON_STORE_UNAVAILABLE
    else:
        raise SystemExit("not refused")
"""


def test_statistics_stay_true_after_many_deletions(root: Path, tmp_path: Path) -> None:
    paths = write_corpus(root, 800, words=5)
    with folder_source(root, tmp_path / "home") as source:
        opened(source)[0].close()
        for path in paths[10:]:
            path.unlink()
        view, _ = opened(source)
        assert view.documents == 10
        assert view.counts(["own1x5", "own1x50"]) == {"own1x5": 1, "own1x50": 0}
        view.close()
        snapshot = source._store.snapshot()
        assert snapshot.catalogue.fact("buried") == 0, "built anew: its statistics know of no deleted passage"
        snapshot.close()
        assert len(check(source)) == 10


# Searching


def test_a_question_finds_other_forms_of_its_words(root: Path, tmp_path: Path) -> None:
    (root / "a.md").write_text("The seal was replaced. Its replacement is made of rubber; a dying motor hums.")
    (root / "b.md").write_text("A happiness of possibilities: he was using stopped pumps.")
    with folder_source(root, tmp_path / "home") as source:
        for question in ("replacing", "replaces", "REPLACE", "dies"):
            assert uris(source, question) == ["docs/a.md"], question
        for question in ("happy", "possible", "stopping", "pump"):
            assert uris(source, question) == ["docs/b.md"], question
        assert uris(source, "repl") == []
        view, _ = opened(source)
        assert view.counts(["replac", "happi", "nowher"]) == {"replac": 1, "happi": 1, "nowher": 0}
        view.close()


def test_paths_are_exact(root: Path, tmp_path: Path) -> None:
    for path in ("plant/a.md", "plant/deep/b.md", "plants/c.md", "plant.md", "x!/d.md"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"The valve of {path} is made of brass.")
    with folder_source(root, tmp_path / "home") as source:
        assert set(uris(source, "valve", "plant")) == {"docs/plant/a.md", "docs/plant/deep/b.md"}
        assert uris(source, "valve", "plant.md") == ["docs/plant.md"]
        assert uris(source, "valve", "x!") == ["docs/x!/d.md"]
        assert set(uris(source, "valve", "plant/deep", "plants")) == {"docs/plant/deep/b.md", "docs/plants/c.md"}
        assert len(set(uris(source, "valve", "plant", ""))) == 5
        view, _ = opened(source, "plant", "plant/deep")
        assert (view.documents, view.passages, view.counts(["valv", "pump"])) == (2, 2, {"valv": 2, "pump": 0})
        view.close()
        for path in ("nowhere", "../docs", "/etc", "plant/../plant", ".git", "a\0b"):
            with pytest.raises(Refusal) as refused:
                opened(source, path)
            assert refused.value.error.reason == Reason.ERROR_REASON_SOURCE_REFUSED


def test_ten_thousand_near_duplicates(root: Path, tmp_path: Path) -> None:
    """Copies do not crowd out the one that says something else."""
    for number in range(10_000):
        folder = root / f"{number % 20}"
        folder.mkdir(exist_ok=True)
        end = "" if number % 100 else f" Copy {number}."
        (folder / f"{number}.txt").write_text(f"The pump is started by opening the inlet valve.{end}")
    (root / "other.txt").write_text("The pump and its valve are made of brass by a foundry; the inlet is of steel.")
    with folder_source(root, tmp_path / "home") as source:
        view, _ = opened(source)
        answers = [each.passage.text for each in found(view, "pump inlet valve", 60)]
        view.close()
        assert "docs/other.txt" in uris(source, "pump valve foundry", limit=60)
        assert len(answers) == 60 and answers.count("The pump is started by opening the inlet valve.") <= 3


def test_a_view_stays_what_it_is(root: Path, tmp_path: Path) -> None:
    paths = write_corpus(root, 10)
    with folder_source(root, tmp_path / "home") as source:
        view, _ = opened(source)
        for path in paths:
            path.unlink()
        opened(source)[0].close()
        assert view.documents == 10
        assert [each.document.uri for each in found(view, "own1x7")] == ["docs/part0/7.md"]
        view.close()


def test_equal_scores_have_an_order(root: Path, tmp_path: Path) -> None:
    for name in "dbca":
        (root / f"{name}.txt").write_text(f"The valve is open. {name}")
    with folder_source(root, tmp_path / "home") as source:
        assert uris(source, "valve open") == [f"docs/{name}.txt" for name in "abcd"]


# The calls of a source


def test_describe_index_and_drop(root: Path, tmp_path: Path) -> None:
    paths = write_corpus(root, 3)
    (root / "binary.txt").write_bytes(b"\0\1\2")
    with folder_source(root, tmp_path / "home", include=["**/*.md", "*.txt"], configured=True) as source:
        empty = source.describe()
        assert (empty.name, empty.path, empty.documents, empty.HasField("indexed_at")) == ("docs", "docs", 0, False)
        told: list[researcher_pb2.IndexSourceResponse] = []
        source.index(Watch(60), told.append)
        last = [each.progress for each in told if each.HasField("progress")][-1]
        assert (last.documents, last.total_documents, last.indexed, last.removed) == (4, 4, 3, 0)
        assert last.bytes == sum(path.stat().st_size for path in (*paths, root / "binary.txt"))
        assert [each.gap.subject for each in told if each.HasField("gap")] == ["docs/binary.txt"]
        full = source.describe()
        assert (full.documents, full.unreadable, full.passages, full.configured) == (3, 1, 3, True)
        assert full.index_bytes > 1_000 and full.HasField("indexed_at")
        view, _ = opened(source)
        source.drop()
        assert source.describe().documents == 0
        assert len(found(view, "own1x2")) == 1, "who reads goes on"
        view.close()
        assert len(check(source)) == 3


def test_drop_does_not_wait_for_long(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(root, 3)
    monkeypatch.setattr(collection, "DROP_S", 0.2)
    refused: list[Refusal] = []
    begun, go_on = threading.Event(), threading.Event()
    with folder_source(root, tmp_path / "home") as source:

        def told(_: researcher_pb2.IndexSourceResponse) -> None:
            begun.set()
            assert go_on.wait(30)

        def drop() -> None:
            try:
                source.drop()
            except Refusal as refusal:
                refused.append(refusal)

        indexing = threading.Thread(target=source.index, args=(Watch(60), told))
        dropping = threading.Thread(target=drop)
        indexing.start()
        assert begun.wait(30)
        dropping.start()
        dropping.join(10)
        ended = not dropping.is_alive()
        go_on.set()
        indexing.join()
        dropping.join()
        assert ended and [each.error.reason for each in refused] == [Reason.ERROR_REASON_STORE_UNAVAILABLE]
        source.drop()
        assert source.describe().documents == 0


def test_what_fails_half_way_holds_no_snapshot(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(root, 3)
    with folder_source(root, tmp_path / "home") as source:
        opened(source)[0].close()
        with apsw.Connection(str(source._store.folder / "catalogue.db")) as database:
            database.execute("update facts set value = 'never' where name = 'indexed_ns'")
        database.close()
        with pytest.raises(TypeError) as problem:  # it is kept, and with it all that its frames hold
            source.describe()
        assert not _held(source) and problem

        def fail(*_: object) -> None:
            raise ValueError

        monkeypatch.setattr(source, "_tell_gaps", fail)
        with pytest.raises(ValueError) as other:
            opened(source)
        assert not _held(source) and other


def _held(source: FolderSource) -> list[str]:
    """Returns the files of the catalogue that this process has open."""
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            names.append(str(descriptor.readlink()))
    return [name for name in names if name.startswith(str(source._store.folder / "catalogue.db"))]


def test_original_reads_the_file_again(root: Path, tmp_path: Path) -> None:
    (path,) = write_corpus(root, 1)
    with folder_source(root, tmp_path / "home") as source:
        original = source.original("docs/part0/0.md", Watch(60))
        assert original.text.text == path.read_text()
        path.write_text("Changed.")
        assert source.original("docs/part0/0.md", Watch(60)).text.text == "Changed."
        for uri in ("docs/nowhere.md", "other/part0/0.md", "docs/../secret.md", "docs/", "docs", "", "docs/part0"):
            with pytest.raises(collection.Unreadable):
                source.original(uri, Watch(60))


def test_a_time_limit_of_indexing_is_told(root: Path, tmp_path: Path) -> None:
    write_corpus(root, 3)
    with folder_source(root, tmp_path / "home") as source, pytest.raises(OutOfTime):
        source.index(Watch(1e-9), lambda told: None)


def test_a_source_that_becomes_another_kind_is_indexed_anew(root: Path, tmp_path: Path) -> None:
    write_corpus(root, 3)
    for kind in (SourceKind.SOURCE_KIND_FOLDER, SourceKind.SOURCE_KIND_REPORTS):
        with folder_source(root, tmp_path / "home", kind=kind) as source:
            view, notes = opened(source)
            assert len(notes.documents) == view.documents == 3
            view.close()


def test_texts_that_are_repeated_leave_room_for_others(root: Path, tmp_path: Path) -> None:
    """Far more copies than are looked for at once, some of them gone, neither hide others nor come more than thrice."""
    copies = [root / f"copy{number:03}.md" for number in range(300)]
    for path in copies:
        path.write_text("The valve of the pump is open.")
    for number in range(5):
        (root / f"other{number}.md").write_text(f"Some pump {number} stands in the hall, and its valve is another's.")
    with folder_source(root, tmp_path / "home") as source:
        for gone in ((), copies[:40]):
            for path in gone:
                path.unlink()
            names = [uri.split("/")[1] for uri in uris(source, "valve pump open", limit=20)]
            assert sum(name.startswith("copy") for name in names) == 3
            assert sum(name.startswith("other") for name in names) == 5


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("\u0130STANBUL", "\u0130stanbul"),
        ("istanbul", "\u0130STANBUL"),
        ("\u039f\u0394\u039f\u03a3", "\u039f\u0394\u039f\u03a3"),
        ("\u0391\u03a3\u0391", "\u03b1\u03c3\u03b1"),
        ("STRASSE", "Strasse"),
        ("\u00dcBER", "\u00fcber"),
        ("\u041c\u041e\u0421\u041a\u0412\u0410", "\u043c\u043e\u0441\u043a\u0432\u0430"),
    ],
)
def test_words_are_found_in_either_case(root: Path, tmp_path: Path, said: str, asked: str) -> None:
    (root / "said.md").write_text(f"Here {said} stands, he said.")
    (root / "other.md").write_text("Nothing of that stands here.")
    with folder_source(root, tmp_path / "home") as source:
        assert uris(source, asked) == ["docs/said.md"]


# In memory


def test_memory_index() -> None:
    index = MemoryIndex()
    for number, said in enumerate(("The valve is open.", "The pump is old.", "")):
        document = Document(f"https://a/{number}", f"Page {number}", "00", len(said), 1)
        index.add(document, Text(said, "", Outline(()), ((0, len(said)),) if said else ()), Watch(60))
    text = Text("The pump is old.", "", Outline(()), ((0, 16),))
    view = index.view(lambda uri, watch: Original(text, uri))
    assert (view.documents, view.passages) == (3, 2)
    assert [each.document.uri for each in found(view, "pumps")] == ["https://a/1"]
    assert view.original("x", Watch(60)).sha256 == "x"
    assert view.counts(["valv", "page"]) == {"valv": 1, "page": 2}
    view.close()


def test_memory_index_of_nothing() -> None:
    view = MemoryIndex().view(lambda uri, watch: pytest.fail(uri))
    assert (view.documents, found(view, "pump")) == (0, [])
