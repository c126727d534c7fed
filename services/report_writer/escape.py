"""Untrusted text → markdown that shows the text and does nothing else (CommonMark 0.31, GFM autolinks).

clean      what a reader could not see, or what would steer a terminal or the reading direction, goes
inline     one line of prose: no markup, no HTML, no live link
code_span  one line, as code
fenced     many lines, verbatim, in a fence the text cannot close
written    what a command wrote: every byte shown, none acted upon, for a fence
"""

import codecs
import re
from typing import NamedTuple

# ECMA-48: CSI sequences, OSC strings, other two-byte escapes.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_LINE_ENDS = re.compile("\r\n|[\r\u2028\u2029]")
# What `visible` shows by its number: C1 controls, soft hyphen, what is invisible, line ends of Unicode. Joiners only
# where they join nothing: scripts and emoji need the others.
_HIDDEN = re.compile(
    "[\x80-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
    "|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BYTES = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte that is no UTF-8 (PEP 383)
_LINE_CHARS = 1000  # of a line that `written` shows
_LONG_LINE = re.compile(f"[^\n]{{{_LINE_CHARS}}}(?=[^\n])")
_STRANGE = 2  # times what is shown may grow by being made visible; beyond, it is no text, and little of it is shown
_STRANGE_BYTES = 4096
# NUL, bidirectional controls (UAX #9), zero-width and tag characters. ZWJ and ZWNJ stay: scripts and emoji need them.
_INVISIBLE = re.compile(
    "[\x00\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_CONTROL = re.compile(r"[\x01-\x08\x0b-\x1f\x7f-\x9f]")
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#&~|$]")
_DOTTED = re.compile(r"(?<=\w)\.(?=[^\W\d_])")  # `example.com`, which linkifiers take for a link
_LINE_START = re.compile(r"(\d{0,9})([-+=:.)])")
_LINK_MARKS = ("//", "@", "www.")
_ELLIPSIS = "…"
_CHANGED_NOTE = "\n_Control and invisible characters are shown as symbols or left out._\n"
_WRITTEN_NOTE = (
    "\n_Controls are shown as symbols, other characters that cannot be seen as `<U+…>`, bytes that are no UTF-8 as "
    "`<FF>`; lines longer than 1,000 characters are broken at ↩._\n"
)


class Decoded(NamedTuple):
    """The beginning of some bytes as text, and how many bytes it leaves out."""

    text: str
    left_out: int


def clean(text: str) -> str:
    """Drops ANSI sequences, NUL, bidirectional and zero-width characters, and shows other controls as symbols.

    Line ends become `\\n`; tabs stay.
    """
    text = _LINE_ENDS.sub("\n", _ANSI.sub("", text))
    return _CONTROL.sub(_picture, _INVISIBLE.sub("", text))


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode block "Control Pictures"
    return "\u2421" if code == 0x7F else "\ufffd"


def fold(text: str) -> str:
    """Returns the text clean and on one line, each run of white space one space."""
    return " ".join(clean(text).split())


def shorten(text: str, limit: int) -> str:
    """Returns the text, or its first `limit` characters with an ellipsis for the last."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + _ELLIPSIS


def inline(text: str) -> str:
    """Returns the text as one line of prose that renders as itself, safe also at the start of a line.

    What looks like an address is shown as code: renderers link bare ones, and no backslash stops all of them.
    """
    line = " ".join(_word(word) for word in fold(text).split(" "))
    return _LINE_START.sub(r"\1\\\2", line, count=1) if _LINE_START.match(line) else line


def _word(word: str) -> str:
    if any(mark in word.lower() for mark in _LINK_MARKS):
        return code_span(word)
    return _DOTTED.sub(r"\\.", _MARKUP.sub(r"\\\g<0>", word))


def code_span(text: str) -> str:
    """Returns the text as one code span; white space is folded. An empty text gives an empty pair of quotes."""
    line = fold(text) or '""'
    ticks = "`" * (_longest_run(line) + 1)
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def fenced(text: str, language: str = "text") -> str:
    """Returns the text as a fenced code block ending in a line end, with a note when not every character is shown."""
    shown = clean(text)
    return _fence(shown, language) + ("" if shown == _LINE_ENDS.sub("\n", text) else _CHANGED_NOTE)


def _fence(shown: str, language: str) -> str:
    ticks = "`" * max(3, _longest_run(shown) + 1)
    end = "" if shown.endswith("\n") else "\n"
    return f"{ticks}{language}\n{shown}{end}{ticks}\n"


def written(data: bytes, limit: int, complete: bool, language: str = "text") -> Decoded:
    """Returns the beginning of what a command wrote as a fenced code block in which every byte can be seen, and how
    many bytes are not shown.

    Controls are shown as symbols, other characters that cannot be seen as <U+202E>, bytes that are no UTF-8 as <FF>.
    Of what is mostly such, 4 KiB are enough. `complete` as for `decode`.
    """
    plain, left_out = decode(data, limit, complete, "surrogateescape")
    shown = visible(plain)
    if len(shown.encode()) > _STRANGE * max(len(data[:limit]), _STRANGE_BYTES):
        plain, left_out = decode(data, min(limit, _STRANGE_BYTES), complete, "surrogateescape")
        shown = visible(plain)
    if not shown:
        return Decoded("", left_out)
    note = "" if shown == plain.replace("\r\n", "\n") else _WRITTEN_NOTE
    return Decoded(_fence(shown, language) + note, left_out)


def visible(text: str) -> str:
    """Returns the text with all that cannot be seen, or would act on a reader's screen, shown by symbol or number.

    Line ends become `\\n`, also a return that would overwrite its line; tabs stay. Long lines are broken.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\u240d\n")
    text = _HIDDEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", _CONTROLS.sub(_picture, text))
    text = _BYTES.sub(lambda found: f"<{ord(found[0]) - 0xDC00:02X}>", text)
    return _LONG_LINE.sub("\\g<0>↩\n", text)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def decode(data: bytes, limit: int, complete: bool, errors: str = "replace") -> Decoded:
    """Decodes the first `limit` bytes as UTF-8; wrong bytes become U+FFFD, or what `errors` says (codecs).

    A character cut in two at the end is left out and counted; when `complete`, the data itself is known to be whole
    and its last bytes are taken for what they are.
    """
    kept = data[:limit]
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    text = decoder.decode(kept, final=complete and len(kept) == len(data))
    pending: bytes = decoder.getstate()[0]
    return Decoded(text, len(data) - len(kept) + len(pending))
