"""An application for tests of several worker processes; files and the environment say what it does and how it fails.

Jobs append to the file ``ran``; those of type ``hold`` wait for the file ``go``.
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import dejq

if os.environ.get("CREW_DIES"):
    os.kill(os.getpid(), int(os.environ["CREW_DIES"]))
if (broken := Path("broken")).exists():
    raise RuntimeError(broken.read_text())

client = dejq.connect(workers=2, heartbeat=0.5)
# In memory each process has a queue of its own, which is good enough for most tests here.
client._in_process = False


def note(job: dejq.Job) -> None:
    with Path("ran").open("a") as ran:
        ran.write(f"{os.getpid()} {job.type} {job.id}\n")


@client.handler("quick")
def quick(job: dejq.Job) -> None:
    note(job)


@client.handler("hold")
def hold(job: dejq.Job) -> None:
    note(job)
    while not Path("go").exists():
        if job.cancelled and not os.environ.get("CREW_IS_STUBBORN"):
            raise RuntimeError("told to return")
        time.sleep(0.005)


@client.handler("grasp")
def grasp(job: dejq.Job) -> None:
    """Keeps the interpreter to itself."""
    note(job)
    ctypes.PyDLL(None).sleep(int(os.environ["CREW_GRASPS"]))


@client.handler("grow")
def grow(job: dejq.Job) -> None:
    note(job)
    kept.append(bytearray(os.urandom(1 << 20) * 64))


kept: list[bytearray] = []
if client.store == "memory":
    for name in os.environ.get("CREW_JOBS", "").split():
        client.enqueue(dejq.PendingJob(name))
