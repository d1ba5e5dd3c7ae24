"""What runs beside PyTorch: ours, the large speech networks of transformers, and librosa's features."""

import os

import numpy as np

from .worker import Clips, System, cycle

RATE = 16000
NUM_LABELS = 8
BATCH_SIZE = 32


def ser_base(clips: Clips, threads: int) -> System:
    """Ours, whole and in parts."""
    import torch

    from ser_model import SerFeatureExtractor
    from ser_model.audio import read_audio
    from ser_model.pretrained import FOLDER
    from ser_model.scoring import load_quietly

    classifier = load_quietly("ser-base")
    torch.set_num_threads(threads)
    extractor, model = classifier.feature_extractor, classifier.model
    frames = SerFeatureExtractor.from_dict({**extractor.to_dict(), "statistics": False})
    waveforms = clips.waveforms(RATE)
    inputs = extractor(waveforms[0], sampling_rate=RATE, return_tensors="pt")
    del inputs["attention_mask"]  # one clip has no padding to mask, for the pipeline neither

    @torch.inference_mode()
    def network():
        return model(**inputs).logits

    return System(
        calls={
            "path": lambda: classifier(clips.path, top_k=1),
            "waveform": lambda: classifier(waveforms[0], top_k=1),
            "read": lambda: read_audio(clips.path, RATE),
            "extractor": lambda: extractor(waveforms[0], sampling_rate=RATE, return_tensors="pt"),
            "frames": lambda: frames(waveforms[0], sampling_rate=RATE, return_tensors="pt"),
            "network": network,
        },
        many={
            "one by one": lambda num: [classifier(waveform, top_k=1) for waveform in cycle(waveforms, num)],
            "batches": lambda num: classifier(cycle(waveforms, num), top_k=1, batch_size=BATCH_SIZE),
            **{
                f"batches of {size}": lambda num, size=size: classifier(cycle(waveforms, num), batch_size=size)
                for size in (1, 4, 16, 64, 256)
            },
            # One recording of `num` seconds.
            "seconds": lambda num: classifier(np.tile(np.concatenate(waveforms), num // 128 + 1)[: num * RATE]),
        },
        num_bytes=os.path.getsize(FOLDER / "ser-base" / "model.safetensors"),
    )


def wav2vec2_base(clips: Clips, threads: int) -> System:
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=NUM_LABELS))
    return _stock(model, Wav2Vec2FeatureExtractor(), clips, threads)


def hubert_large(clips: Clips, threads: int) -> System:
    from transformers import HubertConfig, HubertForSequenceClassification, Wav2Vec2FeatureExtractor

    config = HubertConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_labels=NUM_LABELS,
    )
    return _stock(HubertForSequenceClassification(config), Wav2Vec2FeatureExtractor(), clips, threads)


def wavlm_base(clips: Clips, threads: int) -> System:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForSequenceClassification

    model = WavLMForSequenceClassification(WavLMConfig(num_labels=NUM_LABELS))
    return _stock(model, Wav2Vec2FeatureExtractor(), clips, threads)


def ast(clips: Clips, threads: int) -> System:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    return _stock(ASTForAudioClassification(ASTConfig(num_labels=NUM_LABELS)), ASTFeatureExtractor(), clips, threads)


def _stock(model, extractor, clips: Clips, threads: int) -> System:
    """A network with random weights, which cost what trained ones do, in the pipeline of transformers."""
    import torch
    from transformers import AudioClassificationPipeline

    torch.set_num_threads(threads)
    classifier = AudioClassificationPipeline(model=model.eval(), feature_extractor=extractor)
    waveforms = clips.waveforms(RATE)
    return System(
        calls={
            "waveform": lambda: classifier(waveforms[0], top_k=1),
            "extractor": lambda: extractor(waveforms[0], sampling_rate=RATE, return_tensors="pt"),
        },
        many={"one by one": lambda num: [classifier(waveform, top_k=1) for waveform in cycle(waveforms, num)]},
        num_bytes=4 * sum(parameter.numel() for parameter in model.parameters()),
    )


def librosa_features(clips: Clips, threads: int) -> System:
    """As many bands and cepstra, as often, as our extractor and network make."""
    import librosa

    waveforms = clips.waveforms(RATE)
    frames = {"n_fft": 512, "hop_length": 256}

    def decibels(waveform):
        mel = librosa.feature.melspectrogram(y=waveform, sr=RATE, n_mels=64, **frames)
        return librosa.power_to_db(mel, ref=np.max)

    def features(waveform):
        mel = decibels(waveform)
        return mel, librosa.feature.mfcc(S=mel, n_mfcc=40)

    def usual_features(waveform):
        return decibels(waveform), librosa.feature.mfcc(y=waveform, sr=RATE, n_mfcc=40, **frames)

    return System(
        calls={"extractor": lambda: features(waveforms[0]), "usual": lambda: usual_features(waveforms[0])},
        many={"one by one": lambda num: [features(waveform) for waveform in cycle(waveforms, num)]},
    )
