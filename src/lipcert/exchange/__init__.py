"""Networks from outside and to outside: ONNX, torch.export, plain files of weights."""

from __future__ import annotations

from lipcert.exchange.onnx_import import OnnxModule, load_onnx
from lipcert.exchange.outward import save_exported, save_onnx
from lipcert.exchange.weights import read_state_dict

__all__ = ["OnnxModule", "load_onnx", "read_state_dict", "save_exported", "save_onnx"]
