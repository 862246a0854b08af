"""The file of a backbone is found by name, path or digest, or the error names what to download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_clip
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file
from tiny_clip import assert_tiny, open_clip_config, refused, with_changes

from cskt.config import BackboneConfig
from cskt.model.io import cache, hub_repository
from cskt.model.io.weights import load_backbone


@pytest.fixture
def published(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ViT-B/16 stands for the tiny archive, served from a folder."""
    folder = tmp_path / "server" / cache.sha256_of(archive)
    folder.mkdir(parents=True)
    served = folder / "ViT-B-16.pt"
    served.write_bytes(archive.read_bytes())
    monkeypatch.setitem(cache.PUBLISHED, "ViT-B/16", served.as_uri())
    return served


def test_published_addresses_are_openais() -> None:
    assert cache.PUBLISHED.keys() == {"ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"}
    for name, url in cache.PUBLISHED.items():
        digest = cache.published_sha256(name)
        assert digest is not None
        assert len(bytes.fromhex(digest)) == 32
        file_name = name.replace("/", "-").replace("@", "-") + ".pt"
        assert url == f"https://openaipublic.azureedge.net/clip/models/{digest}/{file_name}"


def test_published_name_is_downloaded_once(published: Path, empty_cache: Path) -> None:
    first = load_backbone(BackboneConfig(name="ViT-B/16"))
    assert_tiny(first.state)
    assert [path.name for path in empty_cache.iterdir()] == ["ViT-B-16.pt"]
    published.unlink()
    assert load_backbone(BackboneConfig(name="ViT-B/16")).sha256 == first.sha256 == published.parent.name


def test_wrong_download_is_not_kept(published: Path, empty_cache: Path) -> None:
    published.write_bytes(b"<html>a proxy's page</html>")
    assert "does not have the published SHA-256" in refused("ViT-B/16")
    assert not list(empty_cache.iterdir())


def test_without_network_the_file_and_its_place_are_named(published: Path, empty_cache: Path) -> None:
    url = published.as_uri()
    published.unlink()
    line = refused("ViT-B/16")
    assert url in line
    assert str(empty_cache / "ViT-B-16.pt") in line


def test_damaged_file_in_the_cache_is_reported(published: Path, empty_cache: Path) -> None:
    empty_cache.mkdir()
    (empty_cache / "ViT-B-16.pt").write_bytes(published.read_bytes()[:-5])
    assert "SHA-256 is not the published one; delete it" in refused("ViT-B/16")


def test_cache_is_searched_by_digest(archive: Path, empty_cache: Path, tmp_path: Path) -> None:
    digest = cache.sha256_of(archive)
    other = with_changes(lambda state: None, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=f"another backbone.*{digest}"):
        load_backbone(BackboneConfig(name=str(other)), sha256=digest)
    empty_cache.mkdir()
    (empty_cache / "renamed.pt").write_bytes(archive.read_bytes())
    for name in (str(other), str(tmp_path / "gone.pt")):
        assert_tiny(load_backbone(BackboneConfig(name=name), sha256=digest).state)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-16", "did you mean 'ViT-B/16'"),
        ("clip_tiny", "did you mean 'clip-tiny'"),
        ("nowhere/clip.pt", "no such file"),
    ],
)
def test_unknown_name_is_one_line(name: str, message: str) -> None:
    assert message in refused(name)


def test_folder_without_weights_lists_what_it_may_hold(tmp_path: Path) -> None:
    assert "model.safetensors" in refused(tmp_path)


def test_hugging_face_repository(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(tiny_clip.plain_state(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_config()))

    def unreachable(repository: str, *, timeout: float) -> None:
        raise ConnectionError("no network\nat all")

    def from_cache(repository: str, file_name: str, *, local_files_only: bool) -> str:
        assert repository == "someone/clip.v1-tiny" and local_files_only, "huggingface_hub would try for minutes"
        if not (tmp_path / file_name).is_file():
            raise LocalEntryNotFoundError(f"{file_name} is not cached")
        return str(tmp_path / file_name)

    monkeypatch.setattr(hub_repository, "model_info", unreachable)
    monkeypatch.setattr(hub_repository, "hf_hub_download", from_cache)
    assert_tiny(load_backbone(BackboneConfig(name="someone/clip.v1-tiny")).state)
    (tmp_path / "open_clip_config.json").unlink()
    line = refused("someone/clip.v1-tiny")
    assert line.endswith("download its files and give their folder (no network)")


def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repository: str, *_: str, **__: float) -> str:
        raise HFValidationError("Repo id must not start with '-'\n(see the documentation)")

    monkeypatch.setattr(hub_repository, "model_info", fail)
    monkeypatch.setattr(hub_repository, "hf_hub_download", fail)
    assert "must not start with" in refused("-someone/private")
