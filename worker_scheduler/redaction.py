"""Makes text safe to show: passwords masked, control characters escaped. It does not shorten or format."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

MASK = "***"

# Greedy to the last "@" of the word: a password may itself hold "@", "/" or ":" that nobody escaped.
_CREDENTIALS_IN_URL = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.\-]*://)[^\s\"'<>]*@")
# With what may come before the name: `access_token=`, `PGPASSWORD=`.
_NAMED_SECRET = re.compile(
    r"\b([\w-]{0,40}(?:password|passwd|pwd|secret|token|(?:api|access)_?key))(\s*=\s*)"
    r"('[^']*'|[^\s&;,'\"]+)",
    re.IGNORECASE,
)
# C0, DEL and C1 move cursors and end lines; U+2028/9 end lines; the bidi marks reorder what is read;
# lone surrogates cannot be encoded at all.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def mask_passwords(text: str) -> str:
    """`text` with the user and password of every URL, and the value of every `…password=`, as ***."""
    masked = _CREDENTIALS_IN_URL.sub(rf"\1{MASK}@", text)
    return _NAMED_SECRET.sub(rf"\1\2{MASK}", masked)


def escape_control_characters(text: str) -> str:
    """`text` on one line: what could end a line or drive a terminal becomes \\xNN or \\uNNNN."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def show(value: object) -> str:
    """`value` as it may stand in a message: masked, escaped, quoted, and no longer than a line."""
    text = escape_control_characters(mask_passwords(str(value)))
    return f"'{text if len(text) <= 80 else text[:77] + '...'}'"


def show_url(url: str) -> str:
    """A URL without its secrets. Of a malformed one only the scheme: its password could be anywhere."""
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme.replace("+", "").replace("-", "").isalnum():
        return f"'{MASK}'"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return f"'{scheme}://{MASK}'"
    credentials = f"{MASK}@" if "@" in parts.netloc else ""
    if "@" in parts.path + parts.query + parts.fragment:
        return f"'{scheme}://{MASK}'"
    place = host if port is None else f"{host}:{port}"
    return "'" + escape_control_characters(f"{scheme}://{credentials}{place}{parts.path}") + "'"
