import math

import numpy as np
import pytest
import scipy.fft
import torch
from transformers import Trainer, TrainingArguments

from ser_model import SerConfig, SerFeatureExtractor, SerForAudioClassification, SerModel
from ser_model.configuration_ser import EMOTIONS
from ser_model.descriptors_ser import cosines
from ser_model.encoders_ser import ENCODERS, SerBatchNorm1d, SerBatchNorm2d, SerBiLSTM
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
def test_the_encoder_hears_the_pitch():
    """Beside its cepstra as well as beside its bands."""
    torch.manual_seed(0)
    extractor = SerFeatureExtractor(feature_type="log_mel_pitch", feature_size=96)
    features = extractor(make_voice(1.0), sampling_rate=16000, return_tensors="pt")["input_features"]
    other = features.clone()
    other[..., 64:] = features[..., 64:].roll(5, -1)
    for num_cepstra in (20, 0):
        sizes = {"feature_size": 96, "num_lags": 32, "conv_channels": 8, "lstm_hidden_size": 8}
        config = SerConfig(num_cepstra=num_cepstra, **sizes)
        model = SerForAudioClassification(config).eval()
        assert (model(features).logits - model(other).logits).abs().max() > 1e-3


def learn_scale(model, statistics):
    for perceptron in model.ser.perceptrons:
        perceptron.learn_scale(statistics)


@torch.inference_mode()
def test_outliers_among_statistics_are_cut():
    config = SerConfig(num_statistics=[2, 3, 10])
    model, frames = SerForAudioClassification(config).eval(), torch.zeros(1, 5, 64)
    statistics = torch.randn(1, 5, 10)
    statistics[:, 0, 0] = 3.0
    other = statistics.clone()
    other[:, 0, 0] = 1e6
    answers = [model(frames, statistics=x).logits for x in (statistics, other)]
    torch.testing.assert_close(*answers)


def test_statistics_are_normalised_by_those_learnt_from(tmp_path):
    """Whatever their units, and after loading as well."""
    torch.manual_seed(0)
    config = SerConfig(num_statistics=[1, 2, 3], input_dropout=0.0)
    model, frames = SerForAudioClassification(config).eval(), torch.zeros(8, 5, 64)
    units, statistics = torch.tensor([1e-3, 1.0, 50.0]), torch.randn(8, 3, 3)
    learn_scale(model, statistics)
    expected = model(frames, statistics=statistics).logits
    learn_scale(model, statistics * units + 7)
    model.save_pretrained(tmp_path)
    again = SerForAudioClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(frames, statistics=statistics * units + 7).logits, expected, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_what_is_the_same_of_all_clips_says_nothing_by_its_rounding():
    """As the correlation of a contour with itself."""
    torch.manual_seed(0)
    config = SerConfig(num_statistics=[1, 2, 4])
    model, statistics = SerForAudioClassification(config).eval(), torch.randn(8, 3, 4)
    statistics[:, 0, 0] = 1.0
    learn_scale(model, statistics)
    rounded = statistics.clone()
    rounded[:, 0, 0] += 3e-7
    frames = torch.zeros(8, 5, 64)
    answers = [model(frames, statistics=x).logits for x in (statistics, rounded)]
    torch.testing.assert_close(*answers, atol=2e-3, rtol=0)


def test_layers_on_statistics_read_their_own_rows_and_lose_whole_ones():
    torch.manual_seed(0)
    config = SerConfig(num_statistics=[2, 3, 4], input_dropout=0.5)
    model, statistics = SerForAudioClassification(config).eval(), torch.randn(64, 5, 4)
    other = statistics.clone()
    other[:, 2:] += 1.0  # the correlations
    distributions, correlations = model.ser.perceptrons
    assert torch.equal(distributions(statistics), distributions(other))
    assert not torch.equal(correlations(statistics), correlations(other))
    lost = (correlations.input_dropout.train()(statistics[:, 2:]) == 0).sum(2)
    assert set(lost.unique().tolist()) == {0, 4} and 0.3 < (lost == 4).float().mean() < 0.7


def test_missing_statistics_are_named():
    model = SerForAudioClassification(SerConfig(num_statistics=[2, 3, 4])).eval()
    with pytest.raises(ValueError, match="statistics is missing"):
        model(torch.zeros(1, 5, 64))


def test_labels_that_a_clip_cannot_have_take_no_part_in_its_loss(tiny_model, batch):
    labels, possible = torch.tensor([0, 3, 3, 0]), torch.tensor([[True, False, False, True] + 4 * [False]] * 4)
    loss = tiny_model(**batch[1], labels=labels, label_mask=possible).loss
    with torch.no_grad():
        for classifier in tiny_model.classifiers:
            classifier.bias[5] += 3.0
    torch.testing.assert_close(tiny_model(**batch[1], labels=labels, label_mask=possible).loss, loss)
    assert tiny_model(**batch[1], labels=labels).loss > loss


def make_encoder(encoder):
    """A small model of each kind, with what it hears of four voices."""
    torch.manual_seed(0)
    kinds = {
        "conv1d": {"feature_type": "descriptors", "feature_size": 264},
        "conv1d_bilstm_transformer": {"feature_type": "zcr_rms_mfcc", "feature_size": 32},
    }
    extractor = SerFeatureExtractor(**kinds.get(encoder, {"feature_type": "mfcc", "feature_size": 40}))
    sizes = {"conv_channels": 8, "lstm_hidden_size": 8, "hidden_size": 8, "intermediate_size": 16}
    widths = {"feature_size": extractor.feature_size, "num_statistics": extractor.num_statistics}
    config = SerConfig(encoder=encoder, num_cepstra=0, num_attention_heads=2, **widths, **sizes)
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
def test_padding_changes_nothing_beside_statistics(batch):
    torch.manual_seed(0)
    extractor = SerFeatureExtractor(feature_type="log_mel_pitch", feature_size=112, n_fft=768, statistics=True)
    inputs = extractor(batch[0], sampling_rate=16000, return_tensors="pt")
    widths = {"feature_size": 112, "num_lags": 48, "num_statistics": extractor.num_statistics}
    model = SerForAudioClassification(SerConfig(conv_channels=8, lstm_hidden_size=8, **widths)).eval()
    learn_scale(model, inputs["statistics"])
    for waveform, expected in zip(batch[0], model(**inputs).logits):
        single = extractor(waveform, sampling_rate=16000, return_tensors="pt")
        torch.testing.assert_close(model(**single).logits[0], expected, atol=1e-3, rtol=0)


def test_wrong_encoder_is_named():
    with pytest.raises(ValueError, match="encoder must be one of .*, not 'perceiver'"):
        SerModel(SerConfig(encoder="perceiver"))


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
    assert len(outputs.attentions) == 1
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


def make_joint_model():
    torch.manual_seed(0)
    config = SerConfig(conv_channels=8, lstm_hidden_size=8, num_statistics=[2, 3, 4], temperature=0.5)
    return SerForAudioClassification(config).eval()


def test_logits_are_the_classifiers_mean():
    model, frames, statistics = make_joint_model(), torch.randn(2, 9, 64), 0.1 * torch.randn(2, 5, 4)
    pooled = model.ser(frames, statistics=statistics).pooler_output.split(model.ser.pooled_sizes, -1)
    alone = [classify(x) for classify, x in zip(model.classifiers, pooled)]
    torch.testing.assert_close(model(frames, statistics=statistics).logits, sum(alone) / 3 / 0.5)


@torch.inference_mode()
def test_is_less_sure_of_a_clip_unlike_those_learnt_from():
    model, frames, statistics = make_joint_model(), torch.randn(1, 9, 64), torch.zeros(1, 5, 4)
    logits = []
    for distance in (0.5, 1.0, 2.0):
        statistics[:, :2] = distance
        model.ser.perceptrons[0].hidden.weight.zero_()  # so that nothing but the temperature follows from it
        logits.append(model(frames, statistics=statistics).logits)
    torch.testing.assert_close(logits[1], logits[0])
    torch.testing.assert_close(logits[2], logits[0] / 4**2)


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
    model = SerModel(SerConfig(num_cepstra=20))
    np.testing.assert_allclose(model.encoder.cepstrum.weight.detach(), expected, atol=1e-5)


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
    assert pooled.shape[1] == sum(tiny_model.ser.pooled_sizes)
    assert states.shape[0] == 4


@pytest.mark.parametrize("num_frames", [40, 1])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_learns_from_one_clip(encoder, num_frames):
    torch.manual_seed(0)
    sizes = {"conv_channels": 8, "lstm_hidden_size": 8, "num_statistics": [2, 3, 6], "num_lags": 8}
    model = SerForAudioClassification(SerConfig(encoder=encoder, num_cepstra=0, **sizes)).train()
    inputs = {"input_features": torch.randn(1, num_frames, 64), "statistics": torch.randn(1, 5, 6)}
    model(**inputs, labels=torch.tensor([2])).loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)
    assert any(weight.grad is not None and weight.grad.any() for weight in model.ser.parameters())
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("ours", "theirs", "size"),
    [(SerBatchNorm1d, torch.nn.BatchNorm1d, (4, 3)), (SerBatchNorm2d, torch.nn.BatchNorm2d, (1, 3, 5, 2))],
)
def test_batch_normalisation_is_torchs_but_for_one_value_a_channel(ours, theirs, size):
    torch.manual_seed(0)
    ours, theirs = ours(3), theirs(3)
    for _ in range(2):
        batch = 2 + 3 * torch.randn(size)
        torch.testing.assert_close(ours(batch), theirs(batch))
    before = ours.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    one = batch[:1, :, :1, :1] if batch.ndim == 4 else batch[:1]
    learnt = ours(one)
    torch.testing.assert_close(ours.state_dict(), before)  # one value says nothing of the spread
    torch.testing.assert_close(ours.eval()(one), learnt)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours(batch), theirs.eval()(batch))


def test_a_stock_trainer_may_end_with_a_batch_of_one_clip(tmp_path):
    torch.manual_seed(0)
    sizes = {"conv_channels": 8, "lstm_hidden_size": 8, "num_statistics": [2, 3, 6], "hidden_size": 8}
    model = SerForAudioClassification(SerConfig(num_cepstra=20, **sizes))
    clips = [
        {"input_features": torch.randn(30, 64), "statistics": torch.randn(5, 6), "labels": label} for label in (0, 1, 2)
    ]
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        num_train_epochs=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
    )
    done = Trainer(model=model, args=arguments, train_dataset=clips).train()
    assert done.global_step == 4 and math.isfinite(done.training_loss)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
