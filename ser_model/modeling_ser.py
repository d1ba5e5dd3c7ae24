"""The network: convolutions, BiLSTM, attention over time. It knows neither files nor signal processing."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .configuration_ser import SerConfig


class SerCepstrum(nn.Module):
    """Log-mel bands to cepstra: an orthonormal discrete cosine transform (type II) that training may bend."""

    def __init__(self, config: SerConfig, num_cepstra: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_cepstra, config.num_mel_bins))

    def forward(self, input_features):
        return nn.functional.linear(input_features, self.weight)

    @staticmethod
    def cosines(num_cepstra: int, num_mel_bins: int) -> torch.Tensor:
        """The transform's matrix, (num_cepstra, num_mel_bins), equal to `scipy.fft.dct(type=2, norm="ortho")`."""
        order = torch.arange(num_cepstra)[:, None]
        band = torch.arange(num_mel_bins) + 0.5
        cosines = torch.cos(math.pi / num_mel_bins * order * band) * math.sqrt(2 / num_mel_bins)
        cosines[0] /= math.sqrt(2)
        return cosines


class SerResidualBlock(nn.Module):
    """Two convolutions over time and a shortcut; the first may shorten time by `stride`."""

    def __init__(self, config: SerConfig, in_channels: int, stride: int):
        super().__init__()
        channels, kernel_size = config.conv_channels, config.conv_kernel_size
        padding = kernel_size // 2
        self.stride = stride
        self.conv1 = nn.Conv1d(in_channels, channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.norm1 = nn.BatchNorm1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, kernel_size, padding=padding, bias=False)
        self.norm2 = nn.BatchNorm1d(channels)
        self.shortcut = nn.Conv1d(in_channels, channels, 1, stride=stride)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(config.conv_dropout)

    def forward(self, hidden_states, mask):
        # Padding is put back to zero before every convolution: it then looks like the end of the clip.
        residual = self.shortcut(hidden_states)
        mask = mask[..., :: self.stride]
        hidden_states = self.activation(self.norm1(self.conv1(hidden_states))) * mask
        hidden_states = self.norm2(self.conv2(hidden_states)) + residual
        return self.dropout(self.activation(hidden_states)) * mask, mask


class SerAttentionPooling(nn.Module):
    """Weighs the frames, once a head, and gives the weighted mean and standard deviation of every channel."""

    def __init__(self, config: SerConfig, hidden_size: int):
        super().__init__()
        self.hidden = nn.Linear(hidden_size, hidden_size // 2)
        self.scores = nn.Linear(hidden_size // 2, config.num_attention_heads)

    def forward(self, hidden_states, mask):
        scores = self.scores(torch.tanh(self.hidden(hidden_states)))  # (batch, time, heads)
        scores = scores.masked_fill(mask[..., None] == 0, torch.finfo(scores.dtype).min)
        weights = scores.softmax(1).transpose(1, 2)  # (batch, heads, time)
        mean = weights @ hidden_states  # (batch, heads, hidden_size)
        variance = weights @ hidden_states.square() - mean.square()
        deviation = variance.clamp(min=1e-4).sqrt()
        return torch.cat([mean, deviation], -1).flatten(1), weights


class SerEncoder(nn.Module):
    """One member: (cepstra) -> convolutions -> BiLSTM -> attention over time -> one vector a clip."""

    def __init__(self, config: SerConfig, num_cepstra: int):
        super().__init__()
        self.cepstrum = SerCepstrum(config, num_cepstra) if num_cepstra else None
        in_channels = [num_cepstra or config.num_mel_bins] + [config.conv_channels] * len(config.conv_strides)
        self.blocks = nn.ModuleList(
            SerResidualBlock(config, channels, stride) for channels, stride in zip(in_channels, config.conv_strides)
        )
        self.lstm = nn.LSTM(config.conv_channels, config.lstm_hidden_size, batch_first=True, bidirectional=True)
        self.lstm_dropout = nn.Dropout(config.lstm_dropout)
        self.pooling = SerAttentionPooling(config, 2 * config.lstm_hidden_size)

    def forward(self, input_features, attention_mask):
        hidden_states = input_features if self.cepstrum is None else self.cepstrum(input_features)
        mask = attention_mask[:, None].to(hidden_states.dtype)  # (batch, 1, num_frames)
        hidden_states = hidden_states.transpose(1, 2) * mask  # (batch, channels, num_frames)
        for block in self.blocks:
            hidden_states, mask = block(hidden_states, mask)
        mask = mask[:, 0]  # (batch, time)
        hidden_states = self.lstm_dropout(self._recur(hidden_states.transpose(1, 2), mask))
        pooled, weights = self.pooling(hidden_states, mask)
        return hidden_states, pooled, weights

    def _recur(self, hidden_states, mask):
        """The BiLSTM over each clip's own length: its backward half must start at the clip's end, not the batch's."""
        lengths = mask.sum(1).long().cpu()
        if (lengths == hidden_states.shape[1]).all():  # nothing is padding: four times as fast as packed
            return self.lstm(hidden_states)[0]
        packed = nn.utils.rnn.pack_padded_sequence(hidden_states, lengths, batch_first=True, enforce_sorted=False)
        packed, _ = self.lstm(packed)
        total_length = hidden_states.shape[1]
        return nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=total_length)[0]


class SerPreTrainedModel(PreTrainedModel):
    config_class = SerConfig
    base_model_prefix = "ser"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    accepts_loss_kwargs = False  # the loss is a plain mean, whatever the Trainer counts

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, SerCepstrum):
            init.copy_(module.weight, SerCepstrum.cosines(*module.weight.shape))
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                if "weight_ih" in name:
                    init.xavier_uniform_(parameter)
                elif "weight_hh" in name:
                    init.orthogonal_(parameter)
                else:
                    init.zeros_(parameter)
        elif isinstance(module, nn.BatchNorm1d):
            super()._init_weights(module)
        if isinstance(module, (nn.Conv1d, nn.Linear)) and module.bias is not None:
            init.zeros_(module.bias)


class SerModel(SerPreTrainedModel):
    """The members side by side, without the classifier."""

    def __init__(self, config: SerConfig):
        super().__init__(config)
        self.members = nn.ModuleList(SerEncoder(config, num_cepstra) for num_cepstra in config.num_cepstra)
        self.post_init()

    def forward(self, input_features, attention_mask=None, output_attentions=None, return_dict=None):
        """
        Args:
            input_features: (batch, num_frames, num_mel_bins), as `SerFeatureExtractor` gives them.
            attention_mask: (batch, num_frames), 1 on frames and 0 on padding, which comes last; all ones if left out.
            output_attentions: Also return the attention over time.

        Returns:
            `BaseModelOutputWithPooling` with `last_hidden_state` (batch, time, members x 2 x lstm_hidden_size),
            `pooler_output` (batch, members, pooled_size), and with `output_attentions` a tuple `attentions` of one
            tensor (batch, num_attention_heads, time) a member, whose weights sum to 1 over time and are 0 on padding.
            One step of time is the product of `conv_strides` frames.
        """
        if attention_mask is None:
            attention_mask = torch.ones(input_features.shape[:2], device=input_features.device)
        states, pooled, weights = zip(*(member(input_features, attention_mask) for member in self.members))
        outputs = BaseModelOutputWithPooling(
            last_hidden_state=torch.cat(states, -1),
            pooler_output=torch.stack(pooled, 1),
            attentions=weights if self._or_config(output_attentions, "output_attentions") else None,
        )
        return outputs if self._or_config(return_dict, "return_dict") else outputs.to_tuple()

    def _or_config(self, value, name: str):
        return getattr(self.config, name) if value is None else value


class SerForAudioClassification(SerPreTrainedModel):
    """The members, a linear classifier on each, and the mean of their probabilities."""

    def __init__(self, config: SerConfig):
        super().__init__(config)
        self.ser = SerModel(config)
        # A mean and a deviation for each head and each of the BiLSTM's two directions.
        pooled_size = 2 * config.num_attention_heads * 2 * config.lstm_hidden_size
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifiers = nn.ModuleList(nn.Linear(pooled_size, config.num_labels) for _ in config.num_cepstra)
        self.post_init()

    def forward(self, input_features, attention_mask=None, labels=None, output_attentions=None, return_dict=None):
        """
        Args:
            input_features, attention_mask, output_attentions: As in `SerModel`.
            labels: (batch,) int64, or (batch, num_labels) float, a distribution over the labels for each clip.

        Returns:
            `SequenceClassifierOutput` with `logits` (batch, num_labels), the logarithms of the members' mean
            probabilities over the temperature; `attentions` as in `SerModel`; and with `labels` the `loss`, the members' mean cross-entropy:
            each member learns by itself, since members that lean on each other average less well.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        outputs = self.ser(input_features, attention_mask, output_attentions=output_attentions, return_dict=True)
        pooled = self.dropout(outputs.pooler_output)  # (batch, members, pooled_size)
        member_logits = torch.stack([classify(x) for classify, x in zip(self.classifiers, pooled.unbind(1))], 1)
        mean_log_probabilities = member_logits.log_softmax(-1).logsumexp(1) - math.log(len(self.classifiers))
        logits = mean_log_probabilities / self.config.temperature
        loss = None
        if labels is not None:
            losses = [nn.functional.cross_entropy(member, labels) for member in member_logits.unbind(1)]
            loss = torch.stack(losses).mean()
        result = SequenceClassifierOutput(loss=loss, logits=logits, attentions=outputs.attentions)
        return result if return_dict else result.to_tuple()
