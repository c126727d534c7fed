"""Whether an objective is written in English, which is the only language whose words are understood."""

import re
from collections.abc import Sequence

from stages.intent_text import Token
from stages.words import COMMON, apart

# Words of other languages that ask for what is done here: one of them tells.
_ASKING_TEXT = """
vorhersagen vorhersage vorherzusagen voraussagen prognose prognostizieren beeinflussen beeinflusst schätzen
schätze klassifizieren bestimmen erklären erkläre faktoren
prédire prédis prédiction prévoir prévision estimer classer expliquer influencent facteurs quels quelles
predecir predice predicción pronosticar pronóstico clasificar estimar explicar influyen factores cuáles
prevedere previsione prevedi stimare classificare spiegare influenzano fattori quali
prever previsão estimar classificar explicar influenciam fatores quais
voorspel voorspellen voorspelling schatten verklaar beïnvloeden welke
przewidzieć przewiduj prognoza förutsäga förutsäg forudsig forutsi ennusta tahmin předpověď předpovědět
"""
_ASKING = frozenset(_ASKING_TEXT.split())
# Small words that English has not: several of them tell.
_SMALL_TEXT = """
der das und ist von für mit aus wie warum einen eine einer dem den nicht oder ohne
les des une est pour avec dans sur qui sont pas sans
el los las una para con del qué por según sin
il gli della dello delle che sono nel senza
uma são não dos sem
het een van hoe zonder
"""
_SMALL = frozenset(_SMALL_TEXT.split())
_SEVERAL = 2
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_UNSPACED = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af]")


def is_foreign(tokens: Sequence[Token], names: Sequence[str]) -> bool:
    """Tells whether an objective is plainly not in English; the names of columns in it do not count."""
    known = {part for name in names for part in apart(name).casefold().split()}
    words = [token.word for token in tokens if _LETTER.match(token.word) and token.word not in known]
    if any(token.opener and _LETTER.match(token.word) for token in tokens):
        return False  # "predict the Preis der Wohnung" is understood
    letters = "".join(words)
    if letters and len(_LATIN.findall(letters)) * 2 < len(letters):
        return True
    asking, small = (sum(word in some for word in words) for some in (_ASKING, _SMALL))
    return bool(asking) or (small >= _SEVERAL and small > sum(word in COMMON for word in words))


def spread(text: str, names: Sequence[str]) -> str:
    """Returns the text with blanks around the names of columns in scripts that have none between words: 预测物种."""
    unspaced = sorted((name for name in names if _UNSPACED.search(name)), key=len, reverse=True)
    if not unspaced:
        return text
    return re.sub("|".join(map(re.escape, unspaced)), r" \g<0> ", text)
