"""Documents of every format, made by the libraries people use, become their text, headings and places."""

import csv
import datetime
import gzip
import io
import random
import tarfile
import time
import zipfile
from bisect import bisect_right
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from services.researcher.documents import Kind, Place, Text, Unreadable
from services.researcher.extract import markup, rows
from services.researcher.extract.kinds import SUFFIXES, kind, supported
from services.researcher.extract.parsers import Parsers
from services.researcher.extract.reading import document, documents
from services.researcher.watch import Watch

docx = pytest.importorskip("docx")
openpyxl = pytest.importorskip("openpyxl")
pptx = pytest.importorskip("pptx")
canvas = pytest.importorskip("reportlab.pdfgen.canvas")


@pytest.fixture(scope="module")
def parsers() -> Iterator[Parsers]:
    parsers = Parsers()
    yield parsers
    parsers.close()


def read(parsers: Parsers, name: str, data: bytes) -> dict[str, Text]:
    """What is in a file, all of it readable."""
    found = list(documents(name, data, parsers, Watch(60)))
    assert [f"{member}: {each}" for member, each in found if isinstance(each, Unreadable)] == []
    texts = {member: each for member, each in found if isinstance(each, Text)}
    assert len(texts) == len(found), "each member once"
    for text in texts.values():
        check(text)
    if texts:
        member = list(texts)[-1]
        assert document(name, member, data, parsers, Watch(60)).text == texts[member].text, "it reads the same again"
    return texts


def one(parsers: Parsers, name: str, data: bytes) -> Text:
    texts = read(parsers, name, data)
    assert list(texts) == [""]
    return texts[""]


def check(text: Text) -> None:
    """What holds for every text."""
    assert text.title
    for heading in text.outline.headings:
        assert heading.text.split()[0] in text.text[heading.start : heading.end]
    assert [place.start for place in text.places] == sorted(place.start for place in text.places)
    assert all(0 <= start < end <= len(text.text) for start, end in text.visible)


def place(text: Text, words: str) -> Place:
    at = text.text.index(words)
    return text.places[bisect_right(text.places, at, key=lambda each: each.start) - 1]


def headings(text: Text) -> list[tuple[int, str]]:
    return [(heading.level, heading.text) for heading in text.outline.headings]


def saved(thing: Any) -> bytes:
    data = io.BytesIO()
    thing.save(data)
    return data.getvalue()


# Plain files


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a.csv", "a.py", "README", "Makefile"])
def test_the_text_of_a_plain_file_is_the_file(parsers: Parsers, name: str) -> None:
    content = "Title\n=====\n\nOne é two 🚰.\r\nThree\n"
    text = one(parsers, name, content.encode())
    assert text.text == content
    assert parsers.pids == [], "plain files need no parser"


def test_code_has_its_definitions_as_headings(parsers: Parsers) -> None:
    source = (
        'class Pump(Machine):\n    """Moves water."""\n\n    async def start(self) -> None:\n'
        "        # defines nothing: a class of its own,\n        klass = 1\n"
    )
    text = one(parsers, "pump.py", source.encode())
    assert headings(text) == [(1, "class Pump(Machine)"), (2, "async def start(self) -> None")]
    assert text.visible == ((0, len(source)),), "comments are text"
    rust = "pub fn open() -> Valve {\n}\nimpl Valve {\n    fn close(&self) {}\n}\n"
    assert [level for level, _ in headings(one(parsers, "a.rs", rust.encode()))] == [1, 1, 2]
    assert headings(one(parsers, "a.sql", b"CREATE TABLE pumps (\n id int);\n")) == [(1, "CREATE TABLE pumps (")]


def test_rows_of_a_table_are_places_and_its_columns_their_heading(parsers: Parsers) -> None:
    text = one(parsers, "pumps.csv", b'name;pressure;note\nP1;4,5;"north\nhall"\nP2;7;south\n')
    assert headings(text) == [(1, "name | pressure | note")]
    assert place(text, "P1").row == 2 and place(text, "hall").row == 2 and place(text, "P2").row == 3
    assert headings(one(parsers, "numbers.csv", b"1,2\n3,4\n")) == [], "numbers are no names"
    assert headings(one(parsers, "t.tsv", b"a\tb\n1\t2\n")) == [(1, "a | b")]
    assert list(one(parsers, "empty.csv", b"").places) == []


def shown(parsers: Parsers, name: str, content: str) -> str:
    text = one(parsers, name, content.encode())
    assert text.text == content
    return "".join(content[start:end] for start, end in text.visible)


@pytest.mark.parametrize(
    "content",
    [
        "Real <span hidden>EVIL</span> words",
        "Real <SPAN Aria-Hidden = 'TRUE'>EVIL</Span> words",
        "Real <i style='display&colon; none'>EVIL</i> words",
        "Real <i style='/* x */display:/**/none'>EVIL</i> words",
        "Real <i style=opacity:0>EVIL</i> words",
        'Real <i title="a>b<c" hidden>EVIL</i> words',
        "Real <i title='x'hidden>EVIL</i> words",
        "Real <span hidden><span>EVIL</span> EVIL</span > words",
        "Real <div\nhidden\n>EVIL</div\n> words",
        '<div style="left:-9999px">\n\n# EVIL\n\nEVIL\n\n<div>EVIL</div>\n\nEVIL\n=====\n\n</div>\n\nReal words',
        "Real words\n\n<div hidden>\n\n# EVIL\n\nEVIL",
        "Real <b hidden>EVIL\n\nwords",
        "<p hidden>EVIL\n\nReal <b>words",
        "Real <b hidden>`</b>` EVIL</b> words",
        "Real ` <b hidden>EVIL</b> words",
        "Real `` <b hidden>EVIL</b> ` words",
        "Real \\` <b hidden>EVIL</b> \\` words",
        "Real <img hidden> <b hidden>EVIL</b> words",
        "Real <b hidden>EVIL</b> <b hidden>EVIL</b> words <b hidden>EVIL",
    ],
)
def test_hidden_html_in_markdown(parsers: Parsers, content: str) -> None:
    seen = shown(parsers, "a.md", content)
    assert "EVIL" not in seen and "Real" in seen and "words" in seen
    text = one(parsers, "a.md", content.encode())
    assert headings(text) == [] and text.title == "a.md"


@pytest.mark.parametrize(
    "content",
    [
        "Use `<div hidden>` to hide, and `a <b hidden>` too. # words",
        "```html\n<div hidden>\n```\nwords </div>",
        "<div title='hidden style=display:none' data-hidden>words</div>",
        "<p style='color: red'>words</p> <b aria-hidden=false>words</b>",
        "a <b hidden and words </b>",
        "<input type=hidden> words",
    ],
)
def test_what_only_looks_like_hidden_html_is_shown(parsers: Parsers, content: str) -> None:
    assert shown(parsers, "a.md", content) == content


@pytest.mark.parametrize(
    "unit",
    [
        "<p hidden>",
        "<x{} hidden>",
        "x <i hidden>\n\n",
        "` <i hidden>",
        '<a hidden b="',
        '<a hidden " c="',
        "<i hidden>`</i>`",
    ],
)
def test_hostile_html_in_markdown_takes_linear_time(unit: str) -> None:
    def cpu(units: int) -> float:
        content = "".join(unit.format(number) for number in range(units)).encode()
        began = time.thread_time()
        markup.read("a.md", "markdown", content, Watch(60))
        return time.thread_time() - began

    cpu(1_000)
    assert cpu(40_000) < 20 * max(cpu(5_000), 0.01)


def test_raw_html_in_restructured_text(parsers: Parsers) -> None:
    raw = ".. raw:: html\n\n   <b hidden>EVIL</b>\n\n   EVIL\n   ====\n"
    assert shown(parsers, "a.rst", f"{raw}\nReal\n") == "\n\nReal\n"
    nested = "- item\n\n  " + raw.replace("\n", "\n  ").rstrip()
    others = ".. RAW:: html\n   :file: EVIL\n\nwords\n\n.. |x| raw:: html\n\n   EVIL\n"
    content = f"Real\n====\n\n{raw}\n{others}\n{nested}\n\n  more\n"
    seen = shown(parsers, "a.rst", content)
    assert "EVIL" not in seen and "words" in seen and "  more\n" in seen
    assert headings(one(parsers, "a.rst", content.encode())) == [(1, "Real")]
    assert shown(parsers, "a.rst", ".. EVIL\n   EVIL\n\nReal\n").strip() == "Real", "in the first line too"
    assert shown(parsers, "a.rst", ".. note:: words\n   words\n") == ".. note:: words\n   words\n"


def test_rows_begin_where_the_csv_reader_says() -> None:
    chance = random.Random(5)  # noqa: S311
    for _ in range(300):
        table = [
            ["".join(chance.choice('ab\n",') for _ in range(chance.randint(0, 5))) or "z" for _ in range(3)]
            for _ in range(chance.randint(1, 6))
        ]
        stream = io.StringIO(newline="")
        csv.writer(stream, lineterminator=chance.choice(["\n", "\r\n"])).writerows(table)
        content = stream.getvalue()
        places = rows.read("a.csv", content, Watch(10)).places
        ends = [*[each.start for each in places][1:], len(content)]
        pieces = [content[each.start : end] for each, end in zip(places, ends, strict=True)]
        assert [next(csv.reader(io.StringIO(piece, newline=""))) for piece in pieces] == table
        assert [each.row for each in places] == list(range(1, len(table) + 1))


# Office


def test_word(parsers: Parsers) -> None:
    book = docx.Document()
    book.core_properties.title = "Pump guide"
    book.add_heading("Pumps", 1)
    book.add_paragraph("The seal lasts 16,000 hours.\tThen it is replaced.")
    book.add_heading("Valves", 2)
    table = book.add_table(2, 2)
    for row, cells in enumerate((("valve", "turns"), ("V1", "12"))):
        for column, value in enumerate(cells):
            table.cell(row, column).text = value
    text = one(parsers, "guide.docx", saved(book))
    assert text.title == "Pump guide"
    assert headings(text) == [(1, "Pumps"), (2, "Valves")]
    assert "The seal lasts 16,000 hours.\tThen it is replaced.\n" in text.text
    assert "valve | turns\nV1 | 12\n" in text.text


def test_word_hides_what_its_reader_does_not_see(parsers: Parsers) -> None:
    book = docx.Document()
    paragraph = book.add_paragraph("Seen first. ")
    paragraph.add_run("secretvanish ").font.hidden = True
    paragraph.add_run("secretwhite ").font.color.rgb = docx.shared.RGBColor(255, 255, 255)
    paragraph.add_run("secrettiny ").font.size = docx.shared.Pt(1)
    style = book.styles.add_style("Ghost", docx.enum.style.WD_STYLE_TYPE.PARAGRAPH)
    style.font.hidden = True
    book.add_paragraph("secretstyle", style="Ghost")
    child = book.styles.add_style("GhostChild", docx.enum.style.WD_STYLE_TYPE.CHARACTER)
    child.font.hidden = True
    grandchild = book.styles.add_style("GhostGrandchild", docx.enum.style.WD_STYLE_TYPE.CHARACTER)
    grandchild.base_style = child
    paragraph.add_run("secretbased ", style=grandchild)
    paragraph.add_run("Seen last.")
    run = paragraph.runs[0]
    book.add_comment(run, text="secretcomment", author="a")
    data = reworked(saved(book), "word/document.xml", lambda xml: xml.replace(b"</w:body>", WORD_TRICKS + b"</w:body>"))
    text = one(parsers, "a.docx", data).text
    assert "secret" not in text, text
    assert "Seen first. Seen last." in text and "Kept insertion." in text and "Seen box." in text
    assert text.count("Seen box.") == 1, "the fallback of a text box says the same again"
    assert "Marked but seen." in text, "the mark of a paragraph may be hidden, its words are not"


WORD_TRICKS = b"""
<w:p><w:del w:id="1" w:author="a"><w:r><w:delText>secretdeleted</w:delText></w:r></w:del>
<w:moveFrom w:id="3" w:author="a"><w:r><w:t>secretmoved</w:t></w:r></w:moveFrom>
<w:ins w:id="2" w:author="a"><w:r><w:t>Kept insertion.</w:t></w:r></w:ins>
<w:r><w:instrText>HYPERLINK secretfield</w:instrText></w:r></w:p>
<w:p><w:pPr><w:rPr><w:vanish/></w:rPr></w:pPr><w:r><w:t>Marked but seen.</w:t></w:r></w:p>
<w:p><w:r><mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">
<mc:Choice Requires="wps"><w:txbxContent><w:p><w:r><w:t>Seen box.</w:t></w:r></w:p></w:txbxContent></mc:Choice>
<mc:Fallback><w:txbxContent><w:p><w:r><w:t>Seen box.</w:t></w:r></w:p></w:txbxContent></mc:Fallback>
</mc:AlternateContent></w:r></w:p>
"""


def reworked(data: bytes, part: str, change: Any) -> bytes:
    """A package with one part changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as package, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in package.namelist():
            content = package.read(name)
            new.writestr(name, change(content) if name == part else content)
    return out.getvalue()


def test_slides(parsers: Parsers) -> None:
    deck = pptx.Presentation()
    for number in range(1, 4):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number}"
        slide.placeholders[1].text = f"First point of {number}\nSecond point"
        slide.notes_slide.notes_text_frame.text = "secretnotes"
    table = slide.shapes.add_table(1, 2, 0, 0, 99, 99).table
    table.cell(0, 0).text, table.cell(0, 1).text = "valve", "12 turns"
    away = slide.shapes.add_textbox(pptx.util.Inches(50), 0, pptx.util.Inches(2), pptx.util.Inches(1))
    away.text_frame.text = "secretaway"
    near = slide.shapes.add_textbox(0, 0, pptx.util.Inches(2), pptx.util.Inches(1))
    near.text_frame.text = "near"
    near._element.nvSpPr.cNvPr.set("descr", "secretalternative")
    gone = slide.shapes.add_textbox(0, 0, 99, 99)
    gone.text_frame.text = "secrethidden"
    gone._element.nvSpPr.cNvPr.set("hidden", "1")
    after = slide.shapes.add_textbox(0, 0, 99, 99)
    after.text_frame.text = "after"
    tiny = after.text_frame.paragraphs[0].add_run()
    tiny.text, tiny.font.size = "secrettiny", pptx.util.Pt(1)
    deck.slides[1]._element.set("show", "0")
    text = one(parsers, "a.pptx", saved(deck))
    assert "secret" not in text.text, text.text
    assert "Slide 2" not in text.text, "a hidden slide"
    assert headings(text) == [(1, "Slide 1"), (1, "Slide 3")]
    assert place(text, "First point of 3").page == 3
    assert "valve | 12 turns\n" in text.text and "near\n" in text.text and "after\n" in text.text


def test_sheets(parsers: Parsers) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Pumps"
    sheet["B2"], sheet["C2"], sheet["D2"], sheet["E2"] = "Name", "Pressure", "Built", "Load"
    for row, (name, pressure) in enumerate((("P1", 4.5), ("secretrow", 5), ("P3", 7)), 3):
        sheet[f"B{row}"], sheet[f"C{row}"], sheet[f"D{row}"] = name, pressure, datetime.date(2024, 3, row)
        sheet[f"E{row}"], sheet[f"F{row}"] = 0.255, "secretcolumn"
        sheet[f"E{row}"].number_format = "0.0%"
    sheet["G3"], sheet["H3"] = "secretformat", "secretwhite"
    sheet["G3"].number_format = ";;;"
    sheet["H3"].font = openpyxl.styles.Font(color="FFFFFFFF")
    sheet["I3"] = "white on blue"
    sheet["I3"].font = openpyxl.styles.Font(color="FFFFFFFF")
    sheet["I3"].fill = openpyxl.styles.PatternFill("solid", fgColor="FF000080")
    sheet["B3"].comment = openpyxl.comments.Comment("secretcomment", "a")
    sheet.row_dimensions[4].hidden = True
    sheet.column_dimensions["F"].hidden = True
    for state in ("hidden", "veryHidden"):
        ghost = book.create_sheet(f"secret{state}")
        ghost["A1"], ghost.sheet_state = "secretsheet", state
    book.create_sheet("Empty")
    text = one(parsers, "a.xlsx", saved(book))
    assert "secret" not in text.text, text.text
    assert headings(text) == [(1, "Pumps")]
    row = "Name: P1 | Pressure: 4.5 | Built: 2024-03-03 | Load: 25.5% | white on blue\n"
    assert f"Pumps\n\nName | Pressure | Built | Load\n{row}" in text.text
    found = place(text, "Name: P3")
    assert (found.sheet, found.row, found.cells) == ("Pumps", 5, "B5:E5")


# PDF


def paper(draw: Any) -> bytes:
    data = io.BytesIO()
    page = canvas.Canvas(data)
    draw(page)
    page.save()
    return data.getvalue()


def test_pdf(parsers: Parsers) -> None:
    def draw(page: Any) -> None:
        page.setTitle("Pump manual")
        for number in (1, 2, 3):
            page.bookmarkPage(f"p{number}")
            page.addOutlineEntry(f"Chapter {number}", f"p{number}")
            page.drawString(72, 700, f"Chapter {number}")
            page.drawString(72, 680, f"The seal of pump {number} lasts.")
            page.showPage()

    text = one(parsers, "manual.pdf", paper(draw))
    assert text.title == "Pump manual"
    assert headings(text) == [(1, "Chapter 1"), (1, "Chapter 2"), (1, "Chapter 3")]
    assert [place(text, f"pump {number}").page for number in (1, 2, 3)] == [1, 2, 3]
    assert [heading.text for heading in text.outline.above(text.text.index("pump 2"))] == ["Chapter 2"]


def test_pdf_hides_what_its_reader_does_not_see(parsers: Parsers) -> None:
    def draw(page: Any) -> None:
        page.drawString(72, 760, "Seen first.")
        invisible = page.beginText(72, 740)
        invisible.setTextRenderMode(3)
        invisible.textLine("secretmode")
        invisible.setTextRenderMode(0)
        page.drawText(invisible)
        page.setFillColorRGB(1, 1, 1)
        page.drawString(72, 720, "secretwhite")
        page.setFillColorRGB(0, 0, 0.5)
        page.rect(60, 650, 300, 40, fill=1, stroke=0)
        page.setFillColorRGB(1, 1, 1)
        page.drawString(72, 670, "White on blue.")
        page.setFillColorRGB(0.02, 0, 0.5)
        page.drawString(72, 655, "secretblue")
        page.setFillColorRGB(0, 0, 0, alpha=0)
        page.drawString(72, 640, "secretclear")
        page.setFillColorRGB(0, 0, 0, alpha=1)
        page.setFont("Helvetica", 0.2)
        page.drawString(72, 620, "secrettiny")
        page.setFont("Helvetica", 12)
        page.saveState()
        page.scale(0.001, 0.001)
        page.drawString(72_000, 600_000, "secretscaled")
        page.restoreState()
        page.drawString(5_000, 600, "secretaway")
        page.drawString(72, 580, "Seen last.")

    text = one(parsers, "a.pdf", paper(draw)).text
    assert "secret" not in text, text
    assert text.split("\n\n") and [line for line in text.split("\n") if line] == [
        "Seen first.",
        "White on blue.",
        "Seen last.",
    ]


def test_the_invisible_text_layer_of_a_scan_is_a_gap(parsers: Parsers) -> None:
    def draw(page: Any) -> None:
        layer = page.beginText(72, 740)
        layer.setTextRenderMode(3)
        layer.textLine("The words of the scan")
        page.drawText(layer)

    found = dict(documents("scan.pdf", paper(draw), parsers, Watch(30)))
    assert isinstance(found[""], Unreadable) and "invisible" in str(found[""])


# Mail and archives


def letter() -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"] = "Pümpe broken"
    mail["From"], mail["To"], mail["Date"] = "a@example.org", "b@example.org", "Mon, 1 Jan 2024 10:00:00 +0000"
    mail.set_content("The plain form.")
    mail.add_alternative("<h2>Report</h2><p>The seal leaks.<p style='display:none'>secret", subtype="html")
    mail.add_attachment("# Notes\n\nAttached words.\n", subtype="markdown", filename="notes.md")
    inner = EmailMessage()
    inner["Subject"] = "Inner"
    inner.set_content("Forwarded words.")
    mail.add_attachment(inner)
    return mail


def test_mail(parsers: Parsers) -> None:
    texts = read(parsers, "a.eml", letter().as_bytes())
    assert set(texts) == {"", "notes.md", "2.eml"}
    mail = texts[""]
    assert mail.title == "Pümpe broken"
    assert headings(mail) == [(1, "Pümpe broken"), (3, "Report")]
    assert "From: a@example.org\nTo: b@example.org\nDate: Mon, 01 Jan 2024" in mail.text
    assert "The seal leaks." in mail.text and "secret" not in mail.text
    assert "plain form" not in mail.text, "mail programs show the other form"
    assert texts["notes.md"].text == "# Notes\n\nAttached words.\n"
    assert "Forwarded words." in texts["2.eml"].text


def test_mailbox(parsers: Parsers) -> None:
    plain = EmailMessage()
    plain["Subject"] = "Second"
    plain.set_content("Words of the second.\nFrom here on it is not a new mail.\n")
    box = b"From a@b Mon Jan 1\n" + letter().as_bytes() + b"\n\nFrom c@d Tue Jan 2\n" + plain.as_bytes()
    texts = read(parsers, "all.mbox", box)
    assert set(texts) == {"1.eml", "1.eml!/notes.md", "1.eml!/2.eml", "2.eml"}
    assert "From here on" in texts["2.eml"].text


def packed(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def taped(members: dict[str, bytes], mode: str = "w") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


MEMBERS = {
    "docs/a.md": b"# A\n\nFirst.\n",
    "docs/b.html": b"<h1>B</h1><p>Second.",
    "c.bin": b"\0\1",
    "./d.txt": b"Third.",
}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.zip", packed(MEMBERS)),
        ("a.tar", taped(MEMBERS)),
        ("a.tgz", taped(MEMBERS, "w:gz")),
        ("a.tar.bz2", taped(MEMBERS, "w:bz2")),
        ("a.tar.xz", taped(MEMBERS, "w:xz")),
    ],
)
def test_archives(parsers: Parsers, name: str, data: bytes) -> None:
    texts = read(parsers, name, data)
    assert set(texts) == {"docs/a.md", "docs/b.html", "d.txt"}
    assert texts["docs/a.md"].text == "# A\n\nFirst.\n"
    assert headings(texts["docs/b.html"]) == [(1, "B")]


def test_archives_in_archives_and_names(parsers: Parsers) -> None:
    inner = packed({"in.md": b"Inside.", "deep.tar.gz": taped({"x.txt": b"Deeper."}, "w:gz")})
    names = {"../../up.txt": b"up", "/abs.txt": b"abs", "sub\\win.txt": b"win", "a!/b.txt": b"sign", "inner.zip": inner}
    texts = read(parsers, "a.zip", packed(names))
    assert set(texts) == {
        "__/__/up.txt", "abs.txt", "sub/win.txt", "a!_/b.txt", "inner.zip!/in.md", "inner.zip!/deep.tar.gz!/x.txt",
    }  # fmt: skip
    assert texts["inner.zip!/deep.tar.gz!/x.txt"].text == "Deeper."


def test_two_members_of_one_name_are_two(parsers: Parsers) -> None:
    data = taped({"a/x.txt": b"one"})[:1024] + taped({"a/x.txt": b"two"})
    assert {member: text.text for member, text in read(parsers, "a.tar", data).items()} == {
        "a/x.txt": "one",
        "a/2~x.txt": "two",
    }


def test_a_compressed_file_is_its_only_member(parsers: Parsers) -> None:
    assert (
        read(parsers, "notes.md.gz", gzip.compress(b"# N\n") + gzip.compress(b"more\n"))["notes.md"].text
        == "# N\nmore\n"
    )
    assert read(parsers, "picture.png.gz", gzip.compress(b"x")) == {}


def test_a_zip_larger_than_its_own_numbers(parsers: Parsers, tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive, archive.open("a.md", "w", force_zip64=True) as member:
        member.write(b"# Wide\n")
    assert read(parsers, "a.zip", data.getvalue())["a.md"].text == "# Wide\n"
    assert read(parsers, "a.zip", b"#!/bin/sh\nexit\n" + packed(MEMBERS))["docs/a.md"].title == "A", "self-extracting"


# HTML


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("<p>é".encode(), "é"),
        ("<p>é".encode("utf-16"), "é"),
        (b'<meta charset="iso-8859-1"><p>\xe9', "é"),
        (b'<meta http-equiv="Content-Type" content="text/html; charset=koi8-r"><p>\xc1', "а"),
    ],
)
def test_encodings_of_pages(parsers: Parsers, page: bytes, words: str) -> None:
    assert one(parsers, "a.html", page).text == words


def test_navigation_is_no_text_of_a_page_that_has_more(parsers: Parsers) -> None:
    leading = (
        "<nav><a>Home</a> EVIL</nav><div role=navigation>Sidebar EVIL</div>"
        "<table summary='Navigation footer'><tr><td>Prev EVIL<td>Next</table>"
    )
    page = f"{leading}<table summary='Pumps'><tr><td>P1<td>5 bar</table><p>The pump runs.</p>"
    assert one(parsers, "a.html", page.encode()).text == "P1 | 5 bar\n\nThe pump runs."
    assert "Prev EVIL | Next" in one(parsers, "b.html", leading.encode()).text


def test_which_names_are_read() -> None:
    assert kind("a.tar.gz") == "tar" and kind("a.md.gz") == "packed" and kind("A.PDF") == "pdf"
    assert supported("docs/README") and supported("x.JSON") and not supported("a.png") and not supported("noend")
    assert all(supported(f"x{suffix}") for suffix in SUFFIXES)


def test_a_kind_that_is_not_read(parsers: Parsers) -> None:
    ((member, problem),) = documents("a.png", b"", parsers, Watch(1))
    assert member == "" and isinstance(problem, Unreadable) and problem.kind == Kind.GAP_KIND_UNREADABLE
