"""The text of an exception, as the store keeps it."""

from __future__ import annotations

import traceback

# Enough for any message a person reads; some exceptions carry whole documents.
_MOST_MESSAGE = 4_096
_MOST_TRACEBACK = 65_536


def describe(error: BaseException) -> tuple[str, str, str]:
    """Returns the name of the class, the message, and the traceback with causes and notes.

    Never raises: an exception whose own methods raise is described as far as possible.
    """
    kind = type(error).__qualname__
    module = type(error).__module__
    if module not in ("builtins", "__main__"):
        kind = f"{module}.{kind}"
    try:
        message = str(error)
    except BaseException:
        message = "(its text could not be read)"
    try:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException:
        trace = "(its traceback could not be read)\n"
    return kind, _utf8(_cut(message, _MOST_MESSAGE)), _utf8(_cut(trace, _MOST_TRACEBACK))


def _cut(text: str, most: int) -> str:
    """Keeps both ends: the beginning says where, the end says what."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n… {len(text) - most} characters cut …\n{text[-(most // 2) :]}"


def _utf8(text: str) -> str:
    """Without lone surrogates, which no store can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
