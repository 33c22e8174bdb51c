"""The job tables, and the rules that SQLite itself enforces on them.

A job is ``queued`` → ``running`` → one of ``done``, ``failed``, ``cancelled``; a running job may go
back to the queue, a queued one may be cancelled or miss its deadline, and one that has ended never
changes again. ``priority`` is ``Priority.rank``.
"""

TABLES = (
    """CREATE TABLE jobs (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        idempotency_key TEXT UNIQUE,
        request TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'queued'
            CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
        step INTEGER NOT NULL DEFAULT 0 CHECK (step >= 0),
        steps INTEGER NOT NULL DEFAULT 0 CHECK (steps >= step),
        message TEXT NOT NULL DEFAULT '',
        error_code TEXT NOT NULL DEFAULT '',
        error TEXT NOT NULL DEFAULT '',
        created REAL NOT NULL,
        started REAL NOT NULL DEFAULT 0,
        ended REAL NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
        not_before REAL NOT NULL DEFAULT 0,
        owner TEXT,
        lease_until REAL,
        cancel_wanted INTEGER NOT NULL DEFAULT 0 CHECK (cancel_wanted IN (0, 1)),
        from_cache INTEGER NOT NULL DEFAULT 0 CHECK (from_cache IN (0, 1)),
        preview_version INTEGER NOT NULL DEFAULT 0,
        version INTEGER NOT NULL DEFAULT 1,
        CHECK ((state = 'running') = (owner IS NOT NULL)),
        CHECK ((state = 'running') = (lease_until IS NOT NULL)),
        CHECK ((state IN ('done', 'failed', 'cancelled')) = (ended > 0)),
        CHECK ((state = 'failed') = (error_code <> ''))
    )""",
    "CREATE INDEX jobs_waiting ON jobs (state, sequence) WHERE state IN ('queued', 'running')",
    """CREATE TRIGGER jobs_transitions BEFORE UPDATE ON jobs
        WHEN OLD.state IN ('done', 'failed', 'cancelled')
            OR (OLD.state = 'queued' AND NEW.state NOT IN ('queued', 'running', 'cancelled'))
        BEGIN SELECT RAISE(ABORT, 'no such transition of a job'); END""",
    # What each job made, as it was then.
    """CREATE TABLE job_portraits (
        job INTEGER NOT NULL REFERENCES jobs (sequence) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        feature TEXT NOT NULL,
        content_key TEXT NOT NULL,
        picture_digest TEXT NOT NULL,
        manifest_digest TEXT NOT NULL,
        created REAL NOT NULL,
        PRIMARY KEY (job, position)
    ) WITHOUT ROWID""",
    # What can be answered without work.
    """CREATE TABLE portraits (
        content_key TEXT PRIMARY KEY,
        feature TEXT NOT NULL,
        picture_digest TEXT NOT NULL,
        manifest_digest TEXT NOT NULL,
        created REAL NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX portraits_by_feature ON portraits (feature, created)",
    # Second release: whose turn it is, by when, and of which model.
    "ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0 CHECK (priority IN (0, 1, 2))",
    "ALTER TABLE jobs ADD COLUMN deadline REAL NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN model TEXT NOT NULL DEFAULT ''",
    """UPDATE jobs SET priority = json_extract(request, '$.origin') = 'alert',
        model = substr(json_extract(request, '$.targets[0].feature'), 1,
            instr(json_extract(request, '$.targets[0].feature'), '@') - 1)
        WHERE state IN ('queued', 'running') AND json_valid(request)
            AND json_extract(request, '$.targets[0].feature') LIKE '%@%'""",
    "DROP INDEX jobs_waiting",
    """CREATE INDEX jobs_waiting ON jobs (state, priority, sequence)
        WHERE state IN ('queued', 'running')""",
    "DROP TRIGGER jobs_transitions",
    """CREATE TRIGGER jobs_transitions BEFORE UPDATE ON jobs
        WHEN OLD.state IN ('done', 'failed', 'cancelled')
            OR (OLD.state = 'queued' AND NEW.state = 'done')
        BEGIN SELECT RAISE(ABORT, 'no such transition of a job'); END""",
    # What killed its worker again and again, and until when nobody may try it.
    """CREATE TABLE quarantine (
        content_key TEXT PRIMARY KEY,
        job TEXT NOT NULL,
        reason TEXT NOT NULL,
        until REAL NOT NULL
    ) WITHOUT ROWID""",
    "ALTER TABLE job_portraits ADD COLUMN verdict TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE job_portraits ADD COLUMN reasons TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE portraits ADD COLUMN verdict TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE portraits ADD COLUMN reasons TEXT NOT NULL DEFAULT ''",
)

# A worker that fell silent may have killed its daemon too, so silence counts as an attempt.
EXPIRE = (
    """UPDATE jobs SET state = 'cancelled', ended = :now, owner = NULL, lease_until = NULL,
        message = 'cancelled', version = version + 1
        WHERE state = 'running' AND lease_until < :now AND cancel_wanted""",
    """UPDATE jobs SET state = 'failed', ended = :now, owner = NULL, lease_until = NULL,
        message = '', error_code = :code, version = version + 1,
        error = 'the worker fell silent or its daemon died, ' || attempts || ' times; last at: '
            || message
        WHERE state = 'running' AND lease_until < :now AND attempts >= :attempt_limit
        RETURNING id, request, error""",
    """UPDATE jobs SET state = 'queued', owner = NULL, lease_until = NULL,
        message = 'waiting again: its worker fell silent', version = version + 1
        WHERE state = 'running' AND lease_until < :now""",
)

# A job whose model has as many running as it may waits, and lets those of other models pass.
_NEXT = """SELECT sequence FROM jobs AS waiting
    WHERE state = 'queued' AND not_before <= :now AND (deadline = 0 OR deadline > :now)
        AND (priority < 2 OR :audits)
        AND (SELECT COUNT(*) FROM jobs WHERE state = 'running' AND model = waiting.model)
            < COALESCE((SELECT value FROM json_each(:limits) WHERE key = waiting.model), 1 << 30)
    ORDER BY priority, sequence LIMIT 1"""

CLAIM = f"""UPDATE jobs SET state = 'running', owner = :owner, lease_until = :lease_until,
    attempts = attempts + 1, started = :now, message = 'starting', version = version + 1
    WHERE sequence = ({_NEXT}) RETURNING *"""  # noqa: S608 - our own text

CLAIMABLE = f"""SELECT ({_NEXT}) IS NOT NULL
    OR EXISTS (SELECT 1 FROM jobs WHERE state = 'running' AND lease_until < :now)"""  # noqa: S608 - our own text

TURNS = """SELECT id, model, priority, state = 'running' AS running, sequence FROM jobs
    WHERE state = 'running' OR (state = 'queued' AND not_before <= :now)
    ORDER BY priority, sequence"""

OVERDUE = "SELECT * FROM jobs WHERE state = 'queued' AND deadline > 0 AND deadline <= :now"

MISS = """UPDATE jobs SET state = 'failed', ended = :now, message = '', error_code = :code,
    error = :error, version = version + 1 WHERE id = :id AND state = 'queued'"""

# Progress belongs to the job, not to the attempt: a retry never makes it go back.
HEARTBEAT = """UPDATE jobs SET lease_until = :lease_until, steps = MAX(steps, :steps, :step),
    step = MAX(step, :step), message = :message,
    preview_version = MAX(preview_version, :preview_version), version = version + 1
    WHERE id = :id AND owner = :owner AND state = 'running' RETURNING cancel_wanted"""

COMPLETE = """UPDATE jobs SET state = 'done', ended = :now, owner = NULL, lease_until = NULL,
    step = steps, message = '', from_cache = :from_cache, version = version + 1
    WHERE id = :id AND owner = :owner AND state = 'running' RETURNING sequence"""

REQUEUE = """UPDATE jobs SET state = 'queued', owner = NULL, lease_until = NULL, message = :message,
    attempts = attempts - :forgiven, not_before = :not_before, version = version + 1
    WHERE id = :id AND owner = :owner AND state = 'running'"""

FAIL = """UPDATE jobs SET state = 'failed', ended = :now, owner = NULL, lease_until = NULL,
    message = '', error_code = :code, error = :error, version = version + 1
    WHERE id = :id AND owner = :owner AND state = 'running'"""

END_CANCELLED = """UPDATE jobs SET state = 'cancelled', ended = :now, owner = NULL,
    lease_until = NULL, message = 'cancelled', version = version + 1
    WHERE id = :id AND (state = 'queued' OR (state = 'running' AND owner = :owner))"""

ASK_CANCEL = """UPDATE jobs SET cancel_wanted = 1, message = 'cancelling', version = version + 1
    WHERE id = :id AND state = 'running' AND NOT cancel_wanted"""

PRUNE = """DELETE FROM jobs WHERE state IN ('done', 'failed', 'cancelled')
    AND sequence <= (SELECT MAX(sequence) FROM jobs) - :kept"""

# The newest answer for every feature is what its page shows: never collected.
KEPT = """SELECT picture_digest, manifest_digest FROM portraits AS p WHERE created =
    (SELECT MAX(created) FROM portraits WHERE feature = p.feature)"""

# Portraits are read and written in the order of ``protocol.Portrait``.
PORTRAITS_OF = """SELECT feature, content_key, picture_digest, manifest_digest, created, verdict, reasons
    FROM portraits WHERE feature = ? ORDER BY created DESC, content_key LIMIT ?"""

PORTRAIT = """SELECT feature, content_key, picture_digest, manifest_digest, created, verdict, reasons
    FROM portraits WHERE content_key = ?"""

PORTRAITS_MADE = """SELECT feature, content_key, picture_digest, manifest_digest, created, verdict,
    reasons FROM job_portraits WHERE job = ? ORDER BY position"""

ADD_PORTRAIT = """INSERT OR REPLACE INTO portraits (feature, content_key, picture_digest,
    manifest_digest, created, verdict, reasons) VALUES (?, ?, ?, ?, ?, ?, ?)"""

ADD_MADE = """INSERT INTO job_portraits (job, position, feature, content_key, picture_digest,
    manifest_digest, created, verdict, reasons) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
