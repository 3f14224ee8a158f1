"""The stores of a soak: a server of its own, a faulty line to it for each process, and what can be done to it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import psycopg
import redis
from psycopg import sql
from psycopg.rows import dict_row

import dejq
import fault_proxy
import servers
import sqs_api
import sqs_faults
from soak.history import FaultName

QUEUE: Final = "soak"
# All final jobs are kept, so that each can be looked up at the end.
ALL: Final = 100_000_000
# A DEBUG SLEEP that is longer than a lease.
SLEEP_SECONDS: Final = 4.0
_ACTIONS: Final = ("SendMessageBatch", "ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch")


@dataclass
class Store:
    """A store and its lines. Each process has a line of its own, by name."""

    server: servers.Server
    lines: dict[str, fault_proxy.Proxy] = field(default_factory=dict[str, fault_proxy.Proxy])
    name: ClassVar[str] = ""
    faults: ClassVar[tuple[FaultName, ...]] = ()
    options: ClassVar[dict[str, Any]] = {}

    @property
    def url(self) -> str:
        return self.server.url

    def line(self, name: str, stack: ExitStack) -> str:
        """The URL for a process of that name."""
        if name not in self.lines:
            self.lines[name] = stack.enter_context(self._proxy())
        return self.lines[name].in_front_of(self.url)

    def _proxy(self) -> AbstractContextManager[fault_proxy.Proxy]:
        parts = urlsplit(self.url)
        return fault_proxy.proxy(parts.hostname or servers.HOST, parts.port or 0)

    def client(self) -> dejq.Client:
        """A client past all lines, for who looks at the end."""
        return dejq.connect(self.url, **self.options)

    def mute(self, line: str) -> None:
        """The next answers on that line are lost, after the store has done what was asked."""
        self.lines[line].swallow()

    def restart(self) -> None:
        """The server dies, and comes back."""
        self.server.kill()
        self.server.restart()

    def sleep(self) -> Callable[[], None]:
        """The server stands still for longer than a lease; returns what waits for the end of that."""
        raise NotImplementedError

    def terminate(self, dice: Random) -> None:
        """The server ends one of the connections."""
        raise NotImplementedError

    def disrupt(self, line: str, dice: Random) -> None:
        """The store refuses some calls for a moment."""
        raise NotImplementedError

    def left(self) -> dict[str, int]:
        """What is in the store, when all workers are gone and all final jobs are deleted."""
        raise NotImplementedError

    def evidence(self) -> str:
        """The same in the store's own words, for who has to find out why."""
        return ""


class Postgres(Store):
    name = "pg"
    faults = (
        "kill", "pause", "blink", "stop", "hurry", "cut", "hole", "gap", "lag", "mute", "terminate", "restart"
    )  # fmt: skip
    options: ClassVar[dict[str, Any]] = {"schema": QUEUE}

    def terminate(self, dice: Random) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'dejq' ORDER BY pid"
            ).fetchall()
            if rows:
                connection.execute("SELECT pg_terminate_backend(%s)", dice.choice(rows))

    def left(self) -> dict[str, int]:
        counts = {}
        with psycopg.connect(self.url) as connection:
            for table in ("job", "done", "worker"):
                query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(QUEUE, table))
                (counts[table],) = connection.execute(query).fetchone() or (0,)
        return counts

    def evidence(self) -> str:
        # Without bodies, which are long and of no help.
        queries = (
            f"SELECT * FROM {QUEUE}.worker",
            "SELECT id, type, token, worker_id, started_at, due_at, attempt, rescues, chain_id, position, cancel"
            f" FROM {QUEUE}.job ORDER BY seq LIMIT 1000",
            "SELECT pid, state, xact_start, state_change, wait_event, query FROM pg_stat_activity",
            "SELECT pid, locktype, relation::regclass, mode, granted FROM pg_locks",
        )
        lines: list[str] = []
        with psycopg.connect(self.url) as connection, connection.cursor(row_factory=dict_row) as cursor:
            for query in queries:
                lines.append(query)
                lines += (str({name: str(value) for name, value in row.items()}) for row in cursor.execute(query))
        return "\n".join(lines)


class Redis(Store):
    name = "redis"
    faults = (
        "kill", "pause", "blink", "stop", "hurry", "cut", "hole", "gap", "lag", "mute", "terminate", "restart", "sleep"
    )  # fmt: skip
    options: ClassVar[dict[str, Any]] = {"queue": QUEUE, "keep_finished": ALL, "keep_failed": ALL}
    # What a queue without jobs has: sums, the last place, its format, hints that nobody has taken.
    _KEPT: Final = ("count", "total", "place", "void", "awake", "meta", "wake:", "fresh:")

    def _server(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=60)

    def sleep(self) -> Callable[[], None]:
        def sleep() -> None:
            with self._server() as server, suppress(redis.RedisError):
                server.execute_command("DEBUG", "SLEEP", SLEEP_SECONDS)

        thread = threading.Thread(target=sleep)
        thread.start()
        return thread.join

    def terminate(self, dice: Random) -> None:
        with self._server() as server:
            clients: Any = server.client_list()
            names = [each["addr"] for each in clients if each["name"].startswith("dejq:")]
            if names:
                with suppress(redis.RedisError):  # it is gone already
                    server.client_kill(dice.choice(names))

    def left(self) -> dict[str, int]:
        prefix = f"dejq:{{{QUEUE}}}:"
        counts: dict[str, int] = {}
        with self._server() as server:
            for key in server.scan_iter(match=f"{prefix}*", count=1000):
                name = key.decode().removeprefix(prefix)
                if not name.startswith(self._KEPT):
                    counts[name] = 1
        return counts


class Sqs(Store):
    name = "sqs"
    # The emulator keeps everything in memory, so it is never restarted.
    faults = ("kill", "pause", "blink", "stop", "cut", "hole", "gap", "lag", "mute", "disrupt")
    options: ClassVar[dict[str, Any]] = {"wait_time": 2}

    @property
    def url(self) -> str:
        return servers.queue_url(self.server.url, f"{QUEUE}.fifo")

    def _proxy(self) -> AbstractContextManager[fault_proxy.Proxy]:
        return sqs_faults.proxy(self.server.url)

    def _line(self, line: str) -> sqs_faults.Proxy:
        proxy = self.lines[line]
        assert isinstance(proxy, sqs_faults.Proxy)
        proxy.requests.clear()
        return proxy

    def mute(self, line: str) -> None:
        for action in _ACTIONS:
            self._line(line).lose_reply(action)

    def disrupt(self, line: str, dice: Random) -> None:
        status, code = dice.choice([sqs_faults.UNAVAILABLE, sqs_faults.INTERNAL, sqs_faults.THROTTLED])
        for action in _ACTIONS:
            self._line(line).answer(action, status, code, times=2)

    def left(self) -> dict[str, int]:
        api = sqs_api.Sqs(self.url)
        visible, in_flight = api.waiting(api.url(f"{QUEUE}.fifo"))
        api.close()
        return {"messages": visible, "messages in flight": in_flight}


KINDS: Final[dict[str, type[Store]]] = {kind.name: kind for kind in (Postgres, Redis, Sqs)}


@contextmanager
def start(name: str) -> Iterator[Store]:
    """A server of this store that is ours alone, with an empty queue."""
    servers_of: dict[str, Callable[[], AbstractContextManager[servers.Server]]] = {
        "pg": lambda: servers.postgres(own=True, durable=True),
        "redis": lambda: servers.redis(own=True, durable="everysec"),
        "sqs": lambda: servers.sqs(own=True),
    }
    with servers_of[name]() as server, _environment(servers.EMULATOR_CREDENTIALS if name == "sqs" else {}):
        store = KINDS[name](server)
        with store.client() as client:
            if name == "sqs":
                # Receives are what `attempt` counts there: enough of them that no fault makes a dead letter.
                client.create_queue(max_receives=100)
            client.migrate()
        yield store


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
