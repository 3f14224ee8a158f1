"""``async def`` handlers: many at once on one event loop, beside plain ones on threads.

They run on a loop of dejq's own, in another thread than `main` here, so neither can block the other.
"""

import asyncio
import logging

import dejq

logging.getLogger("dejq").setLevel(logging.CRITICAL)  # one handler fails on purpose

# At most 50 coroutines at once; the default is 100. Plain handlers have threads: workers=….
client = dejq.memory(async_workers=50)

running = most = 0


@client.handler("fetch")
async def fetch(body: int) -> None:
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.1)  # a request to somewhere
    running -= 1


@client.handler("slow", timeout=0.05)
async def slow(job: dejq.Job) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print(f"told to return: {job.cancelled}")
        raise


async def main() -> None:
    async with client:  # leaving it is `await client.astop()`: running jobs finish first
        client.dequeue_loop()
        # The a… methods do not block the loop while the store answers.
        for page in range(50):
            await client.aenqueue(fetch.job(page))
        await client.aenqueue(slow.job())
        while (stats := await client.astats()).enqueued_jobs or stats.running:
            await asyncio.sleep(0.01)
    print(f"{stats.finished} finished, {stats.failed} failed")
    print(f"more at once than there are threads: {most > client.workers}")


if __name__ == "__main__":
    asyncio.run(main())

# Prints:
# told to return: True
# 50 finished, 1 failed
# more at once than there are threads: True
