"""Documentation in plain English: turns of phrase that a reader of Hugging Face documentation would stumble over."""

import re

from support.project import ROOT


ODD = re.compile(
    r"\b(hangs? on|(?:is|are|as|be|was|were) told|tells (?:apart|of|by)|of late|stands? (?:beside|for|between)|beside"
    r"|what (?:came|comes) of|come to\b|came to|passed over|lies? (?:in|on|at|to)|the like|as (?:it comes|they come)"
    r"|does not do|(?:is|are) no\b|be had|bids?|sees to|whoever|whichever|mend(?:ed|s)?|given away|takes? up"
    r"|set against|made of|go(?:es)? on\b|in parts|found again|at fault|of (?:one's|its|their) own|bears?\b|whose"
    r"|where(?:of|in|by)\b|unless it|no other|all but|none of (?:them|it)|anew|hence|thereby|in vain"
    r"|by (?:itself|themselves))\b"
)
MOST = 1.0  # in 1,000 words
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")), *sorted((ROOT / "skills").glob("**/*.md"))]


def prose(text: str) -> str:
    """Markdown without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def test_code_is_not_read_and_odd_turns_are_found():
    text = "It hangs on length.\n```text\nbeside\n```\nSee `whose`, and what goes on, which is no bar."
    assert [found[0] for found in ODD.finditer(prose(text))] == ["hangs on", "goes on", "is no"]


def test_odd_turns_are_rare():
    words, odd = 0, []
    for path in PAGES:
        text = prose(path.read_text(encoding="utf-8"))
        words += len(text.split())
        around = (text[max(0, found.start() - 30) : found.end() + 30] for found in ODD.finditer(text))
        odd += [f"{path.name}: … {' '.join(part.split())} …" for part in around]
    assert 1000 * len(odd) / words <= MOST, "\n".join(odd)
