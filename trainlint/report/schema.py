"""The JSON Schema (2020-12) of the reports that `check`, `run` and `sweep` write with `--format json`.

Made of the structs of `trainlint.records`, so that it cannot differ from them, and of a sentence for each
field. Imports no torch.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from trainlint.generalization.swept import OVER, Standing, Swept
from trainlint.records import Report, SweepReport

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

# Fields that a report leaves out where they have nothing to say; all others are always there.
LEFT_OUT: Final = {"Report": {"repairs"}, "TargetResult": {"output", "graph", "more_graphs"}}
# Of a `Sweep`, what a report does not hold, and what it holds besides.
NOT_REPORTED: Final = {"Sweep": {"place"}}

_FIELDS: Final = """
Report: What `trainlint check` and `trainlint run` found.
  version: Of this form. It changes when a field is renamed, removed or means something else.
  findings: What was found, the most urgent first.
  targets: What became of each model, file or script that was looked at.
  repairs: What `--fix` did, fix by fix; only there with `--fix`.
SweepReport: What `trainlint sweep` found.
  version: Of this form. It changes when a field is renamed, removed or means something else.
  sweep: The trainings and their losses.
  findings: What was found on the curve.
ReportedFinding: A fault, with its place.
  code: The rule's code, three letters and three digits; never used again for another rule.
  name: The rule's name.
  severity (error|warning|info): Crashes or cannot learn; learns worse; advice.
  confidence (certain|likely|possible): Proved on the graph, strongly indicated, or worth a look.
  message: What is wrong, with the figures that show it.
  stage: What showed it: static (the graph), data, signal (one pass), probe (training), report or sweep.
  target: The target in which it was found.
  module: The path of the layer in the model; empty for the whole model.
  filename: The file to look at; null where the model has no source.
  location: Where the code at fault begins; null where the model has no source.
  end_location: Where it ends: the first column behind it.
  evidence: The figures that prove it, by name; which ones there are depends on the rule.
  symptoms: Findings that this one explains, in the same form.
  fixes: Remedies, the one to be preferred first.
  fingerprint: Names the finding whatever is edited around it; empty for symptoms.
Location: A place in a text.
  row: From 1.
  column: In characters, from 1.
Fix: A remedy.
  title: What to do, in a line.
  safety: `safe` is plainly what was meant; `unsafe` changes the model; `display-only` has no edits.
  edits: Changes of the source that make it, all together.
  verified: The proof that it helps; null unless `--verify` tried it and it did.
  reason: Why it helps: a formula or a source.
  obstacle: What stands in the way of edits, where there are none.
  patches: The same change on a live copy of the model.
  attempt: What came of trying it, where that is no proof.
Edit: Replace the text between two places.
  filename: The file.
  location: Where the replaced text begins.
  end_location: The first place behind it.
  content: What takes its place.
Attempt: A training with the fix beside one of the unchanged model.
  measure: What is compared.
  before: Of the unchanged model; null where it does not run.
  after: Of the changed one, after equally many steps.
  gain: Their difference in units of a constant answer's loss.
  error: The standard error of the gain.
  steps: Optimizer steps of each training.
  seeds: How many trainings of each there were.
  cleared: Whether the finding was gone; null where that was not looked at.
  parameters: By how many weights the model grows.
  slowdown: Seconds of a step in units of the unchanged model's.
  reason: Why it is not called verified, or was not tried.
Patch: A change of a live model or of its training.
  kind: What is done.
  modules: Paths of the layers that it is done to.
  parameters: Names of the weights that it is done to.
  calls: Calls in forwards that it is done to.
  values: What the kind needs to know.
Occurrence: A call in a forward that is no layer.
  module: The module whose forward makes it.
  operation: Its canonical name.
  ordinal: Its number among the module's calls of this operation, from 0.
TargetResult: What became of a target.
  target: Its name, as the command line takes it.
  status (ok|skipped|error): `skipped` is no fault, `error` makes the exit status 2.
  reason: Why it is not ok.
  row: The line at which its file does not parse; null for anything else.
  stages: What was looked at.
  seconds: How long that took.
  inputs: The inputs, and where they come from.
  watched: What was seen of a training.
  operations: How many operations its graph has.
  not_measurable: Rules that apply, but could not tell, and why.
  notes: Remarks, such as where the run of a file was ended.
  series: The figures of a training that was watched.
  cross_validation: What `--kfold` measured.
  repair: Which fixes help together, as `--verify` found.
  output: What it printed; only there where it failed.
  graph: Its graph; only there where an HTML report is written, too.
  more_graphs: Those of other models of the same training; only there where there are some.
ModelGraph: A model's graph.
  nodes: Its operations in order of execution.
  edges: Pairs of places in `nodes`: from, to.
  model: The class of the model, of a training that was watched.
GraphNode: An operation, or an input of the model.
  label: What the report calls it.
  operation: The class of its layer, else the canonical name of the call.
  module: The path of the module that it belongs to.
  shape: Of its result, with the dtype.
  parameters: How many weights it has.
  filename: The file that it stands in.
  row: The line.
  fault: Why it fails; empty if it does not.
  gradient: The norm of the loss's gradient by its result.
  zero: The share of its result that is 0.
  saturated: The share of its result where it is flat.
  values: How its result is spread, for layers with weights and activations.
Histogram: How the values of a result are spread, from a sample of at most 8192 of them.
  low: The outer edge of the first bin.
  high: The outer edge of the last bin.
  counts: Values in equal bins; what lies beyond is in the outer ones, exact zeros are in none.
  zero: The share of exact zeros.
  saturated: The share that comes from where a sigmoid or tanh is flat; null for others.
  spread: The RMS of what differs between samples; null where the result has no axis of them.
  step: Optimizer steps before.
  not_finite: The share that is NaN or infinite.
Series: A training as far as it was seen.
  steps: Optimizer steps.
  recorded: How many of them were looked at.
  loss: The loss function.
  guess: The loss of the best constant answer.
  models: The models that are trained.
  train: Points: optimizer steps before, training loss.
  validation: Points: optimizer steps before, validation loss.
  bands: Steps, lowest and highest: the mean ± 2 standard errors.
  optimizers: The classes of the optimizers that made the steps.
  repeats: The same with other seeds, where findings were confirmed by one.
  made_up: Whether the data were made up.
Repeat: The same training with another seed.
  seed: The seed of the order of the data, and of dropout.
  steps: Optimizer steps: as many, or more.
  train: Points: optimizer steps before, training loss.
  validation: Points: optimizer steps before, validation loss.
ModelSeries: A model that is trained.
  model: Its class or name.
  layers: In order of execution.
  activations: What the layers give, in order of execution.
ActivationSeries: The results of a layer, behind its activation where it has one.
  name: Its place in the model.
  operation: The activation, or the layer's own operation.
  layer: The layer that the activation stands behind; empty where that is not known.
  histograms: At the first, a middle and the last recorded step.
LayerSeries: A layer over the recorded steps, in medians.
  name: Its path.
  operation: Its class, or the canonical name of the call.
  gradient: The norm of the loss's gradient by its result.
  weight_gradient: The norm of the loss's gradient by its weight.
  update: The change of its weight in a step over the weight.
  dead: The share of its units that are 0 for every sample.
  samples: How many samples (positions) that was seen on.
  updates: Points: optimizer steps before, update.
  gradients: Points: optimizer steps before, gradient.
CombinedFixes: Fixes that help together.
  fixes: In the order in which they were added.
  measure: What is compared.
  before: Of the unchanged model; null where it does not run.
  after: With all of them, after equally many steps.
  gain: Their difference in units of a constant answer's loss.
  error: The standard error of the gain.
  steps: Optimizer steps of each training.
  seeds: How many trainings of each there were.
  left: Errors and warnings that are found with all of them.
AppliedFix: A fix of a combination.
  code: The code of the rule that it is for.
  name: The name of that rule.
  module: The layer that it is for.
  title: What is done.
  edited: Whether the source is changed by it; else a copy of the model was.
Repair: What `--fix` did with a fix.
  code: The code of the rule that it is for.
  name: The name of that rule.
  severity (error|warning|info): Of the finding.
  target: In which the finding was.
  module: The layer that the finding was about.
  filename: Of the finding.
  location: Of the finding.
  title: What is done.
  safety: Of the fix: `safe`, `unsafe` or `display-only`.
  status (applied|rolled-back|refused|declined): Written; worse or no better; not ours to edit; not wanted.
  reason: Why it was not applied.
  round: In which pass over the files, from 1.
  edits: Their places are those in the file before this round.
CrossValidation: Trainings on folds of the data.
  target: What was trained.
  splitter: The class of scikit-learn that made the folds.
  why: The reason for it.
  samples: Of all folds.
  loader: The loader whose data were split.
  optimizer: The optimizer.
  loss: The loss function.
  folds: One after the other.
  train_loss: Its mean over the folds.
  validation_loss: Its mean over the folds.
  gap: The validation loss over the training loss.
  metric (accuracy|R²|): Empty where there is none.
  train_metric: Its mean over the folds.
  validation_metric: Its mean over the folds.
  guess: The loss of the best constant answer.
  steps: Optimizer steps, the most of a fold.
  epochs: The most of a fold.
  best_step: Where the mean validation loss was least.
  rise: How much higher it is at the end.
  train: Points: steps before, mean training loss.
  validation: Points: steps before, mean validation loss.
  train_bands: Steps, lowest and highest: the mean training loss ± its corrected error.
  validation_bands: Steps, lowest and highest: the mean validation loss ± its corrected error.
  notes: Remarks.
  seconds: How long it took.
FoldResult: One fold.
  fold: Its number, from 1.
  reason: Why its training has no result.
  train_samples: How many samples it was trained on.
  validation_samples: How many samples it was judged on.
  steps: Optimizer steps.
  train_loss: The mean over samples after the last step.
  train_error: Its standard error.
  validation_loss: The mean over samples after the last step.
  validation_error: Its standard error.
  train_metric: On the samples trained on.
  validation_metric: On the others.
  sticks_out: Whether its validation loss differs from the others' by more than chance.
  worst: The numbers of its samples with the greatest losses, where it sticks out.
Spread: A mean over folds.
  mean: The mean.
  error: Its standard error, as if the folds were independent.
  corrected: The same with Nadeau & Bengio's correction, as they are not.
Sweep: Trainings over a range of one setting.
  target: What was trained.
  over: The setting.
  points: In rising order of the value.
  here: The place of the target as it is among the points.
  folds: How many trainings were made of each.
  steps: Optimizer steps of each training.
  epochs: Of the training samples of a fold.
  samples: Of all folds.
  splitter: The class of scikit-learn that made the folds.
  loss: The loss function.
  metric (accuracy|R²|): Empty where there is none.
  length: How the number of steps was chosen.
  widths: The integers that were changed.
  notes: Remarks.
  seconds: How long it took.
  best: The place of the least validation loss; null where nothing was measured.
  chosen: The place of the simplest model within one standard error of the best.
Swept: One value, and the losses that it led to.
  value: A factor of the widths, a strength of the penalty, or a probability.
  sizes: The integers of the file and what they become.
  parameters: How many weights the model has.
  train: The training loss of each fold.
  validation: The validation loss of each fold.
  metrics: Accuracy or R² of each fold.
  seconds: How long it took.
  reason: Why there are no losses.
  standing: Means and errors; null where there are no losses.
Standing: Where a value stands.
  train: The mean training loss.
  train_error: Its standard error.
  validation: The mean validation loss.
  validation_error: Its standard error.
  above: How far that lies above the best value's.
  above_error: The standard error of that, paired by fold.
  metric: Mean accuracy or R².
"""


def schema() -> dict[str, Any]:
    """One schema for both kinds of report: with `sweep`, that of `trainlint sweep`."""
    _, components = msgspec.json.schema_components(
        [Report, SweepReport, Standing], ref_template="#/$defs/{name}"
    )
    texts = described()
    definitions = {name: _defined(name, data, texts) for name, data in components.items()}
    return {
        "$schema": DIALECT,
        "title": "A report of trainlint",
        "if": {"required": ["sweep"]},
        "then": {"$ref": "#/$defs/SweepReport"},
        "else": {"$ref": "#/$defs/Report"},
        "$defs": dict(sorted(definitions.items())),
    }


def described() -> dict[str, dict[str, tuple[str, list[str]]]]:
    """Text, and the values that a field may have, by struct and field; a struct's own is of field ``."""
    texts: dict[str, dict[str, tuple[str, list[str]]]] = {}
    own: dict[str, tuple[str, list[str]]] = {}
    for line in _FIELDS.strip().splitlines():
        found = re.fullmatch(r"(  )?(\w+)(?: \((.*?)\))?: (.*)", line)
        assert found is not None, line
        is_field, name, values, text = found.groups()
        if is_field:
            own[name] = (text, values.split("|") if values else [])
        else:
            own = texts[name] = {"": (text, [])}
    return texts


def _defined(
    name: str, data: dict[str, Any], texts: dict[str, dict[str, tuple[str, list[str]]]]
) -> dict[str, Any]:
    if "properties" not in data:  # an enumeration
        return {key: value for key, value in data.items() if key != "title"}
    properties = {
        field: value
        for field, value in data["properties"].items()
        if field not in NOT_REPORTED.get(name, ())
    } | _computed(name)
    own = texts[name]
    return {
        "description": own[""][0],
        "type": "object",
        "properties": {field: _property(value, *own[field]) for field, value in properties.items()},
        "required": [field for field in properties if field not in LEFT_OUT.get(name, ())],
    }


def _computed(name: str) -> dict[str, Any]:
    """What a report holds besides the fields of a struct, or in a narrower form."""
    place = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    if name in (Report.__name__, SweepReport.__name__):
        return {"version": {"const": Report().version}}
    if name == "Sweep":
        return {"over": {"enum": list(OVER)}, "best": place, "chosen": place}
    if name == Swept.__name__:
        return {"standing": {"anyOf": [{"$ref": "#/$defs/Standing"}, {"type": "null"}]}}
    return {}


def _property(value: dict[str, Any], text: str, values: list[str]) -> dict[str, Any]:
    kept = {key: each for key, each in value.items() if key != "default"}
    return {"description": text, **kept, **({"enum": values} if values else {})}
