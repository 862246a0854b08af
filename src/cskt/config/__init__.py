"""Configuration of a run: its fields (`schema` and its sections), and recipes and config files (`recipes`)."""

from cskt.config.architecture import CLIP_MEAN, CLIP_STD, ClipArchitecture
from cskt.config.fitting import changes_text
from cskt.config.model_sections import (
    CLIP_SETTINGS,
    CROP_SIZE,
    RECORDED,
    AdapterConfig,
    BackboneConfig,
    LoraConfig,
    PromptConfig,
)
from cskt.config.part_sections import (
    HOOK_FIELDS,
    PART_CONFIGS,
    DMAdapterConfig,
    NoiseDivisionConfig,
    TokenSelectionConfig,
    UpPersonConfig,
)
from cskt.config.plain_yaml import read_yaml
from cskt.config.recipes import (
    RECIPES,
    as_trained,
    completed_like,
    continues_run,
    evaluation_interpolation,
    load_config,
    merge,
    nest,
    read_recipe,
    recipe_names,
    resolve_recipe,
    save_config,
    to_dict,
    validate,
    validate_value,
    with_method,
)
from cskt.config.schema import METHOD_SECTIONS, NO_METHOD, RunConfig, flat_fields, flat_values, value_of
from cskt.config.training_sections import (
    LOSS_KEYS,
    AugmentConfig,
    DataConfig,
    LoopConfig,
    LossConfig,
    MixedDataset,
    MlmConfig,
    OptimConfig,
    ViewConfig,
)
