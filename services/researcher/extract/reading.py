"""Bytes of a document → its text and structure; of an archive or a mail, also those of its members.

Plain formats are decoded here: their text is the file itself. Everything native or complex is parsed in a process of
its own (parsers.py), whose answers are checked here before anything is made of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from services.researcher.documents import Heading, Kind, Outline, Place, Text, Unreadable
from services.researcher.extract import markup
from services.researcher.extract.kept import key_of
from services.researcher.extract.kinds import PLAIN, SUFFIXES, kind, supported
from services.researcher.extract.parsers import ParserDied, Parsers
from services.researcher.watch import Watch

__all__ = ["SUFFIXES", "Parsers", "again", "document", "documents", "only", "parsed", "supported"]

MAX_DEATHS = 8  # of parsers over one file; an archive of many bombs is not read to its end
_GARBAGE = "Its parser answered with what is no answer; it may have been taken over."

Found: TypeAlias = tuple[str, Text | Unreadable]


def documents(name: str, data: bytes, parsers: Parsers, watch: Watch) -> Iterator[Found]:
    """Yields what a file holds, each with the member it comes from: "" for the file itself.

    A member of an archive or mail is named by its path in there, one inside that behind "!/". After a text may come,
    for the same member, why it is not all of it. Members that are no documents are passed over.

    Args:
        name: the file's name; its suffix says what it is.

    Raises Cancelled and OutOfTime.
    """
    what = kind(name)
    if not what:
        yield "", Unreadable("It is of a kind that is not read.")
    elif what in PLAIN:
        yield "", _plain(name, what, data, watch)
    else:
        yield from parsed(name, None, data, parsers, watch)


def document(name: str, member: str, data: bytes, parsers: Parsers, watch: Watch) -> Text:
    """Returns the text of one member, as `documents` gave it. Raises Unreadable, Cancelled, OutOfTime.

    The same bytes are not parsed again soon after: their text is a matter of them alone (see parsers.py).
    """
    if kind(name) in PLAIN or not kind(name):
        return only(iter([next(documents(name, data, parsers, watch))]), member)
    return again(name, member, data, parsers, watch)


def again(name: str, member: str, data: bytes, parsers: Parsers, watch: Watch) -> Text:
    """Returns the text of one member that a parser process makes, or made lately of the same bytes.

    Raises Unreadable, Cancelled, OutOfTime.
    """
    key = key_of(name, member, data)
    if (text := parsers.kept.get(key)) is None:
        found = list(parsed(name, member, data, parsers, watch))
        text = only(iter(found), member)
        if not any(isinstance(each, Unreadable) for _, each in found):  # else more may be read another time
            parsers.kept.put(key, text)
    return text


def only(found: Iterator[Found], member: str) -> Text:
    """Returns the text of one member among what a file holds. Raises Unreadable."""
    problem = Unreadable(f"It has no member {member!r} any more." if member else "It holds no text.")
    text: Text | None = None
    for name, each in found:  # to the end, so that the parser is free again
        if isinstance(each, Text) and name == member and text is None:
            text = each
        elif isinstance(each, Unreadable) and text is None:
            problem = each
    if text is None:
        raise problem
    return text


def _plain(path: str, what: str, data: bytes, watch: Watch) -> Text | Unreadable:
    try:
        return markup.read(path.rpartition("/")[2], what, data, watch)
    except Unreadable as problem:
        return problem


def parsed(name: str, wanted: str | None, data: bytes, parsers: Parsers, watch: Watch) -> Iterator[Found]:
    """Yields what a parser process makes of a file, checked. Raises as `documents`.

    Args:
        wanted: the one member to read; None for all.
    """
    progress, again = _Progress(), True
    for _ in range(MAX_DEATHS):
        given = False
        try:
            head = {"name": name, "wanted": wanted, "after": progress.after}
            for answer, body in parsers.parse(head, data, watch):
                try:
                    member, found = progress.take(name, answer, body)
                except (KeyError, TypeError, ValueError):
                    yield "", Unreadable(_GARBAGE)
                    return
                if isinstance(found, bytes):
                    found = _plain(member, kind(member), found, watch)
                if found is not None:
                    given = True
                    yield member, found
            return
        except ParserDied as died:
            if again and not (died.lasting or given):
                again = False  # the document was not why, so it is tried once more
                continue
            yield progress.member, Unreadable(str(died), lasting=died.lasting)
            if not progress.pass_over():
                return
    yield "", Unreadable(f"Its members ended {MAX_DEATHS} parsers. The rest is left out.", Kind.GAP_KIND_TRUNCATED)


@dataclass(slots=True)
class _Progress:
    """How far the parser is in a file, so that a death costs one member and not those behind it."""

    member: str = ""  # at which the parser works
    number: int = 0
    after: int = 0  # members up to this number are done

    def take(self, name: str, answer: dict[str, Any], body: bytes) -> tuple[str, Text | Unreadable | bytes | None]:
        """Returns what a frame holds; bytes of a plain member. Raises KeyError, TypeError or ValueError."""
        member = str(answer["member"])
        what = answer["kind"]
        if what == "begun":
            self.member, self.number = member, int(answer["number"])
            return member, None
        if what == "trouble":
            gap = Kind.GAP_KIND_TRUNCATED if answer["truncated"] is True else Kind.GAP_KIND_UNREADABLE
            return member, Unreadable(str(answer["detail"])[:500], gap)
        if what == "raw":
            return member, body
        if what != "part":
            raise ValueError
        return member, _text((member or name).rpartition("/")[2], answer, body)

    def pass_over(self) -> bool:
        """Goes on behind the member at which the parser died; False when that is of no use."""
        if self.number <= self.after:
            return False
        self.after = self.number
        return True


def _text(title: str, answer: dict[str, Any], body: bytes) -> Text:
    """Makes a text of an answer. Raises KeyError, TypeError or ValueError when it does not hold together."""
    text = body.decode()
    places = tuple(
        Place(int(start), int(page), str(sheet), int(row), str(cells))
        for start, page, sheet, row, cells in answer["places"]
    )
    headings = [
        Heading(int(start), int(end), int(level), shown)
        for start, end, level in answer["headings"]
        if (shown := markup.words(text[int(start) : int(end)]))
    ]
    for starts in ([place.start for place in places], [heading.start for heading in headings]):
        if any(not 0 <= start <= len(text) for start in starts) or starts != sorted(starts):
            raise ValueError("places are out of order, or outside of the text")
    if any(not heading.start <= heading.end <= len(text) for heading in headings):
        raise ValueError("a heading is outside of the text")
    first = headings[0].text if headings else title
    own = markup.words(str(answer["title"]))
    return Text(text, own or first, Outline(headings), ((0, len(text)),) if text else (), places)
