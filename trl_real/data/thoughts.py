"""Thoughts that a model writes before its answer, as tags, channels or headings in the text."""

import re
from typing import NamedTuple


_NAMES = r"think|thinking|thoughts?|reasoning|scratchpad|seed:think"
# DeepSeek, Qwen, GLM, MiniMax, Seed | Mistral | Kimi | Cohere | Sky-T1 | Apertus | Gemma 4 | MedGemma
OPENING = re.compile(
    rf"<(?:{_NAMES})(?:\s[^<>]*)?>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|begin_of_thought\|>|<\|inner_prefix\|>"
    r"|<\|channel>|<unused94>"
)
CLOSING = re.compile(
    rf"</(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|end_of_thought\|>|<\|inner_suffix\|>"
    r"|<channel\|>|<unused95>"
)
_FOLDED = re.compile(r"<details type=\"reasoning\"(?s:.*?)</details>")  # Open WebUI
# Channels of gpt-oss, with their control tokens and without.
_FINAL = re.compile(r"<\|channel\|>final\b[^<]*<\|message\|>|^analysis(?s:.*)assistantfinal")
_OTHER_CHANNEL = re.compile(r"<\|channel\|>(?:analysis|commentary)|^analysis(?=[A-Z])")
# Headings of Granite.
_THOUGHT_HEADING = re.compile(r"^\s*Here(?:'s| is) my thought process:")
_ANSWER_HEADING = re.compile(r"Here(?:'s| is) my response:")


class Answered(NamedTuple):
    """
    Text of an answer without its thoughts.

    Args:
        text: What is left; empty if there are only thoughts.
        thinking: Whether the text ends inside the thoughts.
    """

    text: str
    thinking: bool


def without_thoughts(text: str) -> Answered:
    """
    Separate an answer from the thoughts in the same text.

    Thoughts are whole blocks, all that stands before a closing mark without an opening one (templates often write the
    opening one into the prompt), or all that follows an opening mark that is never closed.
    """
    text = _FOLDED.sub("", text)
    final = list(_FINAL.finditer(text))
    if final:
        return Answered(text[final[-1].end() :], False)
    if _OTHER_CHANNEL.search(text):
        return Answered("", True)
    if _THOUGHT_HEADING.match(text):
        answer = list(_ANSWER_HEADING.finditer(text))
        return Answered(text[answer[-1].end() :], False) if answer else Answered("", True)
    return _without_marks(text)


def _without_marks(text: str) -> Answered:
    outside, opened, place = "", None, 0
    marks = [(found, opens) for opens, which in ((True, OPENING), (False, CLOSING)) for found in which.finditer(text)]
    for mark, opens in sorted(marks, key=lambda found: found[0].start()):
        if opens and opened is None:
            outside, opened = outside + text[place : mark.start()], mark.end()
        elif not opens:
            outside, opened = outside if opened is not None else "", None
            place = mark.end()
    return Answered(outside, True) if opened is not None else Answered(outside + text[place:], False)
