"""Logs of runs that never were."""

import json


def write_log(folder, losses, validations=(), tokens=100, ms=30_000):
    """The log of a run: losses of steps from 1 on, and validation losses {step: loss}."""
    folder.mkdir(parents=True)
    validations = dict(validations)
    lines = [{"step": 0, "val_loss": validations[0]}] if 0 in validations else []
    for step, loss in enumerate(losses, 1):
        lines.append({"step": step, "loss": loss, "norm": 1.0, "lr": 0.1, "ms": ms, "tokens": tokens})
        if step in validations:
            lines.append({"step": step, "val_loss": validations[step]})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
