"""What a handler can do about failure: raise, `Retry`, or `Discard`."""

import logging
import time

import dejq

logging.getLogger("dejq").setLevel(logging.CRITICAL)  # this program fails on purpose

# Without max_attempts a job runs once: no redelivery unless it is asked for. The waits are short here, so that
# you need not wait; the default is 1 s, 2 s, 4 s, …
client = dejq.memory(workers=1, backoff=dejq.Backoff(initial=0.02))


@client.handler("fetch", max_attempts=3)
def fetch(job: dejq.Job) -> None:
    """Any exception is a failure, and the job is tried again after the backoff."""
    if job.attempt < 3:
        raise ConnectionError("connection reset by peer")
    print(f"fetch: succeeded at attempt {job.attempt}")


@client.handler("poll")
def poll(job: dejq.Job) -> None:
    """`Retry` asks for another run, at a time that the handler knows best."""
    if job.attempt == 1:
        raise dejq.Retry(after=0.05, reason="the export is not ready")
    print(f"poll: ready at attempt {job.attempt}")


@client.handler("parse", max_attempts=10)
def parse(job: dejq.Job) -> None:
    """`Discard` fails at once: trying again would not help."""
    print(f"parse: attempt {job.attempt}")
    raise dejq.Discard("not a PDF")


if __name__ == "__main__":
    ids = [client.enqueue(handler.job())[0] for handler in (fetch, poll, parse)]
    client.dequeue_loop()  # works in the background
    # run(drain=True) would not wait for retries. One look at a time: between two, a job goes from one to the other.
    while (stats := client.stats()).enqueued_jobs or stats.running:
        time.sleep(0.01)
    client.stop()
    for id in ids:
        job = client.get_job(id)
        print(f"{job.type} {job.state} after {job.attempt}: {job.error or 'no error'}")

# Prints, in any order:
# parse: attempt 1
# poll: ready at attempt 2
# fetch: succeeded at attempt 3
# fetch finished after 3: no error
# poll finished after 2: no error
# parse failed after 1: dejq.errors.Discard: not a PDF
