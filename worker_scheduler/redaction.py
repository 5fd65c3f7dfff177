"""Makes text safe to show: masks passwords, escapes what cannot be seen."""

from __future__ import annotations

import re
from base64 import b64decode
from urllib.parse import urlsplit

MASK = "***"

# --- what is a secret -----------------------------------------------------------------------------
# Error texts of handlers come from anywhere, and may be long. Each pattern begins with a fixed word and has
# no two parts that match the same text, so that a search takes time in proportion to the text.
_SECRET = (
    r"(?:passw(?:or)?d|passphrase|passcode|(?<![a-z])(?:pass|pw|jwt)|pwd|secret|token|credentials?|authorization|cookie"
    r"|(?:api|access|private|secret|account|shared|encryption|signing|master)[ _-]?key|x-api-key)"
)
# What may follow the name: `password_1`, `passwordHash`, `secret_access_key`, `"password"`, `['password']`.
_REST_OF_NAME = r"(?:_?(?:hash|value|text|id|access_key|key|[0-9]{1,3}))?"
_END_OF_NAME = r"\\{0,4}[\"']?\]?"
_QUOTED = r"[bBuUrRfF]?(?:\\{1,4}\"[^\"]*\"?|\\{1,4}'[^']*'?|\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?)"
# To the next blank, `&` or `;`. A quote is part of it if more of the word follows.
_WORD = r"(?:[^\s&;'\"<>]|['\"](?=\w))+"
# A list or an object: it is masked as a whole.
_COMPOUND = r"[\[{(][^\]})]*[\]})]?"
# A scheme of HTTP before the secret itself.
_SCHEME = r"(?:(?:bearer|basic|digest|token|negotiate|apikey|aws4-hmac-sha256)\s+)?"
# "password: is missing": prose, not a secret. `=` is never prose.
_PROSE = (
    r"(?!(?:is|was|are|must|may|should|cannot|can|has|had|does|did|not|no|in|for|of|on|at|to|too|the|a|an"
    r"|missing|invalid|wrong|required|expected|unexpected|expired|unknown|empty|none|null|true|false)"
    r"(?:[\s.,;!?)]|$))"
)
_NAMED = re.compile(
    rf"({_SECRET}{_REST_OF_NAME}{_END_OF_NAME})"
    rf"(?:(\s*(?:=>|==?|:=?|,(?=\s*[\"']))\s*)({_QUOTED})"  # "password": "x", 'password' => 'x'
    rf"|(\s*:?=+>?\s*)({_COMPOUND}|{_SCHEME}{_WORD})"  # password=x
    rf"|(\s*:[ \t]*){_PROSE}({_COMPOUND}|{_SCHEME}{_WORD}))",  # password: x
    re.IGNORECASE,
)
# `--password x`; `_mask_option` looks for the dashes, since a search for them would be slow.
_OPTION = re.compile(rf"({_SECRET})([ \t]+)({_QUOTED}|{_WORD})", re.IGNORECASE)
_DASHES = re.compile(r"--[a-z-]{0,30}\Z", re.IGNORECASE)
_NO_SCHEME = re.compile(r"(?<![\w.:/@-])([\w.-]{1,64}:)[^\s:@/'\"<>]{1,256}(?=@[\w.-])")
_ELEMENT = re.compile(rf"(<{_SECRET}>)([^<]+)", re.IGNORECASE)
_PARAMETER = re.compile(
    r"([?&;](?:key|sig|signature|auth|code|x-amz-[a-z-]{1,30})=)([^\s&;'\"<>]+)", re.IGNORECASE
)
_BEARER = re.compile(
    r"\b(bearer(?:\s*:\s*|\s+))(?!(?:token|tokens|auth|authentication|authorization|of|is|was|realm|scheme|header)\b)"
    r"([\w.~+/=-]+)",
    re.IGNORECASE,
)
_BASIC = re.compile(r"\b(basic\s+)([A-Za-z0-9+/]{2,2000}={0,2})", re.IGNORECASE)
# Secrets that are known by their form: of GitHub, GitLab, Slack, AWS, Google, Stripe and the like, and JSON
# web tokens.
_KNOWN = re.compile(
    r"\b(?:gh[oprsu]_[A-Za-z0-9]{20,255}|github_pat_\w{20,255}|xox[a-z]-[\w-]{10,255}|glpat-[\w-]{16,255}"
    r"|(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{10,255}|sk-[\w-]{20,255}|AIza[\w-]{30,255}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----).*?(-----END [A-Z ]{0,30}-----|\Z)", re.DOTALL
)
_PLACE = re.compile(r"[\w.,:%-]*")
_PATH = re.compile(r"[\w./ %~+-]*")
_AFTER_SCHEME = re.compile(r"://[^\s<>]*")
# A quote that ends a text: nothing of a URL follows it.
_CLOSING_QUOTE = re.compile(r"[\"'](?=[\s,;:)\]}\"']|$)")

# --- what cannot be seen --------------------------------------------------------------------------
# C0, DEL and C1 move cursors and end lines; U+2028/9 end lines; the bidi marks reorder what is read; lone
# surrogates cannot be encoded at all. The rest looks like nothing, or like a blank: with one of them
# a login looks like another.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f"
    "\u205f-\u206f\u2800\u3000\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def mask_passwords(text: str) -> str:
    """Returns `text` with *** for what looks like a secret: a URL's user and password, the value of each
    `…password=`, `"token":` and the like, and tokens that are known by their form.
    """
    masked = _AFTER_SCHEME.sub(_mask_credentials, text) if "@" in text else text
    masked = _PRIVATE_KEY.sub(rf"\1{MASK}\2", masked)
    masked = _NAMED.sub(_mask_named, masked)
    masked = _BASIC.sub(_mask_basic, masked)
    masked = _OPTION.sub(_mask_option, masked)
    for pattern in (_NO_SCHEME, _ELEMENT, _PARAMETER, _BEARER):
        masked = pattern.sub(rf"\1{MASK}", masked)
    return _KNOWN.sub(MASK, masked)


def _mask_credentials(match: re.Match[str]) -> str:
    """Up to the last "@" of the word: a password may itself contain an unescaped "@", "/" or ":"."""
    word = match[0]
    closing = _CLOSING_QUOTE.search(word)
    end = len(word) if closing is None else closing.start()
    at = word.rfind("@", 0, end)
    return word if at < 0 else f"://{MASK}{word[at:]}"


def _mask_named(match: re.Match[str]) -> str:
    name, *parts = match.groups()
    separator, value = (part for part in parts if part is not None)
    return f"{name}{separator}{_mask_value(value)}"


def _mask_option(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - 40) : match.start()]
    return f"{match[1]}{match[2]}{MASK}" if _DASHES.search(before) else match[0]


def _mask_value(value: str) -> str:
    opening = re.match(r"[bBuUrRfF]?\\{0,4}[\"']", value)
    if opening is None:
        return MASK
    quote = opening[0].lstrip("bBuUrRfF")
    return (
        f"{opening[0]}{MASK}{quote if len(value) > len(opening[0]) and value.endswith(quote[-1]) else ''}"
    )


def _mask_basic(match: re.Match[str]) -> str:
    """Masks what is `user:password` in base64, and leaves "basic authentication" as it is."""
    encoded = match[2].rstrip("=")
    try:
        decoded = b64decode(encoded + "=" * (-len(encoded) % 4))
    except ValueError:
        return match[0]
    return f"{match[1]}{MASK}" if b":" in decoded else match[0]


def escape_control_characters(text: str) -> str:
    """Returns `text` with each character that ends a line or controls a terminal as \\xNN or \\uNNNN."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def error_text(error: object) -> str:
    """The text of an error, also of an application's own, whose `__str__` may raise anything."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - see above
        return "(its text cannot be shown)"


def one_line(said: object) -> str:
    """The text of an error, in one printable line and without passwords."""
    return escape_control_characters(mask_passwords(" ".join(error_text(said).split())))


def show(value: object) -> str:
    """Returns `value` as it may appear in a message: masked, escaped, quoted, at most 80 characters."""
    text = escape_control_characters(mask_passwords(str(value)))
    return f"'{text if len(text) <= 80 else text[:77] + '...'}'"


def show_url(url: str) -> str:
    """Returns a URL without secrets; if it is malformed, only its scheme: the password may be anywhere."""
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
    if not _PLACE.fullmatch(host) or not _PATH.fullmatch(parts.path):
        return f"'{scheme}://{MASK}'"  # perhaps a part of another URL that follows
    place = host if port is None else f"{host}:{port}"
    return "'" + escape_control_characters(f"{scheme}://{credentials}{place}{parts.path}") + "'"
