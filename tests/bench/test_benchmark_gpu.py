"""Benchmark of a GPU: its counts, its captions, and running it with torch and numpy only."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flops, gpu, gpu_step
from benchmarks.naive import NaiveEncoder
from cskt.config import AdapterConfig, ClipArchitecture, PromptConfig
from cskt.model.dual_encoder import DualEncoder

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
VIT_B_16 = ClipArchitecture(image_height=384, image_width=128)
THIN = ClipArchitecture(
    embed_dim=16, image_height=64, image_width=32, vision_width=64, vision_layers=2, vision_heads=2, text_width=32,
    text_layers=2, text_heads=2, vocab_size=200,
)  # fmt: skip
NUM_PAIRS, LENGTH = 128, 37

BARE = """
import runpy, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

root = sys.argv[1]
ALLOWED = sys.stdlib_module_names | {
    "benchmarks", "cskt", "torch", "torchgen", "functorch", "numpy",
    "filelock", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec",
}

class NothingElse:
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        return PathFinder.find_spec(name, path, target) if top in ALLOWED or top.startswith("_sysconfigdata") else None

# An installed cskt must not help: neither its path nor the finder of an editable installation.
sys.path[:] = [root, *(path for path in sys.path if Path(path or ".").resolve() != Path(root, "src"))]
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, NothingElse]
try:
    import cskt
except ImportError:
    pass
else:
    sys.exit("cskt is importable before the benchmark has put the checkout's src on the path")
sys.argv = ["benchmarks.gpu", *sys.argv[2:]]
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_runs_with_torch_and_numpy_alone(tmp_path: Path) -> None:
    """Environment with a checkout, without pydantic and without an installed cskt."""
    written = tmp_path / "gpu.json"
    arguments = "--device cpu --layers 1 --batch-size 4 --steps 1 --groups 1 --matrix-size 64 --forms float32 graph"
    command = [sys.executable, "-c", BARE, str(ROOT), *arguments.split(), "--json", str(written)]
    done = subprocess.run(
        command, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(written.read_text(encoding="utf-8"))
    assert rows[0]["stood_in_for"] == ["annotated_types", "pydantic", "pydantic_core", "yaml", "PIL", "simplejpeg"]
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] == rows
    measured = [row for row in rows if "milliseconds" in row]
    assert [row["form"] for row in measured] == ["float32"]
    row = measured[0]
    assert row["pairs_per_second"] == pytest.approx(4000 / row["milliseconds"])
    assert row["minutes_of_60_epochs"] == pytest.approx(60 * 68_126 / row["pairs_per_second"] / 60)
    assert row["mfu"] * rows[0]["matrix_tflops"] == pytest.approx(row["tflop"] / row["milliseconds"] * 1000)
    recorded = [row for row in rows if row.get("not_run")]
    assert {row["not_run"] for row in recorded} == {"CUDA graphs need CUDA"}
    assert [row["form"] for row in recorded] == [form.name for form in gpu_step.FORMS if form.graph]


@pytest.mark.slow
@pytest.mark.parametrize("wiring", ["ours", "released"])
def test_counted_operations_equal_those_of_torch(wiring: str) -> None:
    """Forward and backward pass separately, on the meta device; our count leaves out less than 0.2 % at 128 pairs."""
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        prompts, adapters = PromptConfig(), AdapterConfig()
        model: nn.Module = DualEncoder(VIT_B_16, {"prompts": prompts, "adapters": adapters})
        if wiring == "released":
            assert isinstance(model, DualEncoder)
            model, expected = NaiveEncoder.of(model), flops.released_step(VIT_B_16, prompts, adapters, NUM_PAIRS)
        else:
            expected = flops.cskt_step(VIT_B_16, prompts, adapters, [LENGTH] * NUM_PAIRS)
        with FlopCounterMode(display=False) as counter:
            features = model(torch.empty(NUM_PAIRS, 3, 384, 128), torch.zeros(NUM_PAIRS, LENGTH, dtype=torch.int64))
            forward = counter.get_total_flops()
            torch.autograd.backward(torch.cat(features).sum())
    assert forward == pytest.approx(expected.forward, rel=2e-3)
    assert counter.get_total_flops() == pytest.approx(expected.total, rel=2e-3)


def test_captions_have_the_published_lengths() -> None:
    """23.5 words on average and 96 in the longest of 80,412, at 1.5 tokens to a word with start and end."""
    tokens = gpu_step.draw_lengths(1_000_000, 1000, torch.Generator().manual_seed(0))
    assert float(tokens.double().mean()) == pytest.approx(2 + 1.5 * 23.5, abs=0.1)
    beyond = int((tokens > 2 + 1.5 * 96).sum())
    assert 3 <= beyond <= 30  # of a million, 12.4 are expected
    assert int(gpu_step.draw_lengths(1000, 69, torch.Generator().manual_seed(0)).max()) == 69


@pytest.fixture(scope="module")
def thin() -> DualEncoder:
    return gpu._random_model(THIN)


def test_groups_contain_their_captions(thin: DualEncoder) -> None:
    """No caption of a batch is cut, and the counted lengths are right."""
    batches = gpu._batches(thin, 12, 3)
    lengths = gpu_step.part_lengths(batches, 3)
    assert list(lengths) == sorted(lengths)
    assert lengths[0] < lengths[-1]
    for batch in batches:
        for part, length in zip(batch.caption_ids.chunk(3), lengths, strict=True):
            assert not part[:, length:].any()
        ends = [int((row == THIN.vocab_size - 1).nonzero()) for row in batch.caption_ids]
        assert gpu_step.lengths_of(batch) == [end + 1 for end in ends]


def first_steps(model: DualEncoder, form: gpu_step.Form) -> gpu.FirstSteps:
    batches = gpu._batches(model, 8, 2)
    step = gpu_step.TrainingStep(model, form, gpu_step.part_lengths(batches, form.parts), CPU)
    step.warm_up(*next(gpu._inputs(batches, 1, CPU)))
    return gpu.first_steps(step, batches, CPU)


def test_variants_agree_in_float32(thin: DualEncoder) -> None:
    """Groups of captions, recomputation, fused AdamW and the released computation change rounding only."""
    forms = [dataclasses.replace(form, precision="fp32", frozen_bf16=False) for form in gpu_step.FORMS]
    runnable = [form for form in forms if not form.compiled and not form.graph]
    assert {(form.released, form.fused, form.parts, form.checkpointed) for form in runnable} == {
        (False, True, 1, False), (True, False, 1, False), (False, False, 1, False), (False, True, 2, False),
        (False, True, 1, True),
    }  # fmt: skip
    right = first_steps(thin, runnable[0])
    assert len(set(right.losses)) == 3
    for form in runnable[1:]:
        ours = first_steps(thin, form)
        assert ours.losses == pytest.approx(right.losses, rel=1e-4), form.name
        assert gpu._difference(ours.gradients, right.gradients) < 1e-4, form.name


def test_first_gradients_are_those_of_the_loss(thin: DualEncoder) -> None:
    """`first_gradients` reads the gradients from Adam's first moment."""
    batches = gpu._batches(thin, 8, 1)
    step = gpu_step.TrainingStep(thin, gpu_step.Form("float32", precision="fp32"), (69,), CPU)
    images, caption_ids, pids = next(gpu._inputs(batches, 1, CPU))
    trained = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
    loss = gpu.losses.sdm(*step.features(images, caption_ids), pids)
    gradients = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, trained)])
    step(images, caption_ids, pids)
    torch.testing.assert_close(step.first_gradients(), gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_frozen_layers_in_bf16_equal_autocast(thin: DualEncoder) -> None:
    """Bit-equal results, because autocast would round the same weights."""
    plain, held = (gpu_step.Form("", frozen_bf16=frozen_bf16) for frozen_bf16 in (False, True))
    ours, theirs = first_steps(thin, held), first_steps(thin, plain)
    assert ours.losses == theirs.losses
    assert torch.equal(ours.gradients, theirs.gradients)


def test_a_wrong_result_fails(thin: DualEncoder) -> None:
    """Values beyond their bound, NaN, and synchronisations are reported."""
    row = {"milliseconds": 10.0, "tflop": 1.0, "released_tflop": 2.0, "waits_for_device": []}
    gradients = torch.ones(4)
    right = gpu.FirstSteps([3.0, 2.0], gradients)

    def judge(losses: list[float], gradients: Tensor = gradients, **changed: object) -> list[str]:
        return gpu.judged(row | changed, 400.0, gpu.FirstSteps(losses, gradients), right)["failed"]

    assert judge([3.0, 2.01]) == []
    assert judge([3.0, 2.1]) == ["loss_difference 0.05 above 0.02"]
    assert judge([3.0, float("nan")]) == ["loss_difference nan above 0.02"]
    assert judge([float("nan"), 2.0]) == ["loss_difference nan above 0.02"]
    assert judge([3.0, 2.0], -gradients) == ["gradient_difference 2 above 0.15"]
    assert judge([3.0, 2.0], waits_for_device=["x.py:3"]) == ["waits for the device at x.py:3"]
    assert gpu.judged(row, 400.0, right, None)["mfu"] == pytest.approx(100 / 400)


def test_other_variants_run_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The failure is reported with its reason and sets the exit code."""

    def measure(form: gpu_step.Form, *rest: object) -> tuple[dict[str, object], gpu.FirstSteps]:
        if form.fused:
            raise RuntimeError("out of memory\nand more")
        figures = (
            "milliseconds",
            "pairs_per_second",
            "minutes_of_60_epochs",
            "tflop",
            "released_tflop",
            "peak_memory_gb",
        )
        return dict.fromkeys(figures, 1.0) | {"waits_for_device": []}, gpu.FirstSteps([1.0], torch.ones(1))

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "_random_model", lambda architecture: None)
    monkeypatch.setattr(gpu, "_batches", lambda *rest: [None])
    monkeypatch.setattr(gpu, "check_arithmetic", lambda *rest: {"check": "none", "failed": []})
    monkeypatch.setattr(gpu, "encode", lambda *rest: {"check": "none"})
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--matrix-size", "8", "--forms", "fused", "eager"])
    assert gpu.main() == 1
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    rows = {row["form"]: row for row in map(json.loads, lines[:6]) if "form" in row}
    assert rows["eager"]["failed"] == []
    assert rows["fused AdamW"]["failed"] == ["out of memory"]
    assert rows["eager kernels, graph"]["not_run"] == "CUDA graphs need CUDA"
    assert [line.split("  ")[0] for line in lines[7:-1]] == ["eager", "fused AdamW", "eager kernels, graph"]
