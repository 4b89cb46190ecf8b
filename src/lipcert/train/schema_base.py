"""What all sections of a configuration share, and values that may be a number or a ramp."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

__all__ = ["Grown", "Numbers", "Ramp", "Section", "Value"]

# Strict: "1e-3" with quotes is a mistake, not a number. Lists become tuples, so that nothing can be changed.
Numbers = Annotated[tuple[float, ...], Field(strict=False)]


class Section(BaseModel):
    """Base of all sections: no unknown keys, no changes, no silent conversions, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Grown(Section):
    """A section with keys that came later, which are None where they are not set."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not set: the fingerprints of runs from before it existed stay theirs."""
        found: dict[str, Any] = write(self)
        return {key: value for key, value in found.items() if value is not None}


class Ramp(Section):
    """A value that changes during training: ``start`` until the first epoch, ``end`` from the second on."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)
    epochs: Annotated[tuple[float, float], Field(strict=False)] = Field(
        description="from when to when it changes, in epochs since the start of the run"
    )
    shape: Literal["linear", "exponential", "cosine"] = "linear"

    @model_validator(mode="after")
    def _consistent(self) -> Ramp:
        if not 0 <= self.epochs[0] <= self.epochs[1]:
            raise ValueError("epochs must be [from, to] with 0 ≤ from ≤ to")
        if self.shape == "exponential" and not (self.start > 0 and self.end > 0):
            raise ValueError('an exponential ramp needs start and end above 0; use shape = "linear"')
        return self


def _number_or_table(value: Any) -> str:
    return "<ramp>" if isinstance(value, (dict, Ramp)) else "<number>"


# Tags in angle brackets cannot be keys, so that they can be told from keys in the path of an error.
Value = Annotated[
    Annotated[float, Field(ge=0), Tag("<number>")] | Annotated[Ramp, Tag("<ramp>")],
    Discriminator(_number_or_table),
]
