"""Searching by HTTP returns the same hits as in Python."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import itertools
import json
import re
import struct
import threading
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from doll_service import TOKEN, WRITER, Ask, name_of, refusal

from cskt.data.images import ImageReader
from cskt.data.sentences import MAX_SENTENCE_CHARACTERS
from cskt.embed import Encoder
from cskt.gallery import reading
from cskt.gallery.calibration import Calibration, save_calibration
from cskt.gallery.gallery import Gallery
from cskt.service import uploads
from cskt.types import Hit

SENTENCE = "a man in a red coat"


def as_json(hits: list[Hit]) -> list[dict[str, Any]]:
    """Hits of Python as the service answers them: times name their zone."""
    found = json.loads(json.dumps([dataclasses.asdict(hit) for hit in hits]))
    for hit in found:
        hit["metadata"]["time"] += "Z"
    return found


def without_scores(hits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in hit.items() if name != "score"} for hit in hits]


def test_hits_equal_those_of_the_gallery(ask: Ask, gallery: Gallery) -> None:
    answer = ask(gallery).post("/api/search", json={"text": SENTENCE}).raise_for_status().json()
    expected = as_json(gallery.search(SENTENCE))
    assert len(expected) == 10
    assert without_scores(answer["hits"]) == without_scores(expected)
    scores, expected_scores = ([hit["score"] for hit in hits] for hits in (answer["hits"], expected))
    assert scores == pytest.approx(expected_scores, abs=1e-6)  # another thread may round differently
    assert answer["cut_off"] is None and answer["histogram"] is None and answer["seconds"] > 0


def test_every_field_of_a_search_counts(ask: Ask, gallery: Gallery, crops: Path) -> None:
    picture = (crops / name_of(7)).read_bytes()
    asked = {
        "text": SENTENCE, "like": name_of(3), "exclude": ["a hat", "a bag"], "text_weight": 0.7, "image_weight": 1.5,
        "exclude_weight": 0.3, "where": "camera != 'c1'", "k": 7, "offset": 2, "group_by": "track",
    }  # fmt: skip
    client = ask(gallery)
    sent = asked | {"image": base64.b64encode(picture).decode(), "min_score": -0.5}
    hits = client.post("/api/search", json=sent).raise_for_status().json()["hits"]
    expected = gallery.search(image=picture, min_score=-0.5, **asked)
    assert len(hits) == 7
    for hit, other in zip(hits, as_json(expected), strict=True):
        assert hit.pop("score") == pytest.approx(other.pop("score"), abs=1e-6)
        assert hit == other
    for left_out in ("text", "like", "exclude", "text_weight", "image_weight", "where", "offset", "image"):
        without = {name: value for name, value in sent.items() if name != left_out}
        scores = [hit["score"] for hit in client.post("/api/search", json=without).json()["hits"]]
        assert scores != [hit.score for hit in expected], left_out


def test_pages_join_to_the_whole_answer(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    whole = client.post("/api/search", json={"text": SENTENCE, "k": 40}).json()["hits"]
    parts = [client.post("/api/search", json={"text": SENTENCE, "k": 15, "offset": at}).json() for at in (0, 15, 30)]
    joined = [hit for part in parts for hit in part["hits"]]
    assert len(joined) == len(whole) == 40
    for hit, other in zip(joined, whole, strict=True):  # each request encodes the sentence anew, with its own rounding
        assert hit.pop("score") == pytest.approx(other.pop("score"), abs=1e-6)
        assert hit == other


def between(scores: list[float]) -> list[float]:
    """Thresholds in the middle of neighbouring scores: the last digits depend on what is encoded in the same batch."""
    return [(higher + lower) / 2 for higher, lower in itertools.pairwise(scores)]


def test_a_threshold_removes_lower_scores(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    scores = [hit["score"] for hit in client.post("/api/search", json={"text": SENTENCE, "k": 40}).json()["hits"]]
    threshold = between(scores)[4]
    some = client.post("/api/search", json={"text": SENTENCE, "k": 40, "min_score": threshold}).json()
    assert [hit["score"] for hit in some["hits"]] == pytest.approx(scores[:5], abs=1e-6)
    assert some["cut_off"] == threshold
    assert client.post("/api/search", json={"text": SENTENCE, "min_score": 1.0}).json()["hits"] == []


def test_the_threshold_is_the_one_calibrated_last(ask: Ask, own_gallery: Gallery) -> None:
    scores = [hit.score for hit in own_gallery.search(SENTENCE)]

    def calibrate(min_score: float) -> None:
        """As `cskt calibrate` does in another process."""
        calibration = Calibration(
            min_score=min_score, asked_rate=0.5, false_match_rate=0.5, interval=(0.1, 0.9), match_rate=1.0, num_right=1,
            num_wrong=2,
        )  # fmt: skip
        fingerprint = own_gallery.manifest.fingerprint
        save_calibration(own_gallery.folder, calibration, fingerprint=fingerprint, source="marks")

    calibrate(scores[0])
    client = ask(own_gallery)
    for num_hits, threshold in enumerate(between(scores)[:3], start=1):
        calibrate(threshold)
        answer = client.post("/api/search", json={"text": SENTENCE}).json()
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx(scores[:num_hits], abs=1e-6)
        assert answer["cut_off"] == threshold == client.get("/api/gallery").json()["cut_off"]
    assert len(client.post("/api/search", json={"text": SENTENCE, "min_score": -1}).json()["hits"]) == 4


def test_the_histogram_counts_the_filtered_crops(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    for where, count in ((None, 40), ("camera = 'c3'", 10)):
        answer = client.post("/api/search", json={"text": SENTENCE, "where": where, "histogram": True, "k": 1}).json()
        assert sum(answer["histogram"]["counts"]) == count
        assert len(answer["histogram"]["edges"]) == len(answer["histogram"]["counts"]) + 1


def test_answers_have_warnings_about_the_sentences(ask: Ask, gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    client, long = ask(gallery), "a man " * 80
    cut = "the model reads 77 tokens of the sentence, which has 162; shorten it"
    assert client.post("/api/search", json={"text": SENTENCE}).json()["warnings"] == []
    assert client.post("/api/search", json={"like": name_of(1)}).json()["warnings"] == []
    tokenizer = gallery.encoder.tokenizer
    monkeypatch.setattr(tokenizer, "known_ids", frozenset(tokenizer.encode(f"{SENTENCE} with hat")))
    unknown = "the model has never seen the word 'purplish', which adds noise"
    asked = {"text": "a purplish " + long, "exclude": ["a purplish hat", long, "a hat"]}
    for _ in range(2):  # not once per process: each client needs to know
        assert client.post("/api/search", json=asked).json()["warnings"] == [
            cut.replace("162", "166"),
            unknown,
            f"excluded sentence 1: {unknown}",
            f"excluded sentence 2: {cut}",
        ]
    one = {"like": name_of(1), "exclude": ["purplish"]}
    assert client.post("/api/search", json=one).json()["warnings"] == [f"excluded sentence: {unknown}"]
    explained = client.post("/api/explain", json={"text": "a purplish man", "image_id": name_of(5)}).json()
    assert explained["warnings"] == [unknown]


def test_the_length_of_a_sentence_is_limited(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    assert client.get("/api/gallery").json()["limits"]["sentence_characters"] == MAX_SENTENCE_CHARACTERS == 2000
    longest = "x" * MAX_SENTENCE_CHARACTERS

    def asked(text: str) -> list[tuple[str, dict[str, Any]]]:
        mark = {"text": text, "image_id": name_of(0), "right": True}
        return [
            ("/api/search", {"text": text}), ("/api/search", {"like": name_of(0), "exclude": [text]}),
            ("/api/explain", {"text": text, "image_id": name_of(0)}),
            ("/api/marks/export", {"format": "csv", "marks": [mark]}),
        ]  # fmt: skip

    for path, body in asked(longest):
        assert client.post(path, json=body).status_code == 200, path
    for path, body in asked(longest + "x"):
        status, code, message = refusal(client.post(path, json=body))
        assert (status, code) == (422, "too_much") and "2,000 characters, not 2,001" in message
    gallery.search(longest)
    for call in (lambda: gallery.search(longest + "x"), lambda: gallery.explain(name_of(0), longest + "x")):
        with pytest.raises(ValueError, match="a sentence of 2,001 characters; give at most 2,000"):
            call()
    assert len(gallery.encoder.encode_text([longest * 3])) == 1, "a data set's captions are cut, not refused"


def test_an_explanation_covers_the_crop(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    asked = {"text": "a red coat", "image_id": name_of(5)}
    answer = client.post("/api/explain", json=asked).raise_for_status().json()
    expected = gallery.explain(name_of(5), "a red coat")
    assert answer["score"] == pytest.approx(expected.score, abs=1e-6)
    assert [word["word"] for word in answer["words"]] == [word for word, _ in expected.words] != []
    for heat in (answer["sentence"], *(word["heat"] for word in answer["words"])):
        assert len(heat) == answer["rows"] and {len(row) for row in heat} == {answer["columns"]}
        assert all(0 <= value <= 1 for row in heat for value in row)


def test_facts_of_the_gallery(ask: Ask, gallery: Gallery, tiny_backbone: Path) -> None:
    answer = ask(gallery).get("/api/gallery").raise_for_status().json()
    assert answer["name"] == "dolls" and answer["count"] == 40
    assert answer["model"]["name"] == tiny_backbone.name, "not its folder"
    assert answer["limits"] == {"k": 500, "sentence_characters": 2000, "image_bytes": 10 * 2**20}
    assert answer["writable"] is False and answer["token_needed"] is False
    columns = {column["name"]: column for column in answer["columns"]}
    assert columns["camera"]["values"] == [{"value": f"c{number}", "count": 10} for number in range(4)]
    assert columns["time"]["kind"] == "time"
    assert (columns["time"]["minimum"], columns["time"]["maximum"]) == ("2026-01-01T00:00:00Z", "2026-01-20T00:00:00Z")
    assert (columns["track"]["minimum"], columns["track"]["maximum"]) == (0, 19)


def test_marks_are_exported_as_files(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    marks = [
        {"text": "=1+1", "image_id": name_of(0), "right": True},
        {"text": SENTENCE, "image_id": name_of(1), "right": False},
    ]
    table = client.post("/api/marks/export", json={"format": "csv", "marks": marks})
    assert table.headers["content-type"].startswith("text/csv")
    assert table.headers["content-disposition"] == 'attachment; filename="marks.csv"'
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert [(row["image"], row["right"]) for row in rows] == [(name_of(0), "1"), (name_of(1), "0")]
    assert not rows[0]["text"].startswith("="), "a spreadsheet would run it"
    records = client.post("/api/marks/export", json={"format": "jsonl", "marks": marks})
    assert records.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line)["captions"] for line in records.text.splitlines()] == [["=1+1"]]


def test_training_data_leave_out_uploaded_crops(ask: Ask, own_gallery: Gallery, crops: Path) -> None:
    own_gallery.add([crops / name_of(8)], ["live/1"])
    marks = [
        {"text": text, "image_id": image_id, "right": right}
        for text, image_id, right in (
            ("a\u2028man", name_of(0), True), ("a\u2028man", "live/1", True), ("a thief", "live/1", True),
            ("a thief", name_of(1), True), ("a woman", name_of(2), True), ("a woman", "live/1", False),
        )
    ]  # fmt: skip
    client = ask(own_gallery)
    answer = client.post("/api/marks/export", json={"format": "jsonl", "marks": marks})
    records = [json.loads(line) for line in answer.text.removesuffix("\n").split("\n")]
    assert [record["image"] for record in records] == [name_of(0), name_of(1), name_of(2)]
    assert answer.headers["x-left-out"] == "1", "one crop, whatever the number of its marks"
    pids = [record["pid"] for record in records]
    assert pids[0] == pids[1] != pids[2], "the crop that is left out shows that both sentences are of one person"
    table = client.post("/api/marks/export", json={"format": "csv", "marks": marks})
    assert table.text.count("live/1") == 3 and table.headers["x-left-out"] == "0"
    alone = client.post("/api/marks/export", json={"format": "jsonl", "marks": marks[1:3]})
    assert (alone.text, alone.headers["x-left-out"]) == ("", "1")


def test_every_time_names_its_zone(ask: Ask, own_gallery: Gallery, crops: Path) -> None:
    """A time of an answer can be used in a filter and as metadata."""
    client = ask(own_gallery, token=TOKEN)
    written = {"live/1": "2026-02-03T04:05:06.25+02:00", "live/2": "2026-02-03 04:05", "live/3": "2026-02-03T04:05:00Z"}
    picture = base64.b64encode((crops / name_of(8)).read_bytes()).decode()
    sent = [{"image_id": name, "image": picture, "metadata": {"time": time}} for name, time in written.items()]
    client.post("/api/crops", json={"crops": sent}, headers=WRITER).raise_for_status()
    times = {
        "live/1": "2026-02-03T02:05:06.250000Z",
        "live/2": "2026-02-03T04:05:00Z",
        "live/3": "2026-02-03T04:05:00Z",
    }
    for name, time in times.items():
        assert client.get("/api/crop", params={"id": name}).json()["metadata"]["time"] == time
        same = {"text": SENTENCE, "where": f"time = '{time}'"}
        hits = client.post("/api/search", json=same).json()["hits"]
        assert {hit["image_id"]: hit["metadata"]["time"] for hit in hits} == {
            other: value for other, value in times.items() if value == time
        }
        assert datetime.fromisoformat(time).utcoffset() == timedelta(0)
    columns = {column["name"]: column for column in client.get("/api/gallery").json()["columns"]}
    found = [columns["time"]["minimum"], columns["time"]["maximum"]]
    found += [value["value"] for value in columns["time"]["values"]]
    assert columns["time"]["maximum"] == times["live/2"] and all(time.endswith("Z") for time in found)


def test_requests_are_written_to_the_audit_log(
    ask: Ask, gallery: Gallery, noted: Callable[[], Any], crops: Path
) -> None:
    client = ask(gallery)
    picture = base64.b64encode((crops / name_of(1)).read_bytes()).decode()
    client.post("/api/search", json={"text": "line\none", "image": picture, "where": "camera = 'c1'", "k": 3})
    client.post("/api/search", json={"text": SENTENCE, "where": "colour = 'red'"})
    client.post("/api/explain", json={"text": SENTENCE, "image_id": name_of(2)})
    client.get("/api/image", params={"id": name_of(2)})
    client.post("/api/marks/export", json={"format": "csv", "marks": []})
    lines = noted()
    assert all(line.pop("time").endswith("+00:00") and line.pop("client") == "testclient" for line in lines)
    assert lines == [
        {"action": "search", "text": "line\none", "image": True, "where": "camera = 'c1'", "k": 3, "hits": 3},
        {"action": "search", "text": SENTENCE, "where": "colour = 'red'", "k": 10, "error": "bad_filter"},
        {"action": "explain", "text": SENTENCE, "image_id": name_of(2)},
        {"action": "image", "image_id": name_of(2)},
        {"action": "export", "format": "csv", "marks": 0},
    ]


def test_pictures_are_decoded_and_resized_outside_the_encoding_thread(
    ask: Ask, gallery: Gallery, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoding thread receives pixels of the model's size, and opens no file."""
    threads: dict[str, set[str]] = {"decode": set(), "resize": set(), "encode": set()}

    def recording(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **settings: Any) -> Any:
            threads[kind].add(threading.current_thread().name.rstrip("0123456789_-"))
            return call(*arguments, **settings)

        return noted

    monkeypatch.setattr(uploads, "decode_image", recording("decode", uploads.decode_image))
    monkeypatch.setattr(reading, "resize", recording("resize", reading.resize))
    monkeypatch.setattr(ImageReader, "read", None)
    encode, sizes = Encoder.encode_image, []

    def encode_noted(encoder: Encoder, images: Any, **settings: Any) -> Any:
        sizes.append(tuple(images.shape[1:]))
        return encode(encoder, images, **settings)

    monkeypatch.setattr(Encoder, "encode_image", recording("encode", encode_noted))
    picture = base64.b64encode((crops / name_of(7)).read_bytes()).decode()
    hits = ask(gallery).post("/api/search", json={"image": picture, "k": 1}).raise_for_status().json()["hits"]
    assert hits[0]["image_id"] == name_of(7)
    assert threads == {"decode": {"decode"}, "resize": {"decode"}, "encode": {"encode"}}
    assert sizes == [(3, *gallery.encoder.image_size)]


@pytest.mark.parametrize("size", [(1, 60), (1, 23_900_000), (64_000_000, 1), (30_001, 700)])
def test_narrow_images_are_refused_from_their_header(
    ask: Ask, gallery: Gallery, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "decode_image", None)
    picture = base64.b64encode(png_header(*size)).decode()
    answer = ask(gallery).post("/api/search", json={"image": picture})
    assert refusal(answer)[:2] == (422, "bad_image")
    assert re.search("at most (50 times the short side|30,000 pixels)", answer.text)


def png_header(width: int, height: int) -> bytes:
    """A PNG of one-bit grey whose pixels are missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
