from __future__ import annotations

from pathlib import Path

import pytest
import tiny_clip


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny CLIP as OpenAI would publish it."""
    return tiny_clip.save_archive(tiny_clip.OpenAIClip(), tmp_path_factory.mktemp("archive") / "tiny.pt")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that does not exist yet."""
    monkeypatch.setenv("CSKT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
