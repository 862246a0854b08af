"""Check of cskt on a GPU, and its speed there: the first thing to run on a device that is new to it.

    make gpu-check                                              # at most 4 minutes
    PYTHONPATH=src python -m benchmarks.gpu_check --json gpu-check.json       # in an environment of your own
    python -m benchmarks.gpu_check --device cpu                 # a trial of the program itself, at tiny sizes

Needs a checkout, torch 2.10 or newer and the packages that cskt itself needs; no data, no weights. The data are
generated pedestrians and the weights are random. Every part runs in a process of its own and calls the commands of
cskt; one that fails, crashes or takes too long is reported, and the next one follows. Results are compared with those
of the same command on the CPU. What the machine cannot run, such as two processes on one GPU, is skipped and reported.

MFU is the operations that the method needs (`flops`) divided by those of a bfloat16 product of large matrices in the
same time, measured in the same run.

Exit code: 0 if no check failed (skipped ones do not count), 1 if one failed, 2 if there is no such device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

from benchmarks import flops
from cskt import metrics
from cskt.cli.main import main as cskt
from cskt.config import AdapterConfig, ClipArchitecture, PromptConfig, load_config
from cskt.config.file_names import LAST
from cskt.data.images import normalise
from cskt.data.paperdoll import make_dataset
from cskt.data.prefetcher import Prefetcher
from cskt.device import PRECISIONS, arithmetic, pick_device
from cskt.embed import Encoder, load
from cskt.errors import CsktError
from cskt.evaluation.evaluate import encode_split, split_of
from cskt.explain import explain
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.tensors import load_plain
from cskt.training.context import prepare
from cskt.training.step import forward_backward, generator_of, optimizer_step

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
LEAST_SECONDS = 10
"""No part is begun with less time left."""
EPOCHS, PAIRS_OF_EPOCH, VAL_IMAGES, VAL_CAPTIONS = 60, 68_126, 3_078, 6_158
"""CUHK-PEDES: training pairs, and images and captions of the evaluation after each epoch."""
SENTENCE = "a woman in a red coat with a brown bag"
SMALL = {
    "embed_dim": 64, "image_height": 128, "image_width": 64, "vision_width": 128, "vision_layers": 3,
    "vision_heads": 2, "text_width": 128, "text_layers": 3, "text_heads": 2,
}  # fmt: skip
"""CLIP of the checks: heads of 64 as in all of OpenAI's, so the kernels are those of the large models."""
TINY = SMALL | {"image_height": 64, "image_width": 32, "vision_layers": 1, "text_layers": 1}
VIT_B_16 = {"image_height": 384, "image_width": 128}
VIT_L_14 = VIT_B_16 | {
    "embed_dim": 768, "patch_size": 14, "stride": 14, "vision_width": 1024, "vision_layers": 24, "vision_heads": 16,
    "text_width": 768, "text_layers": 12, "text_heads": 12,
}  # fmt: skip
METHODS = {"lora": 1e-3, "up-person": 1e-3, "dm-adapter": 1e-3, "rde": 2e-2, "tbps-clip": 1e-3}
"""Recipes of the part `methods`, each with the largest relative difference between its losses and those on the CPU. RDE
selects tokens: rounding may select others, and the losses of later steps then differ more."""
LOSS_BOUNDS = {"fp32": 1e-3, "bf16": 1e-2, "fp16": 1e-2}
"""Largest relative difference between the losses of a run and those of the float32 run on the CPU."""
KERNEL_BOUNDS = {"features": {"fp32": 1e-4, "half": 0.03}, "gradients": {"fp32": 1e-3, "half": 0.15}}
"""Largest relative norm of the difference from the CPU. In bf16 a CPU itself differs by 0.007 and 0.045."""
AVERAGE_BOUND = 1e-2
"""Largest relative norm of the difference between moving averages of the weights."""
WAIT = "called a synchronizing"
"""Text of torch's warning of a wait. Another warning says once that the mode which finds waits is a prototype."""
TF32_OVERRIDE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
"""Variable of the environment, set in some containers, that rounds float32 products on CUDA to TF32."""
FEATURE_BOUNDS = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 3e-2}
"""Largest difference between unit vectors, as the norm of the difference of two rows."""


@dataclass(frozen=True)
class Task:
    """Arguments of a part: the device, the folder of this check, and the file of its results."""

    device: torch.device
    work: Path
    results: Path
    small: bool
    """True for a trial of the program: tiny sizes, whose speed says nothing."""

    def record(self, check: str, **values: Any) -> None:
        """Add a row to the results at once: what a part has done counts even if it is ended."""
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": self.results.stem, "check": check} | values) + "\n")

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions to check: fp16 is for GPUs."""
        return PRECISIONS if self.device.type == "cuda" else ("fp32", "bf16")

    def compare(self, check: str, value: float, bound: float = LOSS_BOUNDS["fp32"], **values: Any) -> None:
        """Record a difference, which passes if it is at most the bound; NaN does not."""
        self.record(check, value=value, bound=bound, passed=bool(value <= bound), **values)

    def skip(self, check: str, reason: str) -> None:
        """Record a check that cannot run here."""
        self.record(check, skipped=reason)


@dataclass(frozen=True)
class Part:
    """A part of the check."""

    run: Callable[[Task], None]
    seconds: float
    """Time limit of the part."""


def machine(task: Task) -> None:
    """Describe the device and measure its ceilings."""
    on_cuda = task.device.type == "cuda"
    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    facts["device"] = torch.cuda.get_device_name(task.device) if on_cuda else platform.processor() or str(task.device)
    facts["float32_products"] = torch.get_float32_matmul_precision()
    if on_cuda:
        found = torch.cuda.get_device_properties(task.device)
        facts |= {"cuda": torch.version.cuda, "capability": f"{found.major}.{found.minor}"}
        facts |= {"memory_gb": found.total_memory / 1e9, "devices": torch.cuda.device_count()}
    size = 256 if task.small else 8192
    left, right = (torch.randn(size, size, device=task.device).bfloat16() for _ in range(2))
    product = _median_seconds(lambda: left @ right, task.device)
    source = torch.zeros(64 * size * size, dtype=torch.uint8, device=task.device)
    copy = _median_seconds(source.clone, task.device)
    task.record(
        "machine", **facts, matrix_tflops=2 * size**3 / product / 1e12, copy_gb_per_s=2 * source.numel() / copy / 1e9
    )


def kernels(task: Task) -> None:
    """Compare features and gradients with the CPU: patches, and attention with a mask and one query per caption."""
    generator = torch.Generator().manual_seed(1)
    sizes = ClipArchitecture(**SMALL)
    model = DualEncoder(sizes, {"prompts": PromptConfig(depth=3, length=3), "adapters": AdapterConfig(init="normal")})
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    images = normalise(torch.randint(256, (8, 3, 128, 64), dtype=torch.uint8, generator=generator))
    for length in (3, 8, 37, 70):
        ids = torch.randint(1, sizes.vocab_size - 2, (8, length), generator=generator)
        ids[:, 0] = sizes.vocab_size - 2
        ends = torch.randint(2, length, (8, 1), generator=generator) if length > 3 else torch.full((8, 1), 2)
        ids.scatter_(1, ends, sizes.vocab_size - 1)
        expected = _features_and_gradients(model, images, ids, CPU, "fp32")
        for precision in task.precisions:
            found = _features_and_gradients(model, images, ids, task.device, precision)
            for name, ours, theirs in zip(("features", "gradients"), found, expected, strict=True):
                bound = KERNEL_BOUNDS[name]["fp32" if precision == "fp32" else "half"]
                difference = float((ours - theirs).norm() / theirs.norm())
                task.compare(f"{name}, captions of {length} tokens, {precision}", difference, bound)


def train(task: Task) -> None:
    """Train by the command on the device by its number, which nothing else has used before in this process."""
    named = task.device.type if task.device.type == "cpu" else f"{task.device.type}:{task.device.index or 0}"
    for precision in task.precisions:
        flags, shared, num_steps = ["--device", named, "--precision", precision], [], None
        if precision == "fp16":
            # The first updates may be left out, because their gradients overflow, and later losses then differ.
            shared, num_steps = ["--batch-size", "8"], 1
        bound, check = LOSS_BOUNDS[precision], f"{named}, {precision}"
        folder = _check_losses(task, check, flags, shared=shared, bound=bound, num_steps=num_steps)
        trained = load_plain(folder / LAST)["model"]
        task.compare(f"{check}, weights that are not finite", sum(not w.isfinite().all() for w in trained.values()), 0)


def train_options(task: Task) -> None:
    """Train by the command on the device as it was given, with options; list the places where the host waits for it."""
    flags = ["--device", str(task.device)]
    _check_losses(task, f"{task.device}, fp32", flags)
    _check_losses(task, "micro-batches", [*flags, "--micro-batch-size", "4"])
    _check_losses(task, "activations recomputed", [*flags, "--checkpoint-activations", "true"])
    averages = ["--ema-decay", "0.9"]
    stopped = _train(task, "moving average", [*flags, *averages, "--stop-after-epochs", "1"])
    _cskt("train", "--resume", stopped)
    expected = _reference(task, averages)
    task.compare("moving average, resumed", _difference(_losses(stopped), _losses(expected)))
    ours, theirs = (load_plain(folder / LAST)["average"]["averages"] for folder in (stopped, expected))
    task.compare("moving average, its weights", _relative_difference(ours, theirs), AVERAGE_BOUND)
    _check_losses(task, "identity and MLM heads", flags, shared=["--weights", "{id: 1, mlm: 1}", "--cmt-depth", "1"])
    _waits(task, "waits for the device in a step", task.work / "check.yaml")


def methods(task: Task) -> None:
    """Train by the command other methods than CSKT, whose parts, losses and augmentation have code of their own, and
    compare gradients in bf16 with those of float32 on the CPU."""
    checked = yaml.safe_load((task.work / "check.yaml").read_text(encoding="utf-8"))
    sizes = checked["backbone"]["architecture"]
    image_size = {key: sizes[key] for key in ("image_height", "image_width")}
    shared = {key: checked[key] for key in ("optim", "data", "loop")}
    for recipe, bound in METHODS.items():
        hooks = {"noise_division": {"mixture": "none"}} if recipe == "rde" else {}  # a division needs scikit-learn
        config = task.work / f"{recipe}.yaml"
        content = {"base": recipe, "backbone": {"architecture": sizes, **image_size}, "hooks": hooks, **shared}
        config.write_text(yaml.safe_dump(content), encoding="utf-8")
        ours, theirs = (
            _losses(_train(task, f"{recipe} {role}", ["--device", device], config=config))
            for role, device in (("tried", str(task.device)), ("reference", "cpu"))
        )
        task.compare(recipe, _difference(ours, theirs), bound)
        gradients = _gradients(config, task.device, "bf16"), _gradients(config, CPU, "fp32")
        task.compare(
            f"{recipe}, gradients in bf16", _relative_difference(*gradients), KERNEL_BOUNDS["gradients"]["half"]
        )
        _waits(task, f"waits for the device in a step, {recipe}", config)


def compiled(task: Task) -> None:
    """Train by the command with compiled blocks."""
    if reason := _cannot_compile(task):
        task.skip("compiled blocks", reason)
    else:
        _check_losses(task, "compiled blocks", ["--device", str(task.device), "--compile", "true"])


def _cannot_compile(task: Task) -> str:
    if task.device.type != "cuda":
        return "takes minutes on a CPU; tests/training/test_compile.py does it"
    return "" if find_spec("triton") else "torch.compile needs triton"


def inference(task: Task) -> None:
    """Compare evaluation, encoding, gallery, heat maps and exports of a trained model with the CPU."""
    run = _reference(task)
    split = split_of(str(run), None, None, "val")
    expected = load(run, device="cpu", batch_size=5)
    right = encode_split(expected, split)
    for precision in task.precisions:
        encoder = load(run, device=task.device, precision=precision, batch_size=5)
        found = encode_split(encoder, split)
        for name in ("image_features", "text_features"):
            difference = float((getattr(found, name) - getattr(right, name)).norm(dim=1).max())
            task.compare(f"{name.replace('_', ' ')}, {precision}", difference, FEATURE_BOUNDS[precision])
    encoder = load(run, device=task.device, batch_size=5)
    ranked = [
        metrics.from_features(one.text_features, one.image_features, one.caption_pids, one.image_pids)
        for one in (encode_split(encoder, split), right)
    ]
    task.compare("mAP of an evaluation", abs(ranked[0].mean_ap - ranked[1].mean_ap), 1e-3)
    _cskt("evaluate", run, "--split", "val", "--device", task.device)
    if missing := [name for name in ("lancedb", "sqlglot") if find_spec(name) is None]:
        task.skip("images in a gallery", f"{missing[0]} is not installed; pip install -e '.[gallery]'")
    else:
        task.compare("images in a gallery", _gallery_difference(encoder, expected, split.image_paths), 1e-4)
    picture = Image.open(split.image_paths[0])
    heats = [explain(one, picture, SENTENCE) for one in (encoder, expected)]
    maps = [torch.stack([heat.sentence, *(heat for _, heat in heat.words)]) for heat in heats]
    task.compare("heat maps", float((maps[0] - maps[1]).abs().max()), 0.02)
    merged = task.work / "merged.safetensors"
    _cskt("export", run, "--merge", merged)
    difference = load(merged, device=task.device).encode_text(split.captions) - right.text_features
    task.compare("text features of an exported file", float(difference.norm(dim=1).max()), 1e-4)
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        task.skip("ONNX export", f"{missing[0]} is not installed; pip install -e '.[onnx]'")
        return
    _cskt("export", run, "--format", "onnx", "--output", task.work / "onnx", "--split", "val")
    graphs = load(task.work / "onnx")
    difference = graphs.encode_image(split.image_paths) - encoder.encode_image(split.image_paths)
    task.compare("image features of an ONNX export", float(difference.norm(dim=1).max()), 1e-4)


def two_processes(task: Task) -> None:
    """Train by the command in two processes: over NCCL on two GPUs, over gloo on a CPU."""
    if task.device.type == "cuda" and torch.cuda.device_count() < 2:
        task.skip("two processes over NCCL", "there is one GPU")
        return
    folder, config = task.work / "two-processes", task.work / "check.yaml"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cskt", "train"]
    flags = ["--config", config, "--device", task.device.type, "--output", folder]
    subprocess.run([sys.executable, *launcher, *map(str, flags)], check=True)
    task.compare("two processes", _difference(_losses(folder), _losses(_reference(task))))


def speed(task: Task, *, name: str, sizes: Mapping[str, int], compiles: bool = False) -> None:
    """Train by the command and report the pairs per second of its own log, then encode the training split."""
    if compiles and (reason := _cannot_compile(task)):
        task.skip(name, reason)
        return
    sizes, batch_size, data = (TINY, 8, "data") if task.small else (sizes, 128, "speed-data")
    folder, root = task.work / task.results.stem, task.work / data
    if not root.exists():
        ids = {"train": 64, "val": 2, "test": 2}
        make_dataset(root, ids=ids, images_per_id=4, captions_per_image=10, num_processes=os.cpu_count() or 1)
    loop = {"num_epochs": 3, "log_period_steps": 2 if task.small else 5, "evaluate_before": False}
    config = folder.with_suffix(".yaml")
    write_config(config, sizes, {"root": str(root), "batch_size": batch_size, "cache_images": True}, loop, prompts=4)
    flags = ["--device", task.device, "--precision", "bf16", "--eval-period-epochs", "3"]
    _cskt("train", "--config", config, "--output", folder, *flags, "--compile", compiles)
    events = _rows(folder / "metrics.jsonl")
    steps = [event for event in events if event["event"] == "step" and event["epoch"] > 1]
    rate = statistics.median(event["pairs_per_second"] for event in steps)
    encoder = load(folder, device=task.device, precision="bf16", batch_size=batch_size)
    split = split_of(str(folder), None, None, "train")
    encoder.encode_image(split.image_paths[:batch_size])  # the first batches wait for kernels
    encoder.encode_text(split.captions[:batch_size])
    found = encode_split(encoder, split)
    images_per_s, captions_per_s = len(split.records) / found.image_seconds, len(split.captions) / found.text_seconds
    evaluating = VAL_IMAGES / images_per_s + VAL_CAPTIONS / captions_per_s
    lengths = (encoder.tokenizer(split.captions).argmax(dim=1) + 1).tolist()
    method, architecture = encoder.model.method, encoder.model.architecture
    of_all = flops.cskt_step(architecture, method["prompts"], method["adapters"], lengths).total
    tflop_per_pair = of_all / len(lengths) / 1e12
    ceiling = next(row["matrix_tflops"] for row in _rows(task.work / "machine.jsonl"))
    task.record(
        name,
        pairs_per_s=rate,
        ms_per_step=1e3 * batch_size / rate,
        mfu=tflop_per_pair * rate / ceiling,
        tflop_per_step=tflop_per_pair * batch_size,
        peak_memory_gb=events[-1]["peak_memory_bytes"] / 1e9,
        waiting_share=statistics.median(event["waiting_share"] for event in steps),
        tokens_per_caption=statistics.mean(lengths),
        images_per_s=images_per_s,
        captions_per_s=captions_per_s,
        minutes_of_60_epochs=EPOCHS * (PAIRS_OF_EPOCH / rate + evaluating) / 60,
    )


PARTS = {
    "machine": Part(machine, 30),
    "kernels": Part(kernels, 40),
    "train": Part(train, 45),
    "train-options": Part(train_options, 60),
    "inference": Part(inference, 45),
    "two-processes": Part(two_processes, 45),
    "speed-b16": Part(partial(speed, name="ViT-B/16", sizes=VIT_B_16), 60),
    "speed-l14": Part(partial(speed, name="ViT-L/14", sizes=VIT_L_14), 75),
    "methods": Part(methods, 60),
    "compiled": Part(compiled, 90),
    "speed-b16-compiled": Part(partial(speed, name="ViT-B/16, compiled", sizes=VIT_B_16, compiles=True), 90),
}
"""Parts in the order in which they run: the last ones are left out where the time ends."""


def _waits(task: Task, check: str, config: Path) -> None:
    """Record the places in a training step at which the host waits for the device; there should be none."""
    on_cuda = task.device.type == "cuda"
    context = prepare(load_config(config, {"device": str(task.device), "precision": "bf16"}))
    with Prefetcher(context.loader.epoch(0), context.device) as batches, warnings.catch_warnings(record=True) as caught:
        for step, batch in zip(range(3), batches, strict=False):
            if step == 1:  # the first step creates what later ones use
                warnings.simplefilter("always")
                if on_cuda:
                    torch.cuda.set_sync_debug_mode("warn")
            forward_backward(context, batch, step, generator_of(0, step))
            optimizer_step(context, step)
        if on_cuda:
            torch.cuda.set_sync_debug_mode("default")
    if on_cuda:
        places = wait_places(caught)
        task.compare(check, len(places), 0, places=places)
    else:
        task.skip(check, "only CUDA reports them")


def wait_places(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """Return the places that torch's warnings name as waits, `file.py:line`."""
    return sorted({f"{Path(one.filename).name}:{one.lineno}" for one in caught if WAIT in str(one.message)})


def _gradients(config: Path, device: torch.device, precision: str) -> dict[str, Tensor]:
    """Return the gradients of the first batch by name, on the CPU."""
    context = prepare(load_config(config, {"device": str(device), "precision": precision}))
    with Prefetcher(context.loader.epoch(0), context.device) as batches:
        forward_backward(context, next(iter(batches)), 0, generator_of(0, 0))
    named, scale = context.state.model.named_parameters(), context.state.scaler.get_scale()
    return {name: parameter.grad.cpu() / scale for name, parameter in named if parameter.grad is not None}


def _relative_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Return the norm of the difference of all tensors, relative to that of `theirs`; NaN if they have other names."""
    if ours.keys() != theirs.keys():
        return math.nan
    one, other = (torch.cat([tensors[name].flatten().double() for name in theirs]) for tensors in (ours, theirs))
    return float((one - other).norm() / other.norm())


def _check_losses(
    task: Task,
    check: str,
    flags: Sequence[str],
    *,
    shared: Sequence[str] = (),
    bound: float = LOSS_BOUNDS["fp32"],
    num_steps: int | None = None,
) -> Path:
    """Train by the command and compare the losses of all steps, or of the first, with the run on the CPU.

    The flags `shared` are for both. Returns the folder of the run.
    """
    folder = _train(task, check, [*flags, *shared])  # first, so that nothing has used the device before
    ours, theirs = _losses(folder), _losses(_reference(task, shared))
    task.compare(check, _difference(ours[:num_steps], theirs[:num_steps]), bound)
    return folder


def _reference(task: Task, shared: Sequence[str] = ()) -> Path:
    """Return the same training on the CPU, which is made when it is first needed."""
    folder = task.work / f"reference{_slug(' '.join(shared))}"
    return folder if folder.exists() else _train(task, folder.name, ["--device", "cpu", *shared], folder)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())


def _train(
    task: Task, name: str, flags: Sequence[str], folder: Path | None = None, *, config: Path | None = None
) -> Path:
    folder = folder or task.work / f"{task.results.stem}-{_slug(name)}"
    _cskt("train", "--config", config or task.work / "check.yaml", "--output", folder, *flags)
    return folder


def _losses(folder: Path) -> list[float]:
    return [event["loss"] for event in _rows(folder / "metrics.jsonl") if event["event"] == "step"]


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest relative difference of losses; NaN if a run has other steps than its reference."""
    if len(ours) != len(theirs) or not ours:
        return math.nan
    return max(abs(one / other - 1) for one, other in zip(ours, theirs, strict=True))


def _features_and_gradients(
    model: DualEncoder, images: Tensor, ids: Tensor, device: torch.device, precision: str
) -> tuple[Tensor, Tensor]:
    """Return features [2 B, D] and gradients [trained numbers] on the CPU."""
    model.to(device).zero_grad()
    with arithmetic(device, precision):
        image_features, text_features = model(images.to(device), ids.to(device))
    cosines = F.normalize(image_features.float(), dim=1) @ F.normalize(text_features.float(), dim=1).T
    # Scaled as in training, so that fp16 does not round small gradients to zero.
    torch.autograd.backward(1024 * F.cross_entropy(10 * cosines, torch.arange(len(ids), device=device)))
    gradients = [parameter.grad.flatten() / 1024 for parameter in model.parameters() if parameter.grad is not None]
    features = torch.cat([image_features, text_features]).detach().float()
    return features.cpu(), torch.cat(gradients).cpu()


def _gallery_difference(encoder: Encoder, expected: Encoder, paths: list[Path]) -> float:
    """Return the largest difference between the vectors that a gallery would store, and those of the CPU."""
    from cskt.gallery.indexing.encoding import LocalEngine, Pending  # noqa: PLC0415  (needs the extra `gallery`)

    pending = [Pending(path.name, path, 0, kept=False, stated={}, known=None) for path in paths]
    vectors: list[dict[str, Tensor]] = []
    for one in (encoder, expected):
        results = [result for batch in LocalEngine(one).work(pending) for result in batch]
        vectors.append({found.pending.image_id: torch.from_numpy(found.crop.vector) for found in results if found.crop})
    assert [*vectors[0]] == [*vectors[1]] == [path.name for path in paths], "every image in order"
    return max(float((vectors[0][name] - vectors[1][name]).norm()) for name in vectors[0])


def _cskt(*arguments: object) -> None:
    """Run a command of cskt in this process; CsktError if it fails."""
    if code := cskt([str(argument) for argument in arguments]):
        raise CsktError(f"cskt {' '.join(map(str, arguments))}: exit code {code}")


def write_config(
    path: Path, sizes: Mapping[str, int], data: Mapping[str, Any], loop: Mapping[str, Any], *, prompts: int = 2
) -> None:
    """Write a config of CSKT over random weights of these sizes."""
    depth = min(sizes.get("vision_layers", 12), sizes.get("text_layers", 12))
    content = {
        "name": "check", "backbone": {"architecture": dict(sizes)}, "trainable": "added",
        "prompts": {"directions": "both", "depth": depth, "length": prompts},
        "adapters": {"sides": "both", "init": "normal"}, "loss": {"weights": {"sdm": 1.0}, "temperature": 0.05},
        "optim": {"lr": 1e-3, "warmup_epochs": 0}, "data": {"num_workers": min(8, os.cpu_count() or 1), **data},
        "loop": {"loggers": [], **loop},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def _median_seconds(call: Callable[[], object], device: torch.device, *, calls: int = 5) -> float:
    """Return seconds per call: the median of five groups, after a warm-up group."""
    groups = []
    for _ in range(6):
        _synchronise(device)
        started = time.perf_counter()
        for _ in range(calls):
            call()
        _synchronise(device)
        groups.append((time.perf_counter() - started) / calls)
    return statistics.median(groups[1:])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run_part(name: str, device: str, work: Path, *, left: float, small: bool) -> list[dict[str, Any]]:
    """Run a part in a process of its own, with `left` seconds to the end of the whole check.

    Returns its rows, one more if it failed or was ended, and one with its duration.
    """
    no_time = {"part": name, "check": "the part as a whole", "skipped": "no time left; raise --minutes"}
    limit = math.inf if small else PARTS[name].seconds
    if left < LEAST_SECONDS:
        return [no_time]
    flags = ["--part", name, "--device", device, "--work", str(work), *(["--small"] if small else [])]
    paths = [str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONFAULTHANDLER": "1"}
    environment.pop(TF32_OVERRIDE, None)
    started, log, reason, is_late = time.perf_counter(), work / f"{name}.log", "", False
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_check", *flags],
            env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            if process.wait(min(left, limit)):
                reason = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            reason, is_late = f"ended after {min(left, limit):.0f} s", left < limit
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            process.wait()
    rows = _rows(work / f"{name}.jsonl")
    if is_late:
        rows.append(no_time)
    elif reason:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-100:]
        rows.append({"part": name, "check": "the part as a whole", "passed": False, "reason": reason, "log": tail})
    return [*rows, {"part": name, "seconds": time.perf_counter() - started}]


def lines_of(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a row in the table."""
    head = f"{row['part']:20}{row.get('check', ''):44}"
    if "skipped" in row:
        yield f"{head}skipped: {row['skipped']}"
    elif "passed" in row:
        value = row.get("reason") or f"{row['value']:.2g} (at most {row['bound']:g})"
        yield f"{head}{'passed' if row['passed'] else 'FAILED'}  {value}" + "".join(
            f"\n    {place}" for place in [*row.get("places", ()), *row.get("log", ())]
        )
    elif "check" in row:
        figures = {name: value for name, value in row.items() if name not in ("part", "check")}
        yield head.rstrip()
        yield from (f"    {name:24}{_figure(name, value)}" for name, value in figures.items())


def _figure(name: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1%}" if name in ("mfu", "waiting_share") else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def main() -> int:
    """Run all parts, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:1, or cpu for a trial of the program (%(default)s)"
    )
    parser.add_argument("--only", metavar="PARTS", help=f"of {', '.join(PARTS)}, separated by commas")
    parser.add_argument("--minutes", type=float, default=4, help="no part runs longer than until then (%(default)g)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    for hidden in ("--part", "--work"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        device, work = torch.device(args.device), Path(args.work)
        PARTS[args.part].run(Task(device, work, work / f"{args.part}.jsonl", args.small))
        return 0
    names = args.only.split(",") if args.only else [*PARTS]
    if unknown := sorted({*names} - {*PARTS}):
        parser.error(f"--only {unknown[0]}: no such part; choose from {', '.join(PARTS)}")
    try:
        device = pick_device(args.device)
    except CsktError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    return check(device, names, until=time.perf_counter() + 60 * args.minutes, target=args.json)


def check(device: torch.device, names: list[str], *, until: float, target: Path | None) -> int:
    """Run the parts until a time; return the exit code."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="cskt-gpu-check-", ignore_cleanup_errors=True) as folder:
        work, is_small = Path(folder), device.type != "cuda"
        ids = {"train": 8, "val": 2, "test": 2}
        make_dataset(work / "data", ids=ids, images_per_id=2, captions_per_image=3 if is_small else 8)
        data = {"root": str(work / "data"), "batch_size": 16 if is_small else 32, "eval_batch_size": 5}
        loop = {"num_epochs": 2, "log_period_steps": 1}
        write_config(work / "check.yaml", TINY if is_small else SMALL, data, loop)
        for name in dict.fromkeys(["machine", *names]):
            left = until - time.perf_counter()
            rows += run_part(name, str(device), work, left=left, small=is_small)
            print(*(line for row in rows if row["part"] == name for line in lines_of(row)), sep="\n", flush=True)
            if target:  # at once: a machine may be taken back at any time
                target.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    failed = sum(row.get("passed") is False for row in rows)
    skipped = sum("skipped" in row for row in rows)
    passed = sum(row.get("passed") is True for row in rows)
    print(f"{passed} checks passed, {failed} failed, {skipped} skipped" + (f"; results: {target}" if target else ""))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
