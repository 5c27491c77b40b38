"""The card of an exported network: model.json for programs, README.md for people, and the code that loads it."""

from collections.abc import Mapping, Sequence
from typing import Any

from comp.models import timm_models
from comp.results.run_metrics import SplitScores
from comp.results.runs import Run
from comp.runtime import escape
from comp.runtime.errors import plural

JSON, PAGE = "model.json", "README.md"
FILES = {"onnx": "model.onnx", "torch": "model.pt2", "timm": "model.safetensors", "safetensors": "model.safetensors"}

_SHOWN_CLASSES = 20
_RGB = 3  # channels

_ONNX = """\
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
def predict(images):  # uint8 [B, C, H, W] -> outputs [B, classes]
    return session.run(None, {{"images": {images}}})[0]
"""
_TORCH = """\
import numpy as np, torch
model = torch.export.load("model.pt2").module()
def predict(images):  # uint8 [B, C, H, W] -> outputs [B, classes]
    with torch.no_grad():
        return model(torch.from_numpy({images})).numpy()
"""
_TIMM = """\
import json, timm, torch
from safetensors.torch import load_file
card = json.load(open("model.json", encoding="utf-8"))
model = timm.create_model(card["timm"]["name"], **card["timm"]["arguments"])
{stem}model.eval().load_state_dict(load_file("model.safetensors"))
mean, std = (torch.tensor(card["preparation"][name]).view(-1, 1, 1) for name in ("mean", "std"))
def predict(images):  # uint8 [B, C, H, W] -> outputs [B, classes]
    pixels = (torch.from_numpy(images) / 255 - mean) / std
{prepare}    with torch.no_grad():
        return {outputs}.numpy()
"""
_STEM = """\
for change in card["timm"]["stem"]:  # the layers that comp adapted to small images
    layer = model.get_submodule(change["layer"])
    if change["weight"] is None:
        model.set_submodule(change["layer"], torch.nn.Identity())
    else:
        layer.weight = torch.nn.Parameter(torch.empty(change["weight"]))
        layer.kernel_size, layer.stride, layer.padding = change["weight"][2:], change["stride"], change["padding"]
"""
_PER_IMAGE = """\
    variance, centre = torch.var_mean(pixels, (1, 2, 3), correction=0, keepdim=True)
    pixels = (pixels - centre) / (variance.sqrt() + 0.08)
"""
_RESIZE = """\
    pixels = torch.nn.functional.interpolate(
        pixels, {size}, mode="{mode}", align_corners=False, antialias={antialias})
"""
_WEIGHTS = """\
from safetensors.torch import load_file
weights = load_file("model.safetensors")  # name -> tensor; the network's code is comp's, or a plug-in's
"""


def loading_code(card: Mapping[str, Any]) -> str:
    """Return the code that loads an export in its folder and, see `defines_predict`, defines `predict(images)`."""
    images = "images" if card["input"]["type"] == "uint8" else "images.astype(np.float32) / 255"
    if card["format"] in ("onnx", "torch"):
        return (_ONNX if card["format"] == "onnx" else _TORCH).format(images=images)
    if not defines_predict(card):
        return _WEIGHTS
    _, height, width = card["input"]["shape"][1:]
    steps, scale = card["preparation"], card["preparation"]["label_scale"]
    prepare = _PER_IMAGE if steps["per_image"] else ""
    if size := steps["resize"]:
        shrinks = height > size[0] or width > size[1]
        prepare += _RESIZE.format(size=size, mode=steps["interpolation"], antialias=shrinks)
    outputs = f"(model(pixels) * {scale[1]!r} + {scale[0]!r})" if scale else "model(pixels)"
    return _TIMM.format(stem=_STEM if card["timm"]["stem"] else "", prepare=prepare, outputs=outputs)


def defines_predict(card: Mapping[str, Any]) -> bool:
    """Return whether an export predicts; the weights of a network that timm does not know are weights alone."""
    return card["format"] in ("onnx", "torch") or "timm" in card


def scores(run: Run) -> list[dict[str, Any]]:
    """Return the scores of a run's plain predictions, each with its split, number of images or groups, and metric."""
    metrics = run.metrics()
    weights, rows = metrics.best_or_final, "images" if run.config().data.group_answer == "none" else "groups"
    splits: dict[str, SplitScores | None] = {"val": weights.val, "ood_val": weights.ood_val}
    splits |= {name: metrics.split_scores(name, "") for name in ("test", "suite")}
    return [
        {"split": name, rows: split.images, "metric": metric, "value": score.value}
        for name, split in splits.items()
        if split is not None
        for metric, score in split.scores.items()
    ]


def first_weights(run: Run) -> dict[str, str]:
    """Return where a run's first weights came from, and their licence: of published ones, as timm states it."""
    section, source = run.config().model, str(run.provenance("first_weights")["first_weights"])
    licence = "none (training started from random weights)"
    if section.pretrained is True:
        licence = str(timm_models.meta_model(section.name).pretrained_cfg.get("license") or "unknown")
    elif section.pretrained or section.from_run:
        licence = "unknown"
    return {"source": source, "licence": licence}


def page_bytes(card: Mapping[str, Any]) -> bytes:
    """Return the content of README.md."""
    how = ", before quantization" if card["quantize"] else ""
    how += f", with its decision ({card['decision']['kind']})" if card["decision"] else ""
    scored = _table([*card["scores"][0]], [[*row.values()] for row in card["scores"]]) if card["scores"] else "None."
    network, run, competition = (escape.for_markdown(card[name]) for name in ("network", "run", "competition"))
    notes = "\n".join(f"- {note}" for note in card["not_inside"])
    sections = [
        f"# {network}",
        f"Exported by comp {card['versions']['comp']} from the run {run} (competition {competition}, "
        f"task {card['task']}, metric {card['metric']}). `{JSON}` holds all of this for programs.",
        _facts(card),
        f"## Load it\n\nIn this folder, without comp:\n\n```python\n{loading_code(card)}```",
        f"## Scores\n\nAs the run recorded them for this network{how}.\n\n{scored}",
        _checked(card["check"]),
        *([_quantized(card["quantization"])] if card["quantize"] else []),
        f"## Not inside\n\n{notes or 'Nothing: the run answers by the network alone.'}",
    ]
    return ("\n\n".join(sections) + "\n").encode()


def _facts(card: Mapping[str, Any]) -> str:
    taken, classes = card["input"], card["classes"]
    channels, height, width = taken["shape"][1:]
    pixels = "uint8, 0 to 255" if taken["type"] == "uint8" else "float32, 0 to 1"
    more = " ..." if len(classes) > _SHOWN_CLASSES else ""
    version = f", opset {card['opset']}" if "opset" in card else ""
    inside = "done by the code below" if "timm" in card else "inside" if defines_predict(card) else "yours to do"
    first = {
        f"{escape.for_markdown(each['source'])}; licence: {each['licence']}": None for each in card["first_weights"]
    }
    shown = ", ".join(escape.for_markdown(name) for name in classes[:_SHOWN_CLASSES])
    rows = [
        ["file", f"`{card['file']}`: {card['format']}{version}, sha256 {card['sha256']}"],
        ["input", f"[B, {channels}, {height}, {width}]{', RGB' if channels == _RGB else ''}, {pixels}; any B"],
        ["pre-processing", f"{inside}: {_preparation(card.get('preparation'))}"],
        ["output", f"[B, {len(classes)}], {card['output']}"],
        ["classes, in order", f"{len(classes)}: {shown}{more}"],
        ["parameters", f"{card['parameters']:,}"],
        *[["first weights", each] for each in first],
    ]
    return _table(["what", "value"], rows)


def _preparation(steps: Mapping[str, Any] | None) -> str:
    if steps is None:
        return "each member's own"
    mean, std = ([round(value, 4) for value in steps[name]] for name in ("mean", "std"))
    own = ", then by each image's own" if steps["per_image"] else ""
    size = steps["resize"]
    resized = f"; resized to {size[0]}x{size[1]} ({steps['interpolation']})" if size else ""
    return f"pixels in 0 to 1 less the mean {mean}, over the deviation {std}{own}{resized}"


def check_lines(check: Mapping[str, Any]) -> list[str]:
    """Return what the check of an export has shown."""
    if "tensors" in check:
        return [f"all {check['tensors']} tensors are the run's, bit for bit"]
    tolerance = f" (tolerance {check['tolerance']:.2g})" if check["tolerance"] else ""
    networks = plural(check["trained_on"], "network")
    seen = f"; too high for a score: {networks} in it trained on these images" if check["trained_on"] else ""
    return [
        f"greatest difference of an output from the run's network in float32: {check['difference']:.2g}{tolerance}",
        f"same answer as that network: {check['agreement']:.2%}; as `comp predict` in {check['precision']}: "
        f"{check['agreement_predict']:.2%}",
        f"{check['metric']}: {_cell(check['exported'])}; of `comp predict`: {_cell(check['predict'])}{seen}",
    ]


def _checked(check: Mapping[str, Any]) -> str:
    lines = "".join(f"\n- {line}" for line in check_lines(check))
    where = f"{check['images']} images of `{check['split']}`"
    return f"## Checked\n\nLoaded in a fresh process without comp, on {where}:\n{lines}"


def _quantized(facts: Mapping[str, Any]) -> str:
    rows = [[row["network"], f"{row['images_per_second']:,.0f}", row["score"]] for row in facts["compared"]]
    warnings = "".join(f"\n\n**{warning}**" for warning in facts["warnings"])
    return (
        f"## int8\n\n{facts['method']}; calibrated on {facts['calibration_images']} training images. Batches of "
        f"{facts['batch']}, {plural(facts['threads'], 'thread')}, {facts['machine']}:\n\n"
        f"{_table(['network', 'images/s', facts['metric']], rows)}{warnings}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
