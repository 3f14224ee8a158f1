"""A proxy in front of SQS that counts calls, and fails on demand in ways that only who reads HTTP can.

    with sqs_faults.proxy("sqs://us-east-1/dejq.fifo?endpoint=http://127.0.0.1:4566") as proxy:
        client = dejq.connect(proxy.in_front_of(url))
        lost = proxy.lose_reply("SendMessageBatch")     it is carried out, but the answer is a broken connection
        client.enqueue(job)
        assert lost.wait(10) and proxy.calls["SendMessageBatch"] == 2

Each fault is for one action and comes once, unless `times` says otherwise, from its `nth` call on counted from now. Its
event is set when it has come for the last time. What the proxy of fault_proxy.py can do (cut, refuse, black_hole), this
one can too.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import fault_proxy
import servers
from fault_proxy import HOST

Json = dict[str, Any]
# What SQS says when it is asked too often; the first is that of the API of JSON, the second that of the older one.
THROTTLED: Final = (400, "ThrottlingException")
REQUEST_THROTTLED: Final = (403, "RequestThrottled")
UNAVAILABLE: Final = (503, "ServiceUnavailable")
INTERNAL: Final = (500, "InternalFailure")
# As the SDKs know them: the name in the body, and the older one in the header.
OLDER_NAMES: Final = {
    "QueueDoesNotExist": "AWS.SimpleQueueService.NonExistentQueue",
    "InvalidParameterValueException": "InvalidParameterValue",
    "AccessDeniedException": "AccessDenied",
}


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    action: str
    parameters: Json


@dataclass(eq=False)
class Fault:
    action: str
    skip: int
    times: int
    # Of all calls only those for which this holds, and only these are counted.
    when: Callable[[Request], bool]
    # Returns the answer to give instead of the server's; None: no answer at all.
    act: Callable[[Exchange], Any]
    done: threading.Event = field(default_factory=threading.Event)

    def is_due(self, request: Request) -> bool:
        if self.action != request.action or self.times == 0 or not self.when(request):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass(eq=False)
class Held:
    """Calls that have arrived and are not answered before `let_go`."""

    arrived: threading.Event = field(default_factory=threading.Event)
    _go: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    def let_go(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._go.set)


@dataclass(eq=False)
class Message:
    """An HTTP request or answer."""

    start: str
    headers: dict[str, str]
    body: bytes

    def encoded(self) -> bytes:
        kept = {name: value for name, value in self.headers.items() if name != "transfer-encoding"}
        kept["content-length"] = str(len(self.body))
        head = "".join(f"{name}: {value}\r\n" for name, value in kept.items())
        return f"{self.start}\r\n{head}\r\n".encode("latin-1") + self.body

    @property
    def json(self) -> Json:
        found: Json = json.loads(self.body) if self.body else {}
        return found


@dataclass(eq=False)
class End:
    """One end of a connection, read by messages."""

    socket: socket.socket
    loop: asyncio.AbstractEventLoop
    buffer: bytes = b""

    async def message(self) -> Message | None:
        """The next one; None when the other side has closed the connection in between."""
        while b"\r\n\r\n" not in self.buffer:
            if not await self.more():
                return None
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        start, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return Message(start, headers, await self.chunks())
        return Message(start, headers, await self.take(int(headers.get("content-length", 0))))

    async def chunks(self) -> bytes:
        parts: list[bytes] = []
        while size := int((await self.line()).partition(b";")[0], 16):
            parts.append(await self.take(size))
            await self.line()
        await self.line()
        return b"".join(parts)

    async def line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            await self.need()
        found, _, self.buffer = self.buffer.partition(b"\r\n")
        return found

    async def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            await self.need()
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return found

    async def need(self) -> None:
        if not await self.more():
            raise ConnectionResetError

    async def more(self) -> bool:
        chunk = await self.loop.sock_recv(self.socket, 65536)
        self.buffer += chunk
        return bool(chunk)

    async def send(self, message: Message) -> None:
        await self.loop.sock_sendall(self.socket, message.encoded())


@dataclass(eq=False)
class Exchange:
    """A request on its way."""

    request: Request
    message: Message
    forward: Callable[[Message], Any]


class Proxy(fault_proxy.Proxy):
    """Passes every call through until told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        self.calls: Counter[str] = Counter()
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        super().__init__(host, port)

    def in_front_of(self, url: str) -> str:
        """The sqs:// URL, changed to lead through this proxy."""
        return servers.queue_url(url, urlsplit(url).path[1:], by=self.endpoint)

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def of(self, action: str) -> list[Json]:
        """The parameters of all calls of that action."""
        return [request.parameters for request in self.requests if request.action == action]

    def lose_reply(self, action: str, **when: Any) -> threading.Event:
        """The call is carried out; instead of the answer comes the end of the connection."""

        async def act(exchange: Exchange) -> None:
            await exchange.forward(exchange.message)

        return self._add(action, act, **when)

    def lose_request(self, action: str, **when: Any) -> threading.Event:
        """The connection ends before SQS hears of the call."""

        async def act(_: Exchange) -> None:
            return None

        return self._add(action, act, **when)

    def answer(self, action: str, status: int, code: str, **when: Any) -> threading.Event:
        """SQS does not hear of the call; this is the answer."""

        async def act(_: Exchange) -> Message:
            return _error(status, code)

        return self._add(action, act, **when)

    def refuse_entries(
        self, action: str, chosen: Callable[[int, Json], bool], code: str, *, sender: bool = False, **when: Any
    ) -> threading.Event:
        """Of a batch, entries chosen by place and content fail so; the others are carried out."""

        async def act(exchange: Exchange) -> Message:
            entries: list[Json] = exchange.request.parameters["Entries"]
            out = [each for place, each in enumerate(entries) if chosen(place, each)]
            rest = [each for each in entries if each not in out]
            answer = _ok({"Successful": []})
            if rest:
                body = json.dumps({**exchange.request.parameters, "Entries": rest}).encode()
                answer = await exchange.forward(Message(exchange.message.start, exchange.message.headers, body))
            failed = [{"Id": each["Id"], "Code": code, "Message": code, "SenderFault": sender} for each in out]
            found = answer.json
            return _ok({**found, "Failed": [*(found.get("Failed") or []), *failed]})

        return self._add(action, act, **when)

    def hold(self, action: str, *, before: bool = False, **when: Any) -> Held:
        """The call is carried out, and answered when the test lets go; `before`: carried out only then."""
        held = Held(_loop=self._loop)

        async def act(exchange: Exchange) -> Message:
            answer = None if before else await exchange.forward(exchange.message)
            held.arrived.set()
            await held._go.wait()
            found: Message = answer or await exchange.forward(exchange.message)
            return found

        self._add(action, act, **when)
        return held

    def _add(
        self,
        action: str,
        act: Callable[[Exchange], Any],
        *,
        nth: int = 1,
        times: int = 1,
        where: Callable[[Request], bool] = lambda _: True,
    ) -> threading.Event:
        fault = Fault(action, nth - 1, times, where, act)
        self._do(lambda: self._faults.append(fault))
        return fault.done

    async def _serve(self, at: fault_proxy.Connection) -> None:
        for end in (at.client, at.server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._loop.sock_connect(at.server, self._target)
        client, server = End(at.client, self._loop), End(at.server, self._loop)

        async def forward(message: Message) -> Message:
            await self._forwarding.wait()
            await server.send(message)
            answer = await server.message()
            await self._forwarding.wait()
            if answer is None:
                raise ConnectionResetError
            return answer

        while message := await client.message():
            _, _, action = message.headers.get("x-amz-target", "").partition(".")
            request = Request(action, message.json)
            self.calls[action] += 1
            self.requests.append(request)
            work = asyncio.create_task(self._carry_out(Exchange(request, message, forward)))
            answer = await self._unless_gone(client, work)
            if self._delay:
                await asyncio.sleep(self._delay)
            await client.send(answer)

    async def _carry_out(self, exchange: Exchange) -> Message:
        for fault in self._faults:
            if fault.is_due(exchange.request):
                answer = await fault.act(exchange)
                if fault.times == 0:
                    fault.done.set()
                if answer is None:
                    raise ConnectionResetError
                return answer  # type: ignore[no-any-return]  # a fault may answer with anything
        found: Message = await exchange.forward(exchange.message)
        return found

    async def _unless_gone(self, client: End, work: asyncio.Task[Message]) -> Message:
        """The answer, unless the client goes while it waits, as from a long poll: then the server is to know."""
        gone = asyncio.create_task(client.more())
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ConnectionResetError
            return work.result()
        finally:
            for task in (work, gone):
                task.cancel()
                task.add_done_callback(_forget)
            await asyncio.wait([work, gone])


def _forget(task: asyncio.Task[Any]) -> None:
    """Whatever it ended with has been seen, or is of no use any more."""
    if not task.cancelled():
        task.exception()


def _ok(content: Json) -> Message:
    return Message("HTTP/1.1 200 OK", {"content-type": "application/x-amz-json-1.0"}, json.dumps(content).encode())


def _error(status: int, code: str) -> Message:
    headers = {
        "content-type": "application/x-amz-json-1.0",
        "x-amzn-query-error": f"{OLDER_NAMES.get(code, code)};{'Receiver' if status >= 500 else 'Sender'}",
        "x-amzn-requestid": "00000000-0000-0000-0000-000000000000",
    }
    body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": f"{code}, as the test wants it"})
    return Message(f"HTTP/1.1 {status} {code}", headers, body.encode())


@contextmanager
def proxy(url: str) -> Generator[Proxy]:
    """A proxy in front of the emulator that an sqs:// URL names."""
    at = urlsplit(servers.endpoint(url) or "")
    if at.scheme != "http" or at.hostname is None:
        raise servers.ServerError("only an emulator without TLS can be looked into; give an endpoint of http://")
    made = Proxy(at.hostname, at.port or 80)
    try:
        yield made
    finally:
        made.close()
