"""The model card of an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from gtp_vision.core.markdown import plain
from gtp_vision.evaluation.metrics.success import success_text
from gtp_vision.serving.schema import Schema


def card(schema: Schema, provenance: Mapping[str, Any]) -> str:
    """README.md of an artifact, with the header of the Hugging Face hub."""
    licences = provenance["licences"]
    header = {
        "library_name": "gtp-vision",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "offline-reinforcement-learning", "gtp-vision", schema.agent],
        "license": licences["weights"] if licences["weights"] != "unknown" else "other",
    }
    data, scores = provenance["data"], provenance["evaluation"]
    values = {name: f"frames, uint8 {shape} (height, width, channels)" for name, shape in schema.cameras.items()}
    values |= {name: f"{width} numbers" for name, width in schema.states.items()}
    table = "\n".join(f"| `{plain(name)}` | {value} |" for name, value in values.items())
    low, high = (", ".join(f"{x:g}" for x in bound) for bound in (schema.action_low, schema.action_high))
    trained = f"{provenance['step']} steps (run {provenance['run']}, seed {provenance['seed']})"
    if provenance.get("encoder_weights"):
        trained += f", its encoder beginning with {provenance['encoder_weights']}"
    names = ", ".join(repr(name) + ": ..." for name in [*schema.cameras, *schema.states])
    licence_lines = "\n".join(f"Licence of the {name}: {plain(licence)}." for name, licence in licences.items())
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {plain(schema.agent)} on {plain(schema.task)}

```python
import gtp_vision

policy = gtp_vision.load_policy("this folder")
action = policy.act({{{names}}})
```

| observation | values |
|---|---|
{table}

Actions: {schema.actions} numbers, from [{low}] to [{high}], {schema.chunk} planned at once, in {schema.steps} steps.
Limits: {schema.limits.sentence() if schema.limits else "these bounds alone"}.
An observation holds the newest frames; the policy stacks the last {schema.frame_stack}.

Trained for {plain(trained)} on {plain(data.get("name", "a data set"))}: {data["episodes"]} episodes, {data["frames"]}
frames.

{_scores(scores, provenance["environment"])}

{licence_lines}

It was not tested elsewhere: limit its speed and force when it first moves a robot.
"""


def _scores(scores: Mapping[str, Any] | None, environment: str | None) -> str:
    if not scores:
        return "This checkpoint was not evaluated."
    return f"Evaluated in {plain(environment)}: {success_text(scores)}, return {scores['return']:.1f}."
