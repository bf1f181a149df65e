"""API keys: random, shown once, stored as a hash, revoked at once."""

from datetime import timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from core import clock, ids
from core.db.tables import ApiKey, Organization, Project
from core.db.tenancy import Tenant
from core.errors import NotFound, Unauthenticated
from core.services import tenants

# Writing last_used_at at every request would make each read a write.
_USED_EVERY = timedelta(minutes=1)


def authenticate(session: Session, secret: str) -> Tenant:
    """Whose key this is; raises Unauthenticated. Commits nothing: the session may be one for reading."""
    found = None
    if ids.looks_like_key(secret):
        # One question, since every request asks it: the key, whose it is, and whether its last use must be noted.
        stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < clock.now() - _USED_EVERY)
        found = session.execute(
            select(ApiKey, Organization, stale)
            .join(Project, Project.id == ApiKey.project_id)
            .join(Organization, Organization.id == Project.organization_id)
            .where(ApiKey.hash == ids.key_hash(secret), ApiKey.revoked_at.is_(None))
        ).one_or_none()
    if found is None:
        raise Unauthenticated("Incorrect API key provided. Make one with `attune keys create`.")
    key, organization, unnoted = found
    if unnoted:
        session.execute(update(ApiKey).where(ApiKey.id == key.id).values(last_used_at=clock.now()))
    return tenants.of_key(key, organization)


def create(session: Session, project_id: str, name: str, scopes: list[str]) -> tuple[ApiKey, str]:
    """A new key and its secret, which nobody can read again."""
    secret = ids.secret_key()
    return _add(session, project_id, name, scopes, secret), secret


def ensure_admin(session: Session, project_id: str, secret: str) -> None:
    """Make sure that this key, given by the operator, is an admin key."""
    if session.scalar(select(ApiKey).where(ApiKey.hash == ids.key_hash(secret))) is None:
        _add(session, project_id, "bootstrap", ["read", "train", "admin"], secret)


def _add(session: Session, project_id: str, name: str, scopes: list[str], secret: str) -> ApiKey:
    row = ApiKey(
        id=ids.api_key(),
        project_id=project_id,
        name=name,
        prefix=secret[:14],
        hash=ids.key_hash(secret),
        scopes=list(dict.fromkeys(scopes)),
    )
    session.add(row)
    session.flush()
    return row


def list_of(session: Session, tenant: Tenant) -> list[ApiKey]:
    query = select(ApiKey).where(ApiKey.project_id == tenant.project_id)
    return list(session.scalars(query.order_by(ApiKey.created_at.desc(), ApiKey.id.desc())))


def standing(session: Session, key_ids: set[str]) -> set[str]:
    """Those of these keys that have not been revoked."""
    return set(session.scalars(select(ApiKey.id).where(ApiKey.id.in_(key_ids), ApiKey.revoked_at.is_(None))))


def revoke(session: Session, tenant: Tenant, key_id: str) -> None:
    row = session.scalar(select(ApiKey).where(ApiKey.project_id == tenant.project_id, ApiKey.id == key_id))
    if row is None:
        raise NotFound(f"No such API key: {key_id!r}.", param="id")
    if row.revoked_at is None:
        row.revoked_at = clock.now()
