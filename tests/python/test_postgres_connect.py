"""Ways into PostgreSQL: TLS against every kind of certificate, passwords and where they come from, hosts, sockets.

The server with TLS is Debian's PostgreSQL 15. What a session is like is seen by another client, through the socket.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import psycopg
import pytest

import dejq
import servers
from servers import Certificates, Server, Tls

PASSWORD = "hunter2"
WRONG = "hunter3"
# Nobody listens there.
NOWHERE = "127.0.0.1:1"


class Outcome(NamedTuple):
    """What came of an attempt to connect: a session, with TLS or without, or an error."""

    tls: bool | None
    error: dejq.DejqError | None


@pytest.fixture(autouse=True)
def no_settings_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith(("PG", "SSL_CERT_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return servers.certificates(tmp_path_factory.mktemp("certificates"))


CERTIFICATES = ("good", "wrong name", "other authority", "expired", "none")


@pytest.fixture(scope="module", params=CERTIFICATES)
def certified(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[tuple[str, Server]]:
    """A server with each kind of certificate, or none, that takes plain connections too."""
    kinds = dict(
        zip(
            CERTIFICATES,
            (certificates.server, certificates.wrong_name, certificates.untrusted, certificates.expired),
            strict=False,
        )
    )
    certificate = kinds.get(request.param)
    tls = None if certificate is None else Tls(certificate, required=False)
    with servers.postgres(own=True, tls=tls) as server:
        migrated(server)
        yield request.param, server


# Who may come in how, before the lines of servers.py. The superusers among them may look into the schema.
HBA = [
    "host all scram 127.0.0.1/32 scram-sha-256",
    "host all old 127.0.0.1/32 md5",
    "hostssl all only_tls 127.0.0.1/32 trust",
    "hostnossl all only_plain 127.0.0.1/32 trust",
    "host all limited 127.0.0.1/32 trust",
    "host all nobody_knows_me 127.0.0.1/32 trust",
    "hostssl all postgres,another 127.0.0.1/32 trust clientcert=verify-full",
    "host all only_tls,only_plain,stranger 127.0.0.1/32 reject",
]
ROLES = f"""
    CREATE ROLE only_tls LOGIN SUPERUSER;
    CREATE ROLE only_plain LOGIN SUPERUSER;
    CREATE ROLE another LOGIN SUPERUSER;
    CREATE ROLE stranger LOGIN;
    CREATE ROLE limited LOGIN CONNECTION LIMIT 0;
    CREATE ROLE scram LOGIN SUPERUSER PASSWORD '{PASSWORD}';
    SET password_encryption = 'md5';
    CREATE ROLE old LOGIN SUPERUSER PASSWORD '{PASSWORD}';
"""


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[Server]:
    """A server with TLS and users of every kind."""
    tls = Tls(certificates.server, client_authority=certificates.ca, required=False)
    with servers.postgres(own=True, tls=tls, hba=HBA) as made:
        migrated(made)
        ask(made, ROLES)
        yield made


def at(server: Server, user: str = "postgres", *, host: str = "127.0.0.1", database: str = "postgres") -> str:
    return f"postgresql://{user}@{host}:{port_of(server)}/{database}"


def port_of(server: Server) -> int:
    return urlsplit(server.url).port or 0


def through_socket(server: Server) -> str:
    return f"postgresql://postgres@/postgres?host={server.folder}&port={port_of(server)}"


def ask(server: Server, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Rows of a statement, by another client."""
    with psycopg.connect(through_socket(server), autocommit=True) as client:
        found = client.execute(sql.encode(), values or None)
        return found.fetchall() if found.description else []


def migrated(server: Server) -> None:
    with dejq.postgres(through_socket(server)) as client:
        client.migrate()


def outcome(server: Server, url: str, **options: object) -> Outcome:
    """Connects and looks at the session from the other side. No error ever shows a password."""
    name = f"test {os.urandom(4).hex()}"
    try:
        with dejq.connect(url, application_name=name, **options) as client:
            client.stats()
            ((_, tls, _),) = sessions(server, name)
    except dejq.DejqError as error:
        assert PASSWORD not in f"{error} {error!r} {error.__cause__} {error.__cause__!r}"
        assert WRONG not in f"{error} {error!r} {error.__cause__} {error.__cause__!r}"
        return Outcome(None, error)
    return Outcome(tls, None)


def sessions(server: Server, name: str) -> list[tuple[Any, ...]]:
    """User, TLS and state of the sessions of this name, each kind once."""
    return ask(
        server,
        "SELECT DISTINCT a.usename, s.ssl, a.state FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) "
        "WHERE a.application_name = %s",
        name,
    )


def private(path: Path, text: str, mode: int = 0o600) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    path.chmod(mode)
    return path


# ---- sslmode and the server's certificate ------------------------------------------------------------------

TLS, PLAIN = "TLS", "no TLS"
ISSUER, NAME, EXPIRED = "signed by no authority that is trusted here", "is another host's", "has expired"
OFF = "set ssl=on on the server"
# By mode, what the root file is (or SSL_CERT_FILE with "system"), and the server's certificate.
MATRIX = {
    ("disable", "ca"): (PLAIN, PLAIN, PLAIN, PLAIN, PLAIN),
    ("allow", ""): (TLS, TLS, TLS, TLS, PLAIN),
    ("prefer", ""): (TLS, TLS, TLS, TLS, PLAIN),
    ("prefer", "ca"): (TLS, TLS, TLS, TLS, PLAIN),
    ("", ""): (TLS, TLS, TLS, TLS, PLAIN),
    ("require", ""): (TLS, TLS, TLS, TLS, OFF),
    ("require", "ca"): (TLS, TLS, ISSUER, EXPIRED, OFF),
    ("require", "other ca"): (ISSUER, ISSUER, TLS, EXPIRED, OFF),
    ("require", "root.crt"): (TLS, TLS, ISSUER, EXPIRED, OFF),
    ("verify-ca", "ca"): (TLS, TLS, ISSUER, EXPIRED, OFF),
    ("verify-ca", "other ca"): (ISSUER, ISSUER, TLS, EXPIRED, OFF),
    ("verify-full", "ca"): (TLS, NAME, ISSUER, EXPIRED, OFF),
    ("verify-full", "other ca"): (ISSUER, ISSUER, TLS, EXPIRED, OFF),
    ("verify-full", "root.crt"): (TLS, NAME, ISSUER, EXPIRED, OFF),
    ("verify-full", "SSL_CERT_FILE"): (TLS, NAME, ISSUER, EXPIRED, OFF),
    ("verify-full", "system"): (TLS, NAME, ISSUER, EXPIRED, OFF),
    # Like libpq: who trusts everybody's authorities has to look at the name.
    ("", "system"): (TLS, NAME, ISSUER, EXPIRED, OFF),
}


@pytest.mark.parametrize(("mode", "root"), MATRIX)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_each_sslmode_takes_the_certificates_it_should(
    certified: tuple[str, Server],
    certificates: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    root: str,
    host: str,
) -> None:
    kind, server = certified
    options = {"sslmode": mode} if mode else {}
    files = {"ca": certificates.ca, "other ca": certificates.other_ca}
    if root in files:
        options["sslrootcert"] = str(files[root])
    elif root == "root.crt":
        (tmp_path / ".postgresql").mkdir()
        (tmp_path / ".postgresql" / "root.crt").write_bytes(certificates.ca.read_bytes())
    elif root:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
        options |= {"sslrootcert": "system"} if root == "system" else {}
    wanted = MATRIX[mode, root][CERTIFICATES.index(kind)]
    found = outcome(server, at(server, host=host), **options)
    if wanted in (TLS, PLAIN):
        assert found == Outcome(wanted == TLS, None)
    else:
        assert isinstance(found.error, dejq.ConfigError)
        assert wanted in str(found.error)
        assert f"cannot connect to {host}:{port_of(server)}/postgres as user " in str(found.error)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sslmode": "on"}, 'sslmode="on" must be disable, allow, prefer, require, verify-ca or verify-full'),
        ({"sslmode": "verify-ca"}, "set sslrootcert"),
        ({"sslmode": "require", "sslrootcert": "system"}, "needs sslmode=verify-full"),
        ({"sslmode": "verify-full", "sslrootcert": "nowhere.crt"}, "sslrootcert=nowhere.crt cannot be used"),
        ({"sslmode": "verify-full", "sslrootcert": "empty.crt"}, "BEGIN CERTIFICATE"),
        ({"sslkey": "nowhere.key"}, "without sslcert"),
        ({"sslcert": "nowhere.crt"}, "set sslkey"),
    ],
    ids=str,
)
def test_settings_of_tls_that_cannot_work_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.crt").touch()
    with pytest.raises(dejq.ConfigError) as refused:
        dejq.connect(f"postgresql://u:{PASSWORD}@127.0.0.1/d", **options)
    assert text in str(refused.value)
    assert PASSWORD not in str(refused.value)


def test_a_root_that_is_not_used_is_a_warning_of_the_doctor(server: Server, certificates: Certificates) -> None:
    with dejq.connect(at(server, "only_tls"), sslrootcert=str(certificates.ca)) as client:
        warnings = [
            finding.text for finding in client.check() if finding.name == "connection" and finding.level == "warn"
        ]
    assert [text for text in warnings if "set sslmode=verify-full" in text] == warnings != []


@pytest.mark.parametrize(
    ("user", "mode", "wanted"),
    [
        ("only_tls", "prefer", TLS),
        ("only_tls", "disable", "no encryption"),
        # The server offers TLS, but not to this user.
        ("only_plain", "prefer", PLAIN),
        ("only_plain", "allow", PLAIN),
        ("only_plain", "require", "pg_hba.conf"),
    ],
)
def test_prefer_goes_without_tls_when_the_server_does_not_want_it_from_this_user(
    server: Server, user: str, mode: str, wanted: str
) -> None:
    found = outcome(server, at(server, user), sslmode=mode)
    if wanted in (TLS, PLAIN):
        assert found == Outcome(wanted == TLS, None)
    else:
        assert isinstance(found.error, dejq.ConfigError)
        assert "pg_hba.conf" in str(found.error)


# ---- our own certificate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["options", "query", "environment", "~/.postgresql"])
def test_a_client_certificate_is_shown_to_the_server(
    server: Server, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    certificate, key = certificates.client.file, certificates.client.key
    url, options = at(server), {}
    if way == "options":
        options = {"sslcert": str(certificate), "sslkey": str(key)}
    elif way == "query":
        url += f"?sslcert={quote(str(certificate))}&sslkey={quote(str(key))}"
    elif way == "environment":
        monkeypatch.setenv("PGSSLCERT", str(certificate))
        monkeypatch.setenv("PGSSLKEY", str(key))
    else:
        (tmp_path / ".postgresql").mkdir()
        (tmp_path / ".postgresql" / "postgresql.crt").write_bytes(certificate.read_bytes())
        private(tmp_path / ".postgresql" / "postgresql.key", key.read_text())
    options |= {"sslmode": "verify-full", "sslrootcert": str(certificates.ca)}
    assert outcome(server, url, **options) == Outcome(True, None)


@pytest.mark.parametrize(
    ("user", "which", "text"),
    [
        ("postgres", "", "requires a valid client certificate"),
        ("another", "client", "authentication failed for user"),
        ("postgres", "untrusted", "check sslcert and sslkey"),
    ],
)
def test_a_client_without_the_right_certificate_is_refused(
    server: Server, certificates: Certificates, user: str, which: str, text: str
) -> None:
    options = {"sslmode": "require"}
    if which:
        certificate: servers.Certificate = getattr(certificates, which)
        options |= {"sslcert": str(certificate.file), "sslkey": str(certificate.key)}
    error = outcome(server, at(server, user), **options).error
    assert isinstance(error, dejq.ConfigError)
    assert text in str(error)


def test_a_key_of_another_certificate_is_refused_at_once(certificates: Certificates) -> None:
    with pytest.raises(dejq.ConfigError, match="sslcert and sslkey do not go together"):
        dejq.connect(
            "postgresql://u@127.0.0.1/d",
            sslmode="require",
            sslcert=str(certificates.client.file),
            sslkey=str(certificates.server.key),
        )


# ---- passwords ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["scram", "old"])
@pytest.mark.parametrize("mode", ["disable", "require"])
def test_passwords_go_by_scram_and_by_md5(server: Server, user: str, mode: str) -> None:
    url = at(server, f"{user}:{PASSWORD}")
    assert outcome(server, url, sslmode=mode) == Outcome(mode == "require", None)
    wrong = outcome(server, at(server, f"{user}:{WRONG}"), sslmode=mode).error
    assert isinstance(wrong, dejq.ConfigError)
    assert f'password authentication failed for user "{user}"' in str(wrong)
    missing = outcome(server, at(server, user), sslmode=mode).error
    assert isinstance(missing, dejq.ConfigError)
    assert "put the password into the URL, PGPASSWORD or the passfile" in str(missing)


@pytest.mark.parametrize(("mode", "works"), [("require", True), ("disable", False)])
def test_channel_binding_needs_tls(server: Server, mode: str, works: bool) -> None:
    found = outcome(server, at(server, f"scram:{PASSWORD}"), sslmode=mode, channel_binding="require")
    assert (found.error is None) is works
    assert works or isinstance(found.error, dejq.ConfigError)


# Where a password may be, the first place wins.
PLACES = ("option", "query", "URL", "PGPASSWORD", "PGPASSFILE", "~/.pgpass")


def connect_with_passwords(
    server: Server, passwords: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Outcome:
    """Connects with a password in each of these places."""
    given = dict(passwords)
    in_url = f":{given['URL']}" if "URL" in given else ""
    query = f"?password={given['query']}" if "query" in given else ""
    if "PGPASSWORD" in given:
        monkeypatch.setenv("PGPASSWORD", given["PGPASSWORD"])
    if "PGPASSFILE" in given:
        monkeypatch.setenv("PGPASSFILE", str(private(folder / "passfile", f"*:*:*:scram:{given['PGPASSFILE']}\n")))
    if "~/.pgpass" in given:
        private(folder / ".pgpass", f"127.0.0.1:{port_of(server)}:postgres:scram:{given['~/.pgpass']}\n")
    option = {"password": given["option"]} if "option" in given else {}
    return outcome(server, at(server, f"scram{in_url}") + query, **option)


@pytest.mark.parametrize("first", PLACES)
def test_the_first_place_that_has_a_password_counts(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    later = dict.fromkeys(PLACES[PLACES.index(first) + 1 :], WRONG)
    assert connect_with_passwords(server, {first: PASSWORD, **later}, tmp_path, monkeypatch).error is None
    later = dict.fromkeys(later, PASSWORD)
    error = connect_with_passwords(server, {first: WRONG, **later}, tmp_path, monkeypatch).error
    assert "password authentication failed" in str(error)


@pytest.mark.parametrize(
    "password",
    ["a+b", "a b", "ä/ö:?#[]@!$&'()*,;=%", "+%2B+", "\\:", " "],
    ids=["+", " ", "all", "%2B", "\\:", "blank"],
)
@pytest.mark.parametrize("place", PLACES)
def test_a_password_may_hold_anything(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str, place: str
) -> None:
    quoted = password.replace("'", "''")
    ask(server, f"ALTER ROLE scram PASSWORD '{quoted}'")
    try:
        # A plus stands for itself in all of libpq's places.
        if place in ("query", "URL"):
            password = quote(password, safe="+")
        elif place in ("PGPASSFILE", "~/.pgpass"):
            password = password.replace("\\", "\\\\").replace(":", "\\:")
        assert connect_with_passwords(server, {place: password}, tmp_path, monkeypatch).error is None
    finally:
        ask(server, f"ALTER ROLE scram PASSWORD '{PASSWORD}'")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
@pytest.mark.parametrize("place", ["PGPASSFILE", "~/.pgpass", "passfile="])
def test_a_passfile_that_others_may_read_is_not_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, place: str
) -> None:
    path = private(tmp_path / ".pgpass", f"*:*:*:*:{PASSWORD}\n", mode)
    if place == "PGPASSFILE":
        monkeypatch.setenv("PGPASSFILE", str(path))
    options = {"passfile": str(path)} if place == "passfile=" else {}
    error = outcome(server, at(server, "scram"), **options).error
    assert isinstance(error, dejq.ConfigError)
    assert "chmod 0600" in str(error)
    with dejq.connect(at(server, "only_tls"), **options) as client:
        texts = [finding.text for finding in client.check() if finding.level == "warn"]
    assert f"the passfile {path} is ignored: others may read it; chmod 0600 {path}" in texts


# ---- what a URL must not give away -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:{}@x@h/d",
        "postgresql://u:a/{}@h/d",
        "postgresql://u:a?{}@h/d",
        "postgresql://u:12?{}=x@h/d",
        "postgresql://u:1/2?{}=x@h/d",
        "postgresql://u:12?x={}@h/d",
        "postgresql://u:12?a&{}@h/d",
        "postgresql://u:p@s?{}=x@h/d",
        "postgresql://u:p:{}@h:x/d",
        "postgresql://u:{}@h:0/d",
        "postgresql://u:{}@h/d?pasword={}",
        "postgresql://u:{}@h/d?port={}",
        "postgresql://u@h/d?listen_url=postgresql://v:{}@h",
        "postgresql://u@h/d?listen_url=v:{}",
        "postgresql://u@h/d?listen_url=postgresql%3A//v%3A{}%40x%40h",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(dejq.ConfigError) as refused:
        dejq.connect(url.replace("{}", PASSWORD, 1).replace("{}", "wrong"))
    texts = [str(refused.value), repr(refused.value), str(refused.value.__cause__), repr(refused.value.__cause__)]
    assert PASSWORD not in " ".join(texts)


# ---- hosts, sockets and other options ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> Iterator[Server]:
    """A server that only reads, and has no schema of ours."""
    with servers.postgres(own=True, settings={"default_transaction_read_only": "on"}) as made:
        yield made


def hosts(*servers: Server | str, user: str = "only_tls") -> str:
    places = [server if isinstance(server, str) else f"127.0.0.1:{port_of(server)}" for server in servers]
    return f"postgresql://{user}@{','.join(places)}/postgres"


def test_hosts_are_tried_in_turn_each_with_its_own_password(server: Server, tmp_path: Path) -> None:
    entries = f"{NOWHERE}:*:scram:{WRONG}\n127.0.0.1:{port_of(server)}:*:scram:{PASSWORD}\n"
    passfile = private(tmp_path / "passfile", entries)
    assert outcome(server, hosts(NOWHERE, server, user="scram"), passfile=str(passfile)).error is None
    # The next server would say the same to this user.
    twice = hosts(server, server, user=f"scram:{WRONG}")
    error = outcome(server, twice).error
    assert isinstance(error, dejq.ConfigError)
    assert str(error).count("cannot connect to") == 1


def test_of_several_hosts_the_one_that_writes_is_chosen(server: Server, reader: Server) -> None:
    ask(reader, "BEGIN READ WRITE; CREATE ROLE only_tls LOGIN SUPERUSER; COMMIT")
    assert outcome(server, hosts(reader, server)).error is None
    assert outcome(server, hosts(server, reader), target_session_attrs="read-write").error is None
    for wanted, first in (("read-only", server), ("any", reader)):
        # There is no schema on the one that reads: that is how we know that it was asked.
        error = outcome(server, hosts(first, reader, server), target_session_attrs=wanted).error
        assert isinstance(error, dejq.SchemaMissing)
    error = outcome(server, hosts(reader, reader)).error
    assert isinstance(error, dejq.BackendUnavailable)
    assert str(error).count("change target_session_attrs") == 2


def test_when_no_host_answers_the_error_names_them_all() -> None:
    url = f"postgresql://u:{PASSWORD}@{NOWHERE},localhost:2/d"
    with dejq.connect(url) as client, pytest.raises(dejq.BackendUnavailable) as refused:
        client.stats()
    assert NOWHERE in str(refused.value)
    assert "localhost:2" in str(refused.value)
    assert PASSWORD not in f"{refused.value} {refused.value.__cause__}"


def test_a_server_that_says_nothing_is_given_up_after_connect_timeout() -> None:
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d"
        client = stack.enter_context(dejq.connect(url, connect_timeout=0.1))
        with pytest.raises(dejq.BackendUnavailable, match=r"no answer within connect_timeout=0\.1"):
            client.stats()


SOCKETS: dict[str, Callable[[Server], tuple[str, dict[str, str]]]] = {
    "query": lambda server: (through_socket(server), {}),
    "escaped": lambda server: (at(server, host=quote(str(server.folder), safe="")), {}),
    "option": lambda server: (
        "postgresql://postgres@/postgres",
        {"host": str(server.folder), "port": str(port_of(server))},
    ),
}


@pytest.mark.parametrize("way", SOCKETS)
@pytest.mark.parametrize("mode", ["", "disable", "require", "verify-full"])
def test_a_socket_needs_no_tls(server: Server, way: str, mode: str) -> None:
    url, options = SOCKETS[way](server)
    assert outcome(server, url, **options, **({"sslmode": mode} if mode else {})) == Outcome(False, None)


def test_the_environment_may_name_the_socket(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", str(server.folder))
    monkeypatch.setenv("PGPORT", str(port_of(server)))
    monkeypatch.setenv("PGUSER", "postgres")
    assert outcome(server, "postgresql://") == Outcome(False, None)


def test_a_socket_that_is_not_there_is_no_mistake_of_ours(tmp_path: Path) -> None:
    url = f"postgresql://u@/d?host={tmp_path}"
    with dejq.connect(url) as client, pytest.raises(dejq.BackendUnavailable, match="No such file"):
        client.stats()


@pytest.mark.parametrize("way", ["options", "query", "both"])
def test_options_count_in_the_query_and_as_keywords(server: Server, certificates: Certificates, way: str) -> None:
    options = {
        "user": "only_tls",
        "sslmode": "verify-full",
        "sslrootcert": str(certificates.ca),
        "options": "-c track_activities=off",
        "application_name": f"by {way}",
    }
    wrong = {"user": "stranger", "sslmode": "disable", "options": "-c work_mem=nothing", "application_name": "wrong"}
    query = {"options": {}, "query": options, "both": wrong}[way]
    url = f"{at(server)}?{'&'.join(f'{name}={quote(value)}' for name, value in query.items())}"
    with dejq.connect(url, **({} if way == "query" else options)) as client:
        client.stats()
        assert sessions(server, f"by {way}") == [("only_tls", True, "disabled")]


@pytest.mark.parametrize(
    ("user", "database", "kind", "text"),
    [
        ("nobody_knows_me", "postgres", dejq.ConfigError, 'role "nobody_knows_me" does not exist'),
        ("only_tls", "nothing", dejq.ConfigError, "createdb"),
        ("stranger", "postgres", dejq.ConfigError, "pg_hba.conf"),
        # It may pass.
        ("limited", "postgres", dejq.BackendUnavailable, "too many connections for role"),
    ],
)
def test_who_is_not_let_in_reads_why_and_what_to_do(
    server: Server, user: str, database: str, kind: type[dejq.DejqError], text: str
) -> None:
    error = outcome(server, at(server, user, database=database)).error
    assert isinstance(error, kind)
    assert text in str(error)
    assert f'127.0.0.1:{port_of(server)}/{database} as user "{user}"' in str(error)
