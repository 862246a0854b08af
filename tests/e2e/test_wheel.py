"""The wheel, installed outside the checkout, contains everything that the tour needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from command_line import REPOSITORY
from test_documentation import commands_in

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that builds leave nothing in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(REPOSITORY / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPOSITORY / name, source)
    words = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([sys.executable, *words], capture_output=True, check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_has_all_files_of_the_package(wheel: Path) -> None:
    package = REPOSITORY / "src" / "cskt"
    expected = {f"cskt/{path.relative_to(package).as_posix()}" for path in package.rglob("*") if path.is_file()}
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in expected if "__pycache__" not in name and not name.endswith(".md")} <= files
    assert any(name.endswith("licenses/NOTICE") for name in files)


@pytest.mark.timeout(1200)
def test_installed_wheel_passes_the_tour(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    install = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], capture_output=True, check=True)
    # the dependencies are those of this environment; the new one comes first on the path
    (Path(where) / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    work = tmp_path / "work"
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = os.pathsep.join([str(python.parent), environment["PATH"]])
    found = subprocess.run(
        [python, "-c", "import cskt; print(cskt.__file__)"], cwd=work, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert found.stdout.startswith(where)
    for command in commands_in((REPOSITORY / "docs" / "tour.md").read_text(encoding="utf-8")):
        ended = subprocess.run(
            command, shell=True, cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"{command}\n{ended.stderr}"
    assert (work / "answer.html").is_file() and (work / "dolls-run.safetensors").is_file()
