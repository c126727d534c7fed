"""Hostile, broken and encrypted documents: each is named with its reason, ends in time, and does not end the others."""

import bz2
import gzip
import io
import lzma
import os
import signal
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from services.researcher.documents import Kind, Text, Unreadable
from services.researcher.extract import ooxml, parts, pdf, sheets
from services.researcher.extract.parsers import Parsers
from services.researcher.extract.parts import Bounds, Broken
from services.researcher.extract.reading import document, documents
from services.researcher.watch import Watch

docx = pytest.importorskip("docx")
canvas = pytest.importorskip("reportlab.pdfgen.canvas")


@pytest.fixture(scope="module")
def parsers() -> Iterator[Parsers]:
    parsers = Parsers()
    yield parsers
    parsers.close()


def read(parsers: Parsers, name: str, data: bytes) -> tuple[dict[str, Text], dict[str, Unreadable]]:
    """Texts and problems by member."""
    found = list(documents(name, data, parsers, Watch(100)))
    texts = {member: each for member, each in found if isinstance(each, Text)}
    return texts, {member: each for member, each in found if isinstance(each, Unreadable)}


def refused(parsers: Parsers, name: str, data: bytes, words: str) -> None:
    """Nothing is read of it, and the reason says why."""
    texts, problems = read(parsers, name, data)
    assert texts == {} and list(problems) == [""], (texts, problems)
    assert words in str(problems[""]), problems[""]
    with pytest.raises(Unreadable, match=words):
        document(name, "", data, parsers, Watch(60))
    assert read(parsers, "after.html", b"<p>after")[0][""].text == "after", "the next one is read"


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def a_pdf(**encrypt: Any) -> bytes:
    data = io.BytesIO()
    page = canvas.Canvas(data, **encrypt)
    for number in range(5):
        page.drawString(72, 700, f"Page {number}")
        page.showPage()
    page.save()
    return data.getvalue()


def a_word() -> bytes:
    data = io.BytesIO()
    book = docx.Document()
    book.add_paragraph("Words.")
    book.save(data)
    return data.getvalue()


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
RELS = (
    b'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="a" '
    b'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="d.xml"/>'
    b"</Relationships>"
)
W = b'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
LAUGHS = b'<!DOCTYPE d [<!ENTITY a "haha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><w:document %s>&b;</w:document>' % W
EXTERNAL = b'<!DOCTYPE d [<!ENTITY a SYSTEM "file:///etc/passwd">]><w:document %s>&a;</w:document>' % W


def word(document: bytes) -> bytes:
    return zipped({"_rels/.rels": RELS, "d.xml": document})


REFUSED = {
    "empty.pdf": (b"", "broken"),
    "text.pdf": (b"no pdf at all", "broken"),
    "cut.pdf": (b"%PDF-1.7\n" + os.urandom(5_000), "broken"),
    "empty.docx": (b"", "cut off"),
    "text.docx": (b"no zip at all", "cut off"),
    "cut.docx": (a_word()[:-40], "cut off"),
    "zip.docx": (zipped({"a.txt": b"x"}), "no main part"),
    "parts.docx": (zipped({"_rels/.rels": RELS}), "missing"),
    "locked.docx": (OLE + "EncryptedPackage".encode("utf-16-le"), "encrypted"),
    "old.docx": (OLE, "old binary format"),
    "laughs.docx": (word(LAUGHS), "document type"),
    "external.docx": (word(EXTERNAL), "document type"),
    "broken.docx": (word(b"<w:document %s><w:p></w:document>" % W), "XML"),
    "ring.xlsx": (zipped({"_rels/.rels": RELS, "d.xml": b"<a"}), "XML"),
    "binary.html": (b"<p>\0", "NUL"),
    "latin.html": (b"<p>\xff\xfe\xfd", "UTF"),
    "empty.zip": (b"", "no ZIP archive"),
    "empty.gz": (b"", "It holds no text"),
    "noise.tar.gz": (os.urandom(2_000), "cut off or damaged"),
    "noise.zip": (os.urandom(2_000), "no ZIP archive"),
}


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "empty.gz"])
def test_what_cannot_be_read_says_why(parsers: Parsers, name: str) -> None:
    data, words = REFUSED[name]
    refused(parsers, name, data, words)


def test_an_encrypted_pdf(parsers: Parsers) -> None:
    from reportlab.lib.pdfencrypt import StandardEncryption

    refused(parsers, "a.pdf", a_pdf(encrypt=StandardEncryption("user", "owner", strength=128)), "encrypted")


def test_a_cut_pdf_is_broken_or_read_as_far_as_it_goes(parsers: Parsers) -> None:
    whole = a_pdf()
    for length in range(100, len(whole), len(whole) // 20):
        texts, problems = read(parsers, "a.pdf", whole[:length])
        assert texts or problems


def test_an_encrypted_member_is_named_and_the_others_are_read(parsers: Parsers) -> None:
    data = bytearray(zipped({"a.md": b"Locked.", "b.md": b"Open."}, zipfile.ZIP_STORED))
    flags = data.index(b"PK\x01\x02") + 8
    data[flags] |= 1
    texts, problems = read(parsers, "a.zip", bytes(data))
    assert texts["b.md"].text == "Open." and "encrypted" in str(problems["a.md"])


def test_a_damaged_member_is_named_and_the_others_are_read(parsers: Parsers) -> None:
    data = zipped({"a.md": b"Damaged.", "b.md": b"Whole."}, zipfile.ZIP_STORED).replace(b"Damaged.", b"damaged.", 1)
    texts, problems = read(parsers, "a.zip", data)
    assert list(texts) == ["b.md"] and "checksum" in str(problems["a.md"])


# Bombs


def test_a_zip_bomb(parsers: Parsers) -> None:
    zeros = zlib.compress(bytes(parts.MAX_MEMBER_BYTES - 1), 9)[2:-4]
    bomb = repeated(zeros, parts.MAX_MEMBER_BYTES - 1, 200)
    assert len(bomb) < 2**20, "all its members share their bytes"
    started = time.process_time()
    texts, problems = read(parsers, "bomb.zip", bomb)
    assert problems[""].kind == Kind.GAP_KIND_TRUNCATED and "expands" in str(problems[""])
    assert len(texts) + len(problems) < 50
    assert time.process_time() - started < 20


def repeated(packed: bytes, size: int, times: int) -> bytes:
    """A ZIP archive of many entries of one name that are all the same bytes of the file."""
    sizes = struct.pack("<III", zlib.crc32(bytes(size)), len(packed), size)
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 8, 0, 0) + sizes + struct.pack("<HH", 5, 0) + b"a.txt" + packed
    entry = b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 0) + sizes
    entry += struct.pack("<HHHHHII", 5, 0, 0, 0, 0, 0, 0) + b"a.txt"
    count = times % 65_535
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(entry) * times, len(local), 0)
    return local + entry * times + b"PK\x05\x06" + end


def test_a_member_that_is_too_large_is_left_out(parsers: Parsers) -> None:
    data = zipped({"a.txt": b"x" * (parts.MAX_MEMBER_BYTES + 1), "b.txt": b"small"})
    texts, problems = read(parsers, "a.zip", data)
    assert list(texts) == ["b.txt"] and problems["a.txt"].kind == Kind.GAP_KIND_TRUNCATED


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_bomb(parsers: Parsers, pack: Any) -> None:
    data = pack(bytes(50 * 1024 * 1024))
    suffix = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz"}[pack]
    texts, problems = read(parsers, f"a.txt.{suffix}", data)
    assert texts == {} and {problem.kind for problem in problems.values()} == {Kind.GAP_KIND_TRUNCATED}


def test_a_tar_bomb(parsers: Parsers) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for number in range(20):
            info = tarfile.TarInfo(f"{number}.bin")
            info.size = 10 * 1024 * 1024
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    texts, problems = read(parsers, "bomb.tar.gz", data.getvalue())
    assert texts == {} and "expands" in str(problems[""])


def test_a_million_tiny_members(parsers: Parsers) -> None:
    bomb = repeated(zlib.compress(b"\0")[2:-4], 1, 1_000_000)
    started = time.monotonic()
    texts, problems = read(parsers, "many.zip", bomb)
    assert "members" in str(problems[""]) and problems[""].kind == Kind.GAP_KIND_TRUNCATED
    assert len(texts) + len(problems) <= parts.MAX_MEMBERS + 1
    assert time.monotonic() - started < 60


def test_archives_too_deep(parsers: Parsers) -> None:
    data = zipped({"a.txt": b"bottom"})
    for _ in range(6):
        data = zipped({"in.zip": data})
    texts, problems = read(parsers, "a.zip", data)
    assert texts == {}
    ((member, problem),) = problems.items()
    assert member.count("!/") == parts.MAX_DEPTH - 1 and "deep" in str(problem)
    assert problem.kind == Kind.GAP_KIND_TRUNCATED


def test_a_package_that_expands_without_end(parsers: Parsers) -> None:
    padding = b"<w:p><w:r><w:t>x</w:t></w:r></w:p>" * 1_200_000
    refused(parsers, "a.docx", word(b"<w:document %s>" % W + padding + b"</w:document>"), "larger than")


def test_deep_xml_is_read(parsers: Parsers) -> None:
    deep = b"<w:p>" * 20_000 + b"<w:r><w:t>bottom</w:t></w:r>" + b"</w:p>" * 20_000
    texts, problems = read(parsers, "a.docx", word(b"<w:document %s>" % W + deep + b"</w:document>"))
    assert problems or texts[""].text == "bottom\n\n"


def test_a_ring_of_styles(parsers: Parsers) -> None:
    body = b'<w:document %s><w:p><w:pPr><w:pStyle w:val="a"/></w:pPr><w:r><w:t>words</w:t></w:r></w:p></w:document>' % W
    related = RELS.replace(b'officeDocument"', b'styles"').replace(b"d.xml", b"s.xml")
    styles = (
        b'<w:styles %s><w:style w:styleId="a"><w:basedOn w:val="b"/></w:style>'
        b'<w:style w:styleId="b"><w:basedOn w:val="a"/></w:style></w:styles>' % W
    )
    data = zipped({"_rels/.rels": RELS, "d.xml": body, "_rels/d.xml.rels": related, "s.xml": styles})
    texts, problems = read(parsers, "a.docx", data)
    assert texts[""].text == "words\n\n" and not problems


def test_a_sheet_of_too_many_rows_is_read_in_part(monkeypatch: pytest.MonkeyPatch, own_clock: None) -> None:
    monkeypatch.setattr(sheets, "MAX_ROWS", 1_000)
    s = b'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    rows = b"".join(b'<row><c t="inlineStr"><is><t>w%d</t></is></c></row>' % number for number in range(1_100))
    related = RELS.replace(b'officeDocument"', b'worksheet"').replace(b"d.xml", b"s.xml")
    r = b'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
    book = b'<workbook %s %s><sheets><sheet name="S" r:id="a"/></sheets></workbook>' % (s, r)
    sheet = b"<worksheet %s><sheetData>" % s + rows + b"</sheetData></worksheet>"
    data = zipped({"_rels/.rels": RELS, "d.xml": book, "_rels/d.xml.rels": related, "s.xml": sheet})
    part, trouble = sheets.read(data, Bounds(len(data)))
    assert isinstance(part, parts.Part) and part.places[-1][3] == 1_000
    assert isinstance(trouble, parts.Trouble) and trouble.truncated


@pytest.mark.parametrize("limit", ["MAX_PAGES", "MAX_TEXT"])
def test_a_pdf_of_too_many_pages_is_read_in_part(monkeypatch: pytest.MonkeyPatch, own_clock: None, limit: str) -> None:
    monkeypatch.setattr(pdf, limit, 3)
    part, trouble = pdf.read(a_pdf(), Bounds(1, _end=float("inf")))
    assert isinstance(part, parts.Part) and "Page 0" in part.text and "Page 4" not in part.text
    assert isinstance(trouble, parts.Trouble) and trouble.truncated


@pytest.fixture
def own_clock() -> Iterator[None]:
    """Readers called in this process must not leave their clock behind."""
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def test_a_cut_gzip_gives_what_is_there(parsers: Parsers) -> None:
    data = gzip.compress(os.urandom(30_000).hex().encode())[:20_000]
    texts, problems = read(parsers, "a.txt.gz", data)
    assert len(texts["a.txt"].text) > 10_000 and problems["a.txt"].kind == Kind.GAP_KIND_TRUNCATED
    assert document("a.txt.gz", "a.txt", data, parsers, Watch(30)).text == texts["a.txt"].text


def test_a_cut_tar_gives_what_is_there(parsers: Parsers) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("a.md", "b.md"):
            info = tarfile.TarInfo(name)
            info.size = 40_000
            archive.addfile(info, io.BytesIO(b"word " * 8_000))
    texts, problems = read(parsers, "a.tar", data.getvalue()[:70_000])
    assert len(texts["a.md"].text) == 40_000 and 0 < len(texts["b.md"].text) < 40_000
    assert problems["b.md"].kind == problems[""].kind == Kind.GAP_KIND_TRUNCATED


def test_markup_that_ends_the_parser_costs_one_member(parsers: Parsers) -> None:
    members = {"a.md": b"first", "b.html": b"<div>" * 100_000, "c.html": b"<p>third", "d.md": b"fourth"}
    texts, problems = read(parsers, "a.zip", zipped(members))
    assert {member: text.text for member, text in texts.items()} == {
        "a.md": "first",
        "c.html": "third",
        "d.md": "fourth",
    }
    assert list(problems) == ["b.html"] and "CPU time" in str(problems["b.html"])


# Mail


MAIL = {
    "empty": b"",
    "no header": b"\n\nwords",
    "header without end": b"Subject: " + b"a" * 1_000_000,
    "many headers": b"To: a@b\n" * 50_000 + b"\nwords",
    "address bomb": b"To: " + b"(" * 50_000 + b"\n\nwords",
    "encoded words": b"Subject: " + b"=?utf-8?q?a?= " * 50_000 + b"\n\nwords",
    "charset": b"Content-Type: text/plain; charset=nonsense\n\nwords",
    "boundary": b"Content-Type: multipart/mixed; boundary=a\n\n" + b"--a\n\nwords\n" * 20_000,
    "nested": b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (i, i) for i in range(500))
    + b"\nwords",
    "base64": b"Content-Transfer-Encoding: base64\n\n!!!!",
}


@pytest.mark.parametrize("name", MAIL)
def test_hostile_mail(parsers: Parsers, name: str) -> None:
    texts, problems = read(parsers, "a.eml", MAIL[name])
    assert texts or problems
    assert all(len(text.text) < 2_000_000 for text in texts.values())


# What an Office document may make its reader do


def test_relationships_stay_inside_the_package(own_clock: None) -> None:
    rels = RELS.replace(b"d.xml", b"../../../etc/passwd")
    package = ooxml.Package(zipped({"_rels/.rels": rels}), Bounds(100))
    assert package.main() == "etc/passwd"
    with pytest.raises(Broken, match="missing"):
        package.need(package.main())
