"""The model card: what a checkpoint is, how good it is by its committed results, what it must not be used for."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .ravdess import CITATION, FOLDS
from .report import result_path

PROTOCOLS = {
    "speaker-independent": "people it has never heard (five folds of actors)",
    "random-split": "new clips of people it has heard (random 80/20 split)",
}
MEASURES = {"uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro F1"}

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}: emotions in speech

A network of {{ num_parameters }} parameters (log-mel → CNN → BiLSTM → attention) that says which of eight acted emotions
it hears: {{ labels }}.

{{ figures }}

## Use

```python
from transformers import pipeline

classifier = pipeline("audio-classification", model="USER/{{ name }}", trust_remote_code=True)
classifier(waveform)  # mono, float32, {{ sampling_rate }} Hz
```

## What it is for, and what not

It was trained on 24 North American actors who say two sentences with an emotion they were told to act. It is for
research, teaching and play. Other languages, real conversations, children, noise and telephones are outside of what was
measured. What it hears is how a voice sounds, not what a person feels: do not use it to judge people, in hiring, policing,
medicine, insurance, at work or at school. The European Union's AI Act forbids emotion recognition at work and in education,
but for medical or safety reasons.

## Training

Recipe `{{ name }}`, seed {{ seed }}, {{ protocol_note }}, {{ train_seconds }} s of training. Libraries: {{ versions }}.

## Data, licence, citation

Trained on RAVDESS, which is CC BY-NC-SA 4.0; so are these weights. {{ citation }}
"""


def write_card(run: dict, labels: list[str], sampling_rate: int, path: Path) -> None:
    """
    Args:
        run: What `train.train` writes as `run.json`.
        labels: The emotions in the model's order.
        path: Where the card goes; its figures come from the results committed for the recipe.
    """
    name = run["recipe"]["name"]
    results = {
        protocol: json.loads(result_path(name, protocol).read_text(encoding="utf-8"))
        for protocol in PROTOCOLS
        if result_path(name, protocol).exists()
    }
    data = ModelCardData(
        license="cc-by-nc-sa-4.0",
        language="en",
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["speech-emotion-recognition", "ravdess"],
        metrics=["accuracy", "f1", "recall"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="audio-classification",
                task_name="Speech emotion recognition",
                dataset_type="ravdess",
                dataset_name=f"RAVDESS speech, {PROTOCOLS[protocol]}",
                dataset_config=protocol,
                metric_type="recall" if measure == "uar" else "f1" if "f1" in measure else measure,
                metric_name=title,
                metric_value=round(100 * result["mean"][measure], 1),
            )
            for protocol, result in results.items()
            for measure, title in MEASURES.items()
        ]
        or None,
    )
    trained_on = {"all": "on all 24 actors", "speaker-independent": f"without actors {FOLDS.get(run['fold'])}"}
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        name=name,
        num_parameters=f"{run['num_parameters']:,}",
        labels=", ".join(labels),
        figures=_figures(results),
        sampling_rate=sampling_rate,
        seed=run["seed"],
        protocol_note=trained_on.get(run["protocol"], "on 80 % of the clips"),
        train_seconds=round(run["train_seconds"]),
        versions=", ".join(f"{library} {version}" for library, version in run["versions"].items()),
        citation=CITATION,
    )
    card.save(path)


def _figures(results: dict[str, dict]) -> str:
    """The results as a table, and the recall of each emotion on people never heard."""
    if not results:
        return "It has not been measured: see `train.evaluate`."
    lines = ["| measured on | UAR | accuracy | macro F1 |", "|---|---|---|---|"]
    for protocol, result in results.items():
        values = " | ".join(f"{100 * result['mean'][measure]:.1f} %" for measure in MEASURES)
        lines.append(f"| {PROTOCOLS[protocol]} | {values} |")
    if result := results.get("speaker-independent"):
        recalls = ", ".join(f"{label} {100 * v['recall']:.0f}" for label, v in result["per_class"].items())
        genders = ", ".join(f"{gender} {100 * v['uar']:.1f}" for gender, v in result["by_gender"].items())
        lines += ["", f"On people never heard: recall in per cent of {recalls}; UAR of {genders} voices."]
    lines += ["", "UAR is the mean recall over the eight emotions; chance is 12.5 %, listeners reach 62.4 % accuracy."]
    return "\n".join(lines)
