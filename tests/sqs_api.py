"""The API of SQS by hand, with nothing but the standard library: for tests and benches to look past dejq.

    sqs = sqs_api.Sqs("sqs://us-east-1/dejq.fifo?endpoint=http://127.0.0.1:4566")
    queue = sqs.create("orders.fifo", VisibilityTimeout=2)
    sqs.send(queue, [sqs_api.entry("1", group="a", body="{}")])
    (message,) = sqs.receive(queue)
    sqs.delete(queue, [message])

AWS JSON 1.0 over one kept-alive connection per object, so each thread needs its own. Requests are signed (Signature
Version 4) with the credentials of the environment: emulators take any, and without an endpoint it is AWS that answers.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import servers

# A long poll takes up to 20 s, and an answer of AWS some more.
TIMEOUT_SECONDS: Final = 30.0
Json = dict[str, Any]


class SqsError(Exception):
    """What SQS answers instead of a result."""

    def __init__(self, action: str, status: int, code: str, message: str) -> None:
        super().__init__(f"{action}: {status} {code}: {message}")
        self.status, self.code, self.message = status, code, message


class Sqs:
    """A connection to SQS; `calls` counts what was asked."""

    def __init__(self, url: str) -> None:
        self.region = urlsplit(url).hostname or servers.EMULATOR_CREDENTIALS["AWS_REGION"]
        at = urlsplit(servers.endpoint(url) or f"https://sqs.{self.region}.amazonaws.com")
        kind = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(at.hostname or "", at.port, timeout=TIMEOUT_SECONDS)
        self._host = at.netloc
        self._account = os.environ if not servers.endpoint(url) else servers.EMULATOR_CREDENTIALS
        self.calls = 0

    def call(self, action: str, **parameters: Any) -> Json:
        """What SQS answers; parameters that are None are left out."""
        body = json.dumps({name: value for name, value in parameters.items() if value is not None}).encode()
        self.calls += 1
        try:
            self._connection.request("POST", "/", body, self._headers(action, body))
            response = self._connection.getresponse()
            answer = response.read()
        except BaseException:
            self._connection.close()  # the next call opens it again, and gets no answer to this one
            raise
        found: Json = json.loads(answer) if answer else {}
        if response.status != http.HTTPStatus.OK:
            code = response.headers.get("x-amzn-query-error", "").partition(";")[0] or str(found.get("__type", ""))
            raise SqsError(action, response.status, code, str(found.get("message") or found.get("Message")))
        return found

    def close(self) -> None:
        self._connection.close()

    # ---- queues

    def create(self, name: str, **attributes: object) -> str:
        """Creates a queue, FIFO by its name, and returns its URL."""
        if name.endswith(".fifo"):
            attributes = {"FifoQueue": "true", **attributes}
        return str(self.call("CreateQueue", QueueName=name, Attributes=_texts(attributes))["QueueUrl"])

    def create_pair(self, name: str, receives: int, **attributes: object) -> tuple[str, str]:
        """A FIFO queue, and the one to which messages go that were received so often."""
        dead = self.create(f"{name.removesuffix('.fifo')}-dlq.fifo")
        target = self.attributes(dead)["QueueArn"]
        policy = json.dumps({"deadLetterTargetArn": target, "maxReceiveCount": receives})
        return self.create(name, RedrivePolicy=policy, **attributes), dead

    def url(self, name: str) -> str:
        return str(self.call("GetQueueUrl", QueueName=name)["QueueUrl"])

    def names(self, prefix: str) -> list[str]:
        urls = self.call("ListQueues", QueueNamePrefix=prefix, MaxResults=1000).get("QueueUrls") or []
        return sorted(url.rpartition("/")[2] for url in urls)

    def attributes(self, queue: str) -> dict[str, str]:
        answer = self.call("GetQueueAttributes", QueueUrl=queue, AttributeNames=["All"])
        return dict(answer["Attributes"])

    def set(self, queue: str, **attributes: object) -> None:
        self.call("SetQueueAttributes", QueueUrl=queue, Attributes=_texts(attributes))

    def waiting(self, queue: str) -> tuple[int, int]:
        """Messages that nobody has, and those in flight; AWS is some seconds late with it."""
        found = self.attributes(queue)
        return int(found["ApproximateNumberOfMessages"]), int(found["ApproximateNumberOfMessagesNotVisible"])

    def drop(self, queue: str) -> None:
        self.call("DeleteQueue", QueueUrl=queue)

    # ---- messages

    def send(self, queue: str, entries: Sequence[Json]) -> Json:
        """One SendMessageBatch; see `entry`."""
        return self.call("SendMessageBatch", QueueUrl=queue, Entries=list(entries))

    def receive(
        self, queue: str, most: int = 10, *, wait: int = 0, visibility: int | None = None, attempt: str | None = None
    ) -> list[Json]:
        answer = self.call(
            "ReceiveMessage",
            QueueUrl=queue,
            MaxNumberOfMessages=most,
            WaitTimeSeconds=wait,
            VisibilityTimeout=visibility,
            ReceiveRequestAttemptId=attempt,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return list(answer.get("Messages") or [])

    def delete(self, queue: str, messages: Sequence[Json]) -> list[str]:
        """Deletes messages that were received; returns the codes of those that failed."""
        return self._by_handle("DeleteMessageBatch", queue, [{} for _ in messages], messages)

    def hide(self, queue: str, messages: Sequence[Json], seconds: Sequence[int]) -> list[str]:
        """Changes the visibility of messages that were received; returns the codes of those that failed."""
        rows = [{"VisibilityTimeout": each} for each in seconds]
        return self._by_handle("ChangeMessageVisibilityBatch", queue, rows, messages)

    def _by_handle(self, action: str, queue: str, rows: list[Json], messages: Sequence[Json]) -> list[str]:
        entries = [
            {"Id": str(place), "ReceiptHandle": message["ReceiptHandle"], **row}
            for place, (message, row) in enumerate(zip(messages, rows, strict=True))
        ]
        answer = self.call(action, QueueUrl=queue, Entries=entries)
        return [str(failed["Code"]) for failed in answer.get("Failed") or []]

    def _headers(self, action: str, body: bytes) -> dict[str, str]:
        """With a signature: https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html."""
        now = datetime.datetime.now(datetime.timezone.utc)
        moment, day = f"{now:%Y%m%dT%H%M%SZ}", f"{now:%Y%m%d}"
        headers = {
            "content-type": "application/x-amz-json-1.0",
            "host": self._host,
            "x-amz-date": moment,
            "x-amz-target": f"AmazonSQS.{action}",
        }
        if token := self._account.get("AWS_SESSION_TOKEN"):
            headers["x-amz-security-token"] = token
        names = ";".join(sorted(headers))
        canonical = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        request = f"POST\n/\n\n{canonical}\n{names}\n{hashlib.sha256(body).hexdigest()}"
        scope = f"{day}/{self.region}/sqs/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = f"AWS4{self._account['AWS_SECRET_ACCESS_KEY']}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        who = f"Credential={self._account['AWS_ACCESS_KEY_ID']}/{scope}, SignedHeaders={names}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        return {**headers, "authorization": f"AWS4-HMAC-SHA256 {who}, Signature={signature}"}


def entry(
    id: str, *, group: str, body: str, dedup: str | None = None, attributes: Mapping[str, str] | None = None
) -> Json:
    """One message of a SendMessageBatch; its attributes are strings."""
    named = {name: {"DataType": "String", "StringValue": text} for name, text in (attributes or {}).items()}
    return {
        "Id": id,
        "MessageBody": body,
        "MessageGroupId": group,
        "MessageDeduplicationId": dedup or id,
        "MessageAttributes": named,
    }


def bodies(messages: Iterable[Json]) -> list[str]:
    return [str(message["Body"]) for message in messages]


def receives(message: Json) -> int:
    """How often it has been received, this time included."""
    return int(message["Attributes"]["ApproximateReceiveCount"])


def text_attributes(message: Json) -> dict[str, str]:
    """The attributes that its sender gave."""
    found: Mapping[str, Json] = message.get("MessageAttributes") or {}
    return {name: str(value["StringValue"]) for name, value in found.items()}


def _texts(attributes: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in attributes.items()}
