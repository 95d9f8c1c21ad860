"""Everything that is measured beside each other, started: the upstream, nginx, gateways with what they keep, peers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from bench import asks, books, kept, lives, peers, servers, side_by_side, upstream

HITS: Final = 10_000
TITLES: Final = {"A": "A hit", "B": "B miss, with its end", "C": "C poll of a finished task"}
MEDIA: Final = {"E1": ("middle", 8), "E20": ("large", 4)}
"""Path → picture, connections."""
GATEWAY: Final = "gateway"
FULL: Final = "gateway, full ledger"
HIT_AT_NGINX: Final = {"Authorization": "Bearer at-once", "Content-Type": "application/json"}
MISS_BODY: Final = f'{{"model":"{kept.MODEL}","prompt":"a blue fox in the rain, {asks.NUMBER}","seed":{asks.NUMBER}}}'


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """The upstream, nginx as the measure, and where they have their pictures."""

    upstream: servers.Server
    nginx: servers.Server
    cached_url: str
    files: pathlib.Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A gateway that keeps something: finished tasks, and pictures by name."""

    server: servers.Server
    database: pathlib.Path
    finished: tuple[str, ...]
    media: dict[str, str]


@contextlib.contextmanager
def behind(bench: side_by_side.Bench) -> Iterator[Upstream]:
    """The upstream on the load's core, nginx on the servers'."""
    files = bench.folder / "files"
    upstream.write_pictures(files)
    up_port, port, cached_port = (servers.free_port() for _ in range(3))
    origin = f"http://127.0.0.1:{up_port}"
    measure = upstream.measure(
        port=port, cached_port=cached_port, upstream=origin, files=files, cache=bench.folder / "nginx-cache"
    )
    at_work = functools.partial(servers.nginx, folder=bench.folder)
    with (
        at_work("upstream", upstream.config(up_port, files), port=up_port, core=bench.cores.load) as up,
        at_work("nginx", measure, port=port, core=bench.cores.server) as nginx,
    ):
        yield Upstream(upstream=up, nginx=nginx, cached_url=f"http://127.0.0.1:{cached_port}", files=files)


@contextlib.contextmanager
def gateway(bench: side_by_side.Bench, up: Upstream, name: str) -> Iterator[servers.Server]:
    """A gateway with nothing kept."""
    with _gateway(bench, up, _folder(bench, name), name, servers.free_port()) as server:
        yield server


@contextlib.contextmanager
def filled(bench: side_by_side.Bench, up: Upstream, name: str, *, others: int) -> Iterator[Kept]:
    """A gateway with ten thousand results, so many other tasks, and a picture of each size; its books agree."""
    folder, port = _folder(bench, name), servers.free_port()
    body = kept.HIT_BODY.replace(asks.NUMBER, str(10**12)).encode()
    with _gateway(bench, up, folder, name, port) as server:
        status, text = servers.fetch(f"{server.url}/v1/tasks", method="POST", body=body, headers=kept.headers("kept"))
        if status != 200:
            raise RuntimeError(f"the first task was answered {status}: {text!r}")
        first = json.loads(text)["task_id"]
        lives.completed(server, "kept", first)
    finished = kept.copy_task(folder / "data", first, hits=HITS, others=others)
    with _gateway(bench, up, folder, name, port) as server:
        books.wait_until_audited(server)
        media = {
            picture: urlsplit(lives.completed(server, picture, lives.submit(server, picture, picture))).path
            for picture in ("middle", "large")
        }
        bench.say(f"{name}: {HITS + others} tasks kept, the books agree, ready in {server.ready_s:.2f} s")
        yield Kept(server=server, database=folder / "data" / "wave.db", finished=tuple(finished), media=media)


def _folder(bench: side_by_side.Bench, name: str) -> pathlib.Path:
    folder = bench.folder / servers.slug(name)
    kept.write_policies(folder / "policies")
    return folder


def _gateway(
    bench: side_by_side.Bench, up: Upstream, folder: pathlib.Path, name: str, port: int
) -> contextlib.AbstractContextManager[servers.Server]:
    return servers.gateway(
        name,
        upstream=up.upstream.url,
        policies=folder / "policies",
        environ=kept.ENVIRON,
        core=bench.cores.server,
        folder=folder,
        port=port,
    )


# Who stands beside whom on which path.


def of_nginx(up: Upstream, finished: tuple[str, ...]) -> list[side_by_side.Contender]:
    """nginx on every path."""
    count = functools.partial(books.requests_of_nginx, up.nginx.url)
    of = functools.partial(side_by_side.Contender, name="nginx", server=up.nginx, count=_less_looks(count))
    hit = asks.Ask(
        method="POST",
        path="/v1/tasks",
        body=kept.HIT_BODY,
        headers=HIT_AT_NGINX,
        keys=HITS,
        header=("X-Cache", "HIT"),
        contains='"status":"completed"',
    )
    miss = asks.Ask(
        method="POST",
        path="/v1/tasks",
        body=MISS_BODY,
        headers=kept.headers("miss"),
        keys=0,
        contains='"status":"queued"',
    )
    poll = asks.Ask(
        paths=_paths(finished), headers={"Authorization": "Bearer vendor-kept"}, contains='"status":"completed"'
    )
    return [
        of(path="A", url=up.cached_url, ask=hit),
        of(path="B", url=up.nginx.url, ask=miss),
        of(path="C", url=up.nginx.url, ask=poll),
        *(
            of(path=path, url=up.nginx.url, ask=_media(f"/media/{picture}.jpg", picture), connections=connections)
            for path, (picture, connections) in MEDIA.items()
        ),
    ]


def of_gateway(full: Kept) -> list[side_by_side.Contender]:
    """A gateway on every path."""
    server = full.server
    of = functools.partial(side_by_side.Contender, name=server.name, server=server, url=server.url)

    def counted(route: str, method: str) -> functools.partial[int]:
        return functools.partial(books.requests_of, server, route, method)

    hit = asks.Ask(
        method="POST",
        path="/v1/tasks",
        body=kept.HIT_BODY,
        headers=kept.headers("kept"),
        keys=HITS,
        header=("X-Cache", "HIT"),
        contains='"status":"completed"',
    )
    miss = asks.Ask(
        method="POST",
        path="/v1/tasks",
        body=MISS_BODY,
        headers=kept.headers("miss"),
        keys=0,
        header=("X-Cache", "MISS"),
        contains='"status":"queued"',
    )
    poll = asks.Ask(
        paths=_paths(full.finished),
        headers={"Authorization": kept.headers("kept")["Authorization"]},
        header=("X-Cache", "MISS"),
        contains='"status":"completed"',
    )
    drain = functools.partial(books.wait_until_done, full.database, "miss")
    media = counted("/media/{name}", "GET")
    return [
        of(path="A", ask=hit, count=counted("/v1/tasks", "POST")),
        of(path="B", ask=miss, count=counted("/v1/tasks", "POST"), drain=drain),
        of(path="C", ask=poll, count=counted("/v1/tasks/{task_id}", "GET")),
        *(
            of(path=path, ask=_media(full.media[picture], picture), count=media, connections=connections)
            for path, (picture, connections) in MEDIA.items()
        ),
    ]


def of_litellm(peer: peers.Litellm, server: servers.Server, finished: tuple[str, ...]) -> list[side_by_side.Contender]:
    """LiteLLM: a hit of its own cache, and the task API through its pass-through endpoints."""
    of = functools.partial(side_by_side.Contender, name="litellm", server=server, url=server.url)
    miss = asks.Ask(
        method="POST", path="/v1/tasks", body=MISS_BODY, headers=peer.headers, keys=0, contains='"status":"queued"'
    )
    poll = asks.Ask(paths=_paths(finished), headers=peer.headers, contains='"status":"completed"')
    return [of(path="A", ask=peer.hit()), of(path="B", ask=miss), of(path="C", ask=poll)]


def of_portkey(peer: peers.Portkey, server: servers.Server) -> list[side_by_side.Contender]:
    """Portkey: what it passes on."""
    return [side_by_side.Contender(path="B", name="portkey", server=server, url=server.url, ask=peer.miss())]


def _paths(finished: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"/v1/tasks/{each}" for each in finished)


def _media(path: str, picture: str) -> asks.Ask:
    return asks.Ask(path=path, least_bytes=upstream.PICTURES[picture])


def _less_looks(count: functools.partial[int]) -> functools.partial[int]:
    """A count without the looks at it, each of which is a request too."""
    looks = iter(range(1, 10**9))
    return functools.partial(_without, count, looks)


def _without(count: functools.partial[int], looks: Iterator[int]) -> int:
    return count() - next(looks)
