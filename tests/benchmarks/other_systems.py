"""
What runs in an environment of its own (`requirements-benchmarks.txt`): openSMILE, and five published RAVDESS networks in Keras.

The networks are written from descriptions of those projects: kinds and order of layers, and their input, are as published; a
size that is not published is a usual one. Features are librosa's, as in those projects.
"""

import os

import numpy as np

from .worker import Clips, System, cycle

RATE = 22050
NUM_LABELS = 8
NUM_FRAMES = 174  # of 512 samples: 4 s
BATCH_SIZE = 32


def opensmile_egemaps(clips: Clips, threads: int) -> System:
    import opensmile

    smile = opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=opensmile.FeatureLevel.Functionals
    )
    waveforms = clips.waveforms(16000)
    return System(
        calls={"extractor": lambda: smile.process_signal(waveforms[0], 16000)},
        many={"one by one": lambda num: [smile.process_signal(w, 16000) for w in cycle(waveforms, num)]},
    )


def cnn_bilstm_attention(clips: Clips, threads: int) -> System:
    """Log-mel picture of 3 s -> 2-D convolutions -> BiLSTM -> attention over time."""
    import librosa

    keras = _keras(threads)
    layers = keras.layers

    def features(waveform):
        waveform = librosa.util.fix_length(waveform, size=3 * RATE)
        mel = librosa.power_to_db(librosa.feature.melspectrogram(y=waveform, sr=RATE, n_mels=128), ref=np.max)
        return (librosa.util.fix_length(mel, size=128, axis=1).T[..., None] + 40) / 20

    sound = states = keras.Input((128, 128, 1))  # time, bands
    for channels in (32, 64, 128):
        states = layers.Conv2D(channels, 3, padding="same", activation="relu")(states)
        states = layers.Dropout(0.3)(layers.BatchNormalization()(layers.MaxPooling2D(2)(states)))
    states = layers.Bidirectional(layers.LSTM(128, return_sequences=True))(layers.Reshape((16, 16 * 128))(states))
    weights = layers.Softmax(axis=1)(layers.Dense(1, activation="tanh")(states))
    states = layers.Dropout(0.3)(layers.Flatten()(layers.Dot(axes=1)([weights, states])))
    return _system(keras, sound, states, features, clips)


def cnn_bilstm_transformer(clips: Clips, threads: int) -> System:
    """Zero crossings, energy and cepstra -> 1-D convolutions beside BiLSTM and three transformer blocks."""
    import librosa

    keras = _keras(threads)
    layers = keras.layers

    def features(waveform):
        waveform, _ = librosa.effects.trim(waveform)
        rows = (
            librosa.feature.zero_crossing_rate(waveform),
            librosa.feature.rms(y=waveform),
            librosa.feature.mfcc(y=waveform, sr=RATE, n_mfcc=30),
        )
        return librosa.util.fix_length(np.concatenate(rows), size=NUM_FRAMES, axis=1).T

    sound = convolved = keras.Input((NUM_FRAMES, 32))
    for channels in (64, 128, 128, 256, 256):
        convolved = layers.BatchNormalization()(
            layers.Conv1D(channels, 5, padding="same", activation="relu")(convolved)
        )
        convolved = layers.Dropout(0.2)(layers.MaxPooling1D(2)(convolved))
    states = layers.Bidirectional(layers.LSTM(64, return_sequences=True))(sound)
    for _ in range(3):
        states = layers.LayerNormalization()(states + layers.MultiHeadAttention(4, 32)(states, states))
        states = layers.LayerNormalization()(states + layers.Dense(128)(layers.Dense(256, activation="relu")(states)))
    both = layers.Concatenate()([layers.Flatten()(convolved), layers.GlobalAveragePooling1D()(states)])
    states = layers.LayerNormalization()(layers.Dropout(0.3)(layers.Dense(128, activation="relu")(both)))
    return _system(keras, sound, states, features, clips)


def bilstm(clips: Clips, threads: int) -> System:
    """40 cepstra -> BiLSTM -> LSTM."""
    keras = _keras(threads)
    layers = keras.layers
    sound = keras.Input((NUM_FRAMES, 40))
    states = layers.Dropout(0.5)(layers.Bidirectional(layers.LSTM(128, return_sequences=True))(sound))
    states = layers.Dense(64, activation="relu")(layers.Dropout(0.5)(layers.LSTM(64)(states)))
    return _system(keras, sound, states, _cepstra, clips)


def cnn_bilstm(clips: Clips, threads: int) -> System:
    """40 cepstra -> 2-D convolutions -> BiLSTM."""
    keras = _keras(threads)
    layers = keras.layers
    sound = keras.Input((NUM_FRAMES, 40))
    states = layers.Reshape((NUM_FRAMES, 40, 1))(sound)
    for channels in (32, 64):
        states = layers.BatchNormalization()(layers.Conv2D(channels, 3, padding="same", activation="relu")(states))
        states = layers.Dropout(0.3)(layers.MaxPooling2D(2)(states))
    states = layers.Bidirectional(layers.LSTM(64))(layers.Reshape((NUM_FRAMES // 4, 10 * 64))(states))
    return _system(keras, sound, layers.Dropout(0.5)(states), _cepstra, clips)


def cnn_descriptors(clips: Clips, threads: int) -> System:
    """264 descriptors, averaged over time -> 1-D convolutions along them."""
    import librosa

    keras = _keras(threads)
    layers = keras.layers

    def features(waveform):
        cepstra = librosa.feature.mfcc(y=waveform, sr=RATE, n_mfcc=40)
        rows = (
            cepstra,
            librosa.feature.delta(cepstra),
            librosa.feature.delta(cepstra, order=2),
            librosa.feature.chroma_stft(y=waveform, sr=RATE),
            librosa.feature.melspectrogram(y=waveform, sr=RATE),
            librosa.feature.spectral_centroid(y=waveform, sr=RATE),
            librosa.feature.spectral_bandwidth(y=waveform, sr=RATE),
            librosa.feature.zero_crossing_rate(waveform),
            librosa.feature.rms(y=waveform),
        )
        return np.concatenate([row.mean(1) for row in rows])[:, None]  # (264, 1)

    sound = keras.Input((264, 1))
    states = layers.Conv1D(256, 5, padding="same", activation="relu")(sound)
    states = layers.Dropout(0.1)(layers.Conv1D(128, 5, padding="same", activation="relu")(states))
    states = layers.MaxPooling1D(8)(states)
    for _ in range(2):
        states = layers.Conv1D(128, 5, padding="same", activation="relu")(states)
    return _system(keras, sound, layers.Flatten()(layers.Dropout(0.5)(states)), features, clips)


def _keras(threads: int):
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    tensorflow.config.threading.set_inter_op_parallelism_threads(threads)
    return tensorflow.keras


def _cepstra(waveform: np.ndarray) -> np.ndarray:
    """(NUM_FRAMES, 40), cut or filled up with zeros."""
    import librosa

    cepstra = librosa.feature.mfcc(y=waveform, sr=RATE, n_mfcc=40)
    return librosa.util.fix_length(cepstra, size=NUM_FRAMES, axis=1).T


def _system(keras, sound, states, features, clips: Clips) -> System:
    model = keras.Model(sound, keras.layers.Dense(NUM_LABELS, activation="softmax")(states))
    waveforms = clips.waveforms(RATE)

    def hear(batch: list[np.ndarray]) -> np.ndarray:
        # Not `predict`, whose progress and callbacks take longer than these networks do.
        return model.predict_on_batch(np.stack([features(waveform) for waveform in batch])).argmax(-1)

    def in_batches(num_clips: int) -> None:
        batch = cycle(waveforms, num_clips)
        for first in range(0, num_clips, BATCH_SIZE):
            hear(batch[first : first + BATCH_SIZE])

    return System(
        calls={"waveform": lambda: hear(waveforms[:1]), "extractor": lambda: features(waveforms[0])},
        many={
            "one by one": lambda num_clips: [hear([waveform]) for waveform in cycle(waveforms, num_clips)],
            "batches": in_batches,
        },
        num_bytes=4 * model.count_params(),
    )
