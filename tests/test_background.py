"""Watched sources are up to date before anybody asks, and what keeps them so holds nobody up."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import researcher_pb2

from services.researcher import background
from services.researcher.background import Background, Gentle
from services.researcher.extract.reading import Parsers
from services.researcher.folder import Folder, FolderSource, Root
from services.researcher.freshness import Changes
from services.researcher.index.lock import alone
from services.researcher.watch import OutOfTime, Watch
from tests.collections_at_hand import check, folder_source, found, opened, write_corpus
from tests.conftest import until
from tests.researchers import events, serving, started

Request = researcher_pb2.ResearchRequest
BIG = 150  # documents of 80 KB: many batches of an index …
SMALL_BATCHES = "from services.researcher.index import update; update.BATCH_CHARS = 2 ** 20"  # … made small


class Counted(FolderSource):
    """Counts how often it was indexed, and the documents that were."""

    runs = indexed = 0

    def index(self, watch: Watch, told: Any) -> None:
        self.runs += 1
        progress = researcher_pb2.IndexProgress()

        def tell(message: researcher_pb2.IndexSourceResponse) -> None:
            progress.CopyFrom(message.progress)
            told(message)

        try:
            super().index(watch, tell)
        finally:
            self.indexed += progress.indexed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    return folder


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LOOK_S": 0.01, "QUIET_S": 0.4, "RETRY_S": 0.1}.items():
        monkeypatch.setattr(background, name, seconds)


@contextlib.contextmanager
def source_of(name: str, root: Path, home: Path) -> Iterator[Counted]:
    parsers = Parsers()
    source = Counted(name, Root(name, root), home=home, parsers=parsers, max_file_bytes=1 << 20, rescan=3600)
    try:
        yield source
    finally:
        source.close()
        parsers.close()


@contextlib.contextmanager
def watched(root: Path, home: Path) -> Iterator[Counted]:
    """Gives a source with a thread that keeps it up to date."""
    with source_of("docs", root, home) as source:
        keeper = Background(lambda: [source])
        keeper.start()
        try:
            yield source
        finally:
            keeper.close()
            assert keeper._thread is not None and not keeper._thread.is_alive()


def watching(folder: Path, *names: str) -> str:
    path = folder / "sources.toml"
    path.write_text("".join(f"[sources.{name}]\nwatch = true\n" for name in names))
    return str(path)


def inotifies() -> int:
    """Returns how many inotify instances this process holds."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += "inotify" in str(entry.readlink())
    return count


async def documents(stub: Any, name: str = "docs") -> int:
    answer = await stub.ListSources(researcher_pb2.ListSourcesRequest())
    return next((source.documents for source in answer.sources if source.name == name), -1)


def until_now(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        threading.Event().wait(0.01)


# What is watched


async def test_what_is_written_is_found_though_nobody_asked(tmp_path: Path, root: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for folder in (root, other):
        (folder / "a.md").write_text("The pump is red.")
    async with serving(tmp_path, root, other, sources=watching(tmp_path, "docs")) as stub:

        async def held(count: int) -> bool:
            return await documents(stub) == count

        await until(lambda: held(1), 20)
        (root / "new").mkdir()
        (root / "new" / "b.md").write_text("The valve is blue.")
        await until(lambda: held(2), 20)
        (root / "a.md").unlink()
        await until(lambda: held(1), 20)
        assert await documents(stub, "other") == 0, "it is not watched"


async def test_what_is_added_below_a_watched_root_is_watched_until_it_is_removed(tmp_path: Path, root: Path) -> None:
    (root / "oil").mkdir()
    (root / "oil" / "gear.md").write_text("The gearbox oil is blue.")
    before = inotifies()
    async with serving(tmp_path, root, sources=watching(tmp_path, "docs", "reports")) as stub:

        async def held(name: str) -> bool:
            return await documents(stub, name) == 1

        await until(lambda: held("docs"), 20)
        await stub.AddSource(researcher_pb2.AddSourceRequest(name="oil", path="docs/oil"))
        await until(lambda: held("oil"), 20)
        assert inotifies() == before + 2
        await stub.RemoveSource(researcher_pb2.RemoveSourceRequest(name="oil"))
        assert inotifies() == before + 1
        (root / "oil" / "more.md").write_text("More.")

        async def both() -> bool:
            return await documents(stub) == 2

        await until(both, 20)
        assert not list((tmp_path / "home" / "index").glob("oil/*")), "nobody indexes it any more"
    assert inotifies() == before


async def test_a_source_that_is_replaced_lets_go_of_its_watches(tmp_path: Path, root: Path) -> None:
    (root / "oil").mkdir()
    (root / "oil" / "gear.md").write_text("The gearbox oil is blue.")
    before = inotifies()
    async with serving(tmp_path, root) as stub:
        for exclude in ("a", "b", "c", "d"):
            await stub.AddSource(researcher_pb2.AddSourceRequest(name="oil", path="docs/oil", exclude=[exclude]))
            await events(stub.Research(Request(objective="gearbox oil", sources=["oil"])))
            assert inotifies() == before + 1
        await stub.RemoveSource(researcher_pb2.RemoveSourceRequest(name="oil"))
        assert inotifies() == before


def test_a_walk_that_outlives_its_source_watches_nothing(root: Path, tmp_path: Path) -> None:
    (root / "a.md").write_text("The pump is red.")
    before = inotifies()
    with folder_source(root, tmp_path / "home") as source:
        source.close()
        assert not source.due(0, 0), "what is closed is not indexed in the background"
        view, _ = opened(source)
        assert [each.document.uri for each in found(view, "red pump")] == ["docs/a.md"]
        view.close()
        assert inotifies() == before


# When


def test_a_burst_of_a_thousand_files_takes_few_runs(root: Path, tmp_path: Path, hurried: None) -> None:
    (root / "part0").mkdir()
    with watched(root, tmp_path / "home") as source:
        until_now(source.finished)
        before = source.runs
        for number in range(1_000):
            (root / "part0" / f"{number}.md").write_text(f"Pump {number} is red.")
            threading.Event().wait(0.002)  # a burst lasts; what did not wait for its end would run all the while
        until_now(lambda: source.describe().documents == 1_000)
        assert source.runs - before <= 4
        check(source)


def test_a_folder_that_never_is_quiet_is_indexed_all_the_same(root: Path, tmp_path: Path) -> None:
    with folder_source(root, tmp_path / "home") as source:
        opened(source)[0].close()
        (root / "a.md").write_text("A.")
        assert not source.due(3600, 3600)
        until_now(lambda: source.due(3600, 0.2))
        assert source.due(0, 3600)


def test_where_nothing_can_be_watched_it_walks_after_a_rescan_only(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Changes, "add", lambda self, folder: self.close())
    for rescan, due in ((3600.0, False), (0.0001, True)):
        with folder_source(root, tmp_path / "home", rescan=rescan) as source:
            opened(source)[0].close()
            assert source.due(0, 0) is due


def test_replicas_read_every_document_once(root: Path, tmp_path: Path, hurried: None) -> None:
    with watched(root, tmp_path / "home") as one, watched(root, tmp_path / "home") as other:
        until_now(lambda: one.finished() and other.finished())
        write_corpus(root, 300)
        until_now(lambda: one.describe().documents == 300 and not one.due(0, 0) and not other.due(0, 0))
        assert one.indexed + other.indexed == 300
        check(one)


# Nobody is held up


def test_half_of_the_time_is_rest() -> None:
    watch = Gentle(60, lambda: False)
    rested, began = 0.0, time.monotonic()
    while time.monotonic() - began < 1:
        sum(range(2_000))
        before = time.monotonic()
        watch.check()
        rested += time.monotonic() - before
    assert rested > 0.35


def test_a_question_goes_first(root: Path, tmp_path: Path, hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The background would never come to an end of its reading."""
    monkeypatch.setattr(background, "PIECE_S", 3600.0)
    (root / "a.md").write_text("The pump is red.")
    with watched(root, tmp_path / "home") as source:
        until_now(source.finished)
        real, stuck = source._folder.read, threading.Event()

        def read(key: str, watch: Watch) -> Any:
            while isinstance(watch, Gentle):
                stuck.set()
                watch.check()
            return real(key, watch)

        monkeypatch.setattr(source._folder, "read", read)
        (root / "b.md").write_text("The valve is blue.")
        assert stuck.wait(20)
        view, notes = opened(source, seconds=20)
        assert view.complete and not notes.spent
        assert [each.document.uri for each in found(view, "blue valve")] == ["docs/b.md"]
        view.close()


def test_a_document_that_takes_longer_than_a_piece_is_read(
    root: Path, tmp_path: Path, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "PIECE_S", 0.2)
    (root / "a.md").write_text("The pump is red.")
    with watched(root, tmp_path / "home") as source:
        until_now(source.finished)
        real = source._folder.read

        def read(key: str, watch: Watch) -> Any:
            began = time.monotonic()
            while time.monotonic() - began < 1:
                watch.check()
            return real(key, watch)

        monkeypatch.setattr(source._folder, "read", read)
        (root / "slow.md").write_text("The valve is blue.")
        until_now(lambda: source.describe().documents == 2)


def test_what_fails_is_told_once_and_the_others_go_on(
    root: Path, tmp_path: Path, hurried: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, background.__name__)
    away = tmp_path / "away"
    root.rename(away)
    fine = tmp_path / "fine"
    fine.mkdir()
    with watched(root, tmp_path / "home") as source, watched(fine, tmp_path / "home2") as other:
        until_now(lambda: source.runs >= 3)
        (fine / "a.md").write_text("A.")
        until_now(lambda: other.describe().documents == 1)
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(told) == 1 and "cannot be opened" in told[0]
        assert "cannot be opened" in source.describe().problem and not other.describe().problem
        (away / "b.md").write_text("B.")
        away.rename(root)
        until_now(lambda: source.describe().documents == 1)
        until_now(lambda: any("again" in record.getMessage() for record in caplog.records[1:]))
        assert not source.describe().problem


def test_a_source_that_is_being_removed_is_left_alone(
    root: Path, tmp_path: Path, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "PIECE_S", 3600.0)
    (root / "a.md").write_text("The pump is red.")
    (tmp_path / "fine").mkdir()
    with source_of("docs", root, tmp_path) as source, source_of("fine", tmp_path / "fine", tmp_path) as other:
        stuck = threading.Event()

        def read(key: str, watch: Watch) -> Any:
            stuck.set()
            while True:
                watch.check()

        monkeypatch.setattr(source._folder, "read", read)
        keeper = Background(lambda: [source, other])
        keeper.start()
        try:
            assert stuck.wait(20)
            with keeper.without("docs"):
                began = time.monotonic()
                source.drop()
                assert time.monotonic() - began < 5, "the piece under way was cancelled"
                for count in (0, 1, 2):  # the other has its turns
                    until_now(lambda: other.finished() and other.describe().documents == count)  # noqa: B023 - at once
                    (tmp_path / "fine" / f"{count}.md").write_text("Some words.")
                assert source.runs == 1
            until_now(lambda: source.runs == 2)
        finally:
            keeper.close()


# Killed and stopped


def test_a_stop_ends_the_piece_under_way(root: Path, tmp_path: Path, hurried: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(background, "PIECE_S", 3600.0)
    (root / "a.md").write_text("The pump is red.")
    stuck = threading.Event()

    def read(self: object, key: str, watch: Watch) -> Any:
        stuck.set()
        while True:
            watch.check()

    monkeypatch.setattr(Folder, "read", read)
    with watched(root, tmp_path / "home"):
        assert stuck.wait(20)
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 2


async def test_killed_and_stopped_half_way_it_goes_on_where_it_was(tmp_path: Path, root: Path) -> None:
    words = " ".join(f"word{number}" for number in range(9_000))
    for number in range(BIG):
        (root / f"{number:03}.md").write_text(f"Document {number} is own{number}. {words}")
    sources = watching(tmp_path, "docs")
    async with started(tmp_path, root, before=SMALL_BATCHES, sources=sources) as (stub, process):

        async def begun() -> int:
            return max(0, await documents(stub))

        count = await until(begun, 60)
        process.kill()
        await process.wait()
    assert count < BIG, "it was killed too late to show anything"
    with folder_source(root, tmp_path / "home") as source:
        kept = entries(source)
    async with started(tmp_path, root, sources=sources) as (_, process):
        await until(lambda: written(tmp_path / "home" / "index" / ".docs.lock"), 20)
        stopped = time.monotonic()
        process.terminate()
        assert await process.wait() == 0
        assert time.monotonic() - stopped < 8
    async with started(tmp_path, root, sources=sources) as (stub, _):

        async def whole() -> bool:
            return await documents(stub) == BIG

        await until(whole, 60)
    with folder_source(root, tmp_path / "home") as source:
        assert kept and entries(source).items() >= kept.items(), "what was indexed is not read again"
        check(source)


def written(lock: Path) -> bool:
    """Says whether somebody holds the right to write."""
    try:
        with alone(lock, Watch(0)):
            return False
    except OutOfTime:
        return True


def entries(source: FolderSource) -> dict[bytes, int]:
    """Returns when each document was read, by its key."""
    with contextlib.closing(source._store.snapshot()) as snapshot:
        return {bytes(key): read for key, read in snapshot.catalogue.db.execute("select key, read_ns from entries")}
