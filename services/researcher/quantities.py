"""Numbers, units and dates of a text, comparable however they are written. English names of months and numbers."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from services.researcher.documents import Span

MAX_LABEL = 30  # characters

_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―−", "-"))
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)\]-])-)?(?<![A-Za-z0-9_])(?<!\d[.,:/])[vV]?"
    r"(?P<body>\d+(?:[.,:/\u00a0\u2009\u202f]\d+)*)(?P<ordinal>(?:st|nd|rd|th)\b)?"
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_THIN = re.compile(r"[\u00a0\u2009\u202f]")
_WORD = re.compile(r"[A-Za-z%°µμ€$£¥]+")
_NEXT = re.compile(r"\s?-?([A-Za-z]+|%|°[CF]|[µμ]s|[€$£¥])")

_ONES = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
"""
_TIES = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: number for number, word in enumerate(_ONES.split())}
_TENS = {word: 10 * number for number, word in enumerate(_TIES.split(), start=2)}
_NUMERAL = re.compile(
    rf"\b(?:(?P<tens>{'|'.join(_TENS)})(?:-(?P<ones>{'|'.join(_SMALL)}))?|(?P<small>{'|'.join(_SMALL)}))\b",
    re.IGNORECASE,
)
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_UNITS = {
    name: group.split()[0]
    for group in (
        "% percent pct",
        "ns nanosecond nanoseconds",
        "us µs μs microsecond microseconds",
        "ms msec millisecond milliseconds",
        "s sec secs second seconds",
        "min mins minute minutes",
        "h hr hrs hour hours",
        "d day days",
        "week weeks",
        "month months",
        "year years yr yrs",
        "byte bytes",
        "bit bits",
        "kb kilobyte kilobytes",
        "kib kibibyte kibibytes",
        "mb megabyte megabytes",
        "mib mebibyte mebibytes",
        "gb gigabyte gigabytes",
        "gib gibibyte gibibytes",
        "tb terabyte terabytes",
        "hz hertz",
        "khz",
        "mhz",
        "ghz",
        "mm millimetre millimetres millimeter millimeters",
        "cm centimetre centimetres centimeter centimeters",
        "m metre metres meter meters",
        "km kilometre kilometres kilometer kilometers",
        "mg milligram milligrams",
        "g gram grams",
        "kg kilogram kilograms",
        "°c celsius",
        "°f fahrenheit",
        "€ eur euro euros",
        "$ usd dollar dollars",
        "£ gbp pound pounds",
        "times",
        "watt watts w",
        "volt volts v",
    )
    for name in group.split()
}
# Words before a number that names something and measures nothing.
_NAMING = "version release section chapter figure table example step page appendix rfc issue bug code status clause"
_LABELS = frozenset(_NAMING.split())
_BEFORE = re.compile(r"([A-Za-z]+)(?:[ \u00a0]|(?<=[A-Z])/)$")
_YEAR = "january february march april may june july august september october november december"
_MONTHS = _YEAR.split()
_MONTH = r"(?P<month>" + "|".join(rf"{name[:3]}(?:{name[3:]})?" for name in _MONTHS) + r"|sept)\b\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?<!\d)(?P<year>\d{4})-(?P<number>\d{2})-(?P<day>\d{2})(?!\d)",
        rf"(?<![\d.]){_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+(?P<year>\d{{4}}))?",
        rf"\b{_MONTH}\s+{_DAY}(?!\d)(?:,?\s+(?P<year>\d{{4}}))?",
        rf"\b{_MONTH},?\s+(?P<year>\d{{4}})",
    )
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as it is compared. `unit` is empty when none that is known stands behind it."""

    value: str
    unit: str
    span: Span


@dataclass(frozen=True, slots=True)
class Date:
    """A day, a month of a year, or a day of a month. 0: not said."""

    year: int
    month: int
    day: int
    span: Span

    def within(self, other: "Date") -> bool:
        """Says whether all that this date says is what the other says."""
        pairs = ((self.year, other.year), (self.month, other.month), (self.day, other.day))
        return all(mine in (0, theirs) for mine, theirs in pairs)


def dates(text: str) -> list[Date]:
    """Returns the dates of a text whose month is plain to see; 3/4/2024 is none."""
    plain = text.translate(_DASHES)
    found: list[Date] = []
    for pattern in _DATES:
        for match in pattern.finditer(plain):
            if not any(_meet(match.span(), other.span) for other in found):
                found.append(_date(match))
    return found


def quantities(text: str) -> list[Quantity]:
    """Returns the numbers of a text, written in digits or as words, with the units behind them."""
    plain = text.translate(_DASHES)
    found = [_digits(match, plain) for match in _NUMBER.finditer(plain)]
    taken = [each.span for each in found]
    for match in _NUMERAL.finditer(plain):
        if not any(_meet(match.span(), span) for span in taken):
            found.append(_spelled(match, plain))
    return sorted(found, key=lambda each: each.span)


def labels(text: str) -> set[str]:
    """Returns the numbers that name what is spoken of: "exit code 1", "Linux 2.6", "HTTP/1.1", each with its word."""
    return {f"{word} {each.value}" for each in quantities(text) if (word := _label(each, text))}


def measures(text: str) -> bool:
    """Says whether a text gives a number, or a measure, that is no label."""
    return any((each.unit or text[each.span[0]].isdigit()) and not _label(each, text) for each in quantities(text))


def _label(quantity: Quantity, text: str) -> str:
    """Returns the word whose number it is, in lower case; empty when it measures or counts something."""
    before = _BEFORE.search(text, max(quantity.span[0] - MAX_LABEL, 0), quantity.span[0])
    if quantity.unit or before is None:
        return ""
    word = before[1]
    opens = not text[: before.start()].rstrip(" \t*_`\"'(").removesuffix(":")[-1:].strip(".!?:;")
    named = word.lower() in _LABELS or (word[0].isupper() and not opens)
    return word.lower() if named else ""


def parts(quantity: Quantity) -> Iterator[Quantity]:
    """Yields a number and the numbers it consists of: the port of an address, the year of 3/4/2024."""
    yield quantity
    pieces = re.split(r"[:/]", quantity.value)
    if len(pieces) > 1:
        for piece in pieces:
            yield Quantity(piece, quantity.unit, quantity.span)


def units(text: str) -> set[str]:
    """Returns the units a text names, those in identifiers such as timeout_ms too."""
    return {_UNITS[word] for match in _WORD.finditer(text) if (word := match[0].lower()) in _UNITS}


def borne_out(claimed: Quantity, quoted: Iterable[Quantity], named: set[str]) -> bool:
    """Says whether a claimed number stands among the quoted ones, with its unit, or one of the units `named` beside."""
    same = [each for quantity in quoted for each in parts(quantity) if each.value == claimed.value]
    if not claimed.unit:
        return bool(same)
    return any(each.unit == claimed.unit or (not each.unit and claimed.unit in named) for each in same)


def _meet(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _date(match: re.Match[str]) -> Date:
    groups = match.groupdict()
    month = int(groups["number"]) if groups.get("number") else 0
    if groups.get("month"):
        short = groups["month"][:3].lower()
        month = next(number for number, name in enumerate(_MONTHS, start=1) if name.startswith(short))
    return Date(int(groups.get("year") or 0), month, int(groups.get("day") or 0), match.span())


def _digits(match: re.Match[str], text: str) -> Quantity:
    body = _THIN.sub("", match["body"])
    if _THOUSANDS.fullmatch(body):
        body = body.replace(",", "")
    return _measured((match["sign"] or "") + body, match.span(), text)


def _spelled(match: re.Match[str], text: str) -> Quantity:
    if match["small"]:
        return _measured(str(_SMALL[match["small"].lower()]), match.span(), text)
    ones = _SMALL[match["ones"].lower()] if match["ones"] else 0
    return _measured(str(_TENS[match["tens"].lower()] + ones), match.span(), text)


def _measured(value: str, span: Span, text: str) -> Quantity:
    """Adds what stands behind a number: a power of ten as a word, then a unit."""
    start, end = span
    behind = _NEXT.match(text, end)
    while behind is not None and (power := _POWERS.get(behind[1].lower())) and (scaled := _scaled(value, power)):
        value, end = scaled, behind.end()
        behind = _NEXT.match(text, end)
    unit = _unit(behind[1]) if behind is not None else ""
    if unit and behind is not None:
        end = behind.end()
    elif start and text[start - 1] in "€$£¥":
        unit = _UNITS.get(text[start - 1], "")
    return Quantity(value, unit, (start, end))


def _unit(word: str) -> str:
    """Returns the unit a word names. Single letters are units as they are written only: 5 m, but not 5 M."""
    return _UNITS.get(word.lower(), "") if len(word) > 1 or word.islower() or word in "WV€$£¥%" else ""


def _scaled(value: str, power: int) -> str:
    """Multiplies a decimal number by a power of ten without rounding. Empty when it is no decimal number."""
    whole, _, fraction = value.partition(".")
    if not (whole.removeprefix("-") + fraction).isdigit():
        return ""
    digits = fraction[:power].ljust(power, "0")
    rest = fraction[power:]
    return (whole + digits).lstrip("0") + (f".{rest}" if rest else "")
