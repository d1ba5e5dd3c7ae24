"""Speech emotion recognition: log-mel and pitch -> CNN -> BiLSTM -> attention, in the style of transformers' own audio models."""

import itertools
import sys

# `python -m ser_model` reads its arguments before it loads transformers, which takes seconds. While Python is still
# looking for the module that it was asked to run, sys.argv[0] is "-m".
if not (sys.argv[:1] == ["-m"] and ("-m", __name__) in itertools.pairwise(sys.orig_argv)):
    from . import registration  # noqa: F401
    from .configuration_ser import SerConfig
    from .feature_extraction_ser import SerFeatureExtractor
    from .modeling_ser import SerForAudioClassification, SerModel, SerPreTrainedModel
    from .pipeline_ser import SerPipeline

__all__ = [
    "SerConfig",
    "SerFeatureExtractor",
    "SerForAudioClassification",
    "SerModel",
    "SerPipeline",
    "SerPreTrainedModel",
]
