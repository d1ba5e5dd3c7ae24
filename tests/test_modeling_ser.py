import math

import numpy as np
import pytest
import scipy.fft
import torch

from ser_model import SerConfig, SerFeatureExtractor, SerForAudioClassification, SerModel
from ser_model.configuration_ser import EMOTIONS
from ser_model.descriptors_ser import cosines
from ser_model.encoders_ser import ENCODERS, SerBiLSTM
from tests.conftest import make_voice


@pytest.fixture
def batch(extractor):
    waveforms = [make_voice(d, seed=i) for i, d in enumerate((0.6, 2.0, 0.05, 1.3))]
    return waveforms, extractor(waveforms, sampling_rate=16000, return_tensors="pt")


def test_labels_are_ravdess_order():
    assert list(SerConfig().id2label.values()) == list(EMOTIONS)
    assert SerConfig().label2id["surprised"] == 7


def test_other_labels_replace_the_emotions(tmp_path):
    for labels in ({0: "yes", 1: "no"}, {0: "a", 1: "b", 2: "c"}):
        SerConfig(id2label=labels).save_pretrained(tmp_path)
        again = SerConfig.from_pretrained(tmp_path)
        assert again.id2label == labels
        assert again.label2id == {label: i for i, label in labels.items()}
        assert again.num_labels == len(labels)
    assert SerConfig(num_labels=3).num_labels == 3


@torch.inference_mode()
def test_batch_equals_singles_and_padding_changes_nothing(tiny_model, extractor, batch):
    waveforms, inputs = batch
    logits = tiny_model(**inputs).logits
    assert logits.shape == (4, 8)
    for waveform, expected in zip(waveforms, logits):
        single = extractor(waveform, sampling_rate=16000, return_tensors="pt")
        torch.testing.assert_close(tiny_model(**single).logits[0], expected, atol=1e-5, rtol=0)
    wider = {
        "input_features": torch.nn.functional.pad(inputs["input_features"], (0, 0, 0, 57), value=9.0),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 57)),
    }
    torch.testing.assert_close(tiny_model(**wider).logits, logits, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_every_member_hears_the_pitch():
    """Beside its cepstra as well as beside its bands."""
    torch.manual_seed(0)
    extractor = SerFeatureExtractor(feature_type="log_mel_pitch", feature_size=96)
    features = extractor(make_voice(1.0), sampling_rate=16000, return_tensors="pt")["input_features"]
    other = features.clone()
    other[..., 64:] = features[..., 64:].roll(5, -1)
    members = [("residual_bilstm_attention", 20), ("residual_bilstm_attention", 0), ("image_bilstm_attention", 0)]
    for encoder, num_cepstra in members:
        sizes = {"feature_size": 96, "num_lags": 32, "conv_channels": 8, "lstm_hidden_size": 8}
        config = SerConfig(encoder=encoder, num_cepstra=[num_cepstra], **sizes)
        model = SerForAudioClassification(config).eval()
        assert (model(features).logits - model(other).logits).abs().max() > 1e-3


@torch.inference_mode()
def test_outliers_among_statistics_are_cut():
    config = SerConfig(encoder="distribution_perceptron", num_statistics=[2, 0, 10], num_cepstra=[0])
    model, frames = SerForAudioClassification(config).eval(), torch.zeros(1, 5, 64)
    statistics = torch.randn(1, 2, 10)
    statistics[:, 0, 0] = 3.0
    other = statistics.clone()
    other[:, 0, 0] = 1e6
    answers = [model(frames, statistics=x).logits for x in (statistics, other)]
    torch.testing.assert_close(*answers)


def test_statistics_are_normalised_by_those_learnt_from(tmp_path):
    """Whatever their units, and after loading as well."""
    torch.manual_seed(0)
    config = SerConfig(encoder="correlation_perceptron", num_statistics=[1, 2, 3], num_cepstra=[0], input_dropout=0.0)
    model, frames = SerForAudioClassification(config).eval(), torch.zeros(8, 5, 64)
    units, statistics = torch.tensor([1e-3, 1.0, 50.0]), torch.randn(8, 3, 3)
    model.ser.members[0].learn_scale(statistics)
    expected = model(frames, statistics=statistics).logits
    model.ser.members[0].learn_scale(statistics * units + 7)
    model.save_pretrained(tmp_path)
    again = SerForAudioClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(frames, statistics=statistics * units + 7).logits, expected, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_what_is_the_same_of_all_clips_says_nothing_by_its_rounding():
    """As the correlation of a contour with itself."""
    torch.manual_seed(0)
    config = SerConfig(encoder="correlation_perceptron", num_statistics=[0, 2, 4], num_cepstra=[0])
    model, statistics = SerForAudioClassification(config).eval(), torch.randn(8, 2, 4)
    statistics[:, 0, 0] = 1.0
    model.ser.members[0].learn_scale(statistics)
    rounded = statistics.clone()
    rounded[:, 0, 0] += 3e-7
    frames = torch.zeros(8, 5, 64)
    answers = [model(frames, statistics=x).logits for x in (statistics, rounded)]
    torch.testing.assert_close(*answers, atol=2e-3, rtol=0)


def test_members_on_statistics_read_their_own_rows_and_lose_whole_ones():
    torch.manual_seed(0)
    kinds = ["distribution_perceptron", "correlation_perceptron"]
    config = SerConfig(encoder=kinds, num_statistics=[2, 3, 4], num_cepstra=[0, 0], input_dropout=0.5)
    model, statistics = SerForAudioClassification(config).eval(), torch.randn(64, 5, 4)
    other = statistics.clone()
    other[:, 2:] += 1.0  # the correlations
    for member, changes in zip(model.ser.members, (False, True)):
        (_, pooled, _), (_, again, _) = member(statistics), member(other)
        assert torch.equal(pooled, again) != changes
    seen = []
    model.ser.members[1].hidden.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].unflatten(1, (3, 4))))
    model.ser.members[1].train()(statistics)
    lost = (seen[0] == 0).sum(2)
    assert set(lost.unique().tolist()) == {0, 4} and 0.3 < (lost == 4).float().mean() < 0.7


def make_encoder(encoder):
    """A small model of each kind, with what it hears of four voices."""
    torch.manual_seed(0)
    kinds = {
        "conv1d": {"feature_type": "descriptors", "feature_size": 264},
        "conv1d_bilstm_transformer": {"feature_type": "zcr_rms_mfcc", "feature_size": 32},
        "distribution_perceptron": {"feature_type": "log_mel_pitch", "feature_size": 112, "statistics": True},
        "correlation_perceptron": {"feature_type": "log_mel_pitch", "feature_size": 112, "statistics": True},
    }
    extractor = SerFeatureExtractor(**kinds.get(encoder, {"feature_type": "mfcc", "feature_size": 40}))
    sizes = {"conv_channels": 8, "lstm_hidden_size": 8, "hidden_size": 8, "intermediate_size": 16}
    widths = {"feature_size": extractor.feature_size, "num_statistics": extractor.num_statistics}
    config = SerConfig(encoder=encoder, num_cepstra=[0], num_attention_heads=2, **widths, **sizes)
    return SerForAudioClassification(config).eval(), extractor


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder(encoder, tmp_path):
    """Batch equals singles, padding changes nothing, all of it learns, and it loads as it was saved."""
    model, extractor = make_encoder(encoder)
    waveforms = [make_voice(d, seed=i) for i, d in enumerate((0.6, 2.0, 0.05, 1.3))]
    inputs = extractor(waveforms, sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs, output_attentions=True)
        for waveform, expected in zip(waveforms, outputs.logits):
            single = extractor(waveform, sampling_rate=16000, return_tensors="pt")
            torch.testing.assert_close(model(**single).logits[0], expected, atol=1e-4, rtol=0)
        wider = {
            **inputs,
            "input_features": torch.nn.functional.pad(inputs["input_features"], (0, 0, 0, 57), value=9.0),
            "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 57)),
        }
        torch.testing.assert_close(model(**wider).logits, outputs.logits, atol=1e-4, rtol=0)
    assert (outputs.attentions is not None) == ("attention" in encoder)

    model.save_pretrained(tmp_path)
    again = SerForAudioClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**inputs).logits, outputs.logits)

    model.train()
    model(**inputs, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@torch.inference_mode()
def test_members_of_different_kinds(batch):
    """Each is what it would be alone, and padding changes nothing where there is pitch beside an image."""
    torch.manual_seed(0)
    extractor = SerFeatureExtractor(feature_type="log_mel_pitch", feature_size=96)
    inputs = extractor(batch[0], sampling_rate=16000, return_tensors="pt")
    sizes = {"feature_size": 96, "num_lags": 32, "conv_channels": 8, "lstm_hidden_size": 8}
    encoders = ["residual_bilstm_attention", "image_bilstm_attention"]
    model = SerForAudioClassification(SerConfig(encoder=encoders, num_cepstra=[20, 0], **sizes)).eval()
    logits = model(**inputs).logits
    for waveform, expected in zip(batch[0], logits):
        single = extractor(waveform, sampling_rate=16000, return_tensors="pt")
        torch.testing.assert_close(model(**single).logits[0], expected, atol=1e-5, rtol=0)
    alone = []
    for i, (encoder, num_cepstra) in enumerate(zip(encoders, [20, 0])):
        member = SerForAudioClassification(SerConfig(encoder=encoder, num_cepstra=[num_cepstra], **sizes)).eval()
        member.ser.members[0].load_state_dict(model.ser.members[i].state_dict())
        member.classifiers[0].load_state_dict(model.classifiers[i].state_dict())
        alone.append(member(**inputs).logits.exp())
    torch.testing.assert_close(logits.exp(), torch.stack(alone).mean(0))


@pytest.mark.parametrize(
    "encoder, message",
    [
        ("perceiver", "encoder must be one of"),
        (["bilstm", "perceiver"], "not 'perceiver'"),
        (["bilstm"], "one name or 2, one a member, not 1"),
    ],
)
def test_wrong_encoder_is_named(encoder, message):
    with pytest.raises(ValueError, match=message):
        SerModel(SerConfig(encoder=encoder))


def test_lstm_equals_packed_sequences():
    torch.manual_seed(0)
    lstm, lengths = SerBiLSTM(6, 5), torch.tensor([7, 1, 4])
    reference = torch.nn.LSTM(6, 5, batch_first=True, bidirectional=True)
    for name, parameter in reference.named_parameters():
        half = lstm.backwards if name.endswith("_reverse") else lstm.forwards
        parameter.data = half.get_parameter(name.removesuffix("_reverse")).data
    states = torch.randn(3, 7, 6)
    packed = torch.nn.utils.rnn.pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
    expected, (last, _) = reference(packed)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(expected, batch_first=True)
    found, final = lstm(states, (torch.arange(7) < lengths[:, None]).long())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(final, torch.cat([last[0], last[1]], -1))


@torch.inference_mode()
def test_mask_of_ones_is_the_default(tiny_model, batch):
    features = batch[1]["input_features"][:1]
    masked = tiny_model(features, torch.ones(features.shape[:2], dtype=torch.long)).logits
    torch.testing.assert_close(tiny_model(features).logits, masked)


@torch.inference_mode()
def test_attentions_cover_the_clip_and_nothing_else(tiny_model, batch):
    outputs = tiny_model(**batch[1], output_attentions=True)
    assert len(outputs.attentions) == len(tiny_model.config.num_cepstra)
    step = math.prod(tiny_model.config.conv_strides)
    num_frames = batch[1]["attention_mask"].sum(1)
    for weights in outputs.attentions:
        assert weights.shape[:2] == (4, tiny_model.config.num_attention_heads)
        torch.testing.assert_close(weights.sum(2), torch.ones(weights.shape[:2]))
        for clip, frames in zip(weights, num_frames):
            assert not clip[:, math.ceil(frames.item() / step) :].any()
    assert tiny_model(**batch[1]).attentions is None


def test_loss_takes_classes_or_distributions(tiny_model, batch):
    labels = torch.tensor([0, 3, 7, 3])
    one_hot = torch.nn.functional.one_hot(labels, 8).float()
    loss = tiny_model(**batch[1], labels=labels).loss
    torch.testing.assert_close(tiny_model(**batch[1], labels=one_hot).loss, loss)


def test_logits_are_the_members_mean_probability(tiny_model, batch):
    probabilities = tiny_model(**batch[1]).logits.exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))


def test_members_count_alike(tiny_model, batch):
    sizes = [classify.in_features for classify in tiny_model.classifiers]
    pooled = tiny_model.ser(**batch[1]).pooler_output.split(sizes, -1)
    alone = [classify(x).softmax(-1) for classify, x in zip(tiny_model.classifiers, pooled)]
    torch.testing.assert_close(tiny_model(**batch[1]).logits.softmax(-1), sum(alone) / len(alone), atol=1e-6, rtol=0)


def test_temperature_softens_without_changing_the_answer(tiny_model, batch):
    sharp = tiny_model(**batch[1]).logits.softmax(1)
    tiny_model.config.temperature = 2.0
    soft = tiny_model(**batch[1]).logits.softmax(1)
    assert (soft.max(1).values < sharp.max(1).values).all()
    assert torch.equal(soft.argmax(1), sharp.argmax(1))


def test_gradient_reaches_every_parameter(tiny_model, batch):
    tiny_model.train()
    tiny_model(**batch[1], labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    for name, parameter in tiny_model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_half_precision_runs(tiny_model, batch, dtype):
    expected = tiny_model(**batch[1]).logits.softmax(-1)
    logits = tiny_model.to(dtype)(**batch[1].to(dtype)).logits
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float().softmax(-1), expected, atol=0.03, rtol=0)


def test_cepstrum_starts_as_the_cosine_transform():
    expected = scipy.fft.dct(np.eye(64), type=2, norm="ortho", axis=0)[:20]
    np.testing.assert_allclose(cosines(20, 64), expected, atol=1e-5)
    model = SerModel(SerConfig(num_cepstra=[20]))
    np.testing.assert_allclose(model.members[0].cepstrum.weight.detach(), expected, atol=1e-5)


def test_saves_and_loads_equal(tiny_model, batch, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    again, info = SerForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(again(**batch[1]).logits, tiny_model(**batch[1]).logits)


def test_returns_tuples_on_request(tiny_model, batch):
    logits, attentions = tiny_model(**batch[1], output_attentions=True, return_dict=False)
    torch.testing.assert_close(logits, tiny_model(**batch[1]).logits)
    states, pooled, weights = tiny_model.ser(**batch[1], output_attentions=True, return_dict=False)
    assert len(attentions) == len(weights)
    assert pooled.shape[1] == sum(member.pooled_size for member in tiny_model.ser.members)
    assert states.shape[0] == 4


def test_members_can_divide_a_batch(tiny_model):
    """Each clip is judged by the one member that heard it."""
    features, mask, labels = torch.randn(6, 40, 64), torch.ones(6, 40), torch.arange(6)
    mask[1, 30:] = 0
    both = tiny_model(features, mask, labels=labels, divide_batch=True)
    first, second = tiny_model.ser.members
    for member, classify, part in ((first, 0, slice(0, 3)), (second, 1, slice(3, 6))):
        _, pooled, _ = member(features[part], mask[part])
        torch.testing.assert_close(both.logits[part], tiny_model.classifiers[classify](pooled))
    torch.testing.assert_close(both.loss, torch.nn.functional.cross_entropy(both.logits, labels))
    both.loss.backward()
    assert all(weight.grad is not None for weight in tiny_model.parameters())


@pytest.mark.parametrize("divide_batch", [False, True])
def test_says_that_statistics_are_missing(batch, divide_batch):
    encoders = ["residual_bilstm_attention", "distribution_perceptron"]
    config = SerConfig(encoder=encoders, num_cepstra=[0, 0], num_statistics=[2, 0, 10])
    labels = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="hears statistics of the whole clip: give statistics too"):
        SerForAudioClassification(config)(**batch[1], labels=labels, divide_batch=divide_batch)
