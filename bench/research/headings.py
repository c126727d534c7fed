"""Questions as they stand in the sources of documentation: found, cut out, and the answers below them."""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

# How the line of a question looks; group `q` is what is asked. Matched against the file as it is packaged.
STYLES = {
    "html": re.compile(r"<h(?P<level>[1-6])\b[^>]*>(?P<q>.*?)</h(?P=level)>", re.S | re.I),
    "bold": re.compile(r"<p><b>(?P<q>\(\d+\).*?)</b></p>", re.S),
    "emphasis": re.compile(r"<em>(?P<q>[^<]*)</em>\s*\??|<h(?P<level>[1-6])\b[^>]*>.*?</h(?P=level)>", re.S),
    "rst": re.compile(r"^(?:([=\-#~])\1{3,}\n)? ?(?P<q>[^\s.=\-#~*].*)\n([=\-~#^`*+.])\3{3,}$", re.M),
    "pod": re.compile(r"^=head[1-4] (?P<q>.+(?:\n.+)*)", re.M),
    "adoc": re.compile(r"^=+ (?P<q>.+)", re.M),
    "list": re.compile(r"^(?P<q>\S.*\?)::$", re.M),
    "numbered": re.compile(r"^\d+\.\d+\. (?P<q>\S.*(?:\n {5,}\S.*)*)\n\n", re.M),
}
LEAST_WORDS = 4  # of a question
LEAST_ANSWER = 15  # words, to be worth finding
SHINGLE = 5  # words in a row that identify a place

_ASKS = re.compile(
    r"(how|what|why|when|where|which|who|is|are|can|could|do|does|did|should|will|would|must|i|my|am|has|have)\b", re.I
)
_UNSEEN = re.compile(r"<(script|style|head)\b.*?</\1>|<!--.*?-->", re.S | re.I)
_TAG = re.compile(r"<[^>]*>")
_NUMBER = re.compile(r"^\s*(?:\(\d+\)|[A-Z]?\d+(?:\.\d+)*[.:)]?(?=\s)|Q:)\s*")
_POD_INDEX = re.compile(r"X<[^>]*>")
_POD = re.compile(r"[A-Z]<+\s?(?P<inner>[^<>]*)\s?>+")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it is written, and the words of its answer."""

    question: str
    answer: tuple[str, ...]


def words(text: str) -> tuple[str, ...]:
    """Returns the words of a text, lower case: what stays the same however it is extracted."""
    return tuple(_WORD.findall(text.casefold()))


def shingles(text: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    """Returns each run of SHINGLE words."""
    return frozenset(text[index : index + SHINGLE] for index in range(len(text) - SHINGLE + 1))


def asked(source: str, style: str) -> Iterator[Asked]:
    """Yields the questions of a document that have an answer."""
    found = list(STYLES[style].finditer(source))
    for match, following in zip_longest(found, found[1:]):
        question = _plain(match["q"] or "", style)
        answer = words(_plain(source[match.end() : following.start() if following else len(source)], style))
        if _is_question(question) and len(answer) >= LEAST_ANSWER:
            yield Asked(question, answer)


def cut(source: str, style: str) -> str:
    """Returns a document without its questions, neither as headings nor as links and lines of a table of contents."""
    gone = set()

    def drop(match: re.Match[str]) -> str:
        question = _plain(match["q"] or "", style)
        if not _is_question(question):
            return match[0]
        gone.add(words(question))
        return "\n"

    source = STYLES[style].sub(drop, source)
    if style in ("html", "bold", "emphasis"):
        return re.sub(
            r"<(a|li)\b[^>]*>(?:(?!<\1\b).)*?</\1>",
            lambda match: "" if words(_plain(match[0], style)) in gone else match[0],
            source,
            flags=re.S | re.I,
        )
    return _without_contents(source, gone, style)


def _without_contents(source: str, gone: set[tuple[str, ...]], style: str) -> str:
    kept = []
    for block in re.split(r"(?m)(?=^[ \t]*(?:\*|\d+\.\d+\.)[ \t])", source):
        first, newline, rest = block.partition("\n")
        label = re.sub(r"^[ \t]*\*[ \t]", "", first).split("::")[0]
        if words(_plain(label, style)) in gone:
            kept.append(newline + rest)
        elif style == "numbered" and words(_plain(block.strip(), style)) in gone:
            kept.append("\n")
        else:
            kept.append(block)
    return "".join(kept)


def _plain(text: str, style: str) -> str:
    if style in ("html", "bold", "emphasis"):
        text = re.sub(r"\s+([?!.,;:)])", r"\1", html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", text)))).replace("¶", "")
    if style == "pod":
        text = _POD.sub(lambda match: match["inner"], _POD_INDEX.sub("", text))
    return _NUMBER.sub("", re.sub(r"\s+", " ", text).strip().replace("`", "").removesuffix("# TOC").strip())


def _is_question(text: str) -> bool:
    return len(words(text)) >= LEAST_WORDS and (text.rstrip().endswith("?") or bool(_ASKS.match(text)))
