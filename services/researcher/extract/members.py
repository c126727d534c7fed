"""One file → its text, or that of its members: what a parser process does with a document."""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable

from services.researcher.extract import archives, hypertext, mail, pdf, sheets, slides, word
from services.researcher.extract.archives import Member, Partly
from services.researcher.extract.kinds import PLAIN, kind
from services.researcher.extract.parts import MAX_DEPTH, Begun, Bounds, Broken, Exhausted, Items, Part, Raw, Trouble

MAX_NAME = 512  # characters of a member's name
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_ARCHIVES = frozenset({"zip", "tar", "packed"})
_CONTAINERS = _ARCHIVES | {"mail", "mbox"}
_NOISE = ("__MACOSX/", "._")

# Document → its text. A reader yields its part, and then a Trouble when that is not all.
_READERS: dict[str, Callable[[bytes, Bounds], Items]] = {
    "html": hypertext.read,
    "pdf": pdf.read,
    "word": word.read,
    "slides": slides.read,
    "sheets": sheets.read,
}


def prepare() -> None:
    """Imports what would be looked for when it is needed: behind the sandbox no file can be opened."""
    import encodings

    for module in pkgutil.iter_modules(encodings.__path__):
        if module.name not in ("mbcs", "oem"):  # of another system
            importlib.import_module(f"encodings.{module.name}")
    mail.prepare()
    pdf.prepare()


def read(name: str, data: bytes, bounds: Bounds) -> Items:
    """Yields the text of a document, or of its members; a problem of one does not end the others."""
    return _read("", name, data, bounds, 0)


def _read(path: str, name: str, data: bytes, bounds: Bounds, depth: int) -> Items:
    what = kind(name)
    fresh = bounds.begin()
    if not fresh and what not in _CONTAINERS:
        return
    yield Begun(path, bounds.begun)
    if what in PLAIN:
        yield Raw(path, data)
    else:
        yield from _guarded(path, _opened(path, what, name, data, bounds, depth, fresh))


def _opened(path: str, what: str, name: str, data: bytes, bounds: Bounds, depth: int, fresh: bool) -> Items:
    if what not in _CONTAINERS:
        bounds.clock(len(data), *hypertext.CLOCK if what == "html" else ())
        yield from _named(path, _READERS[what](data, bounds))
        return
    bounds.clock(len(data))
    if what == "mail":
        letter = mail.read(data)
        if fresh and bounds.wanted in (None, path):
            yield from _named(path, iter((letter.part,)))
        found: Iterable[Member] = letter.attachments
    else:
        found = mail.messages(data) if what == "mbox" else archives.members(what, name, data, bounds)
    if depth < MAX_DEPTH:
        yield from _members(path, found, bounds, depth + 1)
    elif what != "mail" or letter.attachments:
        yield Trouble(path, f"What lies in it is more than {MAX_DEPTH} archives deep and is left out.", truncated=True)


def _named(path: str, items: Items) -> Items:
    for item in items:
        if isinstance(item, Part):
            yield Part(path, item.text, item.title, item.headings, item.places)
        elif isinstance(item, Trouble):
            yield Trouble(path, item.detail, item.truncated)


def _members(path: str, found: Iterable[Member], bounds: Bounds, depth: int) -> Items:
    seen: dict[str, int] = {}
    for original, get in found:
        bounds.count()
        label = _label(original)
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1:  # two of one name are two documents
            label = _again(label, seen[label])
        inner = f"{path}!/{label}" if path else label
        if kind(label) and bounds.wants(inner) and not any(part.startswith(_NOISE) for part in _tails(label)):
            yield from _guarded(inner, _member(inner, label, get, bounds, depth))


def _tails(label: str) -> tuple[str, str]:
    return label, label.rpartition("/")[2]


def _member(path: str, label: str, get: Callable[[], bytes], bounds: Bounds, depth: int) -> Items:
    try:
        data, cut = get(), ""
    except Partly as partly:
        data, cut = partly.data, str(partly)
    yield from _read(path, label, data, bounds, depth)
    if cut:
        yield Trouble(path, cut, truncated=True)


def _guarded(path: str, items: Items) -> Items:
    """Yields what a reader yields, and why it ended when that is not the end."""
    try:
        yield from items
    except Exhausted as exhausted:
        if path:
            raise
        yield Trouble(path, str(exhausted), truncated=True)
    except Broken as broken:
        yield Trouble(path, str(broken), broken.truncated)
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes make readers raise anything; the file is named, the next one is read
        yield Trouble(path, f"It is broken: its parser gave up ({type(error).__name__}).")


def _label(name: str) -> str:
    """Returns a member's name as it goes into a uri: relative, without `..`, printable."""
    parts = _UNPRINTABLE.sub("\ufffd", name.replace("\\", "/")).replace("!/", "!_/").split("/")
    kept = [part if part != ".." else "__" for part in parts if part not in ("", ".")]
    return "/".join(kept)[-MAX_NAME:].lstrip("/") or "unnamed"


def _again(label: str, number: int) -> str:
    folder, slash, name = label.rpartition("/")
    return f"{folder}{slash}{number}~{name}"
