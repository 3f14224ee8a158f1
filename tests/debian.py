"""Programs of Debian and Ubuntu without root and without installing them.

    root = debian.unpacked("pgbouncer", packages=["pgbouncer"], needs=["usr/sbin/pgbouncer"])
    subprocess.run([root / "usr/sbin/pgbouncer", "--version"], env=debian.environment(root))

`apt-get download` fetches the packages and checks their signed hashes, `dpkg-deb -x` unpacks them below DEJQ_CACHE
or else ~/.cache/dejq, once. Shared libraries that this system does not have are fetched from among the packages'
dependencies; so a cache that another machine filled is completed here, not trusted. When the lists of packages are
missing or outdated, lists of our own are fetched into the same cache: nothing of the system is ever changed.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

TAIL_LINES: Final = 12

# Of the C library there must be only one, that of the system: its loader is part of it.
NEVER_UNPACKED: Final = {"libc6", "libc-bin"}


def cache() -> Path:
    return Path(os.environ.get("DEJQ_CACHE") or Path.home() / ".cache" / "dejq")


def unpacked(name: str, *, packages: Sequence[str], needs: Sequence[str], drop: Sequence[str] = ()) -> Path:
    """The folder in which the packages are unpacked, as `/` would be, and in which all of `needs` can run.

    `needs` are programs and libraries below that folder; `drop` are files and folders in it that nobody wants.
    Raises LookupError with what was tried.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-deb", "dpkg-query", "ldd"):
        if not shutil.which(tool):
            raise LookupError(f"cannot fetch {name}: no {tool} on PATH, so this is neither Debian nor Ubuntu")
    base = cache()
    try:
        system = platform.freedesktop_os_release()
        base /= f"debian-{system['ID']}-{system.get('VERSION_ID', 'testing')}-{platform.machine()}"
        base.mkdir(parents=True, exist_ok=True)
        with (base / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            root = _Root(base / name, _Apt(base / "apt"))
            root.add(packages, drop)
            while missing := root.missing(needs):
                if not (more := root.likely(missing)):
                    raise LookupError(f"{name} needs {', '.join(missing)}, which no package it depends on has")
                root.add(sorted(more))
            return root.folder
    except OSError as error:
        raise LookupError(f"cannot fetch {name} into {base}: {error}") from error


def library_folders(root: Path) -> list[Path]:
    return [folder for pattern in ("lib/*-linux-gnu*", "usr/lib/*-linux-gnu*") for folder in root.glob(pattern)]


def environment(*roots: Path) -> dict[str, str]:
    """What the programs in these folders must see in order to run."""
    folders = [str(folder) for root in roots for folder in library_folders(root)]
    return {"LD_LIBRARY_PATH": os.pathsep.join(folders)} if folders else {}


@dataclass
class _Apt:
    """apt-get and apt-cache, at first with the system's lists of packages, then with our own fresh ones."""

    folder: Path
    _options: list[str] = field(default_factory=list[str])

    def download(self, packages: Sequence[str], folder: Path) -> None:
        command = ("apt-get", "-q", "download", *packages)
        try:
            self._run(command, folder)
        except LookupError:
            if self._options:
                raise
            self._fetch_lists()
            self._run(command, folder)

    def dependencies(self, packages: Iterable[str]) -> list[str]:
        """The packages that these need; of alternatives the first."""
        found: list[str] = []
        is_further_alternative = False
        for line in self._run(("apt-cache", "depends", "--important", *packages)).splitlines():
            # ` |Depends: libsystemd0`: the bar says that the next line is an alternative to this one.
            if match := re.match(r" ([ |])(?:Pre)?Depends: ([a-z0-9][^\s:]*)", line):
                if not is_further_alternative:
                    found.append(match[2])
                is_further_alternative = match[1] == "|"
        return found

    def _fetch_lists(self) -> None:
        lists, archives = self.folder / "lists", self.folder / "cache"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        (archives / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        # As root, apt would become a user who may not enter a folder below /root.
        self._options = [
            f"-oDir::State::Lists={lists}",
            f"-oDir::Cache={archives}",
            "-oAPT::Sandbox::User=root",
        ]
        self._run(("apt-get", "-q", "update"))

    def _run(self, command: Sequence[str], folder: Path | None = None) -> str:
        return _run((command[0], *self._options, *command[1:]), folder)


@dataclass
class _Root:
    """A folder with unpacked packages, each of them marked when it is there as a whole."""

    folder: Path
    apt: _Apt

    def add(self, packages: Sequence[str], drop: Sequence[str] = ()) -> None:
        if not (absent := [package for package in packages if not self._mark(package).exists()]):
            return
        print(f"fetching {', '.join(absent)} from Debian into {self.folder} (once)", file=sys.stderr)
        self._mark("").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="dejq-debian-") as downloads:
            self.apt.download(absent, Path(downloads))
            for archive in Path(downloads).glob("*.deb"):
                _run(("dpkg-deb", "-x", str(archive), str(self.folder)))
        for unwanted in drop:
            for path in self.folder.glob(unwanted):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for package in absent:
            self._mark(package).touch()

    def missing(self, needs: Sequence[str]) -> list[str]:
        """The shared libraries that are neither here nor in the system."""
        text = _run(("ldd", *(str(self.folder / file) for file in needs)), variables=environment(self.folder))
        return sorted(set(re.findall(r"(\S+) => not found", text)))

    def likely(self, libraries: Sequence[str]) -> set[str]:
        """The packages that are likely to have these libraries, of those that what is here depends on.

        Debian names the package of libpq.so.5 libpq5, of libcares.so.2 libc-ares2 and of libz.so.1 zlib1g: the most
        similar name is the best guess, and a wrong one only costs a further turn.
        """
        names = [mark.name for mark in self._mark("").iterdir()]
        known = _installed() | NEVER_UNPACKED | set(names)
        found = [name for name in self.apt.dependencies(names) if "lib" in name and name not in known]

        def similarity(library: str, package: str) -> float:
            soname, name = library.replace(".so.", ""), package.replace("-", "")
            return difflib.SequenceMatcher(None, soname, name).ratio()

        return {max(found, key=lambda package: similarity(library, package)) for library in libraries if found}

    def _mark(self, package: str) -> Path:
        return self.folder / ".packages" / package


def _installed() -> set[str]:
    lines = _run(("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n")).splitlines()
    return {line.split()[0] for line in lines if line.endswith(" installed")}


def _run(command: Sequence[str], folder: Path | None = None, variables: dict[str, str] | None = None) -> str:
    finished = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C", **(variables or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        tail = "\n".join(f"    | {line}" for line in finished.stdout.splitlines()[-TAIL_LINES:])
        raise LookupError(f"{' '.join(command)} failed:\n{tail}")
    return finished.stdout
