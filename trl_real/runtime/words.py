"""Words of servers, made safe to show."""


def printable(text: str, length: int = 200) -> str:
    """Return the words of a server, safe for a terminal: on one line, without control characters."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())[:length]
