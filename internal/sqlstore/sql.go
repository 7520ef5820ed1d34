package sqlstore

// Every statement the store runs on its tables, in the SQL both engines read. Two habits:
// a row is selected together with latest, the last revision the audit log has for it up
// to the bound $1, so that no row is read without that check; and a condition never
// depends on a clock, because the rules live above this package.

const (
	// Of a write transaction on PostgreSQL, where they travel with other statements.
	beginTx    = `BEGIN ISOLATION LEVEL READ COMMITTED`
	beginRead  = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`
	commitTx   = `COMMIT`
	rollBackTx = `ROLLBACK`

	noStatementTimeout = `SET LOCAL statement_timeout = 0`
	noIdleTimeout      = `SET LOCAL idle_in_transaction_session_timeout = 0`
	noLockTimeout      = `SET LOCAL lock_timeout = 0`
	lockMigrations     = `SELECT pg_advisory_xact_lock($1)`

	// What is in force, and what would be if Keyward said nothing.
	readSynchronousCommit = `SELECT current_setting('synchronous_commit') ||
		CASE WHEN reset_val = current_setting('synchronous_commit') THEN ''
			ELSE ' (set by Keyward; the role, the database or the server says ' || reset_val || ')' END
		FROM pg_settings WHERE name = 'synchronous_commit'`
	// -1 = no limit.
	readLimits = `SELECT rolconnlimit, (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
			current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
		FROM pg_roles WHERE rolname = current_user`

	serverProcess = `SELECT pg_backend_pid()::bigint`

	// Of a new connection to PostgreSQL.
	examine = `SELECT current_setting('server_version_num'), pg_is_in_recovery()::int,
		current_setting('transaction_read_only'), current_setting('fsync'), pg_backend_pid()`

	// The first statement of every write. The row's lock, held to the commit, puts writes in one order.
	bumpMeta = `UPDATE meta SET revision = revision + 1 WHERE one = 1
		RETURNING revision, database_id, state_key_id, state_box`
	// The same lock without a new revision.
	lockMeta = `UPDATE meta SET revision = revision WHERE one = 1
		RETURNING revision, database_id, state_key_id, state_box`
	readMeta   = `SELECT revision, database_id, state_key_id, state_box FROM meta WHERE one = 1`
	writeState = `UPDATE meta SET state_key_id = $1, state_box = $2 WHERE one = 1`
	insertMeta = `INSERT INTO meta (one, revision, database_id, state_key_id, state_box)
		VALUES (1, 0, $1, $2, $3) ON CONFLICT (one) DO NOTHING`
	anyRow = `SELECT (SELECT count(*) FROM (SELECT 1 FROM keys LIMIT 1) k)
		+ (SELECT count(*) FROM (SELECT 1 FROM organizations LIMIT 1) o)
		+ (SELECT count(*) FROM (SELECT 1 FROM audit LIMIT 1) a)`

	// A statement of its own: under READ COMMITTED the one that waited for the lock still sees
	// the log as it was before the wait.
	readHead = `SELECT c.now, t.now, coalesce(a.sequence, 0), a.hash FROM clock c CROSS JOIN timeline t
		LEFT JOIN (SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1) a ON 1 = 1`
	readClock    = `SELECT now FROM clock`
	readTimeline = `SELECT now FROM timeline`
)

const (
	keyColumns = `k.id, k.organization_id, k.environment, k.digest, k.hint, k.name, k.created_at, k.created_by,
		k.expires_in_days, k.expires_at, k.state, k.revoked_at, k.revoke_reason, k.replaces, k.revision,
		k.seal_key_id, k.seal, k.description`
	latestOfKey = `(SELECT coalesce(max(a.revision), 0) FROM audit a
		WHERE a.target_id = k.id AND a.revision <= $1 AND a.action <> 'organization.put')`
	selectKey = `SELECT ` + keyColumns + `, ` + latestOfKey + ` FROM keys k `

	keyByID      = selectKey + `WHERE k.id = $2`
	keyByDigest  = selectKey + `WHERE k.digest = $2`
	keysInStates = selectKey + `WHERE k.organization_id = $2 AND k.state IN ($3, $4, $5, $6)`
	keysAfter    = selectKey + `WHERE k.revision > $2 ORDER BY k.revision LIMIT $3`
	keysOfWrite  = selectKey + `WHERE k.revision = $2`
	keysOf       = `SELECT ` + keyColumns + `, ` + latestOfKey + `, coalesce(u.last_used_at, 0)
		FROM keys k LEFT JOIN key_uses u ON u.key_id = k.id
		WHERE k.organization_id = $2 AND ($3 = '' OR k.environment = $3) AND (k.created_at, k.id) < ($4, $5)
		ORDER BY k.created_at DESC, k.id DESC LIMIT $6`

	insertKey = `INSERT INTO keys (id, organization_id, environment, digest, hint, name, created_at, created_by,
			expires_in_days, expires_at, state, revoked_at, revoke_reason, replaces, revision, seal_key_id, seal, description)
		VALUES ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
		RETURNING (SELECT coalesce(max(a.revision), 0) FROM audit a
			WHERE a.target_id = $2 AND a.revision <= $1 AND a.action <> 'organization.put')`
	updateKey = `UPDATE keys SET organization_id = $3, environment = $4, digest = $5, hint = $6, name = $7,
			created_at = $8, created_by = $9, expires_in_days = $10, expires_at = $11, state = $12, revoked_at = $13,
			revoke_reason = $14, replaces = $15, revision = $16, seal_key_id = $17, seal = $18, description = $19
		WHERE id = $2
		RETURNING (SELECT coalesce(max(a.revision), 0) FROM audit a
			WHERE a.target_id = $2 AND a.revision <= $1 AND a.action <> 'organization.put')`

	latestOfKeyID = `SELECT coalesce(max(a.revision), 0) FROM audit a
		WHERE a.target_id = $2 AND a.revision <= $1 AND a.action <> 'organization.put'`
	everyKey = `SELECT ` + keyColumns + ` FROM keys k`
)

const (
	organizationColumns = `o.id, o.name, o.parent_organization_id, o.payments_enabled, o.current_environment, o.active,
		o.created_at, o.updated_at, o.revision, o.seal_key_id, o.seal, o.deleted`
	latestOfOrganization = `(SELECT coalesce(max(a.revision), 0) FROM audit a
		WHERE a.target_id = o.id AND a.revision <= $1 AND a.action = 'organization.put')`
	selectOrganization = `SELECT ` + organizationColumns + `, ` + latestOfOrganization + ` FROM organizations o `

	// One row always: an organization the audit log knows and the table does not was removed.
	organizationByID = `SELECT o.id, coalesce(r.name, ''), coalesce(r.parent_organization_id, ''),
			coalesce(r.payments_enabled, 0), coalesce(r.current_environment, ''), coalesce(r.active, 0),
			coalesce(r.created_at, 0), coalesce(r.updated_at, 0), coalesce(r.revision, 0),
			coalesce(r.seal_key_id, ''), r.seal, coalesce(r.deleted, 0), ` + latestOfOrganization + `
		FROM (SELECT CAST($2 AS TEXT) AS id) o LEFT JOIN organizations r ON r.id = o.id`
	organizationsFrom    = selectOrganization + `WHERE o.id > $2 ORDER BY o.id LIMIT $3`
	organizationsAfter   = selectOrganization + `WHERE o.revision > $2 ORDER BY o.revision LIMIT $3`
	organizationsOfWrite = selectOrganization + `WHERE o.revision = $2`

	putOrganization = `INSERT INTO organizations (id, name, parent_organization_id, payments_enabled,
			current_environment, active, created_at, updated_at, revision, seal_key_id, seal, deleted)
		VALUES ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, parent_organization_id = excluded.parent_organization_id,
			payments_enabled = excluded.payments_enabled, current_environment = excluded.current_environment,
			active = excluded.active, created_at = excluded.created_at, updated_at = excluded.updated_at,
			revision = excluded.revision, seal_key_id = excluded.seal_key_id, seal = excluded.seal,
			deleted = excluded.deleted
		RETURNING (SELECT coalesce(max(a.revision), 0) FROM audit a
			WHERE a.target_id = $2 AND a.revision <= $1 AND a.action = 'organization.put')`
	countChildren = `SELECT count(*) FROM (SELECT 1 FROM organizations WHERE parent_organization_id = $1 LIMIT 1) c`

	everyOrganization = `SELECT ` + organizationColumns + ` FROM organizations o`

	everyKeyRevision          = `SELECT id, revision FROM keys`
	everyOrganizationRevision = `SELECT id, revision FROM organizations`
	latestOfAll               = `SELECT target_id, CASE WHEN action = 'organization.put' THEN 1 ELSE 0 END, max(revision)
		FROM audit WHERE revision > 0 GROUP BY 1, 2`
)

const (
	putUse = `INSERT INTO key_uses (key_id, last_used_at)
		SELECT k.id, CAST($1 AS BIGINT) FROM keys k WHERE k.id = $2
		ON CONFLICT (key_id) DO UPDATE SET last_used_at = excluded.last_used_at
		WHERE key_uses.last_used_at < excluded.last_used_at`

	lastTake = `SELECT taken_at FROM rates WHERE action = $1 AND user_id = $2`
	putTake  = `INSERT INTO rates (action, user_id, taken_at) VALUES ($1, $2, $3)
		ON CONFLICT (action, user_id) DO UPDATE SET taken_at = excluded.taken_at`

	deleteTakes = `DELETE FROM rates WHERE taken_at < $1`

	replayByHandle = `SELECT fingerprint, key_id, master_key_id, salt, sealed, created_at FROM replays WHERE handle = $1`
	putReplay      = `INSERT INTO replays (handle, fingerprint, key_id, master_key_id, salt, sealed, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (handle) DO UPDATE SET fingerprint = excluded.fingerprint, key_id = excluded.key_id,
			master_key_id = excluded.master_key_id, salt = excluded.salt, sealed = excluded.sealed,
			created_at = excluded.created_at`
	eraseReplays   = `UPDATE replays SET salt = $1, sealed = $1 WHERE key_id = $2`
	deleteReplays  = `DELETE FROM replays WHERE created_at < $1`
	countKeptUnder = `SELECT master_key_id, count(*) FROM replays WHERE length(sealed) > 0 AND master_key_id <> $1 GROUP BY 1`
	// Where the database is, and what it has in the place of another mark.
	news = `SELECT m.revision, m.database_id, m.state_key_id, m.state_box,
			(SELECT hash FROM audit WHERE sequence = $1), coalesce((SELECT max(sequence) FROM audit), 0),
			(SELECT hash FROM audit ORDER BY sequence DESC LIMIT 1)
		FROM meta m WHERE m.one = 1`
	entryHash = `SELECT hash FROM audit WHERE sequence = $1`
	atMark    = `SELECT count(*) FROM meta WHERE one = 1 AND revision = $1
		AND ($2 = 0 OR EXISTS (SELECT 1 FROM audit WHERE sequence = $2 AND hash = $3))`
)

// The rows of the nodes that serve, on PostgreSQL. Each statement asks the version gate (lineage.protocol) where it would give a
// node a lease.
const (
	registerNode = `INSERT INTO serving_nodes
			(node_id, address, version, protocol, lease, applied, renewed_at, seal_key_id, seal, master_keys)
		SELECT $1, $2, $3, CAST($4 AS BIGINT), CAST($5 AS BIGINT), -1, (SELECT now FROM clock), $6, $7, $8
		FROM lineage WHERE protocol <= CAST($4 AS BIGINT)`
	// applied <= $1: PostgreSQL compares the revision in the statement's snapshot, waits for the row, and then looks at
	// the row again but not at the revision. A late renewal must not put an older number over a newer one.
	renewNode = `UPDATE serving_nodes SET applied = $1, renewed_at = (SELECT now FROM clock)
		WHERE node_id = $2 AND applied <= $1 AND $1 = (SELECT revision FROM meta WHERE one = 1)
			AND (CAST($3 AS BIGINT) = 0 OR EXISTS (SELECT 1 FROM audit WHERE sequence = $3 AND hash = $4))
			AND $5 >= (SELECT protocol FROM lineage)
			AND position(' ' || (SELECT state_key_id FROM meta WHERE one = 1) || ':' IN master_keys) > 0
		RETURNING renewed_at, (SELECT now FROM timeline), (SELECT settled FROM lineage)`
	nodeState = `SELECT coalesce((SELECT applied FROM serving_nodes WHERE node_id = $1), -2), (SELECT revision FROM meta WHERE one = 1),
			l.protocol, l.settled, t.now,
			coalesce((SELECT master_keys FROM serving_nodes WHERE node_id = $1), ''), (SELECT state_key_id FROM meta WHERE one = 1)
		FROM lineage l CROSS JOIN timeline t`
	standing = `SELECT count(*) FILTER (WHERE applied < $1), coalesce(max(lease), 0), count(*) FILTER (WHERE node_id = $2),
			(SELECT now FROM timeline), (SELECT settled FROM lineage),
			$1 <= (SELECT revision FROM meta WHERE one = 1)
				AND (CAST($3 AS BIGINT) = 0 OR EXISTS (SELECT 1 FROM audit WHERE sequence = $3 AND hash = $4))
		FROM serving_nodes`
	hasWrite = `SELECT $1 <= (SELECT revision FROM meta WHERE one = 1)
		AND (CAST($2 AS BIGINT) = 0 OR EXISTS (SELECT 1 FROM audit WHERE sequence = $2 AND hash = $3))`
	fenceNodes    = `DELETE FROM serving_nodes WHERE applied < $1 RETURNING node_id`
	deleteNode    = `DELETE FROM serving_nodes WHERE node_id = $1`
	settleLineage = `UPDATE lineage SET settled = $1 WHERE settled <> $1`
	readProtocol  = `SELECT protocol FROM lineage`
	everyNode     = `SELECT n.node_id, n.address, n.version, n.protocol, n.lease, n.applied, c.now - n.renewed_at, n.seal_key_id, n.seal, n.master_keys
		FROM serving_nodes n CROSS JOIN clock c ORDER BY n.address, n.node_id`

	advertiseKeys = `UPDATE serving_nodes SET master_keys = $2, seal_key_id = $3, seal = $4 WHERE node_id = $1`
	sealNode      = `UPDATE serving_nodes SET seal_key_id = $3, seal = $4 WHERE node_id = $1 AND seal = $2`

	replication = `SELECT current_setting('synchronous_standby_names') <> '' AND current_setting('synchronous_commit') NOT IN ('off', 'local'),
		EXISTS (SELECT 1 FROM pg_stat_replication)`

	announce = `SELECT pg_notify('keyward', $1)`
	listen   = `LISTEN keyward`
)

const (
	entryColumns = `sequence, at, actor, action, organization_id, target_id, outcome, detail, remote_address,
		request_id, revision, hash`
	insertEntry = `INSERT INTO audit (` + entryColumns + `, seal_key_id, seal)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`
	everyEntry = `SELECT ` + entryColumns + `, seal_key_id, seal FROM audit ORDER BY sequence`
)

// Re-sealing walks each table by its key, so that it goes on where it stopped.
const (
	staleKeys = selectKey + `WHERE k.id > $2 AND k.seal_key_id <> $3 ORDER BY k.id LIMIT $4`
	sealKey   = `UPDATE keys SET seal_key_id = $1, seal = $2 WHERE id = $3`

	staleOrganizations = selectOrganization + `WHERE o.id > $2 AND o.seal_key_id <> $3 ORDER BY o.id LIMIT $4`
	sealOrganization   = `UPDATE organizations SET seal_key_id = $1, seal = $2 WHERE id = $3`

	staleEntries = `SELECT sequence, hash, seal_key_id, seal FROM audit
		WHERE sequence > $1 AND seal_key_id <> $2 ORDER BY sequence LIMIT $3`
	sealEntry = `UPDATE audit SET seal_key_id = $1, seal = $2 WHERE sequence = $3`

	countStale = `SELECT (SELECT count(*) FROM keys WHERE seal_key_id <> $1)
		+ (SELECT count(*) FROM organizations WHERE seal_key_id <> $1)
		+ (SELECT count(*) FROM audit WHERE seal_key_id <> $1)`
)

// The master keys by id. That a fingerprint is wrong shows where the state opens all the same.
const (
	everyMasterKey = `SELECT id, fingerprint, signing_since FROM master_keys`
	putSigningKey  = `INSERT INTO master_keys (id, fingerprint, signing_since, asked_at) VALUES ($1, $2, $3, 0)
		ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint, signing_since = excluded.signing_since`
	askForMasterKey = `INSERT INTO master_keys (id, fingerprint, signing_since, asked_at) VALUES ($1, $2, 0, $3)
		ON CONFLICT (id) DO UPDATE SET asked_at = excluded.asked_at`
	masterKeyNow = `SELECT m.state_key_id, coalesce((SELECT id FROM master_keys WHERE asked_at > $1 ORDER BY asked_at DESC LIMIT 1), '')
		FROM meta m WHERE m.one = 1`
	// An idempotency record without its answer counts too: it is looked up under that key (C16).
	keysInUse = `SELECT seal_key_id FROM keys UNION SELECT seal_key_id FROM organizations UNION SELECT seal_key_id FROM audit
		UNION SELECT master_key_id FROM replays UNION SELECT state_key_id FROM meta`
	nodeKeysInUse = `SELECT DISTINCT seal_key_id FROM serving_nodes`
)
