"""Walking a folder: nothing outside of it, no link, nothing unreadable is fatal, and every change is seen."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.errors import Reason, Refusal
from services.researcher.documents import Kind, Text, Unreadable
from services.researcher.folder import Root, label_roots
from services.researcher.freshness import Changes
from services.researcher.globs import matcher
from services.researcher.index.origin import Member
from services.researcher.watch import Watch
from tests.asking import extracted
from tests.collections_at_hand import Notebook, check, folder_source, found, opened, uris, write_corpus

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    return folder


def listed(root: Path, home: Path, **options: object) -> tuple[list[str], Notebook]:
    with folder_source(root, home, **options) as source:
        view, notes = opened(source)
        view.close()
        return [document.uri for document in notes.documents], notes


# What belongs


def test_links_are_never_followed(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.md").write_text("The key is under the mat.")
    (root / "inside.md").write_text("Inside.")
    (root / "out.md").symlink_to(secret / "key.md")
    (root / "folder").symlink_to(secret)
    (root / "within.md").symlink_to(root / "inside.md")
    (root / "loop").symlink_to(root)
    names, notes = listed(root, tmp_path / "home")
    assert names == ["docs/inside.md"]
    assert {"docs/out.md", "docs/within.md"} == set(notes.gaps)
    assert "symbolic link" in notes.gaps["docs/out.md"][1]
    with folder_source(root, tmp_path / "home") as source:
        for path in ("folder/key.md", "out.md", "loop/inside.md", "folder"):
            with pytest.raises(Refusal):
                opened(source, path)
            with pytest.raises(Unreadable):
                source.original(f"docs/{path}", Watch(9))


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (root / "a.md").write_text("A.")
    link = tmp_path / "link"
    link.symlink_to(root)
    assert listed(link, tmp_path / "home")[0] == ["docs/a.md"]


def test_a_path_below_the_root_may_not_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root / "sub").symlink_to(tmp_path / "outside")
    with folder_source(root, tmp_path / "home", path="sub") as source, pytest.raises(Refusal) as refused:
        opened(source)
    assert refused.value.error.reason == Reason.ERROR_REASON_SOURCE_REFUSED


def test_names_with_a_dot_in_front_are_passed_over(root: Path, tmp_path: Path) -> None:
    for path in (".git/config.md", ".hidden.md", "a/.b/c.md", "a/d.md"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("Text.")
    assert listed(root, tmp_path / "home")[0] == ["docs/a/d.md"]


def test_names_with_a_dot_in_front_are_not_read_again_either(root: Path, tmp_path: Path) -> None:
    for path in (".git/config.md", ".hidden.md", "a/.b/c.md", "a/d.md"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("Token.")
    with folder_source(root, tmp_path / "home") as source:
        for uri in ("docs/.git/config.md", "docs/.hidden.md", "docs/a/.b/c.md", "docs/./a/d.md", "docs/a/../a/d.md"):
            with pytest.raises(Unreadable, match="no document of this source"):
                source.original(uri, Watch(9))
        assert source.original("docs/a/d.md", Watch(9)).text.text == "Token."


@pytest.mark.parametrize("base", [".git", "a/.b", "a/.b/c"])
def test_a_source_below_a_name_with_a_dot_in_front_is_refused(root: Path, tmp_path: Path, base: str) -> None:
    (root / base).mkdir(parents=True)
    (root / base / "x.md").write_text("Token.")
    with folder_source(root, tmp_path / "home", path=base) as source:
        for call in (lambda: source.confirm(""), lambda: source.confirm("x.md"), lambda: opened(source)):
            with pytest.raises(Refusal) as refused:
                call()
            assert refused.value.error.reason == Reason.ERROR_REASON_SOURCE_REFUSED
        with pytest.raises(Unreadable):
            source.original("docs/x.md", Watch(9))
        assert not source.holds("x.md")


def test_what_is_no_file_is_a_gap(root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "pipe.md")
    (root / "folder.md").mkdir()
    (root / "folder.md" / "in.md").write_text("In.")
    names, notes = listed(root, tmp_path / "home")
    assert names == ["docs/folder.md/in.md"]
    assert notes.gaps == {"docs/pipe.md": (Kind.GAP_KIND_UNREADABLE, "It is not a regular file.")}


def test_a_huge_file_is_a_gap_and_is_not_read(root: Path, tmp_path: Path) -> None:
    with (root / "huge.txt").open("wb") as file:
        file.truncate(2 << 30)  # 2 GB, sparse
    (root / "small.txt").write_text("Small.")
    names, notes = listed(root, tmp_path / "home")
    assert names == ["docs/small.txt"]
    assert notes.gaps["docs/huge.txt"][0] == Kind.GAP_KIND_TRUNCATED
    assert "larger than 1048576 bytes" in notes.gaps["docs/huge.txt"][1]


@pytest.mark.skipif(AS_ROOT, reason="root may read everything")
def test_what_may_not_be_read_is_a_gap_and_tried_again(root: Path, tmp_path: Path) -> None:
    (root / "secret.md").write_text("Secret pump.")
    (root / "secret.md").chmod(0)
    with folder_source(root, tmp_path / "home") as source:
        _, notes = opened(source)
        assert "Permission denied" in notes.gaps["docs/secret.md"][1]
        (root / "secret.md").chmod(0o600)
        assert uris(source, "pump") == ["docs/secret.md"]


def test_a_lasting_gap_is_told_each_time_and_not_tried_again(root: Path, tmp_path: Path) -> None:
    (root / "binary.txt").write_bytes(b"\0" * 100)
    with folder_source(root, tmp_path / "home", rescan=0.0001) as source:
        said: list[str] = []
        deadline = time.monotonic() + 20
        # Again as long as it was written so lately that its times say nothing, and no more from then on.
        while said[-2:] != ["Reading docs: 1 documents, 0 of them new or changed."] * 2:
            assert time.monotonic() < deadline, said[-3:]
            view, notes = opened(source)
            view.close()
            assert "docs/binary.txt" in notes.gaps
            said += notes.said


class Killed:
    """Reads archives whose member `late.md` takes down its parser for no fault of its own, once."""

    def __init__(self) -> None:
        self.passed = False

    def supported(self, _name: str) -> bool:
        return True

    def documents(self, _path: str, _data: bytes, _watch: Watch) -> Iterator[Member]:
        yield "early.md", extracted("early.md", b"The pump is early.")
        if self.passed:
            yield "late.md", extracted("late.md", b"The pump is late.")
        else:
            yield "late.md", Unreadable("Its parser was ended from outside.", lasting=False)

    def document(self, path: str, member: str, data: bytes, watch: Watch) -> Text:
        raise AssertionError(f"{path} {member}: only indexing is tried here")


def test_a_member_that_could_not_be_read_for_a_passing_reason_is_tried_again(root: Path, tmp_path: Path) -> None:
    archive, formats = root / "all.zip", Killed()
    archive.write_bytes(b"PK")
    os.utime(archive, (1, 1))
    with folder_source(root, tmp_path / "home", rescan=0.0001, formats=formats) as source:
        for _ in range(2):
            view, notes = opened(source)
            view.close()
            assert "docs/all.zip!/late.md" in notes.gaps
        formats.passed = True
        assert sorted(uris(source, "pump")) == ["docs/all.zip!/early.md", "docs/all.zip!/late.md"]
        view, notes = opened(source)
        view.close()
        assert not notes.gaps


def test_names_that_are_no_unicode(root: Path, tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.md"))).write_text("The valve is made of brass.")
    with folder_source(root, tmp_path / "home") as source:
        view, _ = opened(source)
        (best,) = found(view, "brass valve")
        assert best.document.uri == "docs/caf\N{REPLACEMENT CHARACTER}.md"
        assert "brass" in view.original(best.document.uri, Watch(9)).text.text
        view.close()
        check(source)


def test_folders_deeper_than_can_be_held_are_a_gap(root: Path, tmp_path: Path) -> None:
    deep = root.joinpath(*["d"] * 40)
    deep.mkdir(parents=True)
    (deep / "x.md").write_text("Deep.")
    names, notes = listed(root, tmp_path / "home")
    assert not names
    assert any("folders deep" in detail for _, detail in notes.gaps.values())


def test_a_folder_that_is_gone_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "a.md").write_text("A.")
    with folder_source(root, tmp_path / "home") as source:
        opened(source)[0].close()
        root.rename(tmp_path / "elsewhere")
        for call in (lambda: opened(source), lambda: source.index(Watch(9), lambda told: None)):
            with pytest.raises(Refusal) as refused:
                call()
            assert refused.value.error.reason == Reason.ERROR_REASON_SOURCE_REFUSED
        (tmp_path / "elsewhere").rename(root)
        view, notes = opened(source)
        assert view.documents == 1 and not notes.documents, "its index is still there"
        view.close()


def test_roots_get_names() -> None:
    roots = label_roots([Path("/a/docs"), Path("/b/docs"), Path("/"), Path("/a/docs")])
    assert roots == (Root("docs", Path("/a/docs")), Root("docs-2", Path("/b/docs")), Root("root", Path("/")))


@pytest.mark.parametrize(
    ("include", "exclude", "belong", "do_not"),
    [
        ((), (), ["a.md", "x/y.txt"], []),
        (("**/*.md",), (), ["a.md", "x/y/b.md"], ["a.txt", "x/amd"]),
        (("*.md",), ("drafts",), ["a.md", "x/b.md"], ["drafts/a.md", "x/drafts/b.md"]),
        (("plans/*",), (), ["plans/a.md", "plans/x/b.md"], ["a.md", "x/plans/a.md"]),
        (("plans/*.md",), ("plans/old/**",), ["plans/a.md"], ["plans/old/b.md", "plans/a.txt"]),
        (("[a-c]?.md",), (), ["b1.md"], ["d1.md", "b.md"]),
        (("[!a].md",), (), ["b.md"], ["a.md"]),
        (("a+(b).md", "/x/"), (), ["a+(b).md", "x/y.md"], ["aab.md"]),
    ],
)
def test_patterns(include: tuple[str, ...], exclude: tuple[str, ...], belong: list[str], do_not: list[str]) -> None:
    belongs = matcher(include, exclude)
    assert all(belongs(path) for path in belong)
    assert not any(belongs(path) for path in do_not)


def test_hostile_patterns_end() -> None:
    belongs = matcher(["*" * 300 + "x", "*a" * 100 + "x", "**/" * 60 + "x", "[" * 50, "[!", "a[]b"], [])
    assert not belongs("a" * 200 + "/" + "a" * 200)


# Every change is seen


def test_every_kind_of_change_is_seen_without_a_walk_between(root: Path, tmp_path: Path) -> None:
    paths = write_corpus(root, 60)
    with folder_source(root, tmp_path / "home") as source:
        opened(source)[0].close()
        opened(source)[0].close()  # what was written just before is settled now
        _, notes = opened(source)
        assert notes.said == [], "nothing changed: no walk"
        (root / "new").mkdir()
        (root / "new" / "a.md").write_text("Pump alpha.")
        assert uris(source, "alpha") == ["docs/new/a.md"]
        (root / "new" / "a.md").write_text("Pump bravo.")
        assert uris(source, "bravo") == ["docs/new/a.md"]
        (root / "new").rename(root / "newer")
        assert uris(source, "bravo") == ["docs/newer/a.md"]
        (root / "newer" / "a.md").unlink()
        assert uris(source, "bravo") == []
        with paths[7].open("a") as file:
            file.write("Appended: charlie.")
        assert uris(source, "charlie") == ["docs/part0/7.md"]
        paths[8].replace(paths[7])
        assert uris(source, "charlie") == []
        check(source)


def test_what_is_moved_away_with_its_folder_is_gone(root: Path, tmp_path: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "b.md").write_text("Pump.")
    with folder_source(root, tmp_path / "home") as source:
        assert uris(source, "pump") == ["docs/a/b.md"]
        (root / "a").rename(tmp_path / "away")
        assert uris(source, "pump") == []


def test_another_folder_in_its_place_is_seen(root: Path, tmp_path: Path) -> None:
    (root / "a.md").write_text("Pump.")
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.md").write_text("Pump.")
    with folder_source(root, tmp_path / "home") as source:
        assert uris(source, "pump") == ["docs/a.md"]
        root.rename(tmp_path / "away")
        other.rename(root)
        assert uris(source, "pump") == ["docs/b.md"]


def test_without_watches_it_walks_each_time(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the limit of watches is reached."""
    monkeypatch.setattr(Changes, "add", lambda self, folder: self.close())
    (root / "a.md").write_text("Pump alpha.")
    with folder_source(root, tmp_path / "home") as source:
        assert uris(source, "alpha") == ["docs/a.md"]
        (root / "a.md").write_text("Pump bravo.")
        assert uris(source, "bravo") == ["docs/a.md"]
        assert opened(source)[1].said != []


def test_an_archive_is_searched_by_its_members(root: Path, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(root / "all.zip", "w") as archive:
        archive.writestr("plant/guide.md", "# Guide\n\nThe pump is greased.")
        archive.writestr("plants/other.md", "The pump is painted.")
    with folder_source(root, tmp_path / "home") as source:
        assert set(uris(source, "pump")) == {"docs/all.zip!/plant/guide.md", "docs/all.zip!/plants/other.md"}
        assert uris(source, "pump", "all.zip!/plant") == ["docs/all.zip!/plant/guide.md"]
        assert len(uris(source, "pump", "all.zip")) == 2
        view, _ = opened(source, "all.zip!/plant")
        assert (view.documents, view.passages) == (1, 1)
        assert "greased" in view.original("docs/all.zip!/plant/guide.md", Watch(9)).text.text
        view.close()
        check(source)
