"""The trace of a model: what was recorded of its operations and parameters, and what the books say."""

from __future__ import annotations

import math
from collections import Counter

from trainlint.observe.optimizers import Optimizers
from trainlint.observe.parameters import ParameterRecorder
from trainlint.observe.recorder import Recorder, SiteRecord
from trainlint.observe.roots import Root
from trainlint.observe.trace import InputTrace, ModelTrace, ParameterTrace, SiteTrace


def model_trace(
    root: Root,
    forwards: Counter[tuple[str, bool]],
    recorder: Recorder,
    parameters: ParameterRecorder,
    optimizers: Optimizers,
) -> ModelTrace:
    """Of what was moved to the host so far."""
    records = [record for record in recorder.sites.values() if record.root == root.number]
    return ModelTrace(
        root.name,
        root.site,
        bool(root.held),
        dict(forwards),
        [_site(record, recorder) for record in records],
        [_parameter(root, name, parameters, optimizers) for name in root.shapes],
        root.layers,
        optimizers.neglected(root),
        _inputs(records),
        root.dropout,
        list(root.trained_at.values()),
    )


def _site(record: SiteRecord, recorder: Recorder) -> SiteTrace:
    steps, columns = recorder.series(record)
    columns["std"] = [
        None if mean is None or rms is None else math.sqrt(max(0.0, rms * rms - mean * mean))
        for mean, rms in zip(columns["mean"], columns["rms"], strict=True)
    ]
    dead, seen = record.dead()
    return SiteTrace(
        record.place,
        record.site,
        record.weight,
        steps,
        dead=dead,
        seen=seen,
        units=record.width,
        feeds=record.feeds,
        values=dict(record.values),
        layer=record.layer,
        histograms=record.histograms(),
        **columns,
    )


def _parameter(
    root: Root, name: str, parameters: ParameterRecorder, optimizers: Optimizers
) -> ParameterTrace:
    steps, (gradient, weight, update) = parameters.series((root.number, name))
    known, group = root.groups.get(name, (None, 0))
    place = optimizers.place_of(known)
    unreached = (known and known.unreached) or {}
    return ParameterTrace(
        name,
        *root.shapes[name],
        name in root.held,
        steps,
        gradient,
        weight,
        update,
        sum(g is not None for g in gradient),
        None if place is None else (place, group),
        all(root.names.get(key) != name for key in unreached),
    )


def _inputs(records: list[SiteRecord]) -> list[InputTrace]:
    found = [
        record.data.trace(record.place.path, record.place.operation)
        for record in records
        if record.data is not None
    ]
    return [data for data in found if data is not None]
