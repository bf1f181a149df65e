"""/v1/models/{model}/artifacts"""

from fastapi import APIRouter

from api.deps import PartsDep, TenantDep
from core.db.session import transaction
from core.schemas.artifacts import Artifacts
from core.schemas.models import ArtifactFile
from core.services import base_models, models

router = APIRouter(prefix="/models", tags=["models"])


@router.get("/{model:path}/artifacts")
def get_artifacts(model: str, tenant: TenantDep, parts: PartsDep) -> Artifacts:
    """Every file of a tuned model or a checkpoint, with its sha256 and a URL that needs no key.

    Each file is an object of its own: a download that was cut off goes on with a range request.
    """
    seconds = parts.settings.presigned_url_seconds
    with transaction(parts.sessions) as session:
        found = models.weights_of(session, tenant, model)
        base = base_models.by_id(session, found.base_model_id).name
    return Artifacts(
        model=model,
        base_model=base,
        expires_in=seconds,
        files=[
            ArtifactFile(
                **entry,
                url=parts.store.presigned(
                    found.prefix + entry["path"], filename=entry["path"].rsplit("/", 1)[-1], seconds=seconds
                ),
            )
            for entry in found.files
        ],
    )
