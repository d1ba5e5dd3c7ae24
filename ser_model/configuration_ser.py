"""Configuration of the speech-emotion network: every number that changes what it computes."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# RAVDESS's order: the emotion code in a file name, minus one.
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")


@strict
class SerConfig(PreTrainedConfig):
    r"""
    num_mel_bins (`int`, defaults to 64):
        Width of one frame of `input_features`.
    num_cepstra (`list[int]`, defaults to `[40, 0]`):
        One entry a member of the model. A member with 0 reads the log-mel bands as they are; a member with a
        positive number starts with a discrete cosine transform to that many cepstra.
    conv_channels (`int`, defaults to 96):
        Channels of every convolution.
    conv_strides (`list[int]`, defaults to `[2, 2, 1]`):
        One residual block of two convolutions an entry, and by how much it shortens time.
    conv_kernel_size (`int`, defaults to 5):
        Frames that a convolution sees; odd, so that frames stay centred.
    lstm_hidden_size (`int`, defaults to 64):
        Size of the BiLSTM's state, in each direction.
    num_attention_heads (`int`, defaults to 4):
        Heads of the attention over time; each pools a mean and a standard deviation.
    conv_dropout, lstm_dropout, classifier_dropout (`float`):
        Dropout after each residual block, after the BiLSTM, and before the classifier.
    temperature (`float`, defaults to 1.0):
        What the logits are divided by, so that a confidence of 0.8 is right four times in five; fitted on validation
        clips (Guo et al. 2017). It changes no prediction and takes no part in training.
    """

    model_type = "ser"

    num_mel_bins: int = 64
    num_cepstra: list[int] | tuple[int, ...] = (40, 0)
    conv_channels: int = 96
    conv_strides: list[int] | tuple[int, ...] = (2, 2, 1)
    conv_kernel_size: int = 5
    lstm_hidden_size: int = 64
    num_attention_heads: int = 4
    conv_dropout: float | int = 0.2
    lstm_dropout: float | int = 0.3
    classifier_dropout: float | int = 0.3
    temperature: float | int = 1.0

    def __post_init__(self, **kwargs):
        # The emotions, unless the caller brings its own labels in either of transformers' two ways.
        if kwargs.get("num_labels") is None and self.id2label is None:
            self.id2label = dict(enumerate(EMOTIONS))
        if self.id2label is not None and self.label2id is None:
            self.label2id = {label: int(i) for i, label in self.id2label.items()}
        super().__post_init__(**kwargs)
