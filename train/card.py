"""The model card: what a checkpoint is, how good it is by its committed results, what it must not be used for."""

import json
import re
from pathlib import Path

import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ser_model import SerConfig

from .corpus import CORPORA, Corpus, learnt_corpora
from .ravdess import FOLDS
from .report import PROTOCOLS, corpus_title, details, other_corpora, recalls_elsewhere, result_path

MEASURES = {"uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro F1"}
NETWORKS = {
    "residual_bilstm_attention": "log-mel, pitch → CNN → BiLSTM → attention",
    "conv2d_bilstm_attention": "log-mel → CNN → BiLSTM → attention",
    "conv1d_bilstm_transformer": "zero crossings, energy, MFCC → CNN beside BiLSTM and transformer",
    "bilstm": "MFCC → BiLSTM → LSTM",
    "conv2d_bilstm": "MFCC → CNN → BiLSTM",
    "conv1d": "descriptors averaged over time → CNN",
}
OWN = "recordings of its author's own"
MIN_CLIPS = 50  # of fewer, figures without an interval, as the Hub shows them, say too little
METRIC_TYPES = {"uar": "recall", "accuracy": "accuracy", "macro_f1": "f1"}  # the Hub's own names

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}: emotions in speech

A network of {{ num_parameters }} parameters ({{ network }}) that says which of {{ num_labels }}
{{ "labels" if fine_tuning else "acted emotions" }} it hears: {{ labels }}.

{{ figures }}

## Use

```bash
pip install "transformers>={{ transformers }}" torch av soundfile soxr
```

It was tried with transformers {{ transformers }}; version 4 cannot load it.

```python
from transformers import pipeline

classifier = pipeline("audio-classification", model="{{ repo_id }}", trust_remote_code=True)
classifier("clip.m4a", top_k=1)             # a file of any format, rate and length, without ffmpeg
classifier(waveform)                        # mono, {{ sampling_rate }} Hz
classifier("call.mp3", timeline=True)       # also the answer for every few seconds
```

{% if fine_tuning.any_sound -%}
Any sound has an answer, voice or not, as some labels are for what is no voice; `voice_only=True` refuses it.
{%- else -%}
A recording without a voice has no emotion and is refused; in a timeline such windows have none. That is for Silero's voice
detector to say: after `pip install silero-vad`; without it only silence is refused. `voice_only=False` asks for an answer
all the same.
{%- endif %}

`trust_remote_code=True` runs the few Python files beside the weights: read them first, and pin what you have read with
`revision=` and the commit. The weights are safetensors, and nothing is fetched from the network while it listens.

## What it is for, and what not

{% if fine_tuning -%}
It began as {{ fine_tuning.base }}, which was trained on {{ speakers }}, with an emotion they were told to act, and was
trained further on recordings of its author's own. It is for research, teaching and play. Whatever is not among those
recordings is outside of what was measured.
{%- else -%}
It was trained on {{ speakers }}, with an emotion they were told to act.
It is for research, teaching and play. Other languages, real conversations and children are outside of what it was trained on; noise,
rooms and telephones it knows by simulation at most.
{%- endif %} What it hears is how a voice sounds, not what a person feels: do not use it to judge people, in hiring,
policing, medical decisions, insurance, at work or at school. The European Union's AI Act forbids emotion recognition at
work and in education, but for medical or safety reasons (Article 5), and elsewhere counts it among the uses of high risk
(Annex III), whose subjects must be told (Article 50).

## Training

{% if fine_tuning -%}
Fine-tuned from {{ fine_tuning.base }} on {{ fine_tuning.num_train_clips }} recordings, {{ num_epochs }} epochs, seed
{{ seed }}, {{ train_seconds }} s of training.
{%- else -%}
Recipe `{{ name }}`, {{ num_epochs }} epochs, seed {{ seed }}, {{ protocol_note }}, {{ train_seconds }} s of training.
{%- endif %} `run.json` holds every setting. Libraries: {{ versions }}.

## Data, licence, citation

{% if fine_tuning -%}
The network began with weights trained on {{ licences }}.
{%- else -%}
Trained on {{ licences }}.
{%- endif %} These weights are CC BY-NC-SA 4.0, the code beside them is Apache-2.0. If you use them, cite the data: {{ citation }}
"""


def write_card(run: dict, labels: list[str], sampling_rate: int, path: Path, *, repo_id: str | None = None) -> None:
    """
    Args:
        run: What `train.train` or `train.finetune` writes as `run.json`.
        labels: The labels in the model's order.
        path: Where the card goes; its figures come from the results committed for the recipe, or from fine-tuning.
        repo_id: Where the model will be on the Hub, as `USER/NAME`.
    """
    recipe, fine_tuning = run["recipe"], run.get("fine_tuning")
    name = repo_id.split("/")[1] if repo_id else recipe["name"]
    results = {} if fine_tuning else _committed_results(recipe["name"])
    elsewhere = [] if fine_tuning else other_corpora(recipe["name"])
    learnt = [CORPORA[corpus] for corpus in learnt_corpora(run) if corpus in CORPORA]
    own = [OWN] if not fine_tuning and len(learnt) < len(learnt_corpora(run)) else []
    trained_on = {"all": "on all speakers", "speaker-independent": f"without actors {FOLDS.get(run.get('fold'))}"}
    card = ModelCard.from_template(
        _metadata(name, _eval_results(results, elsewhere, fine_tuning), fine_tuning, learnt),
        template_str=TEMPLATE,
        name=name,
        repo_id=repo_id or f"USER/{name}",
        num_parameters=f"{run['num_parameters']:,}",
        num_labels=len(labels),
        labels=", ".join(labels),
        network=_network(recipe),
        speakers=" and ".join([_speakers(corpus, recipe["vocal_channels"]) for corpus in learnt] + own),
        licences=" and ".join([f"{corpus.title} ({corpus.license})" for corpus in learnt] + own),
        figures=_fine_tuned_figures(fine_tuning) if fine_tuning else _figures(results, elsewhere),
        fine_tuning=fine_tuning or {},
        sampling_rate=sampling_rate,
        seed=run["seed"],
        num_epochs=recipe["training"]["num_epochs"],
        protocol_note=trained_on.get(run.get("protocol"), "on 80 % of the clips"),
        train_seconds=round(run["train_seconds"]),
        transformers=".".join(transformers.__version__.split(".")[:2]),
        versions=", ".join(f"{library} {version}" for library, version in run["versions"].items()),
        citation=" ".join(f"{corpus.citation}." for corpus in learnt),
    )
    card.save(path)


def _speakers(corpus: Corpus, vocal_channels: list[str]) -> str:
    acts = " and ".join({"speech": "say", "song": "sing"}[channel] for channel in vocal_channels)
    return corpus.speakers.replace("say", acts) if corpus is CORPORA["ravdess"] else corpus.speakers


def _network(recipe: dict) -> str:
    """What the network of a recipe does."""
    beside = ", beside hidden layers on statistics of the clip" if recipe["features"].get("statistics") else ""
    return NETWORKS[recipe["model"].get("encoder", SerConfig.encoder)] + beside


def _committed_results(recipe_name: str) -> dict[str, dict]:
    paths = {protocol: result_path(recipe_name, protocol) for protocol in PROTOCOLS}
    return {protocol: json.loads(path.read_text(encoding="utf-8")) for protocol, path in paths.items() if path.exists()}


def _metadata(
    name: str, eval_results: list[EvalResult], fine_tuning: dict | None, learnt: list[Corpus]
) -> ModelCardData:
    base = fine_tuning["base"] if fine_tuning else ""
    return ModelCardData(
        license="cc-by-nc-sa-4.0",
        language=None if fine_tuning else sorted({corpus.language for corpus in learnt}) or None,
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["speech-emotion-recognition", *(corpus.title.lower() for corpus in learnt), "audio", "safetensors"],
        # The Hub links a base model only by its name there.
        base_model=base.split("@")[0] if re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", base) else None,
        metrics=["accuracy", "f1", "recall"],
        model_name=name,
        eval_results=eval_results or None,
    )


def _eval_results(results: dict[str, dict], elsewhere: list[dict], fine_tuning: dict | None) -> list[EvalResult]:
    """The figures as the Hub's `model-index` wants them, in per cent."""
    if fine_tuning and fine_tuning["num_validation_clips"] < MIN_CLIPS:
        sources = []
    elif fine_tuning:
        sources = [("own recordings", "own", fine_tuning["split"], fine_tuning["validation"])]
    else:
        sources = [
            (corpus_title(result), result["corpus"], result["protocol"], result["mean"]) for result in elsewhere
        ] + [
            (f"RAVDESS {_heard(result)}, {PROTOCOLS[protocol]}", "ravdess", protocol, result["mean"])
            for protocol, result in results.items()
        ]
    return [
        EvalResult(
            task_type="audio-classification",
            task_name="Speech emotion recognition",
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            dataset_config=config,
            metric_type=METRIC_TYPES[measure],
            metric_name=title,
            metric_value=round(100 * figures[measure], 1),
        )
        for dataset_name, dataset_type, config, figures in sources
        for measure, title in MEASURES.items()
    ]


def _heard(result: dict) -> str:
    """Which recordings it was judged by: only a random split tests song."""
    channels = result["settings"]["vocal_channels"] if result["protocol"] == "random-split" else ["speech"]
    return " and ".join(channels)


def _fine_tuned_figures(fine_tuning: dict) -> str:
    values = ", ".join(figures_with_intervals(fine_tuning["validation"]))
    heard = {
        "by speaker": "of speakers that it was not trained on",
        "by folder": "of the data's own split, whose speakers it may have been trained on",
    }.get(fine_tuning["split"], "kept out at random, whose speakers it may have been trained on")
    return f"On {fine_tuning['num_validation_clips']} recordings {heard}: {values}."


def figures_with_intervals(figures: dict) -> list[str]:
    """UAR and accuracy of `metrics.scores`, each with its interval of `metrics.intervals`, which older runs lack."""
    told = []
    for name in ("uar", "accuracy"):
        low_high = figures.get("intervals", {}).get(name)
        interval = " (95 % confidence: {:.0f} to {:.0f} %)".format(*(100 * x for x in low_high)) if low_high else ""
        told.append(f"{MEASURES[name]} {100 * figures[name]:.1f} %{interval}")
    return told


def _figures(results: dict[str, dict], elsewhere: list[dict]) -> str:
    """The results as a table, and the recall of each emotion on corpora and people never heard."""
    if not results and not elsewhere:
        return "It has not been measured: see `train.evaluate`."
    lines = ["| measured on | UAR | accuracy | macro F1 |", "|---|---|---|---|"]
    titled = [(corpus_title(result), result) for result in elsewhere]
    titled += [(f"RAVDESS {_heard(result)}: {PROTOCOLS[protocol]}", result) for protocol, result in results.items()]
    for title, result in titled:
        values = " | ".join(f"{100 * result['mean'][measure]:.1f} %" for measure in MEASURES)
        lines.append(f"| {title} | {values} |")
    if elsewhere:
        lines += ["", recalls_elsewhere(elsewhere)]
    if result := results.get("speaker-independent"):
        for line in details(result):
            lines += ["", line]
    lines += [
        "",
        "UAR is the mean recall over the emotions. Of RAVDESS's eight chance is 12.5 %; listeners reach 62.4 % accuracy.",
    ]
    if elsewhere:
        lines += ["", "Expect of a stranger's recording what is told of another corpus, not what is told of RAVDESS."]
    return "\n".join(lines)
