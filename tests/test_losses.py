"""Losses: golden values, naive loops, closed forms, symmetries, and their registry."""

import json
import math
import runpy
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cskt import losses
from cskt.config import LossConfig
from cskt.errors import CsktError
from cskt.losses import LOSSES, Embeddings, LossInputs

PARITY = Path(__file__).parent / "parity"
BATCHES = {
    "two captions of one person": [0, 0, 1, 2, 1],
    "all different": [4, 9, 2, 7],
    "one person": [3, 3, 3],
    "a single pair": [5],
    "large": [pid // 3 for pid in range(30)],
}
CONSTANTS = LossConfig(
    temperature=0.07, margin=0.7, tal_temperature=0.05, tal_margin=0.2, soft_share=0.4, soft_ramp_epochs=2.0,
    nitc_view="second", ritc_epsilon=0.03, citc_within=0.2, citc_across=0.7, simclr_temperature=0.3, simclr_width=5,
)  # fmt: skip
READY = losses.build_losses(LOSSES, CONSTANTS)
for _loss in READY.values():
    _loss.setup(losses.Sizes(embed_dim=16, num_identities=40, vocab_size=40))
    _loss.initialise(torch.Generator().manual_seed(7))
OF_SELECTION = {name: name.removeprefix("tse_") for name in LOSSES if name.startswith("tse_")}
"""Losses of the token selection embeddings -> the losses of the features that they are."""
PLAIN = [name for name in LOSSES if name not in OF_SELECTION and name != "balance"]
"""Losses of what `make_inputs` has; `balance` needs experts, and is tested with them."""
OF_BATCHES = ("citc", "simclr")
"""Losses that are no mean over pairs."""
OF_PAIRS = [name for name in PLAIN if name not in OF_BATCHES]
SUMMED = ("tal", "trl")


def make_inputs(pids: list[int], *, num_classes: int = 40, width: int = 16, seed: int = 0) -> LossInputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    size, identities = len(pids), torch.tensor(pids)
    return LossInputs(
        image_features=draw(size, width),
        text_features=2 * draw(size, width),
        pids=identities,
        image_logits=draw(size, num_classes),
        text_logits=draw(size, num_classes),
        id_labels=identities,
        image_ids=torch.tensor([image_of(pids, row) for row in range(size)]),
        mlm_logits=draw(size, num_classes),
        mlm_labels=torch.randint(num_classes, (size,), generator=generator),
        views={name: draw(size, width) for name in ("second", "simclr_1", "simclr_2")},
        target_text_features=draw(size, width),
        logit_scale=torch.tensor(9.0),
        step=3,
        steps_per_epoch=4,
    )


def weighted(inputs: LossInputs, weights: list[float]) -> LossInputs:
    """Return inputs whose pairs, each with one masked word, have weights."""
    tensor = torch.tensor(weights)
    return replace(inputs, pair_weights=tensor, row_weights=tensor, mlm_weights=tensor)


def image_of(pids: list[int], row: int) -> int:
    """Every person has images of two captions each: the first and second pair of someone show the same one."""
    return 100 * pids[row] + pids[:row].count(pids[row]) // 2


def with_rows(inputs: LossInputs, change: Callable[[torch.Tensor], torch.Tensor]) -> LossInputs:
    """Return inputs with every tensor changed alike."""
    values = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    views = {name: change(view) for name, view in inputs.views.items()}
    rows = {name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor) and value.ndim}
    return replace(inputs, views=views, **rows)


# --- golden values of the released code -------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["cskt_a", "cskt_b"])
def test_losses_equal_the_released_code(case: str) -> None:
    golden = json.loads((PARITY / f"{case}.json").read_text())
    tensors = load_file(PARITY / f"{case}.safetensors")
    images, texts = tensors["image_features"], tensors["text_features"]
    logits = {}
    if "id_loss" in golden["losses"]:
        fill = runpy.run_path(str(PARITY / "weights.py"))["fill"]
        weight, bias = (fill(f"classifier.{leaf}", shape, golden["seed"])
                        for leaf, shape in (("weight", (10, 512)), ("bias", (10,))))  # fmt: skip
        logits = {"image_logits": images @ weight.T + bias, "text_logits": texts @ weight.T + bias}
    pids = torch.tensor(golden["pids"])
    inputs = LossInputs(images, texts, pids, id_labels=pids, **logits)

    expected = {name.removesuffix("_loss"): value for name, value in golden["losses"].items()}
    ours = losses.build_losses(expected, LossConfig(temperature=golden["temperature"]))

    assert {name: loss(inputs).item() for name, loss in ours.items()} == pytest.approx(expected, rel=2e-6)


# --- naive loops -------------------------------------------------------------------------------------------------


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def unit(a: list[float]) -> list[float]:
    return [x / math.sqrt(dot(a, a)) for x in a]


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x - max(row)) for x in row]
    return [x / sum(powers) for x in powers]


def naive_matching(
    rows: list[list[float]],
    columns: list[list[float]],
    inputs: LossInputs,
    scale: float,
    order: int,
    others: float = 1.0,
) -> list[float]:
    """One direction of SDM (order 1) and CMPM (order 2), row by row."""
    found, pids, images = [], inputs.pids.tolist(), inputs.image_ids.tolist()
    for i, row in enumerate(rows):
        predicted = softmax([scale * dot(row, column) for column in columns])
        same = [(1.0 if images[j] == images[i] else others) if pid == pids[i] else 0.0 for j, pid in enumerate(pids)]
        norm = sum(x**order for x in same) ** (1 / order)
        terms = [p * (math.log(p) - math.log(same[j] / norm + 1e-8)) for j, p in enumerate(predicted) if p > 0]
        found.append(sum(terms))
    return found


def naive_cross_entropy(rows: list[list[float]], labels: list[int]) -> list[float]:
    return [-math.log(softmax(row)[label]) for row, label in zip(rows, labels, strict=True)]


def both(one: list[float], other: list[float], factor: float = 1.0) -> list[float]:
    """Add the values of a pair in two directions."""
    return [factor * (x + y) for x, y in zip(one, other, strict=True)]


def naive_sdm(images, texts, inputs: LossInputs, others: float = 1.0) -> list[float]:
    images, texts = [unit(i) for i in images], [unit(t) for t in texts]
    constants = inputs, 1 / CONSTANTS.temperature, 1, others
    return both(naive_matching(images, texts, *constants), naive_matching(texts, images, *constants))


def naive_itc(images, texts, inputs: LossInputs) -> list[float]:
    logits = [[dot(unit(i), unit(t)) / CONSTANTS.temperature for t in texts] for i in images]
    own = list(range(len(images)))
    return both(naive_cross_entropy(logits, own), naive_cross_entropy(list(zip(*logits, strict=True)), own), 0.5)


def naive_cmpm(images, texts, inputs: LossInputs) -> list[float]:
    return both(
        naive_matching(images, [unit(t) for t in texts], inputs, 1.0, 2),
        naive_matching(texts, [unit(i) for i in images], inputs, 1.0, 2),
    )


def naive_id(images, texts, inputs: LossInputs) -> list[float]:
    pids = inputs.pids.tolist()
    of_images, of_texts = (
        naive_cross_entropy(logits.tolist(), pids) for logits in (inputs.image_logits, inputs.text_logits)
    )
    return both(of_images, of_texts, 0.5)


def naive_triplet(images, texts, inputs: LossInputs) -> list[float]:
    size, found = len(images), [0.0] * len(images)
    for i in range(size):
        for j in range(2):
            others = [k for k in range(size) if k != i]
            negatives = [math.dist(images[i], texts[k]) if j else math.dist(images[k], texts[i]) for k in others]
            found[i] += max(0.0, CONSTANTS.margin + math.dist(images[i], texts[i]) - min(negatives, default=math.inf))
    return found


def naive_tal(images, texts, inputs: LossInputs) -> list[float]:
    found, pids, tau = [0.0] * len(images), inputs.pids.tolist(), CONSTANTS.tal_temperature
    cosines = [[dot(unit(i), unit(t)) for t in texts] for i in images]
    for rows in (cosines, list(zip(*cosines, strict=True))):
        for i, row in enumerate(rows):
            positives = [cosine for j, cosine in enumerate(row) if pids[j] == pids[i]]
            negatives = [cosine for j, cosine in enumerate(row) if pids[j] != pids[i]]
            if negatives:
                positive = dot(softmax([cosine / tau for cosine in positives]), positives)
                soft_hardest = tau * math.log(math.fsum(math.exp(cosine / tau) for cosine in negatives))
                found[i] += max(0.0, CONSTANTS.tal_margin - positive + soft_hardest)
    return found


def naive_trl(images, texts, inputs: LossInputs) -> list[float]:
    found, pids, tau = [0.0] * len(images), inputs.pids.tolist(), CONSTANTS.tal_temperature
    cosines = [[dot(unit(i), unit(t)) for t in texts] for i in images]
    for rows in (cosines, list(zip(*cosines, strict=True))):
        for i, row in enumerate(rows):
            positives = [cosine for j, cosine in enumerate(row) if pids[j] == pids[i]]
            hardest = max(0.0 if pids[j] == pids[i] else cosine for j, cosine in enumerate(row))
            found[i] += max(0.0, CONSTANTS.tal_margin - dot(softmax([x / tau for x in positives]), positives) + hardest)
    return found


def naive_mlm(images, texts, inputs: LossInputs) -> list[float]:
    return naive_cross_entropy(inputs.mlm_logits.tolist(), inputs.mlm_labels.tolist())


def naive_labels(pids: list[int]) -> list[list[float]]:
    return [[(pid == other) / pids.count(pid) for other in pids] for pid in pids]


def naive_nitc(images, texts, inputs: LossInputs) -> list[float]:
    """With targets of a further pass of the captions, at 3 of the 8 steps over which their share rises to 0.4."""
    scale, share, labels = inputs.logit_scale.item(), 0.4 * 3 / 8, naive_labels(inputs.pids.tolist())
    found = [0.0] * len(texts)
    for view in (images, inputs.views["second"].tolist()):
        logits, soft = (
            [[scale * dot(unit(i), unit(t)) for t in captions] for i in view]
            for captions in (texts, inputs.target_text_features.tolist())
        )
        for rows, soft_rows in ((logits, soft), (list(zip(*logits, strict=True)), list(zip(*soft, strict=True)))):
            for i, (row, soft_row) in enumerate(zip(rows, soft_rows, strict=True)):
                predicted, own = softmax(row), softmax(soft_row)
                for j, label in enumerate(labels[i]):
                    found[i] -= (share * own[j] + (1 - share) * label) * math.log(predicted[j]) / 4
    return found


def naive_ritc(images, texts, inputs: LossInputs) -> list[float]:
    scale, labels = inputs.logit_scale.item(), naive_labels(inputs.pids.tolist())
    logits, found = [[scale * dot(unit(i), unit(t)) for t in texts] for i in images], [0.0] * len(texts)
    for rows in (logits, list(zip(*logits, strict=True))):
        for i, row in enumerate(rows):
            for predicted, label in zip(softmax(row), labels[i], strict=True):
                found[i] += predicted * (math.log(predicted) - math.log(label + 0.03)) / 2
    return found


def naive_citc(images, texts, inputs: LossInputs) -> float:
    images, texts, size = [unit(i) for i in images], [unit(t) for t in texts], len(images)
    found = 0.0
    for i in range(size):
        for j in range(size):
            found += 0.2 * (dot(images[i], images[j]) - dot(texts[i], texts[j])) ** 2 / size**2
            found += 0.7 * (dot(images[i], texts[j]) - dot(images[j], texts[i])) ** 2 / size**2
    return found


def naive_simclr(images, texts, inputs: LossInputs) -> float:
    mlp, size = READY["simclr"].mlp, len(images)
    rows = [unit(mlp(row).tolist()) for name in ("simclr_1", "simclr_2") for row in inputs.views[name].float()]
    found = 0.0
    for k, row in enumerate(rows):
        others = [j for j in range(2 * size) if j != k]
        answers = softmax([dot(row, rows[j]) / 0.3 for j in others])
        found -= math.log(answers[others.index((k + size) % (2 * size))]) / (2 * size)
    return found


NAIVE = {
    "sdm": naive_sdm, "itc": naive_itc, "cmpm": naive_cmpm, "id": naive_id, "mlm": naive_mlm,
    "triplet": naive_triplet, "tal": naive_tal, "trl": naive_trl, "nitc": naive_nitc, "ritc": naive_ritc,
    "citc": naive_citc, "simclr": naive_simclr,
}  # fmt: skip
"""Loss of each pair (for mlm of each masked word, one per pair here)."""


def naive_pairs(name: str, inputs: LossInputs, *constants: float) -> list[float]:
    return NAIVE[name](inputs.image_features.tolist(), inputs.text_features.tolist(), inputs, *constants)


def naive(name: str, inputs: LossInputs, *constants: float) -> float:
    """The loss of a batch: the mean over pairs, of TAL and TRL the sum."""
    pairs = naive_pairs(name, inputs, *constants)
    if name in OF_BATCHES:
        return pairs
    return math.fsum(pairs) / (1 if name in SUMMED else len(pairs))


@pytest.mark.parametrize("pids", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("name", PLAIN)
def test_loss_equals_a_naive_loop(name: str, pids: list[int]) -> None:
    inputs = make_inputs(pids)
    expected = naive(name, inputs)
    assert READY[name](inputs).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


WEIGHTS = {"ones": [1.0], "zeros and ones": [0.0, 1.0, 1.0], "any": [0.5, 3.0, 0.0, 1.7], "all zero": [0.0]}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("pids", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("name", OF_PAIRS)
def test_weights_multiply_the_losses_of_pairs(name: str, pids: list[int], weights: list[float]) -> None:
    inputs, given = make_inputs(pids), [weights[i % len(weights)] for i in range(len(pids))]
    singles = naive_pairs(name, inputs)
    expected = math.fsum(weight * single for weight, single in zip(given, singles, strict=True))
    if name not in SUMMED:
        expected /= sum(given) or 1.0
    found = READY[name](weighted(inputs, given))
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if name != "mlm":
        assert READY[name].per_pair(inputs).tolist() == pytest.approx(singles, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_pairs_of_weight_zero_have_no_gradient_of_their_own_and_stay_wrong_answers(name: str) -> None:
    inputs, weights = make_inputs([0, 1, 2, 3]), [1.0, 1.0, 0.0, 1.0]
    tensors = {key: getattr(inputs, key).clone().requires_grad_() for key in ("image_features", "text_features")}
    tensors |= {key: getattr(inputs, key).clone().requires_grad_() for key in ("image_logits", "mlm_logits")}
    READY[name](weighted(replace(inputs, **tensors), weights)).backward()
    own = {"id": "image_logits", "mlm": "mlm_logits"}.get(name)
    if own:
        assert not tensors[own].grad[2].any() and tensors[own].grad[1].any()
    else:
        features = {key: tensors[key].detach().clone().requires_grad_() for key in ("image_features", "text_features")}
        singles = READY[name].per_pair(replace(inputs, **features))
        (singles[[0, 1, 3]].sum() / (1 if name in SUMMED else 3)).backward()
        for key, tensor in features.items():
            torch.testing.assert_close(tensors[key].grad, tensor.grad)
        everything = READY[name](weighted(inputs, weights))
        rest = with_rows(inputs, lambda x: x[[0, 1, 3]])
        assert everything.item() != pytest.approx(READY[name](rest).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"weights have shape \[1\]; give \[3\]"),
        ([1.0, -1.0, 1.0], "negative"),
        ([1.0, math.nan, 1.0], "finite"),
    ],
)
def test_bad_weights_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(CsktError, match=message):
        weighted(make_inputs([0, 1, 2]), weights)
    with pytest.raises(CsktError, match=message):
        losses.reduced(torch.ones(3), torch.tensor(weights), "sum")


def test_an_unknown_reduction_is_refused() -> None:
    for pair_weights in (None, torch.ones(4)):
        for function in (losses.itc, losses.triplet):
            with pytest.raises(CsktError, match="reduction is 'max'; give mean, sum or none"):
                function(torch.eye(4), torch.eye(4), pair_weights=pair_weights, reduction="max")


def test_a_loss_without_a_value_for_each_pair_says_so() -> None:
    with pytest.raises(CsktError, match="MLMLoss has no value for each pair"):
        READY["mlm"].per_pair(make_inputs([0, 1]))


def test_value_at_collapse_follows_weights() -> None:
    pids, weights, features = torch.tensor([0, 0, 1]), torch.tensor([0.0, 0.5, 2.0]), torch.ones(3, 4)
    expected = losses.sdm(features, features, pids, pair_weights=weights)
    assert losses.sdm_at_collapse(pids, pair_weights=weights).item() == pytest.approx(expected.item())
    assert losses.sdm_at_collapse(pids).item() != pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("name", PLAIN)
def test_loss_of_duplicated_pairs_equals_a_naive_loop(name: str) -> None:
    twice = with_rows(make_inputs([0, 1, 2]), lambda x: torch.cat([x, x]))
    expected = naive(name, twice)
    assert READY[name](twice).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("other_image", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("pids", BATCHES.values(), ids=BATCHES.keys())
def test_sdm_with_labels_smoothed_by_image_equals_a_naive_loop(pids: list[int], other_image: float) -> None:
    inputs, loss = make_inputs(pids), losses.SDMLoss(CONSTANTS.temperature, other_image)
    expected = naive("sdm", inputs, other_image)
    assert loss(inputs).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_sdm_that_treats_images_alike_is_plain_sdm_and_one_that_does_not_is_another() -> None:
    inputs = make_inputs(BATCHES["large"])
    sides, image_ids = (inputs.image_features, inputs.text_features, inputs.pids), inputs.image_ids
    plain = losses.sdm(*sides)
    assert torch.equal(losses.sdm(*sides, image_ids=image_ids, other_image=1.0), plain)
    assert losses.sdm(*sides, image_ids=image_ids, other_image=0.3).item() != pytest.approx(plain.item(), rel=1e-3)


# --- closed forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 64])
def test_itc_of_identical_features_is_log_of_the_batch_size(size: int) -> None:
    features = torch.ones(size, 8)
    assert losses.itc(features, features).item() == pytest.approx(math.log(size), abs=1e-6)


def test_itc_of_opposite_pairs_counts_negative_cosines() -> None:
    images = torch.eye(2)
    assert losses.itc(images, -images, temperature=0.5).item() == pytest.approx(math.log(1 + math.exp(2)))


def test_sdm_of_separated_identities_is_zero() -> None:
    pids = torch.tensor([0, 0, 1, 2, 2, 2])
    features = torch.eye(3)[pids]
    assert losses.sdm(features, 5 * features, pids).item() == pytest.approx(0.0, abs=1e-5)
    assert losses.sdm(features, features.roll(1, dims=1), pids).item() > 20


def test_sdm_of_one_identity_with_equal_features_is_zero() -> None:
    pids = torch.zeros(7, dtype=torch.int64)
    assert losses.sdm(torch.ones(7, 4), torch.ones(7, 4), pids).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("pids", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_sdm_of_constant_features_is_its_value_at_collapse(pids: list[int], temperature: float) -> None:
    identities, constant = torch.tensor(pids), torch.full((len(pids), 8), -0.3)
    at_collapse = losses.sdm(constant, constant, identities, temperature=temperature).item()
    assert losses.sdm_at_collapse(identities).item() == pytest.approx(at_collapse, rel=1e-5, abs=1e-5)
    smoothed = {"image_ids": make_inputs(pids).image_ids, "other_image": 0.3}
    at_collapse = losses.sdm(constant, constant, identities, temperature=temperature, **smoothed).item()
    assert losses.sdm_at_collapse(identities, **smoothed).item() == pytest.approx(at_collapse, rel=1e-5, abs=1e-5)


def test_value_at_collapse_of_64_people_is_27_95() -> None:
    per_direction = -math.log(64) - (math.log(1 + 1e-8) + 63 * math.log(1e-8)) / 64
    assert losses.sdm_at_collapse(torch.arange(64)).item() == pytest.approx(2 * per_direction)
    assert 2 * per_direction == pytest.approx(27.948, abs=1e-3)


def test_value_at_collapse_follows_epsilon_and_vanishes_for_one_person() -> None:
    pids = torch.arange(4)
    ones = torch.ones(4, 2)
    at_collapse = losses.sdm_at_collapse(pids, epsilon=1e-3).item()
    assert at_collapse == pytest.approx(-2 * (math.log(4) + (math.log(1.001) + 3 * math.log(0.001)) / 4))
    assert at_collapse == pytest.approx(losses.sdm(ones, ones, pids, epsilon=1e-3).item())
    assert losses.sdm_at_collapse(torch.zeros(9, dtype=torch.int64)).item() == pytest.approx(0.0, abs=1e-5)


def test_cmpm_sees_lengths_where_sdm_does_not() -> None:
    inputs = make_inputs(BATCHES["large"])
    images, texts, pids = inputs.image_features, inputs.text_features, inputs.pids
    assert losses.sdm(3 * images, texts, pids).item() == pytest.approx(losses.sdm(images, texts, pids).item(), rel=1e-5)
    assert losses.cmpm(3 * images, texts, pids).item() != pytest.approx(
        losses.cmpm(images, texts, pids).item(), rel=0.05
    )


def test_cmpm_of_one_identity_divides_labels_by_their_l2_norm() -> None:
    """Labels of n equal identities are 1 / sqrt(n), not 1 / n, so that equal features give -log(n) / 2 a direction."""
    features = torch.ones(9, 4)
    assert losses.cmpm(features, features, torch.zeros(9, dtype=torch.int64)).item() == pytest.approx(-math.log(9))


def test_identity_of_uniform_logits_is_log_of_the_number_of_people() -> None:
    logits = torch.full((6, 13), 0.4)
    assert losses.identity(logits, logits, torch.arange(6)).item() == pytest.approx(math.log(13))


def test_triplet_on_a_line() -> None:
    """Images at 0 and 10, captions at 1 and 2: only the second caption, 8 from its image and 2 from the other, errs."""
    images, texts = torch.tensor([[0.0], [10.0]]), torch.tensor([[1.0], [2.0]])
    assert losses.triplet(images, texts, margin=1.0).item() == pytest.approx((0 + 0) / 2 + (0 + 7) / 2)


def test_triplet_of_equal_features_is_twice_the_margin() -> None:
    features = torch.ones(5, 3)
    assert losses.triplet(features, features, margin=0.3).item() == pytest.approx(0.6)


def test_mlm_of_uniform_logits_is_log_of_the_vocabulary_and_of_no_words_0() -> None:
    assert losses.mlm(torch.full((6, 13), 0.4), torch.arange(6)).item() == pytest.approx(math.log(13))
    nothing = torch.zeros(0, 13, requires_grad=True)
    loss = losses.mlm(nothing, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and nothing.grad is not None


def test_tal_of_orthogonal_people_is_what_the_margin_lacks() -> None:
    """Each of two rows a direction has its own cosine 1 and one negative of cosine 0."""
    features, pids = torch.eye(2), torch.arange(2)
    assert losses.tal(features, features, pids, margin=0.9).item() == 0
    assert losses.tal(features, features, pids, margin=1.5).item() == pytest.approx(4 * 0.5)
    assert losses.tal(features, -features, pids, margin=0.1).item() == pytest.approx(4 * 1.1)


@pytest.mark.parametrize("size", [2, 9])
def test_tal_of_equal_features_is_the_margin_and_the_number_of_negatives(size: int) -> None:
    features, pids = torch.ones(size, 4), torch.arange(size)
    expected = 2 * size * (0.1 + 0.05 * math.log(size - 1))
    assert losses.tal(features, features, pids, temperature=0.05, margin=0.1).item() == pytest.approx(expected)


def test_tal_of_one_person_is_zero_and_moves_nothing() -> None:
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = losses.tal(features, features.flip(0), torch.zeros(5, dtype=torch.int64), margin=3.0)
    loss.backward()
    assert loss.item() == 0 and not features.grad.any()


def test_tal_of_a_low_temperature_is_nearly_a_triplet_loss_with_the_hardest_negative_and_positive() -> None:
    inputs = make_inputs([0, 0, 1, 2, 1])
    images, texts = (torch.nn.functional.normalize(x) for x in (inputs.image_features, inputs.text_features))
    cosine = images @ texts.T
    same = inputs.pids[:, None] == inputs.pids
    expected = sum(
        (0.5 - c.masked_fill(~same, -2).amax(1) + c.masked_fill(same, -2).amax(1)).clamp_min(0).sum()
        for c in (cosine, cosine.T)
    )
    sides = inputs.image_features, inputs.text_features, inputs.pids
    assert losses.tal(*sides, temperature=0.013, margin=0.5).item() == pytest.approx(expected.item(), rel=1e-3)


def test_tal_limits_the_sum_of_exponentials_as_the_released_code_does() -> None:
    """With two equal people each row has the sum exp(1 / 0.005) = 7e86, which counts as 1e36."""
    features, pids = torch.ones(2, 4), torch.arange(2)
    expected = 4 * (1.0 - 1.0 + 0.005 * math.log(1e36))
    assert losses.tal(features, features, pids, temperature=0.005, margin=1.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("constant_weights", [True, False])
def test_tal_takes_no_gradient_through_the_weights_of_its_positives(constant_weights: bool) -> None:
    """Against a loop in float64 that keeps the weights out of the graph, and differs from one that lets them in."""
    inputs = make_inputs([0, 0, 1, 1, 1, 2])
    images, texts = (x.double().requires_grad_() for x in (inputs.image_features, inputs.text_features))
    cosine = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=2)
    loss = torch.zeros((), dtype=torch.float64)
    for rows in (cosine, cosine.T):
        for row, pid in zip(rows, inputs.pids, strict=True):
            positives, negatives = row[inputs.pids == pid], row[inputs.pids != pid]
            weights = (positives / 0.3).softmax(0)
            weights = weights.detach() if constant_weights else weights
            loss = loss + (2.0 - weights @ positives + 0.3 * (negatives / 0.3).logsumexp(0)).clamp_min(0)
    loss.backward()
    ours = [x.clone().requires_grad_() for x in (inputs.image_features, inputs.text_features)]
    losses.tal(*ours, inputs.pids, temperature=0.3, margin=2.0).backward()
    for found, expected in zip(ours, (images, texts), strict=True):
        assert torch.allclose(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-6) == constant_weights


def test_the_share_of_soft_targets_rises_by_step() -> None:
    loss = losses.NITCLoss(soft_share=0.5)
    assert [loss.soft_share_at(step, 4) for step in range(6)] == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    assert losses.NITCLoss(soft_share=0.5, ramp_epochs=0).soft_share_at(0, 4) == 0.5


def test_soft_targets_get_no_gradient() -> None:
    inputs = make_inputs([0, 1, 2])
    target, scale = inputs.target_text_features.clone().requires_grad_(), torch.tensor(9.0, requires_grad=True)
    sides = inputs.image_features.clone().requires_grad_(), inputs.text_features, inputs.pids
    losses.nitc(*sides, scale=scale, soft_share=1.0, target_text_features=target).backward()
    assert target.grad is None and sides[0].grad.any() and scale.grad
    # Targets that are the answers themselves leave no gradient.
    own = inputs.image_features.clone().requires_grad_()
    losses.nitc(own, inputs.text_features, inputs.pids, scale=9.0, soft_share=1.0).backward()
    torch.testing.assert_close(own.grad, torch.zeros_like(own), rtol=0, atol=1e-6)


def test_simclr_of_equal_views_is_log_of_their_number_but_one() -> None:
    assert losses.simclr(torch.ones(4, 3), torch.ones(4, 3)).item() == pytest.approx(math.log(7))


def test_citc_of_a_rotated_space_is_zero_within_and_not_across() -> None:
    inputs = make_inputs([0, 1, 2, 3])
    rotated = (
        inputs.image_features @ torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    )
    assert losses.citc(inputs.image_features, rotated, across=0).item() == pytest.approx(0, abs=1e-12)
    assert losses.citc(inputs.image_features, rotated, within=0).item() > 1e-4


# --- properties --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_order_of_the_pairs_does_not_matter(name: str) -> None:
    inputs = make_inputs(BATCHES["large"])
    order = torch.randperm(len(inputs.pids), generator=torch.Generator().manual_seed(1))
    loss = replace(READY[name], other_image=0.3) if name == "sdm" else READY[name]
    shuffled = with_rows(inputs, lambda x: x[order])
    assert loss(shuffled).item() == pytest.approx(loss(inputs).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["sdm", "itc", "triplet", "tal"])
def test_images_and_captions_play_the_same_part(name: str) -> None:
    inputs = make_inputs(BATCHES["large"])
    swapped = replace(inputs, image_features=inputs.text_features, text_features=inputs.image_features)
    assert READY[name](swapped).item() == pytest.approx(READY[name](inputs).item(), rel=1e-5)


@pytest.mark.parametrize("pids", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("kind", ["random", "equal", "zero"])
@pytest.mark.parametrize("name", ["sdm", "itc", "cmpm", "triplet", "tal", "trl", "nitc", "ritc", "citc"])
def test_gradients_are_finite(name: str, kind: str, pids: list[int]) -> None:
    features = {"random": 100 * torch.randn(len(pids), 8, generator=torch.Generator().manual_seed(0)),
                "equal": torch.ones(len(pids), 8), "zero": torch.zeros(len(pids), 8)}[kind]  # fmt: skip
    images, texts = features.clone().requires_grad_(), features.flip(0).clone().requires_grad_()
    loss = LOSSES[name]()(LossInputs(images, texts, torch.tensor(pids), logit_scale=torch.tensor(100.0)))
    loss.backward()
    assert loss.isfinite()
    assert images.grad.isfinite().all()
    assert texts.grad.isfinite().all()


@pytest.mark.parametrize("name", PLAIN)
def test_a_step_against_the_gradient_lowers_the_loss(name: str) -> None:
    inputs = make_inputs(BATCHES["large"])
    inputs = with_rows(inputs, lambda x: x.clone().requires_grad_() if x.is_floating_point() else x)
    leaves = [inputs.image_features, inputs.text_features, inputs.image_logits, inputs.text_logits, inputs.mlm_logits]
    leaves += inputs.views.values()

    def value() -> torch.Tensor:
        return READY[name](inputs)

    before = value()
    before.backward()
    with torch.no_grad():
        for leaf in leaves:
            if leaf.grad is not None:
                leaf.sub_(1e-3 * leaf.grad / leaf.grad.norm())
    assert value() < before


@pytest.mark.parametrize("name", PLAIN)
def test_autocast_does_not_touch_a_loss(name: str) -> None:
    inputs = make_inputs(BATCHES["large"])
    plain = READY[name](inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = READY[name](inputs)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


@pytest.mark.parametrize("name", PLAIN)
def test_half_precision_features_are_computed_in_float32(name: str) -> None:
    inputs = make_inputs(BATCHES["large"])
    half = with_rows(inputs, lambda x: x.bfloat16() if x.is_floating_point() else x)
    rounded = with_rows(half, lambda x: x.float() if x.is_floating_point() else x)
    assert torch.equal(READY[name](half), READY[name](rounded))


@pytest.mark.parametrize(("name", "plain"), OF_SELECTION.items())
def test_losses_of_token_selection_are_those_of_its_embeddings(name: str, plain: str) -> None:
    inputs, other = make_inputs(BATCHES["large"]), make_inputs(BATCHES["large"], seed=1)
    embeddings = Embeddings(other.image_features, other.text_features)
    weights = [0.5 * (row % 3) for row in range(30)]
    of_head = weighted(replace(inputs, embeddings={"tse": embeddings}), weights)
    of_features = weighted(other, weights)
    assert torch.equal(READY[name](of_head), READY[plain](of_features))
    assert torch.equal(READY[name].per_pair(of_head), READY[plain].per_pair(of_features))
    with pytest.raises(CsktError, match="embedding head of the method part 'tse'; heads of this run: none"):
        READY[name](inputs)


# --- registry and total ------------------------------------------------------------------------------------------


def test_losses_are_built_by_name_with_the_constants_of_a_config() -> None:
    inputs = make_inputs(BATCHES["large"])
    built = losses.build_losses(["itc", "triplet"], CONSTANTS)
    assert list(built) == ["itc", "triplet"]
    assert torch.equal(built["itc"](inputs), losses.itc(inputs.image_features, inputs.text_features, temperature=0.07))
    assert torch.equal(
        built["triplet"](inputs), losses.triplet(inputs.image_features, inputs.text_features, margin=0.7)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_every_constant_has_a_config_key_and_the_same_default_there(name: str) -> None:
    assert LossConfig().constants_of(name) == {field.name: field.default for field in fields(LOSSES[name])}


def test_a_key_of_one_loss_counts_before_the_shared_key() -> None:
    config = LossConfig(temperature=0.07, constants={"sdm": {"temperature": 0.5}})
    built = losses.build_losses(["sdm", "itc"], config)
    assert repr(built["sdm"]) == "SDMLoss(temperature=0.5, other_image=1.0)"
    assert repr(built["itc"]) == "ITCLoss(temperature=0.07)"
    with pytest.raises(CsktError, match="unknown key 'loss.sdm.temprature': did you mean 'temperature'"):
        losses.build_losses(["sdm"], LossConfig(constants={"sdm": {"temprature": 0.5}}))


@pytest.mark.parametrize("name", ["a loss", "a.b", "1st", ""])
def test_a_loss_with_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(CsktError, match="give a name of letters, digits and _"):
        losses.register(name)(losses.ITCLoss)


def test_what_is_no_loss_is_refused() -> None:
    for wrong in (losses.itc, torch.nn.Linear, losses.Loss):
        with pytest.raises(CsktError, match="a dataclass that extends Loss"):
            losses.register("wrong")(wrong)  # type: ignore[type-var]
    assert "wrong" not in LOSSES


def test_total_is_the_weighted_sum_and_leaves_out_weight_zero() -> None:
    watched, trained = torch.tensor(math.nan, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    also = torch.tensor(5.0, requires_grad=True)
    value = losses.weighted_total(
        {"triplet": watched, "sdm": trained, "mlm": also}, {"triplet": 0.0, "sdm": 2.0, "mlm": 0.1, "itc": 1.0}
    )
    value.backward()
    assert value.item() == pytest.approx(6.5)
    assert (watched.grad, trained.grad.item(), also.grad.item()) == (None, 2.0, pytest.approx(0.1))


@pytest.mark.parametrize(
    ("name", "message"),
    [("cmpn", "unknown loss 'cmpn': did you mean 'cmpm'"), ("focal", "unknown loss 'focal': known: balance")],
)
def test_an_unknown_loss_is_refused_with_a_hint(name: str, message: str) -> None:
    with pytest.raises(CsktError, match=message):
        losses.build_losses(["sdm", name], CONSTANTS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("id", "loss 'id' needs the logits of an identity classifier"),
        ("mlm", "loss 'mlm' needs the logits of masked"),
        ("nitc", "the loss needs a learned logit_scale"),
        ("ritc", "the loss needs a learned logit_scale"),
        ("simclr", "the loss needs a view 'simclr_1' of the images"),
    ],
)
def test_a_loss_without_the_logits_that_it_needs_is_refused(name: str, message: str) -> None:
    with pytest.raises(CsktError, match=message):
        READY[name](LossInputs(torch.ones(2, 3), torch.ones(2, 3), torch.arange(2)))


def test_total_without_a_positive_weight_is_refused() -> None:
    with pytest.raises(CsktError, match=r"set one in loss\.weights"):
        losses.weighted_total({"sdm": torch.tensor(1.0)}, {"sdm": 0.0})


@pytest.mark.parametrize(("texts", "pids"), [((3, 4), (2,)), ((2, 4), (2, 1))])
def test_pairs_that_do_not_match_are_refused(texts: tuple[int, ...], pids: tuple[int, ...]) -> None:
    with pytest.raises(CsktError):
        LossInputs(torch.ones(2, 4), torch.ones(texts), torch.zeros(pids, dtype=torch.int64))
