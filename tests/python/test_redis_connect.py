"""Ways into Redis: URLs, passwords, TLS, rights, sentinels and clusters, and what is looked at on the way in."""

from __future__ import annotations

import itertools
import os
import signal
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from io import BufferedIOBase
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import redis

import dejq
import fault_proxy
import servers
from dejq import BackendUnavailable, Client, ConfigError, Job, OutcomeUnknown, PendingJob, testing
from dejq.info import State
from python.conftest import SECONDS, Ended, Log, Until
from servers import Certificates, Cluster, Server, Tls

pytest_plugins = ["python.redis_store"]

PASSWORD = "hunter2"
WRONG = "hunter3"
# A lease lasts three beats.
HEARTBEAT = 0.5


@pytest.fixture
def redis_7(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are Debian's Redis 7.0."""
    monkeypatch.setenv("DEJQ_TEST_SERVERS", "system")


@pytest.fixture
def valkey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_TEST_SERVERS", "wheel")


def place_of(server: Server) -> str:
    parts = urlsplit(server.url)
    return f"{parts.hostname}:{parts.port}"


def at(server: Server, login: str = "", query: str = "") -> str:
    scheme = urlsplit(server.url).scheme
    return f"{scheme}://{login}{'@' if login else ''}{place_of(server)}{'?' if query else ''}{query}"


def refusal(url: str, **options: Any) -> dejq.DejqError:
    """The error of the first use. Neither it nor what caused it, nor the client, shows a password."""

    def use() -> None:
        with dejq.connect(url, **options) as client:
            assert PASSWORD not in f"{client!r} {client}"
            client.stats()

    with pytest.raises(dejq.DejqError) as refused:
        use()
    error: BaseException | None = refused.value
    while error is not None:
        assert PASSWORD not in f"{error} {error!r}"
        assert WRONG not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__
    return refused.value


def works(url: str, **options: Any) -> None:
    with dejq.connect(url, **options) as client:
        (id,) = client.enqueue(PendingJob("a", 1))
        client.cancel_job(id)


@contextmanager
def asking(server: Server, login: str = "") -> Iterator[redis.Redis]:
    with redis.Redis.from_url(at(server, login), decode_responses=True) as client:
        yield client


def command(client: redis.Redis, *words: object) -> Any:
    execute: Callable[..., Any] = client.execute_command
    return execute(*words)


class Runs:
    """A handler that notes the ids that it runs."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def __call__(self, job: Job) -> None:
        self.ids.append(job.id)

    @property
    def twice(self) -> list[str]:
        return [id for id, times in Counter(self.ids).items() if times > 1]


class Enqueuer:
    """Enqueues one job after the other until it is told to stop; an error is no reason to."""

    def __init__(self, client: Client, type: str = "a") -> None:
        self.sent: list[str] = []
        self.unknown: list[str] = []
        self.errors: list[dejq.DejqError] = []
        self._client, self._type = client, type
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            try:
                self.sent += self._client.enqueue(PendingJob(self._type, 1), PendingJob(self._type, 2))
            except OutcomeUnknown as error:
                self.unknown += error.ids
                self.errors.append(error)
            except dejq.DejqError as error:
                self.errors.append(error)

    def __enter__(self) -> Enqueuer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


# ---- URLs and options --------------------------------------------------------------------------------------

UNREADABLE = "cannot be read as redis://USER:PASSWORD@HOST:PORT/DB"


@pytest.mark.parametrize(
    ("rest", "options", "text"),
    [
        ("127.0.0.1:port", {}, UNREADABLE),
        ("127.0.0.1:0", {}, UNREADABLE),
        ("127.0.0.1:65536", {}, UNREADABLE),
        ("127.0.0.1/zero", {}, UNREADABLE),
        ("127.0.0.1/-1", {}, UNREADABLE),
        ("two words", {}, UNREADABLE),
        ("::1", {}, "[::1]:6379 for IPv6"),
        ("[::1]6379", {}, UNREADABLE),
        ("127.0.0.1", {"db": -1}, 'option db="-1" must be a whole number of at least 0'),
        ("127.0.0.1", {"queue": "a b"}, 'queue "a b" is no name for a queue'),
        ("127.0.0.1", {"queue": ""}, 'queue "" is no name for a queue'),
        ("127.0.0.1", {"queue": "{a}"}, "use 1 to 100 of A-Z a-z 0-9 _ . : / -"),
        ("127.0.0.1", {"queue": "a" * 101}, "is no name for a queue"),
        ("127.0.0.1", {"durability": "disk"}, 'option durability="disk" must be memory, aof or replicas'),
        ("127.0.0.1", {"replicas": 0}, 'option replicas="0" must be a whole number of at least 1'),
        ("127.0.0.1", {"keep_finished": -1}, "must be a whole number of at least 0"),
        ("127.0.0.1", {"keep_failed": "many"}, 'keep_failed="many"'),
        ("127.0.0.1", {"max_body": 536805377}, "from 1 to 536805376"),
        ("127.0.0.1", {"allow_eviction": "perhaps"}, "must be true or false"),
        ("127.0.0.1", {"sentinal": "m"}, 'did you mean "sentinel"?'),
        ("127.0.0.1", {"sslrootcret": "m"}, 'did you mean "sslrootcert"?'),
        ("127.0.0.1", {"schema": "m"}, 'there is no option "schema"'),
        ("127.0.0.1?durabilty=aof", {}, 'did you mean "durability"?'),
        ("127.0.0.1", {"sentinel_password": WRONG}, "add sentinel=NAME"),
        ("127.0.0.1", {"sslrootcert": "/nowhere.pem"}, "write rediss://"),
    ],
    ids=str,
)
@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_what_cannot_be_right_is_refused_at_once(scheme: str, rest: str, options: dict[str, Any], text: str) -> None:
    error = refusal(f"{scheme}://ada:{PASSWORD}@{rest}", **options)
    assert isinstance(error, ConfigError)
    assert text in str(error)


@pytest.mark.parametrize("mark", "?#")
def test_a_password_that_ends_the_url_too_early_is_not_shown(mark: str) -> None:
    with pytest.raises(ConfigError) as refused:
        dejq.connect(f"redis://ada:12{mark}{PASSWORD}@127.0.0.1")
    assert "%3F for ?, %23 for #" in str(refused.value)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis+unix://run/redis.sock", UNREADABLE),
        ("redis+unix://", UNREADABLE),
        ("redis+unix:///run/redis.sock?sslrootcert=/x", "write rediss://"),
        ("rdis://127.0.0.1", "did you mean redis://?"),
        ("rediss://h?sslrootcert=/nowhere.pem", 'sslrootcert="/nowhere.pem" cannot be read'),
        ("rediss://h?sslrootcert=/etc/hostname", "-----BEGIN CERTIFICATE-----"),
        ("rediss://h?sslcert=/etc/hostname", "sslcert and sslkey belong together"),
        ("rediss://h?sslcert=/etc/hostname&sslkey=/etc/hostname", "is no PEM file"),
    ],
)
def test_a_socket_or_tls_that_cannot_be_is_refused_at_once(url: str, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        dejq.connect(url)
    assert text in str(refused.value)


STRANGE = "p@ss:w/rd?#%+ &=é"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server with users of every kind."""
    users = [
        f"user default on >{PASSWORD} ~* &* +@all",
        f"user ada on >{PASSWORD} ~* &* +@all",
        "user free on nopass ~* &* +@all",
        f"user off off >{PASSWORD} ~* &* +@all",
    ]
    with servers.redis(acl=users) as server:
        with asking(server, f":{PASSWORD}") as client:
            client.acl_setuser("strange", enabled=True, passwords=[f"+{STRANGE}"], keys=["*"], categories=["+@all"])
        yield server


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
@pytest.mark.parametrize(
    ("login", "options"),
    [
        (f":{PASSWORD}", {}),
        (f"default:{PASSWORD}", {}),
        (f"ada:{PASSWORD}", {}),
        ("free", {}),
        (f"free:{WRONG}", {}),
        (f"strange:{quote(STRANGE, safe='')}", {}),
        ("", {"username": "ada", "password": PASSWORD}),
        ("", {"password": PASSWORD}),
        ("", {"username": "strange", "password": STRANGE}),
        ("ada", {"password": PASSWORD}),
        # An option wins.
        (f"eve:{WRONG}", {"username": "ada", "password": PASSWORD}),
    ],
    ids=str,
)
def test_who_may_come_in_does(guarded: Server, scheme: str, login: str, options: dict[str, str]) -> None:
    works(at(guarded, login).replace("redis:", f"{scheme}:"), **options)


def test_a_password_may_stand_in_the_query(guarded: Server) -> None:
    works(at(guarded, query=f"username=strange&password={quote(STRANGE, safe='')}"))


@pytest.mark.parametrize(
    ("login", "who"),
    [
        (f":{WRONG}", "the default user with this password"),
        (f"ada:{WRONG}", 'user "ada" with this password'),
        (f"eve:{PASSWORD}", 'user "eve" with this password'),
        (f"off:{PASSWORD}", 'user "off" with this password'),
        ("ada", 'user "ada" without a password'),
        ("", "anybody without a password"),
    ],
)
def test_who_may_not_come_in_reads_why_at_once(guarded: Server, login: str, who: str) -> None:
    error = refusal(at(guarded, login))
    assert isinstance(error, ConfigError)
    assert f"{place_of(guarded)} does not let {who} in" in str(error)
    assert "check user and password, written redis://USER:PASSWORD@HOST" in str(error)


def test_an_enqueue_with_a_wrong_password_fails_at_once(guarded: Server) -> None:
    with dejq.connect(at(guarded, f":{WRONG}")) as client, pytest.raises(ConfigError, match="WRONGPASS"):
        client.enqueue(PendingJob("a"))


def test_a_password_that_the_server_does_not_ask_for_is_an_error(redis_url: str) -> None:
    error = refusal(redis_url.replace("://", f"://:{PASSWORD}@"))
    assert isinstance(error, ConfigError)
    assert "without any password configured" in str(error)


def test_a_password_is_in_no_log(guarded: Server, log: Log) -> None:
    dejq.set_verbosity(3)
    runs = Runs()
    with dejq.connect(at(guarded, f"ada:{PASSWORD}")) as client:
        client.register_handler("a", runs)
        client.enqueue(PendingJob("a"))
        client.run(drain=True)
        assert PASSWORD not in f"{client!r} {client} {client.check()}"
    assert len(runs.ids) == 1
    with dejq.connect(at(guarded, f"ada:{WRONG}"), heartbeat=HEARTBEAT) as client:
        client.register_handler("a", runs)
        client.dequeue_loop()
        with pytest.raises(ConfigError):
            client.stats()
    assert log.texts
    assert PASSWORD not in log.text
    assert WRONG not in log.text


@pytest.mark.parametrize("how", ["path", "option", "query", "both"])
def test_the_number_of_a_database_is_where_the_queue_is(redis_url: str, redis_queue: str, how: str) -> None:
    base = redis_url.removesuffix("/0")
    url = {"path": f"{base}/3", "option": base, "query": f"{base}?db=3", "both": f"{base}/5"}[how]
    options = {"db": 3} if how in ("option", "both") else {}
    with dejq.connect(url, queue=redis_queue, **options) as client:
        client.enqueue(PendingJob("a"))
    with redis.Redis.from_url(f"{base}/3") as server:
        assert server.hlen(f"dejq:{{{redis_queue}}}:job") == 1
        server.flushdb()


def test_a_database_that_is_not_there_is_an_error(redis_url: str) -> None:
    error = refusal(redis_url.removesuffix("/0") + "/99")
    assert isinstance(error, ConfigError)
    assert "has no database 99" in str(error)


@pytest.mark.parametrize("scheme", ["redis+unix", "valkey+unix"])
def test_a_socket_is_reached_by_its_path(scheme: str) -> None:
    with servers.redis(unixsocket=True) as server:
        path = urlsplit(server.url).path
        works(f"{scheme}://{path}")
        works(f"{scheme}://{quote(path, safe='/')}?db=2")
        error = refusal(f"{scheme}://ada:{PASSWORD}@{path}")
        assert isinstance(error, ConfigError)
        assert f"{path} does not let user" in str(error)


def test_an_address_of_ipv6_is_written_in_brackets() -> None:
    with servers.redis(own=True) as server, asking(server) as client:
        client.config_set("bind", "127.0.0.1 ::1")
        port = urlsplit(server.url).port
        works(f"redis://[::1]:{port}")
        works(f"redis://localhost:{port}")


def test_a_client_says_which_queue_it_is_for(redis_url: str, redis_server: redis.Redis, redis_queue: str) -> None:
    with dejq.connect(redis_url, queue=redis_queue) as client:
        client.stats()
        names = {each["name"] for each in redis_server.client_list()}
    assert f"dejq:{redis_queue}" in names


# ---- what is not there, or no Redis ------------------------------------------------------------------------


@contextmanager
def listening(serve: Callable[[BufferedIOBase, BufferedIOBase], None]) -> Iterator[str]:
    """HOST:PORT of a server that does this with each connection."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            serve(self.rfile, self.wfile)

    class Listener(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Listener(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{listener.server_address[1]}"
        listener.shutdown()
        thread.join()


def is_http(received: BufferedIOBase, sent: BufferedIOBase) -> None:
    received.readline()
    sent.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def is_closed(received: BufferedIOBase, sent: BufferedIOBase) -> None:
    pass


def is_silent(received: BufferedIOBase, sent: BufferedIOBase) -> None:
    received.read()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
@pytest.mark.parametrize("serve", [is_http, is_closed, is_silent])
def test_what_is_no_redis_is_told_from_one(scheme: str, serve: Callable[..., None]) -> None:
    with listening(serve) as place:
        error = refusal(f"{scheme}://:{PASSWORD}@{place}")
    assert f"cannot connect to {place}: " in str(error)
    if serve is is_http and scheme == "redis":
        assert "what answers there is no Redis; check host and port" in str(error)
    elif serve is is_http:
        assert "what answers there does not speak TLS" in str(error)
    else:
        assert isinstance(error, BackendUnavailable)
        assert "write rediss:// instead" in str(error) or "write redis:// instead" in str(error)
    assert "\n" not in str(error)


def test_who_is_not_there_is_named() -> None:
    error = refusal("redis://127.0.0.1:1")
    assert isinstance(error, BackendUnavailable)
    assert "cannot connect to 127.0.0.1:1: Connection refused" in str(error)
    assert "check that Redis runs there" in str(error)
    assert "nowhere.invalid:6379" in str(refusal("redis://nowhere.invalid"))
    assert "/nowhere/redis.sock" in str(refusal("redis+unix:///nowhere/redis.sock"))
    with dejq.connect("redis://127.0.0.1:1") as client, pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:1"):
        client.enqueue(PendingJob("a"))


def test_a_server_with_too_many_clients_may_have_room_later() -> None:
    with servers.redis(own=True) as server, asking(server) as first:
        first.config_set("maxclients", 1)
        error = refusal(server.url)
        assert isinstance(error, BackendUnavailable)
        assert place_of(server) in str(error)
        first.config_set("maxclients", 100)
        works(server.url)


def test_an_enqueue_into_a_black_hole_ends_and_so_do_all_that_wait_behind_it(redis_url: str, redis_queue: str) -> None:
    parts = urlsplit(redis_url)
    assert parts.hostname
    assert parts.port
    with (
        ThreadPoolExecutor() as pool,
        fault_proxy.proxy(parts.hostname, parts.port) as proxy,
        dejq.connect(proxy.in_front_of(redis_url), queue=redis_queue) as client,
    ):
        client.enqueue(PendingJob("a"))
        proxy.black_hole(True)
        calls = [pool.submit(client.enqueue, PendingJob("a")) for _ in range(6)]
        _, late = wait(calls, timeout=SECONDS)
        proxy.black_hole(False)
        assert not late
        errors = [call.exception() for call in calls]
        assert all(isinstance(error, (OutcomeUnknown, BackendUnavailable)) for error in errors)
        unknown = [error for error in errors if isinstance(error, OutcomeUnknown)]
        assert all(len(error.ids) == 1 for error in unknown)
        (id,) = client.enqueue(PendingJob("a"))
        assert client.get_job(id).state == "ready"
        # Those whose outcome is unknown may be there, each once; the others are not.
        assert client.stats().enqueued_jobs <= 2 + len(unknown)


# ---- what is looked at on the way in -----------------------------------------------------------------------


@contextmanager
def pretending(info: str) -> Iterator[str]:
    """A server that says this of itself, and OK to all else."""

    def serve(received: BufferedIOBase, sent: BufferedIOBase) -> None:
        while head := received.readline():
            words = []
            for _ in range(int(head[1:])):
                length = int(received.readline()[1:])
                words.append(received.read(length + 2)[:-2])
            answer = b"$%d\r\n%s\r\n" % (len(info), info.encode()) if words[0].upper() == b"INFO" else b"+OK\r\n"
            sent.write(answer)

    with listening(serve) as place:
        yield place


@pytest.mark.parametrize("version", ["5.0.14", "6.0.20"])
def test_a_server_that_is_too_old_is_refused(version: str) -> None:
    with pretending(f"redis_version:{version}\r\nrole:master\r\n") as place:
        error = refusal(f"redis://{place}")
    assert isinstance(error, ConfigError)
    assert f"{place} is Redis {version}, and dejq needs Redis 6.2 or Valkey; upgrade the server" in str(error)


def test_a_queue_of_another_format_is_refused(redis_url: str, redis_server: redis.Redis, redis_queue: str) -> None:
    redis_server.hset(f"dejq:{{{redis_queue}}}:meta", "format", "2")
    error = refusal(redis_url, queue=redis_queue)
    assert isinstance(error, dejq.SchemaOutdated)
    assert "has format 2 and this dejq knows 1" in str(error)
    redis_server.delete(f"dejq:{{{redis_queue}}}:meta")


def test_only_the_primary_is_taken() -> None:
    with servers.redis(own=True) as primary, servers.redis_replica(primary) as replica:
        error = refusal(replica.url)
        assert isinstance(error, BackendUnavailable)
        assert f"{place_of(replica)} is a replica and only reads; name the primary in the URL" in str(error)
        # Of several hosts, the one that is it.
        works(f"redis://127.0.0.1:1,{place_of(replica)},{place_of(primary)}")
        with dejq.connect(f"redis://{place_of(primary)},{place_of(replica)}", queue="q") as client:
            (before,) = client.enqueue(PendingJob("a"))
            with asking(replica) as server:
                assert server.exists("dejq:{q}:job")
            primary.kill()
            replica.promote()
            (after,) = client.enqueue(PendingJob("a"))
            assert {job.id for job in client.list_jobs()} == {before, after}


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_server_that_throws_jobs_away_is_refused_unless_that_is_wanted(policy: str) -> None:
    with servers.redis(settings={"maxmemory": "100mb", "maxmemory-policy": policy}) as server:
        error = refusal(server.url)
        assert isinstance(error, ConfigError)
        assert f"{place_of(server)} has maxmemory-policy {policy}" in str(error)
        assert "`CONFIG SET maxmemory-policy noeviction`" in str(error)
        assert "allow_eviction=true" in str(error)
        works(server.url, allow_eviction=True)
        works(f"{server.url}?allow_eviction=true")


def test_a_policy_that_spares_keys_without_a_time_to_live_is_fine() -> None:
    with servers.redis(settings={"maxmemory": "100mb", "maxmemory-policy": "volatile-lru"}) as server:
        works(server.url)


def test_a_full_server_still_lets_workers_connect(until: Until) -> None:
    runs = Runs()
    with servers.redis(own=True) as server:
        with dejq.connect(server.url) as client:
            ids = client.enqueue(PendingJob("a"))
            with asking(server) as asked:
                asked.config_set("maxmemory", 1)
            with pytest.raises(BackendUnavailable, match="no memory left"):
                client.enqueue(PendingJob("a"))
        with dejq.connect(server.url) as worker:
            worker.register_handler("a", runs)
            worker.dequeue_loop()
            until(lambda: worker.stats().finished == 1)
    assert runs.ids == ids


def waits(server: Server, command: str) -> int:
    """How often that command was called."""
    with asking(server) as client:
        return int(client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def test_aof_needs_an_append_only_file(redis_url: str) -> None:
    error = refusal(redis_url, durability="aof")
    assert isinstance(error, ConfigError)
    assert "keeps none; set appendonly yes there (`CONFIG SET appendonly yes`)" in str(error)


@pytest.mark.usefixtures("redis_7")
def test_before_7_2_aof_needs_a_server_that_syncs_each_write() -> None:
    with servers.redis(own=True) as server:
        assert "keeps none" in str(refusal(server.url, durability="aof"))
    with servers.redis(own=True, durable=True) as server:
        error = refusal(server.url, durability="aof")
        assert isinstance(error, ConfigError)
        assert "is Redis 7.0" in str(error)
        assert "with appendfsync everysec" in str(error)
        assert "set appendfsync always there" in str(error)
        works(server.url)
    with servers.redis(own=True, durable="always") as server:
        works(server.url, durability="aof")


@pytest.mark.usefixtures("valkey")
def test_aof_waits_until_a_job_is_on_disk() -> None:
    with servers.redis(own=True, durable=True) as server:
        with dejq.connect(server.url, durability="aof") as client:
            client.enqueue(PendingJob("a"))
            before = waits(server, "waitaof")
            (id,) = client.enqueue(PendingJob("a"))
            assert waits(server, "waitaof") == before + 1
            ids = client.enqueue_many([PendingJob("a") for _ in range(300)])
        server.kill()
        server.restart()
        with dejq.connect(server.url) as client:
            assert client.get_job(id).state == "ready"
            assert client.stats().ready == 2 + len(ids)


@contextmanager
def asleep(server: Server) -> Iterator[None]:
    assert server.pid
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_replicas_have_a_job_before_it_is_acknowledged(until: Until) -> None:
    with servers.redis(own=True) as primary, servers.redis_replica(primary) as replica:
        with dejq.connect(primary.url, durability="replicas") as client:
            (first,) = client.enqueue(PendingJob("a"))
            assert waits(primary, "wait") == 1
            with asking(replica) as asked:
                assert asked.hlen("dejq:{dejq}:job") == 1
            with asleep(replica), pytest.raises(OutcomeUnknown) as unknown:
                client.enqueue(PendingJob("a"))
            assert "only 0 of 1 replicas said so" in str(unknown.value)
            assert "a failover may lose them" in str(unknown.value)
            assert "got no answer" not in str(unknown.value)
            assert [job.id for job in client.list_jobs()] == [first, *unknown.value.ids]
            (third,) = client.enqueue(PendingJob("a"))
            primary.kill()
        replica.promote()
        with dejq.connect(replica.url) as client:
            assert [job.id for job in client.list_jobs()] == [first, *unknown.value.ids, third]


def test_a_second_try_acknowledges_no_sooner_than_the_first() -> None:
    with (
        servers.redis(own=True) as primary,
        servers.redis_replica(primary) as replica,
        fault_proxy.proxy(*servers_address(primary)) as proxy,
        dejq.connect(proxy.in_front_of(primary.url), durability="replicas") as client,
    ):
        client.enqueue(PendingJob("a"))
        with asleep(replica):
            lost = proxy.drop_replies_of(lambda sent: b"EVALSHA" in sent)
            # The job is stored, and the connection by which it was is gone.
            with pytest.raises(OutcomeUnknown):
                client.enqueue(PendingJob("a"))
            assert lost.is_set()


def servers_address(server: Server) -> tuple[str, int]:
    parts = urlsplit(server.url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


# ---- TLS ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return servers.certificates(tmp_path_factory.mktemp("certificates"))


FINE = ""
ISSUER, NAME, EXPIRED = "signed by no authority that is trusted here", "is another host's", "has expired"
VERDICTS = {
    "server": (FINE, ISSUER),
    "wrong_name": (NAME, ISSUER),
    "untrusted": (ISSUER, FINE),
    "expired": (EXPIRED, EXPIRED),
}


@pytest.mark.parametrize("kind", VERDICTS)
def test_a_certificate_is_verified(certificates: Certificates, kind: str) -> None:
    with servers.redis(tls=Tls(getattr(certificates, kind))) as server:
        for host in ("localhost", "127.0.0.1"):
            for scheme in ("rediss", "valkeys"):
                url = server.url.replace("127.0.0.1", host).replace("rediss:", f"{scheme}:")
                for root, wanted in zip((certificates.ca, certificates.other_ca), VERDICTS[kind], strict=True):
                    if wanted == FINE:
                        works(url, sslrootcert=str(root))
                        continue
                    error = refusal(url, sslrootcert=str(root))
                    assert isinstance(error, ConfigError)
                    assert f"cannot connect to {host}:{urlsplit(url).port}: the server's certificate" in str(error)
                    assert wanted in str(error)
        error = refusal(server.url)
        assert isinstance(error, ConfigError)
        assert "set sslrootcert" in str(error) or EXPIRED in str(error)


def test_the_authority_may_be_one_that_the_system_trusts(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    with servers.redis(tls=Tls(certificates.server)) as server:
        works(server.url)
        assert ISSUER in str(refusal(server.url, sslrootcert=str(certificates.other_ca)))


def test_a_client_certificate_is_shown_to_a_server_that_asks_for_it(certificates: Certificates) -> None:
    ca, mine, others = str(certificates.ca), certificates.client, certificates.untrusted
    with servers.redis(tls=Tls(certificates.server, client_authority=certificates.ca)) as server:
        works(server.url, sslrootcert=ca, sslcert=str(mine.file), sslkey=str(mine.key))
        works(f"{server.url}?sslrootcert={quote(ca)}&sslcert={quote(str(mine.file))}&sslkey={quote(str(mine.key))}")
        # What the server says of it comes when the connection is up already, and may be lost.
        for wrong in (refusal(server.url, sslrootcert=ca), refusal(server.url, sslrootcert=ca, **as_options(others))):
            assert place_of(server) in str(wrong)
            assert "sslcert and sslkey" in str(wrong)
        error = refusal(server.url, sslrootcert=ca, sslcert=str(mine.file), sslkey=str(others.key))
        assert isinstance(error, ConfigError)
        assert "is it the key of that certificate?" in str(error)


def as_options(certificate: servers.Certificate) -> dict[str, str]:
    return {"sslcert": str(certificate.file), "sslkey": str(certificate.key)}


def test_tls_on_one_side_only_is_told(certificates: Certificates, redis_url: str) -> None:
    with servers.redis(tls=Tls(certificates.server)) as server:
        error = refusal(server.url.replace("rediss:", "redis:"))
        assert f"cannot connect to {place_of(server)}" in str(error)
        assert "write rediss:// instead of redis://" in str(error)
    error = refusal(redis_url.replace("redis:", "rediss:"), sslrootcert=str(certificates.ca))
    assert "write redis:// instead of rediss://" in str(error)


# ---- rights ------------------------------------------------------------------------------------------------

# What docs/redis.md lists.
KEYS = "~dejq:{{{queue}}}:*"
COMMANDS = (
    *("blpop", "eval", "evalsha", "script|load", "multi", "exec", "time"),
    *("exists", "persist", "get", "set", "incr", "decrby"),
    *("hset", "hsetnx", "hget", "hmget", "hgetall", "hkeys", "hexists", "hdel", "hincrby", "hlen", "hscan"),
    *("lpop", "rpush", "llen", "lindex", "lrange", "ltrim", "lrem", "lpos"),
    *("zadd", "zrem", "zrange", "zrangebyscore", "zrank", "zscore", "zscan", "zcard", "zcount"),
)
OPTIONAL = ("info", "client|setname")


def allowed(server: Server, queue: str, commands: Iterable[str]) -> str:
    """A URL of a user who may do this and nothing else."""
    rights = " ".join(f"+{command}" for command in commands)
    with asking(server) as client:
        line = f"ACL SETUSER limited reset on >{PASSWORD} {KEYS.format(queue=queue)} {rights}"
        command(client, *line.split())
    return at(server, f"limited:{PASSWORD}")


def use_everything(url: str, queue: str, server: redis.Redis, until: Until, ended: Ended) -> None:
    """All of the public API, with something to repair."""
    runs, leave = Runs(), threading.Event()

    def flaky(job: Job) -> None:
        if job.attempt == 1:
            raise ValueError("the first time")

    def fail(job: Job) -> None:
        raise ValueError("each time")

    def hold(job: Job) -> None:
        assert leave.wait(SECONDS)

    with dejq.connect(url, queue=queue, heartbeat=HEARTBEAT, keep_finished=50, keep_failed=1) as client:
        # Somebody else's, who waits behind jobs that are stepped over.
        others = client.enqueue_many([PendingJob("other", n) for n in range(4)])
        client.cancel_job(others[0])
        client.finish_job(others[1])
        assert client.stats().ready == 2
        client.requeue_job(others[0])
        chain = client.enqueue(PendingJob("a", 1), PendingJob("b", 2, delay=0.01), PendingJob("a", 3))
        unique = [client.enqueue(PendingJob("a", 1, unique="one")) for _ in range(2)]
        assert unique[0] == unique[1]
        (late,) = client.enqueue(PendingJob("a", 1, delay=0.05))
        (retried,) = client.enqueue(PendingJob("flaky", 1, max_attempts=3), PendingJob("a", 1))[:1]
        failing = client.enqueue(PendingJob("fail", 1), PendingJob("a", 1), on_failure="cancel")
        client.enqueue_many([PendingJob("a", n) for n in range(300)])
        held, unwanted = client.enqueue_many([PendingJob("hold", n) for n in range(2)])
        client.cancel_job(unwanted)
        with pytest.raises(dejq.UnknownJob):
            client.get_job("0192f0c1-2345-7abc-8def-0123456789ab")
        handlers: dict[str, Callable[[Job], None]] = {"a": runs, "b": runs, "flaky": flaky, "fail": fail, "hold": hold}
        for type, handler in handlers.items():
            client.register_handler(type, handler, backoff=dejq.Backoff(0.01))
        client.dequeue_loop(workers=4)
        until(lambda: client.get_job(held).state == "running")
        assert [job.id for job in client.list_jobs(state="running", type="hold")] == [held]
        for state in STATES:
            client.list_jobs(state=state, older_than=0.001)
        assert client.unresponsive_jobs(older_than=3600) == []
        client.check()
        until(lambda: all(has_ended(client, id) for id in (*chain, *unique[0], late, retried, failing[1])))
        client.cancel_job(held)
        leave.set()
        until(lambda: client.stats().running == 0)
        until(lambda: client.stats().enqueued_jobs == 3)
        assert client.delete_finished(older_than=0) > 0
    with dejq.connect(url, queue=queue) as client:
        client.register_handler("other", runs)
        client.enqueue(PendingJob("other", 1, delay=3600))
        server.delete(f"dejq:{{{queue}}}:fresh:other")
        server.rpush(f"dejq:{{{queue}}}:finished", "nobody")
        assert {finding.level for finding in client.audit(repair=True)} == {"warn"}
        testing.drain(client, scheduled=True)
        assert client.stats().enqueued_jobs == 0


STATES: tuple[State, ...] = ("ready", "scheduled", "blocked", "running", "finished", "failed", "cancelled")


def has_ended(client: Client, id: str) -> bool:
    """Is it final, or forgotten since?"""
    try:
        return client.get_job(id).state in ("finished", "failed", "cancelled")
    except dejq.UnknownJob:
        return True


@pytest.fixture(params=["wheel", "system"], ids=["valkey", "redis"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("DEJQ_TEST_SERVERS", request.param)
    with servers.redis(own=True) as server:
        yield server


@pytest.mark.parametrize("more", [(), OPTIONAL], ids=["needed", "and optional"])
def test_everything_works_with_the_rights_that_the_documentation_lists(
    either: Server, until: Until, ended: Ended, log: Log, more: tuple[str, ...]
) -> None:
    with asking(either) as client:
        client.config_resetstat()
        use_everything(allowed(either, "q", [*COMMANDS, *more]), "q", client, until, ended)
        called = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
        refused = [entry["object"] for entry in client.acl_log()]
    assert set(refused) <= ({"info", "client|setname", "client"} if not more else set())
    # None of them is for nothing.
    assert set(COMMANDS) - called == set()
    assert "DEJQ-" not in log.text


@pytest.mark.parametrize("command", ["evalsha", "eval", "script|load", "time", "exists", "hset", "hsetnx", "hincrby"])
def test_who_lacks_a_right_reads_where_they_are_listed(either: Server, command: str) -> None:
    url = allowed(either, "q", [right for right in COMMANDS if right != command])

    def enqueue_one_and_many() -> None:
        with dejq.connect(url, queue="q") as client:
            client.enqueue(PendingJob("a"))
            client.enqueue_many([PendingJob("a") for _ in range(300)])

    with pytest.raises(ConfigError) as refused:
        enqueue_one_and_many()
    assert "docs/redis.md" in str(refused.value)
    assert PASSWORD not in str(refused.value)


def test_a_worker_without_a_right_says_where_they_are_listed(either: Server, until: Until, log: Log) -> None:
    url = allowed(either, "q", [right for right in COMMANDS if right != "blpop"])
    with dejq.connect(url, queue="q") as client:
        client.register_handler("a", Runs())
        client.dequeue_loop()
        until(lambda: "docs/redis.md" in log.text)


def test_rights_are_for_one_queue(either: Server) -> None:
    error = refusal(allowed(either, "q", COMMANDS), queue="other")
    assert isinstance(error, ConfigError)
    assert "docs/redis.md" in str(error)


@pytest.mark.usefixtures("valkey")
def test_who_may_not_ask_for_info_still_waits_for_the_disk() -> None:
    with servers.redis(own=True, durable=True) as server:
        works(allowed(server, "q", [*COMMANDS, "waitaof"]), queue="q", durability="aof")
        assert waits(server, "waitaof") > 0
        error = refusal(allowed(server, "q", COMMANDS), queue="q", durability="aof")
        assert isinstance(error, ConfigError)
        assert "docs/redis.md" in str(error)


# ---- sentinels ---------------------------------------------------------------------------------------------


def hosts_of(sentinels: servers.Sentinels) -> str:
    return ",".join(f"{host}:{port}" for host, port in sentinels.addresses)


def test_sentinels_say_where_the_primary_is() -> None:
    with (
        servers.redis(own=True) as primary,
        servers.redis_replica(primary),
        servers.sentinels(primary, name="mine") as sentinels,
    ):
        hosts = hosts_of(sentinels)
        works(f"redis://{hosts}?sentinel=mine")
        works(f"valkey://127.0.0.1:1,{hosts}/3", sentinel="mine")

        error = refusal(f"redis://:{PASSWORD}@{hosts}?sentinel=mine")
        assert isinstance(error, ConfigError)
        assert f"{place_of(primary)} does not let the default user" in str(error)

        error = refusal(f"redis://{hosts}?sentinel=yours")
        assert isinstance(error, ConfigError)
        assert 'no sentinel says where the primary "yours" is' in str(error)
        assert f"{hosts.split(',')[2]} knows no primary of this name" in str(error)
        assert "`SENTINEL MASTERS` lists the names" in str(error)

        error = refusal("redis://127.0.0.1:1,127.0.0.1:2?sentinel=mine")
        assert isinstance(error, BackendUnavailable)
        assert "cannot connect to 127.0.0.1:2" in str(error)

        error = refusal(f"{primary.url}?sentinel=mine")
        assert isinstance(error, ConfigError)
        assert f"{place_of(primary)} is no sentinel" in str(error)

        error = refusal(f"redis://{hosts.split(',')[0]}")
        assert isinstance(error, ConfigError)
        assert "is a sentinel; add ?sentinel=NAME" in str(error)

        for server in sentinels.servers:
            with asking(server) as client:
                command(client, "ACL", "SETUSER", "default", f">{PASSWORD}")
        works(f"redis://{hosts}?sentinel=mine", sentinel_password=PASSWORD)
        works(f"redis://{hosts}?sentinel=mine", sentinel_username="default", sentinel_password=PASSWORD)
        for options in ({}, {"sentinel_password": WRONG}):
            error = refusal(f"redis://{hosts}?sentinel=mine", **options)
            assert isinstance(error, ConfigError)
            assert f"{hosts.split(',')[0]} does not let" in str(error)


def is_replica(server: Server) -> bool:
    # Sentinels close its connections when they make it one.
    with suppress(redis.ConnectionError), asking(server) as client:
        return bool(client.info("replication")["role"] == "slave")
    return False


def test_a_failover_is_followed_and_the_old_primary_does_no_harm(until: Until, log: Log) -> None:
    runs = Runs()
    with (
        servers.redis(own=True, durable="always") as primary,
        servers.redis_replica(primary),
        servers.redis_replica(primary),
        servers.sentinels(primary) as sentinels,
    ):
        url = f"redis://{hosts_of(sentinels)}?sentinel={sentinels.name}"
        with (
            dejq.connect(url, durability="replicas", heartbeat=HEARTBEAT) as client,
            dejq.connect(url, heartbeat=HEARTBEAT, workers=2, keep_finished=100_000) as worker,
        ):
            worker.register_handler("a", runs)
            worker.dequeue_loop()
            (late,) = client.enqueue(PendingJob("a", delay=1))
            with Enqueuer(client) as load:
                until(lambda: len(runs.ids) > 100)
                primary.kill()
                until(lambda: sentinels.master() != servers_address(primary))
                enough = len(runs.ids) + 200
                until(lambda: len(runs.ids) > enough)
                sentinels.servers[0].kill()
                # It comes back as it was, until the sentinels make it a replica.
                primary.restart()
                until(lambda: is_replica(primary))
                enough = len(runs.ids) + 200
                until(lambda: len(runs.ids) > enough)
            until(lambda: worker.stats().enqueued_jobs == 0)
            # Those of the enqueues that failed for certain are nowhere.
            assert set(load.sent) | {late} <= set(runs.ids) <= set(load.sent) | set(load.unknown) | {late}
            # What was running when the primary died may run once more: that it ended was not replicated.
            assert len(runs.twice) <= 200
        assert all(isinstance(error, (BackendUnavailable, OutcomeUnknown)) for error in load.errors)
    # Nobody spins: there is a pause between two tries.
    assert len(log.texts) < 300


# ---- clusters ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with servers.redis_cluster() as cluster:
        yield cluster


_numbers = itertools.count()


def slot_of(cluster: Cluster, queue: str) -> int:
    return cluster.slot(f"dejq:{{{queue}}}:")


def queue_at(cluster: Cluster, server: Server) -> str:
    """The name of a new queue that is at this node."""
    names = (f"q{number}" for number in _numbers)
    return next(name for name in names if cluster.owner(slot_of(cluster, name)) is server)


@pytest.mark.parametrize("owner", range(3))
@pytest.mark.parametrize("entry", range(3))
def test_each_node_leads_to_each_queue(cluster: Cluster, until: Until, owner: int, entry: int) -> None:
    url, queue = cluster.servers[entry].url, queue_at(cluster, cluster.servers[owner])
    runs = Runs()
    with dejq.connect(url, queue=queue, heartbeat=HEARTBEAT) as client:
        ids = client.enqueue(PendingJob("a"), PendingJob("b", delay=0.05), PendingJob("a"))
        ids += client.enqueue_many([PendingJob("a", n) for n in range(300)])
        client.register_handler("a", runs)
        client.register_handler("b", runs)
        client.dequeue_loop()
        until(lambda: client.stats().enqueued_jobs == 0)
    assert sorted(runs.ids) == sorted(ids)
    assert [id for id in runs.ids if id in ids[:3]] == ids[:3]


def test_a_cluster_has_one_database(cluster: Cluster) -> None:
    error = refusal(cluster.url.removesuffix("/0") + "/3")
    assert isinstance(error, ConfigError)
    assert "has no database 3" in str(error)


def more_than(runs: Runs, enough: int) -> bool:
    return len(runs.ids) > enough


def test_jobs_go_on_while_their_slot_moves(cluster: Cluster, until: Until) -> None:
    queue = queue_at(cluster, cluster.servers[0])
    slot, runs = slot_of(cluster, queue), Runs()
    with (
        dejq.connect(cluster.servers[1].url, queue=queue) as client,
        dejq.connect(cluster.servers[2].url, queue=queue, heartbeat=HEARTBEAT, keep_finished=100_000) as worker,
    ):
        worker.register_handler("a", runs)
        worker.dequeue_loop(workers=2)
        with Enqueuer(client) as load:
            for target in (1, 2, 0, 1):
                more = partial(more_than, runs, len(runs.ids) + 50)
                until(more)
                cluster.move_slot(slot, to=cluster.servers[target])
            with cluster.moving_slot(slot, to=cluster.servers[2]):
                time.sleep(2 * HEARTBEAT)  # longer than a beat, shorter than a lease
            enough = len(runs.ids) + 50
            until(lambda: len(runs.ids) > enough)
        until(lambda: (stats := worker.stats()).enqueued_jobs == stats.running == 0)
        assert worker.stats().finished == len(runs.ids)
    assert runs.twice == []
    assert set(load.sent) <= set(runs.ids) <= set(load.sent) | set(load.unknown)
    assert all(isinstance(error, (BackendUnavailable, OutcomeUnknown)) for error in load.errors)


READERS = {
    b"hash": ("HGETALL",),
    b"list": ("LRANGE", 0, -1),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    b"string": ("GET",),
}


def everything_in(cluster: Cluster, slot: int) -> dict[bytes, object]:
    """What the keys of a slot hold, wherever they are."""
    found: dict[bytes, object] = {}
    for server in cluster.servers:
        with redis.Redis.from_url(server.url) as client:
            for key in command(client, "CLUSTER", "GETKEYSINSLOT", slot, 1000):
                command(client, "ASKING")
                read, *more = READERS[command(client, "TYPE", key)]
                command(client, "ASKING")
                assert key not in found
                found[key] = command(client, read, key, *more)
    return found


@contextmanager
def half_moved(cluster: Cluster, queue: str, parts: tuple[str, ...]) -> Iterator[None]:
    """The slot of a queue is on its way, and of its keys these are there already; then it has arrived."""
    slot = slot_of(cluster, queue)
    source = cluster.owner(slot)
    to = cluster.servers[cluster.servers.index(source) - 1]
    with asking(source) as old, asking(to) as new:
        names = {server: command(server, "CLUSTER", "MYID") for server in (old, new)}
        command(new, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[old])
        command(old, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[new])
        host, port = servers_address(to)
        keys = [f"dejq:{{{queue}}}:{part}" for part in parts]
        assert command(old, "MIGRATE", host, port, "", 0, 5000, "KEYS", *keys) == "OK"
        yield
        while rest := command(old, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            command(old, "MIGRATE", host, port, "", 0, 5000, "KEYS", *rest)
        for server in cluster.servers:
            with asking(server) as each:
                command(each, "CLUSTER", "SETSLOT", slot, "NODE", names[new])


@pytest.mark.parametrize("parts", [("count",), ("job",), ("fresh:a", "state"), ("job", "place")], ids=str)
def test_while_a_slot_moves_nothing_is_done_by_halves(cluster: Cluster, parts: tuple[str, ...]) -> None:
    queue = queue_at(cluster, cluster.servers[0])
    slot = slot_of(cluster, queue)

    def enqueue_chain(client: Client) -> list[str]:
        return client.enqueue(PendingJob("a"), PendingJob("b"))

    def enqueue_many(client: Client) -> list[str]:
        return client.enqueue_many([PendingJob("a") for _ in range(300)])

    def enqueue_unique(client: Client) -> list[str]:
        return client.enqueue(PendingJob("a", unique="one"))

    def enqueue(client: Client) -> list[str]:
        return client.enqueue(PendingJob("new"))

    with dejq.connect(cluster.url, queue=queue) as client:
        (first,) = client.enqueue(PendingJob("a"))
        chain = client.enqueue(PendingJob("a"), PendingJob("b", delay=0.01))
        client.enqueue(PendingJob("a", delay=3600))
    calls: list[Callable[[Client], object]] = [
        *(enqueue, enqueue_chain, enqueue_many, enqueue_unique),
        *(lambda client: client.cancel_job(first), lambda client: client.finish_job(chain[0])),
        *(Client.stats, Client.list_jobs, lambda client: client.delete_finished(older_than=0)),
    ]
    with ExitStack() as stack, ThreadPoolExecutor(len(calls)) as pool:
        clients = [stack.enter_context(dejq.connect(cluster.url, queue=queue)) for _ in calls]
        for client in clients:
            client.stats()
        before = everything_in(cluster, slot)
        with half_moved(cluster, queue, parts):
            done = [pool.submit(call, client) for call, client in zip(calls, clients, strict=True)]
            errors = [call.exception(SECONDS) for call in done]
            assert everything_in(cluster, slot) == before
        assert [type(error) for error in errors] == [BackendUnavailable] * len(calls)
        ids = [*enqueue_chain(clients[0]), *enqueue_many(clients[0])]
        assert clients[0].stats().enqueued_jobs == 4 + len(ids)


def test_a_bulk_that_meets_the_beginning_of_a_move_is_stored_whole_or_not_at_all(cluster: Cluster) -> None:
    queue = queue_at(cluster, cluster.servers[0])
    with ExitStack() as stack:
        proxy = stack.enter_context(fault_proxy.proxy(*servers_address(cluster.servers[0])))
        client = stack.enter_context(dejq.connect(proxy.in_front_of(cluster.url), queue=queue))
        client.enqueue(PendingJob("a"))
        began: list[bool] = []

        def begin(sent: bytes) -> bool:
            if b"MULTI" in sent and not began:
                began.append(True)
                stack.enter_context(half_moved(cluster, queue, ("count",)))
            return False

        proxy.drop_replies_of(begin)
        with pytest.raises(BackendUnavailable):
            client.enqueue_many([PendingJob("a") for _ in range(300)])
        assert began
        stack.pop_all().close()
    with dejq.connect(cluster.url, queue=queue) as client:
        assert client.stats().ready == len(client.list_jobs(limit=1000)) == 1


def test_a_dead_node_is_named_and_waited_for(until: Until) -> None:
    runs = Runs()
    with servers.redis_cluster(durable="always") as cluster:
        node = cluster.servers[0]
        queue = queue_at(cluster, node)
        url = f"redis://{','.join(place_of(server) for server in cluster.servers[1:])}"
        with dejq.connect(url, queue=queue, heartbeat=HEARTBEAT) as client:
            ids = client.enqueue(PendingJob("a"))
            node.kill()
            # The first may have been under way when the node died.
            for possible in ((BackendUnavailable, OutcomeUnknown), BackendUnavailable):
                with pytest.raises(possible) as failed:
                    client.enqueue(PendingJob("a"))
                assert place_of(node) in str(failed.value) or "CLUSTERDOWN" in str(failed.value)
            client.register_handler("a", runs)
            client.dequeue_loop()
            node.restart()
            until(lambda: runs.ids == ids)
            assert client.enqueue(PendingJob("later", delay=3600))
