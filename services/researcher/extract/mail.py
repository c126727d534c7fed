"""E-mail (RFC 5322, MIME) and mailboxes (RFC 4155): headers a reader sees, the text, attachments as members.

Of a text and an HTML form of the same mail the HTML one is read, by the rules for pages: it is what mail programs show,
and the other may say what nobody sees.
"""

import email
import email.policy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

from services.researcher.extract import hypertext
from services.researcher.extract.archives import Member
from services.researcher.extract.parts import Page, Part

HEADERS = ("From", "To", "Cc", "Date")
MAX_HEADER = 1_000  # characters shown of one
MAX_PARTS = 1_000  # of one mail
_SPACE = re.compile(r"\s+")
_FROM_LINE = re.compile(rb"^From [^\n]*\n", re.M)


@dataclass(slots=True)
class Letter:
    """A mail: what a reader sees, and what is attached."""

    part: Part
    attachments: list[Member] = field(default_factory=list)


def prepare() -> None:
    """Has the standard library import what it imports at the first mail."""
    mail = MIMEMultipart()
    mail["Subject"] = "=?utf-8?q?prepare?="
    mail.attach(MIMEApplication(b"prepare", name="a.txt"))
    mail.attach(MIMEText("prepare", _charset="utf-8"))
    for _, attached in read(mail.as_bytes()).attachments:
        attached()


def read(data: bytes) -> Letter:
    """Reads one mail."""
    # The older policy: the newer one parses every address by a grammar, which takes long for hostile ones.
    mail = email.message_from_bytes(data.lstrip(b"\r\n"), policy=email.policy.compat32)
    page = Page()
    subject = _header(mail, "Subject")
    if subject:
        page.heading(subject, 1)
        page.add("\n\n")
    for name in HEADERS:
        if value := _header(mail, name):
            page.add(f"{name}: {value}\n")
    attachments: list[Member] = []
    for body in _walk(mail, attachments, [MAX_PARTS]):
        page.add("\n")
        _append(page, body)
    return Letter(page.part(subject), attachments)


def messages(data: bytes) -> Iterator[Member]:
    """Yields the mails of a mailbox, named by their number."""
    starts = [found for found in _FROM_LINE.finditer(data) if _begins(data, found.start())]
    for number, found in enumerate(starts):
        end = starts[number + 1].start() if number + 1 < len(starts) else len(data)
        yield f"{number + 1}.eml", _slice(data, found.end(), end)


def _begins(data: bytes, at: int) -> bool:
    return at == 0 or data[max(at - 2, 0) : at] == b"\n\n" or data[max(at - 4, 0) : at] == b"\r\n\r\n"


def _slice(data: bytes, start: int, end: int) -> Callable[[], bytes]:
    return lambda: data[start:end]


def _header(mail: Message, name: str) -> str:
    value = str(mail.get(name) or "")[: 2 * MAX_HEADER]
    return _SPACE.sub(" ", _readable(value)).strip()[:MAX_HEADER]


def _readable(value: str) -> str:
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, ValueError):  # shown as it was sent
        return value


def _walk(mail: Message, attachments: list[Member], left: list[int]) -> Iterator[Part]:
    """Yields the texts of a mail in order; what is attached goes to the list."""
    waiting: list[Message] = [mail]
    while waiting and left[0] > 0:
        left[0] -= 1
        each = waiting.pop()
        inner = each.get_payload()
        if each.get_content_type() == "message/rfc822" and isinstance(inner, list):
            attachments.append((each.get_filename() or f"{len(attachments) + 1}.eml", _attached(each)))
        elif each.get_content_type() == "multipart/alternative" and isinstance(inner, list):
            waiting += _best([form for form in inner if isinstance(form, Message)])
        elif isinstance(inner, list):
            waiting += [part for part in reversed(inner) if isinstance(part, Message)]
        elif each.get_content_disposition() == "attachment" or each.get_filename():
            attachments.append((_filename(each), _attached(each)))
        elif each.get_content_type() == "text/html":
            yield hypertext.part(_decoded(each))
        elif each.get_content_maintype() == "text":
            yield Part("", _decoded(each).replace("\r\n", "\n"))


def _best(forms: list[Message]) -> list[Message]:
    """Returns the form of a mail that its reader sees."""
    pages = [form for form in forms if form.get_content_type() in ("text/html", "multipart/related")]
    return pages[-1:] or forms[:1]


def _filename(part: Message) -> str:
    return _readable(part.get_filename() or "unnamed")


def _attached(part: Message) -> Callable[[], bytes]:
    def read() -> bytes:
        inner = part.get_payload()
        if isinstance(inner, list):
            first = inner[0] if inner else None
            return first.as_bytes() if isinstance(first, Message) else b""
        data = part.get_payload(decode=True)
        return data if isinstance(data, bytes) else b""

    return read


def _decoded(part: Message) -> str:
    data = part.get_payload(decode=True)
    if not isinstance(data, bytes):
        return ""
    try:
        return data.decode(str(part.get_content_charset() or "utf-8"), "replace").replace("\0", "\ufffd")
    except LookupError:  # a charset nobody knows
        return data.decode("utf-8", "replace").replace("\0", "\ufffd")


def _append(page: Page, body: Part) -> None:
    shift = page.length
    page.headings += [(start + shift, end + shift, level + 1) for start, end, level in body.headings]
    page.add(body.text.rstrip() + "\n")
