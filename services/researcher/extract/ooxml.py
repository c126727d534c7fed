"""Office Open XML (ECMA-376): the parts of a package, bounded, and a walk over their XML.

Read with the standard library's expat. Document types are refused, and with them entities: no document of an office
program has one.
"""

import posixpath
from collections.abc import Callable
from typing import Any
from xml.parsers import expat

from services.researcher.extract import zips
from services.researcher.extract.parts import MAX_RATIO, SMALL_BYTES, Bounds, Broken

MAX_PARTS = 20_000
MAX_PART_BYTES = 256 * 1024**2  # expanded
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
# Namespaces → the prefix their elements get here, in both forms of the standard; others get their last step.
_PREFIXES = {
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main": "w",
    "http://purl.oclc.org/ooxml/wordprocessingml/main": "w",
    "http://schemas.openxmlformats.org/drawingml/2006/main": "a",
    "http://purl.oclc.org/ooxml/drawingml/main": "a",
    "http://schemas.openxmlformats.org/presentationml/2006/main": "p",
    "http://purl.oclc.org/ooxml/presentationml/main": "p",
    "http://schemas.openxmlformats.org/spreadsheetml/2006/main": "s",
    "http://purl.oclc.org/ooxml/spreadsheetml/main": "s",
    "http://schemas.openxmlformats.org/officeDocument/2006/relationships": "r",
    "http://purl.oclc.org/ooxml/officeDocument/relationships": "r",
    "http://schemas.openxmlformats.org/markup-compatibility/2006": "mc",
    "http://schemas.openxmlformats.org/package/2006/relationships": "rel",
    "http://purl.org/dc/elements/1.1/": "dc",
}

Start = Callable[[str, dict[str, str]], None]
End = Callable[[str], None]
Chars = Callable[[str], None]


class Package:
    """The parts of one document. Raises Broken when it is none."""

    def __init__(self, data: bytes, bounds: Bounds) -> None:
        if data.startswith(_OLE):
            if _ENCRYPTED in data:
                raise Broken("It is encrypted. Save it without its password.")
            raise Broken("It is of the old binary format. Save it in the present one.")
        self._data = data
        self._bounds = bounds
        self._left = max(SMALL_BYTES, len(data) * MAX_RATIO)
        self._entries: dict[str, zips.Entry] = {}
        for entry in zips.entries(data):
            self._entries[entry.name.lstrip("/").lower()] = entry
            if len(self._entries) > MAX_PARTS:
                raise Broken(f"It has more than {MAX_PARTS:,} parts.", truncated=True)

    def main(self) -> str:
        """Returns the name of the part everything else hangs on."""
        for kind, target in self.related("").values():
            if kind == "officeDocument":
                return target
        raise Broken("It is no Office document: it names no main part.")

    def related(self, part: str) -> dict[str, tuple[str, str]]:
        """Returns the relationships of a part: id → (last step of the type, name of the part it leads to)."""
        folder, name = posixpath.split(part)
        data = self.get(posixpath.join(folder, "_rels", f"{name}.rels"))
        found: dict[str, tuple[str, str]] = {}

        def start(tag: str, given: dict[str, str]) -> None:
            if tag == "rel:Relationship" and given.get("TargetMode") != "External":
                target = posixpath.normpath(posixpath.join("/", folder, given.get("Target", ""))).lstrip("/")
                found[given.get("Id", "")] = (given.get("Type", "").rpartition("/")[2], target)

        if data:
            walk(data, start)
        return found

    def get(self, name: str) -> bytes:
        """Returns a part, b"" when there is none. Raises Broken."""
        entry = self._entries.get(name.lower())
        if entry is None:
            return b""
        data = zips.expand(self._data, entry, min(MAX_PART_BYTES, self._left))
        self._left -= len(data)
        self._bounds.clock(self._bounds.packed + len(data))
        return data

    def need(self, name: str) -> bytes:
        """Returns a part. Raises Broken, also when there is none."""
        if not (data := self.get(name)):
            raise Broken(f"It is broken: its part {name[:80]!r} is missing.")
        return data

    def title(self) -> str:
        """Returns the title in the document's properties, or ""."""
        text: list[str] = []
        inside = [False]

        def start(tag: str, given: dict[str, str]) -> None:
            inside[0] = tag == "dc:title"

        def chars(data: str) -> None:
            if inside[0]:
                text.append(data)

        if data := self.get("docProps/core.xml"):
            walk(data, start, lambda tag: start("", {}), chars)
        return " ".join("".join(text).split())


def walk(data: bytes, start: Start, end: End | None = None, chars: Chars | None = None) -> None:
    """Calls back for each element and text; names are `prefix:local`, of attributes without a namespace `local`.

    Raises Broken when it is no XML; whatever the callbacks raise.
    """
    parser = expat.ParserCreate(namespace_separator="\n")
    parser.buffer_text = True
    names = _Names()

    def started(name: str, given: dict[str, str]) -> None:
        if any("\n" in key for key in given):
            given = {names[key]: value for key, value in given.items()}
        start(names[name], given)

    def refuse(*_: Any) -> None:
        raise Broken("It declares a document type, by which entities attack readers.")

    parser.StartElementHandler = started
    parser.StartDoctypeDeclHandler = refuse
    if end is not None:
        ended = end
        parser.EndElementHandler = lambda name: ended(names[name])
    if chars is not None:
        parser.CharacterDataHandler = chars
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise Broken(f"It is broken: its XML ends in an error (line {error.lineno}).") from None


class _Names(dict[str, str]):
    """Name as expat has it → name as it is used here; made once for each name."""

    def __missing__(self, name: str) -> str:
        space, _, local = name.rpartition("\n")
        prefix = _PREFIXES.get(space, space.rpartition("/")[2]) if space else ""
        self[name] = f"{prefix}:{local}" if prefix else local
        return self[name]


def on(given: dict[str, str], name: str) -> bool:
    """Returns whether a switch such as <w:vanish/> is on (ST_OnOff)."""
    return given.get(name, "1").lower() not in ("0", "false", "off")
