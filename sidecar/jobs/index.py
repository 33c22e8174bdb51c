"""Which pictures were made: a row for each manifest in the store, so that they can be listed."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import astuple, dataclass
from typing import Any

from sidecar.features import FeatureKey
from sidecar.jobs.protocol import Job, Portrait
from sidecar.store import Database

_FIRST_COLUMNS = (
    "manifest_digest, picture_digest, content_key, feature, model, revision, method, job_id, origin, "
    "reproduces, created"
)
_COLUMNS = f"{_FIRST_COLUMNS}, verdict"

# Until schema 2 of the manifest there was one method, and a feature's text begins model@revision/.
_AFTER_AT = "substr(p.feature, instr(p.feature, '@') + 1)"
_BACKFILL = f"""INSERT OR IGNORE INTO artifact_index ({_FIRST_COLUMNS})
    SELECT p.manifest_digest, p.picture_digest, p.content_key, p.feature,
        substr(p.feature, 1, instr(p.feature, '@') - 1),
        substr({_AFTER_AT}, 1, instr({_AFTER_AT}, '/') - 1),
        'activation_maximisation', coalesce(j.id, ''), '', '', p.created
    FROM portraits AS p
    LEFT JOIN job_portraits AS m ON m.manifest_digest = p.manifest_digest
    LEFT JOIN jobs AS j ON j.sequence = m.job
    ORDER BY p.created, j.sequence"""  # noqa: S608 - constants of this file

_TABLES = (
    """CREATE TABLE artifact_index (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        manifest_digest TEXT NOT NULL UNIQUE,
        picture_digest TEXT NOT NULL,
        content_key TEXT NOT NULL,
        feature TEXT NOT NULL,
        model TEXT NOT NULL,
        revision TEXT NOT NULL,
        method TEXT NOT NULL,
        job_id TEXT NOT NULL,
        origin TEXT NOT NULL,
        reproduces TEXT NOT NULL,
        created REAL NOT NULL
    )""",
    "CREATE INDEX artifact_index_by_picture ON artifact_index (picture_digest)",
    "CREATE INDEX artifact_index_by_feature ON artifact_index (feature, sequence)",
    _BACKFILL,
    # Second release: how far a picture can be believed, and finding those of a job.
    "ALTER TABLE artifact_index ADD COLUMN verdict TEXT NOT NULL DEFAULT ''",
    """UPDATE artifact_index SET verdict = made.verdict
        FROM (SELECT manifest_digest, MAX(verdict) AS verdict FROM job_portraits
            WHERE verdict <> '' GROUP BY manifest_digest) AS made
        WHERE made.manifest_digest = artifact_index.manifest_digest""",
    "CREATE INDEX artifact_index_by_job ON artifact_index (job_id, sequence)",
)


@dataclass(frozen=True, slots=True)
class MadePicture:
    """One picture in the store, with its manifest.

    Attributes:
        manifest_digest: sha256 of the manifest, which names the pair.
        picture_digest: sha256 of the picture; several manifests may have the same.
        content_key: sha256 of the request.
        feature: Text form of the feature.
        model: Its model.
        revision: Its revision.
        method: How it was made.
        job_id: The job that made it; empty where that is not known any more.
        origin: What asked for it.
        reproduces: sha256 of the manifest whose picture it makes again, or empty.
        created: Unix seconds.
        verdict: How far it can be believed; empty where nobody measured that.
    """

    manifest_digest: str
    picture_digest: str
    content_key: str
    feature: str
    model: str
    revision: str
    method: str
    job_id: str
    origin: str
    reproduces: str
    created: float
    verdict: str = ""

    @classmethod
    def of(cls, portrait: Portrait, job: Job, facts: Mapping[str, Any]) -> "MadePicture":
        """Describe what a job made; ``facts`` are the manifest's."""
        layer = FeatureKey.parse(portrait.feature).layer
        method = facts.get("method")
        name = method.get("name") if isinstance(method, dict) else None
        return cls(
            manifest_digest=portrait.manifest_digest,
            picture_digest=portrait.picture_digest,
            content_key=portrait.content_key,
            feature=portrait.feature,
            model=layer.model,
            revision=layer.revision,
            method=str(name or ""),
            job_id=job.id,
            origin=job.request.origin,
            reproduces=job.request.cause.reproduces,
            created=portrait.created,
            verdict=portrait.verdict,
        )


class ArtifactIndex:
    """Made pictures, the newest first; safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        """Make the table where it is missing, from what the job tables know.

        Args:
            database: The daemon's, in which a ``JobQueue`` has made its tables.

        Raises:
            StorageError: The database cannot be written, or is of a newer release.
        """
        self._database = database
        database.migrate("artifact_index", _TABLES)

    def add(self, made: MadePicture) -> None:
        """Note a picture; one whose manifest is known stays as it was noted first."""
        places = ", ".join("?" * len(astuple(made)))
        with self._database.transaction() as cursor:
            cursor.execute(
                f"INSERT OR IGNORE INTO artifact_index ({_COLUMNS}) VALUES ({places})",  # noqa: S608 - constants
                astuple(made),
            )

    def find(self, digest: str) -> MadePicture | None:
        """Return the picture that a digest of it or of its manifest names; None where none does.

        Of several manifests of one picture the newest that reproduces nothing is returned.
        """
        rows = self._database.query(
            f"SELECT {_COLUMNS} FROM artifact_index WHERE manifest_digest = ? OR picture_digest = ? "  # noqa: S608 - constants
            "ORDER BY reproduces <> '', sequence DESC LIMIT 1",
            (digest, digest),
        )
        return MadePicture(*rows[0]) if rows else None

    def list(
        self,
        *,
        feature: str = "",
        model: str = "",
        revision: str = "",
        method: str = "",
        verdict: str = "",
        job_id: str = "",
        limit: int = 50,
        before: str = "",
    ) -> Sequence[MadePicture]:
        """Return pictures, the newest first.

        Args:
            feature: Only of this feature, in text form.
            model: Only of this model.
            revision: Only of revisions that start with this.
            method: Only those made so.
            verdict: Only those believed so far: ``trusted``, ``weak`` or ``unreliable``.
            job_id: Only what this job made.
            limit: At most so many.
            before: Only those noted before the one with this manifest; for the next page.
        """
        rows = self._database.query(
            f"SELECT {_COLUMNS} FROM artifact_index "  # noqa: S608 - constants
            "WHERE :feature IN ('', feature) AND :model IN ('', model) AND :method IN ('', method) "
            "AND :verdict IN ('', verdict) AND :job_id IN ('', job_id) "
            "AND substr(revision, 1, length(:revision)) = :revision AND sequence < coalesce("
            "(SELECT sequence FROM artifact_index WHERE manifest_digest = :before), 1 << 62) "
            "ORDER BY sequence DESC LIMIT :limit",
            {
                "feature": feature,
                "model": model,
                "revision": revision,
                "method": method,
                "verdict": verdict,
                "job_id": job_id,
                "before": before,
                "limit": max(0, limit),
            },
        )
        return tuple(MadePicture(*row) for row in rows)

    def together(self) -> Mapping[str, AbstractSet[str]]:
        """Return for each picture its manifests, and for each manifest its picture.

        The latter only where no other manifest has the same picture.
        """
        manifests: dict[str, set[str]] = {}
        rows = self._database.query("SELECT picture_digest, manifest_digest FROM artifact_index")
        for picture, manifest in rows:
            manifests.setdefault(picture, set()).add(manifest)
        alone = {
            m: {picture} for picture, found in manifests.items() if len(found) == 1 for m in found
        }
        return {**alone, **manifests}

    def forget(self, digests: Iterable[str]) -> None:
        """Drop the pictures of which a part is gone."""
        pairs = [(digest, digest) for digest in digests]
        with self._database.transaction() as cursor:
            cursor.executemany(
                "DELETE FROM artifact_index WHERE manifest_digest = ? OR picture_digest = ?", pairs
            )
