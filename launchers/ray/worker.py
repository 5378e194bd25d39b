"""What Ray runs on each machine of an attempt: carries messages between the driver and the machine's keeper.

These functions travel to the machines by value, so that Ray's own interpreter there needs nothing of this
package: only the standard library and Ray may be imported here.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import threading
from typing import Any

_EVERY = 0.25
_ANSWER_SECONDS = 30.0


class Board:
    """Messages between the driver and the machines of an attempt, in an actor beside the driver.

    It goes when the driver goes, which the machines notice.
    """

    def __init__(self) -> None:
        self._told: list[tuple[int, dict[str, Any]]] = []
        self._orders: dict[int, list[dict[str, Any]]] = {}

    def exchange(self, node: int, messages: list[dict[str, Any]], after: int) -> list[dict[str, Any]]:
        """Take a machine's messages, give it the orders from the ``after``-th on."""
        self._told += [(node, message) for message in messages]
        return self._orders.get(node, [])[after:]

    def order(self, orders: dict[int, dict[str, Any]]) -> None:
        """Leave an order for each of these machines."""
        for node, order in orders.items():
            self._orders.setdefault(node, []).append(order)

    def told(self, after: int) -> list[tuple[int, dict[str, Any]]]:
        """Messages of all machines, by number, from the ``after``-th on."""
        return self._told[after:]


def keep_machine(config: dict[str, Any]) -> None:
    """The train function of one machine: returns when its keeper has, never fails for an exit code.

    ``config`` has the board, the folder of the attempt, the command line of the keeper, the variables laid
    over those of this process for it, and the working folder.
    """
    import ray
    import ray.train

    node = ray.train.get_context().get_world_rank()
    place = {
        "node_id": ray.get_runtime_context().get_node_id(),
        "ip": ray.util.get_node_ip_address(),
        "port": _free_port(),
        "host": socket.gethostname(),
    }
    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    messages.put({"place": place})
    keeper = _started(config, node, messages)
    seen = 0
    while True:
        ended = keeper is None or keeper.reader_done.wait(_EVERY)
        if keeper is not None and ended:
            messages.put({"gone": True})
        batch = _drained(messages)
        orders = _exchanged(config, node, batch, seen)
        if ended:
            return
        assert keeper is not None
        if orders is None:
            keeper.abandon()
            return
        seen += len(orders)
        for order in orders:
            keeper.send(order)


def _exchanged(
    config: dict[str, Any], node: int, batch: list[dict[str, Any]], seen: int
) -> list[dict[str, Any]] | None:
    """New orders; None where there is nobody left to give them."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    call = config["board"].exchange.remote(node, batch, seen)
    try:
        return ray.get(call, timeout=_ANSWER_SECONDS)  # type: ignore[no-any-return]
    except (RayActorError, GetTimeoutError):
        return None


class _Keeper:
    """The keeper's end of the pipes; its lines go into ``messages``."""

    def __init__(self, process: subprocess.Popen[bytes], messages: queue.Queue[dict[str, Any]]) -> None:
        self._process, self._messages = process, messages
        self.reader_done = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._messages.put(json.loads(line))
            except ValueError:
                self._messages.put({"said": line.decode(errors="replace").strip()})
        self.reader_done.set()

    def send(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # It has ended; the reader sees that.

    def abandon(self) -> None:
        """The keeper goes on alone, and ends its processes."""
        assert self._process.stdin is not None
        self._process.stdin.close()


def _started(config: dict[str, Any], node: int, messages: queue.Queue[dict[str, Any]]) -> _Keeper | None:
    words = [*config["keeper"], config["folder"], str(node)]
    try:
        process = subprocess.Popen(  # noqa: S603
            words,
            cwd=config["cwd"],
            env={**os.environ, **config["environment"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        messages.put({"problem": {"path": str(error.filename), "reason": str(error.strerror)}})
        return None
    return _Keeper(process, messages)


def _drained(messages: queue.Queue[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    while True:
        try:
            found.append(messages.get_nowait())
        except queue.Empty:
            return found


def _free_port() -> int:
    """A port that nobody uses now, for the processes to meet at if this machine is the first."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
