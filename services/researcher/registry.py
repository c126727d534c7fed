"""All sources: those the operator configured, and those that were added below what the operator allows."""

import importlib
import os
import threading
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from conductor.v1 import researcher_pb2
from google.protobuf import json_format

from services.common.config import ConfigError, ResearcherSettings
from services.common.errors import Reason, Refusal
from services.researcher.background import Background
from services.researcher.documents import SourceKind
from services.researcher.extract.parsers import Parsers
from services.researcher.folder import FolderSource, Root, label_roots
from services.researcher.formats import Documents, Formats
from services.researcher.protocol import Encoder, Indexed, Source
from services.researcher.reports import Reports
from services.researcher.research import Chosen, Question
from services.researcher.tables.formats import Tables
from services.researcher.web.settings import web_source

WEB = "web"  # name of the web as a source
REPORTS = "reports"  # and of the reports
SECTIONS = {"sources", "web", "model"}
ADDRESSES = ("http://", "https://")
KINDS: Mapping[str, SourceKind.ValueType] = {
    "folder": SourceKind.SOURCE_KIND_FOLDER,
    "reports": SourceKind.SOURCE_KIND_REPORTS,
    "tables": SourceKind.SOURCE_KIND_TABLES,
}
# Searched only when they are asked for: what a report says was said before, and the web costs.
ON_DEMAND = {SourceKind.SOURCE_KIND_REPORTS, SourceKind.SOURCE_KIND_WEB}


def read_file(path: Path | None) -> Mapping[str, Any]:
    """Reads the operator's TOML file of sources, the web and a model. Raises ConfigError."""
    if path is None:
        return {}
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"RESEARCHER_SOURCES={str(path)!r} cannot be read: {error}.") from None
    if unknown := tables.keys() - SECTIONS:
        raise ConfigError(f"{path}: there is no table [{min(unknown)}]; give [sources.NAME], [web] or [model].")
    return tables


class Registry:
    """Finds sources by name, and keeps the watched ones up to date. Thread-safe.

    What another replica adds is seen at the next look.

    Args:
        tables: as `read_file` returns them.
    """

    def __init__(
        self, settings: ResearcherSettings, tables: Mapping[str, Any], parsers: Parsers, encoder: Encoder | None
    ) -> None:
        self._settings = settings
        self._parsers = parsers
        self._tables = Tables()
        documents = Documents(parsers)
        self._formats: Mapping[SourceKind.ValueType, Formats] = {
            SourceKind.SOURCE_KIND_FOLDER: documents,
            SourceKind.SOURCE_KIND_REPORTS: Reports(documents),
            SourceKind.SOURCE_KIND_TABLES: self._tables,
        }
        self._encoder = encoder
        self._roots = label_roots(settings.roots)
        self._watched = _watched(tables.get("sources", {}), {REPORTS, *(root.label for root in self._roots)})
        self._added_folder = settings.home / "sources"
        self._added_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._configured: dict[str, Source] = {root.label: self._folder(root.label, root) for root in self._roots}
        self._added: dict[str, tuple[int, Source]] = {}
        for name, options in tables.get("sources", {}).items():
            if not _only_watched(options):
                self._configure(name, self._made(name, options))
        if settings.reports.is_dir() and REPORTS not in self._configured:
            kind = SourceKind.SOURCE_KIND_REPORTS
            self._configured[REPORTS] = self._folder(REPORTS, Root(REPORTS, settings.reports), kind=kind)
        if WEB in tables:
            self._configure(WEB, web_source(WEB, tables[WEB], settings.home, parsers, encoder))
        self._background = Background(self._to_watch)
        if self._watched:
            self._background.start()

    def all(self) -> Sequence[Source]:
        """Returns every source, by name."""
        with self._lock:
            self._look()
            sources = {**{name: source for name, (_, source) in self._added.items()}, **self._configured}
        return [sources[name] for name in sorted(sources)]

    def get(self, name: str) -> Source:
        """Returns a source. Raises SOURCE_NOT_FOUND."""
        for source in self.all():
            if source.name == name:
                return source
        known = ", ".join(each.name for each in self.all())
        text = f"There is no source {name!r}. There are: {known}."
        raise Refusal(Reason.ERROR_REASON_SOURCE_NOT_FOUND, text, source=name)

    def indexed(self, name: str) -> Indexed:
        """Returns a source with an index. Raises SOURCE_NOT_FOUND, SOURCE_REFUSED."""
        source = self.get(name)
        if not hasattr(source, "index"):
            raise _refused(name, "it has no index; it is read when it is searched")
        return cast(Indexed, source)

    def of(self, uri: str) -> Source | None:
        """Returns the source a uri is of; None when there is none."""
        name = WEB if uri.startswith(ADDRESSES) else uri.partition("/")[0]
        return next((source for source in self.all() if source.name == name), None)

    def choose(self, question: Question) -> Sequence[Chosen]:
        """Returns what a question is to be asked of. Raises SOURCE_REFUSED, NO_SOURCES."""
        named: dict[str, list[str]] = {}
        sources = {source.name: source for source in self.all()}
        for each in question.sources:
            name, path = self._resolve(each, sources)
            named.setdefault(name, []).append(path)
        if not question.sources:
            named = {
                name: []
                for name, source in sources.items()
                if source.kind not in ON_DEMAND or source.kind in question.kinds
            }
        if question.web:
            if WEB not in sources:
                raise _refused(WEB, "the operator has not configured it; a table [web] in RESEARCHER_SOURCES does")
            named.setdefault(WEB, []).append("")  # a search, besides the addresses that are named
        chosen = [
            Chosen(sources[name], tuple(paths))
            for name, paths in named.items()
            if not question.kinds or sources[name].kind in question.kinds
        ]
        if not chosen:
            text = "No source is configured that this question can be asked of. Set RESEARCHER_ROOTS, or name others."
            raise Refusal(Reason.ERROR_REASON_NO_SOURCES, text)
        return chosen

    def add(self, request: researcher_pb2.AddSourceRequest) -> Source:
        """Adds or replaces a source. Raises SOURCE_REFUSED."""
        if request.name in self._configured or request.name == WEB:
            raise _refused(request.name, "the operator configured a source of this name; take another one")
        self._build(request)  # refuses what cannot be
        path = self._added_folder / f"{request.name}.json"
        with self._lock:
            half = path.with_suffix(f".{threading.get_ident()}.part")
            half.write_text(json_format.MessageToJson(request, preserving_proto_field_name=True), "utf-8")
            half.rename(path)
            self._look()
            return self._added[request.name][1]

    def remove(self, name: str) -> None:
        """Removes an added source and its index. Raises SOURCE_NOT_FOUND, SOURCE_REFUSED."""
        source = self.get(name)
        if name in self._configured:
            raise _refused(name, "the operator configured it; take it out of the configuration")
        with self._background.without(name):
            cast(Indexed, source).drop()
            with self._lock:
                (self._added_folder / f"{name}.json").unlink(missing_ok=True)
                self._look()

    def close(self) -> None:
        """Stops what works in the background and lets go of what the sources hold."""
        self._background.close()
        for source in self.all():
            if hasattr(source, "close"):
                source.close()
        self._tables.close()

    # What is configured

    def _configure(self, name: str, source: Source) -> None:
        if name in self._configured:
            raise ConfigError(f"Two sources are called {name!r}: rename one, roots are called like their folder.")
        self._configured[name] = source

    def _made(self, name: str, options: Any) -> Source:
        if not isinstance(options, dict) or not isinstance(adapter := options.get("adapter", "folder"), str):
            raise ConfigError(f"[sources.{name}]: give adapter, path, and where needed include and exclude.")
        if ":" in adapter:
            return _foreign(name, adapter, options)
        if adapter not in KINDS or not isinstance(path := options.get("path"), str):
            known = ", ".join(KINDS)
            raise ConfigError(f"[sources.{name}]: give adapter={known} or module:Class, and path, a folder.")
        root = Root(name, Path(path).absolute())
        include, exclude = options.get("include", []), options.get("exclude", [])
        return self._folder(name, root, include=include, exclude=exclude, kind=KINDS[adapter])

    def _folder(
        self,
        name: str,
        root: Root,
        path: str = "",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        kind: SourceKind.ValueType = SourceKind.SOURCE_KIND_FOLDER,
        configured: bool = True,
    ) -> FolderSource:
        settings = self._settings
        return FolderSource(
            name, root, path, include, exclude, home=settings.home, parsers=self._parsers,
            max_file_bytes=settings.max_file_bytes, rescan=settings.rescan, encoder=self._encoder, kind=kind,
            configured=configured, watched=root.label in self._watched, formats=self._formats[kind],
        )  # fmt: skip

    def _to_watch(self) -> Sequence[FolderSource]:
        return [source for source in _folders({each.name: each for each in self.all()}) if source.watched]

    # What was added

    def _look(self) -> None:
        """Brings the added sources up to date with their folder."""
        there = {path.stem: path for path in self._added_folder.glob("*.json")}
        for name in self._added.keys() - there.keys():
            cast(FolderSource, self._added.pop(name)[1]).close()
        for name, path in there.items():
            try:
                stamp = path.stat().st_mtime_ns
                if name not in self._added or self._added[name][0] != stamp:
                    request = json_format.Parse(path.read_bytes(), researcher_pb2.AddSourceRequest())
                    replaced, self._added[name] = self._added.get(name), (stamp, self._build(request))
                    if replaced is not None:
                        cast(FolderSource, replaced[1]).close()
            except (OSError, json_format.ParseError, Refusal):
                continue  # removed meanwhile, or its root is not allowed any more

    def _build(self, request: researcher_pb2.AddSourceRequest) -> FolderSource:
        parts = PurePosixPath(request.path).parts
        root = next((root for root in self._roots if parts[:1] == (root.label,)), None)
        if root is None or ".." in parts:
            labels = ", ".join(root.label for root in self._roots)
            raise _refused(request.path, f"it must lie below one of the configured roots: {labels}")
        kind = request.kind or SourceKind.SOURCE_KIND_FOLDER
        path = os.path.join(*parts[1:]) if parts[1:] else ""  # noqa: PTH118 - it stays text, with slashes
        source = self._folder(
            request.name, root, path, tuple(request.include), tuple(request.exclude), kind=kind, configured=False
        )
        source.confirm("")
        return source

    # What is asked for

    def _resolve(self, wanted: str, sources: Mapping[str, Source]) -> tuple[str, str]:
        """Returns the name of the source and the path below it that are meant."""
        if wanted.startswith(ADDRESSES):
            if WEB not in sources:
                raise _refused(wanted, "the operator has not allowed to fetch pages")
            return WEB, wanted
        name, _, path = wanted.partition("/")
        if name in sources:
            return name, path
        for source in _folders(sources):
            if source.holds(wanted):
                return source.name, wanted
        raise _refused(wanted, f"it is no source, and no folder or document below one. Sources: {', '.join(sources)}")


def _folders(sources: Mapping[str, Source]) -> Iterator[FolderSource]:
    for source in sources.values():
        if isinstance(source, FolderSource):
            yield source


def _only_watched(options: Any) -> bool:
    """Says whether a table describes no source, but says that one which is there anyway is to be watched."""
    return isinstance(options, dict) and options.keys() == {"watch"}


def _watched(tables: Mapping[str, Any], there: Collection[str]) -> frozenset[str]:
    """Returns the names of folders to be watched; what is added below one is watched as well. Raises ConfigError."""
    names = set()
    for name, options in tables.items():
        if not isinstance(options, dict) or ":" in str(options.get("adapter")):  # that adapter's own affair
            continue
        if not isinstance(watch := options.get("watch", False), bool):
            raise ConfigError(f"[sources.{name}]: give watch=true or watch=false.")
        if _only_watched(options) and name not in there:
            known = ", ".join(sorted(there))
            raise ConfigError(f"[sources.{name}]: give a path, or the name of a folder that is configured: {known}.")
        if watch:
            names.add(name)
    return frozenset(names)


def _foreign(name: str, adapter: str, options: Mapping[str, Any]) -> Source:
    module, _, class_name = adapter.partition(":")
    try:
        return cast(Source, getattr(importlib.import_module(module), class_name)(name, options))
    except ConfigError:
        raise
    except Exception as problem:  # somebody else's code: whatever it raises, the operator must hear which line it was
        text = f"[sources.{name}] adapter={adapter!r} cannot be used: {type(problem).__name__}: {problem}."
        raise ConfigError(text) from None


def _refused(source: str, why: str) -> Refusal:
    return Refusal(Reason.ERROR_REASON_SOURCE_REFUSED, f"The source {source!r} is refused: {why}.", source=source)
