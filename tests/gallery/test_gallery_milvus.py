"""A gallery with its vectors in Milvus: options of the address, indexing, another model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cskt
from cskt.embed import Encoder
from cskt.errors import CsktError
from cskt.gallery.gallery import Gallery
from cskt.gallery.manifest import MANIFEST
from tiny_run import write_backbone

pytest.importorskip("milvus_lite")
pytestmark = pytest.mark.milvus

SENTENCE = "a woman in a red coat"
OPTIONS = "index=hnsw&m=8&partition=camera&consistency=session"


@pytest.fixture
def metadata(crops: Path) -> dict[str, dict[str, str]]:
    """Return the camera of each crop but the first, which has none."""
    names = sorted(path.relative_to(crops).as_posix() for path in crops.rglob("*.jpg"))
    return {name: {"camera": name[:4]} for name in names[1:]}


def test_a_gallery_on_milvus_gives_the_answers_of_lance(
    gallery: Gallery,
    encoder: Encoder,
    tiny_backbone: Path,
    crops: Path,
    metadata: dict[str, dict[str, str]],
    tmp_path: Path,
) -> None:
    """So few vectors that an approximate index misses none; an added crop is found by the next search."""
    gallery.index(metadata=metadata)
    store = f"milvus:{tmp_path}/crops.db?{OPTIONS}"
    with Gallery.create(tmp_path / "on-milvus", encoder, store=store) as other:
        assert other.index(crops, metadata=metadata).added == 12
        for where in (None, "camera = 'cam1'", "camera in ('cam0', 'cam2')", "camera is null", "camera != 'cam1'"):
            expected = {hit.image_id: hit.score for hit in gallery.search(SENTENCE, k=50, where=where)}
            found = {hit.image_id: hit.score for hit in other.search(SENTENCE, k=50, where=where)}
            assert found == pytest.approx(expected, abs=1e-6) and found
        other.add([crops / next(iter(metadata))], ["live/1"], [{"camera": "cam1"}])
        assert "live/1" in {hit.image_id for hit in other.search(SENTENCE, k=50, where="camera = 'cam1'")}


def test_search_options_can_be_changed_in_the_manifest(
    encoder: Encoder, tiny_backbone: Path, crops: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "gallery"
    with Gallery.create(folder, encoder, store=f"milvus:{tmp_path}/crops.db?{OPTIONS}") as made:
        made.index(crops)
    manifest = (folder / MANIFEST).read_text(encoding="utf-8")
    assert json.loads(manifest)["store"] == f"milvus:../crops.db?{OPTIONS}"
    loosened = manifest.replace("consistency=session", "consistency=bounded&ef=500")
    (folder / MANIFEST).write_text(loosened, encoding="utf-8")
    with Gallery.open(folder, encoder=encoder) as opened:
        assert len(opened.search(SENTENCE, k=50)) == 12
    (folder / MANIFEST).write_text(manifest.replace("m=8", "m=16"), encoding="utf-8")
    with pytest.raises(CsktError, match="has another index"):
        Gallery.open(folder, encoder=encoder)


def test_reindexing_makes_a_collection_and_deletes_the_old_one(
    encoder: Encoder, tiny_backbone: Path, crops: Path, tmp_path: Path
) -> None:
    from pymilvus import MilvusClient

    store = f"milvus:{tmp_path}/crops.db?{OPTIONS}"
    other = cskt.load(write_backbone(tmp_path / "other.safetensors", seed=5), device="cpu", batch_size=4, num_workers=2)
    with Gallery.create(tmp_path / "gallery", encoder, store=store) as gallery:
        gallery.index(crops)
        before = [hit.score for hit in gallery.search(SENTENCE, k=50)]
        assert gallery.reindex(other).added == 12
        assert [hit.score for hit in gallery.search(SENTENCE, k=50)] != pytest.approx(before, abs=1e-3)
    client = MilvusClient(str(tmp_path / "crops.db"))
    assert client.list_collections() == [f"crops_{other.fingerprint[:12]}"]
    client.close()


def test_a_collection_with_crops_of_another_gallery_is_refused(
    encoder: Encoder, tiny_backbone: Path, crops: Path, tmp_path: Path
) -> None:
    """Its columns are unknown, so that a replaced crop would retain old values."""
    store = f"milvus:{tmp_path}/crops.db"
    with Gallery.create(tmp_path / "first", encoder, store=store) as first:
        first.index(crops)
        with pytest.raises(CsktError, match=r"crops\.db: contains 12 crops of another gallery; name another place"):
            Gallery.create(tmp_path / "second", encoder, store=store)
        assert not (tmp_path / "second").exists()
        assert first.count() == 12
