"""The model that a run leaves behind."""

from effarch.experiment.config import PretrainConfig
from effarch.experiment.distill import DistillConfig, student_lm_config
from effarch.models.lm import LMConfig


def model_of(config: PretrainConfig | DistillConfig) -> LMConfig:
    """The model that is trained; of a distillation, the student.

    Raises:
      UserError: it has fewer rows than the tokenizer. ValueError: the student cannot be made of its teacher.
    """
    return config.fitted().model if isinstance(config, PretrainConfig) else student_lm_config(config)
