"""The corpus of the evaluation: documentation without the lines of its questions, and the answers it holds."""

import hashlib
import html
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.research.headings import Asked, asked, cut
from bench.research.hostile import write_hostile, zipped
from bench.research.packages import LIST, Package, packages

VAR = Path(__file__).resolve().parent.parent.parent / "var" / "research-eval"
QUESTIONS = Path(__file__).with_name("questions.tsv")  # package, question
UNANSWERABLE = Path(__file__).with_name("unanswerable.tsv")  # package, question
FORM = b"1"  # of what this module writes; another one when it writes differently
INFO_CONTROLS = b"\x00\x08\x1f"  # marks of the Info reader that are no text
AS_WORD = "debian-faq"  # the package whose pages become Word documents
_BLOCK = re.compile(r"<(?P<tag>p|h[1-6]|li|pre|dt|dd)\b[^>]*>(?P<text>.*?)(?=<(?:p|h[1-6]|li|pre|dt|dd)\b|$)", re.S)
_TAG = re.compile(r"<[^>]*>")
_WORD_PARTS = {  # ECMA-376 part 1: what a Word document has at least
    "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default '
    'Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>',
    "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship '
    'Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    'Target="word/document.xml"/></Relationships>',
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question of the set. `answer` are the words of its passage, none when the corpus does not answer it."""

    text: str
    package: str
    answer: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether it belongs to the half that nothing is tuned on."""
        return hashlib.sha256(self.text.encode()).digest()[0] % 2 == 1


@dataclass(frozen=True, slots=True)
class Built:
    """The corpus on disk, and the questions to ask of it."""

    folder: Path
    hostile: Path
    answerable: tuple[Question, ...]
    unanswerable: tuple[Question, ...]


def build(var: Path = VAR) -> Built:
    """Builds the corpus where it is not built yet, and returns it with its questions. Raises Missing."""
    folder = var / f"corpus-{_key()}"
    if not folder.exists():
        half_built = var / "half-built"
        shutil.rmtree(half_built, ignore_errors=True)
        (half_built / "docs").mkdir(parents=True)
        found = [each for package in packages() for each in _write(package, half_built / "docs", var / "packages")]
        (half_built / "asked.json").write_text(json.dumps(found))
        write_hostile(half_built / "hostile")
        half_built.rename(folder)
    found = json.loads((folder / "asked.json").read_text())
    answers = {(package, question): tuple(answer) for package, question, answer in found}
    return Built(
        folder / "docs",
        folder / "hostile",
        tuple(Question(text, name, answers[name, text]) for name, text in listed(QUESTIONS) if (name, text) in answers),
        tuple(Question(text, name, ()) for name, text in listed(UNANSWERABLE)),
    )


def every_question(var: Path = VAR) -> Iterator[tuple[Package, Asked]]:
    """Yields every question of the packages, those too that are no good; from these the lists were chosen."""
    for package in packages():
        for name, data in package.files(var / "packages"):
            if (style := package.style(name)) is not None:
                for each in asked(_decoded(data), style):
                    yield package, each


def listed(path: Path) -> list[tuple[str, str]]:
    """Returns the (package, question) lines of a list."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [(package, question) for package, _, question in (line.partition("\t") for line in lines if line)]


def _key() -> str:
    sources = [LIST, *(Path(__file__).with_name(name) for name in ("headings.py", "hostile.py"))]
    return hashlib.sha256(b"".join((FORM, *(path.read_bytes() for path in sources)))).hexdigest()[:12]


def _write(package: Package, docs: Path, cache: Path) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Writes a package's part of the corpus; yields what is asked in it."""
    for name, data in package.files(cache):
        style = package.style(name)
        if style is not None:
            text = _decoded(data)
            for each in asked(text, style):
                yield package.name, each.question, each.answer
            data = cut(text, style).encode()
        if package.take:
            _put(docs / package.name, name, data)


def _put(folder: Path, name: str, data: bytes) -> None:
    """Writes a document under a name and in a form that people keep such documents in."""
    name = re.sub(r"\.rst\.txt$", ".rst", name)
    if name.endswith(".pod"):
        name, data = name[:-3] + "md", _markdown(data)
    elif folder.name == AS_WORD:
        name, data = name[:-4] + "docx", _word(_decoded(data))
    elif "." not in name.rpartition("/")[2] or name.endswith(".info"):
        name, data = name + ".txt", data.translate(None, INFO_CONTROLS)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _markdown(pod: bytes) -> bytes:
    """Returns perlpod(1) as markdown: headings and items; everything else reads the same."""
    text = re.sub(r"^=head([1-4]) ", lambda match: "#" * int(match[1]) + " ", _decoded(pod), flags=re.M)
    text = re.sub(r"^=item ", "- ", text, flags=re.M)
    text = re.sub(r"^=(over|back|cut|pod|encoding|for|begin|end)\b.*\n", "", text, flags=re.M)
    for _ in range(2):  # codes stand in codes
        text = re.sub(r"\b[BCFIL]<(?:<+ )?([^<>|]*(?:->[^<>|]*)*)(?: >+)?>", r"\1", text)
    return text.encode()


def _word(page: str) -> bytes:
    """Returns an HTML page as a Word document of headings and paragraphs."""
    paragraphs = []
    for block in _BLOCK.finditer(page):
        text = re.sub(r"\s+", " ", html.unescape(_TAG.sub(" ", block["text"]))).strip()
        if text:
            tag = block["tag"]
            style = f'<w:pPr><w:pStyle w:val="Heading{tag[1]}"/></w:pPr>' if tag[0] == "h" else ""
            run = f'<w:r><w:t xml:space="preserve">{html.escape(text)}</w:t></w:r>'
            paragraphs.append(f"<w:p>{style}{run}</w:p>")
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    document = f'<w:document xmlns:w="{space}"><w:body>{"".join(paragraphs)}</w:body></w:document>'
    return zipped({**_WORD_PARTS, "word/document.xml": document})
