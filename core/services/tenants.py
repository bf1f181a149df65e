"""Organisations and projects: one default of each, made when the database is set up."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from core import ids
from core.db.tables import ApiKey, Organization, Project
from core.db.tenancy import Tenant

DEFAULT_PROJECT = "default"


def default(session: Session, organization: str) -> Project:
    """The default project, made together with its organisation if there is none yet."""
    owner = session.scalar(select(Organization).order_by(Organization.created_at).limit(1))
    if owner is None:
        owner = Organization(id=ids.organization(), name=organization)
        session.add(owner)
        session.flush()
    project = session.scalar(
        select(Project).where(Project.organization_id == owner.id, Project.name == DEFAULT_PROJECT)
    )
    if project is None:
        project = Project(id=ids.project(), organization_id=owner.id, name=DEFAULT_PROJECT)
        session.add(project)
        session.flush()
    return project


def of_key(key: ApiKey, organization: Organization) -> Tenant:
    return Tenant(
        project_id=key.project_id,
        organization_id=organization.id,
        organization=organization.name,
        key_id=key.id,
        scopes=frozenset(key.scopes),
    )


def of_project(session: Session, project_id: str) -> Tenant:
    """For the workers' side, which acts on behalf of a row's project."""
    project = session.get_one(Project, project_id)
    organization = session.get_one(Organization, project.organization_id)
    return Tenant(project_id=project.id, organization_id=organization.id, organization=organization.name)
