"""A Flask application that enqueues. Serve it: `flask --app flask_app run`; work: `dejq worker flask_app:client`.

Handlers run within the application's context, which middleware pushes, so they use its extensions as views do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask, current_app

import dejq
from dejq import testing

app = Flask(__name__)
app.config["SENDER"] = "shop@example.org"
client = dejq.connect("memory://")


@client.middleware
@contextmanager
def within_the_application(_: dejq.Job) -> Iterator[None]:
    with app.app_context():
        yield


@client.handler("email:v1", max_attempts=3)
def send_email(body: str) -> None:
    print(f"from {current_app.config['SENDER']} to {body}")


@app.post("/signup/<address>")
def signup(address: str) -> tuple[dict[str, str], int]:
    (id,) = client.enqueue(send_email.job(address))
    return {"job": id}, 202


if __name__ == "__main__":
    # What a browser, and then a worker, would do.
    answer = app.test_client().post("/signup/ada@example.org")
    print(answer.status_code, list(answer.json or {}))
    testing.drain(client)

# Prints:
# 202 ['job']
# from shop@example.org to ada@example.org
