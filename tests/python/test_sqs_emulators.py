"""What the tests of the SQS store take for granted of the emulators: without it a green run would say nothing.

Each is a rule of SQS FIFO. ministack and ElasticMQ keep all of them; where they differ from each other or from AWS,
a test here says so, and one that begins to fail because an emulator got better is good news.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

import sqs_api
import sqs_faults
from sqs_api import Json, Sqs, SqsError, bodies, entry, receives

if TYPE_CHECKING:
    from python.sqs_store import MakeQueue

pytest_plugins = ["python.sqs_store"]

# Visibility is counted in whole seconds; a receive that waits so long comes back when it ends.
VISIBILITY = 1
WAIT = 10
# For what must not be given out: a receive sees what is there at once.
NOW = 0


def send(sqs: Sqs, queue: str, *places: str) -> None:
    """Messages whose bodies are like `a1`: the first letter is the group."""
    answer = sqs.send(queue, [entry(place, group=place[0], body=place, dedup=f"{place}-{uuid4()}") for place in places])
    assert not answer.get("Failed")


def received(sqs: Sqs, queue: str, count: int, **options: Any) -> list[Json]:
    """So many messages, in the order in which they come; an emulator may need several calls."""
    found: list[Json] = []
    end = time.monotonic() + WAIT
    while len(found) < count and time.monotonic() < end:
        found += sqs.receive(queue, count - len(found), wait=WAIT, **options)
    return found


def in_order(messages: list[Json]) -> bool:
    by_group: dict[str, list[str]] = {}
    for body in bodies(messages):
        by_group.setdefault(body[0], []).append(body)
    return all(each == sorted(each) for each in by_group.values())


# ---- order and groups


def test_a_group_comes_in_order_and_waits_for_what_is_in_flight(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    send(sqs, queue, "a1", "a2", "a3")
    (first,) = sqs.receive(queue, 1, wait=WAIT)
    assert bodies([first]) == ["a1"]
    assert sqs.receive(queue, wait=NOW) == []
    sqs.delete(queue, [first])
    rest = sqs.receive(queue, 10, wait=WAIT)
    assert bodies(rest) == ["a2", "a3"]
    # While one of them is left, the group is not free.
    send(sqs, queue, "a4")
    sqs.delete(queue, rest[:1])
    assert sqs.receive(queue, wait=NOW) == []
    sqs.delete(queue, rest[1:])
    assert bodies(sqs.receive(queue, wait=WAIT)) == ["a4"]


def test_a_batch_holds_several_groups_each_in_order(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    send(sqs, queue, "a1", "b1", "a2", "b2", "a3", "c1")
    found = received(sqs, queue, 6)
    assert len(found) == 6
    assert in_order(found)


def test_a_group_goes_to_one_of_many_consumers_at_a_time(sqs: Sqs, make_queue: MakeQueue, sqs_url: str) -> None:
    queue, _ = make_queue()
    groups = "abcde"
    for number in range(1, 9):
        send(sqs, queue, *(f"{group}{number}" for group in groups))
    seen: list[str] = []
    busy: set[str] = set()
    lock, wrong = threading.Lock(), list[str]()

    def consume() -> None:
        own = Sqs(sqs_url)
        while len(seen) < 8 * len(groups) and not wrong:
            found = own.receive(queue, 3, wait=1)
            mine = {body[0] for body in bodies(found)}
            with lock:
                wrong.extend(mine & busy)
                busy.update(mine)
            for message in found:
                with lock:
                    seen.append(message["Body"])
            with lock:
                busy.difference_update(mine)
            if found:
                own.delete(queue, found)
        own.close()

    consumers = [threading.Thread(target=consume) for _ in range(4)]
    for consumer in consumers:
        consumer.start()
    for consumer in consumers:
        consumer.join()
    assert not wrong
    assert len(seen) == 8 * len(groups)
    for group in groups:
        assert [body for body in seen if body[0] == group] == [f"{group}{number}" for number in range(1, 9)]


# ---- what is sent


def test_what_is_sent_twice_within_five_minutes_is_there_once(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    one = entry("one", group="a", body="first", dedup="same")
    ids = [sqs.send(queue, [one])["Successful"][0]["MessageId"] for _ in range(2)]
    assert ids[0] == ids[1]
    (message,) = sqs.receive(queue, wait=WAIT)
    sqs.delete(queue, [message])
    sqs.send(queue, [one])
    assert sqs.receive(queue, wait=NOW) == []
    # In one batch as well.
    sqs.send(queue, [entry(name, group="b", body=name, dedup="double") for name in ("x", "y")])
    assert bodies(sqs.receive(queue, wait=WAIT)) == ["x"]


def test_attributes_and_any_character_of_xml_come_back(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    body = "tab\t line\n <&> \u00e9 \ud7ff \ue000 \ufffd \U0001f600"
    sqs.send(queue, [entry("1", group="a", body=body, attributes={"job_type": "email:v1", "in_group": "1"})])
    (message,) = sqs.receive(queue, wait=WAIT)
    assert message["Body"] == body
    assert sqs_api.text_attributes(message) == {"job_type": "email:v1", "in_group": "1"}
    assert message["Attributes"]["MessageGroupId"] == "a"


@pytest.mark.parametrize("character", ["\0", "\x1b", "\ufffe"])
def test_a_character_outside_of_xml_fails_its_entry_alone(sqs: Sqs, make_queue: MakeQueue, character: str) -> None:
    queue, _ = make_queue()
    pair = [entry("good", group="a", body="good"), entry("bad", group="b", body=f"x{character}")]
    (failed,) = sqs.send(queue, pair)["Failed"]
    assert (failed["Id"], failed["SenderFault"]) == ("bad", True)
    # The first is what AWS says.
    assert failed["Code"] in ("InvalidMessageContents", "InvalidAttributeValue")
    assert bodies(sqs.receive(queue, wait=WAIT)) == ["good"]


def test_more_than_a_mebibyte_is_refused(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    big = "x" * (1024 * 1024 + 1)
    try:
        answer = sqs.send(queue, [entry("big", group="a", body=big)])
        assert [failed["Id"] for failed in answer["Failed"]] == ["big"]
    except SqsError as error:
        assert error.status == 400
    half = big[: 600 * 1024]
    with pytest.raises(SqsError):
        sqs.send(queue, [entry(name, group="a", body=half) for name in ("1", "2")])


def test_a_batch_has_ten_messages_at_most(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    with pytest.raises(SqsError, match="TooManyEntriesInBatchRequest"):
        sqs.send(queue, [entry(str(number), group="a", body="x") for number in range(11)])


# ---- visibility


def test_what_nobody_extends_comes_back_in_order_and_is_counted(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    send(sqs, queue, "a1", "a2", "a3")
    assert [receives(each) for each in received(sqs, queue, 3, visibility=VISIBILITY)] == [1, 1, 1]
    again = received(sqs, queue, 3)
    assert bodies(again) == ["a1", "a2", "a3"]
    assert [receives(each) for each in again] == [2, 2, 2]


def test_an_extended_message_stays_away_and_its_group_with_it(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    send(sqs, queue, "a1", "b1")
    found = {message["Body"]: message for message in received(sqs, queue, 2, visibility=VISIBILITY)}
    assert sqs.hide(queue, [found["a1"]], [30]) == []
    send(sqs, queue, "a2")
    # When b1 is back, a1 would be back too.
    assert bodies(sqs.receive(queue, wait=WAIT)) == ["b1"]
    assert sqs.receive(queue, wait=NOW) == []


def test_what_is_released_comes_back_at_once_and_in_order(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    send(sqs, queue, "a1", "a2", "a3")
    found = received(sqs, queue, 3)
    assert sqs.hide(queue, found, [0, 0, 0]) == []
    assert bodies(received(sqs, queue, 3)) == ["a1", "a2", "a3"]


def test_a_released_head_comes_back_alone_while_the_rest_is_in_flight(
    sqs: Sqs, make_queue: MakeQueue, is_like_aws: bool
) -> None:
    """As AWS does it. ministack gives out nothing of a group while any of it is in flight."""
    queue, _ = make_queue()
    send(sqs, queue, "a1", "a2", "a3")
    found = received(sqs, queue, 3)
    sqs.hide(queue, found[:1], [0])
    assert bodies(sqs.receive(queue, wait=NOW)) == (["a1"] if is_like_aws else [])


def test_a_released_tail_waits_for_the_head(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    send(sqs, queue, "a1", "a2", "a3")
    found = received(sqs, queue, 3)
    sqs.hide(queue, found[1:], [0, 0])
    assert sqs.receive(queue, wait=NOW) == []
    sqs.delete(queue, found[:1])
    assert bodies(received(sqs, queue, 2)) == ["a2", "a3"]


def test_a_handle_of_an_earlier_receive_deletes_nothing(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    send(sqs, queue, "a1")
    stale = received(sqs, queue, 1, visibility=VISIBILITY)
    received(sqs, queue, 1, visibility=VISIBILITY)
    sqs.delete(queue, stale)
    assert bodies(sqs.receive(queue, wait=WAIT)) == ["a1"]


def test_a_receive_that_is_repeated_under_its_name_brings_the_same_messages(
    sqs: Sqs, make_queue: MakeQueue, is_like_aws: bool
) -> None:
    """As AWS does it. ministack takes no notice of the name."""
    queue, _ = make_queue()
    send(sqs, queue, "a1", "a2")
    first = sqs.receive(queue, wait=WAIT, attempt="once")
    again = sqs.receive(queue, wait=NOW, attempt="once")
    assert bodies(first) == ["a1", "a2"]
    assert bodies(again) == (["a1", "a2"] if is_like_aws else [])


def test_a_handle_that_has_expired_still_deletes_here(sqs: Sqs, make_queue: MakeQueue) -> None:
    """AWS refuses it. So tests that need a refusal let the proxy say it."""
    queue, _ = make_queue()
    send(sqs, queue, "a1", "b1")
    found = {message["Body"]: message for message in received(sqs, queue, 2, visibility=VISIBILITY)}
    sqs.hide(queue, [found["b1"]], [30])
    until_visible = sqs.waiting(queue)
    end = time.monotonic() + WAIT
    while until_visible != (1, 1) and time.monotonic() < end:
        time.sleep(0.01)
        until_visible = sqs.waiting(queue)
    assert sqs.delete(queue, [found["a1"]]) == []
    assert sqs.waiting(queue) == (0, 1)


# ---- dead letters


def test_a_message_that_was_received_too_often_moves_when_it_is_received_again(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, dead = make_queue(receives=2)
    send(sqs, queue, "a1")
    for count in (1, 2):
        (message,) = received(sqs, queue, 1)
        assert receives(message) == count
        sqs.hide(queue, [message], [0])
    assert sqs.waiting(dead) == (0, 0)
    assert sqs.receive(queue, wait=NOW) == []
    (letter,) = received(sqs, dead, 1)
    assert letter["Body"] == "a1"
    assert letter["Attributes"]["MessageGroupId"] == "a"


def test_a_batch_that_is_released_moves_as_a_whole_whether_it_was_tried_or_not(sqs: Sqs, make_queue: MakeQueue) -> None:
    """Why dependants need care: the receive counts of a batch rise together."""
    queue, dead = make_queue(receives=2)
    send(sqs, queue, "a1", "a2")
    for _ in range(2):
        found = received(sqs, queue, 2)
        sqs.hide(queue, found, [0, 0])
    assert sqs.receive(queue, wait=NOW) == []
    assert sorted(bodies(received(sqs, dead, 2))) == ["a1", "a2"]


def test_the_rest_of_a_batch_can_be_deleted_after_its_head_went_to_the_dead_letters(
    sqs: Sqs, make_queue: MakeQueue
) -> None:
    """What the last attempt of a job relies on: its dependants run where they are."""
    queue, dead = make_queue(receives=1)
    send(sqs, queue, "a1", "a2", "a3")
    found = received(sqs, queue, 3)
    sqs.hide(queue, found[:1], [0])
    assert sqs.receive(queue, wait=NOW) == []
    assert sqs.delete(queue, found[1:]) == []
    send(sqs, queue, "b1")
    assert bodies(received(sqs, queue, 1)) == ["b1"]
    assert bodies(received(sqs, dead, 1)) == ["a1"]


# ---- long polls


def waking(sqs: Sqs, sqs_url: str, queue: str, act: Callable[[], object]) -> tuple[list[Json], float]:
    """What a poll that waits gets by this, and how many seconds it took."""
    other, found, at = Sqs(sqs_url), list[Json](), 0.0

    def poll() -> None:
        nonlocal at
        found.extend(other.receive(queue, wait=WAIT))
        at = time.monotonic()

    poller = threading.Thread(target=poll)
    poller.start()
    began = time.monotonic()
    act()
    poller.join()
    other.close()
    return found, at - began


def test_a_poll_that_waits_gets_what_is_sent(sqs: Sqs, make_queue: MakeQueue, sqs_url: str) -> None:
    queue, _ = make_queue()
    found, seconds = waking(sqs, sqs_url, queue, lambda: send(sqs, queue, "a1"))
    assert bodies(found) == ["a1"]
    assert seconds < WAIT / 2


def test_a_poll_that_waits_gets_what_is_released_or_no_longer_blocked(
    sqs: Sqs, make_queue: MakeQueue, sqs_url: str
) -> None:
    queue, _ = make_queue()
    send(sqs, queue, "a1", "b1", "b2")
    found = {message["Body"]: message for message in received(sqs, queue, 3)}
    sqs.hide(queue, [found["b2"]], [0])
    freed, seconds = waking(sqs, sqs_url, queue, lambda: sqs.delete(queue, [found["b1"]]))
    assert bodies(freed) == ["b2"]
    released, more = waking(sqs, sqs_url, queue, lambda: sqs.hide(queue, [found["a1"]], [0]))
    assert bodies(released) == ["a1"]
    assert max(seconds, more) < WAIT / 2


# ---- queues


def test_a_queue_says_what_it_is(sqs: Sqs, make_queue: MakeQueue, sqs_queue: str) -> None:
    queue, dead = make_queue(receives=7, VisibilityTimeout=45)
    found = sqs.attributes(queue)
    assert found["FifoQueue"] == "true"
    assert found["VisibilityTimeout"] == "45"
    policy = json.loads(found["RedrivePolicy"])
    assert policy["deadLetterTargetArn"] == sqs.attributes(dead)["QueueArn"]
    assert int(policy["maxReceiveCount"]) == 7
    standard = sqs.create(sqs_queue.removesuffix(".fifo"))
    assert sqs.attributes(standard).get("FifoQueue", "false") == "false"


def test_a_queue_that_is_not_there_says_so(sqs: Sqs, sqs_queue: str) -> None:
    with pytest.raises(SqsError, match=r"NonExistentQueue|QueueDoesNotExist"):
        sqs.url(sqs_queue)


def test_counts_tell_what_waits_and_what_is_in_flight(sqs: Sqs, make_queue: MakeQueue) -> None:
    queue, _ = make_queue()
    send(sqs, queue, "a1", "b1", "c1")
    received(sqs, queue, 1)
    assert sqs.waiting(queue) == (2, 1)


# ---- the proxy


@pytest.fixture
def through(proxy: sqs_faults.Proxy, sqs_url: str) -> Any:
    api = Sqs(proxy.in_front_of(sqs_url))
    yield api
    api.close()


def test_the_proxy_passes_calls_through_and_counts_them(
    sqs: Sqs, through: Sqs, proxy: sqs_faults.Proxy, make_queue: MakeQueue
) -> None:
    queue, _ = make_queue()
    send(through, queue, "a1", "b1")
    found = received(through, queue, 2)
    through.delete(queue, found)
    assert proxy.calls["SendMessageBatch"] == proxy.calls["DeleteMessageBatch"] == 1
    assert [each["Id"] for each in proxy.of("SendMessageBatch")[0]["Entries"]] == ["a1", "b1"]
    assert sqs.waiting(queue) == (0, 0)


def test_the_proxy_loses_the_reply_to_a_call_that_was_carried_out(
    sqs: Sqs, through: Sqs, proxy: sqs_faults.Proxy, make_queue: MakeQueue
) -> None:
    queue, _ = make_queue()
    lost = proxy.lose_reply("SendMessageBatch", nth=2)
    send(through, queue, "a1")
    assert not lost.is_set()
    with pytest.raises((ConnectionError, OSError)):
        send(through, queue, "b1")
    assert lost.is_set()
    send(through, queue, "c1")
    assert sorted(bodies(received(sqs, queue, 3))) == ["a1", "b1", "c1"]


def test_the_proxy_loses_a_call_before_it_is_carried_out(
    sqs: Sqs, through: Sqs, proxy: sqs_faults.Proxy, make_queue: MakeQueue
) -> None:
    queue, _ = make_queue()
    lost = proxy.lose_request("SendMessageBatch")
    with pytest.raises((ConnectionError, OSError)):
        send(through, queue, "a1")
    assert lost.is_set()
    assert sqs.receive(queue, wait=NOW) == []


@pytest.mark.parametrize("fault", [sqs_faults.UNAVAILABLE, sqs_faults.INTERNAL, sqs_faults.THROTTLED])
def test_the_proxy_answers_errors_in_the_place_of_sqs(
    sqs: Sqs, through: Sqs, proxy: sqs_faults.Proxy, make_queue: MakeQueue, fault: tuple[int, str]
) -> None:
    queue, _ = make_queue()
    done = proxy.answer("SendMessageBatch", *fault, times=2)
    for _ in range(2):
        assert not done.is_set()
        with pytest.raises(SqsError) as caught:
            send(through, queue, "a1")
        assert (caught.value.status, caught.value.code) == fault
    assert done.is_set()
    assert sqs.receive(queue, wait=NOW) == []


def test_the_proxy_refuses_some_entries_of_a_batch(
    sqs: Sqs, through: Sqs, proxy: sqs_faults.Proxy, make_queue: MakeQueue
) -> None:
    queue, _ = make_queue()
    proxy.refuse_entries("SendMessageBatch", lambda place, _: place == 1, "InternalError")
    answer = through.send(queue, [entry(name, group="a", body=name) for name in ("1", "2", "3")])
    assert [each["Id"] for each in answer["Successful"]] == ["1", "3"]
    assert [each["Id"] for each in answer["Failed"]] == ["2"]
    assert bodies(received(sqs, queue, 2)) == ["1", "3"]


def test_the_proxy_holds_an_answer_until_it_is_let_go(
    sqs: Sqs, through: Sqs, proxy: sqs_faults.Proxy, make_queue: MakeQueue
) -> None:
    queue, _ = make_queue()
    held = proxy.hold("SendMessageBatch")
    sender = threading.Thread(target=send, args=(through, queue, "a1"))
    sender.start()
    assert held.arrived.wait(WAIT)
    assert bodies(sqs.receive(queue, wait=WAIT)) == ["a1"]
    assert sender.is_alive()
    held.let_go()
    sender.join(WAIT)
    assert not sender.is_alive()


def test_a_poll_that_is_given_up_is_given_up_behind_the_proxy_too(
    sqs: Sqs, through: Sqs, proxy: sqs_faults.Proxy, make_queue: MakeQueue
) -> None:
    queue, _ = make_queue()
    through._connection.timeout = 0.2
    with pytest.raises(TimeoutError):
        through.receive(queue, wait=WAIT)
    deadline = time.monotonic() + WAIT
    while proxy.open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert proxy.open == 0
