"""
From a clip's features to one vector: our encoder, and those of the five published systems.

Each is called with `input_features` (batch, num_frames, feature_size) and `attention_mask` (batch, num_frames), or `None`
where there is no padding, which ours takes less time for. It returns the states over time (batch, time, size), one vector a
clip (batch, pooled_size), and the attention over time (batch, heads, time), or `None` where there is none. Padding changes
nothing: it is put back to zero before whatever looks beyond one frame, which then sees the end of the clip.
"""

import torch
from torch import nn

from .configuration_ser import SerConfig
from .descriptors_ser import cosines


class SerCepstrum(nn.Module):
    """
    Log-mel bands to cepstra: an orthonormal discrete cosine transform (type II) that training may bend. Autocorrelations,
    which follow the bands, stay as they are.
    """

    def __init__(self, config: SerConfig, num_cepstra: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_cepstra, config.feature_size - config.num_lags))

    def forward(self, input_features):
        num_bands = self.weight.shape[1]
        cepstra = nn.functional.linear(input_features[..., :num_bands], self.weight)
        return torch.cat([cepstra, input_features[..., num_bands:]], -1)

    def initial_weight(self) -> torch.Tensor:
        return cosines(*self.weight.shape)


class SerBiLSTM(nn.Module):
    """
    An LSTM over each clip's own length, in one direction or both.

    Two LSTMs, the second on clips turned round within their lengths: packed sequences give the same, but take three to ten
    times as long on a CPU.
    """

    def __init__(self, input_size: int, hidden_size: int, *, bidirectional: bool = True):
        super().__init__()
        self.forwards = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.backwards = nn.LSTM(input_size, hidden_size, batch_first=True) if bidirectional else None

    def forward(self, hidden_states, mask):
        """(batch, time, size), (batch, time) or None -> states over time, and the last of each direction, side by side."""
        if mask is None:
            return self._whole(hidden_states)
        step, num_steps = torch.arange(mask.shape[1], device=mask.device), mask.sum(1, keepdim=True).long()
        last = num_steps - 1  # (batch, 1)
        states, _ = self.forwards(hidden_states)
        final = _take_steps(states, last)
        if self.backwards is not None:
            turned = torch.where(step < num_steps, last - step, step)  # (batch, time): where each step comes from
            states_back, _ = self.backwards(_take_steps(hidden_states, turned))
            final = torch.cat([final, _take_steps(states_back, last)], -1)
            states = torch.cat([states, _take_steps(states_back, turned)], -1)
        return states * mask[..., None].to(states.dtype), final[:, 0]

    def _whole(self, hidden_states):
        """Of clips that are all as long as the batch."""
        states, _ = self.forwards(hidden_states)
        if self.backwards is None:
            return states, states[:, -1]
        states_back, _ = self.backwards(hidden_states.flip(1))
        final = torch.cat([states[:, -1], states_back[:, -1]], -1)
        return torch.cat([states, states_back.flip(1)], -1), final


class SerMaxPool(nn.Module):
    """The largest of `size` frames (and of as many bands), of a last few frames as well, and never of padding."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, hidden_states, mask):
        """(batch, channels, time) or (batch, channels, time, bands), and a mask of as many dimensions."""
        pool = nn.functional.max_pool1d if hidden_states.ndim == 3 else nn.functional.max_pool2d
        mask = mask.to(hidden_states.dtype)
        # Sums and products keep the channels last in memory, where a CPU pools ten times as fast; `masked_fill` does not.
        hidden_states = hidden_states + (1 - mask) * torch.finfo(hidden_states.dtype).min
        mask = mask[:, :, :: self.size]
        return pool(hidden_states, self.size, ceil_mode=True) * mask, mask


class SerResidualBlock(nn.Module):
    """
    Two convolutions and a shortcut; the first may leave out bands and steps of time.

    On (batch, channels, bands, time) with channels last in memory. Without bands these have size 1: a CPU takes a quarter
    less time for that than for `Conv1d`.

    Args:
        kernel, strides: Of the convolutions, in bands and in time; the sizes of a kernel are odd.
    """

    def __init__(
        self,
        config: SerConfig,
        in_channels: int,
        channels: int,
        *,
        kernel: tuple[int, int],
        strides: tuple[int, int],
    ):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.stride = strides[1]
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride=strides, padding=padding, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel, padding=padding, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=strides)
        self.dropout = nn.Dropout(config.conv_dropout)

    def forward(self, hidden_states, mask):
        mask = None if mask is None else mask[..., :: self.stride]
        residual = self.shortcut(hidden_states)
        hidden_states = _without_padding(torch.relu_(self.norm1(self.conv1(hidden_states))), mask)
        hidden_states = self.norm2(self.conv2(hidden_states)) + residual
        return _without_padding(self.dropout(torch.relu_(hidden_states)), mask), mask


class SerAttentionPooling(nn.Module):
    """Weighs the frames, once a head, and gives the weighted mean and standard deviation of every channel."""

    def __init__(self, config: SerConfig, hidden_size: int):
        super().__init__()
        self.hidden = nn.Linear(hidden_size, hidden_size // 2)
        self.scores = nn.Linear(hidden_size // 2, config.num_attention_heads)

    def forward(self, hidden_states, mask):
        scores = self.scores(torch.tanh(self.hidden(hidden_states)))  # (batch, time, heads)
        weights = _softmax_over_time(scores, mask).transpose(1, 2)  # (batch, heads, time)
        mean = weights @ hidden_states  # (batch, heads, hidden_size)
        variance = weights @ hidden_states.square() - mean.square()
        deviation = variance.clamp(min=1e-4).sqrt()
        return torch.cat([mean, deviation], -1).flatten(1), weights


class SerAttentionEncoder(nn.Module):
    """What our encoders have in common: convolutions -> BiLSTM -> attention over time."""

    def __init__(self, config: SerConfig, num_channels: int):
        super().__init__()
        self.lstm = SerBiLSTM(num_channels, config.lstm_hidden_size)
        self.lstm_dropout = nn.Dropout(config.lstm_dropout)
        self.pooling = SerAttentionPooling(config, 2 * config.lstm_hidden_size)
        self.pooled_size = 2 * config.num_attention_heads * 2 * config.lstm_hidden_size

    def convolve(self, input_features, mask):
        """
        (batch, num_frames, feature_size) and a mask (batch, 1, 1, num_frames) or None -> (batch, channels, 1, time) and a
        mask (batch, 1, 1, time) or None.
        """
        raise NotImplementedError

    def forward(self, input_features, attention_mask):
        mask = None if attention_mask is None else attention_mask[:, None, None].to(input_features.dtype)
        hidden_states, mask = self.convolve(input_features, mask)
        mask = None if mask is None else mask[:, 0, 0]  # (batch, time)
        hidden_states, _ = self.lstm(hidden_states[:, :, 0].transpose(1, 2), mask)
        hidden_states = self.lstm_dropout(hidden_states)
        pooled, weights = self.pooling(hidden_states, mask)
        return hidden_states, pooled, weights


class SerResidualEncoder(SerAttentionEncoder):
    """Ours: (cepstra) -> residual convolutions over time -> BiLSTM -> attention."""

    def __init__(self, config: SerConfig, num_cepstra: int):
        channels = _conv_channels(config)
        super().__init__(config, channels[-1])
        self.cepstrum = SerCepstrum(config, num_cepstra) if num_cepstra else None
        width = num_cepstra + config.num_lags if num_cepstra else config.feature_size
        self.blocks = _blocks_over_time(config, [width, *channels], config.conv_strides)

    def convolve(self, input_features, mask):
        hidden_states = input_features if self.cepstrum is None else self.cepstrum(input_features)
        hidden_states = _without_padding(hidden_states.transpose(1, 2)[:, :, None], mask)
        for block in self.blocks:
            hidden_states, mask = block(hidden_states, mask)
        return hidden_states, mask


class SerImageEncoder(SerAttentionEncoder):
    """
    Ours, with the mel bands as an image: a convolution and residual ones over bands and time, each of which halves the bands;
    autocorrelations -> residual convolutions over time; both side by side -> convolution of size 1 -> BiLSTM -> attention.

    Convolutions over bands find a voice's resonances wherever the size of a throat has put them.
    """

    def __init__(self, config: SerConfig, num_cepstra: int):
        num_channels = _conv_channels(config)[-1]
        super().__init__(config, num_channels)
        self.num_bands = config.feature_size - config.num_lags
        channels, strides = config.image_channels, config.conv_strides
        if len(channels) != len(strides):
            raise ValueError(
                f"image_channels must have as many entries as conv_strides ({len(strides)}), not {len(channels)}."
            )
        size, self.stride = config.conv_kernel_size, strides[0]
        self.conv = nn.Conv2d(1, channels[0], size, stride=(2, self.stride), padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels[0])
        self.blocks = nn.ModuleList(
            SerResidualBlock(config, *channels[i : i + 2], kernel=(3, 3), strides=(2, stride))
            for i, stride in enumerate(strides[1:])
        )
        width = channels[-1] * -(-self.num_bands // 2 ** len(strides))
        self.lag_blocks = nn.ModuleList()
        if config.num_lags:
            strides = [stride for stride in strides if stride > 1]
            self.lag_blocks = _blocks_over_time(
                config, [config.num_lags] + [config.lag_channels] * len(strides), strides
            )
            width += config.lag_channels
        self.joint_conv = nn.Conv2d(width, num_channels, 1, bias=False)
        self.joint_norm = nn.BatchNorm2d(num_channels)

    def convolve(self, input_features, mask):
        bands, lags = input_features[..., : self.num_bands], input_features[..., self.num_bands :]
        lags, lag_mask = _without_padding(lags.transpose(1, 2)[:, :, None], mask), mask
        # As `_as_image`, but turned by 90 degrees: (batch, 1, bands, num_frames)
        image = _without_padding(bands.transpose(1, 2).contiguous()[..., None].permute(0, 3, 1, 2), mask)
        mask = None if mask is None else mask[..., :: self.stride]
        image = _without_padding(torch.relu_(self.norm(self.conv(image))), mask)
        for block in self.blocks:
            image, mask = block(image, mask)
        joint = image.permute(0, 3, 1, 2).flatten(2).transpose(1, 2)[:, :, None]  # (batch, channels x bands, 1, time)
        for block in self.lag_blocks:
            lags, lag_mask = block(lags, lag_mask)
        if self.lag_blocks:
            joint = torch.cat([joint, lags], 1)
        return _without_padding(torch.relu_(self.joint_norm(self.joint_conv(joint))), mask), mask


class SerConv2dAttentionEncoder(nn.Module):
    """
    `cnn-bilstm-attention`: [Conv2d -> MaxPool -> ReLU -> BatchNorm -> Dropout] a channel count -> BiLSTM -> attention.
    """

    def __init__(self, config: SerConfig, num_cepstra: int):
        super().__init__()
        channels = [1, *_conv_channels(config)]
        self.convs = _convolutions(nn.Conv2d, config, channels)
        self.pools = nn.ModuleList(SerMaxPool(size) for size in config.conv_strides)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in channels[1:])
        self.dropout = nn.Dropout(config.conv_dropout)
        self.lstm = SerBiLSTM(channels[-1] * _num_bands_left(config), config.lstm_hidden_size)
        self.scores = nn.Linear(2 * config.lstm_hidden_size, 1)
        self.pooled_size = 2 * config.lstm_hidden_size

    def forward(self, input_features, attention_mask):
        hidden_states, mask = _as_image(input_features, attention_mask)
        for conv, pool, norm in zip(self.convs, self.pools, self.norms):
            hidden_states, mask = pool(conv(hidden_states), mask)
            hidden_states = self.dropout(norm(torch.relu(hidden_states))) * mask
        hidden_states, mask = _as_sequence(hidden_states, mask)
        hidden_states, _ = self.lstm(hidden_states, mask)
        weights = _softmax_over_time(self.scores(hidden_states), mask).transpose(1, 2)  # (batch, 1, time)
        return hidden_states, (weights @ hidden_states)[:, 0], weights


class SerConv2dEncoder(nn.Module):
    """`cnn-bilstm`: [Conv2d -> ReLU -> BatchNorm -> MaxPool -> Dropout] a channel count -> BiLSTM's last states."""

    def __init__(self, config: SerConfig, num_cepstra: int):
        super().__init__()
        channels = [1, *_conv_channels(config)]
        self.convs = _convolutions(nn.Conv2d, config, channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in channels[1:])
        self.pools = nn.ModuleList(SerMaxPool(size) for size in config.conv_strides)
        self.dropout = nn.Dropout(config.conv_dropout)
        self.lstm = SerBiLSTM(channels[-1] * _num_bands_left(config), config.lstm_hidden_size)
        self.pooled_size = 2 * config.lstm_hidden_size

    def forward(self, input_features, attention_mask):
        hidden_states, mask = _as_image(input_features, attention_mask)
        for conv, norm, pool in zip(self.convs, self.norms, self.pools):
            hidden_states, mask = pool(norm(torch.relu(conv(hidden_states))), mask)
            hidden_states = self.dropout(hidden_states)
        return *self.lstm(*_as_sequence(hidden_states, mask)), None


class SerConvTransformerEncoder(nn.Module):
    """
    `cnn-bilstm-transformer`, two branches side by side: [Conv1d -> BatchNorm -> MaxPool -> Dropout] a channel count, and
    BiLSTM -> transformer layers; their means over time -> Dense -> Dropout -> LayerNorm.
    """

    def __init__(self, config: SerConfig, num_cepstra: int):
        super().__init__()
        channels = [config.feature_size, *_conv_channels(config)]
        self.convs = _convolutions(nn.Conv1d, config, channels)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in channels[1:])
        self.pools = nn.ModuleList(SerMaxPool(size) for size in config.conv_strides)
        self.dropout = nn.Dropout(config.conv_dropout)
        self.lstm = SerBiLSTM(config.feature_size, config.lstm_hidden_size)
        state_size = 2 * config.lstm_hidden_size
        if state_size % config.num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide 2 x lstm_hidden_size ({state_size}), not be {config.num_attention_heads}."
            )
        layer = nn.TransformerEncoderLayer(
            state_size,
            config.num_attention_heads,
            config.intermediate_size,
            dropout=config.hidden_dropout,
            batch_first=True,
        )
        layer.activation_relu_or_gelu = 0  # or torch takes a short cut past what is put in the place of its parts
        self.transformer = nn.TransformerEncoder(layer, config.num_transformer_layers, enable_nested_tensor=False)
        self.dense = nn.Linear(channels[-1] + state_size, config.hidden_size)
        self.dense_dropout = nn.Dropout(config.hidden_dropout)
        self.dense_norm = nn.LayerNorm(config.hidden_size)
        self.pooled_size = config.hidden_size

    def forward(self, input_features, attention_mask):
        attention_mask = _ones_if_none(attention_mask, input_features)
        mask = attention_mask[:, None].to(input_features.dtype)  # (batch, 1, num_frames)
        local = input_features.transpose(1, 2) * mask  # (batch, channels, time)
        local_mask = mask
        for conv, norm, pool in zip(self.convs, self.norms, self.pools):
            local, local_mask = pool(torch.relu(norm(conv(local))), local_mask)
            local = self.dropout(local)
        hidden_states, _ = self.lstm(input_features, attention_mask)
        hidden_states = self.transformer(hidden_states, src_key_padding_mask=attention_mask == 0)
        pooled = torch.cat([_mean_over_time(local, local_mask), _mean_over_time(hidden_states.mT, mask)], -1)
        return hidden_states, self.dense_norm(self.dense_dropout(torch.relu(self.dense(pooled)))), None


class SerBiLSTMEncoder(nn.Module):
    """`bilstm`: BiLSTM -> Dropout -> LSTM's last state -> Dropout -> Linear -> ReLU."""

    def __init__(self, config: SerConfig, num_cepstra: int):
        super().__init__()
        self.lstm = SerBiLSTM(config.feature_size, config.lstm_hidden_size)
        self.lstm_dropout = nn.Dropout(config.lstm_dropout)
        self.summary = SerBiLSTM(2 * config.lstm_hidden_size, config.hidden_size, bidirectional=False)
        self.hidden_dropout = nn.Dropout(config.hidden_dropout)
        self.hidden = nn.Linear(config.hidden_size, config.hidden_size)
        self.pooled_size = config.hidden_size

    def forward(self, input_features, attention_mask):
        hidden_states, _ = self.lstm(input_features, attention_mask)
        hidden_states, last = self.summary(self.lstm_dropout(hidden_states), attention_mask)
        return hidden_states, torch.relu(self.hidden(self.hidden_dropout(last))), None


class SerConv1dEncoder(nn.Module):
    """
    `cnn-descriptors`: convolutions along the one vector that describes a clip, each with ReLU; where `conv_strides` is
    above 1, Dropout and MaxPool follow; flattened.
    """

    def __init__(self, config: SerConfig, num_cepstra: int):
        super().__init__()
        channels = [1, *_conv_channels(config)]
        self.convs = _convolutions(nn.Conv1d, config, channels)
        self.pool_sizes = tuple(config.conv_strides)
        self.dropout = nn.Dropout(config.conv_dropout)
        self.pooled_size = channels[-1] * _num_bands_left(config)

    def forward(self, input_features, attention_mask):
        hidden_states = input_features[:, :1]  # (batch, 1, feature_size): the descriptors are one frame
        for conv, size in zip(self.convs, self.pool_sizes):
            hidden_states = torch.relu(conv(hidden_states))
            if size > 1:
                hidden_states = nn.functional.max_pool1d(self.dropout(hidden_states), size, ceil_mode=True)
        return hidden_states.mT, hidden_states.flatten(1), None


class SerPerceptronEncoder(nn.Module):
    """
    Ours, on rows of statistics of the whole clip: normalised, outliers cut -> Dropout of rows -> Linear -> BatchNorm -> ReLU ->
    Dropout. Whole rows drop out, as a network that has seen few people must not rely on one kind of statistic.

    Instead of frames and a mask it is called with `statistics` (batch, num_rows, num_columns) and takes its own `rows`.
    """

    LIMIT = 3.0  # standard deviations
    MIN_DEVIATION = 1e-4  # below it are constants, as a correlation with itself, whose rounding must not count

    def __init__(self, config: SerConfig, rows: slice):
        super().__init__()
        self.rows = rows
        num_rows, num_columns = rows.stop - rows.start, config.num_statistics[-1]
        if not num_rows * num_columns:
            raise ValueError(f"num_statistics must be what the extractor gives, not {list(config.num_statistics)}.")
        self.register_buffer("mean", torch.zeros(num_rows, num_columns))
        self.register_buffer("deviation", torch.ones(num_rows, num_columns))
        self.input_dropout = nn.Dropout1d(config.input_dropout)
        self.hidden = nn.Linear(num_rows * num_columns, config.hidden_size)
        self.norm = nn.BatchNorm1d(config.hidden_size)
        self.hidden_dropout = nn.Dropout(config.hidden_dropout)
        self.pooled_size = config.hidden_size

    @torch.no_grad()
    def learn_scale(self, statistics: torch.Tensor):
        """Normalises by the mean and deviation of `statistics` (num_clips, num_rows, num_columns) from now on."""
        statistics = statistics[:, self.rows]
        self.mean.copy_(statistics.mean(0))
        self.deviation.copy_(statistics.std(0).clamp(min=self.MIN_DEVIATION))

    def forward(self, statistics):
        rows = ((statistics[:, self.rows] - self.mean) / self.deviation).clamp(-self.LIMIT, self.LIMIT)
        hidden = torch.relu(self.norm(self.hidden(self.input_dropout(rows).flatten(1))))
        return None, self.hidden_dropout(hidden), None


class SerDistributionEncoder(SerPerceptronEncoder):
    """On how contours are distributed over the clip, and how they change in it."""

    def __init__(self, config: SerConfig, num_cepstra: int):
        super().__init__(config, slice(0, config.num_statistics[0]))


class SerCorrelationEncoder(SerPerceptronEncoder):
    """On how contours, and their changes, go together."""

    def __init__(self, config: SerConfig, num_cepstra: int):
        num_kinds, num_contours, _ = config.num_statistics
        super().__init__(config, slice(num_kinds, num_kinds + num_contours))


ENCODERS = {
    "residual_bilstm_attention": SerResidualEncoder,
    "image_bilstm_attention": SerImageEncoder,
    "conv2d_bilstm_attention": SerConv2dAttentionEncoder,
    "conv1d_bilstm_transformer": SerConvTransformerEncoder,
    "bilstm": SerBiLSTMEncoder,
    "conv2d_bilstm": SerConv2dEncoder,
    "conv1d": SerConv1dEncoder,
    "distribution_perceptron": SerDistributionEncoder,
    "correlation_perceptron": SerCorrelationEncoder,
}


def _conv_channels(config: SerConfig) -> list[int]:
    channels = config.conv_channels
    if not config.conv_strides:
        raise ValueError("conv_strides must have an entry for each convolution.")
    return [channels] * len(config.conv_strides) if isinstance(channels, int) else list(channels)


def _blocks_over_time(config: SerConfig, channels: list[int], strides: list[int]) -> nn.ModuleList:
    return nn.ModuleList(
        SerResidualBlock(config, *channels[i : i + 2], kernel=(1, config.conv_kernel_size), strides=(1, stride))
        for i, stride in enumerate(strides)
    )


def _convolutions(kind: type, config: SerConfig, channels: list[int]) -> nn.ModuleList:
    size = config.conv_kernel_size
    return nn.ModuleList(kind(*channels[i : i + 2], size, padding=size // 2) for i in range(len(channels) - 1))


def _num_bands_left(config: SerConfig) -> int:
    """Of `feature_size`, after pooling by each of `conv_strides`."""
    bands = config.feature_size
    for size in config.conv_strides:
        bands = -(-bands // size)
    return bands


def _as_image(input_features, attention_mask):
    """(batch, 1, num_frames, feature_size), channels last as the CPU likes it, and a mask (batch, 1, num_frames, 1)."""
    mask = _ones_if_none(attention_mask, input_features).to(input_features.dtype)
    # Made by a permutation, as it is its strides by which a convolution tells where the channels lie.
    return (input_features * mask[..., None])[..., None].permute(0, 3, 1, 2), mask[:, None, :, None]


def _as_sequence(hidden_states, mask):
    """(batch, channels, time, bands) -> (batch, time, bands x channels), and a mask (batch, time)."""
    return hidden_states.permute(0, 2, 3, 1).flatten(2), mask[:, 0, :, 0]


def _take_steps(hidden_states, steps):
    """Step `steps[b, t]` of clip b, for (batch, time, size) and (batch, t)."""
    return hidden_states.gather(1, steps[..., None].expand(-1, -1, hidden_states.shape[2]))


def _ones_if_none(attention_mask, input_features):
    if attention_mask is None:
        return torch.ones(input_features.shape[:2], device=input_features.device)
    return attention_mask


def _without_padding(hidden_states, mask):
    return hidden_states if mask is None else hidden_states * mask


def _softmax_over_time(scores, mask):
    """Of (batch, time, heads), 0 on padding."""
    if mask is None:
        return scores.softmax(1)
    return scores.masked_fill(mask[..., None] == 0, torch.finfo(scores.dtype).min).softmax(1)


def _mean_over_time(hidden_states, mask):
    """(batch, channels, time), (batch, 1, time) -> (batch, channels)"""
    return (hidden_states * mask).sum(2) / mask.sum(2)
