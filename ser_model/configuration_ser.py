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
    encoder (`str` or `list[str]`, defaults to `"residual_bilstm_attention"`):
        The network between features and classifier: one of `encoders_ser.ENCODERS`, for all members or one for each. Not
        every setting below concerns every encoder.
    feature_size (`int`, defaults to 64):
        Width of one frame of `input_features`.
    num_lags (`int`, defaults to 0):
        How many of these, the last ones, are autocorrelations instead of mel bands; every member reads them as they are.
    num_statistics (`list[int]`, defaults to `[0, 0, 0]`):
        Of `statistics`, which some members read instead of frames: rows of kinds of statistics, rows of correlations, columns.
    num_cepstra (`list[int]`, defaults to `[40, 0]`):
        One entry a member of the model. A member with 0 reads the features as they are; a member with a positive number
        reads a discrete cosine transform of the mel bands to that many cepstra.
    conv_channels (`int` or `list[int]`, defaults to 96):
        Channels of each convolution (or residual block of two); one number stands for all.
    conv_strides (`list[int]`, defaults to `[2, 2, 1]`):
        One convolution or block an entry, and by how much it (or the pooling after it) shortens time.
    image_channels (`list[int]`, defaults to `[16, 32, 48]`):
        Channels of each convolution over mel bands and time, as many as `conv_strides`.
    lag_channels (`int`, defaults to 64):
        Channels of the convolutions that read the autocorrelations beside such an image.
    conv_kernel_size (`int`, defaults to 5):
        Frames that a convolution sees; odd, so that frames stay centred.
    lstm_hidden_size (`int`, defaults to 64):
        Size of the BiLSTM's state, in each direction.
    num_transformer_layers, intermediate_size (`int`, default to 3 and 128):
        Transformer layers, and the width between their two linear layers.
    num_attention_heads (`int`, defaults to 4):
        Heads of the attention over time, or of the transformer layers.
    hidden_size (`int`, defaults to 64):
        Width of a second LSTM, and of a hidden layer before the classifier.
    input_dropout, conv_dropout, lstm_dropout, hidden_dropout, classifier_dropout (`float`):
        Dropout of rows of a clip's statistics, after each convolution or block, after the BiLSTM, in the transformer and at the
        layers of `hidden_size`, and before the classifier.
    temperature (`float`, defaults to 1.0):
        What the logits are divided by, so that a confidence of 0.8 is right four times in five; fitted on validation
        clips (Guo et al. 2017). It changes no prediction and takes no part in training.
    voice_only, sound_only (`bool`, default to `True`):
        Whether windows without a voice have no answer, and whether silent ones have none. False of a network that was taught
        labels for these: `SerPipeline` follows them.
    """

    model_type = "ser"

    encoder: str | list[str] | tuple[str, ...] = "residual_bilstm_attention"
    feature_size: int = 64
    num_lags: int = 0
    num_statistics: list[int] | tuple[int, ...] = (0, 0, 0)
    num_cepstra: list[int] | tuple[int, ...] = (40, 0)
    conv_channels: int | list[int] | tuple[int, ...] = 96
    conv_strides: list[int] | tuple[int, ...] = (2, 2, 1)
    image_channels: list[int] | tuple[int, ...] = (16, 32, 48)
    lag_channels: int = 64
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
    voice_only: bool = True
    sound_only: bool = True

    def __post_init__(self, **kwargs):
        # The emotions, unless the caller brings its own labels in either of transformers' two ways.
        if kwargs.get("num_labels") is None and self.id2label is None:
            self.id2label = dict(enumerate(EMOTIONS))
        if self.id2label is not None and self.label2id is None:
            self.label2id = {label: int(i) for i, label in self.id2label.items()}
        super().__post_init__(**kwargs)
