"""A FastAPI application that enqueues, and works its queue in the same process. Serve it: `uvicorn fastapi_app:app`.

In production leave out `dequeue_loop` here, name a durable store, and run `dejq worker fastapi_app:client` beside it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, HTTPException

import dejq

client = dejq.connect("memory://")


@dataclass
class Email:
    to: str
    subject: str


@client.handler("email:v1", max_attempts=3)
async def send_email(body: Email) -> None:
    print(f"sending {body.subject!r} to {body.to}")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with client:
        client.dequeue_loop()
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/signup", status_code=202)
async def signup(email: str) -> dict[str, str]:
    (id,) = await client.aenqueue(send_email.job(Email(email, "Welcome")))
    return {"job": id}


@app.get("/jobs/{id}")
def state(id: str) -> dict[str, str]:
    try:
        return {"state": client.get_job(id).state}
    except dejq.UnknownJob as error:
        raise HTTPException(404, str(error)) from error


if __name__ == "__main__":
    # What a browser would do, without a server.
    from fastapi.testclient import TestClient

    with TestClient(app) as browser:
        answer = browser.post("/signup", params={"email": "ada@example.org"})
        print(answer.status_code)
        while browser.get(f"/jobs/{answer.json()['job']}").json() != {"state": "finished"}:
            pass
        print(browser.get("/jobs/nonsense").status_code)

# Prints, in any order:
# 202
# sending 'Welcome' to ada@example.org
# 404
