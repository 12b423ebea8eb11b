"""The texts' part of the config section `texts`; `engine.config` adds the encoder's to it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

from data.class_descriptions import Language


class ClassTextsConfig(BaseModel):
    """Which texts describe the classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: Language = "en"
    """Of the built-in texts. CLIP understands English; for Spanish take a multilingual encoder (SigLIP 2)."""
    use_phrasings: bool = True
    """False takes one built-in text per class instead of several that are averaged."""
    template: str | None = None
    """Put around every text, such as "a photo of {}"; `{}` stands for the text."""
    own: dict[str, str | tuple[str, ...] | dict[Language, str | tuple[str, ...]]] = {}
    """Class name -> own text, list of texts, or these per language; replaces the built-in texts of the class."""

    @field_validator("template")
    @classmethod
    def _has_one_place(cls, value: str | None) -> str | None:
        if value is not None and value.count("{}") != 1:
            raise PydanticCustomError("pattern", "must hold {place} once, where the text goes", {"place": "{}"})
        return value
