"""What stands in a certificate: strict models, from which the published JSON Schema is made.

They say what fits together within the file. Whether it is true is the business of :mod:`lipcert.certify.verify`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

__all__ = [
    "FORMAT",
    "VERSION",
    "Accuracy",
    "Certificate",
    "CertifiedBound",
    "Clean",
    "DataIdentity",
    "GraphIdentity",
    "InputSpace",
    "ModelIdentity",
    "NormEvidence",
    "PartBound",
    "Precisely",
    "SampleColumns",
    "ScaledNorm",
    "SmallGain",
    "Step",
    "Versions",
    "Weights",
    "json_schema",
]

FORMAT = "lipcert-certificate"
VERSION = 1
_MOST_CLASSES = 2**12
_TIME = "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-6][0-9]Z$"
_SHOWN = 16  # items of a list, in repr()
_LEAST_WEIGHT = 2.0**-300
_MOST_ENTRIES = 2**24  # of one input: a larger shape is taken for a mistake, or an attack


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


def _listed(kind: type, most: int = 2**22) -> Callable[[Any], Any]:
    """A check of a whole list at once, which stops at the first mistake: files may hold millions of them."""

    def check(value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise ValueError("must be a list")
        if len(value) > most:
            raise ValueError(f"holds more than {most:,} items")
        for i, item in enumerate(value):
            if type(item) is not kind and not (kind is tuple and type(item) is list):
                name = "list" if kind is tuple else kind.__name__
                raise ValueError(f"item {i} must be a {name}, and is a {type(item).__name__}")
        return value

    return check


Name = Annotated[str, Field(max_length=500), AfterValidator(_printable)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
_LOOSE = Field(strict=False)  # a JSON list becomes a tuple; its items stay strict
Floats = Annotated[tuple[float, ...], BeforeValidator(_listed(float)), _LOOSE]
Integers = Annotated[tuple[int, ...], BeforeValidator(_listed(int)), _LOOSE]
Verdicts = Annotated[tuple[bool, ...], BeforeValidator(_listed(bool)), _LOOSE]
Shape = Annotated[tuple[Annotated[int, Field(ge=1, lt=2**31)], ...], BeforeValidator(_listed(int, 16)), _LOOSE]
Names = Annotated[tuple[Name, ...], BeforeValidator(_listed(str, _MOST_CLASSES)), _LOOSE]
Rows = Annotated[tuple[Floats, ...], BeforeValidator(_listed(tuple, _MOST_CLASSES)), _LOOSE]


class _Long(str):
    """Stands for a long list where a certificate is printed."""

    __repr__ = str.__str__


class Part(BaseModel):
    """Base of all parts: no unknown keys, no changes, no silent conversions, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for key, value in super().__repr_args__():
            long = isinstance(value, tuple) and len(value) > _SHOWN
            yield key, _Long(f"<{len(value):,} items>") if long else value


class Versions(Part):
    """What the numbers were made with."""

    lipcert: Name
    torch: Name
    python: Name


class Step(Part):
    """One node of the traced network."""

    operation: Name = Field(description="the aten operation")
    place: Name = Field(description="the submodule that it is in, as in named_modules()")
    kind: Literal["input", "affine", "elementwise", "vector map"]
    inputs: Integers = Field(description="positions of earlier nodes")
    shape: Annotated[Shape, Field(description="of one sample's result")]


class GraphIdentity(Part):
    """The traced network without its weights."""

    sha256: Sha256 = Field(description="over the nodes and every argument of every operation behind them")
    nodes: Annotated[tuple[Step, ...], Field(strict=False, min_length=1, max_length=20_000)]

    @model_validator(mode="after")
    def _consistent(self) -> GraphIdentity:
        for i, node in enumerate(self.nodes):
            if (node.kind == "input") != (i == 0) or not all(0 <= j < i for j in node.inputs):
                raise ValueError(f"node {i} does not follow from earlier ones")
        return self


class ModelIdentity(Part):
    """Which network is certified."""

    name: Name | None = Field(description="of the model registry, if known")
    options: dict[Name, JsonValue] = Field(description="of that model")
    dtype: Name = Field(description="of its weights, such as float32")
    weights_sha256: Sha256 = Field(description="over names, dtypes, shapes and bytes of state_dict()")
    classes: Annotated[Names, Field(min_length=2)]
    graph: GraphIdentity


class Normalization(Part):
    """A layer of the model that computes (x − mean)/std."""

    place: Name
    mean: Floats
    std: Floats


class InputSpace(Part):
    """In what space radii are distances."""

    shape: Annotated[Shape, Field(description="of one input", min_length=1)]
    norm: Literal["l2"]
    unit: Literal["raw input"] = Field(description="what the module takes, before any normalisation layer in it")
    smallest: float = Field(description="entry of the samples")
    largest: float = Field(description="entry of the samples")
    preprocessing: Literal["none outside the model"]
    normalization: Annotated[
        tuple[Normalization, ...], Field(strict=False, max_length=100, description="layers inside the model")
    ]

    @model_validator(mode="after")
    def _consistent(self) -> InputSpace:
        if self.smallest > self.largest:
            raise ValueError("smallest is above largest")
        if math.prod(self.shape) > _MOST_ENTRIES:
            raise ValueError(f"an input of more than {_MOST_ENTRIES:,} numbers")
        return self


class NormEvidence(Part):
    """What was proved of one block A_kj of the loop transformation: ‖A_kj‖₂ ≤ upper."""

    target: Count = Field(description="k: the k-th activation's input, or the output")
    source: Count = Field(description="j: 0 for the input, else the j-th activation's output")
    upper: float = Field(ge=0)
    lower: float = Field(ge=0, description="what the norm was seen to reach; says how tight upper is")
    method: Literal["dense", "cholesky", "torus", "chebyshev"]
    failure: Probability = Field(description="with which upper is too small all the same")

    @model_validator(mode="after")
    def _consistent(self) -> NormEvidence:
        if self.target <= self.source:
            raise ValueError("a block leads to a later target")
        if self.lower > self.upper:
            raise ValueError("lower is above upper")
        if (self.method == "chebyshev") != (self.failure > 0):
            raise ValueError("the randomised test may fail, and nothing else can")
        return self


class ScaledNorm(Part):
    """What was proved of the scaled map S: ‖S‖₂ ≤ upper."""

    upper: float = Field(gt=0)
    lower: float = Field(ge=0, description="what the norm was seen to reach")
    method: Literal["dense", "cholesky", "chebyshev"]
    failure: Probability = Field(description="with which upper is too small all the same")


class Weights(Part):
    """D_k of one activation; it broadcasts against its input."""

    shape: Shape
    values: Floats


class SmallGain(Part):
    """What proves a small-gain bound: L_h ≤ max(1, ‖S‖)^level · ‖P⁻ᵀh‖, S being (x, D·w) ↦ (P·y, D·z)."""

    kind: Literal["layer", "channel", "neuron"] = Field(description="what shares a weight")
    weights: Annotated[tuple[Weights, ...], Field(strict=False, min_length=1, max_length=10_000)]
    output: Annotated[Rows, Field(description="P: C×C, or 1×1 for a number", min_length=1)]
    norm: ScaledNorm

    @model_validator(mode="after")
    def _consistent(self) -> SmallGain:
        if self.norm.lower > self.norm.upper:
            raise ValueError("lower is above upper")
        if (self.norm.method == "chebyshev") != (self.norm.failure > 0):
            raise ValueError("the randomised test may fail, and nothing else can")
        if any(len(row) != len(self.output) for row in self.output):
            raise ValueError("output must be square")
        for i, weights in enumerate(self.weights):
            if math.prod(weights.shape) != len(weights.values):
                raise ValueError(f"weights {i} are not of the shape stated")
            if not all(_LEAST_WEIGHT < v < 1 / _LEAST_WEIGHT for v in weights.values):
                raise ValueError(f"weights {i} are not all positive, or out of range")
        return self


class PartBound(Part):
    """What proves the Lipschitz bound of one part of a residual network, between two values that all of it passes."""

    norms: Annotated[tuple[NormEvidence, ...], Field(strict=False, max_length=20_000)]
    smallgain: SmallGain | None
    behind: SmallGain | None = Field(None, description="of all that comes behind the part, in the bound's scope")
    until: SmallGain | None = Field(None, description="of all up to the end of the part; global")

    @model_validator(mode="after")
    def _consistent(self) -> PartBound:
        _check_order(self.norms)
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_nothing(write(self), "behind", "until")


def _without_nothing(found: dict[str, Any], *names: str) -> dict[str, Any]:
    """Without the entries in which nothing is: certificates from before there were such stay what they are."""
    return {key: value for key, value in found.items() if value or key not in names}


def _check_order(norms: tuple[NormEvidence, ...]) -> None:
    if any(one >= next_ for one, next_ in pairwise((n.target, n.source) for n in norms)):
        raise ValueError("norms must be in order, each block once")


class CertifiedBound(Part):
    """The Lipschitz bound of the logits, per unit of the raw input."""

    method: Literal["product", "liplt", "smallgain"]
    scope: Literal["global", "class", "pairwise"]
    guarantee: Literal["upper"] = Field(description="an estimate is no certificate")
    failure: Probability = Field(description="with which any of the norms is too small, or passed_over happens")
    passed_over: Probability = Field(description="with which a proof fails that this bound was preferred to; 0 if none")
    slack: float = Field(ge=0, description="relative excess over the same formula with the lower norms")
    value: Annotated[Rows, Field(description="1×1 (global), 1×C (class), C×C (pairwise)", min_length=1)]
    norms: Annotated[tuple[NormEvidence, ...], Field(strict=False, max_length=20_000)]
    smallgain: SmallGain | None = Field(
        description="of a small-gain bound; the value is LipLT's, or the product of those of the parts, where smaller"
    )
    further: Annotated[
        tuple[SmallGain, ...],
        Field(
            strict=False,
            max_length=1_000,
            description="more evidence of the whole, for single entries; the value is the smallest that any gives",
        ),
    ] = ()
    parts: Annotated[
        tuple[PartBound, ...],
        Field(
            strict=False, max_length=10_000, description="of a residual network, by which rounding is followed; or none"
        ),
    ]

    @model_validator(mode="after")
    def _consistent(self) -> CertifiedBound:
        rows, own = len(self.value), self.scope == "pairwise"
        if any(len(row) != len(self.value[0]) for row in self.value) or not self.value[0]:
            raise ValueError("the rows of value differ in length")
        square = rows == len(self.value[0]) if own else rows == 1
        if not square or (self.scope == "global" and len(self.value[0]) != 1):
            raise ValueError(f"value has {rows}×{len(self.value[0])} entries, which does not fit its scope")
        for a, row in enumerate(self.value):
            if any((v != 0 if own and a == b else v <= 0) for b, v in enumerate(row)):
                raise ValueError("value must be positive, and 0 between a class and itself")
            if own and any(v != self.value[b][a] for b, v in enumerate(row[:a])):
                raise ValueError("value must be symmetric")
        if self.smallgain is not None and self.method != "smallgain":
            raise ValueError("only a small-gain bound has that evidence")
        if self.further and self.smallgain is None:
            raise ValueError("further evidence needs a first")
        if self.parts and self.method != "smallgain":
            raise ValueError("only a small-gain bound has parts")
        _check_order(self.norms)
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_nothing(write(self), "further")


class Precisely(Part):
    """In which arithmetic no input within a radius is classified otherwise."""

    arithmetic: Literal["real", "float32", "float64"]
    assumptions: Names = Field(description="on which this rests")


class DataIdentity(Part):
    """Which samples were certified, all of them, in order."""

    name: Name
    split: Name
    samples: Annotated[int, Field(ge=1, lt=2**31)]
    sha256: Sha256 = Field(description="over shape and bytes of inputs and labels")


class Clean(Part):
    """Samples that are classified as labelled."""

    count: Count
    share: Share


class Accuracy(Part):
    """Samples that are classified as labelled with a radius strictly larger than epsilon."""

    epsilon: float = Field(ge=0)
    count: Count
    share: Share
    verdict: Verdicts = Field(description="of each sample")


class SampleColumns(Part):
    """One entry a sample."""

    label: Integers
    prediction: Integers
    runner_up: Integers = Field(description="the class that limits real_radius")
    margin: Floats = Field(description="proved lower bound on logit[prediction] − logit[runner_up]")
    real_radius: Floats = Field(description="in real arithmetic: margin / L, rounded down, not below 0")
    global_radius: Floats | None = Field(
        description="where local bounds were added: by the bound alone, in the stated arithmetic; else null"
    )
    radius: Floats = Field(
        description="in the stated arithmetic; without local bounds not above real_radius, with them not below "
        "global_radius"
    )

    @property
    def by_bound(self) -> tuple[float, ...]:
        """Radii in the stated arithmetic by the bound alone."""
        return self.radius if self.global_radius is None else self.global_radius


class Certificate(Part):
    """Certified radii of the predictions of one network on one set of samples."""

    format: Literal["lipcert-certificate"]
    version: Literal[1]
    created: Annotated[str, Field(pattern=_TIME, description="when, in UTC")]
    versions: Versions
    model: ModelIdentity
    input: InputSpace
    bound: CertifiedBound
    precision: Precisely
    data: DataIdentity
    clean: Clean
    certified: Annotated[tuple[Accuracy, ...], Field(strict=False, max_length=100)]
    samples: SampleColumns

    @model_validator(mode="after")
    def _consistent(self) -> Certificate:
        count, classes, columns = self.data.samples, len(self.model.classes), self.samples
        for key, column in [*columns, *((f"verdict at {a.epsilon:g}", a.verdict) for a in self.certified)]:
            if column is not None and len(column) != count:
                raise ValueError(f"{key} has {len(column)} entries for {count} samples")
        for key in ("label", "prediction", "runner_up"):
            if not 0 <= min(getattr(columns, key)) <= max(getattr(columns, key)) < classes:
                raise ValueError(f"{key} holds what is none of the {classes} classes")
        if any(a == b for a, b in zip(columns.prediction, columns.runner_up, strict=True)):
            raise ValueError("a runner_up is the prediction itself")
        alone = columns.by_bound
        if min(alone) < 0 or any(r > s for r, s in zip(alone, columns.real_radius, strict=True)):
            raise ValueError("a radius is negative, or above the one in real arithmetic")
        if any(r < s for r, s in zip(columns.radius, alone, strict=True)):
            raise ValueError("a radius by local bounds is below the one without")
        if any(one.epsilon >= next_.epsilon for one, next_ in pairwise(self.certified)):
            raise ValueError("epsilons must increase")
        if self.bound.scope != "global" and len(self.bound.value[0]) != classes:
            raise ValueError(f"the bound is of {len(self.bound.value[0])} classes, the model knows {classes}")
        if self.model.graph.nodes[0].shape != self.input.shape or self.model.graph.nodes[-1].shape != (classes,):
            raise ValueError("the graph does not lead from the input's shape to the classes")
        if self.precision.arithmetic not in ("real", self.model.dtype):
            raise ValueError(f"a model in {self.model.dtype} does not run in {self.precision.arithmetic}")
        return self


def json_schema() -> str:
    """The published JSON Schema of a certificate's content, as it stands in ``certificate.schema.json``.

    The file has one more entry, ``sha256``, over all that is before it.
    """
    found = Certificate.model_json_schema()
    found["properties"]["sha256"] = {"type": "string", "pattern": "^[0-9a-f]{64}$", "title": "Sha256"}
    found["required"].append("sha256")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, indent=2) + "\n"
