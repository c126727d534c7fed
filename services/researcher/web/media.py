"""Which media types are read, as which kind of document, and in which encoding."""

import codecs
import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from services.researcher.documents import Unreadable

_OFFICE = "application/vnd.openxmlformats-officedocument."
# media type → suffix of the kind of document it is read as
TYPES = {
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "text/plain": ".txt",
    "text/markdown": ".md",
    "text/x-markdown": ".md",
    "text/x-rst": ".rst",
    "text/prs.fallenstein.rst": ".rst",
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/pdf": ".pdf",
    f"{_OFFICE}wordprocessingml.document": ".docx",
    f"{_OFFICE}presentationml.presentation": ".pptx",
    f"{_OFFICE}spreadsheetml.sheet": ".xlsx",
}
ACCEPT = "text/html, application/xhtml+xml, text/markdown, text/plain, application/pdf;q=0.9, text/csv;q=0.8, */*;q=0.1"
# A server that knows only text/plain: the name tells more.
PLAIN_SUFFIXES = frozenset((".md", ".markdown", ".rst", ".csv", ".tsv"))
TEXT_SUFFIXES = frozenset((".html", ".txt", ".md", ".markdown", ".rst", ".csv", ".tsv"))
# Encodings of the web (WHATWG Encoding) that Python decodes alike; a label outside is not guessed at.
_ENCODINGS = re.compile(
    r"utf-?8|utf-?16(?:le|be)?|us-ascii|ascii|latin-?1|iso-?8859-?\d{1,2}|windows-?125\d|cp-?125\d|koi8-[ru]|macintosh"
    r"|gb2312|gbk|gb18030|big5|euc-jp|shift[_-]jis|iso-2022-jp|euc-kr"
)
_META = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.I)
_PRESCAN = 1024  # bytes in which HTML names its encoding (HTML 13.2.3.2)
_LATIN = frozenset(("us-ascii", "ascii", "latin-1", "latin1", "iso-8859-1", "iso8859-1"))  # WHATWG: windows-1252


def accepted(kind: str) -> None:
    """Raises Unreadable for a media type that is not read."""
    if kind not in TYPES:
        shown = repr(kind[:80]) if kind else "no type at all"
        raise Unreadable(f"The server says it is {shown}; only text, HTML, PDF and Office documents are read.")


def name_of(url: str, kind: str) -> str:
    """Returns a file name that tells the extractor how to read a page."""
    suffix = TYPES[kind]
    path = PurePosixPath(unquote(urlsplit(url).path))
    if suffix == ".txt" and path.suffix.lower() in PLAIN_SUFFIXES:
        suffix = path.suffix.lower()
    return f"{(path.stem or 'page')[:80]}{suffix}"


def utf8(name: str, body: bytes, charset: str) -> bytes:
    """Returns a text page in UTF-8, whatever its server or its own markup says it is in; all others as they are.

    Raises Unreadable for an encoding that is not known.
    """
    if PurePosixPath(name).suffix not in TEXT_SUFFIXES or body.startswith(
        (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    ):
        return body
    label = charset or (_declared(body) if name.endswith(".html") else "")
    if label in ("", "utf-8", "utf8"):
        return body
    if not _ENCODINGS.fullmatch(label):
        raise Unreadable(f"Its encoding {label[:40]!r} is not known.")
    try:
        return body.decode("cp1252" if label in _LATIN else label, "replace").encode()
    except LookupError:
        raise Unreadable(f"Its encoding {label[:40]!r} is not known.") from None


def _declared(body: bytes) -> str:
    match = _META.search(body, 0, _PRESCAN)
    label = match[1].decode("ascii").lower() if match else ""
    return "utf-8" if label.startswith("utf-16") else label  # it was read as ASCII, so it is not UTF-16
