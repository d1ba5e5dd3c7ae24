"""The network: an encoder or several side by side, and a classifier. It knows neither files nor signal processing."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .configuration_ser import SerConfig
from .encoders_ser import ENCODERS, SerCepstrum, SerPerceptronEncoder


class SerPreTrainedModel(PreTrainedModel):
    config_class = SerConfig
    base_model_prefix = "ser"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    accepts_loss_kwargs = False  # the loss is a plain mean, whatever the Trainer counts

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, SerCepstrum):
            init.copy_(module.weight, module.initial_weight())
        elif isinstance(module, SerPerceptronEncoder):
            init.zeros_(module.mean)
            init.ones_(module.deviation)
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
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
            super()._init_weights(module)
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and module.bias is not None:
            init.zeros_(module.bias)


def _encoders(config: SerConfig) -> list[type]:
    """One a member."""
    num_members = len(config.num_cepstra)
    names = [config.encoder] * num_members if isinstance(config.encoder, str) else list(config.encoder)
    if len(names) != num_members:
        raise ValueError(f"encoder must be one name or {num_members}, one a member, not {len(names)}.")
    if unknown := sorted(set(names) - set(ENCODERS)):
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, not {unknown[0]!r}.")
    return [ENCODERS[name] for name in names]


def encode(member: nn.Module, input_features, attention_mask, statistics) -> tuple:
    """What a member makes of the part of a clip's features that it reads, as in `encoders_ser`."""
    if isinstance(member, SerPerceptronEncoder):
        if statistics is None:
            raise ValueError(
                "This network also hears statistics of the whole clip: give statistics too, as the feature extractor returns "
                "them, as in model(**inputs)."
            )
        return member(statistics)
    return member(input_features, attention_mask)


class SerModel(SerPreTrainedModel):
    """The members side by side, without the classifier."""

    def __init__(self, config: SerConfig):
        super().__init__(config)
        encoders = _encoders(config)
        self.members = nn.ModuleList(kind(config, size) for kind, size in zip(encoders, config.num_cepstra))
        self.post_init()

    def forward(self, input_features, attention_mask=None, statistics=None, output_attentions=None, return_dict=None):
        """
        Args:
            input_features: (batch, num_frames, feature_size), as `SerFeatureExtractor` gives them.
            attention_mask: (batch, num_frames), 1 on frames and 0 on padding, which comes last; no padding if left out.
            statistics: (batch, num_rows, num_columns), of the whole clip, where a member reads them.
            output_attentions: Also return the attention over time.

        Returns:
            `BaseModelOutputWithPooling` with `last_hidden_state` (batch, time, sizes of all members that listen frame by
            frame; `None` without one), `pooler_output` (batch, pooled_size of all members), and with `output_attentions` a
            tuple `attentions` of one tensor (batch, num_attention_heads, time) a member with attention over time, whose
            weights sum to 1 over time and are 0 on padding; `None` without such a member. One step of time is the product
            of `conv_strides` frames.
        """
        encoded = (encode(member, input_features, attention_mask, statistics) for member in self.members)
        states, pooled, weights = ([x for x in kind if x is not None] for kind in zip(*encoded))
        wants_attentions = self._or_config(output_attentions, "output_attentions") and len(weights) > 0
        outputs = BaseModelOutputWithPooling(
            last_hidden_state=torch.cat(states, -1) if states else None,
            pooler_output=torch.cat(pooled, -1),
            attentions=tuple(weights) if wants_attentions else None,
        )
        return outputs if self._or_config(return_dict, "return_dict") else outputs.to_tuple()

    def _or_config(self, value, name: str):
        return getattr(self.config, name) if value is None else value


class SerForAudioClassification(SerPreTrainedModel):
    """The members, a linear classifier on each, and the mean of their probabilities."""

    def __init__(self, config: SerConfig):
        super().__init__(config)
        self.ser = SerModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifiers = nn.ModuleList(
            nn.Linear(member.pooled_size, config.num_labels) for member in self.ser.members
        )
        self.post_init()

    def forward(
        self,
        input_features,
        attention_mask=None,
        statistics=None,
        labels=None,
        output_attentions=None,
        return_dict=None,
        divide_batch=False,
    ):
        """
        Args:
            input_features, attention_mask, statistics, output_attentions: As in `SerModel`.
            divide_batch: For training: of n members, each hears (and is judged by) the next nth part of the batch alone.
                Members that learn from other clips at a time average better than those that learn from the same.
            labels: (batch,) int64, or (batch, num_labels) float, a distribution over the labels for each clip (which may
                sum to the clip's weight instead of 1).

        Returns:
            `SequenceClassifierOutput` with `logits` (batch, num_labels), the logarithms of the members' mean
            probabilities over the temperature; `attentions` as in `SerModel`; and with `labels` the `loss`, the members'
            mean cross-entropy: each member learns by itself, since members that lean on each other average less well.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if divide_batch:
            return self._divided(input_features, attention_mask, statistics, labels)
        outputs = self.ser(
            input_features, attention_mask, statistics, output_attentions=output_attentions, return_dict=True
        )
        pooled = self.dropout(outputs.pooler_output).split([classify.in_features for classify in self.classifiers], -1)
        member_logits = torch.stack([classify(x) for classify, x in zip(self.classifiers, pooled)], 1)
        mean = member_logits.softmax(-1).mean(1)  # (batch, num_labels)
        logits = mean.clamp(min=torch.finfo(mean.dtype).tiny).log() / self.config.temperature
        loss = None
        if labels is not None:
            losses = [nn.functional.cross_entropy(member, labels) for member in member_logits.unbind(1)]
            loss = torch.stack(losses).mean()
        result = SequenceClassifierOutput(loss=loss, logits=logits, attentions=outputs.attentions)
        return result if return_dict else result.to_tuple()

    def _divided(self, input_features, attention_mask, statistics, labels):
        """`forward` with `divide_batch`: the loss, and each clip's logits by the member that heard it."""
        num_members = len(self.classifiers)
        batch = (input_features, attention_mask, statistics, labels)
        parts = zip(*([None] * num_members if x is None else x.tensor_split(num_members) for x in batch))
        losses, logits = [], []
        for member, classify, (*features, targets) in zip(self.ser.members, self.classifiers, parts):
            _, pooled, _ = encode(member, *features)
            logits.append(classify(self.dropout(pooled)))
            losses.append(nn.functional.cross_entropy(logits[-1], targets))
        return SequenceClassifierOutput(loss=torch.stack(losses).mean(), logits=torch.cat(logits))
