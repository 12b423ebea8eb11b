"""Check the options of a script: what is wrong with any of them is said at once."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from data.errors import UserError


class Options(BaseModel):
    """Options of a script. A field has the name of its option, and as description what is expected there; what else
    `argparse` read is passed over.

    Raises:
        UserError: Values that cannot be; all of them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError("Options out of range:", [self._problem(one) for one in error.errors()]) from None

    @classmethod
    def _problem(cls, error: Any) -> str:
        name, value = error["loc"][0], error["input"]
        found = f"{value:g}" if isinstance(value, float) else value
        reason = error["ctx"]["error"] if error["type"] == "value_error" else None
        return f"--{name.replace('_', '-')} {found}: {reason or f'expected {cls.model_fields[name].description}'}"
