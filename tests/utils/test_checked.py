"""Checked values: a wrong one is refused in one line, a bug of one of our checks stays a bug."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import AfterValidator, BeforeValidator, field_validator, model_validator
from pydantic.dataclasses import dataclass

from cskt import RunConfig
from cskt.config import validate
from cskt.config.types import STRICT
from cskt.errors import CsktError
from cskt.evaluation.study_plan import Arm
from cskt.service.settings import ServiceSettings
from cskt.utils.checked import checked_dataclass
from cskt.utils.json_files import load_json, parse_json


def broadcasting_bug(value: Any = None) -> Any:
    return np.ones(2) + np.ones(3)


def failed_assertion() -> None:
    raise AssertionError("our own invariant")


@dataclass(config=STRICT, frozen=True)
class After:
    name: Annotated[str, AfterValidator(broadcasting_bug)] | None


@dataclass(config=STRICT, frozen=True)
class Before:
    name: Annotated[str, BeforeValidator(broadcasting_bug)]


@dataclass(config=STRICT, frozen=True)
class OfField:
    name: str

    _check = field_validator("name")(broadcasting_bug)


@dataclass(config=STRICT, frozen=True)
class OfModel:
    name: str

    @model_validator(mode="after")
    def _check(self) -> OfModel:
        failed_assertion()
        return self


@dataclass(config=STRICT, frozen=True)
class OfConstruction:
    name: str

    def __post_init__(self) -> None:
        broadcasting_bug()


@checked_dataclass(STRICT)
class Built:
    name: Annotated[str, AfterValidator(broadcasting_bug)]


@pytest.mark.parametrize("schema", [After, Before, OfField, OfModel, OfConstruction, Built])
@pytest.mark.parametrize("converter", [
    lambda schema: parse_json(json.dumps({"name": "a"}), schema, where="f", remedy="r"),
    lambda schema: validate(schema, {"name": "a"}, "f"),
    lambda schema: Built(name="a"),
], ids=["file", "config", "constructor"])  # fmt: skip
def test_a_bug_in_a_check_is_no_bad_input(schema: type, converter: Callable[[type], Any]) -> None:
    with pytest.raises((ValueError, AssertionError), match=r"broadcast|invariant") as caught:
        converter(schema)
    assert type(caught.value) in (ValueError, AssertionError)


def test_a_bug_in_the_reader_of_json_is_no_bad_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_object", "_whole"):
        with monkeypatch.context() as patched:
            patched.setattr(f"cskt.utils.json_files.{name}", broadcasting_bug)
            with pytest.raises(ValueError, match="broadcast") as caught:
                load_json('{"a": 1}', where="f", remedy="r")
        assert not isinstance(caught.value, CsktError)
    with pytest.raises(CsktError, match=r"^f: not JSON that can be read: a number has 5,000 digits, .*; r$"):
        load_json("9" * 5000, where="f", remedy="r")


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: RunConfig(seed=-1), "RunConfig: seed: input should be greater than or equal to 0, got -1"),
        (lambda: RunConfig("a", 5), "RunConfig: output_dir: input should be a valid string, got 5"),  # type: ignore[arg-type]
        (
            lambda: dataclasses.replace(RunConfig(), seed=-1),
            "RunConfig: seed: input should be greater than or equal to 0, got -1",
        ),
        (lambda: RunConfig(sed=1), "RunConfig: unknown key 'sed': did you mean 'seed'?"),  # type: ignore[call-arg]
        (
            lambda: RunConfig(optim={"lrr": 1}),  # type: ignore[arg-type]
            "RunConfig: unknown key 'optim.lrr': check its spelling",
        ),
        (lambda: dataclasses.replace(RunConfig(), sed=1), "RunConfig: unknown key 'sed': did you mean 'seed'?"),  # type: ignore[call-arg]
        (lambda: ServiceSettings(rate=0), "ServiceSettings: rate: input should be greater than 0, got 0"),
        (
            lambda: ServiceSettings(token="short"),
            "ServiceSettings: the token has 5 characters; give it at least 16",
        ),
        (
            lambda: ServiceSettings("::1", 1, (), 123456),  # type: ignore[arg-type]
            "ServiceSettings: token: input should be a valid string",
        ),
        (lambda: Arm("a"), "Arm: recipe: field required"),  # type: ignore[call-arg]
    ],
)  # fmt: skip
def test_a_wrong_value_in_python_is_one_line(construct: Callable[[], Any], message: str) -> None:
    with pytest.raises(CsktError) as caught:
        construct()
    assert str(caught.value) == message and caught.value.__suppress_context__


def test_checked_dataclasses_are_frozen_copied_and_pickled() -> None:
    config = RunConfig(seed=3)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config != RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 4  # type: ignore[misc]
