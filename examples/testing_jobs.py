"""Tests of code that enqueues and handles jobs: without threads, waiting or a server.

With pytest, the fixture ``dejq_client`` is a client like the ones here, fresh for every test.
"""

import contextlib

import dejq
from dejq.testing import assert_enqueued, drain, inline, refute_enqueued

# ---- the application -------------------------------------------------------------------------------------

sent: list[str] = []


def add_handlers(client: dejq.Client) -> None:
    client.register_handler("email:v1", send_email)


def send_email(job: dejq.Job, body: dict[str, str]) -> None:
    sent.append(body["to"])


def sign_up(client: dejq.Client, name: str, *, wants_mail: bool) -> None:
    if wants_mail:
        client.enqueue(dejq.PendingJob("email:v1", {"to": name, "template": "welcome"}, delay=3600))


# ---- its tests -------------------------------------------------------------------------------------------


def test_a_new_user_gets_a_mail(client: dejq.Client) -> None:
    sign_up(client, "ada", wants_mail=True)
    (job,) = assert_enqueued(client, "email:v1", {"to": "ada"})  # other keys of the body may be anything
    assert job.state == "scheduled"


def test_who_wants_no_mail_gets_none(client: dejq.Client) -> None:
    sign_up(client, "bob", wants_mail=False)
    refute_enqueued(client, "email:v1")


def test_the_mail_is_sent(client: dejq.Client) -> None:
    add_handlers(client)
    sign_up(client, "cleo", wants_mail=True)
    assert drain(client) == 0  # it is not due
    assert drain(client, scheduled=True) == 1  # does not wait for it
    assert sent == ["cleo"]


def test_what_a_handler_raises_comes_out(client: dejq.Client) -> None:
    add_handlers(client)
    with inline(client), contextlib.suppress(KeyError):
        # Within `inline`, enqueue runs the handler before it returns.
        client.enqueue(dejq.PendingJob("email:v1", {"for": "dora"}))
        raise AssertionError("a mail to nobody was sent")


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            with dejq.memory() as client:
                test(client)
            print("passed:", name)

# Prints:
# passed: test_a_new_user_gets_a_mail
# passed: test_who_wants_no_mail_gets_none
# passed: test_the_mail_is_sent
# passed: test_what_a_handler_raises_comes_out
