"""Recording what a module computes, with ``torch.export``, and reading its weights afterwards.

The exported program is a flat list of aten calls whatever way the module is written (layers, functionals,
methods, operators, hooks, parametrisations). Its arguments that do not depend on the input are *expressions of
the weights*; :class:`LiveValues` evaluates them from the module itself each time it is asked, so that they
follow training, dtype and device.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from lipcert.errors import ModuleStateError, ShapeError, TraceError
from lipcert.graph.types import Live

__all__ = ["Capture", "LiveValues", "capture", "check_state", "first_line", "in_eval_mode", "ordinary_mode"]


def first_line(error: BaseException) -> str:
    """The first line that says something, shortened: enough for a message that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "…"


_READ: ContextVar[bool] = ContextVar("lipcert_read", default=False)


def is_read() -> bool:
    """Whether a module is being run to see what it computes: it is then to change nothing."""
    return _READ.get()


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Put every submodule into eval mode and give each its own mode back afterwards.

    Nothing is called for it: what a module does on its own ``eval()`` (prove a bound, merge weights) stays undone.
    """
    modes = [(m, m.training) for m in module.modules()]
    before = _READ.set(True)
    try:
        for m, _ in modes:
            m.training = False
        yield
    finally:
        _READ.reset(before)
        for m, training in modes:
            m.training = training


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Compute in the tensors' own dtypes and with gradients at hand, whatever autocast or inference mode is around.

    Subnormal numbers are not flushed to zero either: a stored weight would be read as another one.
    """
    with ExitStack() as stack:
        if float(torch.tensor(2.0**-130, dtype=torch.float32) * 1.0) == 0.0:
            torch.set_flush_denormal(False)
            stack.callback(torch.set_flush_denormal, True)
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def check_state(module: nn.Module) -> None:
    """Refuse weights that are not finite: no bound of such a network means anything.

    Raises:
        ModuleStateError: naming the first parameter or buffer with a NaN or an infinity, or without values.
    """
    for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, value in named:
            if nn.parameter.is_lazy(value) or value.is_meta:
                raise ModuleStateError(
                    f"{kind} '{name}' has no values yet. Run the module on a batch, or load weights."
                )
            if value.is_inference():
                raise ModuleStateError(
                    f"{kind} '{name}' was made in torch.inference_mode(), where nothing can be differentiated. Build "
                    "the module outside of it."
                )
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ModuleStateError(
                    f"{kind} '{name}' contains a NaN or an infinity, so the network has no Lipschitz bound. "
                    "Restore it from an earlier checkpoint, or lower the learning rate and train again."
                )


def _sample(module: nn.Module, input_shape: tuple[int, ...], batch: int) -> Tensor:
    reference = next((p for p in [*module.parameters(), *module.buffers()] if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((batch, *input_shape), generator=generator, dtype=torch.float64)
    return x.to(dtype=reference.dtype, device=reference.device)


def _structure(module: nn.Module) -> list[Any]:
    """What a forward is made of, as far as can be seen: submodules, their settings, their hooks; not their weights."""
    found: list[Any] = []
    for name, m in module.named_modules(remove_duplicate=False):
        plain = {
            k: v
            for k, v in vars(m).items()
            if k != "training" and not k.startswith("_") and isinstance(v, (bool, int, float, str, tuple))
        }
        hooks = [list(map(id, h.values())) for h in (m._forward_hooks, m._forward_pre_hooks)]
        found.append((name, type(m), type(m).forward, vars(m).get("forward"), plain, m.extra_repr(), hooks))
    return found


class Capture:
    """An exported program and the module whose weights it reads."""

    def __init__(self, module: nn.Module, program: torch.export.ExportedProgram, sample: Tensor) -> None:
        self.module, self.sample = module, sample
        self._structure = _structure(module)
        self.nodes: tuple[fx.Node, ...] = tuple(program.graph_module.graph.nodes)
        self._graph = program.graph_module.graph  # keeps the nodes' owner alive
        specs = program.graph_signature.input_specs
        placeholders = [n for n in self.nodes if n.op == "placeholder"]
        self.sources: dict[fx.Node, tuple[InputKind, str]] = {}
        self._constants: dict[str, Any] = dict(program.constants)
        self.input: fx.Node = placeholders[-1]
        for node, spec in zip(placeholders, specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                self.input = node
            else:
                self.sources[node] = (spec.kind, str(spec.target))

    def check(self) -> None:
        """Refuse a module that computes something else since it was recorded, or whose weights are not finite.

        Raises:
            TraceError: a layer, a setting of one, or a hook was added, removed or replaced.
            ModuleStateError: see :func:`check_state`.
        """
        now = _structure(self.module)
        if now != self._structure:
            names = [a[0] for a, b in zip(now, self._structure, strict=False) if a != b]
            place = f", at '{names[0]}'" if names else ""
            raise TraceError(f"the module was changed since it was traced{place}: trace it again.")
        check_state(self.module)

    def live(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> LiveValues:
        """A reader of the module's present weights in a dtype and on a device."""
        return LiveValues(self, dtype or self.sample.dtype, device or self._device())

    def _device(self) -> torch.device:
        for value in [*self.module.parameters(), *self.module.buffers()]:
            return value.device
        return self.sample.device

    def stored(self, node: fx.Node) -> Any:
        """The parameter, buffer or constant that a placeholder stands for, as it is now."""
        kind, target = self.sources[node]
        path, _, name = target.rpartition(".")
        if kind in (InputKind.PARAMETER, InputKind.BUFFER):
            return getattr(self.module.get_submodule(path), name)
        return self._constants[target]


class LiveValues(Live):
    """Evaluates weight expressions once each; a fresh one is made for every resolution of a graph."""

    def __init__(self, source: Capture, dtype: torch.dtype, device: torch.device) -> None:
        self._source, self.dtype, self.device = source, dtype, device
        self._known: dict[fx.Node, Any] = {}

    def __call__(self, argument: Any) -> Any:
        """The value of an argument: a node's, or the argument itself with the nodes inside it replaced."""
        return fx.node.map_arg(argument, self._value)

    def _value(self, node: fx.Node) -> Any:
        pending = [node]
        while pending:  # a loop, not recursion: expressions can be long (unrolled orthogonal weights)
            current = pending[-1]
            missing = [n for n in self._needs(current) if n not in self._known]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            if current not in self._known:
                self._known[current] = self._evaluate(current)
        return self._known[node]

    def _needs(self, node: fx.Node) -> list[fx.Node]:
        return [] if node.op == "placeholder" or self._is_batch_size(node) else list(node.all_input_nodes)

    def _is_batch_size(self, node: fx.Node) -> bool:
        return (
            node.op == "call_function"
            and node.target is torch.ops.aten.sym_size.int
            and node.args[0] is self._source.input
            and isinstance(node.args[1], int)
            and node.args[1] == 0
        )

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            value = self._source.stored(node)
            if isinstance(value, Tensor):
                dtype = self.dtype if value.is_floating_point() else value.dtype
                return value.to(dtype=dtype, device=self.device)
            return value
        if self._is_batch_size(node):
            return 1  # constants that are made for each sample (zeros for a state) are made for one and broadcast
        args = fx.node.map_arg(node.args, self._known.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self._known.__getitem__)
        args = tuple(self._recast(a) for a in args)
        kwargs = {k: self._recast(v) for k, v in kwargs.items()}
        if not callable(node.target):  # pragma: no cover - exported graphs hold functions only
            raise TraceError(f"cannot evaluate {node.target}")
        return node.target(*args, **kwargs)

    def _recast(self, argument: Any) -> Any:
        """The dtype and device of the sample that are written into the program stand for those asked for.

        Any other dtype was meant: ``weight.half().float()`` rounds the weight.
        """
        if isinstance(argument, torch.dtype):
            return self.dtype if argument == self._source.sample.dtype else argument
        return self.device if isinstance(argument, torch.device) else argument


@contextmanager
def _silence() -> Iterator[None]:
    """Keep back what torch prints while it records: a program that fails is dumped in full, the error says why."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _try(module: nn.Module, x: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            y = module(x.clone())
    except Exception as error:
        raise ShapeError(
            f"the module does not accept a batch of shape (N, {', '.join(map(str, x.shape[1:]))}) "
            f"of {x.dtype}: {first_line(error)}. Give input_shape without the batch dimension, for example "
            "(3, 32, 32)."
        ) from error
    if not isinstance(y, Tensor):
        raise TraceError(
            f"the module returns a {type(y).__name__}; lipcert bounds modules that return one tensor. "
            "Wrap it in a module that returns the output of interest."
        )
    if y.ndim < 2 or y.shape[0] != x.shape[0]:
        raise TraceError(
            f"the module maps a batch of shape {tuple(x.shape)} to {tuple(y.shape)}; the output must keep the "
            "batch as its first dimension and have at least one more."
        )
    if not bool(torch.isfinite(y).all()):
        raise ModuleStateError("the module's output at a random input in [0, 1] is not finite.")
    return y


def _record(module: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """For a batch of any size.

    On a GPU there may be no such program, as its libraries take large batches another way (BatchNorm); then a copy on
    the CPU says what is computed, which is compared with what the GPU computes.
    """
    if x.is_cuda:
        with contextlib.suppress(Exception):
            return _export(module, x)
        module, x = copy.deepcopy(module).cpu(), x.cpu()
    return _export(module, x)


def _export(module: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2, max=2**31)
    with torch.no_grad(), _silence():
        return torch.export.export(module, (x.clone(),), dynamic_shapes=({0: batch},), strict=False)


def capture(module: nn.Module, input_shape: tuple[int, ...]) -> Capture:
    """Record the computation of ``module`` in eval mode on a batch of any size.

    Raises:
        ShapeError: the module does not accept the shape.
        ModuleStateError: a weight or an output is not finite.
        TraceError: the computation cannot be recorded (it depends on values, or fixes the batch size).
    """
    if not isinstance(module, nn.Module):
        raise TraceError(f"expected a torch.nn.Module, got {type(module).__name__}")
    if hasattr(module, "_orig_mod"):
        raise TraceError("the module is compiled: pass the module that torch.compile was given, module._orig_mod.")
    check_state(module)
    with in_eval_mode(module):
        x = _sample(module, input_shape, batch=3)
        _try(module, x)
        try:
            program = _record(module, x)
        except Exception as error:
            raise TraceError(
                f"the module's computation cannot be recorded: {first_line(error)}. lipcert needs a forward that "
                "does the same operations for every input and every batch size: no `if` on values, no .item(), "
                "no fixed batch size in view or reshape (use x.flatten(1) or x.view(x.size(0), -1))."
            ) from error
    specs = program.graph_signature
    if len(specs.user_inputs) != 1 or len(specs.user_outputs) != 1:
        raise TraceError("lipcert bounds modules with one input tensor and one output tensor.")
    return Capture(module, program, x)
