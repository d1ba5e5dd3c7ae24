"""The network: an encoder, hidden layers on statistics, and classifiers. It knows neither files nor signal processing."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .configuration_ser import SerConfig
from .encoders_ser import ENCODERS, SerCepstrum, SerPerceptron

# With it confidence is about as right on another corpus as on RAVDESS; chosen on half of ASED's speakers.
DISTANCE_EXPONENT = 2
IMPOSSIBLE = -30.0  # a logit that means never, and is finite, as 0 x infinity is not 0


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
        elif isinstance(module, SerPerceptron):
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


class SerModel(SerPreTrainedModel):
    """The encoder, and beside it hidden layers on statistics of the clip if the configuration has any; no classifier."""

    def __init__(self, config: SerConfig):
        super().__init__(config)
        if config.encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, not {config.encoder!r}.")
        self.encoder = ENCODERS[config.encoder](config)
        num_kinds, num_contours, num_columns = config.num_statistics
        # How contours of the clip are distributed, and how they go together.
        rows = (slice(0, num_kinds), slice(num_kinds, num_kinds + num_contours)) if num_columns else ()
        self.perceptrons = nn.ModuleList(SerPerceptron(config, part) for part in rows)
        self.pooled_sizes = [part.pooled_size for part in (self.encoder, *self.perceptrons)]
        self.post_init()

    def forward(self, input_features, attention_mask=None, statistics=None, output_attentions=None, return_dict=None):
        """
        Args:
            input_features: (batch, num_frames, feature_size), as `SerFeatureExtractor` gives them.
            attention_mask: (batch, num_frames), 1 on frames and 0 on padding, which comes last; no padding if left out.
            statistics: (batch, num_rows, num_columns), of the whole clip, if the configuration has `num_statistics`.
            output_attentions: Also return the attention over time.

        Returns:
            `BaseModelOutputWithPooling` with `last_hidden_state` (batch, time, size) of the encoder, `pooler_output` (batch,
            sum of `pooled_sizes`), and with `output_attentions` a tuple `attentions` of one tensor (batch,
            num_attention_heads, time), whose weights sum to 1 over time and are 0 on padding; `None` for an encoder without
            attention over time. One step of time is the product of `conv_strides` frames.

        Raises:
            `ValueError`: there are no `statistics`, and the network reads them.
        """
        if len(self.perceptrons) and statistics is None:
            raise ValueError(
                "statistics is missing: this network reads it beside input_features, so pass on all that "
                "SerFeatureExtractor returns, as in model(**inputs)."
            )
        hidden_states, pooled, weights = self.encoder(input_features, attention_mask)
        outputs = BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=torch.cat([pooled, *(perceptron(statistics) for perceptron in self.perceptrons)], -1),
            attentions=(weights,)
            if self._or_config(output_attentions, "output_attentions") and weights is not None
            else None,
        )
        return outputs if self._or_config(return_dict, "return_dict") else outputs.to_tuple()

    def _or_config(self, value, name: str):
        return getattr(self.config, name) if value is None else value


class SerForAudioClassification(SerPreTrainedModel):
    """A linear classifier on the encoder's vector and on each hidden layer's, and the mean of their logits."""

    def __init__(self, config: SerConfig):
        super().__init__(config)
        self.ser = SerModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifiers = nn.ModuleList(nn.Linear(size, config.num_labels) for size in self.ser.pooled_sizes)
        self.post_init()

    def forward(
        self,
        input_features,
        attention_mask=None,
        statistics=None,
        labels=None,
        label_mask=None,
        output_attentions=None,
        return_dict=None,
    ):
        """
        Args:
            input_features, attention_mask, statistics, output_attentions: As in `SerModel`.
            labels: (batch,) int64, or (batch, num_labels) float, a distribution over the labels for each clip (which may
                sum to the clip's weight instead of 1).
            label_mask: (batch, num_labels) bool, which labels a clip might have had: the others take no part in its loss.

        Returns:
            `SequenceClassifierOutput` with `logits` (batch, num_labels), the mean of the classifiers' over the temperature, which
            is higher for a clip unlike those learnt from; `attentions` as in `SerModel`; and with `labels` the `loss`, the classifiers'
            mean cross-entropy: each learns by itself, since those that lean on each other average less well.
        """
        outputs = self.ser(
            input_features, attention_mask, statistics, output_attentions=output_attentions, return_dict=True
        )
        pooled = self.dropout(outputs.pooler_output).split(self.ser.pooled_sizes, -1)
        all_logits = torch.stack([classify(x) for classify, x in zip(self.classifiers, pooled)], 1)
        logits = all_logits.mean(1) / self._temperature(statistics)  # (batch, num_labels)
        loss = None
        if labels is not None:
            if label_mask is not None:
                all_logits = all_logits.masked_fill(~label_mask[:, None], IMPOSSIBLE)
            losses = [nn.functional.cross_entropy(one, labels) for one in all_logits.unbind(1)]
            loss = torch.stack(losses).mean()
        result = SequenceClassifierOutput(loss=loss, logits=logits, attentions=outputs.attentions)
        return result if (self.config.return_dict if return_dict is None else return_dict) else result.to_tuple()

    def _temperature(self, statistics):
        """
        That of the configuration, times the clip's mean square distance from those learnt from to the power of
        `DISTANCE_EXPONENT`, (batch, 1); no less, and no more for a network without statistics. A voice, room or language that
        it has not heard the like of gets a less certain answer.
        """
        if statistics is None or not len(self.ser.perceptrons):
            return self.config.temperature
        distance = self.ser.perceptrons[0].standardise(statistics).square().mean((1, 2))
        return self.config.temperature * distance.clamp(min=1.0)[:, None] ** DISTANCE_EXPONENT
