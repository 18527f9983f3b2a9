"""Label that an answer in words names, and where it stands."""

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple


FINAL, FORMAL, ANNOUNCED, LEADING, PROSE = range(5)  # strongest first

_NOUN = (
    r"(?:[Rr]esponse|[Aa]nswer|[Oo]ption|[Aa]ssistant|[Mm]odel|[Cc]andidate|[Oo]utput|[Cc]hoice|[Rr]eply|回答|选项)"
)
_QUOTES = r"[\s\"'“”‘’«»「」『』《》【】()\[\]{}$]*"
_VERDICT = (
    r"(?:answer|verdict|winner|choice|decision|grade|judge?ment|preference|preferred|selected|selection|chosen|pick|"
    r"vote|best|better|superior|stronger|conclusion|result|rating|label|evaluation|"
    r"antwort|urteil|réponse|respuesta|resposta|risposta|ответ|答案|结论|判断|最终|答え|결론|정답)"
)
_LINK = (
    r"(?:\s+(?:is|would be|goes to|here is))?\s*(?:[:=]+>?|-+>|→|–|—|\bis\b|是|为|は)+\s*"
    r"(?:(?:clearly|definitely)\s+)?"
)
_BETTER = (
    r"(?:the )?(?:(?:clearly|slightly|significantly|much|far|overall|more|a bit|somewhat|clear|definitely) )*"
    r"(?:better|best|superior|preferable|preferred|stronger|strongest|winner|correct|accurate|helpful|right)"
    r"(?: (?:response|answer|one|choice|option|output))?"
)
# What may follow a verdict; another label, or a word that goes on, may not.
_END = (
    r"(?=\s*(?:$|\n|[.;!)\]}\"'”’»」,—–]|-\s|\(|"
    r"(?:because|since|as|overall|due|for|than|over|here)\b))"
)
_HEDGE = re.compile(
    r"\b(?:whether|if|unless|cannot|unable|hard to|doubt|neither|nor|not|never)\b|n['’]t\b", re.IGNORECASE
)
_TIES = r"(?:[Tt]ie|TIE|[Dd]raw|[Ee]qual)"
_EQUAL = re.compile(
    r"(?:they|both|the (?:two )?(?:responses|answers)|both (?:responses|answers)|it)? ?(?:are|is|'s|’s)? ?"
    r"(?:a tie|a draw|equally (?:good|bad)|equal(?: in quality)?)",
    re.IGNORECASE,
)
_DECORATION = re.compile(
    r"</?(?:b|strong|i|em|u|p|br|mark|code)\s*/?>|<[|｜][^<>|｜]{1,40}[|｜]>|</?s>|<eos>|<end_of_turn>"
)


class Named(NamedTuple):
    """
    Label that an answer names.

    Args:
        label: One of the labels.
        place: Where the label starts in the `plain` text; None if the answer means the label in other words.
    """

    label: str
    place: int | None


class _Statement(NamedTuple):
    strength: int
    place: int
    label: str


def plain(text: str) -> str:
    """Return a text with plain letters for wide ones, and spaces for emphasis, control tokens and code fences."""
    text = unicodedata.normalize("NFKC", text).replace("\u200b", " ").replace("\ufeff", " ")
    text = _DECORATION.sub(lambda found: " " * len(found[0]), text)
    text = re.sub(r"```\w*", lambda found: " " * len(found[0]), text)
    return re.sub(r"[*`#]|__|~~|^>", lambda found: " " * len(found[0]), text)


def named(text: str, labels: tuple[str, ...], cut: bool = False) -> Named | None:
    """
    Return the label that an answer names.

    Args:
        text: Answer without thoughts, as `plain` returns it.
        labels: Labels of the first response, of the second, and, if there is one, of a tie.
        cut: Whether the answer was cut off, so that its end may go on.

    Returns:
        None if the answer names no label, or labels that contradict each other. The strongest kind of statement
        counts (a final answer, brackets or JSON, "answer:", a label at the start, prose), unless a later statement
        contradicts it.
    """
    bare = text.lstrip(" \n-•>").strip(" \t\n\r\"'“”‘’«»「」()[]{}<>.,:;!$_")
    if bare in labels:
        return Named(bare, text.index(bare))
    if len(labels) > 2 and not cut and (re.fullmatch(_TIES, bare) or _EQUAL.fullmatch(bare)):
        return Named(labels[2], None)
    found = _in_json(text, labels) or list(_statements(text, labels, cut))
    if not found and not cut:
        return _by_order(text, labels)
    strongest = min((each.strength for each in found), default=None)
    best = [each for each in found if each.strength == strongest]
    if not best or len({each.label for each in best}) > 1:
        return None
    last = max(best, key=lambda each: each.place)
    if any(each.label != last.label and each.place > best[0].place for each in found):
        return None
    return Named(last.label, last.place if last.label == text[last.place : last.place + len(last.label)] else None)


def _in_json(text: str, labels: tuple[str, ...]) -> list[_Statement]:
    """Return the verdicts of a JSON object; its other keys hold reasons and single criteria."""
    first, last = text.find("{"), text.rfind("}") + 1
    try:
        values = json.loads(text[first:last])
    except ValueError:
        return []
    pattern, found = re.compile(rf"(?:{_NOUN}\s+)?({_any(labels)})"), []
    for key, value in values.items() if isinstance(values, dict) else ():
        match = pattern.fullmatch(str(value).strip())
        if match and re.search(_VERDICT, key, re.IGNORECASE):
            place = text.find(match[1], text.find(json.dumps(value, ensure_ascii=False), text.find(f'"{key}"')))
            found.append(_Statement(FORMAL, place, match[1] if match[1] in labels else labels[2]))
    return found


def _any(labels: tuple[str, ...]) -> str:
    words = sorted(map(re.escape, labels), key=len, reverse=True) + ([_TIES] if len(labels) > 2 else [])
    return "|".join(words)


def _by_order(text: str, labels: tuple[str, ...]) -> Named | None:
    """Return the label of "the first response" or "the second one" where a verdict names it so."""
    order = rf"\b[Tt]he (first|second) (?:{_NOUN}|one)"
    written = re.sub(order, lambda found: labels[found[1] == "second"], text)
    found = named(written, labels) if written != text else None
    return Named(found.label, None) if found else None


def _statements(text: str, labels: tuple[str, ...], cut: bool) -> Iterator[_Statement]:
    for strength, pattern in _patterns(labels):
        for match in pattern.finditer(text):
            start = match.start("label")
            if strength > FORMAL and (_is_hedged(text, start, strength) or _is_list(text, match, labels)):
                continue
            if (
                cut
                and strength > FORMAL
                and (not text[match.end() :].strip() or strength == PROSE and text[:start].strip())
            ):
                continue
            label = match["label"]
            yield _Statement(strength, start, label if label in labels else labels[2])


def _is_hedged(text: str, place: int, strength: int) -> bool:
    """Return whether the sentence up to a statement denies it, or makes a condition or a question of it."""
    sentence = re.split(r"[.!?\n](?:\s|$)|, (?:but|so) ", text[:place])[-1]
    return bool(_HEDGE.search(sentence)) and strength != LEADING


def _is_list(text: str, match: re.Match, labels: tuple[str, ...]) -> bool:
    """Return whether a label is one of several in a list, such as "A: 7, B: 9", "A, B" or "A or B"."""
    others = "|".join(re.escape(label) for label in labels if label != match["label"])
    after = text[match.end("label") :]
    if re.match(
        rf"[\"'“”’)\] ]*(?:,|/|or\b|and\b|vs\.?|&|\s)+(?<!\n)(?:{_NOUN}\s+)?[\"'“‘(\[]*(?:{others})(?!\w)", after
    ):
        return True
    mark = after.lstrip("\"')]} ")[:1]
    return (
        mark in (":", ".", ")")
        and bool(re.search(rf"(?:^|\n|[,;]\s)\s*(?:{_NOUN}\s+)?(?:{others})\s*{re.escape(mark)}", after))
        and bool(re.match(rf"\s*(?:{_NOUN}\s+)?{_QUOTES}$", text[: match.start("label")].rpartition("\n")[2]))
    )


@lru_cache(maxsize=32)
def _patterns(labels: tuple[str, ...]) -> list[tuple[int, re.Pattern]]:
    one = rf"(?<![\w\-])(?P<label>{_any(labels)})(?![\w>=]|[.,]\d|['’][a-z])"
    name = rf"{_QUOTES}(?:{_NOUN}\s+)?{_QUOTES}{one}"
    more = (
        "" if all(label.isdigit() for label in labels) else r"|[.,:;!)—–]|-\s|\(|\s*(?:because|since)\b"
    )  # "1." counts
    key = rf"{_VERDICT}[\w ]*"
    announced = rf"(?i:{_VERDICT})(?:\s+{_NOUN})?{_QUOTES}"
    revised = r"\b(?i:no|wait|yes|actually|rather|correction|instead)\b[,:.!—– ]+(?i:it is |it's )?"
    therefore = r"\b(?i:so|therefore|thus|hence|overall|ultimately|in conclusion)\b[,:]?\s+"
    would = r"\bI(?:['’]d| would| will|['’]ll|['’]m| am)?"
    choose = r"(?:prefer|choose|pick|select|go with|going with|vote for|favou?r|chose)"
    found = [
        (FINAL, rf"(?i:final|overall)\s+(?i:{_VERDICT})(?:\s+{_NOUN})?{_QUOTES}{_LINK}{name}{_QUOTES}{_END}"),
        (FORMAL, rf"\[\[\s*(?:{_NOUN}\s+)?{one}\s*\]\]"),
        (FORMAL, rf"\\boxed\s*\{{\s*(?:\\\w+\s*\{{)?\s*(?:{_NOUN}\s+)?{one}"),
        (FORMAL, rf"<((?i:{key}|output|final))>{name}{_QUOTES}</\1>"),
        (FORMAL, rf"[\"']((?i:[\w ]*{key}))[\"']\s*:\s*[\"']?(?:{_NOUN}\s+)?{one}\s*[\"'}},\n]"),
        (ANNOUNCED, rf"[\"'][\w ]+[\"']\s*:\s*[\"'](?:{_NOUN}\s+)?{one}[\"']"),
        (ANNOUNCED, rf"{announced}(?:{_LINK}|\s*\n+\s*){name}{_QUOTES}{_END}"),
        (ANNOUNCED, rf"(?i:is better|better one|prefer|choose)\s*\?\s*{name}{_QUOTES}{_END}"),
        (ANNOUNCED, rf"{revised}{name}{_QUOTES}{_END}"),
        (ANNOUNCED, rf"{therefore}{name}{_QUOTES}[.!]?\s*$"),
        (ANNOUNCED, rf"\n\s*{name}{_QUOTES}[.!]?\s*$"),
        (LEADING, rf"^{name}{_QUOTES}(?:\n|${more})"),
        (PROSE, rf"{name}{_QUOTES}\s+(?:is|was|being|seems|looks)\s+{_BETTER}{_END}"),
        (PROSE, rf"{name}{_QUOTES}\s+(?:wins|outperforms|beats|is better than|is preferred over)\b"),
        (PROSE, rf"{would} {choose}\s+{name}{_QUOTES}{_END}"),
    ]  # fmt: skip
    return [(strength, re.compile(pattern)) for strength, pattern in found]
