# SPDX-License-Identifier: MIT
"""The networks of the second table of `zoo.py`: detectors, transformers, segmentation, recurrent.

All have random weights and are small; their widths are those of small variants.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from _vision import unsettle
from torch import Tensor, nn

CLASSES = 7  # equal to no width

DEPLOYED: dict[str, str] = {
    "detector": """fasterrcnn_mobilenet_v3_large_320_fpn retinanet_resnet50_fpn fcos_resnet50_fpn
        ssdlite320_mobilenet_v3_large yolov8n yolo11n""",
    "transformers": """Bert DistilBert Roberta Electra ViT Whisper T5 GPT2 OPT Llama Mistral
        Qwen3""",
    "segmentation": "Unet UnetPlusPlus Linknet FPN PSPNet DeepLabV3Plus",
    "recurrent": "lstm bidirectional_lstm two_layer_gru projected_lstm conv_lstm tagger",
}


@dataclass
class Case:
    """A network with a batch of two.

    Attributes:
        model: The network, in eval mode.
        example: A tensor, or keyword arguments.
        heads: Layers that give the outputs, which Torch-Pruning must be told to ignore.
        compared: Modules whose results are compared instead of the network's: those from which a
            detector chooses boxes.
        single: Whether some steps run in float32 whatever the weights are, as some norms of
            transformers do.
    """

    model: nn.Module
    example: Any
    heads: list[nn.Module]
    compared: tuple[str, ...] = ()
    single: bool = False


def deployed(source: str, name: str) -> Case:
    """Build one of `DEPLOYED`."""
    warnings.filterwarnings("ignore")
    os.environ |= {"YOLO_VERBOSE": "false", "YOLO_OFFLINE": "true", "HF_HUB_OFFLINE": "1"}
    torch.manual_seed(0)
    make = {"transformers": _transformer, "segmentation": _segmentation, "recurrent": _recurrent}
    make["detector"] = _yolo if name.startswith("yolo") else _detector
    case = make[source](name)
    unsettle(case.model)
    case.model.eval()
    return case


def _images() -> Tensor:
    return torch.rand(2, 3, 64, 64)


def _detector(name: str) -> Case:
    from torchvision.models import detection

    sizes = {} if "ssd" in name else {"min_size": 64, "max_size": 64}
    kw = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
    model = getattr(detection, name)(**kw, **sizes)
    last = {"cls_logits", "bbox_reg", "bbox_ctrness", "bbox_pred", "cls_score"}
    paths = [path for path, _ in model.named_modules()]
    ends = [p for p in paths if p.rpartition(".")[2] in last]
    ends += [p for p in paths if p.endswith(".1") and p.count("module_list") and p.count(".") == 4]
    heads = [model.get_submodule(path) for path in ends]
    compared = ("rpn.head", "roi_heads.box_predictor") if "rcnn" in name else ("head",)
    return Case(model, _images(), heads, compared)


def _yolo(name: str) -> Case:
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel(f"{name}.yaml", verbose=False)
    return Case(model, _images(), [model.model[-1]])


def _segmentation(name: str) -> Case:
    import segmentation_models_pytorch as smp

    model = getattr(smp, name)("resnet18", encoder_weights=None, classes=CLASSES)
    return Case(model, _images(), [model.segmentation_head[0]])


def _transformer(name: str) -> Case:
    import transformers

    width, heads, hidden, layers, words = 128, 8, 256, 3, 99
    common = {"vocab_size": words, "num_labels": CLASSES, "use_cache": False}
    encoder = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
    }
    grouped = {**encoder, "num_key_value_heads": heads // 2, "head_dim": width // heads}
    both = {
        "d_model": width,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": hidden,
        "encoder_layers": layers,
    }
    decoder = {"decoder_attention_heads": heads, "decoder_ffn_dim": hidden, "decoder_layers": 1}
    fields: dict[str, dict[str, Any]] = {
        "DistilBert": {"dim": width, "n_heads": heads, "hidden_dim": hidden, "n_layers": layers},
        "Electra": {**encoder, "embedding_size": width},
        "ViT": {**encoder, "image_size": 32, "patch_size": 8},
        "Whisper": {**both, **decoder, "num_mel_bins": 16, "max_source_positions": 16},
        "T5": {
            "d_model": width,
            "num_heads": heads,
            "d_kv": width // heads,
            "d_ff": hidden,
            "num_layers": layers,
        },
        "GPT2": {"n_embd": width, "n_head": heads, "n_inner": hidden, "n_layer": layers},
        "OPT": {
            "hidden_size": width,
            "word_embed_proj_dim": width,
            "num_attention_heads": heads,
            "ffn_dim": hidden,
            "num_hidden_layers": layers,
        },
        **dict.fromkeys(("Llama", "Mistral", "Qwen3"), grouped),
    }
    tasks = {"ViT": "ForImageClassification", "Whisper": "ForAudioClassification"}
    tasks |= dict.fromkeys(("OPT", "Llama", "Mistral", "Qwen3"), "ForCausalLM")
    tasks |= {"T5": "EncoderModel", "GPT2": "LMHeadModel"}
    given = {**common, **fields.get(name, encoder)}
    config = getattr(transformers, f"{name}Config")(**given)
    model = getattr(transformers, name + tasks.get(name, "ForSequenceClassification"))(config)
    tokens = {"input_ids": torch.arange(24).view(2, 12)}
    inputs: dict[str, Any] = {
        "ViT": {"pixel_values": torch.rand(2, 3, 32, 32)},
        "Whisper": {"input_features": torch.rand(2, 16, 32)},
    }
    last = {"classifier", "lm_head", "out_proj"}
    ends = [
        module
        for path, module in model.named_modules()
        if path.rpartition(".")[2] in last and "attn" not in path and isinstance(module, nn.Linear)
    ]
    return Case(model, inputs.get(name, tokens), ends, single=name in ("Llama", "Mistral", "Qwen3"))


class Recurrent(nn.Module):
    """Layers before a recurrent one, and a classifier of each step."""

    def __init__(self, before: nn.Module, recurrent: nn.RNNBase, norm: bool = False) -> None:
        super().__init__()
        self.before, self.recurrent = before, recurrent
        width = (recurrent.proj_size or recurrent.hidden_size) * (1 + recurrent.bidirectional)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.hidden, self.head = nn.Linear(width, 64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.before(x)
        steps = steps.flatten(2).transpose(1, 2) if x.ndim == 4 else steps
        made: Tensor = self.head(self.hidden(self.norm(self.recurrent(steps)[0])).relu())
        return made


def _recurrent(name: str) -> Case:
    kw: dict[str, Any] = {"batch_first": True}
    x: Tensor = torch.randn(2, 12, 24)
    dense = nn.Sequential(nn.Linear(24, 48), nn.ReLU())
    convolution = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3)
    )
    cases: dict[str, tuple[nn.Module, nn.RNNBase, bool]] = {
        "lstm": (dense, nn.LSTM(48, 96, **kw), False),
        "bidirectional_lstm": (dense, nn.LSTM(48, 64, bidirectional=True, **kw), True),
        "two_layer_gru": (dense, nn.GRU(48, 96, num_layers=2, **kw), False),
        "projected_lstm": (dense, nn.LSTM(48, 96, proj_size=64, **kw), False),
        "conv_lstm": (convolution, nn.LSTM(48, 96, **kw), False),
        "tagger": (nn.Embedding(99, 48), nn.LSTM(48, 64, bidirectional=True, **kw), False),
    }
    model = Recurrent(*cases[name])
    if name == "conv_lstm":
        x = torch.rand(2, 3, 8, 8)
    if name == "tagger":
        x = torch.arange(24).view(2, 12)
    return Case(model, x, [model.head])
