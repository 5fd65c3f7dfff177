"""Whether a text can be the name or the address of a server. It is not looked up."""

from __future__ import annotations

import re
from ipaddress import ip_address

_LONGEST_NAME = 253
# What separates the parts of a URL, blanks and control characters; none of them is in a name.
_NOT_IN_A_NAME = re.compile(r"[\s\x00-\x20\x7f/\\?#@:;,%\[\]]")


def is_host(text: str) -> bool:
    """Whether `text` is an address, or a name that a resolver takes.

    Python encodes a name before it looks it up, and a name such as `a..b` or with a label of more than 63
    characters ends that in a UnicodeError, which no client of a server expects.
    """
    if is_address(text):
        return True
    if not text or len(text) > _LONGEST_NAME or _NOT_IN_A_NAME.search(text):
        return False
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return True


def is_address(text: str) -> bool:
    """Whether `text` is an IP address; one of IPv6 may name its interface, as in `fe80::1%eth0`."""
    address, _, interface = text.partition("%")
    try:
        version = ip_address(address).version
    except ValueError:
        return False
    return version == 6 or not (interface or "%" in text)


def is_port(text: str) -> bool:
    """Whether `text` is the number of a port."""
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536
