"""Configuration of the speech-emotion network: every number that changes what it computes."""

from typing import TYPE_CHECKING

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

if TYPE_CHECKING:
    # transformers copies the files that this one names, so that a fine-tuned model takes its pipeline along.
    from .pipeline_ser import SerPipeline  # noqa: F401

# RAVDESS's order: the emotion code in a file name, minus one.
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")


@strict
class SerConfig(PreTrainedConfig):
    r"""
    encoder (`str`, defaults to `"residual_bilstm_attention"`):
        The network from frames to one vector: one of `encoders_ser.ENCODERS`. Not every setting below concerns every encoder.
    feature_size (`int`, defaults to 64):
        Width of one frame of `input_features`.
    num_lags (`int`, defaults to 0):
        How many of these, the last ones, are autocorrelations instead of mel bands, which are read as they are.
    num_statistics (`list[int]`, defaults to `[0, 0, 0]`):
        Rows of kinds of statistics, rows of correlations, and columns of `statistics`. Unless they are 0, two hidden layers read
        statistics of the clip beside the encoder, and the answer is the mean of the three.
    num_cepstra (`int`, defaults to 40):
        Mel bands become so many cepstra by a discrete cosine transform; 0 leaves them as they are.
    conv_channels (`int` or `list[int]`, defaults to 96):
        Channels of each convolution (or residual block of two); one number stands for all.
    conv_strides (`list[int]`, defaults to `[2, 2, 1]`):
        One convolution or block an entry, and by how much it (or the pooling after it) shortens time.
    conv_kernel_size (`int`, defaults to 5):
        Frames that a convolution sees; odd, so that frames stay centred.
    lstm_hidden_size (`int`, defaults to 64):
        Size of the BiLSTM's state, in each direction.
    num_transformer_layers, intermediate_size (`int`, default to 3 and 128):
        Transformer layers, and the width between their two linear layers.
    num_attention_heads (`int`, defaults to 4):
        Heads of the attention over time, or of the transformer layers.
    hidden_size (`int`, defaults to 64):
        Width of a second LSTM, of a hidden layer before the classifier, and of those on statistics.
    input_dropout, conv_dropout, lstm_dropout, hidden_dropout, classifier_dropout (`float`):
        Dropout of rows of a clip's statistics, after each convolution or block, after the BiLSTM, in the transformer and at the
        layers of `hidden_size`, and before the classifier.
    temperature (`float`, defaults to 1.0):
        What the logits are divided by, so that a confidence of 0.8 is right four times in five; fitted on validation
        clips (Guo et al. 2017). It changes no prediction and takes no part in training.
    """

    model_type = "ser"

    encoder: str = "residual_bilstm_attention"
    feature_size: int = 64
    num_lags: int = 0
    num_statistics: list[int] | tuple[int, ...] = (0, 0, 0)
    num_cepstra: int = 40
    conv_channels: int | list[int] | tuple[int, ...] = 96
    conv_strides: list[int] | tuple[int, ...] = (2, 2, 1)
    conv_kernel_size: int = 5
    lstm_hidden_size: int = 64
    num_transformer_layers: int = 3
    intermediate_size: int = 128
    num_attention_heads: int = 4
    hidden_size: int = 64
    input_dropout: float | int = 0.6
    conv_dropout: float | int = 0.2
    lstm_dropout: float | int = 0.3
    hidden_dropout: float | int = 0.3
    classifier_dropout: float | int = 0.3
    temperature: float | int = 1.0

    def __post_init__(self, **kwargs):
        # The emotions, unless the caller brings its own labels in either of transformers' two ways.
        if kwargs.get("num_labels") is None and self.id2label is None:
            self.id2label = dict(enumerate(EMOTIONS))
        if self.id2label is not None and self.label2id is None:
            self.label2id = {label: int(i) for i, label in self.id2label.items()}
        super().__post_init__(**kwargs)
