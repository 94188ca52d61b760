"""What the parts of the configuration have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(min_length=1)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change after checking.

    A number where text is asked for (`name=2024`, a column called 3) is that text. No number is infinite or NaN.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )
