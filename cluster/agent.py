"""One host's part of a supervised run: starts the ranks it is told to, tells how each ends, and leaves none behind.

Reads orders and writes news, one JSON object a line, on its standard streams. Needs nothing but Python itself.

Orders: {"start": {"argv": [...], "environments": [{...}, ...], "logs": [...]}}, {"signal": N}, {"beat": true}.
News: {"beat": true} every second, {"ended": LOCAL_RANK, "code": N}, N below 0 for a signal.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

BEAT_S = 1.0
# Longer than a cable's blip; shorter than what the supervisor waits before it starts the ranks elsewhere.
SILENCE_S = 10.0
_POLL_S = 0.1


class Agent:
    """Starts ranks and watches them until the supervisor hangs up or falls silent."""

    def __init__(self) -> None:
        self._orders: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._ranks: dict[int, subprocess.Popen[bytes]] = {}
        self._heard_s = time.monotonic()

    def run(self) -> None:
        """Serve until standard input ends or nothing came for `SILENCE_S`; kills what still runs then."""
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._pass_on)
        threading.Thread(target=self._listen, daemon=True).start()
        told_s = 0.0
        try:
            while time.monotonic() - self._heard_s < SILENCE_S:
                if time.monotonic() - told_s >= BEAT_S:
                    told_s = time.monotonic()
                    _tell({"beat": True})
                self._tell_ended()
                try:
                    order = self._orders.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if order is None:
                    return
                self._obey(order)
        except BrokenPipeError:
            return
        finally:
            self._signal(signal.SIGKILL)

    def _listen(self) -> None:
        for line in sys.stdin:
            self._heard_s = time.monotonic()
            self._orders.put(json.loads(line))
        self._orders.put(None)

    def _obey(self, order: dict[str, Any]) -> None:
        if "signal" in order:
            self._signal(order["signal"])
        if "start" in order:
            start = order["start"]
            for local_rank, (environment, log) in enumerate(zip(start["environments"], start["logs"], strict=True)):
                Path(log).parent.mkdir(parents=True, exist_ok=True)
                with Path(log).open("ab") as output:
                    self._ranks[local_rank] = subprocess.Popen(
                        start["argv"],
                        env={**os.environ, **environment},
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        # A group of its own, to which its workers belong.
                        start_new_session=True,
                    )

    def _tell_ended(self) -> None:
        for local_rank, process in list(self._ranks.items()):
            if process.poll() is not None:
                # Workers of a rank that is gone.
                _signal_group(process.pid, signal.SIGKILL)
                del self._ranks[local_rank]
                _tell({"ended": local_rank, "code": process.returncode})

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal(number)

    def _signal(self, number: int) -> None:
        for process in list(self._ranks.values()):
            if number == signal.SIGKILL:
                _signal_group(process.pid, number)
            elif process.poll() is None:
                process.send_signal(number)


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _tell(news: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(news) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    Agent().run()
    # The thread that reads may hold standard input; nothing is left to do in order.
    os._exit(0)
