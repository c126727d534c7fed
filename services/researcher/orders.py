"""Tells text that gives orders to whoever, or whatever, reads it for somebody else. English; one layer of several.

Evidence is data whatever it says. This is for the case that a model followed it all the same.
"""

import re

_EARLIER = r"(?:all|any|every|your|its|their|my|our|previous|prior|earlier|above|preceding|former|foregoing|system)"
_ON = r"[^\w.;!?]+"  # to the next word of the same clause
_RULES = r"(?:instruct|order|prompt|rule|guideline|directi|command|polic|training|restriction|told|said|text|context)"
_READER = r"(?:ai|a\.i\.|llms?|language\s+models?|(?:ai\s+)?(?:assistants?|agents?)|chat\s?bots?|gpt|claude|crawlers?)"

_ORDER = re.compile(
    rf"""\b(?:
      (?:ignor\w*|disregard\w*|forget\w*|discard\w*)\b(?:{_ON}\w+){{0,2}}?{_ON}{_EARLIER}(?:{_ON}\w+){{0,3}}?{_ON}{_RULES}
    | (?:overrid\w+|bypass\w*|violat\w+)\W+(?:your|previous|prior|system)(?:\W+\w+){{0,2}}?\W+{_RULES}
    | (?:new|real|actual|updated|secret|hidden)\W+instructions?\W+(?:for|to)\W+(?:you|the|this|any)
    | instructions?\W+(?:for|to)\W+(?:the\W+|any\W+|all\W+)?{_READER}
    | (?:attention|note\W+to|message\W+(?:for|to)|dear|hey|hello)\W+(?:the\W+|any\W+|all\W+)?{_READER}\b
    | (?:you\W+are|act\W+as|pretend\W+(?:to\W+be|you\W+are))\W+(?:now\W+)?(?:an?\W+|the\W+)?(?:\w+\W+)?{_READER}\b
    | as\W+an?\W+(?:ai|a\.i\.|llm|language\W+model)\b
    | (?:if|when)\W+you\W+are\W+(?:an?\W+|the\W+)?{_READER}
    | (?:ai|a\.i\.|llms?|language\W+models?|assistants?)\W+(?:reading|that\W+reads?|who\W+reads?|summari[sz]ing)
    | (?:in|to|into)\W+your\W+(?:answer|report|summary|findings|claims?)\b
    | your\W+(?:answer|report|summary|response|reply|output|claims?)\W+(?:must|should|has\W+to|shall)
    | (?:system|developer)\W+prompt
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_COMMANDED = re.compile(
    r"""(?:^|[.!?:;,\n]\s*|\b(?:please|now)\s+)(?:
      (?:tell|inform|convince|assure|advise|persuade)\s+(?:the|your|any|every)\s+(?:user|reader|human|person|operator)
    | (?:do\s+not|don't|never)\s+(?:mention|reveal|disclose|cite)\b
    )|(?:^|[.!?:;,\n]\s*|\b(?:and|then|please|must|now)\s+)
      (?:reply|respond|answer|output|say|claim|state|conclude|report)\s+(?:only\b|exactly\b|with\b|that\b|as\s+follows|:)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SUBJECT = re.compile(
    r"prompt.?injection|injected\s+(?:instruction|order|prompt)|jailbreak|ignor\w+\s+.{0,20}(?:instruction|order)",
    re.IGNORECASE,
)


def commands_reader(text: str) -> bool:
    """Says whether a text gives orders to a machine or person that reads it on behalf of somebody."""
    return _ORDER.search(text) is not None or _COMMANDED.search(text) is not None


def asks_about_orders(objective: str) -> bool:
    """Says whether an objective is about such orders, so that quoting one can be an answer."""
    return _SUBJECT.search(objective) is not None
