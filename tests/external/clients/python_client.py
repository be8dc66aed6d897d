"""A service in Python that talks to Keyward through grpcio. See README.md."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from queue import SimpleQueue

import grpc

from keyward.v1 import verify_pb2, verify_pb2_grpc

CALL_SECONDS = 20
BEARER = (("authorization", f"Bearer {os.environ['KEY']}"),)
CALLS, RATE, WORKERS, CANCEL_PERCENT = (
    int(os.environ[name]) for name in ("CALLS", "RATE", "WORKERS", "CANCEL_PERCENT")
)


class WrongVerdict(Exception):
    """A working key was refused."""


def question(correlation_id: str = "") -> verify_pb2.VerifyRequest:
    return verify_pb2.VerifyRequest(secret=os.environ["SECRET"], correlation_id=correlation_id)


def check(reply: verify_pb2.VerifyResponse) -> None:
    if reply.decision != verify_pb2.DECISION_ALLOW:
        raise WrongVerdict(verify_pb2.Reason.Name(reply.reason))


class Calls:
    """Unary calls at a fixed rate, and what became of them."""

    def __init__(self, stub: verify_pb2_grpc.KeyVerifyStub) -> None:
        self._stub = stub
        self._next = itertools.count()
        self._lock = threading.Lock()
        self.count = 0
        self.cancelled = 0
        self.failed: Counter[str] = Counter()
        self.first_error = ""

    def drive(self) -> float:
        """Makes the calls at their times, and says how many seconds that took."""
        begin = time.monotonic()
        workers = [threading.Thread(target=self._work, args=(begin,)) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.monotonic() - begin

    def _work(self, begin: float) -> None:
        while (n := next(self._next)) < CALLS:
            time.sleep(max(0.0, begin + n / RATE - time.monotonic()))
            error = self._verify(cancels=n % 100 < CANCEL_PERCENT)
            with self._lock:
                self.count += 1
                if error == "CANCELLED":
                    self.cancelled += 1
                elif error:
                    self.failed[error] += 1

    def _verify(self, cancels: bool) -> str | None:
        """Makes one call, and gives the name of its error. One that is to be cancelled is given up as soon as it is sent."""
        try:
            if not cancels:
                check(self._stub.Verify(question(), timeout=CALL_SECONDS, metadata=BEARER))
                return None
            call = self._stub.Verify.future(question(), timeout=CALL_SECONDS, metadata=BEARER)
            call.cancel()
            return call.code().name
        except grpc.RpcError as error:
            self.note(str(error))
            return error.code().name
        except WrongVerdict as error:
            self.note(str(error))
            return "WRONG"

    def note(self, error: str) -> None:
        self.first_error = self.first_error or error


class Talk:
    """A stream of verifications that stays open."""

    def __init__(self, stub: verify_pb2_grpc.KeyVerifyStub) -> None:
        self._requests: SimpleQueue[verify_pb2.StreamVerifyRequest | None] = SimpleQueue()
        self._answers = stub.StreamVerify(iter(self._requests.get, None), metadata=BEARER)

    def ask(self, correlation_id: str) -> None:
        self._requests.put(verify_pb2.StreamVerifyRequest(request=question(correlation_id)))
        answer = next(self._answers)
        assert answer.correlation_id == correlation_id
        check(answer.response)

    def hang_up(self) -> None:
        self._requests.put(None)
        assert next(self._answers, None) is None
        assert self._answers.code() == grpc.StatusCode.OK


def open_channel(target: str, tls_dir: str) -> grpc.Channel:
    options = [("grpc.enable_http_proxy", 0)]
    if not tls_dir:
        return grpc.insecure_channel(target, options)
    authority, key, certificate = (Path(tls_dir, name).read_bytes() for name in ("ca.pem", "caller.key", "caller.pem"))
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(authority, key, certificate), options)


def main() -> None:
    with open_channel(os.environ["TARGET"], os.environ["TLS_DIR"]) as channel:
        stub = verify_pb2_grpc.KeyVerifyStub(channel)
        calls, talk = Calls(stub), Talk(stub)
        talk.ask("first")
        seconds = calls.drive()
        try:
            talk.ask("last")
            talk.hang_up()
            stream_ok = True
        except (grpc.RpcError, AssertionError, StopIteration, WrongVerdict) as error:
            calls.note(f"the open stream: {error!r}")
            stream_ok = False
    report = {"calls": calls.count, "cancelled": calls.cancelled, "failed": calls.failed, "seconds": seconds}
    print(json.dumps(report | {"first_error": calls.first_error, "stream_ok": stream_ok}))


if __name__ == "__main__":
    main()
