"""Forks of a process that has a client of a Redis queue. Parent and child each go on with a client of their own."""

from __future__ import annotations

import threading

import dejq
from dejq import Client, ForkedProcess, Job, PendingJob
from python.programs.forks import in_child
from python.programs.scenario import ended, hold, main, put, until


def refuses(client: Client) -> None:
    """The client of the parent says so, rather than to use the parent's connections."""
    for use in (lambda: client.enqueue(PendingJob("job")), client.stats, client.dequeue_loop, client.stop):
        try:
            use()
        except ForkedProcess:
            continue
        raise AssertionError("it was not refused")


def works(url: str, type: str) -> None:
    """A fresh client runs what it enqueues."""
    client, ran = dejq.connect(url, workers=1), list[int]()
    client.register_handler(type, lambda job: ran.append(job.body))
    client.dequeue_loop()
    ids = client.enqueue(*(PendingJob(type, number) for number in range(3)))
    until(lambda: client.get_job(ids[-1]).state == "finished")
    assert ran == [0, 1, 2]
    assert not client.stop().abandoned


def goes_on(client: Client, url: str) -> None:
    """A child."""
    refuses(client)
    works(url, "child")


def before_first_use(url: str) -> None:
    client = dejq.connect(url)
    in_child(lambda: goes_on(client, url))
    works(url, "parent")
    put(client)
    assert client.stats().finished == 6


def with_a_running_worker(url: str) -> None:
    client = dejq.connect(url, heartbeat=0.5)
    id, leave = hold(client)
    in_child(lambda: goes_on(client, url))
    # Neither is its lease lost, nor are its answers somebody else's.
    assert client.get_job(id).state == "running"
    assert client.stats().workers == 1
    leave.set()
    assert ended(client, id).rescues == 0
    assert not client.stop().abandoned


def under_load(url: str) -> None:
    client, ids, stop = dejq.connect(url), list[str](), threading.Event()

    def enqueue() -> None:
        while not stop.is_set():
            ids.extend(client.enqueue(PendingJob("job"), PendingJob("job")))

    def noop(job: Job) -> None:
        pass

    client.register_handler("job", noop)
    client.dequeue_loop()
    threads = [threading.Thread(target=enqueue) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(5):
        in_child(lambda number=number: works(url, f"child{number}"))  # type: ignore[misc]  # mypy knows no defaults of a lambda
    stop.set()
    for thread in threads:
        thread.join()
    until(lambda: client.stats().by_type["job"].finished == len(ids))
    assert not client.stop().abandoned


if __name__ == "__main__":
    main(globals())
