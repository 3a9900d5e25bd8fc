"""VQA accuracy, as TextVQA, VizWiz and VQAv2 have it: answers made comparable, then compared with ten people's.

The rules are those of the challenge's server, oddities included, because numbers are only comparable if those are the
same: `it's` falls into two words, `2.` loses its dot and `3.5` keeps it, a slash next to a space disappears and one
between words separates them, `none` is 0, and half of the contractions that the table names can never be met.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

PEOPLE = 10
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DOT = re.compile(r"\.(?!\d)")
_DOTS = 32  # of one answer that are removed; the original hands a flag over where the count belongs
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)}
_NUMBERS["none"] = "0"
_ARTICLES = ("a", "an", "the")
_CONTRACTIONS = """
'ow's'at 'ow'sat 'ows'at ow's'at; 'twas twas; ain't aint; aren't arent; can't cant; could've couldve; couldn't
couldnt; couldn't've couldn'tve couldnt've; didn't didnt; doesn't doesnt; don't dont; hadn't hadnt; hadn't've
hadn'tve hadnt've; hasn't hasnt; haven't havent; he'd hed; he'd've he'dve hed've; he's hes; how'd howd; how'll
howll; how's hows; I'd've I'dve Id've; I'm Im; I've Ive; isn't isnt; it'd itd; it'd've it'dve itd've; it'll
itll; let's let's; ma'am maam; might've mightve; mightn't mightnt; mightn't've mightn'tve mightnt've; must've
mustve; mustn't mustnt; needn't neednt; not've notve; o'clock oclock; oughtn't oughtnt; shan't shant; she'd've
she'dve shed've; she's she's; should've shouldve; shouldn't shouldnt; shouldn't've shouldn'tve shouldnt've;
somebody'd've somebody'dve somebodyd've; somebody'll somebodyll; somebody's somebodys; somebodyd somebody'd;
someone'd someoned; someone'd've someone'dve someoned've; someone'll someonell; someone's someones; something'd
somethingd; something'd've something'dve somethingd've; something'll somethingll; that's thats; there'd thered;
there'd've there'dve thered've; there're therere; there's theres; they'd theyd; they'd've they'dve theyd've;
they'll theyll; they're theyre; they've theyve; wasn't wasnt; we'd've we'dve wed've; we've weve; weren't werent;
what'll whatll; what're whatre; what's whats; what've whatve; when's whens; where'd whered; where's wheres;
where've whereve; who'd whod; who'd've who'dve whod've; who'll wholl; who's whos; who've whove; why'll whyll;
why're whyre; why's whys; won't wont; would've wouldve; wouldn't wouldnt; wouldn't've wouldn'tve wouldnt've;
y'all yall; y'all'd've y'all'dve y'alld've yall'd've; y'all'll y'allll yall'll; you'd youd; you'd've you'dve
youd've; you'll youll; you're youre; you've youve
"""
_CONTRACTION = {
    written: meant
    for meant, *ways in (entry.split() for entry in _CONTRACTIONS.replace("\n", " ").split(";"))
    for written in ways
}


@lru_cache(maxsize=1 << 16)
def normalised(answer: str) -> str:
    """An answer as it is compared."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(text).split()]
    return " ".join(_CONTRACTION.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Marks beside a space somewhere in the text are dropped, others separate words; dots before digits stay."""
    out = text
    for mark in _PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside else " ")
    return _DOT.sub("", out, count=_DOTS)


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Leave one person out: how often at least three of the others say the same, or a third of it each."""
    said = normalised(prediction)
    same = sum(normalised(answer) == said for answer in answers)
    agreeing, others = min(1.0, max(0, same - 1) / 3), min(1.0, same / 3)
    return (same * agreeing + (len(answers) - same) * others) / len(answers)
