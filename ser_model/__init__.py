"""Speech emotion recognition: log-mel -> CNN -> BiLSTM -> attention, in the style of transformers' own audio models."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from .configuration_ser import SerConfig
from .feature_extraction_ser import SerFeatureExtractor
from .modeling_ser import SerForAudioClassification, SerModel, SerPreTrainedModel
from .pipeline_ser import SerPipeline

# Here, `AutoModelForAudioClassification.from_pretrained` finds these classes by the config's `model_type`.
AutoConfig.register("ser", SerConfig)
AutoFeatureExtractor.register(SerConfig, SerFeatureExtractor)
AutoModel.register(SerConfig, SerModel)
AutoModelForAudioClassification.register(SerConfig, SerForAudioClassification)
# Elsewhere, `save_pretrained` puts this code beside the weights, for `trust_remote_code=True`.
SerConfig.register_for_auto_class()
SerFeatureExtractor.register_for_auto_class()
SerModel.register_for_auto_class("AutoModel")
SerForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")

__all__ = [
    "SerConfig",
    "SerFeatureExtractor",
    "SerForAudioClassification",
    "SerModel",
    "SerPipeline",
    "SerPreTrainedModel",
]
