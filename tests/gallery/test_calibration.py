"""Calibrated threshold: against a naive search for it, its limits, and its file."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from cskt.gallery.calibration import (
    CALIBRATION_FILE,
    Calibration,
    calibrate,
    clopper_pearson,
    largest,
    load_calibration,
    num_allowed,
    save_calibration,
)

SCORES = st.lists(st.integers(-20, 20).map(lambda step: step / 20), min_size=1, max_size=60)
"""Coarse, so that many are tied."""
FINGERPRINT = "a" * 64


def naive_threshold(wrong: list[float], rate: float) -> np.float32:
    """The smallest float32 that at most a share of the scores reaches, tried from below: a score, or just above one."""
    scores = np.array(wrong, dtype=np.float32)
    tried = sorted({*scores.tolist(), *np.nextafter(scores, np.float32(np.inf)).tolist()})
    return next(np.float32(score) for score in tried if (scores >= score).sum() <= rate * len(scores) + 1e-9)


@settings(deadline=None, max_examples=60)
@given(SCORES, SCORES, st.sampled_from([0.05, 0.1, 0.29, 0.5, 0.9]))
def test_the_threshold_is_the_smallest_that_keeps_the_rate(right: list[float], wrong: list[float], rate: float) -> None:
    if len(wrong) < 1 / rate:
        with pytest.raises(ValueError, match="wrong pairs are too few"):
            calibrate(np.array(right), np.array(wrong), rate)
        return
    found = calibrate(np.array(right), np.array(wrong), rate)
    assert found.min_score == naive_threshold(wrong, rate)
    assert found.false_match_rate == sum(score >= found.min_score for score in wrong) / len(wrong) <= rate
    assert found.match_rate == pytest.approx(sum(np.float32(score) >= found.min_score for score in right) / len(right))
    assert (found.num_right, found.num_wrong) == (len(right), len(wrong))


def test_a_threshold_computed_by_hand() -> None:
    wrong = np.array([0.1, 0.2, 0.3, 0.4, -0.5, 0.0, 0.05, 0.15, 0.25, 0.35])
    found = calibrate(np.array([0.5, 0.36, 0.34]), wrong, 0.1)
    assert 0.35 < found.min_score < 0.3501
    assert found.false_match_rate == 0.1
    assert found.match_rate == pytest.approx(2 / 3)


def test_scores_tied_at_the_limit_are_all_refused() -> None:
    found = calibrate(np.array([0.9]), np.array([0.5] * 20), 0.1)
    assert found.min_score > 0.5 and found.false_match_rate == 0


def test_the_largest_scores_suffice(one_thread: None) -> None:
    scores = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    right = scores[:50] + 1
    kept = largest(np.array_split(scores, 7), num_allowed(5000, 0.01) + 1)
    assert len(kept) == 51
    assert sorted(kept) == sorted(scores)[-51:]
    assert calibrate(right, kept, 0.01, num_wrong=5000) == calibrate(right, scores, 0.01)
    with pytest.raises(ValueError, match="keep the largest 51"):
        calibrate(right, kept[:50], 0.01, num_wrong=5000)


def test_the_largest_of_few_scores_are_all() -> None:
    assert sorted(largest([np.array([0.3, 0.1]), np.array([0.2])], 10)) == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(("found", "tried"), [(0, 30), (1, 1000), (12, 40), (40, 40)])
def test_the_interval_is_the_exact_binomial_one(found: int, tried: int) -> None:
    expected = binomtest(found, tried).proportion_ci(0.95, method="exact")
    assert clopper_pearson(found, tried) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("rate", "needed"), [(0.001, "1,000"), (0.3, "4"), (0.01, "100")])
def test_too_few_wrong_pairs_name_the_number_needed(rate: float, needed: str) -> None:
    enough = int(needed.replace(",", ""))
    with pytest.raises(ValueError, match=f"at least {needed};"):
        calibrate(np.array([0.5]), np.zeros(enough - 1), rate)
    assert calibrate(np.array([0.5]), np.zeros(enough), rate).num_wrong == enough


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="give a share between 0 and 1"):
        calibrate(np.array([0.5]), np.zeros(10), rate)


def test_without_right_pairs_or_with_nan_nothing_is_calibrated() -> None:
    with pytest.raises(ValueError, match="no pair is marked right"):
        calibrate(np.array([]), np.zeros(10), 0.1)
    with pytest.raises(ValueError, match="not finite"):
        calibrate(np.array([np.nan]), np.zeros(10), 0.1)


@pytest.fixture
def calibration() -> Calibration:
    return calibrate(np.array([0.5, 0.1]), np.linspace(-0.2, 0.3, 50), 0.1)


def test_a_calibration_survives_its_file(tmp_path: Path, calibration: Calibration) -> None:
    path = save_calibration(tmp_path, calibration, fingerprint=FINGERPRINT, source="marks of Ägidius.csv")
    assert load_calibration(tmp_path, FINGERPRINT) == calibration
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["source"] == "marks of Ägidius.csv" and content["date"].startswith("2")


def test_no_file_is_no_calibration(tmp_path: Path) -> None:
    assert load_calibration(tmp_path, FINGERPRINT) is None


def test_the_calibration_of_another_model_is_ignored(
    tmp_path: Path, calibration: Calibration, caplog: pytest.LogCaptureFixture
) -> None:
    save_calibration(tmp_path, calibration, fingerprint="b" * 64, source="")
    with caplog.at_level(logging.WARNING):
        assert load_calibration(tmp_path, FINGERPRINT) is None
    assert "another model" in caplog.text
    assert f"cskt calibrate {tmp_path} --false-match-rate {calibration.asked_rate:g}" in caplog.text


def test_a_model_that_is_a_file_has_no_calibration(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    assert load_calibration(tmp_path / "model.pt", FINGERPRINT) is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"calibration": {"cut_off": "high"}}', "\udcff", "[" * 100_000], ids=range(6)
)
def test_a_corrupt_file_is_refused_with_the_remedy(tmp_path: Path, content: str) -> None:
    path = tmp_path / CALIBRATION_FILE
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"calibration\.json: .*; corrupt: delete it, or calibrate again"):
        load_calibration(tmp_path, FINGERPRINT)
