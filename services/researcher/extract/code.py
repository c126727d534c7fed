"""Source code: the whole file is text, comments with it, since a reader sees them; definitions are its headings."""

import re
from collections.abc import Iterator

from services.researcher.documents import Heading
from services.researcher.watch import Watch

MAX_LINE = 200  # characters of a definition that are shown
TAB, INDENT = 4, 4  # columns
MAX_LEVEL = 6
CHECK_EVERY = 1_000  # definitions
_MODIFIERS = (
    "export|default|public|private|protected|internal|static|final|abstract|async|pub|unsafe|override|open|sealed|data"
    "|inline|virtual|partial|create|CREATE|or|OR|replace|REPLACE"
)
_WORDS = (
    "def|class|func|fun|function|fn|interface|struct|enum|trait|impl|module|namespace|message|service|rpc|type|record"
    "|protocol|extension|sub|proc|TABLE|VIEW|FUNCTION|table|view"
)
# Begins with a fixed character and never steps back, so that it reads 100 MB a second whatever the text.
_DEFINITION = re.compile(
    rf"\n(?P<indent>[ \t]*+)(?=[acdefimnoprstuvACFORTV])(?:(?:{_MODIFIERS})[ \t]++)*+(?:{_WORDS})[ \t]++(?=[\w(*])"
)


def definitions(text: str, watch: Watch) -> Iterator[Heading]:
    """Yields the lines that define something, in order, deeper ones by their indentation."""
    for number, found in enumerate(_DEFINITION.finditer("\n" + text)):
        if number % CHECK_EVERY == 0:
            watch.check()
        start = found.end("indent") - 1
        end = text.find("\n", start, start + MAX_LINE)
        shown = text[start : end if end >= 0 else start + MAX_LINE].rstrip().rstrip("{:").rstrip()
        if shown and shown[-1] not in ";.,":  # prose of a comment, or a declaration without a body
            level = len(found["indent"].expandtabs(TAB)) // INDENT + 1
            yield Heading(start, start + len(shown), min(level, MAX_LEVEL), " ".join(shown.split()))
