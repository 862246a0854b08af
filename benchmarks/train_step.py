"""One training step of CSKT at ViT-B/16, 384 x 128, on random weights: seconds and peak memory.

    python -m benchmarks.train_step --batch-size 8 --threads 2

No data set and no weights are needed: time and memory do not depend on the values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from cskt import losses
from cskt.config import AdapterConfig, ClipArchitecture, OptimConfig, PromptConfig
from cskt.device import arithmetic, peak_memory_bytes, pick_device
from cskt.model.dual_encoder import DualEncoder
from cskt.train.optim import build_optimizer


def main() -> None:
    """Print the median of several steps, after one that is not counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--caption-tokens", type=int, default=77, help="longest caption of the batch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)

    generator = torch.Generator().manual_seed(1)
    architecture = ClipArchitecture(image_height=384, image_width=128)
    model = DualEncoder(architecture, PromptConfig(), AdapterConfig())
    model.initialise_backbone(generator)
    model.initialise_added(generator)
    model.to(device)
    optimizer = build_optimizer(model.named_parameters(), OptimConfig())
    images = torch.randn(args.batch_size, 3, 384, 128, generator=generator).to(device)
    caption_ids = torch.randint(1, 49406, (args.batch_size, args.caption_tokens), generator=generator).to(device)
    caption_ids[:, 0], caption_ids[:, -1] = 49406, 49407
    pids = torch.arange(args.batch_size, device=device)

    seconds = []
    for _ in range(args.steps + 1):
        started = time.perf_counter()
        with arithmetic(device, args.precision):
            image_features, text_features = model(images, caption_ids)
        loss = losses.sdm(image_features, text_features, pids)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - started)
    result = {
        "batch_size": args.batch_size,
        "threads": args.threads,
        "precision": args.precision,
        "device": str(device),
        "caption_tokens": args.caption_tokens,
        "median_seconds": round(statistics.median(seconds[1:]), 3),
        "fastest_seconds": round(min(seconds[1:]), 3),
        "peak_memory_gb": round(peak_memory_bytes(device) / 1e9, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
