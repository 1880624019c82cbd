"""A day of a fleet that nobody here has: 1,000 nodes, a million machines, simulated event by event.

`python -m benches.fleet_simulation` prints JSON; `--plot FILE` draws queue, registry and losses over the day as SVG.
The times of one machine are measured ones of this project; loads, popularity and hardware are assumptions, each an
option. It says what the design's rules come to (the host with the most room, one that has the snapshot ahead by half
of its room, a cache of snapshots on each node, nothing repeated), and nothing of what this package's code would do with
so many connections: see docs/how-to/fleet.md.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path

DAY = 86_400.0
#: Seconds: a restore to the first output (README), and what a fleet's request adds to that.
RESTORE, PLACEMENT = 0.016, 0.005
#: Bytes of a snapshot in a registry: of the demo's busybox, and of an image of fifteen times that.
SMALL, LARGE = 6 << 20, 96 << 20
#: Hosts with the snapshot that are looked at for one with room: enough to find nearly the best one.
LOOKED_AT = 32


@dataclass
class Node:
    """One host."""

    rack: int
    capacity: int
    used: int = 0
    alive: bool = True
    epoch: int = 0
    #: Snapshots that it has, the last used last, and their bytes.
    cache: OrderedDict[int, int] = field(default_factory=OrderedDict)
    cached: int = 0


class Day:
    """One run."""

    def __init__(self, said: argparse.Namespace) -> None:
        self.said = said
        self.random = random.Random(said.seed)  # noqa: S311 - a simulation
        self.nodes = [Node(n % said.racks, said.per_host) for n in range(said.nodes)]
        #: Nodes by how much room they have; entries that are out of date are skipped.
        self.room = [(-node.capacity, self.random.random(), n) for n, node in enumerate(self.nodes)]
        heapq.heapify(self.room)
        #: Nodes that have had a snapshot, by its image.
        self.having: list[list[int]] = [[] for _ in range(said.images)]
        weights = [1 / (n + 1) ** said.zipf for n in range(said.images)]
        self.weights, self.images = weights, list(range(said.images))
        self.sizes = [LARGE if n % 5 == 0 else SMALL for n in self.images]
        self.events: list[tuple[float, int, str, tuple[int, ...]]] = []
        self.count = 0
        self.queue: deque[tuple[float, int]] = deque()
        self.registry_free = 0.0
        self.waits: list[float] = []
        self.hits = self.misses = self.lost = self.fetched = 0
        self.per_slot: list[list[float]] = [[0.0, 0.0, 0.0] for _ in range(145)]

    def at(self, when: float, what: str, *rest: int) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, what, rest))

    def slot(self, now: float) -> list[float]:
        return self.per_slot[min(144, int(now / 600))]

    def run(self) -> None:
        self.at(self.gap(0.0), "arrive")
        for when, duration in ((DAY / 2, 600.0),) if self.said.lose_rack else ():
            self.at(when, "lose", 3)
            self.at(when + duration, "return", 3)
        while self.events:
            now, _, what, rest = heapq.heappop(self.events)
            if what == "arrive":
                image = self.random.choices(self.images, self.weights)[0]
                self.queue.append((now, image))
                if (later := now + self.gap(now)) < DAY:
                    self.at(later, "arrive")
            elif what == "end":
                number, epoch = rest
                node = self.nodes[number]
                if node.epoch == epoch:
                    node.used -= 1
                    self.offer(number)
            else:
                self.change(now, what, rest[0])
            self.place(now)
            slot = self.slot(now)
            slot[0] = max(slot[0], len(self.queue))

    def gap(self, now: float) -> float:
        """To the next arrival: a day with a night in it, and twice the mean at noon."""
        rate = self.said.machines / DAY * (1 - math.cos(2 * math.pi * now / DAY))
        return self.random.expovariate(max(rate, self.said.machines / DAY / 50))

    def offer(self, number: int) -> None:
        node = self.nodes[number]
        heapq.heappush(self.room, (node.used - node.capacity, self.random.random(), number))

    def change(self, now: float, what: str, rack: int) -> None:
        for number, node in enumerate(self.nodes):
            if node.rack != rack:
                continue
            if what == "lose":
                self.lost += node.used
                self.slot(now)[2] += node.used
                node.alive, node.used = False, 0
                node.epoch += 1
                node.cache.clear()
                node.cached = 0
            else:
                node.alive = True
                self.offer(number)

    def place(self, now: float) -> None:
        while self.queue and (number := self.choose(self.queue[0][1])) is not None:
            asked, image = self.queue.popleft()
            node = self.nodes[number]
            node.used += 1
            self.offer(number)
            ready = now + PLACEMENT + self.fetch(now, number, image) + RESTORE
            self.waits.append(ready - asked)
            held = self.random.lognormvariate(math.log(self.said.median_hold), 1.2)
            self.at(ready + held, "end", number, node.epoch)

    def choose(self, image: int) -> int | None:
        """The host with the most room; before it one that has the snapshot, if it has not so much less."""
        while self.room:
            room, _, number = self.room[0]
            node = self.nodes[number]
            if node.alive and room == node.used - node.capacity:
                if room == 0:
                    return None
                holder = self.holder(image)
                if holder is not None and self.share(holder) + self.said.ahead >= self.share(number):
                    return holder
                return number
            heapq.heappop(self.room)
        return None

    def share(self, number: int) -> float:
        node = self.nodes[number]
        return (node.capacity - node.used) / node.capacity

    def holder(self, image: int) -> int | None:
        """Of some hosts with the snapshot the one with the most room, if any has room."""
        having = self.having[image]
        best = None
        for _ in range(min(LOOKED_AT, len(having)) if self.said.ahead else 0):
            at = self.random.randrange(len(having))
            number = having[at]
            if image not in self.nodes[number].cache:
                having[at] = having[-1]
                having.pop()
                if not having:
                    break
            elif self.nodes[number].alive and (best is None or self.share(number) > self.share(best)):
                best = number
        return best if best is not None and self.share(best) > 0 else None

    def fetch(self, now: float, number: int, image: int) -> float:
        """Seconds until the snapshot is on the node: its own line, and its turn at the registry's."""
        node = self.nodes[number]
        if image in node.cache:
            node.cache.move_to_end(image)
            self.hits += 1
            return 0.0
        self.misses += 1
        size = self.sizes[image]
        node.cache[image] = size
        self.having[image].append(number)
        node.cached += size
        while node.cached > self.said.node_cache and len(node.cache) > 1:
            node.cached -= node.cache.popitem(last=False)[1]
        self.fetched += size
        self.slot(now)[1] += size
        self.registry_free = max(self.registry_free, now) + size / self.said.registry_rate
        return max(self.registry_free - now, size / self.said.node_rate) + 10 * self.said.round_trip

    def result(self) -> dict[str, object]:
        self.waits.sort()
        pick = lambda share: round(self.waits[min(len(self.waits) - 1, int(len(self.waits) * share))], 3)  # noqa: E731
        return {
            "machines": len(self.waits),
            "acquire_s": {"p50": pick(0.5), "p90": pick(0.9), "p99": pick(0.99), "p99.9": pick(0.999)},
            "longest_queue": int(max(slot[0] for slot in self.per_slot)),
            "cache_hit_rate": round(self.hits / (self.hits + self.misses), 4),
            "registry_bytes": self.fetched,
            "registry_peak_bytes_per_s": round(max(slot[1] for slot in self.per_slot) / 600),
            "machines_lost_with_the_rack": self.lost,
        }


def plot(day: Day, path: Path) -> None:
    """Three lines over the day, each against its own highest value."""
    names = ("longest queue", "registry, bytes in ten minutes", "machines lost")
    rows = []
    for row, name in enumerate(names):
        values = [slot[row] for slot in day.per_slot[:144]]
        top = max(values) or 1
        points = " ".join(f"{60 + 5 * n},{120 + 150 * row - 100 * v / top:.1f}" for n, v in enumerate(values))
        rows.append(f'<text x="60" y="{14 + 150 * row}">{name}, at most {max(values):,.0f}</text>')
        rows.append(f'<line x1="60" y1="{120 + 150 * row}" x2="780" y2="{120 + 150 * row}" stroke="#999"/>')
        rows.append(f'<polyline points="{points}" fill="none" stroke="#06c" stroke-width="1.5"/>')
    hours = [f'<text x="{60 + 30 * h}" y="440" text-anchor="middle">{h}</text>' for h in range(0, 25, 4)]
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="800" height="450" font-family="sans-serif" font-size="12">'
    path.write_text("\n".join([head, '<rect width="800" height="450" fill="white"/>', *rows, *hours, "</svg>"]) + "\n")


def main() -> None:
    """Prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--racks", type=int, default=25)
    parser.add_argument("--per-host", type=int, default=16)
    parser.add_argument("--machines", type=int, default=1_000_000, help="a day")
    parser.add_argument("--median-hold", type=float, default=120.0, help="seconds; log-normal, sigma 1.2")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--node-cache", type=float, default=4e9, help="bytes of snapshots on a node")
    parser.add_argument("--node-rate", type=float, default=125e6, help="bytes a second")
    parser.add_argument("--registry-rate", type=float, default=1.25e9, help="bytes a second")
    parser.add_argument(
        "--ahead", type=float, default=0.5, help="of a host that has the snapshot, as a share of its room"
    )
    parser.add_argument("--round-trip", type=float, default=0.02)
    parser.add_argument("--no-rack", dest="lose_rack", action="store_false", help="lose no rack at noon")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    day = Day(said := parser.parse_args())
    day.run()
    if said.plot is not None:
        plot(day, said.plot)
    print(json.dumps(day.result(), indent=2))


if __name__ == "__main__":
    main()
