"""Chains, and what becomes of the rest of one when a job in it fails for good."""

import logging

import dejq

# Failures are logged as errors, with their tracebacks. This program fails on purpose.
logging.getLogger("dejq").setLevel(logging.CRITICAL)

client = dejq.memory()


@client.handler("charge")
def charge(body: dict[str, int]) -> None:
    if body["cents"] > 10_000:
        raise ValueError("that much needs a signature")
    print(f"charged {body['cents']} cents")


@client.handler("ship")
def ship(job: dejq.Job) -> None:
    print(f"shipped, step {job.position} of {job.chain_length}")


@client.handler("clean-up")
def clean_up(job: dejq.Job) -> None:
    print("cleaned up, whatever came of the rest")


if __name__ == "__main__":
    # The jobs of a chain run in order, on whatever worker.
    client.enqueue(charge.job({"cents": 500}), ship.job())

    # "cancel": after a failure the rest of the chain is cancelled.
    refused = client.enqueue(charge.job({"cents": 50_000}), ship.job(), on_failure="cancel")

    # "continue" (the default): the rest runs all the same. The application knows what it has done.
    client.enqueue(charge.job({"cents": 60_000}), clean_up.job())

    client.run(drain=True)
    print([client.get_job(id).state for id in refused])

# Prints, in any order:
# charged 500 cents
# shipped, step 2 of 2
# cleaned up, whatever came of the rest
# ['failed', 'cancelled']
