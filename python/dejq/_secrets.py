"""Passwords in texts that others see."""

from __future__ import annotations

import re

_NAMES = "password|passwd|pwd|secret|token"
_SECRETS = (
    # user:password@ in a URL, up to the last @ of the word: a password may contain one.
    (re.compile(r"(://[^/?#\s:@]*):\S+@"), r"\1:***@"),
    # password=… in a query or for libpq, and 'password': '…' in a printed dictionary.
    (re.compile(rf"\b({_NAMES})=('[^']*'|\"[^\"]*\"|[^&\s'\"]+)", re.IGNORECASE), r"\1=***"),
    (re.compile(rf"(['\"]({_NAMES})['\"]: )('[^']*'|\"[^\"]*\")", re.IGNORECASE), r"\1'***'"),
)
_NAME = re.compile(_NAMES, re.IGNORECASE)


def scrub(text: str) -> str:
    """The text without passwords."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def is_secret(name: str) -> bool:
    """Is what has this name a password?"""
    return _NAME.fullmatch(name) is not None
