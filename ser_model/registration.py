"""Makes the classes of this network known to transformers' Auto* factories."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from .configuration_ser import SerConfig
from .feature_extraction_ser import SerFeatureExtractor
from .modeling_ser import SerForAudioClassification, SerModel

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
