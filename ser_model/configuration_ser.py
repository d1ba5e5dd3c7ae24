"""Configuration of the speech-emotion network: every number that changes what it computes."""

import reprlib
from typing import TYPE_CHECKING
from unicodedata import category

from huggingface_hub.dataclasses import strict, validated_field
from transformers import PreTrainedConfig

if TYPE_CHECKING:
    # transformers copies the files that this one names, so that a fine-tuned model takes its pipeline along.
    from .pipeline_ser import SerPipeline  # noqa: F401

# RAVDESS's order: the emotion code in a file name, minus one.
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
MAX_SIZE, MAX_LENGTH = 4096, 32  # of a layer, and of a list of settings
DTYPES = ("float16", "bfloat16", "float32", "float64")


def within(low, high, *, default):
    """A field that holds a number from `low` to `high`, or a list of up to `MAX_LENGTH` of them."""

    def check(value):
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if len(numbers) > MAX_LENGTH:
            raise ValueError(f"must have at most {MAX_LENGTH} entries, not {len(numbers)}.")
        for number in numbers:
            if not low <= number <= high:  # not of NaN either
                raise ValueError(f"must be from {low} to {high}, not {reprlib.repr(number)}.")

    return validated_field(check, default=default)


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
    """

    model_type = "ser"

    encoder: str | list[str] | tuple[str, ...] = "residual_bilstm_attention"
    feature_size: int = within(1, MAX_SIZE, default=64)
    num_lags: int = within(0, MAX_SIZE, default=0)
    num_statistics: list[int] | tuple[int, ...] = within(0, MAX_SIZE, default=(0, 0, 0))
    num_cepstra: list[int] | tuple[int, ...] = within(0, MAX_SIZE, default=(40, 0))
    conv_channels: int | list[int] | tuple[int, ...] = within(1, MAX_SIZE, default=96)
    conv_strides: list[int] | tuple[int, ...] = within(1, 64, default=(2, 2, 1))
    image_channels: list[int] | tuple[int, ...] = within(1, MAX_SIZE, default=(16, 32, 48))
    lag_channels: int = within(1, MAX_SIZE, default=64)
    conv_kernel_size: int = within(1, 63, default=5)
    lstm_hidden_size: int = within(1, MAX_SIZE, default=64)
    num_transformer_layers: int = within(1, MAX_LENGTH, default=3)
    intermediate_size: int = within(1, 4 * MAX_SIZE, default=128)
    num_attention_heads: int = within(1, 16, default=4)
    hidden_size: int = within(1, MAX_SIZE, default=64)
    input_dropout: float | int = within(0, 1, default=0.6)
    conv_dropout: float | int = within(0, 1, default=0.2)
    lstm_dropout: float | int = within(0, 1, default=0.3)
    hidden_dropout: float | int = within(0, 1, default=0.3)
    classifier_dropout: float | int = within(0, 1, default=0.3)
    temperature: float | int = within(0.01, 100, default=1.0)

    def __post_init__(self, **kwargs):
        num_labels = kwargs.get("num_labels")
        if num_labels is not None and num_labels not in range(1, MAX_SIZE + 1):
            raise ValueError(f"num_labels must be from 1 to {MAX_SIZE}, not {reprlib.repr(num_labels)}.")
        # The emotions, unless the caller brings its own labels in either of transformers' two ways.
        if num_labels is None and self.id2label is None:
            self.id2label = dict(enumerate(EMOTIONS))
        if self.id2label is not None:
            self._check_labels()
        dtype = kwargs.get("torch_dtype") if self.dtype is None else self.dtype
        if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {reprlib.repr(dtype)}.")
        super().__post_init__(**kwargs)

    def _check_labels(self):
        """Here, not at every change: transformers changes the two maps one after the other."""
        ids = self.id2label if isinstance(self.id2label, dict) else {}
        names = {label for label in ids.values() if _is_name(label)}
        if {str(i) for i in ids} != {str(i) for i in range(len(names))} or not 1 <= len(names) <= MAX_SIZE:
            raise ValueError(f"id2label must number different labels from 0, not be {reprlib.repr(self.id2label)}.")
        if self.label2id is None:
            self.label2id = {label: int(i) for i, label in ids.items()}
        numbers = self.label2id if isinstance(self.label2id, dict) else {}
        if {label: str(i) for label, i in numbers.items()} != {label: str(i) for i, label in ids.items()}:
            raise ValueError(f"label2id must say the same as id2label, not {reprlib.repr(self.label2id)}.")

    def validate_sizes(self):
        num_bands, num_layers = self.feature_size - self.num_lags, len(self.conv_strides)
        if num_bands < 1:
            raise ValueError(f"num_lags must be below feature_size ({self.feature_size}), not {self.num_lags}.")
        if not self.num_cepstra:
            raise ValueError("num_cepstra must have an entry for each member.")
        if max(self.num_cepstra) > num_bands:
            raise ValueError(
                f"num_cepstra must be at most feature_size - num_lags ({num_bands}), not {self.num_cepstra}."
            )
        if len(self.num_statistics) != 3:
            raise ValueError(f"num_statistics must have 3 entries, not {len(self.num_statistics)}.")
        if not isinstance(self.conv_channels, int) and len(self.conv_channels) != num_layers:
            raise ValueError(
                f"conv_channels must have as many entries as conv_strides ({num_layers}), not {len(self.conv_channels)}."
            )
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size must be odd, not {self.conv_kernel_size}.")

    def validate_implementations(self):
        """transformers takes other names for programs to fetch, and this network has nothing that they would replace."""
        for name in ("_attn_implementation", "_experts_implementation"):
            if (value := getattr(self, name)) not in (None, "eager", "sdpa"):
                raise ValueError(f"{name} must be left out, and not be {reprlib.repr(value)}.")


def _is_name(label) -> bool:
    """Whether it can be shown: control characters can also command a terminal, and halves of surrogates are no text."""
    return isinstance(label, str) and all(category(character) not in ("Cc", "Cs") for character in label)
