"""Sources: what the operator configured, what is added below it, how they are listed, indexed, removed and chosen."""

import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import error_pb2, researcher_pb2

from services.common.config import ConfigError, ResearcherSettings, load
from services.common.errors import Reason
from services.common.status import from_rpc_error
from services.researcher.registry import read_file
from tests.researchers import events, serving, settings_of

Request = researcher_pb2.ResearchRequest
SourceKind = researcher_pb2.SourceKind


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    for path, text in {
        "docs/pump.md": "The mechanical seal is replaced after 16,000 hours.",
        "docs/oil/gear.md": "The gearbox oil is replaced once a year.",
        "docs/oil/notes.txt": "The gearbox oil is blue.",
        "reports/0001.md": "# Report\n\nThe turbine was replaced by a report.",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_text(text)
    return tmp_path / "docs"


@pytest.fixture
async def stub(tmp_path: Path, docs: Path) -> AsyncIterator[Any]:
    async with serving(tmp_path, docs) as stub:
        yield stub


async def listed(stub: Any) -> dict[str, researcher_pb2.Source]:
    answer = await stub.ListSources(researcher_pb2.ListSourcesRequest())
    return {source.name: source for source in answer.sources}


async def uris(stub: Any, objective: str, **more: Any) -> set[str]:
    result = (await events(stub.Research(Request(objective=objective, **more))))[-1].result
    return {citation.uri for finding in result.findings for citation in finding.citations}


async def refusal(call: Any) -> error_pb2.TypedError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            await events(call)
        else:
            await call
    error = from_rpc_error(caught.value)
    assert error is not None
    return error


def add(name: str, path: str, **more: Any) -> researcher_pb2.AddSourceRequest:
    return researcher_pb2.AddSourceRequest(name=name, path=path, **more)


async def test_a_source_is_added_indexed_searched_and_removed(stub: Any, tmp_path: Path) -> None:
    source = await stub.AddSource(add("lubricants", "docs/oil", include=["*.md"]))
    assert (source.name, source.path, source.configured, source.documents) == ("lubricants", "docs/oil", False, 0)
    told = await events(stub.IndexSource(researcher_pb2.IndexSourceRequest(name="lubricants")))
    assert told[-1].source.documents == 1 and told[-1].source.HasField("indexed_at")
    assert [each.progress.documents for each in told if each.HasField("progress")][-1] == 1
    assert await uris(stub, "gearbox oil", sources=["lubricants"]) == {"lubricants/gear.md"}
    await stub.RemoveSource(researcher_pb2.RemoveSourceRequest(name="lubricants"))
    assert "lubricants" not in await listed(stub)
    assert not list((tmp_path / "home" / "index").glob("lubricants/*"))
    assert (tmp_path / "docs" / "oil" / "gear.md").exists()


async def test_an_added_source_outlives_the_service_and_is_seen_by_replicas(tmp_path: Path, docs: Path) -> None:
    async with serving(tmp_path, docs) as one, serving(tmp_path, docs) as other:
        await one.AddSource(add("lubricants", "docs/oil"))
        assert "lubricants" in await listed(other)
        assert await uris(other, "gearbox oil blue", sources=["lubricants"]) >= {"lubricants/notes.txt"}
        await one.AddSource(add("lubricants", "docs/oil", exclude=["*.txt"]))
        assert await uris(other, "gearbox oil blue", sources=["lubricants"]) <= {"lubricants/gear.md"}
    async with serving(tmp_path, docs) as later:
        assert (await listed(later))["lubricants"].exclude == ["*.txt"]


@pytest.mark.parametrize(
    "path", [".", "./", "elsewhere", "/etc", "docs/../reports", "docs/none", "docs/.git", "../docs", "docs\0"]
)
async def test_only_what_lies_below_a_root_can_be_added(stub: Any, path: str) -> None:
    assert (await refusal(stub.AddSource(add("more", path)))).reason == Reason.ERROR_REASON_SOURCE_REFUSED
    assert set(await listed(stub)) == {"docs", "reports"}


async def test_a_folder_whose_name_begins_with_a_dot_cannot_be_added(stub: Any, docs: Path) -> None:
    (docs / ".git" / "in").mkdir(parents=True)
    (docs / ".git" / "in" / "config.md").write_text("Token.")
    for path in ("docs/.git", "docs/.git/in"):
        assert (await refusal(stub.AddSource(add("more", path)))).reason == Reason.ERROR_REASON_SOURCE_REFUSED
    assert set(await listed(stub)) == {"docs", "reports"}


async def test_a_link_out_of_a_root_cannot_be_added(stub: Any, tmp_path: Path, docs: Path) -> None:
    (docs / "out").symlink_to(tmp_path / "reports")
    assert (await refusal(stub.AddSource(add("more", "docs/out")))).reason == Reason.ERROR_REASON_SOURCE_REFUSED


@pytest.mark.parametrize("name", ["../x", "", "UPPER", "a/b", ".hidden", "x" * 65])
async def test_names_are_checked(stub: Any, name: str) -> None:
    assert (await refusal(stub.AddSource(add(name, "docs")))).reason == Reason.ERROR_REASON_INVALID_REQUEST


async def test_what_is_configured_stays(stub: Any) -> None:
    assert (await refusal(stub.AddSource(add("docs", "docs/oil")))).reason == Reason.ERROR_REASON_SOURCE_REFUSED
    for name in ("docs", "reports"):
        call = stub.RemoveSource(researcher_pb2.RemoveSourceRequest(name=name))
        assert (await refusal(call)).reason == Reason.ERROR_REASON_SOURCE_REFUSED
    for call in (
        stub.RemoveSource(researcher_pb2.RemoveSourceRequest(name="none")),
        stub.IndexSource(researcher_pb2.IndexSourceRequest(name="none")),
    ):
        assert (await refusal(call)).reason == Reason.ERROR_REASON_SOURCE_NOT_FOUND


async def test_reports_of_earlier_tasks_are_searched_when_asked_for(stub: Any) -> None:
    assert await uris(stub, "turbine replaced") == set()
    assert await uris(stub, "turbine replaced", sources=["reports"]) == {"reports/0001.md"}
    kinds = [SourceKind.SOURCE_KIND_REPORTS]
    assert await uris(stub, "turbine replaced", kinds=kinds) == {"reports/0001.md"}
    assert await uris(stub, "gearbox oil", kinds=kinds) == set()


async def test_the_web_is_refused_unless_it_is_configured(stub: Any) -> None:
    for more in ({"web": True}, {"sources": ["https://example.org/page"]}, {"kinds": [SourceKind.SOURCE_KIND_WEB]}):
        error = await refusal(stub.Research(Request(objective="turbine", **more)))
        assert error.reason in (Reason.ERROR_REASON_SOURCE_REFUSED, Reason.ERROR_REASON_NO_SOURCES)


FOREIGN = """
from services.researcher.documents import Document, Original, Outline, SourceKind, Text, Unreadable
from services.researcher.index.memory import MemoryIndex
from conductor.v1 import researcher_pb2

class Wiki:
    kind = SourceKind.SOURCE_KIND_FOLDER

    def __init__(self, name, options):
        self.name, self.page = name, options["page"]

    def text(self):
        return Text(self.page, "Page", Outline([]), ((0, len(self.page)),))

    def open(self, inquiry, watch, notes):
        index = MemoryIndex()
        index.add(Document(self.name + "/page", "Page", "0" * 64, len(self.page), 1), self.text(), watch)
        return index.view(self.original)

    def original(self, uri, watch):
        return Original(self.text(), "0" * 64)

    def describe(self):
        return researcher_pb2.Source(name=self.name, kind=self.kind, configured=True)
"""


async def test_somebody_elses_adapter_is_a_class_and_a_line(
    tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_wiki.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "sources.toml"
    file.write_text(
        textwrap.dedent(f"""
            [sources.wiki]
            adapter = "foreign_wiki:Wiki"
            page = "The compressor hums at night."
            [sources.oil]
            adapter = "folder"
            path = "{docs}/oil"
            include = ["*.txt"]
        """)
    )
    async with serving(tmp_path, docs, sources=str(file)) as stub:
        assert await uris(stub, "compressor hums at night") == {"wiki/page"}
        assert await uris(stub, "gearbox oil blue", sources=["oil"]) == {"oil/notes.txt"}
        error = await refusal(stub.IndexSource(researcher_pb2.IndexSourceRequest(name="wiki")))
        assert error.reason == Reason.ERROR_REASON_SOURCE_REFUSED


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[sources", "cannot be read"),
        ("[source.x]\npath='/'", "no table [source]"),
        ("[sources.x]\nadapter='none'\npath='/'", "[sources.x]"),
        ("[sources.x]\nadapter='none:Thing'", "[sources.x]"),
        ("[sources.docs]\npath='/'", "Two sources"),
        ("[sources.docs]\nwatch='yes'", "watch=true"),
        ("[sources.nobody]\nwatch=true", "docs, reports"),
        ("[model]\nname=''", "model"),
    ],
)
async def test_a_file_that_cannot_be_used_says_which_line(tmp_path: Path, docs: Path, text: str, told: str) -> None:
    (tmp_path / "sources.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        async with serving(tmp_path, docs, sources=str(tmp_path / "sources.toml")):
            pass
    assert told in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    settings = load(ResearcherSettings, settings_of(tmp_path, sources=str(tmp_path / "none.toml")))
    with pytest.raises(ConfigError, match=r"none\.toml"):
        read_file(settings.sources)
