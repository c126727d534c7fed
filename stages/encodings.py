"""Which encoding a text file has: by its mark, by being valid UTF-8 to the last byte, or by a guess that is said."""

import codecs
from dataclasses import dataclass
from pathlib import Path

from stages.contract import MIB
from stages.formats import half_null

SAMPLE = 64 * 1024  # bytes of lines with foreign characters that a guess is made from
WESTERN = "cp1252"  # what most files that are not UTF-8 are
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_OTHERS = ["cp1250", "cp1251", "cp1253", "cp1254", "koi8_r", "shift_jis", "euc_jp", "euc_kr", "gb18030", "big5"]
_FEW = 8  # bytes above 127 under which the Western encoding is taken when it fits
_LESS_CHAOS = 0.05  # by which another guess must beat the Western one: few accents fit many code pages


@dataclass(frozen=True, slots=True)
class Encoding:
    """An encoding by Python's name, how sure it is (0 to 1), and whether it was guessed."""

    name: str
    confidence: float = 1.0
    guessed: bool = False


def encoding_of(path: Path) -> Encoding:
    """Returns the encoding of a text file, which is read to its end unless a mark at its start tells it."""
    with path.open("rb") as file:
        head = file.read(4096)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return Encoding(name) if is_readable(path, name) else Encoding(name, 0.5, guessed=True)
    if half_null(head):
        little = head[1::2].count(0) > head[0::2].count(0)
        return Encoding("utf-16-le" if little else "utf-16-be", 0.9, guessed=True)
    return Encoding("utf-8") if is_readable(path, "utf-8") else guess(_foreign_lines(path))


def is_readable(path: Path, name: str) -> bool:
    """Tells whether every byte of the file makes sense in an encoding."""
    decoder = codecs.getincrementaldecoder(name)()
    with path.open("rb") as file:
        try:
            while piece := file.read(MIB):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        except UnicodeError:
            return False
    return True


def guess(sample: bytes) -> Encoding:
    """Returns the likeliest encoding of bytes that are not UTF-8; Western unless another is clearly better."""
    foreign = sum(byte > 127 for byte in sample)
    sure = round(min(0.9, 0.4 + foreign / 400), 2)
    if foreign < _FEW and _fits(sample, WESTERN):
        return Encoding(WESTERN, sure, guessed=True)
    import charset_normalizer  # here, since few files need it and it costs .05 s to load

    matches = charset_normalizer.from_bytes(sample, cp_isolation=[WESTERN, *_OTHERS], threshold=0.5)
    found = {name: match for match in matches for name in (match.encoding, *match.could_be_from_charset)}
    best, western = matches.best(), found.get(WESTERN)
    if best is None:
        return Encoding(WESTERN if _fits(sample, WESTERN) else "iso8859_15", 0.2, guessed=True)
    if western is not None and western.chaos <= best.chaos + _LESS_CHAOS and western.coherence >= best.coherence:
        return Encoding(WESTERN, sure, guessed=True)
    return Encoding(best.encoding, sure, guessed=True)


def _fits(sample: bytes, name: str) -> bool:
    try:
        sample.decode(name)
    except UnicodeError:
        return False
    return True


def _foreign_lines(path: Path) -> bytes:
    """Returns lines that have bytes above 127, SAMPLE bytes at most: the others say nothing about the encoding."""
    lines: list[bytes] = []
    size = 0
    with path.open("rb") as file:
        while size < SAMPLE and (line := file.readline(SAMPLE)):
            if not line.isascii():
                lines.append(line)
                size += len(line)
    return b"".join(lines)[:SAMPLE]


def decoded_start(head: bytes, whole: bool) -> str:
    """Returns the text of a file's first bytes, up to the last line end when they are not the `whole` file."""
    name = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    if name == "utf-8" and half_null(head):
        name = "utf-16-le" if head[1::2].count(0) > head[0::2].count(0) else "utf-16-be"
    try:
        text = codecs.getincrementaldecoder(name)().decode(head, final=whole)
    except UnicodeError:
        text = head.decode(guess(head).name, errors="replace")
    return text if whole else text[: text.rfind("\n") + 1] or text
