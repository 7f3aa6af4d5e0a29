"""Text from strangers made inert: whatever a prompt, a name or a note holds, it stays text where it is written.

In HTML the templates escape; here is what is written to terminals, Markdown, LaTeX, CSV, XML, JSON and shells, and what
keeps secrets out of logs and records. Pure, no imports from the rest.
"""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_JOINERS = "\u200c\u200d"  # they shape letters and emoji, and move nothing
_LOST = "\ufffd"


# --- terminals --------------------------------------------------------------------------------------------------------
def printable(text: str) -> str:
    """One line without control characters, escape sequences or marks that turn the direction of what follows.

    >>> printable("a\\x1b[31mb\\nc\\u202ed")
    'a�[31mb�c�d'
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    return " " if unicodedata.category(character) == "Zs" else _LOST


def lines(text: str) -> str:
    """The same for a text of several lines, whose ends stay."""
    return "\n".join(map(printable, text.split("\n")))


# --- files ------------------------------------------------------------------------------------------------------------
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def csv_cell(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe in front; what is no text stays as it is."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)


def md(text: str) -> str:
    """Text in which nothing is Markdown or HTML, for a cell, a heading or an entry of a list."""
    escaped = "".join(f"\\{c}" if c in "\\|`*_[]<>~" else c for c in printable(text)).replace("&", "&amp;")
    # An address would become a link by itself, and these begin a heading, a list or a rule.
    escaped = _ADDRESS.sub(lambda found: found[0].replace("/", "\\/", 1).replace(".", "\\.", 1), escaped)
    return _OPENING.sub(r"\1\\\2", escaped)


def md_code(text: str) -> str:
    """Text as code in a cell of a Markdown table."""
    shown = printable(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if len(fence) > 1 else f"{fence}{shown}{fence}"


_ADDRESS = re.compile(r"://|\bwww\.", re.IGNORECASE)
_OPENING = re.compile(r"^(\s*(?=#|[+-](?:\s|-|$))|\s*\d{1,9}(?=[.)](?:\s|$)))([#+.)-])")


_TEX: Mapping[str, str] = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$"},
    **{"↓": r"$\downarrow$", "–": "--", "−": "$-$", "×": r"$\times$", "·": r"$\cdot$", "²": r"$^2$", "≥": r"$\geq$"},
    **{"≤": r"$\leq$", "≈": r"$\approx$", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "§": r"$^{\S}$", "₀": r"$_0$"},
    **{"η": r"$\eta$", "Â": r"\^A", "…": r"\ldots{}"},
    **{"<": "$<$", ">": "$>$"},  # plain < is ¡ in the standard encoding
    **{c: f"\\{c}" for c in "_&%$#{}"},
}


def tex(text: str) -> str:
    """Text in which nothing is LaTeX."""
    escaped = "".join(_TEX.get(c, c) for c in printable(text))
    # At the start of a row these two would be read as an argument of the \\ or the rule before it.
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped.startswith(("[", "*")) else escaped


def xml(text: str) -> str:
    """Without the characters that XML cannot hold; a library escapes the rest."""
    return _NOT_XML.sub(_LOST, text)


_NOT_XML = re.compile("[^\t\n\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def json_text(text: str) -> str:
    """JSON, written already, in which what a terminal could act on stands as `\\u001b`: the same values to programs."""
    return text if _PLAIN_JSON.fullmatch(text) else "".join(map(_json_character, text))


_PLAIN_JSON = re.compile("[\n\x20-\x7e]*")


def _json_character(character: str) -> str:
    if character.isprintable() or character == "\n" or character in _JOINERS:
        return character
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\u{0xD800 + (code - 0x10000 >> 10):04x}\\u{0xDC00 + (code - 0x10000 & 0x3FF):04x}"


def shell(words: Iterable[str]) -> str:
    """A command for a POSIX shell, one line: what cannot be printed is written as `$'\\x1b'`.

    >>> shell(["run", "a b", "c\\x1b"])
    "run 'a b' $'c\\\\x1b'"
    """
    return " ".join(shlex.quote(w) if w.isprintable() else _dollar(w) for w in words)


def _dollar(word: str) -> str:
    return "$'" + "".join(map(_dollar_character, word)) + "'"


def _dollar_character(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))


# --- secrets ----------------------------------------------------------------------------------------------------------
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|AUTHORIZATION", re.IGNORECASE)
_NO_SECRET = re.compile(r"TOKENIZER", re.IGNORECASE)
_SHORTEST = 8  # shorter values are words that would be blacked out everywhere
_SECRETS = (
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),
    re.compile(r"\b(?:ghp|gho|ghs|github_pat|glpat|sk|xox[abp])[-_][A-Za-z0-9_-]{16,}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"(?<=[Bb]earer )[^\s\"',;]{8,}"),
    re.compile(r"(?<=://)[^\s/@\"']+(?=@)"),
    re.compile(
        r"(?i)(?<=[?&])((?:x-amz-)?(?:access_?token|token|signature|credential|security-token|api_?key|key|sig)=)[^\s&\"']+"
    ),
)
HIDDEN = "***"


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds what nobody else should read."""
    return bool(_SECRET_NAME.search(name)) and not _NO_SECRET.search(name)


def redacted(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Without the tokens in it: those of the environment by their values, others by their form.

    >>> redacted("401 for https://me:hunter2hunter2@host/x?token=abc", {})
    '401 for https://***@host/x?token=***'
    """
    here = os.environ if environment is None else environment
    for value in sorted({v for n, v in here.items() if is_secret(n) and len(v) >= _SHORTEST}, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    for pattern in _SECRETS:
        text = pattern.sub(lambda found: (found[1] if found.lastindex else "") + HIDDEN, text)
    return text
