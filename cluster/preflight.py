"""Before a job on several hosts: do they have and see the same, reach each other, and add up numbers together?"""

from __future__ import annotations

import queue
import secrets
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.attempt import Attempt, connect_all, first_error
from cluster.channel import Channel, Connect, News
from cluster.hostfile import Host
from cluster.job import JobSpec
from trainer.config import Config
from trainer.errors import UserError
from trainer.places import remote_scheme
from trainer.ranks import job_port

# An image may have to be unpacked first.
_REPLY_S = 120.0
_FABRIC_S = 180.0
_CLOCK_S = 5.0
# Weights and two moments of Adam in fp32, what a checkpoint holds of a parameter.
_BYTES_A_PARAMETER = 12


def preflight(
    spec: JobSpec, hosts: Sequence[Host], *, look: Connect, agents: Connect, report: Callable[[str], None]
) -> None:
    """Raise UserError naming the hosts that fail; `look` starts cluster.look on a host, `agents` cluster.agent."""
    names = [host.name for host in hosts]
    faults = compare(_looks(spec, names, look=look), needed_bytes=checkpoint_bytes(spec.config))
    if faults:
        raise UserError(f"preflight: {'; '.join(faults)}")
    report(f"preflight: {len(hosts)} hosts have the same code, packages and data, and reach each other")
    report(f"preflight: {_fabric(spec, hosts, agents=agents)}")


def compare(looks: Mapping[str, Mapping[str, Any]], *, needed_bytes: int) -> list[str]:
    """What is wrong, one text a fault, with the host's name; what most hosts have is taken for right."""
    faults = []
    for thing in next(iter(looks.values()))["same"]:
        values = {host: found["same"][thing] for host, found in looks.items()}
        usual = Counter(values.values()).most_common(1)[0][0]
        faults += [
            f"{host} has {thing} {value}, where others have {usual}" for host, value in values.items() if value != usual
        ]
        if usual == "absent":
            faults.append(f"no host sees {thing}")
    for host, found in looks.items():
        if not found["sees"]:
            faults.append(f"{host} does not see the run folder; put it on a file system that all hosts share")
        if found["free_bytes"] < needed_bytes:
            free, needed = found["free_bytes"] / 2**30, needed_bytes / 2**30
            faults.append(f"{host} has {free:.1f} GiB free for the run folder, checkpoints need {needed:.1f}")
        if abs(found["clock_off_s"]) > _CLOCK_S:
            faults.append(f"the clock of {host} is off by {found['clock_off_s']:.0f} s; synchronise it (chrony)")
        faults += [f"{host} does not reach {peer}; open the network between them" for peer in found["unreached"]]
    return faults


def checkpoint_bytes(config: Config) -> int:
    """About what the checkpoints kept, and the one being written, take of the disk."""
    model, tokenizer = config.model, config.tokenizer
    vocab_size = model.vocab_size or (tokenizer.vocab_size if tokenizer else 30_000)
    layer = 4 * model.hidden_size**2 + 2 * model.hidden_size * model.intermediate_size
    parameters = model.num_layers * layer + (vocab_size + model.max_positions) * model.hidden_size
    return (config.checkpoint.keep_last + 2) * parameters * _BYTES_A_PARAMETER


def _looks(spec: JobSpec, hosts: Sequence[str], *, look: Connect) -> dict[str, dict[str, Any]]:
    """What every host says of itself; UserError naming those that do not answer."""
    seen = spec.run_dir / f".preflight-{secrets.token_hex(4)}"
    seen.parent.mkdir(parents=True, exist_ok=True)
    seen.touch()
    folders = [source.shards for source in spec.config.data.all_sources if source.shards is not None]
    same = [
        *([spec.recipe] if Path(spec.recipe).is_absolute() else []),
        *(str(spec.workdir / folder / "manifest.json") for folder in folders if remote_scheme(folder) is None),
    ]
    order = {"same": same, "seen": str(seen), "disk": str(spec.run_dir)}
    news: queue.Queue[News] = queue.Queue()
    channels = {host: Channel(host, connect=look, news=news) for host in hosts}
    try:
        told_s = time.time()
        first = _ask_all(channels, news, orders=dict.fromkeys(hosts, order))
        looks = {host: said["look"] for host, said in first.items()}
        for found in looks.values():
            # It was read between the order and now.
            early, late = told_s - found["clock_s"], found["clock_s"] - time.time()
            found["clock_off_s"] = late if late > 0 else -early if early > 0 else 0.0
        peers = {host: found["port"] for host, found in looks.items()}
        orders = {host: {"peers": {peer: port for peer, port in peers.items() if peer != host}} for host in hosts}
        for host, said in _ask_all(channels, news, orders=orders).items():
            looks[host]["unreached"] = said["unreached"]
        return looks
    finally:
        seen.unlink()
        for channel in channels.values():
            channel.close(patience_s=1.0)


def _ask_all(
    channels: Mapping[str, Channel], news: queue.Queue[News], *, orders: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    for host, order in orders.items():
        channels[host].tell(order)
    replies: dict[str, dict[str, Any]] = {}
    gone: set[str] = set()
    deadline = time.monotonic() + _REPLY_S
    while len(replies) + len(gone) < len(channels) and time.monotonic() < deadline:
        try:
            host, said = news.get(timeout=0.1)
        except queue.Empty:
            continue
        if said is None:
            gone.add(host)
        else:
            replies[host] = said
    silent = sorted(channels.keys() - replies.keys())
    if silent:
        raise UserError(f"preflight: no answer from {', '.join(silent)}; what it said stands above, if anything")
    return {host: replies[host] for host in channels}


def _fabric(spec: JobSpec, hosts: Sequence[Host], *, agents: Connect) -> str:
    """The line of the all-reduce between one rank a host; UserError with what the failing rank said."""
    logs = spec.run_dir / "preflight"
    for old in logs.glob("rank-*.log"):
        old.unlink()
    channels, news = connect_all(spec, hosts, connect=agents)
    with Attempt(channels, news) as attempt:
        if missing := [host.name for host in hosts if host.name not in channels]:
            raise UserError(f"preflight: no answer from {', '.join(missing)}")
        processes = str(max(host.slots for host in hosts))
        argv = [spec.python, "-m", "trainer.fabric", processes]
        layout = [Host(host.name, 1) for host in hosts]
        attempt.start(layout, argv=argv, port=job_port(zlib.crc32(str(logs).encode())), logs=logs)
        outcome = attempt.watch(stop_signal=lambda: None, limit_s=_FABRIC_S)
    if outcome.code:
        told = first_error(logs) or f"see {logs}"
        raise UserError(f"preflight: the all-reduce between {', '.join(channels)} failed ({outcome.why}): {told}")
    said = (logs / "rank-0.log").read_text(errors="replace").splitlines()
    return next(line for line in said if line.startswith("all-reduce"))
