"""A session with PostgreSQL by nothing but its protocol, so that what breaks a driver breaks no test."""

from __future__ import annotations

import socket
import struct
from io import BufferedRWPair
from types import TracebackType
from urllib.parse import unquote, urlsplit

SECONDS = 30.0


class SqlError(Exception):
    """What the server says, and its SQLSTATE."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(f"{fields['M']} ({fields['C']})")
        self.code = fields["C"]


class Session:
    """One connection of a user that the server trusts. A transaction is begun and ended by SQL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        self._socket = socket.create_connection((parts.hostname, parts.port or 5432), timeout=SECONDS)
        self._stream: BufferedRWPair = self._socket.makefile("rwb")
        try:
            user, database = unquote(parts.username or "postgres"), parts.path.lstrip("/")
            names = f"user\0{user}\0database\0{database}\0application_name\0test\0\0"
            self._send(b"", struct.pack("!i", 3 << 16) + names.encode())
            self.receive()
        except BaseException:
            self.close()
            raise

    def rows(self, sql: str) -> list[tuple[str | None, ...]]:
        """The rows of the last statement, as texts."""
        self.send(sql)
        return self.receive()

    def value(self, sql: str) -> str | None:
        """The first value of the first row."""
        rows = self.rows(sql)
        return rows[0][0] if rows else None

    def send(self, sql: str) -> None:
        """Sends statements without waiting for the answer, which may need a lock."""
        self._send(b"Q", sql.encode() + b"\0")

    def receive(self) -> list[tuple[str | None, ...]]:
        """The answer to what was sent."""
        rows: list[tuple[str | None, ...]] = []
        error: SqlError | None = None
        while True:
            head = self._stream.read(5)
            if len(head) < 5:
                raise error or ConnectionError("the server closed the connection")
            kind, length = struct.unpack("!ci", head)
            body = self._stream.read(length - 4)
            if kind == b"D":
                rows.append(_columns(body))
            elif kind == b"T":
                rows = []
            elif kind == b"E":
                error = SqlError({field[:1]: field[1:] for field in body.decode().split("\0") if field})
            elif kind == b"R":
                assert body[:4] == bytes(4), "the server must trust this user"
            elif kind == b"Z":
                if error:
                    raise error
                return rows

    def close(self) -> None:
        self._socket.close()
        try:
            self._stream.close()
        except OSError:
            pass  # what was not sent yet finds no one

    def _send(self, kind: bytes, body: bytes) -> None:
        self._stream.write(kind + struct.pack("!i", len(body) + 4) + body)
        self._stream.flush()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _columns(body: bytes) -> tuple[str | None, ...]:
    (count,) = struct.unpack_from("!h", body)
    at = 2
    values: list[str | None] = []
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append(None if length < 0 else body[at : at + length].decode())
        at += max(length, 0)
    return tuple(values)
