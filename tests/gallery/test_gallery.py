"""Methods of a gallery, over a real store and a thin model."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cskt
from cskt.cli import search
from cskt.embed import Encoder
from cskt.errors import CsktError, GalleryChangedError, UnknownCropError
from cskt.gallery import filters, state
from cskt.gallery.calibration import calibrate, save_calibration
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing.reencoding import fill
from cskt.gallery.manifest import FORMAT_VERSION, MANIFEST, read_manifest
from cskt.gallery.options import SearchOptions
from cskt.gallery.query import Query
from cskt.gallery.state import GalleryState
from cskt.gallery.stores.exact_search import Matrix
from cskt.utils import messages
from tiny_run import write_backbone

SENTENCE = "a woman in a red coat"


def everything(gallery: Gallery, sentence: str = SENTENCE) -> dict[str, float]:
    return {hit.image_id: hit.score for hit in gallery.search(sentence, k=1000)}


def names(crops: Path) -> list[str]:
    return sorted(path.relative_to(crops).as_posix() for path in crops.rglob("*.jpg"))


def test_answers_are_those_of_the_encoder(gallery: Gallery, encoder: Encoder, crops: Path) -> None:
    images = [crops / name for name in names(crops)]
    scores = (encoder.encode_text([SENTENCE]) @ encoder.encode_image(images).T)[0]
    order = scores.argsort(descending=True).tolist()
    hits = gallery.search(SENTENCE, k=5)
    assert [hit.image_id for hit in hits] == [names(crops)[index] for index in order[:5]]
    assert torch.allclose(torch.tensor([hit.score for hit in hits]), scores[order[:5]], atol=1e-6)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    with Image.open(images[order[0]]) as image:
        assert hits[0].metadata == {"width": image.width, "height": image.height}


def test_a_reopened_gallery_answers_alike_and_finds_its_model(gallery: Gallery) -> None:
    before = everything(gallery)
    gallery.close()
    with cskt.Gallery.open(gallery.folder, device="cpu") as again:
        # Where the CPU multiplies bfloat16 by itself, a gallery that is opened by name computes in it.
        assert everything(again) == pytest.approx(before, abs=1e-6 if again.encoder.precision == "fp32" else 5e-3)
        assert again.count() == 12


def test_indexing_again_touches_only_what_changed(gallery: Gallery, crops: Path, dolls: Path) -> None:
    known = names(crops)
    before = everything(gallery)
    shutil.copyfile(max(dolls.rglob("*.jpg")), crops / known[0])
    os.utime(crops / known[1])  # another time, the same content
    (crops / known[2]).unlink()
    shutil.copyfile(crops / known[3], crops / "new.jpg")

    report = gallery.index()
    assert (report.added, report.replaced, report.unchanged) == (1, 1, 10)
    assert (report.vanished, report.removed, report.unreadable) == (1, 0, [])
    after = everything(gallery)
    assert after.keys() == {*known, "new.jpg"}
    assert after[known[0]] != before[known[0]]
    assert after["new.jpg"] == pytest.approx(after[known[3]], abs=1e-6)
    assert {name: after[name] for name in known[1:]} == {name: before[name] for name in known[1:]}

    report = gallery.index(prune=True)
    assert (report.unchanged, report.removed, report.vanished) == (12, 1, 0)
    assert known[2] not in everything(gallery)


def test_unreadable_images_are_listed_and_the_rest_is_indexed(gallery: Gallery, crops: Path) -> None:
    (crops / "empty.jpg").write_bytes(b"")
    (crops / "torn.jpg").write_bytes((crops / names(crops)[0]).read_bytes()[:500])
    (crops / "page.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    report = gallery.index()
    assert sorted(name for name, _ in report.unreadable) == ["empty.jpg", "page.png", "torn.jpg"]
    assert all("\n" not in reason and len(reason) > 10 for _, reason in report.unreadable)
    assert gallery.count() == 12


def test_a_moved_folder_is_the_same_and_another_is_refused(gallery: Gallery, crops: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(crops, other)
    with pytest.raises(ValueError, match="contains the crops of .*make another gallery"):
        gallery.index(other)
    shutil.rmtree(crops)
    assert gallery.index(other).unchanged + gallery.index(other).replaced == 12
    assert gallery.original(names(other)[0]) == other / names(other)[0]


def test_an_empty_folder_does_not_empty_the_gallery(gallery: Gallery, crops: Path) -> None:
    for name in names(crops):
        (crops / name).unlink()
    with pytest.raises(ValueError, match="is it mounted"):
        gallery.index(prune=True)
    assert gallery.count() == 12


def test_metadata_can_be_added_later_and_in_parts(gallery: Gallery, crops: Path) -> None:
    first, second, third = names(crops)[:3]
    report = gallery.index(metadata={first: {"Camera": "c1", "hour": "7"}, second: {"Camera": "c2"}})
    assert (report.updated, report.unchanged) == (2, 10)
    assert gallery.columns == {"camera": "text", "hour": "number"}
    report = gallery.index(metadata={first: {"Camera": "c1", "hour": 7}, third: {"indoors": True}})
    assert (report.updated, report.unchanged) == (1, 11)
    assert dict(gallery.crop(first).metadata) == {"camera": "c1", "hour": 7}
    assert [hit.image_id for hit in gallery.search(SENTENCE, where="camera = 'c2'")] == [second]
    assert gallery.count("hour < 8 and camera in ('c1', 'c2')") == 1
    assert gallery.count("camera is null") == 10
    with pytest.raises(ValueError, match="'hour'.*'late' is no number"):
        gallery.index(metadata={first: {"hour": "late"}})
    os.utime(crops / first, (1, 1))
    gallery.index()
    assert dict(gallery.crop(first).metadata) == {"camera": "c1", "hour": 7}


def test_columns_that_another_process_made_are_seen(gallery: Gallery, crops: Path, encoder: Encoder) -> None:
    with Gallery.open(gallery.folder, encoder=encoder) as writer:
        writer.index(metadata={names(crops)[0]: {"camera": "c9"}})
    assert gallery.count("camera = 'c9'") == 1
    assert gallery.search(SENTENCE, where="camera = 'c9'")[0].metadata["camera"] == "c9"


def test_uploaded_crops(gallery: Gallery, crops: Path) -> None:
    path = crops / names(crops)[0]
    report = gallery.add(
        [path, path.read_bytes(), Image.open(path), b"no image"],
        ["live/1", "live/2", "live/3", "live/4"],
        [{"track": index} for index in range(4)],
    )
    assert (report.added, [name for name, _ in report.unreadable]) == (3, ["live/4"])
    assert gallery.count() == 15
    scores = everything(gallery)
    assert scores["live/1"] == pytest.approx(scores[names(crops)[0]], abs=1e-6)
    assert scores["live/2"] == pytest.approx(scores["live/1"], abs=1e-6)
    assert gallery.original("live/1").read_bytes() == path.read_bytes()
    assert gallery.original("live/1").is_relative_to(gallery.folder)
    assert gallery.search(SENTENCE, where="track = 2")[0].image_id == "live/3"

    with pytest.raises(ValueError, match="the name of an indexed file"):
        gallery.add([path], [names(crops)[0]])
    with pytest.raises(ValueError, match="is no name for a crop"):
        gallery.add([path], ["../live"])
    assert gallery.index().vanished == 0

    kept = gallery.original("live/1")
    assert gallery.remove(["live/1", "nobody"]) == 1
    assert kept.is_file()  # live/2 has the same content
    assert gallery.remove(["live/2"]) == 1
    assert not kept.exists()
    with pytest.raises(UnknownCropError, match="live/1: no such crop"):
        gallery.original("live/1")


def test_a_crop_uploaded_again_is_replaced(gallery: Gallery, crops: Path) -> None:
    first, second = (crops / name for name in names(crops)[:2])
    gallery.add([first], ["live"], [{"track": 1}])
    assert gallery.add([first], ["live"], [{"track": 2}]).updated == 1
    old = gallery.original("live")
    assert gallery.add([second], ["live"]).replaced == 1
    assert not old.exists()
    assert dict(gallery.crop("live").metadata) == {"track": 2}
    assert gallery.original("live").read_bytes() == second.read_bytes()


def test_pictures_and_sentences_together(gallery: Gallery, encoder: Encoder, crops: Path) -> None:
    some = names(crops)[4]
    assert gallery.search(image=crops / some)[0].image_id == some
    assert gallery.search(like=some)[0].score == pytest.approx(1, abs=1e-5)
    text, image, unlike = encoder.encode_text([SENTENCE])[0], encoder.encode_image([crops / some])[0], "a hat"
    wanted = 2 * text + 3 * image - 0.25 * encoder.encode_text([unlike])[0]
    query = Query(SENTENCE, crops / some, None, (unlike,), 2.0, 3.0, 0.25)
    assert torch.allclose(gallery.encode([query])[0], wanted / wanted.norm(), atol=1e-6)
    plain = gallery.encode([Query("a hat"), query, Query(like=some)])
    assert torch.allclose(plain[1], wanted / wanted.norm(), atol=1e-6)
    with pytest.raises(ValueError, match="cancel each other out"):
        gallery.search("a hat", exclude=["a hat"], exclude_weight=1.0)
    with pytest.raises(UnknownCropError):
        gallery.search(like="nobody.jpg")


def test_threshold_offset_and_groups(gallery: Gallery, crops: Path) -> None:
    gallery.index(metadata={name: {"track": name[:4]} for name in names(crops)})
    hits = gallery.search(SENTENCE, k=12)
    assert gallery.search(SENTENCE, k=4, offset=3) == hits[3:7]
    assert gallery.search(SENTENCE, k=12, min_score=hits[4].score) == hits[:5]
    assert gallery.search(SENTENCE, min_score=0.999) == []
    best: dict[str, str] = {}
    for hit in hits:
        best.setdefault(hit.metadata["track"], hit.image_id)
    grouped = gallery.search(SENTENCE, k=12, group_by="track")
    assert [hit.image_id for hit in grouped] == list(best.values())
    assert [hit.group_size for hit in grouped] == [4, 4, 4]
    with pytest.raises(ValueError, match="unknown column 'trak'.*track"):
        gallery.search(SENTENCE, group_by="trak")


@pytest.mark.parametrize(
    "options",
    [
        SearchOptions(3),
        SearchOptions(4, offset=3),
        SearchOptions(12, where="track = 'cam1' or width > 1"),
        SearchOptions(12, group_by="track"),
        SearchOptions(12, where="track = 'cam9'"),
        SearchOptions(12, min_score=0.0),
    ],
)
def test_a_single_search_loads_no_vectors_and_answers_alike(
    gallery: Gallery, crops: Path, options: SearchOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.index(metadata={name: {"track": name[:4]} for name in names(crops)})
    for query in (Query(SENTENCE, exclude="a hat"), Query(like=names(crops)[4])):
        expected = gallery.search_many([query], options)
        with Gallery.open(gallery.folder, encoder=gallery.encoder) as opened, monkeypatch.context() as patch:
            patch.setattr(Matrix, "extended", lambda *_: pytest.fail("vectors are loaded"))
            assert opened.search_many([query], options, once=True) == expected
    both = [Query(SENTENCE), Query("a man")]
    assert gallery.search_many(both, options, once=True) == gallery.search_many(both, options)


def test_a_search_in_the_shell_loads_no_vectors(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Matrix, "extended", lambda *_: pytest.fail("vectors are loaded"))
    assert search.main([str(gallery.folder), SENTENCE, "--json", "--device", "cpu", "-k", "3"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["hits"]) == 3


@pytest.mark.parametrize("k", [0, -1, 10_001])
def test_k_out_of_range(gallery: Gallery, k: int) -> None:
    with pytest.raises(ValueError, match="at most 10000"):
        gallery.search(SENTENCE, k=k)


def test_histogram_counts_every_crop(gallery: Gallery) -> None:
    vector = gallery.encode([Query(SENTENCE)])[0]
    histogram = gallery.histogram(vector, num_bins=8)
    assert sum(histogram.counts) == 12 and len(histogram.counts) <= 8
    scores = everything(gallery).values()
    assert histogram.edges[0] - 0.01 <= min(scores) and max(scores) <= histogram.edges[-1] + 0.01


def test_another_model_is_refused_until_reindexed(gallery: Gallery, crops: Path, tmp_path: Path) -> None:
    gallery.add([crops / names(crops)[0]], ["live"], [{"track": 1}])
    path = write_backbone(tmp_path / "other.safetensors", seed=1)
    other = cskt.load(path, device="cpu")
    with pytest.raises(ValueError, match="was filled by another model.*cskt reindex"):
        Gallery.open(gallery.folder, encoder=other)

    reader = Gallery.open(gallery.folder)
    old_folders = set((gallery.folder / "vectors").iterdir())
    report = gallery.reindex(other)
    assert report.added == 13
    assert not old_folders & set((gallery.folder / "vectors").iterdir())
    assert dict(gallery.crop("live").metadata) == {"track": 1}
    images = [gallery.original(name) for name in [*names(crops), "live"]]
    expected = (other.encode_text([SENTENCE]) @ other.encode_image(images).T)[0]
    assert everything(gallery) == pytest.approx(
        dict(zip([*names(crops), "live"], expected.tolist(), strict=True)), abs=1e-5
    )
    with pytest.raises(ValueError, match="was reindexed with another model; open it again"):
        reader.count()
    with Gallery.open(gallery.folder, device="cpu") as again:
        assert again.encoder.fingerprint == other.fingerprint
    with pytest.raises(ValueError, match="nothing to do"):
        gallery.reindex(other)
    assert gallery.index().unchanged == 12


def test_reindexing_drops_no_crop_without_prune(gallery: Gallery, crops: Path, tmp_path: Path) -> None:
    path = write_backbone(tmp_path / "other.safetensors", seed=1)
    other, before = cskt.load(path, device="cpu"), everything(gallery)
    (crops / names(crops)[0]).unlink()
    with pytest.raises(ValueError, match="1 crops cannot be encoded anew.*--prune"):
        gallery.reindex(other)
    assert everything(gallery) == before
    assert gallery.reindex(other, prune=True).removed == 1
    assert gallery.count() == 11


def test_a_newer_format_and_a_broken_manifest_are_refused(gallery: Gallery) -> None:
    manifest = gallery.folder / MANIFEST
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(json.dumps(json.loads(text) | {"format_version": FORMAT_VERSION + 1}), encoding="utf-8")
    with pytest.raises(ValueError, match="made by a newer version of cskt.*upgrade"):
        Gallery.open(gallery.folder)
    for broken in ("", "[]", "{}", '{"format_version": 1, "model": 3}', text[:-20]):
        manifest.write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match="no manifest of a gallery"):
            Gallery.open(gallery.folder)


def test_galleries_are_created_in_empty_folders_only(gallery: Gallery, encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a gallery already"):
        Gallery.create(gallery.folder, encoder)
    with pytest.raises(ValueError, match="not empty, and no gallery"):
        Gallery.create(tmp_path / "crops", encoder)
    with pytest.raises(ValueError, match="no gallery there; make one"):
        Gallery.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown store 'redis'"):
        Gallery.create(tmp_path / "new", encoder, store="redis")
    assert not (tmp_path / "new").exists()


def test_a_deleted_file_is_reported_and_its_crop_still_found(gallery: Gallery, crops: Path) -> None:
    name = names(crops)[0]
    (crops / name).unlink()
    assert name in everything(gallery)
    assert gallery.thumbnail(name).startswith(b"\xff\xd8")
    with pytest.raises(ValueError, match="its file is gone"):
        gallery.original(name)


def test_a_file_that_became_a_link_to_outside_is_refused(gallery: Gallery, crops: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    shutil.copyfile(crops / names(crops)[1], secret)
    name = names(crops)[0]
    (crops / name).unlink()
    (crops / name).symlink_to(secret)
    with pytest.raises(ValueError, match="its file is gone"):
        gallery.original(name)


def test_changes_of_another_process_during_a_reindex_are_stored(
    gallery: Gallery, encoder: Encoder, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = names(crops)[:3]
    gallery.index(metadata={first: {"camera": "old"}})
    path = write_backbone(tmp_path / "other.safetensors", seed=1)
    other = cskt.load(path, device="cpu")
    writer = Gallery.open(gallery.folder, encoder=encoder)
    passes: list[int] = []

    def meanwhile(*args: object, **kwargs: object) -> None:
        fill(*args, **kwargs)  # type: ignore[arg-type]
        passes.append(1)
        if len(passes) == 1:  # the long pass is over, the lock not yet taken
            writer.add([crops / second], ["live"], [{"camera": "new"}])
            writer.index(metadata={first: {"camera": "new"}})
            writer.remove([third])

    monkeypatch.setattr("cskt.gallery.indexing.reencoding.fill", meanwhile)
    gallery.reindex(other)
    assert len(passes) >= 2
    assert everything(gallery).keys() == {*names(crops), "live"} - {third}
    assert dict(gallery.crop(first).metadata) == {"camera": "new"}
    assert dict(gallery.crop("live").metadata) == {"camera": "new"}
    for late in (
        lambda: writer.add([crops / second], ["late"]),
        lambda: writer.remove([first]),
        lambda: writer.index(crops),
        lambda: writer.search(SENTENCE),
        lambda: writer.thumbnail(first),
    ):
        with pytest.raises(GalleryChangedError, match="open it again"):
            late()
    assert gallery.count() == 12


def test_metadata_added_during_an_interrupted_reindex_is_stored(
    gallery: Gallery, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = names(crops)[0]
    gallery.index(metadata={first: {"camera": "old"}})
    path = write_backbone(tmp_path / "other.safetensors", seed=1)
    other = cskt.load(path, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(GalleryState, "replace_by", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            gallery.reindex(other)
    gallery.index(metadata={first: {"camera": "new"}})
    report = gallery.reindex(other)
    assert report.unchanged == 12
    assert dict(gallery.crop(first).metadata) == {"camera": "new"}


def test_images_that_the_store_refused_are_not_reported_as_stored(
    gallery: Gallery, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(crops / names(crops)[0], crops / "new.jpg")
    message: list[int] = []

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gallery._state.store, "add", full)
    with pytest.raises(OSError, match="No space left"):
        gallery.index(on_progress=lambda done, _: message.append(done))
    assert message == []


def test_a_model_that_has_changed_behind_its_path_is_refused(tmp_path: Path) -> None:
    path = write_backbone(tmp_path / "mine.safetensors", seed=0)
    Gallery.create(tmp_path / "another", cskt.load(path, device="cpu")).close()
    write_backbone(path, seed=1)
    with (
        Gallery.open(tmp_path / "another", device="cpu") as opened,
        pytest.raises(ValueError, match=r"another model.*reindex .*--model .*mine.*; or, .*index .* --model OLD_FILE"),
    ):
        opened.search(SENTENCE)


def test_a_killed_creation_can_be_repeated(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cskt.gallery.opening.write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("cskt.gallery.opening._undo_creation", lambda *_: None)  # a kill cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            Gallery.create(tmp_path / "half", encoder)
    assert (tmp_path / "half").is_dir()
    with Gallery.create(tmp_path / "half", encoder) as gallery:
        assert gallery.count() == 0


def test_equal_pictures_can_be_uploaded_together(gallery: Gallery, crops: Path) -> None:
    data = (crops / names(crops)[0]).read_bytes()
    assert gallery.add([data] * 40, [f"blank/{number}" for number in range(40)]).added == 40
    assert gallery.uploaded(["blank/3", names(crops)[0], "nobody"]) == {"blank/3"}
    kept = gallery.original("blank/3")
    kept.unlink()
    gallery.add([data], ["blank/3"])
    assert kept.read_bytes() == data


def test_the_threshold_follows_its_file(gallery: Gallery) -> None:
    assert gallery.min_score is None
    calibration = calibrate(np.float32([0.9]), np.linspace(-1, 0.5, 100, dtype=np.float32), 0.01)
    save_calibration(gallery.folder, calibration, fingerprint=gallery.manifest.fingerprint, source="test")
    assert gallery.min_score == calibration.min_score > 0.4
    assert gallery.search(SENTENCE) == []
    assert len(gallery.search(SENTENCE, k=12, min_score=-1)) == 12


def test_a_stream_of_crops_is_compacted(gallery: Gallery, crops: Path) -> None:
    data = (crops / names(crops)[0]).read_bytes()
    monkey = pytest.MonkeyPatch()
    monkey.setattr("cskt.gallery.stores.lance.lance_store.MANY_FRAGMENTS", 4)
    for number in range(12):
        gallery.add([data], [f"live/{number}"])
    monkey.undo()
    stats = gallery._state.store._head.stats()  # type: ignore[attr-defined]
    assert stats["fragment_stats"]["num_fragments"] <= 6
    assert gallery.count() == 24


def test_an_empty_cell_deletes_a_value(gallery: Gallery, crops: Path) -> None:
    first, second = names(crops)[:2]
    gallery.index(metadata={first: {"camera": "c1", "hour": "7"}, second: {"camera": "c2"}})
    report = gallery.index(metadata={first: {"camera": "", "hour": "7"}, second: {"camera": None}})
    assert report.updated == 2
    assert dict(gallery.crop(first).metadata) == {"hour": 7}
    assert gallery.count("camera is not null") == 0
    gallery.add([crops / first], ["live"], [{"camera": "c3", "hour": 1}])
    gallery.add([crops / first], ["live"], [{"camera": None}])
    assert dict(gallery.crop("live").metadata) == {"hour": 1}


def test_a_value_of_another_kind_names_its_crop(gallery: Gallery, crops: Path) -> None:
    first = names(crops)[0]
    gallery.index(metadata={first: {"track": 1}})
    with pytest.raises(ValueError, match=f"{first}: column 'track': 'a7' is no number.*another name"):
        gallery.index(metadata={first: {"track": "a7"}})


def test_a_file_too_large_for_a_crop_is_not_read(gallery: Gallery, crops: Path) -> None:
    with (crops / "huge.jpg").open("wb") as file:
        file.truncate(20_000_000_000)
    [(name, reason)] = gallery.index().unreadable
    assert name == "huge.jpg"
    assert "20,000 MB; a file has at most 256 MB" in reason


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_threshold_must_be_finite(gallery: Gallery, score: float) -> None:
    with pytest.raises(ValueError, match="min_score is"):
        gallery.search(SENTENCE, min_score=score)


def test_grouping_without_metadata_is_refused(gallery: Gallery) -> None:
    with pytest.raises(ValueError, match="no metadata to group by 'track'; index with --metadata"):
        gallery.search(SENTENCE, group_by="track")


def test_a_gallery_describes_itself(gallery: Gallery, crops: Path) -> None:
    assert len(gallery) == 12 and names(crops)[0] in gallery and "nobody.jpg" not in gallery and None not in gallery
    assert repr(gallery).startswith(
        f"<Gallery '{gallery.folder}': 12 crops, model {gallery.manifest.model.path}, store"
    )


def test_old_names_work_and_warn_once(gallery: Gallery) -> None:
    messages._warned.clear()
    vectors = gallery.encode([Query(SENTENCE)])
    with pytest.warns(DeprecationWarning, match="SearchOptions"):
        old = gallery.search_vectors(vectors, 3, offset=1)
    assert (
        old
        == gallery.search_vectors(vectors, SearchOptions(3, offset=1))
        == gallery.search_vectors(vectors, 3, offset=1)
    )
    with pytest.warns(DeprecationWarning, match="Gallery.min_score"):
        assert gallery.cut_off is gallery.min_score
    with pytest.raises(CsktError, match="unknown option"):
        gallery.search_vectors(vectors, depth=3)
    with pytest.raises(AttributeError, match="'Gallery' object has no attribute 'size'"):
        gallery.size  # noqa: B018


def test_a_gallery_stores_the_source_of_its_encoder(encoder: Encoder, tiny_backbone: Path, tmp_path: Path) -> None:
    messages._warned.clear()
    with pytest.warns(DeprecationWarning, match="argument 'model'"):
        Gallery.create(tmp_path / "old-form", encoder, "another").close()
    assert read_manifest(tmp_path / "old-form").model.path == str(tiny_backbone)
    made = copy.copy(encoder)
    made.source = None
    with pytest.raises(CsktError, match="not made by cskt.load; state what to load it from"):
        Gallery.create(tmp_path / "unknown", made)
    other = write_backbone(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(CsktError, match="another model .* than the encoder .*encoder.save"):
        Gallery.create(tmp_path / "wrong", made, other)
    assert not (tmp_path / "wrong").exists()
    Gallery.create(tmp_path / "stated", made, str(tiny_backbone)).close()
    with Gallery.open(tmp_path / "stated", device="cpu") as gallery:
        assert gallery.encoder.fingerprint == encoder.fingerprint


def test_a_search_parses_its_filter_and_reads_the_state_of_the_manifest_once(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.index(metadata={name: {"camera": name[:4]} for name in gallery._state.store.files()})
    calls: list[str] = []
    for place, name in ((filters, "parse_filter"), (state, "state_of")):
        function = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *given, f=function: (calls.append(str(given[0])), f(*given))[1])
    assert len(gallery.search(SENTENCE, where="camera = 'cam0'", group_by="camera")) == 1
    assert calls.count("camera = 'cam0'") == calls.count(str(gallery.folder / MANIFEST)) == 1


def test_one_string_is_a_list_of_one(gallery: Gallery, crops: Path) -> None:
    assert gallery.search(SENTENCE, exclude="a hat") == gallery.search(SENTENCE, exclude=["a hat"])
    picture = crops / names(crops)[0]
    assert gallery.add(str(picture), "live/1", {"camera": "c1"}).added == 1
    assert gallery.uploaded("live/1") == {"live/1"}
    assert gallery.remove("live/1") == 1 and "live/1" not in gallery
    assert gallery.index(ignore="cam0").passed_over == {"ignored": 1}
    assert gallery.encoder.text_warnings("a man") == gallery.encoder.text_warnings(["a man"])
    with pytest.raises(TypeError, match="each of image_ids must be str, got int"):
        gallery.remove([5])  # type: ignore[list-item]


def test_only_the_same_model_is_remembered_at_another_place(gallery: Gallery, tmp_path: Path) -> None:
    before = gallery.manifest.model
    with pytest.raises(CsktError, match="nope"):
        gallery.remember_model("nope")
    with pytest.raises(CsktError, match="was filled by another model"):
        gallery.remember_model(write_backbone(tmp_path / "other.safetensors", seed=1))
    assert gallery.manifest.model == before and not gallery.remember_model(before.path)
    moved = shutil.copy(before.path, tmp_path / "moved.safetensors")
    with Gallery.open(gallery.folder, device="cpu") as opened:
        assert opened.remember_model(moved) and not opened.remember_model(moved)
    assert read_manifest(gallery.folder).model.path == str(moved)


def test_an_empty_filter_is_refused(gallery: Gallery) -> None:
    for read in (gallery.count, gallery.parse_filter, lambda where: gallery.search(SENTENCE, where=where)):
        with pytest.raises(CsktError, match="it is empty"):
            read(" ")
    with pytest.raises(TypeError, match="where must be "):
        gallery.count(5)  # type: ignore[arg-type]


def test_a_deprecated_call_is_shown_to_its_caller(gallery: Gallery) -> None:
    messages._warned.clear()
    with pytest.warns(DeprecationWarning) as caught:
        gallery.search_many([Query(SENTENCE)], k=2)
        gallery.kept  # noqa: B018
    assert {warning.filename for warning in caught} == {__file__}


def test_vectors_of_another_shape_are_refused(gallery: Gallery) -> None:
    vectors = gallery.encode([Query(SENTENCE)])
    for wrong in (vectors[0], vectors[:, :5], vectors * float("nan")):
        with pytest.raises(CsktError, match="vectors ha|vectors hold"):
            gallery.search_vectors(wrong)
    with pytest.raises(TypeError, match="vectors must be Tensor, got ndarray"):
        gallery.search_vectors(vectors.numpy())  # type: ignore[arg-type]
    with pytest.raises(CsktError, match="num_bins 0: must be at least 1"):
        gallery.histogram(vectors[0], num_bins=0)
    with pytest.raises(CsktError, match="vector have shape"):
        gallery.histogram(vectors)
    with pytest.raises(TypeError, match="image_id must be str"):
        gallery.crop(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="each of queries must be Query, got str"):
        gallery.search_many(["a man"])  # type: ignore[list-item]
