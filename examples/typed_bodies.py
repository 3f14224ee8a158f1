"""Bodies with types: what goes in is checked at `enqueue`, what comes out before the handler is called.

Dataclasses, TypedDicts and built-in types need nothing else; msgspec structs and pydantic models work the same way.
"""

import logging
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, TypedDict

import dejq

logging.getLogger("dejq").setLevel(logging.CRITICAL)  # one of the bodies does not fit, on purpose

client = dejq.memory(workers=1)


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Address:
    city: str
    zip: str | None = None


@dataclass
class Order:
    id: int
    to: Address
    size: Size = Size.SMALL
    tags: list[str] = field(default_factory=list)


class Refund(TypedDict):
    order: int
    reason: Literal["broken", "late"]


@client.handler("order")
def order(body: Order) -> None:
    print(f"order {body.id} to {body.to.city}, {body.size.name}, {body.tags}")


@client.handler("refund")
def refund(job: dejq.Job, body: Refund) -> None:
    print(f"{job.type} of order {body['order']}: {body['reason']}")


@client.handler("anything")
def anything(job: dejq.Job) -> None:
    # Without a type the body is what JSON has; decode() checks it when the handler knows what it wants.
    print(job.body, job.decode(tuple[int, str]))


if __name__ == "__main__":
    client.enqueue(order.job(Order(7, Address("Brno"), Size.LARGE, ["gift"])))
    client.enqueue(refund.job({"order": 7, "reason": "late"}))
    client.enqueue(anything.job([1, "one"]))
    (unfit,) = client.enqueue(refund.job({"order": 7, "reason": "too blue"}))  # fails when it is decoded
    try:
        client.enqueue(anything.job({"prices": [1.5, math.nan]}))
    except dejq.BodyError as error:
        print(type(error).__name__, error.code)
    client.run(drain=True)
    print(client.get_job(unfit).state)

# Prints:
# BodyError DEJQ-E110
# order 7 to Brno, LARGE, ['gift']
# refund of order 7: late
# [1, 'one'] (1, 'one')
# failed
