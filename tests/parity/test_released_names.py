"""The names and numbers of parameters that an export for the released programs has, against their golden cases."""

from __future__ import annotations

import pytest
import torch
import weights as rule
from golden import Golden

from cskt.config import AdapterConfig, LossConfig, MlmConfig, PromptConfig
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.released.methods import released_name
from cskt.training.objective import Objective


@pytest.mark.parametrize("case", ["cskt_a", "cskt_b", "irra_a"])
def test_an_export_has_the_names_of_the_released_checkpoint(case: str) -> None:
    golden = Golden.read(case)
    figures, is_cskt = golden.figures, case.startswith("cskt")
    method = {}
    if is_cskt:
        prompts = PromptConfig(depth=figures["depth"], length=figures["n_ctx"])
        method = {"prompts": prompts, "adapters": AdapterConfig()}
    losses = {name.removesuffix("_loss"): 1.0 for name in figures["losses"]}
    with torch.device("meta"):
        model = DualEncoder(golden.architecture, method)
        mlm = MlmConfig(cmt_depth=figures.get("cmt_depth", 4))
        objective = Objective(LossConfig(weights=losses), mlm, golden.architecture, 10)
    named = [*model.named_parameters(), *objective.named_parameters()]
    backbone = {f"base_model.{name}" for name in rule.openai_clip_shapes(**golden.layers)} - {"base_model.logit_scale"}
    assert {released_name(name) for name, _ in named} == backbone | figures["grad_norms"].keys()
    assert sum(value.numel() for _, value in named) == figures["total"]
