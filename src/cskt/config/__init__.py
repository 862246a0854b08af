"""Configuration of a run: its fields (`schema`), and recipes and config files (`recipes`)."""

from cskt.config.architecture import CLIP_MEAN, CLIP_STD, ClipArchitecture
from cskt.config.recipes import (
    RECIPES,
    as_trained,
    completed_like,
    evaluation_interpolation,
    load_config,
    merge,
    nest,
    read_recipe,
    read_yaml,
    recipe_names,
    resolve_recipe,
    save_config,
    to_dict,
    validate,
    validate_value,
)
from cskt.config.schema import (
    LOSS_KEYS,
    RECORDED,
    AdapterConfig,
    AugmentConfig,
    BackboneConfig,
    DataConfig,
    LoopConfig,
    LoraConfig,
    LossConfig,
    MlmConfig,
    OptimConfig,
    PromptConfig,
    RunConfig,
    flat_fields,
    flat_values,
    value_of,
)
