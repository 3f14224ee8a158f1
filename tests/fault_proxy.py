"""A TCP proxy that fails on demand, between a client and a server of the tests.

    with fault_proxy.proxy("127.0.0.1", 5432) as proxy:
        lost = proxy.drop_replies_of(b"COMMIT", until=fault_proxy.POSTGRES_IDLE)
        connect(proxy.in_front_of(url))     its commit happens, but it sees a broken connection
        lost.wait()

    python tests/fault_proxy.py --target 127.0.0.1:5432 --control

The program first prints {"port": …, "control": …}. It takes commands as lines on its stdin and, with --control, on
connections to that port; each is answered by a line. It ends with its stdin, for which it needs a pipe: so it cannot
outlive who started it.

    cut               reset all connections
    hole on|off       keep all connections, also new ones, but forward nothing
    refuse on|off     refuse new connections
    swallow [TEXT]    forward the next request with TEXT, but not its reply: reset the connection instead
                      (in PostgreSQL after the whole reply); without TEXT, the next reply on each connection of now
    status            {"connections": …, "open": …, "swallowed": …}

TEXT is looked for in the bytes as they pass, so it is not seen through TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

HOST: Final = "127.0.0.1"
# PostgreSQL's "ready for the next query, no transaction is open", with which the reply to a commit ends.
POSTGRES_IDLE: Final = b"Z\0\0\0\x05I"
# To linger for no time at all is to end by RST.
BY_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Swallow:
    request: bytes | Callable[[bytes], bool]
    until: bytes
    done: threading.Event = field(default_factory=threading.Event)

    def is_due(self, sent: bytes, before: bytes) -> bool:
        if callable(self.request):
            return self.request(sent)
        # It may come in two parts, but none of what came before counts by itself.
        return self.request in before[max(0, len(before) - len(self.request) + 1) :] + sent


@dataclass(eq=False)
class Connection:
    client: socket.socket
    server: socket.socket
    swallow: Swallow | None = None
    swallowed: bytes = b""

    def end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        for end in (self.client, self.server):
            if task.cancelled() or error:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, BY_RESET)
            end.close()
        if error and not isinstance(error, OSError):  # a predicate's
            raise error


class Proxy:
    """Passes everything through until told otherwise; its methods are for threads other than its own."""

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.connections = 0  # that were ever accepted
        self.swallowed = 0  # of these, that were reset instead of a reply
        self._target = (host, port)
        self._open: dict[asyncio.Task[None], Connection] = {}
        self._swallow: Swallow | None = None
        self._delay = 0.0
        self._forwarding = asyncio.Event()
        self._forwarding.set()
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.refuse(False)

    @property
    def open(self) -> int:
        """How many connections there are now."""
        return len(self._open)

    def in_front_of(self, url: str) -> str:
        """The URL of the server behind, changed to lead through this proxy."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user}{at}{HOST}:{self.port}").geturl()

    def cut(self) -> None:
        """Reset all connections, towards the client and the server."""
        self._wait_for(self._cut())

    def black_hole(self, on: bool) -> None:
        """Stop forwarding, but keep connections and accept new ones; what came meanwhile is forwarded after it."""
        self._do(self._forwarding.clear if on else self._forwarding.set)

    def delay(self, seconds: float) -> None:
        """Everything comes so much later, as over a slow or lossy line; 0 ends it."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def refuse(self, on: bool) -> None:
        """Refuse new connections; those of now stay."""
        self._wait_for(self._listen(not on))

    def drop_replies_of(self, request: bytes | Callable[[bytes], bool], until: bytes = b"") -> threading.Event:
        """Forward the next request that holds these bytes, but no reply; then reset its connection.

        This happens once; the event is set when it has. A predicate gets what a client sent, as it comes. The reset
        comes when the reply contains `until`, or by default at its first bytes; with pipelined requests these may
        belong to an earlier request.
        """
        swallow = Swallow(request, until)
        self._do(lambda: setattr(self, "_swallow", swallow))
        return swallow.done

    def swallow(self) -> None:
        """Drop the next reply on each connection of now, and reset it instead."""

        def mark() -> None:
            for connection in self._open.values():
                connection.swallow = Swallow(b"", b"")

        self._do(mark)

    def close(self) -> None:
        self.refuse(True)
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self, on: bool) -> None:
        if self._listener:
            self._loop.remove_reader(self._listener)
            self._take(self._listener)  # who came before
            self._listener.close()
            self._listener = None
        # Not a port of outgoing connections, one of which could take it while we refuse.
        ports = [self.port] if self.port else [20_000 + secrets.randbelow(10_000) for _ in range(100)]
        while on and not self._listener:
            self.port = ports.pop()
            with suppress(*([OSError] if ports else [])):
                self._listener = socket.create_server((HOST, self.port), backlog=1000)
        if self._listener:
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener, self._take, self._listener)

    def _take(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError):
            while True:
                connection = Connection(listener.accept()[0], socket.socket())
                self.connections += 1
                task = self._loop.create_task(self._serve(connection))
                self._open[task] = connection
                task.add_done_callback(connection.end)
                task.add_done_callback(self._open.pop)

    async def _serve(self, at: Connection) -> None:
        for end in (at.client, at.server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._loop.sock_connect(at.server, self._target)
        pumps = [
            asyncio.create_task(self._pump(at, at.client, at.server)),
            asyncio.create_task(self._pump(at, at.server, at.client)),
        ]
        try:
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)

    async def _pump(self, at: Connection, source: socket.socket, sink: socket.socket) -> None:
        before = b""
        while chunk := await self._loop.sock_recv(source, 65536):
            await self._forwarding.wait()
            if self._delay:
                await asyncio.sleep(self._delay)
            if sink is at.client and at.swallow:
                self._drop(at, at.swallow, chunk)
                continue
            if sink is at.server and self._swallow and self._swallow.is_due(chunk, before):
                at.swallow, self._swallow = self._swallow, None
            before = chunk
            await self._loop.sock_sendall(sink, chunk)
        await self._forwarding.wait()
        sink.shutdown(socket.SHUT_WR)

    def _drop(self, at: Connection, swallow: Swallow, reply: bytes) -> None:
        at.swallowed += reply
        if swallow.until in at.swallowed:
            self.swallowed += 1
            swallow.done.set()
            raise ConnectionResetError

    async def _cut(self) -> None:
        if self._listener:
            self._take(self._listener)
        for task in self._open:
            task.cancel()
        while self._open:
            await asyncio.wait(self._open)

    def _do(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        self._wait_for(act())

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def obey(self, line: str) -> str:
        """Do what a line of the protocol above says, and answer."""
        command, _, text = line.strip().partition(" ")
        plain = {"cut": self.cut, "swallow": self.swallow}
        switches = {"hole": self.black_hole, "refuse": self.refuse}
        if command == "status":
            return json.dumps({"connections": self.connections, "open": self.open, "swallowed": self.swallowed})
        if command in plain and not text:
            plain[command]()
        elif command in switches and text in ("on", "off"):
            switches[command](text == "on")
        elif command == "swallow":
            self.drop_replies_of(text.encode(), POSTGRES_IDLE)
        else:
            return f"error: unknown command: {line.strip()}"
        return "ok"


@contextmanager
def proxy(target_host: str, target_port: int) -> Generator[Proxy]:
    """A proxy in front of that address, on a free port of this machine."""
    made = Proxy(target_host, target_port)
    try:
        yield made
    finally:
        made.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, metavar="HOST:PORT", help="where the server is")
    parser.add_argument("--control", action="store_true", help="also take commands on a port")
    options = parser.parse_args()
    host, _, port = options.target.rpartition(":")
    with proxy(host, int(port)) as made:

        class Control(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    self.wfile.write(f"{made.obey(line.decode())}\n".encode())

        ports = {"port": made.port}
        if options.control:
            control = socketserver.ThreadingTCPServer((HOST, 0), Control)
            control.daemon_threads = True
            threading.Thread(target=control.serve_forever, daemon=True).start()
            ports["control"] = control.server_address[1]
        print(json.dumps(ports), flush=True)
        for line in sys.stdin:
            print(made.obey(line), flush=True)


if __name__ == "__main__":
    main()
