"""The service on a full disk: it answers 503, still searches, and writes again once there is space."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from attacked_service import SETTINGS, ask, honest
from PIL import Image
from raw_clients import head, post
from service_process import Served, make_gallery

from cskt.gallery.gallery import Gallery
from disks import enlarge, mounted
from fault_tries import chance, record, tries

pytest.importorskip("fastapi")

pytestmark = pytest.mark.slow

TEST = "tests/faults/test_service_places.py"
MOST_CROPS = 1000
NEW = "zone IS NOT NULL"
"""Filter for the crops that are added here; they alone have this column."""


def picture(number: int) -> str:
    """A PNG of some kilobytes that is like no other."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (96, 32, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("store", ["lance", pytest.param("milvus", marks=pytest.mark.milvus)])
def test_a_full_disk(tmp_path: Path, tiny_backbone: Path, dolls: Path, *, store: str) -> None:
    """Every acknowledged crop is there, and no traceback in the log; the audit log is on another disk."""
    if store == "milvus":
        pytest.importorskip("milvus_lite")
    room, num_refused = chance(f"service's disk {store}"), 0
    for attempt in range(tries(1, 5)):
        with mounted(tmp_path / f"gallery-{attempt}", 20_000) as disk:
            gallery = make_gallery(
                disk, tiny_backbone, dolls, "lance" if store == "lance" else f"milvus:{disk}/crops.db"
            )
            settings = SETTINGS | {"port": 0, "audit_log": str(tmp_path / f"audit-{attempt}.jsonl")}
            with Served(gallery, settings=settings) as service:
                (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - room.randrange(8_000, 400_000)))
                there: set[str] = set()
                for number in range(MOST_CROPS):
                    crop = {"image_id": f"new/{number}", "image": picture(number), "metadata": {"zone": number}}
                    answer = ask(service, post("/api/crops", {"crops": [crop]}))
                    if answer.status != 200:
                        break
                    there.add(crop["image_id"])
                assert answer.status == 503 and json.loads(answer.body)["error"]["code"] == "store_refuses", answer
                assert str(disk) not in answer.body.decode() and str(disk) in service.errors.read_text(encoding="utf-8")
                refused = 1
                honest(service)
                gone = min(there, default=None)
                if gone is not None:
                    answer = ask(service, head(f"DELETE /api/crops?id={gone}"))
                    assert answer.status in (200, 503), answer
                    refused += answer.status == 503
                    there -= {gone} if answer.status == 200 else set()
                enlarge(disk, 40)
                answer = ask(service, post("/api/crops", {"crops": [crop]}))
                assert answer.status == 200, answer
                there.add(crop["image_id"])
                honest(service)
                message = service.errors.read_text(encoding="utf-8").splitlines()
                assert len(message) == refused and all("No space left" in line for line in message), message
                num_refused += refused
                assert service.stop() == 0
            with Gallery.open(gallery, device="cpu") as opened:
                assert {hit.image_id for hit in opened.search("a man", k=MOST_CROPS, where=NEW)} == there
    record(f"the service's disk is full ({store})", tried=num_refused, test=TEST)
