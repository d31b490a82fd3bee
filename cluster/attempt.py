"""One start of all ranks on the hosts that answer, watched until every rank has ended or one cannot."""

from __future__ import annotations

import contextlib
import math
import queue
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.agent import BEAT_S
from cluster.channel import Channel, Connect, News
from cluster.hostfile import Host
from cluster.job import JobSpec
from trainer.errors import REQUEUE_EXIT_CODE, USER_ERROR_EXIT_CODE

# A host from which nothing came for so long is lost.
LOST_S = 15.0
_CONNECT_S = 20.0
# An image is unpacked first.
_CONTAINER_S = 120.0
# How long the other ranks may take to end by themselves after one did.
_LAST_WORDS_S = 10.0
_HANG_UP_S = 3.0
# Exit codes that mean an end only where all ranks ended with them.
_AGREED = {USER_ERROR_EXIT_CODE: "all ranks refused", REQUEUE_EXIT_CODE: "told to stop, saved"}


@dataclass(frozen=True)
class Rank:
    """A rank's number and the host it runs on."""

    number: int
    host: str

    def __str__(self) -> str:
        return f"rank {self.number} on {self.host}"


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    code: an exit code, 128 + N for a signal. restart: whether another attempt could do better. why: one line.
    """

    code: int
    restart: bool
    why: str


def connect_all(
    spec: JobSpec, hosts: Sequence[Host], *, connect: Connect
) -> tuple[dict[str, Channel], queue.Queue[News]]:
    """Agents on all hosts that answer in time, by host; beats keep the first while the last is waited for."""
    news: queue.Queue[News] = queue.Queue()
    channels = {host.name: Channel(host.name, connect=connect, news=news) for host in hosts}
    deadline = time.monotonic() + (_CONNECT_S if spec.profile.container is None else _CONTAINER_S)
    refused: set[str] = set()
    while time.monotonic() < deadline and any(
        channel.heard_s is None and host not in refused for host, channel in channels.items()
    ):
        for channel in channels.values():
            channel.tell({"beat": True})
        with contextlib.suppress(queue.Empty):
            refused.add(news.get(timeout=BEAT_S / 4).host)
    answering = {host: channel for host, channel in channels.items() if channel.heard_s and host not in refused}
    for host in channels.keys() - answering.keys():
        channels[host].close(patience_s=0.0)
    return answering, news


def first_error(logs: Path) -> str | None:
    """The first line that begins with `error: ` in the logs of an attempt's ranks, without that word."""
    lines = (line for path in sorted(logs.glob("rank-*.log")) for line in path.open(encoding="utf-8", errors="replace"))
    return next((line.removeprefix("error: ").strip() for line in lines if line.startswith("error: ")), None)


class Attempt:
    """Starts the ranks and waits for their end; a context manager that leaves no rank behind."""

    def __init__(self, channels: dict[str, Channel], news: queue.Queue[News]) -> None:
        self._channels = channels
        self._news = news
        self._running: dict[tuple[str, int], Rank] = {}
        self._codes: dict[Rank, int] = {}
        self._first: Rank | None = None
        self._lost: list[str] = []

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close(patience_s=_HANG_UP_S)

    def start(self, layout: Sequence[Host], *, argv: Sequence[str], port: int, logs: Path) -> None:
        """Start `slots` ranks on each host of the layout, numbered in its order; they meet on the first."""
        world_size, first_rank = sum(host.slots for host in layout), 0
        for host in layout:
            numbers = range(first_rank, first_rank + host.slots)
            first_rank += host.slots
            environments = [
                {
                    "RANK": str(number),
                    "WORLD_SIZE": str(world_size),
                    "LOCAL_RANK": str(local_rank),
                    "LOCAL_WORLD_SIZE": str(host.slots),
                    "MASTER_ADDR": layout[0].name,
                    "MASTER_PORT": str(port),
                    # torchrun's mark: SLURM's numbers around it are those of the agents.
                    "TORCHELASTIC_RUN_ID": "bertline",
                }
                for local_rank, number in enumerate(numbers)
            ]
            self._running |= {
                (host.name, local_rank): Rank(number, host.name) for local_rank, number in enumerate(numbers)
            }
            paths = [str(logs / f"rank-{number}.log") for number in numbers]
            order = {"argv": list(argv), "environments": environments, "logs": paths}
            self._channels[host.name].tell({"start": order})

    def watch(self, *, stop_signal: Callable[[], int | None], limit_s: float = math.inf) -> Outcome:
        """Wait for the end of all ranks, so long at most; `stop_signal` is asked for a signal to hand to them."""
        beat_s, ending, deadline = 0.0, False, time.monotonic() + limit_s
        while self._running and time.monotonic() < deadline:
            now = time.monotonic()
            number = stop_signal()
            if now - beat_s >= BEAT_S or number:
                beat_s = now
                for channel in self._channels.values():
                    channel.tell({"signal": number} if number else {"beat": True})
            self._note_silence(now)
            with contextlib.suppress(queue.Empty):
                self._note(self._news.get(timeout=BEAT_S / 10))
            if (self._first or self._lost) and not ending:
                ending, deadline = True, now + (_HANG_UP_S if self._lost else _LAST_WORDS_S)
        for channel in self._channels.values():
            channel.tell({"signal": int(signal.SIGKILL)})
        return self._outcome()

    def _note(self, news: News) -> None:
        if news.said is None:
            self._lose(news.host)
            return
        rank, code = self._running.pop((news.host, news.said["ended"]), None), news.said["code"]
        if rank is not None:
            self._codes[rank] = code
            if code != 0 and self._first is None:
                self._first = rank

    def _note_silence(self, now: float) -> None:
        for host, channel in self._channels.items():
            if channel.heard_s is not None and now - channel.heard_s > LOST_S:
                self._lose(host)

    def _lose(self, host: str) -> None:
        """Take note of a host that is gone with ranks on it."""
        gone = [key for key in self._running if key[0] == host]
        if gone and host not in self._lost:
            self._lost.append(host)
        for key in gone:
            del self._running[key]

    def _outcome(self) -> Outcome:
        if self._lost:
            return Outcome(1, True, f"lost {', '.join(self._lost)}")
        if self._first is None and not self._running:
            return Outcome(0, False, "all ranks ended in order")
        if self._first is None:
            return Outcome(1, True, f"{next(iter(self._running.values()))} did not end")
        # One that was killed tells more than the first to notice.
        rank = next((rank for rank, code in self._codes.items() if code < 0), self._first)
        code = self._codes[rank]
        if set(self._codes.values()) == {code} and code in _AGREED and not self._running:
            return Outcome(code, False, _AGREED[code])
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        return Outcome(128 - code if code < 0 else code, True, f"{rank} {how}")
