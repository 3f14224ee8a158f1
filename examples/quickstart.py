"""The first five minutes: a client, two handlers, a job and a chain.

Set the URL to postgresql://…, redis://… or sqs://… later; nothing else changes. With such a store, work in another
process: ``dejq worker quickstart:client``.
"""

from dataclasses import dataclass

import dejq

client = dejq.connect("memory://")


@dataclass
class Email:
    to: str
    subject: str = "Hello"


@client.handler("email:v1")
def send_email(body: Email) -> None:
    print(f"sending {body.subject!r} to {body.to}")


@client.handler("report:v1")
async def report(job: dejq.Job, body: Email) -> None:
    print(f"step {job.position} of {job.chain_length}: report for {body.to}")


if __name__ == "__main__":
    client.enqueue(send_email.job(Email("ada@example.org")))
    # Several jobs are a chain: the report starts only after this mail has been sent.
    client.enqueue(send_email.job(Email("bob@example.org")), report.job(Email("bob@example.org")))
    client.run(drain=True)  # until nothing is left; without drain=True, until SIGTERM or Ctrl-C

# Prints, in any order (only the jobs of one chain wait for each other):
# sending 'Hello' to ada@example.org
# sending 'Hello' to bob@example.org
# step 2 of 2: report for bob@example.org
