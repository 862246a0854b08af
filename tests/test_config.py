"""The configuration: recipes, overrides, and what is refused in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from cskt.config import (
    RECIPES,
    AugmentConfig,
    ClipArchitecture,
    LossConfig,
    OptimConfig,
    RunConfig,
    flat_fields,
    flat_values,
    load_config,
    merge,
    nest,
    read_yaml,
    recipe_names,
    resolve_recipe,
    save_config,
    schema,
    to_dict,
    validate,
)  # fmt: skip
from cskt.errors import CsktError
from cskt.utils.messages import nearest

SECTIONS = [item for item in vars(schema).values() if hasattr(item, "__pydantic_fields__")]


def refused(source: Any, overrides: dict[str, Any] | None = None) -> str:
    """The one line with which a config is refused."""
    with pytest.raises(ValueError) as caught:
        load_config(source, overrides)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


# --- recipes


def test_every_recipe_loads_under_its_own_name() -> None:
    assert recipe_names() == sorted(path.stem for path in RECIPES.iterdir() if path.suffix == ".yaml")
    assert {"cskt", "cskt-reference", "demo", "finetune", "tiny"} <= set(recipe_names())
    for name in set(recipe_names()) - {"adapt"}:  # which needs a run
        assert load_config(name).name == name
        assert (RECIPES / f"{name}.yaml").read_text().startswith("# "), "says what it is for"


def test_the_defaults_are_the_recommended_recipe() -> None:
    size = {"backbone.image_height": 384, "backbone.image_width": 128}
    assert load_config("cskt") == load_config({}, size)
    assert load_config({}) == RunConfig()


def test_the_reference_is_the_released_optimiser_and_start() -> None:
    ours, released = load_config("cskt"), load_config("cskt-reference")
    assert (released.optim.name, released.optim.eps, released.optim.lr) == ("adam", 1e-3, 3e-4)
    assert (released.optim.weight_decay, released.optim.warmup_epochs, released.loop.num_epochs) == (4e-5, 5, 60)
    assert (released.prompts.init, released.adapters.init) == ("random", "normal")
    assert (ours.optim.name, ours.optim.eps) == ("adamw", 1e-8)
    assert (ours.prompts.init, ours.adapters.init) == ("words", "zero")
    assert (released.adapters.vision_scale, released.adapters.text_scale) == (0.1, 4.0)
    for name in ("prompts", "adapters"):
        started_alike = dataclasses.replace(getattr(released, name), init=getattr(ours, name).init)
        assert started_alike == getattr(ours, name), "one architecture"


def test_recipes_are_found_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = RECIPES / "cskt.yaml"
    assert resolve_recipe("cskt") == resolve_recipe("cskt.yaml") == resolve_recipe("recipes/cskt.yaml") == shipped
    (tmp_path / "cskt.yaml").write_text("seed: 77\n")
    assert load_config("cskt.yaml").seed == 77, "one's own file comes first"
    assert load_config("cskt").seed == 1, "a bare name is the package's"
    assert load_config(tmp_path / "cskt.yaml").seed == 77


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cskt-refrence", "unknown recipe 'cskt-refrence': did you mean 'cskt-reference'?"),
        ("qqq", "unknown recipe 'qqq': known: adapt, clip, cskt, cskt-bpt, "),
        ("mine.yaml", "mine.yaml: no such file"),
    ],
)
def test_an_unknown_recipe_is_reported_with_the_nearest(name: str, message: str) -> None:
    assert refused(name).startswith(message)


# --- what is refused


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optim.lrr", "did you mean 'optim.lr'?"),
        ("data.batchsize", "did you mean 'data.batch_size'?"),
        ("batch_size", "did you mean 'data.batch_size'?"),
        ("lr", "did you mean 'optim.lr'?"),
        ("optimm", "did you mean 'optim'?"),
        ("backbone.architecture.embed_dimm", "did you mean 'backbone.architecture.embed_dim'?"),
        ("loop.zzzzzzzzz", "known: loop.accumulate_steps, loop.checkpoint_activations, loop.compile, "),
        ("zzz", "known: adapters, augment, backbone, data, device, frozen, init_from, loop, lora, loss, mlm, name, "),
    ],
)
def test_an_unknown_key_is_reported_with_the_nearest(tmp_path: Path, key: str, hint: str) -> None:
    assert refused({}, {key: 1}).startswith(f"overrides: unknown key '{key}': {hint}")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(nest({key: 1})))
    assert refused(tmp_path / "run.yaml").startswith(f"{tmp_path / 'run.yaml'}: unknown key '{key}': {hint}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.lr", "fast"), ("optim.lr", None), ("optim.lr", [1e-3]), ("optim.lr", True), ("loop.num_epochs", 1.5),
        ("loop.num_epochs", "ten"), ("data.cache_images", "perhaps"), ("name", ["a"]), ("data.root", None),
        ("optim.milestones", 20), ("optim.milestones", [20, "x"]), ("augment.erase_area", [0.1]),
        ("loss.weights", "sdm"), ("loss.weights.sdm", "much"), ("optim", 3), ("optim", None), ("prompts.directions", 1),
        ("backbone.architecture", "ViT"), ("backbone.architecture.embed_dim", "wide"), ("seed", float("nan")),
    ],
)  # fmt: skip
def test_a_wrong_type_is_reported_with_its_key(key: str, value: Any) -> None:
    message = refused(nest({key: value}))
    assert message.startswith(f"config: {key}") and ", got " in message


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("optim.lr", 0, "greater than 0"), ("optim.lr", -1e-3, "greater than 0"), ("optim.beta1", 1, "less than 1"),
        ("optim.eps", 0, "greater than 0"), ("optim.clip_grad_norm", 0, "greater than 0"),
        ("optim.warmup_epochs", -1, "greater than or equal to 0"), ("optim.warmup_factor", 1.1, "than or equal to 1"),
        ("optim.lr", float("inf"), "finite"), ("optim.lr", float("nan"), "finite"),
        ("adapters.text_scale", float("inf"), "finite"), ("loss.temperature", 0, "greater than 0"),
        ("loss.weights", {}, "at least 1 item"), ("loss.weights.sdm", -1, "greater than or equal to 0"),
        ("loss.margin", -0.1, "greater than or equal to 0"), ("data.batch_size", 0, "greater than 0"),
        ("data.holdout_fraction", 0, "greater than 0"), ("data.holdout_fraction", 0.6, "less than or equal to 0.5"),
        ("data.train_fraction", 0, "greater than 0"), ("data.train_fraction", 1.01, "less than or equal to 1"),
        ("data.templates", [], "at least 1 item"), ("data.templates", ["a photo"], "'a photo' must hold {} once"),
        ("data.captions_per_image", 3, "data.batch_size 128 is not divisible by data.captions_per_image 3"),
        ("lora.rank", 0, "greater than 0"), ("lora.targets", [], "at least 1 item"),
        ("lora.targets", ["query", "query"], "lora.targets query,query names a layer twice"),
        ("lora.targets", ["keys"], "'query', 'key'"), ("lora.alpha", 0, "greater than 0"),
        ("mlm.mask_probability", 0, "greater than 0"), ("loss.sdm_other_image", 1.1, "less than or equal to 1"),
        ("loss.tal_temperature", 0, "greater than 0"), ("optim.layer_decay", 0, "greater than 0"),
        ("optim.ema_decay", 1, "less than 1"), ("augment.caption_drop_probability", 2, "less than or equal to 1"),
        ("data.caption_length", 2, "greater than or equal to 3"), ("data.select_on", "all", "'val', 'test' or 'train'"),
        ("augment.flip_probability", 1.5, "less than or equal to 1"), ("augment.pad_pixels", -1, "or equal to 0"),
        ("augment.erase_area", [0.4, 0.02], "not a range"), ("augment.erase_area", [0, 0.4], "not a range"),
        ("augment.erase_ratio", [0, 1], "not a range"), ("prompts.depth", 0, "greater than 0"),
        ("prompts.directions", "t2", "'none', 'text', 'vision', 'own', 't2v', 'v2t' or 'both'"),
        ("optim.schedule", "cosin", "'cosine', 'step'"), ("precision", "fp8", "'fp32', 'bf16' or 'fp16'"),
        ("loop.num_epochs", 0, "greater than 0"), ("loop.accumulate_steps", 0, "greater than 0"), ("seed", -1, "than"),
        ("backbone.architecture.vocab_size", 2, "greater than or equal to 3"),
        ("backbone.architecture.vision_heads", 5, "vision_width 768 is not divisible by vision_heads 5"),
        ("backbone.architecture.image_width", 8, "an image of 224 x 8 holds no patch of 16"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_reported_with_key_and_rule(key: str, value: Any, rule: str) -> None:
    message = refused(nest({key: value}))
    assert message.startswith(f"config: {key.rpartition('.')[0]}") and rule in message


NUMBERS = [name for name, item in flat_fields() if type(item.default) in (int, float)]


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_is_taken_for_granted(key: str) -> None:
    """YAML's `yes` is no 1, and words and infinities are no numbers: each key is checked by itself."""
    for value in (True, "many", float("inf"), float("nan")):
        assert refused({}, {key: value}).startswith(f"overrides: {key}: input should be a")


def test_numbers_as_yaml_leaves_them_are_taken() -> None:
    config = load_config({"optim": {"lr": "3e-4"}, "seed": "7", "loop": {"num_epochs": 5.0}})  # YAML reads 3e-4 as text
    assert (config.optim.lr, config.seed, config.loop.num_epochs) == (3e-4, 7, 5)
    assert isinstance(config.loop.num_epochs, int)


# --- files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "not plain YAML: while parsing"),
        ("- a\n- b\n", "expected 'key: value' lines, found list"),
        ("just words", "expected 'key: value' lines, found str"),
        ("name: !!python/object/apply:os.mkdir [executed]\n", "not plain YAML: could not determine a constructor"),
        ("name: !!python/tuple [1, 2]\n", "not plain YAML"),
        ("name: \xff\n".encode("latin-1"), "not UTF-8 at byte 6; save the file as UTF-8"),
    ],
)
def test_what_is_no_plain_yaml_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refused(path).startswith(f"{path}: {message}")
    assert [item.name for item in tmp_path.iterdir()] == ["run.yaml"], "nothing was executed"


def test_an_empty_file_leaves_every_default(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert read_yaml(tmp_path / "run.yaml") == {}
    assert load_config(tmp_path / "run.yaml") == RunConfig()


UNUSUAL = {
    "loss.weights": {"itc": 0.1, "id": 2.0}, "optim.milestones": [1, 2, 3], "optim.clip_grad_norm": 0.5,
    "augment.erase_area": [0.25, 0.25], "backbone.architecture.embed_dim": 32, "backbone.stride": 12,
    "prompts.words": "käse: [a] # b\nc", "seed": 2**40, "optim.eps": 1e-8, "loop.evaluate_before": False,
}  # fmt: skip


@pytest.mark.parametrize("recipe", sorted(set(recipe_names()) - {"adapt"}))
@pytest.mark.parametrize("changes", [{}, UNUSUAL], ids=["as it is", "changed"])
def test_a_saved_config_comes_back_equal(tmp_path: Path, recipe: str, changes: dict[str, Any]) -> None:
    config = load_config(recipe, changes)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == load_config(to_dict(config)) == config
    written = read_yaml(tmp_path / "config.yaml")
    assert written == to_dict(config), "defaults included"
    assert written["optim"].keys() == {item.name for item in dataclasses.fields(OptimConfig)}


LATER = {
    "lora": ..., "mlm": ..., "loss": ("tal_temperature", "tal_margin", "sdm_other_image"),
    "data": ("captions_per_image", "templates"), "optim": ("layer_decay", "ema_decay"),
    "augment": ("caption_mask_probability", "caption_drop_probability"),
}  # fmt: skip
"""Sections, and keys of sections, that the first config files did not have."""


@pytest.mark.parametrize("recipe", ["cskt", "cskt-reference", "finetune", "demo", "tiny"])
def test_a_file_without_later_keys_means_what_it_meant(tmp_path: Path, recipe: str) -> None:
    content = to_dict(load_config(recipe))
    for section, keys in LATER.items():
        for key in () if keys is ... else keys:
            del content[section][key]
    first = {section: value for section, value in content.items() if LATER.get(section) is not ...}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(first))
    config = load_config(tmp_path / "config.yaml")
    assert config == load_config(recipe)
    assert (config.lora.sides, config.optim.ema_decay, config.optim.layer_decay) == ("none", None, 1.0)
    assert (config.data.captions_per_image, config.data.templates, config.loss.sdm_other_image) == (1, ("{}",), 1.0)


# --- overrides


def test_overrides_are_laid_over_the_recipe_and_touch_nothing_else() -> None:
    config = load_config("cskt-reference", {"optim.lr": 1e-5, "data.root": "elsewhere"})
    expected = load_config("cskt-reference")
    optim, data = dataclasses.replace(expected.optim, lr=1e-5), dataclasses.replace(expected.data, root="elsewhere")
    assert config == dataclasses.replace(expected, optim=optim, data=data)


def test_loss_weights_are_replaced_whole() -> None:
    assert load_config("cskt", {"loss.weights": {"itc": 0.5}}).loss == LossConfig(weights={"itc": 0.5})


def test_merge_descends_into_mappings_and_changes_neither_side() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": 3, "weights": {"sdm": 1}, "n": {"k": 1}}
    override = {"a": {"y": 5, "z": 6}, "b": {"c": 1}, "weights": {"itc": 1}, "n": None}
    before = str((base, override))
    assert merge(base, override) == {
        "a": {"x": 1, "y": 5, "z": 6}, "b": {"c": 1}, "weights": {"itc": 1}, "n": None
    }  # fmt: skip
    assert str((base, override)) == before


def test_nest_unfolds_dots() -> None:
    assert nest({"a.b.c": 1, "a.b.d": 2, "e": 3}) == {"a": {"b": {"c": 1, "d": 2}}, "e": 3}


def test_nearest_names_one_or_all() -> None:
    assert nearest("sdn", ["sdm", "itc"]) == "did you mean 'sdm'?"
    assert nearest("zzz", ["sdm", "itc"]) == "known: itc, sdm"


# --- what every field owes


def test_flat_fields_are_the_leaves_of_a_config() -> None:
    def leaves(content: dict[str, Any], prefix: str = "") -> set[str]:
        return {
            leaf
            for key, value in content.items()
            for leaf in (
                leaves(value, f"{prefix}{key}.")
                if isinstance(value, dict) and key not in ("weights", "ops", "views")
                else {prefix + key}
            )
        }

    names = [name for name, _ in flat_fields()]
    assert len(names) == len(set(names)) and set(names) == leaves(to_dict(RunConfig()))


def test_constants_of_single_losses_are_read_and_written_below_the_name_of_the_loss() -> None:
    config = load_config({"loss": {"weights": {"sce": 1.0}, "sce": {"smoothing": 0.1}}}, {"loss.sce.power": 2})
    assert config.loss.constants == {"sce": {"smoothing": 0.1, "power": 2}}
    assert to_dict(config)["loss"]["sce"] == {"smoothing": 0.1, "power": 2}
    assert load_config(to_dict(config)) == config
    assert flat_values(config)["loss.sce.smoothing"] == 0.1
    assert flat_values(RunConfig()).keys() == {name for name, _ in flat_fields()}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"temprature": 0.1}, "unknown key 'loss.temprature': did you mean 'loss.temperature'"),
        ({"temperature": {"a": 1}}, "loss.temperature: input should be a valid number"),
        ({"sce": {"smoothing": {"a": 1}}}, "loss.constants.sce.smoothing"),
        ({"sce": {1: 2}}, "loss.constants.sce"),
    ],
)
def test_malformed_constants_of_losses_are_refused(loss: dict[str, Any], message: str) -> None:
    with pytest.raises(CsktError, match=message):
        load_config({"loss": loss})


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_has_a_description_and_is_frozen(section: type) -> None:
    fields = section.__pydantic_fields__  # type: ignore[attr-defined]
    sections = {"backbone", "prompts", "adapters", "lora", "mlm", "loss", "data", "augment", "optim", "loop"}
    for name, field in fields.items():
        if not (section is RunConfig and name in sections):
            assert field.description and field.description.strip().endswith("."), name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(section(), next(iter(fields)), 1)


def test_patches_are_counted_as_the_convolution_does() -> None:
    assert ClipArchitecture().grid == (14, 14)
    assert ClipArchitecture(image_height=384, image_width=128).grid == (24, 8)
    assert ClipArchitecture(image_height=384, image_width=128, stride=12).grid == (31, 10)
    assert ClipArchitecture(image_height=16, image_width=31).grid == (1, 1)


def test_one_section_alone_can_be_checked() -> None:
    assert validate(AugmentConfig, {"pad_pixels": 3}, "file").pad_pixels == 3
    with pytest.raises(ValueError, match=r"^file: unknown key 'pad_pixel': did you mean 'pad_pixels'\?"):
        validate(AugmentConfig, {"pad_pixel": 3}, "file")


def test_a_mistyped_path_is_not_taken_for_the_shipped_recipe_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"elsewhere/cskt\.yaml: no such file"):
        load_config(tmp_path / "elsewhere" / "cskt.yaml")


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = {
        "data.root": "~/data", "data.cache_dir": "~/cache", "data.noise_file": "~/noise.npy", "output_dir": "~/runs",
        "backbone.name": "~/clip.pt",
    }  # fmt: skip
    config = load_config("cskt", paths)
    assert config.data.root == f"{tmp_path}/data" and config.data.cache_dir == f"{tmp_path}/cache"
    assert config.data.noise_file == f"{tmp_path}/noise.npy" and config.output_dir == f"{tmp_path}/runs"
    assert config.backbone.name == f"{tmp_path}/clip.pt"
    assert load_config("cskt", {"backbone.name": "ViT-B/16"}).backbone.name == "ViT-B/16"
