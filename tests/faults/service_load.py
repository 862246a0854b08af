"""Requests to the service, each with a check of its answer; none of them changes the content of the gallery."""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
from service_process import CAMERAS, WRITER, crop_files, metadata_of

from cskt.gallery.gallery import Gallery
from cskt.types import Hit

SENTENCES = (
    "a man in a red coat and blue trousers", "a woman with a white bag", "someone in a green shirt", "a child",
    "a person with a black backpack and grey shoes", "a man with a hat", "a woman in a yellow dress", "дама в шляпе",
)  # fmt: skip
PAGE = 5
DEFAULT_K = 10
EVERY = 1000
ROUNDING = 1e-2
"""Tolerance of a score: with bfloat16 on the CPU, a sentence's vector depends slightly on its batch."""
BAD_SEARCHES: tuple[tuple[int, bytes], ...] = (
    (400, b'{"text": '), (400, b'{"text": "a", "text": "b"}'), (400, b'{"text": "a", "min_score": NaN}'),
    (422, b'{"text": ""}'), (422, b'{"text": "a", "k": 100000}'), (422, b'{"image": "no base64"}'),
    (422, json.dumps({"image": base64.b64encode(b"\xff\xd8\xff\xe0 cut").decode()}).encode()),
    (404, b'{"like": "../../etc/passwd"}'), (400, b'{"text": "a", "where": "camera = note; DROP TABLE x"}'),
    (400, b'{"text": "a", "group_by": "colour"}'),
)  # fmt: skip


class Asked(NamedTuple):
    """A request, and what is to be said of the answer."""

    kind: str
    request: dict[str, Any]
    status: int
    check: Callable[[httpx2.Response], None]


def check_hits(body: Mapping[str, Any], best_first: list[Hit]) -> Callable[[httpx2.Response], None]:
    """The answer is that of the gallery in this process, of which all hits are given."""
    scores = {hit.image_id: hit.score for hit in best_first}
    first = body.get("offset", 0)
    expected = [hit.score for hit in best_first][first : first + body.get("k", DEFAULT_K)]

    def check(answer: httpx2.Response) -> None:
        hits = answer.json()["hits"]
        found = [hit["score"] for hit in hits]
        assert np.allclose(found, expected, rtol=0, atol=ROUNDING), (body, found, expected)
        known = [scores[hit["image_id"]] for hit in hits]
        assert np.allclose(found, known, rtol=0, atol=ROUNDING), (body, hits, known)

    return check


def check_nothing(answer: httpx2.Response) -> None:
    """Its status says all."""


def check_refusal(answer: httpx2.Response) -> None:
    """An error in the one form."""
    assert answer.json()["error"].keys() == {"code", "message", "request_id"}


def searches(folder: Path) -> list[tuple[str, dict[str, Any], list[Hit]]]:
    """Kind, body and all hits of searches of every kind."""
    found: list[tuple[str, dict[str, Any], list[Hit]]] = []
    with Gallery.open(folder, device="cpu") as gallery:
        crops = crop_files(folder, "images", "handed")
        names = sorted(crops)
        for number, text in enumerate(SENTENCES):
            name, where = names[number], f"camera = 'c{number % CAMERAS}'"
            crop = crops[names[-1 - number]].read_bytes()
            picture = base64.b64encode(crop).decode()
            by_text = gallery.search(text, EVERY)
            found += [
                ("text", {"text": text, "k": PAGE}, by_text),
                ("page", {"text": text, "k": PAGE, "offset": PAGE}, by_text),
                ("filter", {"text": text, "where": where}, gallery.search(text, EVERY, where=where)),
                ("groups", {"text": text, "group_by": "track"}, gallery.search(text, EVERY, group_by="track")),
                ("histogram", {"text": text, "k": PAGE, "histogram": True}, by_text),
                ("not that", {"text": text, "exclude": ["a bag"]}, gallery.search(text, EVERY, exclude=["a bag"])),
                ("like", {"like": name, "k": PAGE}, gallery.search(like=name, k=EVERY)),
                ("picture", {"image": picture, "text": text}, gallery.search(text, EVERY, image=crop)),
            ]
    bests = [[hit.score for hit in hits] for kind, _, hits in found if kind == "text"]
    apart = [max(map(abs, np.subtract(one, other))) for one, other in itertools.combinations(bests, 2)]
    assert min(apart) > 2 * ROUNDING, "an answer to another sentence would not be noticed"
    return found


def posted(body: Any, **more: Any) -> dict[str, Any]:
    """A request to search."""
    return {"method": "POST", "url": "/api/search", "json": body, **more}


def mixed_requests(folder: Path, chance: random.Random) -> Iterator[Asked]:
    """Endless: two searches of three requests, then pictures, facts, heat maps, refusals and now and then a write."""
    known = searches(folder)
    crops = crop_files(folder, "images", "handed")
    names, handed = sorted(crops), sorted(crop_files(folder, "handed"))

    def same_bytes(name: str) -> Callable[[httpx2.Response], None]:
        def check(answer: httpx2.Response) -> None:
            assert answer.content == crops[name].read_bytes()

        return check

    def read() -> Asked:
        name = chance.choice(names)
        kind, check = chance.choice(
            [("image", same_bytes(name)), ("thumbnail", check_nothing), ("crop", check_nothing)]
        )
        return Asked(kind, {"method": "GET", "url": f"/api/{kind}", "params": {"id": name}}, 200, check)

    def overview() -> Asked:
        path = chance.choice(["/", "/page/app.js", "/docs", "/openapi.json", "/api/gallery", "/metrics"])
        return Asked("overview", {"method": "GET", "url": path}, 200, check_nothing)

    def explain() -> Asked:
        body = {"text": chance.choice(SENTENCES), "image_id": chance.choice(names)}
        return Asked("explain", {"method": "POST", "url": "/api/explain", "json": body}, 200, check_nothing)

    def refused() -> Asked:
        if chance.random() < 0.7:
            status, content = chance.choice(BAD_SEARCHES)
            request = {"method": "POST", "url": "/api/search", "content": content}
            request["headers"] = {"Content-Type": "application/json"}
            return Asked("refused", request, status, check_refusal)
        request, status = chance.choice([
            ({"method": "GET", "url": "/api/nothing"}, 404), ({"method": "BREW", "url": "/api/search"}, 405),
            ({"method": "DELETE", "url": "/api/crops", "params": {"id": names[0]}}, 401),
            (posted({"text": "a"}, headers={"Host": "evil.example"}), 403),
            (posted({"text": "a"}, headers={"Authorization": "Bearer wrong-wrong-wrong"}), 401),
        ])  # fmt: skip
        return Asked("refused", request, status, check_refusal)

    def replace() -> Asked:
        name = chance.choice(handed)
        crop = {"image_id": name, "image": base64.b64encode(crops[name].read_bytes()).decode()}
        body = {"crops": [crop | {"metadata": metadata_of(name)}]}
        request = {"method": "POST", "url": "/api/crops", "json": body, "headers": WRITER}
        return Asked("replace", request, 200, check_nothing)

    while True:
        (other,) = chance.choices([read, overview, explain, refused, replace, None], [14, 4, 2, 10, 1, 60])
        if other is not None:
            yield other()
            continue
        kind, body, hits = chance.choice(known)
        yield Asked(kind, posted(body), 200, check_hits(body, hits))
