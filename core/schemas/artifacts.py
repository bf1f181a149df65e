"""The files of tuned weights, and where each can be downloaded."""

from typing import Literal

from pydantic import BaseModel

from core.schemas.models import ArtifactFile


class Artifacts(BaseModel):
    object: Literal["model.artifacts"] = "model.artifacts"
    model: str
    base_model: str
    expires_in: int
    """Seconds for which the URLs are good; ask again for new ones."""
    files: list[ArtifactFile]
